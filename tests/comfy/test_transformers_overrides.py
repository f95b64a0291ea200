"""Other packs' attention and blocks in a diffusion transformer, beside the subjects."""

from __future__ import annotations

import pytest
import torch
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
from comfy.patcher_extension import WrappersMP
from dit_scene import FAMILIES, NEGATIVE, shared_scene
from each_family import EACH
from joint_value_table import JointValueTable
from reference import positive_only

OVERRIDE = "optimized_attention_override"
MASK = torch.rand(1, 33, 21, generator=torch.Generator().manual_seed(4))


class Louder:
    """An attention of another pack: its own result is a tenth greater, and it keeps it."""

    def __init__(self):
        self.calls, self.kept = 0, []

    def __call__(self, function, *args, **kwargs):
        self.calls += 1
        out = function(*args, **kwargs) * 1.1
        self.kept.append((out, out.clone()))
        return out

    def in_options(self, options):
        earlier = options.get(OVERRIDE)
        if earlier is None:
            return {**options, OVERRIDE: self}
        return {
            **options,
            OVERRIDE: lambda function, *args, **kwargs: self(
                lambda *a, **k: earlier(function, *a, **k), *args, **kwargs
            ),
        }


def in_model_options(model, attention):
    model = model.clone()
    options = model.model_options["transformer_options"]
    model.model_options["transformer_options"] = attention.in_options(options)
    return model


def by_wrapper(kind):
    """A wrapper that puts it into the options of each call, with what is there within."""

    def put(model, attention):
        model = model.clone()

        def wrapper(executor, *args, **kwargs):
            if "transformer_options" in kwargs:
                kwargs["transformer_options"] = attention.in_options(kwargs["transformer_options"])
            else:
                found = [n for n, each in enumerate(args) if isinstance(each, dict)][-1]
                options = attention.in_options(args[found])
                args = (*args[:found], options, *args[found + 1 :])
            return executor(*args, **kwargs)

        model.add_wrapper_with_key(kind, "louder", wrapper)
        return model

    return put


def both(scene, alter_before=None, alter_behind=None, alter_naive=None, text=TEXT, **binding):
    """The subject beside somebody else, with the pack and by the value table."""
    subject = make_subject(make_encoder(scene))
    before = scene.model if alter_before is None else alter_before(scene.model)
    model, clip = apply(scene, bind(subject, **binding), model=before)
    model = model if alter_behind is None else alter_behind(model)
    found = scene.sample(model, scene.encode(text, clip), scene.encode(NEGATIVE, clip))
    slots = dict.fromkeys(rows_of(scene), naive(subject, **binding))
    plain = scene.model if alter_naive is None else alter_naive(scene.model)
    table = JointValueTable(positive_only(slots))
    expected = scene.sample(table.on(plain), scene.encode(PLAIN), scene.encode(NEGATIVE))
    return found, expected, table


@EACH
@pytest.mark.parametrize("place", ["before", "behind"])
def test_another_attention_is_called_once_per_call_and_is_the_base(family, place):
    scene, attention, reference = shared_scene(family), Louder(), Louder()
    found, expected, _ = both(
        scene,
        **{f"alter_{place}": lambda model: in_model_options(model, attention)},
        alter_naive=lambda model: in_model_options(model, reference),
        mask=MASK,
    )
    plain, _, _ = both(scene)
    assert_equal(found, expected, plain)
    assert attention.calls == reference.calls
    assert all(torch.equal(*each) for each in attention.kept)


@EACH
def test_an_attention_that_a_wrapper_of_the_call_sets_is_the_base(family):
    scene, attention, reference = shared_scene(family), Louder(), Louder()
    found, expected, _ = both(
        scene,
        alter_behind=lambda model: by_wrapper(WrappersMP.APPLY_MODEL)(model, attention),
        alter_naive=lambda model: in_model_options(model, reference),
        mask=MASK,
    )
    plain, _, _ = both(scene)
    assert_equal(found, expected, plain)
    assert attention.calls == reference.calls


@pytest.mark.parametrize("family", [each for each in FAMILIES if each != "sd3"])
def test_one_that_a_wrapper_of_the_transformer_sets_stands_around_the_subject(family):
    """What the subject does is a tenth greater, too. ComfyUI asks no such wrapper for SD3."""
    scene, attention, reference = shared_scene(family), Louder(), Louder()
    subject = make_subject(make_encoder(scene))
    model, clip = apply(scene, bind(subject, mask=MASK))
    model = by_wrapper(WrappersMP.DIFFUSION_MODEL)(model, attention)
    found = scene.sample(model, scene.encode(TEXT, clip), scene.encode(NEGATIVE, clip))
    slots = dict.fromkeys(rows_of(scene), naive(subject, mask=MASK))
    conditionings = [scene.encode(text) for text in (PLAIN, NEGATIVE)]
    expected, plain = (
        scene.sample(in_model_options(each, reference), *conditionings)
        for each in (JointValueTable(positive_only(slots)).on(scene.model), scene.model)
    )
    assert_equal(found, expected, plain)
    assert attention.calls == reference.calls // 2
