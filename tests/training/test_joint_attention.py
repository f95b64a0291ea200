"""The attention of joint layers in training against a table with one value per pixel and token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nested_core.attention import ValueNorm
from nested_core.families.transformers import QWEN_IMAGE
from nested_core.training.nested_attention import NestedSubjects, attend_joint, shares_of_tokens

ROWS, HEADS, WIDTH, TEXT, IMAGE, BEHIND, TOKENS = 2, 4, 6, 5, 7, 2, 3
SITE = QWEN_IMAGE.site("blocks.1")
PIXELS = slice(TEXT, TEXT + IMAGE)
POSITIONS = torch.tensor([[1, 4], [3, -1]])


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def inputs(key_heads: int = HEADS) -> list[Tensor]:
    """Query, key, value, nested key, nested value; all of which gradients are taken of."""
    length = TEXT + IMAGE + BEHIND
    shapes = [
        (ROWS, HEADS, length, WIDTH),
        *[(ROWS, key_heads, length, WIDTH)] * 2,
        *[(ROWS, TOKENS, key_heads * WIDTH)] * 2,
    ]
    tensors = [random(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    return [each.requires_grad_() for each in tensors]


def halve(key: Tensor) -> Tensor:
    """In the place of a model's norm of its keys."""
    return key / (1.0 + key.square().sum(dim=-1, keepdim=True))


def ours(
    tensors: list[Tensor],
    norm: ValueNorm,
    positions: Tensor = POSITIONS,
    mask: Tensor | None = None,
    nested_key: str = "plain",
) -> Tensor:
    query, key, value, *nested = tensors
    subjects = NestedSubjects({SITE.path: tuple(nested)}, positions, norm, nested_key)
    return attend_joint(query, key, value, TEXT, PIXELS, mask, SITE, subjects, halve)


def by_table(
    tensors: list[Tensor],
    norm: ValueNorm,
    bias: Tensor | None = None,
    is_normed: bool = False,
) -> Tensor:
    """Softmax over all keys; the bound tokens' values are those that each pixel is given."""
    query, key, value, nested_key, nested_value = tensors
    if is_normed:
        nested_key = halve(nested_key)
    nested = [
        each.unflatten(-1, (-1, WIDTH)).transpose(1, 2) for each in (nested_key, nested_value)
    ]
    sharing = HEADS // key.shape[1]
    key, value, *nested = (each.repeat_interleave(sharing, dim=1) for each in (key, value, *nested))
    star = (query @ nested[0].mT / WIDTH**0.5).softmax(-1) @ nested[1]
    table = value[:, :, None].repeat(1, 1, query.shape[2], 1, 1)
    for row, places in enumerate(POSITIONS.tolist()):
        for place in places:
            if place < 0:
                continue
            new, text = star[row, :, PIXELS], value[row, :, None, place]
            if norm.mode == "per_head":
                new = (
                    norm.scale * text.norm(dim=-1, keepdim=True) * new / new.norm(dim=-1)[..., None]
                )
            elif norm.mode == "all_heads":
                new = norm.scale * text.norm() * new / new.norm(dim=(0, 2), keepdim=True)
            table[row, :, PIXELS, place] = new
    logits = query @ key.mT / WIDTH**0.5
    logits = logits if bias is None else logits + bias
    return torch.einsum("bhqk,bhqkd->bhqd", logits.softmax(-1), table)


@pytest.mark.parametrize("key_heads", [HEADS, 2])
@pytest.mark.parametrize("mode", ["per_head", "all_heads", "none"])
def test_a_joint_layer_and_its_gradients_are_those_of_the_value_table(mode, key_heads) -> None:
    norm, tensors = ValueNorm(mode, 2.0), inputs(key_heads)
    found, wanted = ours(tensors, norm), by_table(tensors, norm)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    towards = random(*found.shape, seed=9)
    gradients = [torch.autograd.grad((each * towards).sum(), tensors) for each in (found, wanted)]
    for mine, theirs in zip(*gradients, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_only_pixels_change() -> None:
    tensors = inputs()
    plain = attend_joint(*tensors[:3], TEXT, PIXELS)
    found = ours(tensors, ValueNorm())
    assert torch.equal(found[:, :, :TEXT], plain[:, :, :TEXT])
    assert torch.equal(found[:, :, PIXELS.stop :], plain[:, :, PIXELS.stop :])
    assert (found - plain)[:, :, PIXELS].abs().amin(dim=(1, 3)).max() > 1e-3


def test_rows_without_a_place_are_the_layer_alone() -> None:
    tensors = inputs()
    nowhere = torch.full((ROWS,), -1)
    plain = attend_joint(*tensors[:3], TEXT, PIXELS)
    assert torch.equal(ours(tensors, ValueNorm(), nowhere), plain)


@pytest.mark.parametrize("is_boolean", [True, False])
def test_a_mask_counts_for_every_share(is_boolean) -> None:
    norm, tensors = ValueNorm(), inputs()
    kept = torch.ones(ROWS, 1, 1, TEXT + IMAGE + BEHIND, dtype=torch.bool)
    kept[0, ..., 2:4] = False  # a shorter caption
    bias = torch.zeros(kept.shape, dtype=torch.float64).masked_fill(~kept, -torch.inf)
    found = ours(tensors, norm, mask=kept if is_boolean else bias)
    torch.testing.assert_close(found, by_table(tensors, norm, bias), rtol=1e-6, atol=1e-6)


def test_a_mask_of_every_query_is_cut_to_the_pixels() -> None:
    norm, tensors = ValueNorm(), inputs()
    length = TEXT + IMAGE + BEHIND
    bias = random(ROWS, 1, length, length, seed=6)
    found = ours(tensors, norm, mask=bias)
    torch.testing.assert_close(found, by_table(tensors, norm, bias), rtol=1e-6, atol=1e-6)


def test_the_models_norm_is_put_on_nested_keys_where_the_file_says_so() -> None:
    norm, tensors = ValueNorm(), inputs()
    normed = ours(tensors, norm, nested_key="model_norm")
    torch.testing.assert_close(
        normed, by_table(tensors, norm, is_normed=True), rtol=1e-6, atol=1e-6
    )
    assert not torch.allclose(normed, ours(tensors, norm), atol=1e-3)


def test_a_layer_whose_keys_are_all_text() -> None:
    """Cross-attention through the same function."""
    query, key, value, *nested = inputs()
    key, value = key[:, :, :TEXT], value[:, :, :TEXT]
    subjects = NestedSubjects({SITE.path: tuple(nested)}, POSITIONS[:, 0], ValueNorm())
    found = attend_joint(query, key, value, TEXT, slice(None), None, SITE, subjects)
    wanted = subjects.delta(SITE, query, key, value)
    plain = attend_joint(query, key, value, TEXT, slice(None))
    torch.testing.assert_close(found - plain, wanted.double(), rtol=1e-4, atol=1e-5)


def test_no_table_of_attention_is_held() -> None:
    length, text, width = 400, 100, 8
    query, key, value = (
        random(1, 2, length, width, seed=seed).float().requires_grad_() for seed in range(3)
    )
    nested = random(1, 3, 16, seed=4).float().requires_grad_()
    subjects = NestedSubjects({SITE.path: (nested, nested)}, torch.tensor([5]), ValueNorm())
    held: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        held.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attend_joint(query, key, value, text, slice(text, length), None, SITE, subjects)
    assert 0 < max(held) <= query.numel()


def test_shares_in_half_precision_keep_small_ones() -> None:
    query, key = (random(1, 2, 300, 8, seed=seed) for seed in (1, 2))
    places = torch.tensor([[0, 299, 17]])
    exact = (query @ key.mT / 8**0.5).softmax(-1)[..., places[0]]
    half = shares_of_tokens(query.bfloat16(), key.bfloat16(), places)
    assert (half.double() / exact).log().abs().median() < 0.02
