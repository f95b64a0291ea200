"""The resampler: image-encoder patch features in, subject tokens out (IP-Adapter's lineage).

Learned queries read the patch features through a few attention layers, so that a photograph of any
subject becomes the same number of tokens. Parameter names are those of the encoder file.

Two parts are optional, as in IP-Adapter's newer resampler (github.com/tencent-ailab/IP-Adapter,
`ip_adapter/resampler.py` at 62e4af9, options `apply_pos_emb` and `num_latents_mean_pooled`): a
position embedding of the patch features, and further queries made of the photograph's mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import merge_heads, split_heads
from .config import ResamplerConfig
from .errors import SubjectError
from .shapes import Float


class Linear(nn.Linear):
    """A linear layer that computes where its input is and in its precision, whatever its weights'."""

    def forward(self, input: Tensor) -> Tensor:
        bias = cast("Tensor | None", self.bias)
        bias = None if bias is None else bias.to(input)
        return functional.linear(input, self.weight.to(input), bias)


class LayerNorm(nn.LayerNorm):
    """A layer norm (epsilon 1e-5) that follows its input as `Linear` does."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.to(input), self.bias.to(input)
        return functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class PerceiverAttention(nn.Module):
    """The learned queries attend to the patch features and to themselves."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        inner_dim = config.heads * config.dim_head
        self.num_heads = config.heads
        self.scale = config.dim_head**-0.5
        self.norm1 = LayerNorm(config.dim)
        self.norm2 = LayerNorm(config.dim)
        self.to_q = Linear(config.dim, inner_dim, bias=False)
        self.to_kv = Linear(config.dim, inner_dim * 2, bias=False)
        self.to_out = Linear(inner_dim, config.dim, bias=False)

    def forward(
        self,
        patch_features: Float[Tensor, "batch patches dim"],
        learned_queries: Float[Tensor, "batch queries dim"],
    ) -> Float[Tensor, "batch queries dim"]:
        image, latents = self.norm1(patch_features), self.norm2(learned_queries)
        query = split_heads(self.to_q(latents), self.num_heads)
        key, value = (
            split_heads(half, self.num_heads)
            for half in self.to_kv(torch.cat([image, latents], dim=1)).chunk(2, dim=-1)
        )
        # Half of the scale on either side: their product overflows later in half precision.
        half_scale = self.scale**0.5
        logits = (query * half_scale) @ (key * half_scale).mT
        weights = logits.float().softmax(dim=-1).to(value.dtype)
        return self.to_out(merge_heads(weights @ value))


def _feed_forward(config: ResamplerConfig) -> nn.Sequential:
    hidden_dim = config.dim * config.ff_mult
    return nn.Sequential(
        LayerNorm(config.dim),
        Linear(config.dim, hidden_dim, bias=False),
        nn.GELU(),
        Linear(hidden_dim, config.dim, bias=False),
    )


@dataclass(frozen=True)
class ResamplerExtras:
    """Sizes of the optional parts, which an encoder file tells by its tensors; 0: not there.

    Attributes:
        max_patches: rows of the position embedding, the most patch features it has places for.
        num_pooled_queries: queries made of the mean of the projected patch features.
    """

    max_patches: int = 0
    num_pooled_queries: int = 0


class Resampler(nn.Module):
    """Patch features of one photograph to subject tokens of width `output_dim`.

    There is one token for each query: the pooled ones first, then the `num_queries` learned ones.
    """

    def __init__(self, config: ResamplerConfig, extras: ResamplerExtras | None = None) -> None:
        super().__init__()
        self.extras = extras or ResamplerExtras()
        self.latents = nn.Parameter(
            torch.randn(1, config.num_queries, config.dim) * config.dim**-0.5
        )
        self.pos_emb = (
            nn.Embedding(self.extras.max_patches, config.embedding_dim)
            if self.extras.max_patches
            else None
        )
        self.proj_in = Linear(config.embedding_dim, config.dim)
        self.to_latents_from_mean_pooled_seq = (
            nn.Sequential(
                LayerNorm(config.dim),
                Linear(config.dim, config.dim * self.extras.num_pooled_queries),
            )
            if self.extras.num_pooled_queries
            else None
        )
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(config), _feed_forward(config)])
            for _ in range(config.depth)
        )
        self.proj_out = Linear(config.dim, config.output_dim)
        self.norm_out = LayerNorm(config.output_dim)

    def forward(
        self, patch_features: Float[Tensor, "batch patches embedding_dim"]
    ) -> Float[Tensor, "batch queries output_dim"]:
        """The subject tokens of each photograph.

        Raises:
            SubjectError: more patch features than the position embedding has places for.
        """
        image: Tensor = self.proj_in(self._with_positions(patch_features))
        latents = self._queries(image)
        for layer in self.layers:
            attention, feed_forward = cast("nn.ModuleList", layer)
            latents = attention(image, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))

    def _with_positions(self, patch_features: Tensor) -> Tensor:
        if self.pos_emb is None:
            return patch_features
        num_patches = patch_features.shape[1]
        if num_patches > self.extras.max_patches:
            raise SubjectError(
                f"Encode Subject: the image encoder gives {num_patches} patch features, but "
                f"this encoder has positions (pos_emb) for {self.extras.max_patches}. Use the image "
                "encoder, at the image size, that it was trained with."
            )
        return patch_features + self.pos_emb.weight[:num_patches].to(patch_features)

    def _queries(self, image: Float[Tensor, "batch patches dim"]) -> Tensor:
        latents: Tensor = self.latents.to(image).expand(len(image), -1, -1)
        if self.to_latents_from_mean_pooled_seq is None:
            return latents
        pooled: Tensor = self.to_latents_from_mean_pooled_seq(image.mean(dim=1))
        pooled = pooled.reshape(len(image), self.extras.num_pooled_queries, -1)
        return torch.cat([pooled, latents], dim=1)
