"""The ways of drawing that are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_world import models, world

from nested_core.attention import ValueNorm
from nested_core.training.base_model import SUBJECT, Caption, CaptionTokenizer
from nested_core.training.nested_attention import NestedSubjects

from ..ablations.decoupled import with_decoupled_subjects
from ..ablations.encoders import DECOUPLED
from ..ablations.ways import WAYS
from ..subjects.held_out import Prompt
from ..training.host import clip_tokenizer
from ..training.networks import OVERRIDE, override
from .studio import Studio, run_node

SHIPPED = "shipped"
_MARGIN = 1  # pixels around the box that a user would paint

Prepared = tuple[Any, Any, list[str]]


@dataclass(frozen=True)
class Method(ABC):
    """A way to put subjects into pictures.

    Attributes:
        encoder: `shipped`, the name of an ablation whose encoder is used, or None.
    """

    name: str
    encoder: str | None = None

    @abstractmethod
    def prepare(self, studio: Studio, encoder: Any, prompts: Sequence[Prompt]) -> Prepared:
        """MODEL, CLIP, and a caption for every prompt."""


@dataclass(frozen=True)
class Words(Method):
    """The base model alone."""

    names_parts: bool = False

    def prepare(self, studio: Studio, encoder: Any, prompts: Sequence[Prompt]) -> Prepared:
        captions = [
            prompt.full_caption() if self.names_parts else prompt.caption() for prompt in prompts
        ]
        return studio.model, studio.clip, captions


@dataclass(frozen=True)
class Nested(Method):
    """This pack: a token for each subject.

    Attributes:
        masks: whether each subject's box is painted by hand.
        sites: as the node takes them; empty: all.
    """

    strength: float = 1.0
    separation: float = 0.0
    masks: bool = False
    sites: str = ""

    def prepare(self, studio: Studio, encoder: Any, prompts: Sequence[Prompt]) -> Prepared:
        bindings: dict[str, Any] = {}
        tokens: dict[int, str] = {}  # by photograph: several prompts may show one subject
        captions: list[str] = []
        for prompt in prompts:
            for placed, photograph in zip(prompt.subjects, prompt.photographs, strict=True):
                if id(photograph) in tokens:
                    continue
                tokens[id(photograph)] = token = f"<s{len(bindings)}>"
                (bindings[f"binding_{len(bindings)}"],) = run_node(
                    "NestedAttention_BindSubject",
                    subject=studio.encode_subject(encoder, photograph),
                    token=token,
                    noun=placed.identity.kind,
                    strength=self.strength,
                    mask=_box(placed) if self.masks else None,
                    sites=self.sites,
                )
            captions.append(prompt.caption([tokens[id(each)] for each in prompt.photographs]))
        model, clip = run_node(
            "NestedAttention_Apply",
            model=studio.model,
            clip=studio.clip,
            bindings=bindings,
            separation=self.separation,
        )
        return model, clip, captions


def _box(placed: world.Placed) -> torch.Tensor:
    """What somebody would paint in a second, `[1, 32, 32]`."""
    rows, columns = np.nonzero(world.subject_mask(placed))
    mask = torch.zeros(1, world.SIZE, world.SIZE)
    top, left = max(rows.min() - _MARGIN, 0), max(columns.min() - _MARGIN, 0)
    mask[:, top : rows.max() + 1 + _MARGIN, left : columns.max() + 1 + _MARGIN] = 1.0
    return mask


@dataclass(frozen=True)
class Decoupled(Method):
    """Decoupled cross-attention of a UNet; its strength is IP-Adapter's scale."""

    strength: float = 1.0

    def prepare(self, studio: Studio, encoder: Any, prompts: Sequence[Prompt]) -> Prepared:
        tokens = _tokens(studio, encoder, prompts)
        model = with_decoupled_subjects(studio.model, encoder, tokens, self.strength)
        return model, studio.clip, [prompt.caption() for prompt in prompts]


@dataclass(frozen=True)
class OtherWay(Method):
    """One of the ways to show subjects to a transformer that the pack does not offer.

    Attributes:
        strength: of the image's own attention, where the way has one.
    """

    way: str = DECOUPLED
    strength: float = 1.0

    def prepare(self, studio: Studio, encoder: Any, prompts: Sequence[Prompt]) -> Prepared:
        assert studio.sampling.cfg == 1.0, "no row may be unconditional"
        tokens = _tokens(studio, encoder, prompts)
        subjects = NestedSubjects(
            {site.path: encoder.project(site, tokens) for site in encoder.site_dims},
            torch.tensor([_position(prompt) for prompt in prompts]),
            # The pack that ComfyUI has loaded has classes of its own.
            ValueNorm(**asdict(encoder.config.value_norm)),
        )
        way = WAYS[self.way](subjects, self.strength)
        model = studio.model.clone()
        length = models.TEXT_CONFIG["max_position_embeddings"]
        model.model_options["transformer_options"][OVERRIDE] = override(studio.name, way, length)
        return model, studio.clip, [prompt.caption() for prompt in prompts]


def _tokens(studio: Studio, encoder: Any, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Of all subjects of each prompt, side by side, `[prompts, subject_tokens, text_dim]`."""
    return torch.stack(
        [
            torch.cat([studio.encode_subject(encoder, each).tokens for each in prompt.photographs])
            for prompt in prompts
        ]
    )


def _position(prompt: Prompt) -> int:
    """Of the first subject's noun among the text's tokens."""
    nouns = [placed.identity.kind for placed in prompt.subjects]
    caption = Caption(prompt.caption([SUBJECT, *nouns[1:]]), nouns[0])
    return CaptionTokenizer(clip_tokenizer(), models.TEXT_CONFIG["max_position_embeddings"])(
        caption
    )[1]


@torch.inference_mode()  # as ComfyUI executes nodes
def draw(
    studio: Studio, method: Method, encoder: Any, prompts: Sequence[Prompt]
) -> NDArray[np.float32]:
    """Pictures `[prompts, 32, 32, 3]` in [0, 1], all in one run of the sampler."""
    return studio.draw(*method.prepare(studio, encoder, prompts), prompts)
