"""What a file of a whole training state holds besides an encoder, by rule: it is set aside by name.

Such a file may hold the frozen base model, image and text encoders, the optimiser's state and
averaged copies of the weights. A *part* is recognised by the parameter names of its library. Some
of these names could as well be an encoder's (`proj_in`, `attn2.to_k`), so they count only where
another name, which nothing else has, proves that the part stands under the same prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..tensor_names import plain
from .safetensors_file import TensorSpec

_BASE_MODEL = "UNet"


@dataclass(frozen=True)
class Group:
    """Tensors that are none of the encoder's: what they are, under which prefix, and their keys."""

    label: str
    prefix: str
    keys: tuple[str, ...]

    @property
    def is_base_model(self) -> bool:
        """Whether it is a UNet, whose cross-attentions are the sites."""
        return self.label.startswith(_BASE_MODEL)


@dataclass(frozen=True)
class _Part:
    """Parameter names below a prefix. `proof`: only this part has them; `also`: others may, too."""

    label: str
    proof: re.Pattern[str]
    also: re.Pattern[str]


def _names(*alternatives: str) -> re.Pattern[str]:
    """A prefix and one of these names; `#` stands for a number, `@` for weight or bias."""
    name = "|".join(alternatives).replace(".", r"\.").replace("#", "[0-9]+")
    return re.compile(rf"(?P<prefix>(?:[^.]+\.)*?)(?:{name.replace('@', '(?:weight|bias)')})")


_ATTENTION = "attn[12].(?:to_q|to_out.#|norm_[qk]).@"
_CONFUSABLE = "attn[12].to_[kv].@"
_TRANSFORMER = f"norm[123].@|ff.net.#(?:.proj)?.@|{_ATTENTION}"
_RESNET = "(?:norm[12]|conv[12]|time_emb_proj|conv_shortcut|nin_shortcut).@"
_DIFFUSERS_BLOCK = "(?:(?:down|up)_blocks.#|mid_block)"
_DIFFUSERS_INNER = (
    f"{_DIFFUSERS_BLOCK}.resnets.#.{_RESNET}",
    f"{_DIFFUSERS_BLOCK}.(?:down|up)samplers.#.(?:conv|norm).@",
    "conv_(?:in|out|norm_out).@",
)
_COMFYUI_BLOCK = "(?:(?:in|out)put_blocks.#.#|middle_block.#)"
_CLIP_LAYER = "encoder.layers.#.(?:self_attn.(?:[qkv]|out)_proj|layer_norm[12]|mlp.fc[12]).@"
_OPEN_CLIP_BLOCK = (
    "transformer.resblocks.#.(?:attn.(?:in_proj_(?:weight|bias)|out_proj.@)|ln_[12].@"
    "|ls_[12].gamma|mlp.(?:c_fc|c_proj).@)"
)
_VISION_EMBEDDINGS = (
    "embeddings.(?:class_embedding|patch_embedding.@)",
    "(?:pre_layrnorm|post_layernorm).@",
)
_EMBEDDINGS = "embeddings.position_(?:embedding.weight|ids)"

# In this order: an autoencoder has blocks that look like a UNet's below `encoder.`.
_PARTS = (
    _Part(
        "autoencoder",
        _names(
            *(f"(?:en|de)coder.{name}" for name in _DIFFUSERS_INNER),
            "(?:post_)?quant_conv.@",
            f"(?:en|de)coder.(?:down|up).#.(?:block.#.{_RESNET}|(?:down|up)sample.conv.@)",
            f"(?:en|de)coder.mid.(?:block_[12].{_RESNET}|attn_1.(?:norm|[qkv]|proj_out).@)",
        ),
        _names(
            "(?:en|de)coder.mid_block.attentions.#.(?:group_norm|to_[qkv]|to_out.#|query|key|value"
            "|proj_attn).@",
            "(?:en|de)coder.norm_out.@",
        ),
    ),
    _Part(
        f"{_BASE_MODEL}, diffusers' names",
        _names(
            *_DIFFUSERS_INNER,
            "(?:time|add|class)_embedding.(?:linear_[12]|cond_proj).@",
            f"{_DIFFUSERS_BLOCK}.attentions.#.transformer_blocks.#.(?:{_TRANSFORMER})",
        ),
        _names(
            f"{_DIFFUSERS_BLOCK}.attentions.#.(?:norm|proj_in|proj_out).@",
            f"{_DIFFUSERS_BLOCK}.attentions.#.transformer_blocks.#.{_CONFUSABLE}",
            "(?:class_embedding|encoder_hid_proj).@",
        ),
    ),
    _Part(
        f"{_BASE_MODEL}, ComfyUI's names",
        _names(
            f"{_COMFYUI_BLOCK}.(?:in_layers|out_layers|emb_layers).#.@",
            f"{_COMFYUI_BLOCK}.(?:skip_connection|op|conv).@",
            f"{_COMFYUI_BLOCK}.transformer_blocks.#.(?:{_TRANSFORMER})",
            "input_blocks.0.0.@",
            "time_embed.#.@",
            "label_emb.#(?:.#)?.@",
        ),
        _names(
            f"{_COMFYUI_BLOCK}.(?:norm|proj_in|proj_out).@",
            f"{_COMFYUI_BLOCK}.transformer_blocks.#.{_CONFUSABLE}",
            "out.#.@",
        ),
    ),
    _Part(
        "image encoder",
        _names(
            *(f"(?:vision_model.)?{name}" for name in _VISION_EMBEDDINGS),
            f"vision_model.(?:{_EMBEDDINGS}|{_CLIP_LAYER})",
            "visual_projection.weight",
            f"visual.(?:conv1.weight|class_embedding|positional_embedding|proj|ln_pre.@|ln_post.@"
            f"|{_OPEN_CLIP_BLOCK})",
        ),
        _names(_EMBEDDINGS, _CLIP_LAYER, "logit_scale"),
    ),
    _Part(
        "text encoder, token embedding",
        _names(
            "(?:text_model.)?(?:embeddings.token_embedding.weight|final_layer_norm.@)",
            f"text_model.(?:{_EMBEDDINGS}|{_CLIP_LAYER})",
            "token_embedding.weight",
            "ln_final.@",
            _OPEN_CLIP_BLOCK,
        ),
        _names(
            _EMBEDDINGS,
            _CLIP_LAYER,
            "text_projection(?:.weight)?",
            "positional_embedding",
            "logit_scale",
            "attn_mask",
        ),
    ),
)

_OPTIMISER = "optimiser"
_OPTIMISER_WORDS = {"optim", "optims", "optimizer", "optimizers", "optimiser", "optimisers"}
_OPTIMISER_STATE = re.compile(
    r"(?:max_)?exp_avgs?(?:_sqs?)?|exp_inf|momentum_buffer|square_avg|acc_delta|param_groups"
    r"|(?:lr_)?schedulers?(?:_states?)?|data_?loaders?|samplers?(?:_states?)?|(?:grad_)?scaler|\w*(?:rng|random)_states?(?:_[0-9]+)?"
)
_COUNTER = re.compile(
    r"(?:global_|optimization_|optimizer_)?steps?|epochs?|last_epoch|iterations?|num_updates"
    r"|n_averaged|decay|lr|initial_lr|base_lrs?|_last_lr|learning_rate|weight_decay|eps|betas|loss"
)
_NOISE_SCHEDULE = re.compile(
    r".*alphas?_cumprod.*|posterior_\w+|alphas|betas|(?:log_)?sigmas|timesteps|logvar"
)
_MAX_COUNTER_ELEMENTS = 16
_AVERAGE_WORDS = {"ema", "emamodel", "swa", "average", "averaged", "avg", "polyak", "shadow"}
_TOKEN_WORDS = set(
    "token tokens text word words placeholder learned special input vocab concept prompt".split()
)
_EMBEDDING_WORDS = {"embedding", "embeddings", "embed", "embeds", "emb"}


def training_leftovers(tensors: Mapping[str, TensorSpec]) -> list[Group]:
    """The optimiser's state, counters and noise schedules, which are no weights of anything."""
    labels = {key: _leftover(key, spec) for key, spec in tensors.items()}
    return _groups((label, "", key) for key, label in labels.items() if label is not None)


def frozen_parts(keys: Iterable[str]) -> list[Group]:
    """Base models and encoders that are proved by their parameters' names; see the module."""
    remaining = list(keys)
    labelled: list[tuple[str, str, str]] = []
    for part in _PARTS:
        proofs = {key: match["prefix"] for key in remaining if (match := _match(part.proof, key))}
        others = {key: match["prefix"] for key in remaining if (match := _match(part.also, key))}
        proved = set(proofs.values())
        members = proofs | {key: prefix for key, prefix in others.items() if prefix in proved}
        labelled += [(part.label, prefix, key) for key, prefix in members.items()]
        remaining = [key for key in remaining if key not in members]
    return _groups(labelled)


def averaged_copies(keys: Iterable[str], is_whole: Callable[[list[str]], bool]) -> list[Group]:
    """What is marked as an average (EMA) of the training, where all is there without the mark, too.

    Args:
        is_whole: whether these keys hold all kinds of an encoder's tensors.
    """
    keys = list(keys)
    marked = [key for key in keys if _words(key) & _AVERAGE_WORDS]
    chosen = set(marked)
    if not is_whole([key for key in keys if key not in chosen]):
        return []
    return _groups(("averaged copy (EMA)", "", key) for key in marked)


def token_embeddings(keys: Iterable[str]) -> list[Group]:
    """Tables of token embeddings, by a word for token and one for embedding in the key."""
    return _groups(
        ("text encoder, token embedding", "", key) for key in keys if _is_token_embedding(key)
    )


def _is_token_embedding(key: str) -> bool:
    parts = [set(part.split("_")) for part in plain(key).lower().split(".") if part != "weight"]
    return any(part & _TOKEN_WORDS and part & _EMBEDDING_WORDS for part in parts) or (
        bool(parts and parts[-1] & _EMBEDDING_WORDS) and any(part & _TOKEN_WORDS for part in parts)
    )


def _match(pattern: re.Pattern[str], key: str) -> re.Match[str] | None:
    return pattern.fullmatch(plain(key))


def _words(key: str) -> set[str]:
    return set(re.split("[._]", plain(key).lower()))


def _leftover(key: str, spec: TensorSpec) -> str | None:
    parts = plain(key).lower().split(".")
    if _words(key) & _OPTIMISER_WORDS or any(_OPTIMISER_STATE.fullmatch(part) for part in parts):
        return _OPTIMISER
    leaf = next((part for part in reversed(parts) if not part.isdecimal()), "")
    is_row = len(spec.shape) <= 1
    if is_row and spec.num_elements <= _MAX_COUNTER_ELEMENTS and _COUNTER.fullmatch(leaf):
        return _OPTIMISER
    if is_row and _NOISE_SCHEDULE.fullmatch(leaf):
        return "noise schedule"
    return None


def _groups(labelled: Iterable[tuple[str, str, str]]) -> list[Group]:
    """Label, prefix and key of each tensor, gathered."""
    gathered: dict[tuple[str, str], list[str]] = {}
    for label, prefix, key in labelled:
        gathered.setdefault((label, prefix), []).append(key)
    return [Group(label, prefix, tuple(keys)) for (label, prefix), keys in gathered.items()]
