"""What a training step puts into the base model: keys and values of every row's own subject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..attention import BoundToken, ValueNorm, nested_values, replacement_delta, split_heads
from ..encoder import Encoder
from ..shapes import Bool, Float, Int
from ..sites import AttentionSite

KeysValues = dict[str, tuple[Tensor, Tensor]]


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


@dataclass(frozen=True, eq=False)
class NestedSubjects:
    """One subject for every row of a batch, bound to one token of that row's caption."""

    keys_values: Mapping[str, tuple[Tensor, Tensor]]
    positions: Int[Tensor, " batch"]
    value_norm: ValueNorm

    def delta(
        self,
        site: AttentionSite,
        query: Float[Tensor, "batch heads pixels head_dim"],
        text_key: Float[Tensor, "batch heads text_tokens head_dim"],
        text_value: Float[Tensor, "batch heads text_tokens head_dim"],
    ) -> Float[Tensor, "batch heads pixels head_dim"]:
        """What the subjects add to the output of this cross-attention layer, in float32."""
        key, value = (
            split_heads(each.to(query.dtype), query.shape[1])
            for each in self.keys_values[site.path]
        )
        values = nested_values(query, key, value)
        token = BoundToken(self.positions, values, self.value_norm)
        return replacement_delta(query, text_key, text_value, [token])
