"""One kernel of PyTorch gives a layer's output and its softmax's denominators, where that is allowed."""

from __future__ import annotations

import pack
import pytest
import torch
from bound_transformers import (
    assert_equal,
    bind,
    make_encoder,
    make_subject,
    plain_of,
    sampled,
)
from dit_scene import shared_scene

_call = pack.module("nodes.bridge.families.attention_call").Attention
_patches = pack.module("nodes.bridge.families.transformer_patches")
FAMILIES = ["flux", "lumina2", "wan"]  # two kinds of block, masked texts, text apart


@pytest.fixture
def fused_calls(monkeypatch):
    """The calls that one kernel has answered."""
    calls = []
    fused = _call.fused

    def counted(self):
        calls.append(self)
        return fused(self)

    monkeypatch.setattr(_call, "fused", counted)
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fused_kernel_changes_nothing_but_rounding(family, fused_calls, monkeypatch):
    scene = shared_scene(family)
    bound = bind(make_subject(make_encoder(scene)))
    found = sampled(scene, [bound], cfg=1.0)
    assert fused_calls
    fused_calls.clear()
    monkeypatch.setattr(_patches, "computes_as_pytorch", lambda *_: False)
    apart = sampled(scene, [bound], cfg=1.0)
    assert not fused_calls
    assert_equal(found, apart, plain_of(scene, cfg=1.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_without_an_effect_stay_the_hosts_bit_for_bit(family, fused_calls):
    scene = shared_scene(family)
    subject = make_subject(make_encoder(scene))
    plain = plain_of(scene, cfg=1.0, batch=2)
    assert torch.equal(sampled(scene, [bind(subject, strength=0.0)], cfg=1.0, batch=2), plain)
    mask = torch.stack([torch.zeros(40, 40), torch.ones(40, 40)])
    found = sampled(scene, [bind(subject, mask=mask)], cfg=1.0, batch=2)
    assert fused_calls
    if family != "wan":  # there masks are those of frames
        assert torch.equal(found[0], plain[0])
        assert not torch.equal(found[1], plain[1])


def test_a_batch_with_unbound_rows_is_left_to_the_host(fused_calls):
    scene = shared_scene("flux")
    sampled(scene, [bind(make_subject(make_encoder(scene)))], cfg=4.0)
    assert not fused_calls
