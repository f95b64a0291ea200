"""Scenes with diffusion transformers: a tiny model with its text encoder, subjects, a sampler."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import comfy.sample
import pack
import tiny_transformers
import torch
from joint_value_table import JointSubject, JointValueTable, RowSlots, site_modules
from torch import Tensor

FAMILIES = tuple(tiny_transformers.FAMILIES)
PROMPT = "a pencil drawing of a woman with a black dog in a coffee shop"
NEGATIVE = "blurry"
SUBJECT_WIDTH, SUBJECT_TOKENS = 14, 5


@dataclass
class TransformerScene:
    """A tiny model of one family, with odd sizes: no multiples of the patch."""

    family: str
    model: Any
    clip: Any
    height: int = 9
    width: int = 7
    frames: int = 1
    steps: int = 2

    @property
    def sites(self) -> list[str]:
        """In the order of the model."""
        return list(site_modules(self.model.model.diffusion_model))

    def latents(self, batch: int = 1) -> Tensor:
        """Empty ones of the family's shape."""
        form = self.model.model.latent_format
        frames = (self.frames,) if form.latent_dimensions == 3 else ()
        return torch.zeros(batch, form.latent_channels, *frames, self.height, self.width)

    def encode(self, text: str, clip: Any = None) -> Any:
        """A CONDITIONING as from the node."""
        clip = self.clip if clip is None else clip
        return pack.run_host("CLIPTextEncode", clip=clip, text=text)

    def context(self, conditioning: Any) -> Tensor:
        """The rows that a site has its text's keys of, `[rows, width]`."""
        ((rows, extras),) = conditioning
        if self.family == "anima":
            rows = self.model.model.diffusion_model.preprocess_text_embeds(
                rows, extras["t5xxl_ids"][None], extras["t5xxl_weights"][None, :, None]
            )
        return rows[0]

    def rows(self, text: str, noun: str) -> list[int]:
        """The rows of the context in which the last token of a noun lies, one for each text encoder
        with rows of its own."""
        tokens = self.clip.tokenize(text)
        rows = []
        for key, index in self.token_places(text, noun):
            behind_clip = 77 if self.family == "sd3" and key == "t5xxl" else 0
            rows.append(index + behind_clip - self._template(tokens, key))
        return rows

    def token_places(self, text: str, noun: str) -> list[tuple[str, int]]:
        """Text encoder and number of the noun's last token there, told by decoding the prompt token
        by token. Of SD3's `l` and `g`, which share their rows, `l` alone."""
        tokens = self.clip.tokenize(text)
        return [(key, self._last(tokens, key, noun)) for key in self._keys(tokens)]

    def token_at(self, text: str, place: tuple[str, int]) -> str:
        """One token in letters."""
        key, index = place
        return self._decode(key, [int(self.clip.tokenize(text)[key][0][index][0])]).strip()

    def _keys(self, tokens: Any) -> list[str]:
        if self.family == "sd3":
            return ["l", "t5xxl"]
        return ["t5xxl"] if "t5xxl" in tokens else list(tokens)

    def _last(self, tokens: Any, key: str, noun: str) -> int:
        ids = [int(item[0]) for item in tokens[key][0]]
        for index in range(self._template(tokens, key), len(ids)):
            before = self._decode(key, ids[: index + 1]).rstrip()
            if before.endswith(noun) and not before[: -len(noun)][-1:].isalnum():
                return index
        raise AssertionError(f"{noun!r} is not in the prompt that {self.family} reads")

    def _template(self, tokens: Any, key: str) -> int:
        """Tokens in front of the prompt that Qwen-Image takes away behind the encoder."""
        if self.family != "qwen_image":
            return 0
        ids = [item[0] for item in tokens[key][0]]
        start = self.clip.tokenizer.qwen25_7b.tokenizer.convert_tokens_to_ids("<|im_start|>")
        second = [index for index, each in enumerate(ids) if each == start][1]
        return second + 3  # behind the mark, `user` and the line break

    def _decode(self, key: str, ids: list[int]) -> str:
        names = (key, f"clip_{key}")
        (inner,) = (
            vars(self.clip.tokenizer)[name] for name in names if name in vars(self.clip.tokenizer)
        )
        return inner.decode(ids, skip_special_tokens=True)

    def sample(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        *,
        cfg: float = 4.0,
        batch: int = 1,
        **options: Any,
    ) -> Tensor:
        """A few steps from fixed noise."""
        latent = options.pop("latent", self.latents(batch))
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(11))
        return comfy.sample.sample(
            model,
            noise,
            options.pop("steps", self.steps),
            cfg,
            options.pop("sampler", "euler"),
            "normal",
            positive,
            negative,
            latent,
            disable_pbar=True,
            seed=5,
            **options,
        )

    def subject(self, seed: int = 0, **settings: Any) -> JointSubject:
        """A random subject for the reference; settings as of `JointSubject`."""

        def weights(site: str) -> tuple[Tensor, Tensor]:
            generator = torch.Generator().manual_seed(100 * seed + self.sites.index(site))
            shape = (2, self.inner(site), SUBJECT_WIDTH)
            to_k, to_v = torch.randn(shape, generator=generator) * SUBJECT_WIDTH**-0.5
            return to_k, to_v

        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randn(SUBJECT_TOKENS, SUBJECT_WIDTH, generator=generator)
        return JointSubject(tokens, weights, **settings)

    def inner(self, site: str) -> int:
        """How wide the keys are that this site has of a text token."""
        config = tiny_transformers.FAMILIES[self.family].unet
        if self.family == "sd3":
            return 64 * config["depth"]
        if self.family == "qwen_image":
            return config["attention_head_dim"] * config["num_attention_heads"]
        if self.family in ("lumina2", "z_image"):
            return config["dim"] // config["n_heads"] * config["n_kv_heads"]
        return next(
            config[key] for key in ("hidden_size", "model_channels", "dim") if key in config
        )

    def sample_naively(
        self,
        row_slots: RowSlots,
        positive: Any,
        negative: Any,
        *,
        model: Any = None,
        **options: Any,
    ) -> Tensor:
        """What the reference makes of the plain prompt."""
        plain = self.model if model is None else model
        return self.sample(JointValueTable(row_slots).on(plain), positive, negative, **options)


@functools.cache
def clip_of(family: str) -> Any:
    """The text encoder, made once: reading the tokenizers takes a second."""
    return tiny_transformers.clip(family)


def make_scene(family: str, **unet: Any) -> TransformerScene:
    """A scene of the family; entries as of `tiny_transformers.model`."""
    frames = 2 if family == "wan" else 1
    return TransformerScene(
        family, tiny_transformers.model(family, **unet), clip_of(family), frames=frames
    )


@functools.cache
def shared_scene(family: str) -> TransformerScene:
    """One scene for all tests that leave its model as it is."""
    return make_scene(family)
