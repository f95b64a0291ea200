"""The tiny world's base model as the trainer wants it, and its text encoder while it is trained.

The UNet is ComfyUI's. Text and image encoder are those of the transformers library while training,
because ComfyUI's CLIP adds in place and has no gradients; both have the same weights' names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_world import models, world
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from nested_core.config import HiddenState, ImageEncoderConfig
from nested_core.families import AnyFamily
from nested_core.families.unet import UNET
from nested_core.families.unet_sites import AttentionSite
from nested_core.sites import Site
from nested_core.training.base_model import Caption, CaptionTokenizer, PictureSize, TextConditions
from nested_core.training.nested_attention import Subjects, attend
from nested_core.training.noise_schedule import NoiseSchedule
from nested_core.vision import patch_features

_EMBEDDING = "text_model.embeddings.token_embedding.weight"
_GLUE = "a , at the with and in under"


def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer that comes with ComfyUI."""
    return CLIPTokenizer.from_pretrained(
        Path(os.environ["NESTED_ATTENTION_HOST"], "comfy", "sd1_tokenizer")
    )


class BaseModel(nn.Module):
    """UNet and text encoder. Of the vocabulary only the words of the world are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenise = CaptionTokenizer(
            clip_tokenizer(), models.TEXT_CONFIG["max_position_embeddings"]
        )
        things = [part for parts in world.PARTS.values() for part in parts]
        things += [*world.STYLES, *world.PLACES, *world.BACKGROUNDS, *world.PROPS, *world.KINDS]
        ids = sorted(self._ids_of([*things, *world.PALETTE, *_GLUE.split()]))
        self.token_ids: Tensor
        self.register_buffer("token_ids", torch.tensor(ids, dtype=torch.int32))
        end = self._ids_of([""])
        named = self._ids_of(things) - end
        self._is_thing = torch.tensor([token_id in named for token_id in ids])
        # Start and end of text have the highest numbers.
        vocabulary = {
            "vocab_size": len(ids),
            "bos_token_id": len(ids) - 2,
            "eos_token_id": len(ids) - 1,
        }
        self.text = CLIPTextModel(CLIPTextConfig(**{**models.TEXT_CONFIG, **vocabulary}))
        self.unet = models.unet_module()

    def _ids_of(self, words: Sequence[str]) -> set[int]:
        return {token_id for word in words for token_id in self.tokenise(Caption(word, ""))[0]}

    def forward(
        self, noisy: Tensor, times: Tensor, rows: Tensor, things_alone: Tensor | None = None
    ) -> Tensor:
        """The prediction, with the captions as rows of the kept vocabulary.

        Args:
            things_alone: by sample, whether the UNet is shown no token but those of things.
        """
        return self.predict(noisy, times, self.context(rows, things_alone))

    def context(self, rows: Tensor, things_alone: Tensor | None = None) -> Tensor:
        """The text tokens `[batch, 77, text_dim]`; zero behind the end of the text."""
        is_end = rows == rows.max()
        shown = is_end.cumsum(dim=1) - is_end.long() == 0
        if things_alone is not None:
            shown = shown & (self._is_thing.to(rows.device)[rows] | ~things_alone[:, None])
        return self.text(input_ids=rows).last_hidden_state * shown[..., None]

    def predict(
        self, noisy: Tensor, times: Tensor, context: Tensor, subjects: Subjects | None = None
    ) -> Tensor:
        """The UNet's prediction, with subjects in their tokens' places."""
        options: dict[str, Any] = {"optimized_attention_override": _attend}
        if subjects is not None:
            patches = {tuple(site): _site_with(subjects, site) for site in self.attentions()}
            options["patches_replace"] = {"attn2": patches}
        return self.unet(noisy, times, context=context, transformer_options=options)

    def rows(self, captions: Sequence[Caption]) -> tuple[Tensor, Tensor]:
        """Captions as rows of the kept vocabulary `[batch, 77]`, and where their nouns end.

        Raises:
            ValueError: a caption has a word that the world does not know.
        """
        ids, positions = zip(*map(self.tokenise, captions), strict=True)
        known = self.token_ids
        wanted = torch.tensor(ids, dtype=torch.int32, device=known.device)
        rows = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        strange = (known[rows] != wanted).any(dim=1).nonzero().flatten().tolist()
        if strange:
            raise ValueError(
                f"caption {captions[strange[0]].plain!r}: has a word that the tiny world does not know. "
                "Its words are those of `world.caption`."
            )
        return rows, torch.tensor(positions, device=known.device)

    def attentions(self) -> dict[AttentionSite, Any]:
        """The cross-attention layers under ComfyUI's numbers."""
        modules = dict(self.unet.named_modules())
        return {site: modules[name] for site, name in UNET.sites_of(modules).items()}

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """The file that the loader nodes read."""
        text = {_prefixed(name): tensor for name, tensor in self.text.state_dict().items()}
        text["token_embedding"] = text.pop(_EMBEDDING)
        tensors = {f"unet.{name}": tensor for name, tensor in self.unet.state_dict().items()}
        tensors |= {f"text.{name}": tensor for name, tensor in text.items()}
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        tensors["text.token_ids"] = self.token_ids
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path)

    def load(self, path: Path) -> None:
        """Reads what `save` wrote."""
        tensors, own = models.part_of(path, "text."), self.text.state_dict()
        tensors[_EMBEDDING] = tensors["token_embedding"]
        self.text.load_state_dict({name: tensors[_prefixed(name)] for name in own})
        self.unet.load_state_dict(models.part_of(path, "unet."))


def _prefixed(name: str) -> str:
    """The name with the prefix that some releases of transformers leave out."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _attend(
    _: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, *__: Any, **___: Any
) -> Tensor:
    # ComfyUI's attention for small machines computes no gradients of this size fast.
    return attend(query, key, value, heads)


def _site_with(subjects: Subjects, site: AttentionSite) -> Any:
    """ComfyUI's replace-patch of one site."""

    def patch(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        return attend(query, key, value, options["n_heads"], site=site, subjects=subjects)

    return patch


def vision_model() -> CLIPVisionModelWithProjection:
    """The image encoder, untrained."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**models.VISION_CONFIG))


def load_vision(path: Path) -> CLIPVisionModelWithProjection:
    """The image encoder from the file that the loader node reads."""
    vision = vision_model()
    vision.load_state_dict(load_file(path))
    return vision


class TinyWorldHost:
    """The trainer's `Host`."""

    base = "tiny_world"
    family: AnyFamily = UNET
    text_dim = models.TEXT_DIM
    schedule = NoiseSchedule("flow", shift=models.TIME_SHIFT)

    def __init__(self, weights: Path = models.WEIGHTS) -> None:
        self.model = BaseModel()
        self.model.load(weights / models.BASE_FILE)
        self.vision = load_vision(weights / models.VISION_FILE)
        self._attentions: Mapping[Site, Any] = {**self.model.attentions()}
        self.site_dims: Mapping[Site, int] = {
            site: layer.heads * layer.dim_head for site, layer in self._attentions.items()
        }
        self.image_encoder = ImageEncoderConfig(
            "clip_vision", models.VISION_CONFIG["hidden_size"], models.VISION_CONFIG["image_size"]
        )

    def frozen_modules(self) -> Sequence[nn.Module]:
        return [self.model, self.vision]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        for module in self.frozen_modules():
            module.to(device, dtype)

    def save_memory(self) -> None:
        """Nothing: there is little to save."""

    def projection_weights(self, site: Site) -> tuple[Tensor, Tensor]:
        attention = self._attentions[site]
        return attention.to_k.weight, attention.to_v.weight

    @torch.no_grad()
    def encode_captions(
        self, captions: Sequence[Caption], sizes: Sequence[PictureSize]
    ) -> TextConditions:
        rows, positions = self.model.rows(captions)
        return TextConditions(self.model.context(rows), positions)

    def encode_pixels(self, pixels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return functional.pixel_unshuffle(pixels, models.BLOCK)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return functional.pixel_shuffle(latents, models.BLOCK).clamp(-1, 1).float()

    @torch.no_grad()
    def patch_features(self, pixels: Tensor, hidden_state: HiddenState) -> Tensor:
        return patch_features(self.vision, pixels, hidden_state)

    def predict(
        self, noisy: Tensor, times: Tensor, text: TextConditions, subjects: Subjects | None
    ) -> Tensor:
        return self.model.predict(noisy, times, text.context, subjects)
