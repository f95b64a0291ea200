"""The encoder that training starts from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checkpoint import load_encoder
from ..encoder import Encoder
from .config import TrainingConfig
from .errors import TrainingError
from .protocol import Caption, Host, PictureSize


def initial_encoder(config: TrainingConfig, host: Host, captions: Sequence[Caption]) -> Encoder:
    """Random resampler, the base model's own `to_k` and `to_v` in every site, in float32.

    So it starts as words that nobody wrote: tokens with the spread of text tokens, read through the
    projections that read text.

    Raises:
        TrainingError: `initial_encoder` names an encoder of other sizes or for other sites.
    """
    encoder_config = config.encoder_config(host.base, host.image_encoder, host.text_dim)
    earlier = load_encoder(config.initial_encoder) if config.initial_encoder else None
    # The optional parts of an earlier resampler are trained on.
    extras = earlier.resampler.extras if earlier else None
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.default_generator.manual_seed(config.seed)
        encoder = Encoder(encoder_config, host.site_dims, name="trained", extras=extras)
    if earlier:
        _take_weights(encoder, earlier, config.initial_encoder)
        return encoder
    with torch.no_grad():
        for site in encoder.site_dims:
            own = encoder.projections(site)
            for weight, base in zip(
                (own.to_k.weight, own.to_v.weight), host.projection_weights(site), strict=True
            ):
                if weight.shape == base.shape:
                    weight.copy_(base)
        if config.tokens_like_text and captions:
            _spread_like_text(encoder, host, captions)
    return encoder


def _take_weights(encoder: Encoder, earlier: Encoder, path: str) -> None:
    same_sizes = earlier.config.resampler == encoder.config.resampler
    if not same_sizes or earlier.site_dims != encoder.site_dims:
        raise TrainingError(
            f"initial_encoder {path}: has {earlier.config.resampler} and {len(earlier.site_dims)} "
            f"sites; this run trains {encoder.config.resampler} and {len(encoder.site_dims)} sites. "
            "Set the run's sizes to the file's, or leave initial_encoder out."
        )
    encoder.load_state_dict({name: each.float() for name, each in earlier.state_dict().items()})


def _spread_like_text(encoder: Encoder, host: Host, captions: Sequence[Caption]) -> None:
    """The final layer norm's gain and bias: deviation and mean of the words up to the nouns."""
    sizes = [PictureSize(1, 1, 0, 0, 1, 1)] * len(captions)
    text = host.encode_captions(captions, sizes)
    # The start token is left out: its length is many times that of words.
    words = torch.cat(
        [
            row[1 : int(position) + 1].float()
            for row, position in zip(text.context, text.positions, strict=True)
        ]
    )
    if len(words) > 1:
        encoder.resampler.norm_out.bias.copy_(words.mean(dim=0))
        encoder.resampler.norm_out.weight.copy_(words.std(dim=0))
