"""Diffusion transformers in ComfyUI: which models they are, their sites, widths and norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.supported_models as configs
from comfy.ldm.anima.model import Anima
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from comfy.ldm.flux.model import Flux
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.ldm.wan.model import CameraWanModel, VaceWanModel, WanModel
from torch import Tensor

from ....nested_core.call.plan import CallPlan
from ....nested_core.call.sighting import Watch
from ....nested_core.families import transformers as core
from ....nested_core.families.block_sites import BlockSite
from ....nested_core.families.family import Grid
from ....nested_core.sites import Site
from .transformer_call import TransformerCall
from .transformer_patches import put_up, put_up_compiled, take_down


def original(module: Any) -> Any:
    """The module itself, whoever compiled it."""
    return getattr(module, "_orig_mod", module)


# (model, conditions, number of text tokens, of pixels) -> where the text begins among the keys, how many
# keys there are before the pictures', and where the picture begins among the queries.
Places = Callable[[Any, Mapping[str, Any], int, int], tuple[int, int, int]]


def _text_first(
    model: Any, conditions: Mapping[str, Any], num_text: int, num_pixels: int
) -> tuple[int, int, int]:
    """Text, picture, and then reference pictures."""
    return 0, num_text, num_text


def _lumina_places(
    model: Any, conditions: Mapping[str, Any], num_text: int, num_pixels: int
) -> tuple[int, int, int]:
    """Z-Image fills up each part to a multiple. With reference pictures, their texts come before the
    prompt and they before the picture."""
    multiple = getattr(model, "pad_tokens_multiple", None) or 1

    def filled(number: int) -> int:
        return -(-number // multiple) * multiple

    pictures = conditions.get("ref_latents") or ()
    if not pictures:
        return 0, filled(num_text), filled(num_text)
    texts = [each.shape[1] for each in conditions.get("ref_contexts") or ()]
    texts += [1] * (len(pictures) - len(texts))  # a picture without a text has padding alone
    before = sum(map(filled, texts[: len(pictures)]))
    return before, sum(map(filled, texts)) + filled(num_text), -filled(num_pixels)


def _wan_places(
    model: Any, conditions: Mapping[str, Any], num_text: int, num_pixels: int
) -> tuple[int, int, int]:
    """Text and pixels apart; some models put a reference picture before the video."""
    picture = conditions.get("reference_latent")
    if getattr(model, "ref_conv", None) is None or picture is None:
        return 0, 0, 0
    height, width = (
        size // step for size, step in zip(picture.shape[-2:], model.patch_size[-2:], strict=True)
    )
    return 0, 0, height * width


def _apart(
    model: Any, conditions: Mapping[str, Any], num_text: int, num_pixels: int
) -> tuple[int, int, int]:
    """Text and pixels apart."""
    return 0, 0, 0


def _cross_layers(blocks: Mapping[BlockSite, Any]) -> Iterator[Any]:
    return (getattr(each, "cross_attn", None) for each in blocks.values())


@dataclass(frozen=True)
class TransformerHost:
    """How ComfyUI's models of one family are reached.

    Attributes:
        label: for messages.
        models: the classes whose `diffusion_model`s these are, and no subclasses: those run in ways
            of their own.
        blocks: where the model keeps its blocks, by the letter of the kind of site.
        width: of the keys of a block's text, heads * head_dim.
        key_norm: the norm that a block puts on the keys of its text.
        norms_heads: whether that norm is of each head, and not of all of them together.
        tokenizers: see `HostFamily`.
        not_configs: kinds of ComfyUI's `model_config` that share the class and are not of the family.
        says_block: whether blocks say in the options which one is running.
        places: see `Places`.
    """

    family: core.TransformerFamily
    label: str
    models: tuple[type, ...]
    blocks: Mapping[str, str]
    width: Callable[[Any], int]
    key_norm: Callable[[Any], Any]
    tokenizers: Mapping[frozenset[str], str]
    norms_heads: bool = True
    not_configs: tuple[type, ...] = ()
    says_block: bool = True
    places: Places = _text_first

    def fits(self, base_model: Any) -> bool:
        """Whether a model of ComfyUI is of this family."""
        model = original(getattr(base_model, "diffusion_model", None))
        config = getattr(base_model, "model_config", None)
        return type(model) in self.models and not isinstance(config, self.not_configs)

    def blocks_of(self, model: Any) -> dict[BlockSite, Any]:
        """The block of each site, in the order of the model's run."""
        return dict(self._blocks(original(model)))

    def _blocks(self, model: Any) -> Iterator[tuple[BlockSite, Any]]:
        for kind in self.family.kinds.kinds:
            for number, block in enumerate(getattr(model, self.blocks[kind.letter])):
                yield BlockSite(kind, number), original(block)

    def site_dims(self, model: Any) -> dict[Site, int]:
        """Inner width of each site's keys."""
        return {site: self.width(block) for site, block in self.blocks_of(model).items()}

    def functions(self, model: Any) -> Iterator[Any]:
        """See `HostFamily`."""
        return (block.forward for block in self.blocks_of(model).values())

    def call(
        self,
        base_model: Any,
        x: Tensor,
        options: Mapping[str, Any],
        conditions: Mapping[str, Any],
        plan: CallPlan,
        say: Callable[..., None],
        reached: set[Site],
        watch: Watch | None,
    ) -> TransformerCall:
        """See `HostFamily`."""
        model = original(base_model.diffusion_model)
        blocks = self.blocks_of(model)
        frames = x.shape[2] if x.ndim == 5 else 1
        (grid,) = self.family.grids(Grid(frames, x.shape[-2], x.shape[-1]), _patch_of(model))
        before, num_text, first_pixel = self.places(
            model, conditions, plan.num_text_tokens, grid.num_pixels
        )
        return TransformerCall(
            plan,
            say,
            reached,
            watch,
            family=self.family,
            grid=grid,
            first_text_key=before,
            num_text_keys=num_text,
            first_pixel=first_pixel,
            num_blocks=len(blocks),
            # Blocks with keys for a picture of their own ask for that before the text.
            calls_before_text=1 + any(hasattr(each, "k_img") for each in _cross_layers(blocks)),
            repeats=not hasattr(model, "vace_blocks"),
            key_norms={site: partial(self._normed, block) for site, block in blocks.items()},
        )

    def _normed(self, block: Any, key: Tensor) -> Tensor:
        """Nested keys `[1, tokens, inner]` behind the model's norm of its text's keys."""
        norm = self.key_norm(block)
        weight = getattr(norm, "weight", None)  # SD3.0 has none
        if weight is None or not self.norms_heads:
            return norm(key)
        return norm(key.unflatten(-1, (-1, weight.shape[-1]))).flatten(-2)

    def put_up(self, options: Mapping[str, Any], call: TransformerCall) -> dict[str, Any]:
        """See `HostFamily`."""
        return put_up(options, call, marks_blocks=not self.says_block)

    def put_up_compiled(self, options: Mapping[str, Any], call: TransformerCall) -> dict[str, Any]:
        """See `HostFamily`."""
        return put_up_compiled(options, call)

    def take_down(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """See `HostFamily`."""
        return take_down(options)


def _patch_of(model: Any) -> int:
    """Side of a patch in latent cells, under whichever name the model has it; a video's may be three."""
    size = getattr(model, "patch_spatial", None) or model.patch_size
    return int(size[-1] if isinstance(size, tuple | list) else size)


def _flux_norm(block: Any) -> Any:
    norm = block.txt_attn.norm if hasattr(block, "txt_attn") else block.norm
    return norm.key_norm


def _sets(**whose: str) -> Mapping[frozenset[str], str]:
    """Sets of tokenizers, their names joined by two underscores, and whose text encoders make them."""
    return {frozenset(names.split("__")): model for names, model in whose.items()}


TRANSFORMERS = (
    TransformerHost(
        core.FLUX,
        "Flux and Chroma",
        (Flux, Chroma),
        {"d": "double_blocks", "s": "single_blocks"},
        width=lambda block: block.hidden_size,
        key_norm=_flux_norm,
        tokenizers=_sets(l__t5xxl="Flux", t5xxl="Chroma"),
        not_configs=tuple(
            getattr(configs, name) for name in ("Flux2", "LongCatImage") if hasattr(configs, name)
        ),
    ),
    TransformerHost(
        core.SD3,
        "SD3 and SD3.5",
        (OpenAISignatureMMDITWrapper,),
        {"b": "joint_blocks"},
        width=lambda block: block.context_block.attn.num_heads * block.context_block.attn.head_dim,
        key_norm=lambda block: block.context_block.attn.ln_k,
        tokenizers=_sets(l__g__t5xxl="SD3"),
        says_block=False,
    ),
    TransformerHost(
        core.QWEN_IMAGE,
        "Qwen-Image",
        (QwenImageTransformer2DModel,),
        {"b": "transformer_blocks"},
        width=lambda block: block.attn.heads * block.attn.dim_head,
        key_norm=lambda block: block.attn.norm_added_k,
        tokenizers=_sets(qwen25_7b="Qwen-Image"),
    ),
    TransformerHost(
        core.LUMINA2,
        "Lumina 2 and Z-Image",
        (NextDiT,),
        {"b": "layers"},
        width=lambda block: block.attention.n_local_kv_heads * block.attention.head_dim,
        key_norm=lambda block: block.attention.k_norm,
        tokenizers=_sets(gemma2_2b="Lumina 2", qwen3_4b="Z-Image"),
        places=_lumina_places,
    ),
    TransformerHost(
        core.COSMOS_PREDICT2,
        "Cosmos-Predict2 and Anima",
        (MiniTrainDIT, Anima),
        {"b": "blocks"},
        width=lambda block: block.cross_attn.n_heads * block.cross_attn.head_dim,
        key_norm=lambda block: block.cross_attn.k_norm,
        tokenizers=_sets(t5xxl="Cosmos-Predict2", qwen3_06b__t5xxl="Anima"),
        places=_apart,
    ),
    TransformerHost(
        core.WAN,
        "Wan 2.1 and 2.2",
        (WanModel, VaceWanModel, CameraWanModel),
        {"b": "blocks"},
        width=lambda block: block.cross_attn.dim,
        key_norm=lambda block: block.cross_attn.norm_k,
        norms_heads=False,
        tokenizers=_sets(umt5xxl="Wan"),
        places=_wan_places,
    ),
)
