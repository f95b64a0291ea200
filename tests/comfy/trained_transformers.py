"""Tiny transformers in both hosts with the same weights, and encoders trained on them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.utils
import dit_scene
import folder_paths
import pack
import pytest
import sentence_pieces
import sentencepiece
import torch
from dit_scene import TransformerScene
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
sys.path.append(str(Path(__file__).parents[1] / "training"))
import tiny_flow_models
import tiny_models
import tiny_text_encoders
from diffusers.loaders import single_file_utils
from transformers import T5TokenizerFast

from nested_core.attention import ValueNorm
from nested_core.training.__main__ import main
from nested_core.training.diffusers_model import load_base_model
from nested_core.training.flow_models.model import TransformerModel
from nested_core.training.nested_attention import NestedSubjects

TEXT = "a photo of {subject} in a hat"
NOUN = "woman"


@dataclass
class BothHosts:
    """One tiny model with an encoder that was trained on it.

    Attributes:
        scene: the model in ComfyUI.
        base_model: the same in diffusers.
        encoder: as the node has read it.
    """

    scene: TransformerScene
    base_model: TransformerModel
    encoder: Any

    def subjects(self, tokens: Tensor, places: list[int]) -> NestedSubjects:
        """A subject as training has it, bound in the one row of a batch."""
        keys_values = {
            site.path: self.encoder.project(site, tokens[None]) for site in self.encoder.site_dims
        }
        config = self.encoder.config
        norm = ValueNorm(config.value_norm.mode, config.value_norm.scale)
        return NestedSubjects(keys_values, torch.tensor([places]), norm, config.nested_key)


def both_hosts(family: str, folder: Path, **settings: Any) -> BothHosts:
    """Two steps of training on the weights that ComfyUI's model has; the file read by the node."""
    scene = dit_scene.make_scene(family, **LAYOUTS.get(family, {}))
    with tiny_text_encoders.tokenizers_read_once():
        return _in_both(scene, folder, settings)


def _in_both(scene: TransformerScene, folder: Path, settings: dict[str, Any]) -> BothHosts:
    family = scene.family
    with torch.inference_mode(False), torch.enable_grad():
        run = _train(scene, folder, settings)
    encoders = Path(folder_paths.get_folder_paths("nested_attention")[0])
    encoders.mkdir(parents=True, exist_ok=True)
    name = f"trained-{family}-{settings['nested_key']}.safetensors"
    (run / "encoder.safetensors").replace(encoders / name)
    base_model = load_base_model(
        str(folder / "base"), str(folder / "vision"), guidance=GUIDANCE.get(family, 1.0)
    )
    base_model.transformer.eval()
    return BothHosts(scene, base_model, pack.run("LoadEncoder", encoder_name=name))


GUIDANCE = {"flux": 3.5}  # ComfyUI's, where a prompt brings none
# What diffusers' classes do not let anybody choose.
LAYOUTS: dict[str, dict[str, Any]] = {
    "flux": {"mlp_ratio": 4.0},
    "sd3": {"mlp_ratio": 4.0},
    "z_image": {"ffn_dim_multiplier": 8 / 3, "multiple_of": 2},
}
# What ComfyUI's do not.
CHANGES: dict[str, dict[str, Any]] = {"sd3": {"text_width": 4096}}


def _umt5_tokenizer() -> Any:
    """transformers' tokenizer of the pieces that ComfyUI's UMT5 has."""
    pieces = sentencepiece.SentencePieceProcessor(
        model_proto=sentence_pieces.umt5().numpy().tobytes()
    )
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def _train(scene: TransformerScene, folder: Path, settings: dict[str, Any]) -> Path:
    base, vision, data = (folder / name for name in ("base", "vision", "data"))
    pipeline = tiny_flow_models.tiny_flow_pipeline(scene.family, **CHANGES.get(scene.family, {}))
    if scene.family == "wan":
        pipeline.tokenizer = _umt5_tokenizer()
    pipeline.transformer.load_state_dict(converted(scene, pipeline.transformer))
    if scene.family == "sd3":
        pipeline.text_encoder_3.bfloat16()  # a file of a quarter of a gigabyte, not of a half
    pipeline.save_pretrained(base)
    tiny_models.save_tiny_image_encoder(vision)
    data.mkdir()
    tiny_models.write_picture(data / "a.png", 0)
    (data / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": TEXT}))
    changed = {"steps": 2, "batch_size": 2, "noun": NOUN, "num_queries": 6, **settings}
    run = tiny_models.tiny_settings(folder / "run", base, vision, data) | changed
    (folder / "settings.json").write_text(json.dumps(run))
    assert main(["--config", str(folder / "settings.json")]) == 0
    return folder / "run"


def converted(scene: TransformerScene, transformer: Any) -> dict[str, Tensor]:
    """ComfyUI's weights under diffusers' names: by ComfyUI's map for LoRA files, or by diffusers' own
    converter of original files."""
    model = scene.model.model
    weights = {name: each.clone() for name, each in model.diffusion_model.state_dict().items()}
    if scene.family == "flux":
        names = comfy.utils.flux_to_diffusers(model.model_config.unet_config)
        return {name: _by(names[name], weights) for name in transformer.state_dict()}
    own = transformer.state_dict()
    found = _CONVERTERS[scene.family](weights)
    return {name: _filled_up(each, own[name].shape) for name, each in found.items()}


def _by(place: Any, weights: dict[str, Tensor]) -> Tensor:
    """A whole tensor, rows of one, or one with its halves exchanged."""
    if isinstance(place, str):
        return weights[place]
    name, rows, *exchange = place
    weight = weights[name] if rows is None else weights[name].narrow(*rows)
    return exchange[0](weight) if exchange else weight


def _filled_up(weight: Tensor, shape: torch.Size) -> Tensor:
    """With zeros, which change nothing: diffusers leaves Z-Image's hidden layer for times no size."""
    if weight.shape == shape:
        return weight
    filled = weight.new_zeros(shape)
    filled[tuple(slice(length) for length in weight.shape)] = weight
    return filled


_CONVERTERS = {
    "sd3": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    "qwen_image": lambda weights: weights,
    "z_image": single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
    "cosmos_predict2": single_file_utils.convert_cosmos_transformer_checkpoint_to_diffusers,
    "wan": single_file_utils.convert_wan_transformer_to_diffusers,
}
