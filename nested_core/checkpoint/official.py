"""The authors' encoder, and others of its make: keys recognised by rule, sizes read off the shapes.

Nobody here has seen the file `personalization_encoder/model.safetensors` of
`orpatashnik/NestedAttentionEncoder`. That it holds IP-Adapter's `Resampler` and keys and values for
each cross-attention layer is known; what its keys are called is not, hence the rules in `roles.py`.
What no tensor tells is filled in below, and `ASSUMPTIONS` says so to whoever inspects a file.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..attention import ValueNorm
from ..config import EncoderConfig, ImageEncoderConfig, ResamplerConfig
from ..encoder import Encoder
from ..errors import CheckpointError
from ..sites import AttentionSite
from .layouts import LAYOUTS
from .native import assemble, site_dims
from .roles import Reading, read_roles
from .safetensors_file import Header, TensorSpec

_DIM_HEAD = 64
_BASE_OF_TEXT_WIDTH = {2048: "sdxl", 768: "sd15"}
_NEEDED = (
    "resampler.latents",
    "resampler.proj_in.weight",
    "resampler.layers.0.0.to_q.weight",
    "resampler.layers.0.1.1.weight",
    "resampler.proj_out.weight",
)
# IP-Adapter Plus has the same make, but its tokens mean something else: (queries, text width).
_IP_ADAPTER_SIZES = {(16, 768), (16, 2048)}

ASSUMPTIONS = (
    "noun 'person': the word the authors trained with.",
    f"dim_head {_DIM_HEAD}: IP-Adapter's habit; the shapes tell only heads times dim_head.",
    "hidden_state penultimate: IP-Adapter's habit; not known for the authors' encoder.",
    "image_size 224, CLS token included: CLIP ViT-H/14, inferred from its file's size.",
    "value norm per_head, scale 2: the authors' app uses the factor 2; per head is not known.",
)


def load_official(header: Header) -> Encoder:
    """The encoder of a file whose keys the rules explain, in the file's precision.

    Raises:
        CheckpointError: keys that no rule explains (all of them are listed), two tensors for one
            role, places that can be read in two ways, sizes that make no encoder.
    """
    reading = read_roles(header.tensors)
    check_reading(header, reading)
    return assemble(header, derived_config(header, reading), reading.names)


def check_reading(header: Header, reading: Reading) -> None:
    """Raises CheckpointError listing everything that keeps the file from being read."""
    problems = [*reading.problems]
    missing = [name for name in _NEEDED if name not in reading.names]
    if missing:
        problems.append(f"Nothing found for {', '.join(missing)}")
    if reading.unexplained:
        count = len(reading.unexplained)
        problems.append(f"{count} keys not explained: {', '.join(reading.unexplained)}")
    if problems:
        raise CheckpointError(
            f"{header.where}: cannot be read as an encoder. {'. '.join(problems)}. Expected "
            "IP-Adapter's resampler and one pair of key and value projections for each "
            "cross-attention layer. Run `python -m nested_core inspect` on the file and report its "
            "keys, or convert it to the native format."
        )


def derived_config(header: Header, reading: Reading) -> EncoderConfig:
    """The configuration that the shapes tell, completed by `ASSUMPTIONS`."""
    specs = {native: header.tensors[key] for native, key in reading.names.items()}
    sizes = _resampler_sizes(header.where, specs)
    _refuse_ip_adapter(header, sizes)
    return EncoderConfig(
        noun="person",
        base=_base(site_dims(specs), sizes.output_dim),
        image_encoder=ImageEncoderConfig("clip_vision", sizes.embedding_dim, 224, "penultimate"),
        resampler=sizes,
        value_norm=ValueNorm("per_head", 2.0),
    )


def known_layout(dims: Mapping[AttentionSite, int]) -> str | None:
    """The known base model whose sites these are, or None."""
    return next((layout.label for layout in LAYOUTS if layout.fits(dims)), None)


def _base(dims: Mapping[AttentionSite, int], text_width: int) -> str:
    fitting = [layout.name for layout in LAYOUTS if layout.fits(dims)]
    return fitting[0] if fitting else _BASE_OF_TEXT_WIDTH.get(text_width, "unknown")


def _resampler_sizes(where: str, specs: Mapping[str, TensorSpec]) -> ResamplerConfig:
    latents, proj_in, to_q, hidden, proj_out = (specs[name].shape for name in _NEEDED)
    dim, inner = latents[2], to_q[0]
    layers = {name.split(".")[2] for name in specs if name.startswith("resampler.layers.")}
    sizes = ResamplerConfig(
        embedding_dim=proj_in[1],
        dim=dim,
        depth=len(layers),
        dim_head=_DIM_HEAD,
        heads=inner // _DIM_HEAD,
        num_queries=latents[1],
        output_dim=proj_out[0],
        ff_mult=hidden[0] // max(dim, 1),
    )
    if min(vars(sizes).values()) < 1 or sizes.heads * _DIM_HEAD != inner:
        raise CheckpointError(
            f"{where}: the resampler's shapes give {sizes}, with attention of width {inner}; "
            f"expected sizes above 0 and heads of width {_DIM_HEAD}, as in IP-Adapter. Convert the "
            "file to the native format, where the configuration states them."
        )
    return sizes


def _refuse_ip_adapter(header: Header, sizes: ResamplerConfig) -> None:
    is_named_so = {"image_proj.latents", "ip_adapter.1.to_k_ip.weight"} <= header.tensors.keys()
    if is_named_so and (sizes.num_queries, sizes.output_dim) in _IP_ADAPTER_SIZES:
        raise CheckpointError(
            f"{header.where}: is an IP-Adapter Plus ({sizes.num_queries} tokens): its attention is "
            "trained to be added to the text's, not to replace one word's value. Load an encoder "
            "trained for nested attention, or use this file with an IP-Adapter node."
        )
