"""The encoder in a run: what training starts from, the module that is trained, what is shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..checkpoint import load_encoder
from ..config import EncoderConfig
from ..encoder import Encoder
from ..families import DEFAULT_FAMILY
from ..resampler import ResamplerExtras
from ..shapes import Bool, Float
from ..sites import Site
from .base_model import BaseModel, Caption, PictureSize
from .config import TrainingConfig
from .errors import TrainingError
from .nested_attention import KeysValues

# Of the weights' names in a `KeyValueEncoder`.
_PREFIX = "encoder."


class KeyValueEncoder(nn.Module):
    """The trained module: patch features in, nested keys and values of every site out.

    All of them at once and before the base model runs, so that wrappers which gather gradients or
    shard weights (DDP, FSDP, DeepSpeed) see one module with one forward pass.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(True)

    def forward(
        self,
        patch_features: Float[Tensor, "batch patches embedding_dim"],
        image_dropped: Bool[Tensor, " batch"],
    ) -> KeysValues:
        """By the site's path `[batch, subject_tokens, inner]`, before the split into heads.

        Where the image is dropped its features are zero: what the encoder then answers is a subject
        that nobody described, and every weight keeps taking part in every step.
        """
        shown = patch_features.masked_fill(image_dropped[:, None, None], 0.0)
        tokens = self.encoder.encode(shown)
        return {site.path: self.encoder.project(site, tokens) for site in self.encoder.site_dims}


def initial_encoder(
    config: TrainingConfig, base_model: BaseModel, captions: Sequence[Caption]
) -> Encoder:
    """Random resampler, the base model's own `to_k` and `to_v` in every site, in float32.

    So it starts as words that nobody wrote: tokens with the spread of text tokens, read through the
    projections that read text.

    Raises:
        TrainingError: `initial_encoder` names an encoder of other sizes or for other sites, or the
            base model has no norm for nested keys to pass.
    """
    encoder_config = config.encoder_config(
        base_model.base, base_model.image_encoder, base_model.text_dim
    )
    encoder_config = replace(encoder_config, family=base_model.family.name)
    if encoder_config.nested_key != "plain" and base_model.family is DEFAULT_FAMILY:
        raise TrainingError(
            f"nested_key is {encoder_config.nested_key}, expected plain: the layers of "
            f"{base_model.base} put no norm on the keys of their text."
        )
    earlier = load_encoder(config.initial_encoder) if config.initial_encoder else None
    # The optional parts of an earlier resampler are trained on.
    extras = earlier.resampler.extras if earlier else None
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.default_generator.manual_seed(config.seed)
        encoder = Encoder(encoder_config, base_model.site_dims, name="trained", extras=extras)
    if earlier:
        _copy_weights(encoder, earlier, config.initial_encoder)
        return encoder
    with torch.no_grad():
        for site in encoder.site_dims:
            own = encoder.projections(site)
            for weight, text_weight in zip(
                (own.to_k.weight, own.to_v.weight),
                base_model.projection_weights(site),
                strict=True,
            ):
                if weight.shape == text_weight.shape:
                    weight.copy_(text_weight)
        reads_own_stream = getattr(base_model.family, "is_joint", False)
        if config.tokens_like_text and captions and not reads_own_stream:
            _spread_like_text(encoder, base_model, captions)
    return encoder


def _copy_weights(encoder: Encoder, earlier: Encoder, path: str) -> None:
    same_sizes = earlier.config.resampler == encoder.config.resampler
    if not same_sizes or earlier.site_dims != encoder.site_dims:
        raise TrainingError(
            f"initial_encoder {path}: has {earlier.config.resampler} and {len(earlier.site_dims)} "
            f"sites; this run trains {encoder.config.resampler} and {len(encoder.site_dims)} sites. "
            "Set the run's sizes to the file's, or leave initial_encoder out."
        )
    encoder.load_state_dict({name: each.float() for name, each in earlier.state_dict().items()})


def _spread_like_text(encoder: Encoder, base_model: BaseModel, captions: Sequence[Caption]) -> None:
    """The final layer norm's gain and bias: deviation and mean of the words up to the nouns."""
    sizes = [PictureSize(1, 1, 0, 0, 1, 1)] * len(captions)
    text = base_model.encode_captions(captions, sizes)
    if text.context.shape[-1] != encoder.config.resampler.output_dim:
        return  # the sites do not read the text encoder's own tokens
    positions = text.positions.view(len(captions), -1)[:, -1]
    # The start token is left out: its length is many times that of words.
    words = torch.cat(
        [
            row[1 : int(position) + 1].float()
            for row, position in zip(text.context, positions, strict=True)
        ]
    )
    if len(words) > 1:
        encoder.resampler.norm_out.bias.copy_(words.mean(dim=0))
        encoder.resampler.norm_out.weight.copy_(words.std(dim=0))


def trained_encoder(
    config: EncoderConfig,
    site_dims: Mapping[Site, int],
    extras: ResamplerExtras | None,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Encoder:
    """The encoder alone, on the CPU, from the weights of a `KeyValueEncoder`."""
    with torch.device("meta"):
        encoder = Encoder(config, site_dims, "trained", extras)
    tensors = {
        name.removeprefix(_PREFIX): tensor.detach().to("cpu", dtype)
        for name, tensor in weights.items()
    }
    encoder.load_state_dict(tensors, assign=True)
    return encoder
