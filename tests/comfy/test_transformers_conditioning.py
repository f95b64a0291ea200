"""ComfyUI's conditioning nodes between text encoder and diffusion transformer, against the value table."""

from __future__ import annotations

from typing import ClassVar

import node_helpers
import pack
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
from dit_scene import NEGATIVE, make_scene, shared_scene
from each_family import EACH
from joint_composition import assert_composes, rows_reading, sample_bound
from joint_value_table import JointValueTable

_subject = pack.module("nested_core.subject")

LEFT = torch.zeros(1, 72, 56)
LEFT[..., :28] = 1.0


def through(name, conditioning, extra=None, **inputs):
    return pack.run_host(name, extra, conditioning=conditioning, **inputs)


def combine(one, other):
    return pack.run_host("ConditioningCombine", conditioning_1=one, conditioning_2=other)


class Cast:
    """Two subjects, and prompts that say them, with the tokens and with the nouns."""

    texts: ClassVar = {
        "anna": (TEXT, PLAIN),
        "both": ("<rex>, a dog, and <anna>", "dog, a dog, and woman"),
        "rex": ("bad <rex>, blurry", "bad dog, blurry"),
        "park": ("a park", "a park"),
    }

    def __init__(self, family):
        self.scene = scene = shared_scene(family)
        anna = make_subject(make_encoder(scene))
        rex = make_subject(make_encoder(scene, "all_heads", 1.3, seed=8), 3, references=2)
        self.bindings = bind(anna), bind(rex, "<rex>", "dog")
        anna, rex = naive(anna), naive(rex)
        self._slots = {
            "anna": self._places("anna", "woman", anna),
            "both": {**self._places("both", "woman", anna), **self._places("both", "dog", rex)},
            "rex": self._places("rex", "dog", rex),
        }

    def _places(self, which, noun, subject):
        rows = self.scene.rows(self.texts[which][1], noun)
        return dict.fromkeys(rows, subject)

    def assert_equals_the_value_table(self, prepare, **options):
        """Of conditionings by name, `prepare` makes the positive and the negative ones."""
        scene = self.scene
        model, clip = apply(scene, *self.bindings)
        bound = {name: scene.encode(text, clip) for name, (text, _) in self.texts.items()}
        plain = {name: scene.encode(text) for name, (_, text) in self.texts.items()}
        known = [(scene.context(plain[name]), slots) for name, slots in self._slots.items()]
        table = JointValueTable(rows_reading(known)).on(scene.model)
        found = scene.sample(model, *prepare(bound), **options)
        expected, without = (
            scene.sample(each, *prepare(plain), **options) for each in (table, scene.model)
        )
        assert_equal(found, expected, without)


@pytest.mark.smoke
@EACH
def test_masks_areas_and_times_of_several_prompts(family):
    def prepare(texts):
        in_mask = through(
            "ConditioningSetMask", texts["anna"], mask=LEFT, set_cond_area="default", strength=1.0
        )
        area = {"width": 40, "height": 40, "x": 16, "y": 24, "strength": 1.0}
        in_area = through("ConditioningSetArea", texts["both"], **area)
        early = through("ConditioningSetTimestepRange", texts["park"], start=0.0, end=0.5)
        return combine(combine(in_mask, in_area), early), texts["rex"]

    Cast(family).assert_equals_the_value_table(prepare, batch=2, steps=3)


IN_CELLS = {"width": 40, "height": 40, "x": 16, "y": 24}
IN_PARTS = {"width": 0.7, "height": 0.56, "x": 0.28, "y": 0.34, "temporal": 0.67, "z": 0.34}


@pytest.mark.parametrize(
    ("family", "node", "inputs", "frames"),
    [
        ("flux", ("ConditioningSetArea",), IN_CELLS, slice(1)),
        ("qwen_image", ("ConditioningSetArea",), IN_CELLS, slice(1)),
        ("wan", ("ConditioningSetArea",), IN_CELLS, slice(3)),
        ("wan", ("ConditioningSetAreaPercentageVideo", "nodes_video_model"), IN_PARTS, slice(1, 3)),
    ],
)
def test_a_mask_is_cut_to_its_area(family, node, inputs, frames):
    scene = make_scene(family)
    scene.frames = 3 if family == "wan" else 1
    generator = torch.Generator().manual_seed(4)
    masks = torch.rand(scene.frames, 72, 56, generator=generator)
    subject = make_subject(make_encoder(scene))
    model, clip = apply(scene, bind(subject, mask=masks, strength=2.0))
    plain = {name: scene.encode(text) for name, text in {"anna": PLAIN, "park": "a park"}.items()}

    def prepare(anna):
        name, *extra = node
        return combine(plain["park"], through(name, anna, *extra, strength=1.0, **inputs))

    # Cells 5 x 5 of 9 x 7, at (3, 2), each of 8 x 8 pixels.
    cut = masks[None, frames, 24:64, 16:56]
    slots = dict.fromkeys(rows_of(scene), naive(subject, mask=cut, strength=2.0))
    table = JointValueTable(rows_reading([(scene.context(plain["anna"]), slots)])).on(scene.model)
    found = scene.sample(model, prepare(scene.encode(TEXT, clip)), plain["park"])
    expected, without = (
        scene.sample(each, prepare(plain["anna"]), plain["park"]) for each in (table, scene.model)
    )
    assert_equal(found, expected, without)


@EACH
def test_an_emptied_prompt_has_no_subject(family):
    def prepare(texts):
        return texts["both"], through("ConditioningZeroOut", texts["anna"])

    Cast(family).assert_equals_the_value_table(prepare)


@EACH
def test_each_picture_has_its_subject_and_a_weighted_token_its_part_of_the_sampling(family):
    scene = shared_scene(family)
    encoder = make_encoder(scene)
    pair = _subject.SubjectSequence((make_subject(encoder), make_subject(encoder, 5)))
    percents = {"start_percent": 0.3, "end_percent": 0.7}
    text, plain = (f"a pencil (drawing of {word} here:1.3)" for word in ("<anna>", "woman"))
    model, clip = apply(scene, bind(pair, **percents))
    options = {"batch": 2, "steps": 6}
    found = scene.sample(model, scene.encode(text, clip), scene.encode(NEGATIVE), **options)
    at = scene.model.get_model_object("model_sampling").percent_to_sigma
    slots = [
        dict.fromkeys(scene.rows(plain, "woman"), naive(each, window=(at(0.3), at(0.7))))
        for each in pair.subjects
    ]

    def row_slots(options, num_rows):
        kinds = options["cond_or_uncond"]
        return [{} if kind else slots[picture] for kind in kinds for picture in (0, 1)]

    texts = scene.encode(plain), scene.encode(NEGATIVE)
    expected = scene.sample(JointValueTable(row_slots).on(scene.model), *texts, **options)
    assert_equal(found, expected, scene.sample(scene.model, *texts, **options))


def reference_latent(conditioning, *size):
    samples = torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(size[-1]))
    inputs = {"conditioning": conditioning, "latent": {"samples": samples}}
    return pack.run_host("ReferenceLatent", "nodes_edit_model", **inputs)


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("flux", "offset"),
        ("flux", "index"),
        ("qwen_image", "offset"),
        ("qwen_image", "index_timestep_zero"),
        ("chroma", "offset"),
    ],
)
def test_reference_pictures_are_left_alone(family, method):
    frames = (1,) if family == "qwen_image" else ()

    def prepare(*both):
        both = [reference_latent(each, *frames, 9, 7) for each in both]
        both = [reference_latent(each, *frames, 6, 5) for each in both]
        method_ = {"reference_latents_method": method}
        return [node_helpers.conditioning_set_values(each, method_) for each in both]

    masked = {"mask": LEFT}
    assert_composes(
        shared_scene(family),
        prepare=prepare,
        places=["behind"],
        binding=masked,
        settings=masked,
        acts=False,
        batch=2,
    )


@pytest.mark.parametrize(("texts", "before"), [(0, 32), (1, 64), (2, 64)])
def test_reference_pictures_of_z_image_come_before_the_picture_and_their_texts_before_the_prompt(
    texts, before
):
    scene = make_scene("z_image")
    scene.height, scene.width = 8, 6  # it takes no others beside reference pictures
    said = [torch.randn(1, 40, 24, generator=torch.Generator().manual_seed(2))] * texts

    def prepare(*both):
        both = [reference_latent(each, 4, 6) for each in both]
        said_ = {"reference_latents_text_embeds": said} if texts else {}
        return [node_helpers.conditioning_set_values(each, said_) for each in both]

    subject = make_subject(make_encoder(scene))
    found = sample_bound(scene, subject, prepare=prepare)
    plain = scene.encode(PLAIN), scene.encode(NEGATIVE)
    slots = {before + row: naive(subject) for row in rows_of(scene)}
    table = JointValueTable(rows_reading([(scene.context(plain[0]), slots)])).on(scene.model)
    expected, without = (scene.sample(each, *prepare(*plain)) for each in (table, scene.model))
    assert_equal(found, expected, without)


def test_pictures_appended_to_the_text_and_masks_of_attention():
    """As of style models: rows behind the text, and how much each of them is listened to."""
    scene = shared_scene("flux")
    style = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(2))

    def styled(conditioning):
        ((rows, extras),) = conditioning
        longer = torch.cat((rows, style), dim=1)
        mask = torch.ones(1, longer.shape[1] + 20, longer.shape[1] + 20)
        mask[..., rows.shape[1] : longer.shape[1]] = 0.3
        biased = {"attention_mask": mask.log(), "attention_mask_img_shape": (5, 4)}
        return [(longer, {**extras, **biased})]

    guided = {"extra": "nodes_flux", "guidance": 7.0}
    assert_composes(
        scene,
        prepare=lambda *both: [through("FluxGuidance", styled(each), **guided) for each in both],
        places=["behind"],
        acts=False,
    )


def test_padding_of_a_prompt_stays_masked():
    def padded(conditioning):
        ((rows, extras),) = conditioning
        mask = torch.ones(1, rows.shape[1])
        mask[:, -4:] = 0
        return [(rows, {**extras, "attention_mask": mask})]

    assert_composes(
        shared_scene("qwen_image"),
        prepare=lambda *both: [padded(each) for each in both],
        places=["behind"],
        acts=False,
        batch=2,
    )
