"""Other packs' blocks in a diffusion transformer: those that pass on, and those that skip a block."""

from __future__ import annotations

import pack
import pytest
from bound_transformers import (
    PLAIN,
    TEXT,
    apply,
    assert_equal,
    bind,
    make_encoder,
    make_subject,
    naive,
    rows_of,
)
from dit_scene import NEGATIVE, shared_scene
from joint_value_table import JointValueTable
from reference import positive_only

# Where ComfyUI lets a block be replaced.
BLOCKS = [
    ("flux", "double_block", 0),
    ("flux", "single_block", 1),
    ("chroma", "double_block", 1),
    ("sd3", "double_block", 0),
    ("sd3", "double_block", 1),
    ("qwen_image", "double_block", 1),
    ("wan", "double_block", 1),
]
EACH_BLOCK = pytest.mark.parametrize(("family", "kind", "number"), BLOCKS)


def passing_on(arguments, extra):
    out = extra["original_block"](arguments)
    return {**out, "img": out["img"] + 0.1 * out["img"].flip(-1)}


def skipping(arguments, extra):
    return {name: arguments[name] for name in ("img", "txt") if name in arguments}


def sampled_with(alter, family, where, **options):
    """Of the pack and of the value table, and without a subject, with somebody else's node."""
    scene = shared_scene(family)
    subject = make_subject(make_encoder(scene))
    before = alter(scene.model) if where == "before" else scene.model
    model, clip = apply(scene, bind(subject), model=before)
    model = alter(model) if where == "behind" else model
    texts = (TEXT, clip), (NEGATIVE, clip)
    found = scene.sample(model, *(scene.encode(*each) for each in texts), **options)
    conditionings = [scene.encode(text) for text in (PLAIN, NEGATIVE)]
    table = JointValueTable(positive_only(dict.fromkeys(rows_of(scene), naive(subject))))
    expected, plain, without = (
        scene.sample(each, *conditionings, **options)
        for each in (alter(table.on(scene.model)), alter(scene.model), table.on(scene.model))
    )
    assert_equal(found, expected, plain)
    assert (without - expected).norm() / expected.norm() > 1e-3
    return table


@EACH_BLOCK
@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("replacement", [passing_on, skipping])
def test_beside_a_replaced_block_all_others_keep_their_sites(
    family, kind, number, where, replacement
):
    def alter(model):
        model = model.clone()
        model.set_model_patch_replace(replacement, "dit", kind, number)
        return model

    sampled_with(alter, family, where)


@pytest.mark.parametrize("family", ["flux", "sd3", "qwen_image", "wan"])
def test_skip_layer_guidance_composes(family):
    def alter(model):
        return pack.run_host(
            "SkipLayerGuidanceDiT",
            "nodes_slg",
            model=model,
            double_layers="0",
            single_layers="1",
            scale=3.0,
            start_percent=0.0,
            end_percent=1.0,
            rescaling_scale=0.0,
        )

    sampled_with(alter, family, "behind")
