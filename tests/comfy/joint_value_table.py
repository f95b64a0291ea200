"""The method in diffusion transformers as a value table, in float64: what nested attention must equal.

It knows nothing of the pack. It stands in ComfyUI's slot for another attention, on a clone of a plain
model. While the model runs, hooks on its modules tell which block a call belongs to and where the
text ends; then each pixel of the picture gets a table of one value per key, in which the values of
bound text tokens are its own. Text, reference pictures and padding attend as they always do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn
from torch.nn import functional

_OVERRIDE = "optimized_attention_override"
CONTEXT = "naive_context"  # where row slots find the text that each row reads


@dataclass(frozen=True, eq=False)
class JointSubject:
    """A subject at given rows of the text. `site_weights(site)` is its (to_k, to_v), `[inner, width]`.

    Attributes:
        mask: `[pictures, height, width]` in image coordinates; None: everywhere. Of videos,
            `[pictures, frames, height, width]`.
        window: sigmas between which it acts.
        value: what each pixel sees, `(site, query [heads, pixels, dim], text value [heads, dim]) ->
            [heads, pixels, dim]`, before the value norm; None: nested attention to the tokens.
    """

    tokens: Tensor
    site_weights: Callable[[str], tuple[Tensor, Tensor]]
    mode: str = "per_head"
    scale: float = 2.0
    strength: float = 1.0
    token_weight: float = 1.0
    mask: Tensor | None = None
    sites: Callable[[str], bool] = lambda site: True
    window: tuple[float, float] = (math.inf, 0.0)
    value: Callable[[str, Tensor, Tensor], Tensor] | None = None


Slots = Mapping[int, JointSubject]
RowSlots = Callable[[dict[str, Any], int], Sequence[Slots]]


@dataclass(frozen=True)
class _Layout:
    """How a model of one class is built.

    Attributes:
        sites: a list of blocks and what stands in them -> the name of the site.
        text: the module whose output has the text's length; None: the keys are the text.
        patch: (model) -> frames, height and width of a patch.
        padding: (model) -> the picture comes last and is filled up to a multiple of this.
        before: the module, if the model has it, that makes a picture which comes before its own.
    """

    sites: Mapping[tuple[str, str], str]
    patch: Callable[[Any], Sequence[int]]
    text: str | None = None
    padding: Callable[[Any], int] | None = None
    before: str | None = None


_FLUX = _Layout(
    {("double_blocks", ""): "double.{}", ("single_blocks", ""): "single.{}"},
    lambda model: (1, model.patch_size, model.patch_size),
    text="txt_in",
)
_COSMOS = _Layout(
    {("blocks", "cross_attn"): "blocks.{}.cross"},
    lambda model: (model.patch_temporal, model.patch_spatial, model.patch_spatial),
)
_WAN = _Layout(
    {("blocks", "cross_attn"): "blocks.{}.cross"},
    lambda model: model.patch_size,
    before="ref_conv",
)
_LAYOUTS: dict[str, _Layout] = {
    "Flux": _FLUX,
    "Chroma": _FLUX,
    "OpenAISignatureMMDITWrapper": _Layout(
        {("joint_blocks", ""): "joint.{}"},
        lambda model: (1, model.patch_size, model.patch_size),
        text="context_embedder",
    ),
    "QwenImageTransformer2DModel": _Layout(
        {("transformer_blocks", ""): "blocks.{}"},
        lambda model: (1, model.patch_size, model.patch_size),
        text="txt_in",
    ),
    "NextDiT": _Layout(
        {("layers", ""): "blocks.{}"},
        lambda model: (1, model.patch_size, model.patch_size),
        padding=lambda model: model.pad_tokens_multiple or 1,
    ),
    "MiniTrainDIT": _COSMOS,
    "Anima": _COSMOS,
    "WanModel": _WAN,
    "VaceWanModel": _WAN,
    "CameraWanModel": _WAN,
}


def site_modules(diffusion_model: nn.Module) -> dict[str, nn.Module]:
    """Site -> the module in which its call is made, in the order of the model."""
    found = {}
    for (blocks, inner), name in _LAYOUTS[type(diffusion_model).__name__].sites.items():
        for number, block in enumerate(getattr(diffusion_model, blocks)):
            found[name.format(number)] = block.get_submodule(inner)
    return found


class JointValueTable:
    """Subjects in the rows that `row_slots(transformer_options, num_rows)` tells.

    Attributes:
        calls: of each call with text among its keys: site, the picture's queries, all queries, keys.
    """

    def __init__(self, row_slots: RowSlots):
        self.calls: list[tuple[str, range, int, int]] = []
        self._row_slots = row_slots
        self._model: Any = None
        self._grid: tuple[int, ...] = ()
        self._latent_shape: tuple[int, ...] = ()
        self._context: Tensor | None = None
        self._text_length = self._calls_in_site = self._before = 0
        self._site: str | None = None

    def on(self, model: Any) -> Any:
        """A clone of the MODEL in which they act. An attention that already stands there is kept."""
        clone = model.clone()
        options = clone.model_options["transformer_options"]
        earlier = options.get(_OVERRIDE)
        options[_OVERRIDE] = lambda *args, **kwargs: self._attend(earlier, *args, **kwargs)
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "joint value table", self._run)
        return clone

    def _run(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        # SD3 knows no wrapper around the transformer itself.
        self._model = executor.class_obj.diffusion_model
        layout = _LAYOUTS[type(self._model).__name__]
        size = (1, *x.shape[2:])[-3:]
        self._latent_shape = tuple(x.shape)
        self._context = args[2] if len(args) > 2 else kwargs.get("c_crossattn")
        self._grid = tuple(-(-n // p) for n, p in zip(size, layout.patch(self._model), strict=True))
        hooks = []
        for site, module in site_modules(self._model).items():
            hooks.append(module.register_forward_pre_hook(lambda *_, site=site: self._enter(site)))
            hooks.append(module.register_forward_hook(lambda *_: self._enter(None)))
        if layout.text is not None:
            text = self._model.get_submodule(layout.text)
            hooks.append(text.register_forward_hook(self._see_text))
        self._before = 0
        if layout.before is not None and getattr(self._model, layout.before) is not None:
            before = self._model.get_submodule(layout.before)
            hooks.append(before.register_forward_hook(self._see_before))
        try:
            return executor(x, *args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, site: str | None) -> None:
        self._site, self._calls_in_site = site, 0

    def _see_text(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._text_length = output.shape[1]

    def _see_before(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._before = output.flatten(2).shape[2]

    def _has_text_among_its_keys(self) -> bool:
        if self._site is None:
            return False
        self._calls_in_site += 1
        # SD3.5 medium attends to pixels alone behind the joint call, Wan to a picture's keys first.
        sees_picture_first = hasattr(site_modules(self._model)[self._site], "k_img")
        return self._calls_in_site == (2 if sees_picture_first else 1)

    def _picture(self, queries: int) -> range:
        """The picture's own among the queries."""
        layout, pixels = _LAYOUTS[type(self._model).__name__], math.prod(self._grid)
        if layout.padding is not None:
            start = queries - pixels - -pixels % layout.padding(self._model)
        else:
            start = self._before if layout.text is None else self._text_length
        return range(start, start + pixels)

    def _attend(
        self,
        earlier: Callable[..., Tensor] | None,
        func: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        **rest: Any,
    ) -> Tensor:
        flags = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
        arguments = (q, k, v, heads, mask, attn_precision)
        if not self._has_text_among_its_keys():
            call = func if earlier is None else lambda *args, **kw: earlier(func, *args, **kw)
            return call(*arguments, **flags, **rest)
        dtype = q.dtype
        q, k, v = (_by_heads(tensor, heads, skip_reshape) for tensor in (q, k, v))
        logits = q @ k.transpose(-1, -2) * rest.get("scale", q.shape[-1] ** -0.5)
        logits = _masked(logits, mask)
        plain = logits.softmax(-1) @ v
        out = plain.clone()
        picture = self._picture(q.shape[2])
        assert self._site is not None
        self.calls.append((self._site, picture, q.shape[2], k.shape[2]))
        own = slice(picture.start, picture.stop)
        options = {**rest["transformer_options"], CONTEXT: self._context}
        for row, slots in enumerate(self._row_slots(options, len(q))):
            if slots:
                out[row, :, own] = self._from_tables(
                    q[row, :, own], logits[row, :, own], v[row], slots, options, row
                )
        if earlier is not None:
            theirs = earlier(func, *arguments, **flags, **rest)
            return theirs + _merged(out - plain, skip_output_reshape).to(dtype)
        return _merged(out, skip_output_reshape).to(dtype)

    def _from_tables(
        self, q: Tensor, logits: Tensor, v: Tensor, slots: Slots, options: Any, row: int
    ) -> Tensor:
        tables, logits = self._tables(q, logits, v, slots, options, row)
        return torch.einsum("hpk,hpkd->hpd", logits.softmax(-1), tables)

    def _tables(
        self, q: Tensor, logits: Tensor, v: Tensor, slots: Slots, options: Any, row: int
    ) -> tuple[Tensor, Tensor]:
        """What each pixel of a row is offered by each key, `[heads, pixels, keys, dim]`, and logits."""
        tables = v[:, None].expand(-1, q.shape[1], -1, -1).clone()
        logits, sigma, site = logits.clone(), float(options["sigmas"][0]), self._site
        assert site is not None
        for position, subject in slots.items():
            start, end = subject.window
            if not subject.sites(site) or not end <= sigma <= start:
                continue
            text = v[:, position]
            look = subject.value or (lambda site, q, text, s=subject: _nested_value(s, site, q))
            star = _normed(look(site, q, text).double(), text[:, None], subject)
            region = _region(_in_window(subject.mask, options), self._grid, row)
            tables[:, :, position] = text[:, None] + subject.strength * region[:, None] * (
                star - text[:, None]
            )
            logits[:, :, position] += region * math.log(subject.token_weight)
        return tables, logits


def _nested_value(subject: JointSubject, site: str, q: Tensor) -> Tensor:
    heads, _, width = q.shape
    keys, values = (
        (subject.tokens.double() @ weight.double().T).unflatten(-1, (-1, width)).transpose(0, 1)
        for weight in subject.site_weights(site)
    )
    keys, values = (each.repeat_interleave(heads // len(each), dim=0) for each in (keys, values))
    return (q @ keys.transpose(-1, -2) / math.sqrt(width)).softmax(-1) @ values


def _normed(star: Tensor, text: Tensor, subject: JointSubject) -> Tensor:
    if subject.mode == "none":
        return star
    over = {"per_head": (-1,), "all_heads": (0, 2)}[subject.mode]
    length = star.norm(dim=over, keepdim=True).clamp_min(1e-300)  # nothing stays nothing
    return star / length * text.norm(dim=over, keepdim=True) * subject.scale


def _in_window(mask: Tensor | None, options: Any) -> Tensor | None:
    """The masks of the frames that a context window has, behind the one that comes before them."""
    window = options.get("context_window")
    if mask is None or mask.ndim == 3 or window is None:
        return mask
    anchor = getattr(window, "causal_anchor_index", None)
    before = [] if anchor is None or anchor < 0 else [anchor]
    return mask[:, [*before, *window.index_list]]


def _region(mask: Tensor | None, grid: Sequence[int], row: int) -> Tensor:
    frames, height, width = grid
    if mask is None:
        return torch.ones(frames * height * width, dtype=torch.float64)
    of_frames = mask[:, None] if mask.ndim == 3 else mask
    resized = functional.interpolate(of_frames.double(), size=(height, width), mode="area")
    return resized[row % len(resized)].expand(frames, -1, -1).flatten()


def _by_heads(tensor: Tensor, heads: int, has_heads: bool) -> Tensor:
    """`[rows, heads, tokens, dim]`; keys of fewer heads are shared by neighbours."""
    if not has_heads:  # SD3 has its values cut into heads already, behind the tokens
        tensor = tensor.reshape(*tensor.shape[:2], heads, -1).transpose(1, 2)
    return tensor.double().repeat_interleave(heads // tensor.shape[1], dim=1)


def _masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return logits
    mask = mask[(None,) * (3 - mask.ndim)] if mask.ndim < 3 else mask
    mask = mask[:, None] if mask.ndim == 3 else mask
    if mask.dtype == torch.bool:
        return logits.masked_fill(~mask, -math.inf)
    return logits + mask.double()


def _merged(out: Tensor, keep_heads: bool) -> Tensor:
    return out if keep_heads else out.transpose(1, 2).flatten(-2)
