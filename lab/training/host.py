"""The tiny world's base models as the trainer wants them, and their text encoder while it is trained.

The networks are ComfyUI's (`networks.py`). Text and image encoder are those of the transformers
library while training, because ComfyUI's CLIP adds in place and has no gradients; both have the same
weights' names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_world import models, world
from tiny_world.bases import BASES
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
from nested_core.sites import Site
from nested_core.training.base_model import Caption, CaptionTokenizer, PictureSize, TextConditions
from nested_core.training.nested_attention import JointSubjects, Subjects
from nested_core.training.noise_schedule import NoiseSchedule
from nested_core.vision import patch_features

from .networks import NETWORKS, LayerSubjects

_EMBEDDING = "text_model.embeddings.token_embedding.weight"
_GLUE = "a , at the with and in under"

AnySubjects = Subjects | JointSubjects | LayerSubjects


def base_name(name: str) -> str:
    """What encoder files call one of the world's base models."""
    return "tiny_world" if name == models.UNET else f"tiny_world_{name}"


def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer that comes with ComfyUI."""
    return CLIPTokenizer.from_pretrained(
        Path(os.environ["NESTED_ATTENTION_HOST"], "comfy", "sd1_tokenizer")
    )


class BaseModel(nn.Module):
    """A network and the text encoder. Of the vocabulary only the words of the world are kept.

    Args:
        name: one of `BASES`. The text encoder is trained with the UNet, and frozen for all others.
    """

    def __init__(self, name: str = models.UNET) -> None:
        super().__init__()
        self.name, self.base = name, BASES[name]
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
        self.network = NETWORKS[name]()
        # Not `module`: a checkpoint of several processes has that before every name.
        self.denoiser = self.network.module
        if name != models.UNET:
            self.text.requires_grad_(False)

    def _ids_of(self, words: Sequence[str]) -> set[int]:
        return {token_id for word in words for token_id in self.tokenise(Caption(word, ""))[0]}

    def forward(
        self, noisy: Tensor, times: Tensor, rows: Tensor, things_alone: Tensor | None = None
    ) -> Tensor:
        """The prediction, with the captions as rows of the kept vocabulary.

        Args:
            things_alone: by sample, whether the network is shown no token but those of things.
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
        self, noisy: Tensor, times: Tensor, context: Tensor, subjects: AnySubjects | None = None
    ) -> Tensor:
        """The network's prediction, with subjects in their tokens' places."""
        return self.network.predict(noisy, times, context, subjects)

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

    def site_dims(self) -> dict[Site, int]:
        """Inner width of each site's keys."""
        network = self.network
        return {site: len(network.projection_weights(site)[0]) for site in network.sites}

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """The file that the loader nodes read; the text encoder is in the UNet's alone."""
        prefix = self.base.prefix
        tensors = {f"{prefix}{name}": each for name, each in self.denoiser.state_dict().items()}
        tensors |= self._text_tensors() if self.name == models.UNET else {}
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        if self.name == models.UNET:
            tensors["text.token_ids"] = self.token_ids
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path)

    def _text_tensors(self) -> dict[str, Tensor]:
        text = {_prefixed(name): tensor for name, tensor in self.text.state_dict().items()}
        text["token_embedding"] = text.pop(_EMBEDDING)
        return {f"text.{name}": tensor for name, tensor in text.items()}

    def load(self, path: Path) -> None:
        """Reads what `save` wrote of the network, and of the text encoder where it is in there."""
        self.denoiser.load_state_dict(models.part_of(path, self.base.prefix))
        if self.name == models.UNET:
            self.load_text(path)

    def load_text(self, path: Path) -> None:
        """Reads the text encoder alone."""
        tensors, own = models.part_of(path, "text."), self.text.state_dict()
        tensors[_EMBEDDING] = tensors["token_embedding"]
        self.text.load_state_dict({name: tensors[_prefixed(name)] for name in own})

    @classmethod
    def of(cls, weights: Path, name: str = models.UNET) -> BaseModel:
        """The trained one of a folder."""
        model = cls(name)
        model.load(weights / model.base.files.base)
        if name != models.UNET:
            model.load_text(weights / models.BASE_FILE)
        return model


def _prefixed(name: str) -> str:
    """The name with the prefix that some releases of transformers leave out."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def vision_model() -> CLIPVisionModelWithProjection:
    """The image encoder, untrained."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**models.VISION_CONFIG))


def load_vision(path: Path) -> CLIPVisionModelWithProjection:
    """The image encoder from the file that the loader node reads."""
    vision = vision_model()
    vision.load_state_dict(load_file(path))
    return vision


class TinyWorldHost:
    """The trainer's `BaseModel`: one of `BASES` from a folder of weights."""

    text_dim = models.TEXT_DIM
    schedule = NoiseSchedule("flow", shift=models.TIME_SHIFT)

    def __init__(self, weights: Path = models.WEIGHTS, name: str = models.UNET) -> None:
        self.model = BaseModel.of(weights, name)
        self.base = base_name(name)
        self.family: AnyFamily = self.model.network.family
        self.vision = load_vision(weights / models.VISION_FILE)
        self.site_dims: Mapping[Site, int] = self.model.site_dims()
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
        return self.model.network.projection_weights(site)

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
        self, noisy: Tensor, times: Tensor, text: TextConditions, subjects: AnySubjects | None
    ) -> Tensor:
        return self.model.predict(noisy, times, text.context, subjects)
