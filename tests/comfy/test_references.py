"""Several references with weights, and many subjects at once: on several tokens, of several encoders,
one for each picture of a batch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import comfy.ldm.modules.attention as host_attention
import folder_paths
import pack
import pytest
import reference
import scenes
import torch
from comfy import model_management
from torch.nn import functional
from two_subjects import TOLERANCE, VISIBLE

checkpoint = pack.module("nested_core.checkpoint")
kv_cache = pack.module("nodes.bridge.model.kv_cache")
site = pack.module("nested_core.call.site")
model_call = pack.module("nodes.bridge.families.model_call")
SubjectPerPicture = pack.module("nodes.subject").SubjectPerPicture

PROMPT, PLAIN, POSITION = "a drawing of <anna>", "a drawing of woman", 4
ROUNDING = 1e-5  # float32, softmax over other numbers of tokens


@pytest.fixture
def scene(family):
    scene = scenes.make_scene(family)
    scene.steps = 2
    return scene


def sampled(scene, *bindings, prompt=PROMPT, **options):
    model, clip = scene.apply(*bindings)
    return scene.sample(model, scene.encode(clip, prompt), scene.encode(clip, "bad"), **options)


def of_the_value_table(scene, row_slots, prompt=PLAIN, **options):
    positive, negative = (scene.encode(scene.clip, text) for text in (prompt, "bad"))
    return scene.sample_naively(row_slots, positive, negative, **options)


def with_tokens(subject, tokens):
    return type(subject)(tokens, subject.encoder, (len(tokens),), subject.noun)


def repeated(subject, *times):
    """The subject without weights, each of its references there so many times."""
    parts = subject.tokens.split(subject.references)
    chosen = [part for part, number in zip(parts, times, strict=True) for _ in range(number)]
    return with_tokens(subject, torch.cat(chosen))


def keys_values_of(scene, subject):
    device = torch.device("cpu")
    return kv_cache.keys_and_values(subject, scene.sites, device, torch.float32).model


class TestWeights:
    @pytest.mark.smoke
    def test_a_weight_equals_the_value_table_of_repeated_photographs(self, scene):
        subject = scene.subject(references=3, weights="3, 0.5, 1")
        assert subject.weights == (1.0, 0.5 / 3, 1 / 3)
        found = sampled(scene, scene.bind(subject))
        naive = scene.naive(repeated(subject, 6, 1, 2))
        expected = of_the_value_table(scene, reference.positive_only({POSITION: naive}))
        assert scenes.relative_difference(found, expected) < TOLERANCE
        unweighted = sampled(scene, scene.bind(repeated(subject, 1, 1, 1)))
        assert scenes.relative_difference(unweighted, expected) > VISIBLE

    def test_a_weight_of_two_is_the_same_photograph_twice(self, scene):
        images = torch.rand(2, 40, 50, 3, generator=torch.Generator().manual_seed(0))
        inputs = {"encoder": scene.encoder, "clip_vision": scene.vision}
        weighted = pack.run("EncodeSubject", image=images, weights="2, 1", **inputs)
        twice = pack.run("EncodeSubject", image=images[[0, 0, 1]], **inputs)
        once = pack.run("EncodeSubject", image=images, **inputs)
        found, expected, unweighted = (
            sampled(scene, scene.bind(each)) for each in (weighted, twice, once)
        )
        assert scenes.relative_difference(found, expected) < ROUNDING
        assert scenes.relative_difference(unweighted, expected) > VISIBLE

    @pytest.mark.parametrize("weights", ["2", "2, 1"])
    def test_a_weighted_subject_beside_an_unweighted_one_of_the_same_tokens(self, scene, weights):
        """They are projected apart: only their weights tell them apart."""
        references = weights.count(",") + 1
        plain, weighted = (
            scene.subject(references=references, weights=each) for each in ("", weights)
        )
        found = sampled(
            scene,
            scene.bind(plain, "<anna>", "woman"),
            scene.bind(weighted, "<rex>", "dog"),
            prompt="<anna> and <rex>",
        )
        times = (2, 1)[:references]
        slots = {1: scene.naive(plain), 3: scene.naive(repeated(weighted, *times))}
        expected = of_the_value_table(scene, reference.positive_only(slots), "woman and dog")
        assert scenes.relative_difference(found, expected) < TOLERANCE

    @pytest.mark.parametrize("combine", ["concatenate", "average"])
    def test_equal_weights_are_exactly_no_weights(self, scene, combine):
        equal, without = (
            scene.subject(references=3, combine=combine, weights=weights)
            for weights in ("0.7, 0.7, 0.7", "")
        )
        assert torch.equal(equal.tokens, without.tokens)
        assert equal.digest == without.digest
        assert torch.equal(*(sampled(scene, scene.bind(each)) for each in (equal, without)))

    def test_the_average_is_weighted(self, scene):
        subject = scene.subject(references=2, combine="average", weights="3, 1")
        one, other = scene.subject(references=2).tokens.split(6)
        torch.testing.assert_close(subject.tokens, (3 * one + other) / 4)
        assert (subject.references, subject.weights) == ((6,), ())

    def test_wrong_weights_stop_before_anything_is_encoded(self, scene, monkeypatch):
        monkeypatch.setattr(scene.vision, "encode_image", lambda *_, **__: pytest.fail("encoded"))
        with pytest.raises(ValueError, match=r"'1, 2' has 2 .* each of the 3 reference"):
            scene.subject(references=3, weights="1, 2")

    def test_weights_are_saved_and_loaded(self, scene):
        subject = scene.subject(references=3, weights="3, 1, 0.7")
        prefix = f"weighted-{scene.family}"
        pack.run("SaveSubject", subject=subject, filename_prefix=prefix)
        loaded = pack.run(
            "LoadSubject", subject_name=f"{prefix}_00001_.safetensors", encoder=scene.encoder
        )
        assert loaded.weights == subject.weights == (1.0, 1 / 3, 0.7 / 3)
        assert scene.bind(loaded).id == scene.bind(subject).id
        assert torch.equal(*(sampled(scene, scene.bind(each)) for each in (subject, loaded)))

    def test_half_precision_keeps_the_weights(self, family):
        scene = scenes.make_scene(family, torch.float16)
        scene.steps = 2
        subject = scene.subject(references=2, weights="8, 1")
        found = sampled(scene, scene.bind(subject))
        naive = scene.naive(repeated(subject, 8, 1))
        expected = of_the_value_table(scene, reference.positive_only({POSITION: naive}))
        # The host's own rounding, 11 bits over two steps.
        assert scenes.relative_difference(found, expected) < 3e-3
        unweighted = sampled(scene, scene.bind(repeated(subject, 1, 1)))
        assert scenes.relative_difference(unweighted, expected) > 3e-3

    def test_a_copy_for_another_device_has_them(self, scene):
        model = keys_values_of(scene, scene.subject(references=2, weights="2, 1"))
        for site in scene.sites:
            original = model.by_site[site].log_weights
            assert torch.equal(copy.deepcopy(model).by_site[site].log_weights, original)
            assert original.dtype == torch.float32
            assert not original.is_inference()


class TestBackends:
    """Every attention of ComfyUI that a user can choose, where there is no GPU and no such package."""

    NAMES = ("basic", "sub_quad", "split", "pytorch", "flash", "xformers", "sage")
    PIXELS = 700  # more than one chunk of sub_quad's queries

    @pytest.fixture(params=[*NAMES, "3_sage", "sub_quad_in_chunks"])
    def backend(self, request, monkeypatch):
        name = request.param
        if name == "sub_quad_in_chunks":
            name = "sub_quad"
            monkeypatch.setattr(model_management, "get_free_memory", lambda *_: (1, 1))
        if name == "xformers":
            ops = SimpleNamespace(memory_efficient_attention=_xformers_attention)
            stand_in = SimpleNamespace(ops=ops)
            monkeypatch.setattr(host_attention, "xformers", stand_in, raising=False)
        separator = "" if name == "3_sage" else "_"
        function = getattr(host_attention, f"attention{separator}{name}")
        monkeypatch.setattr(host_attention, "optimized_attention", function)
        return name

    @pytest.mark.smoke
    @pytest.mark.parametrize("weights", ["1, 0.37", ""])
    def test_each_equals_the_naive_formula(self, sdxl, backend, weights, caplog):
        subject = sdxl.subject(references=2, weights=weights)
        keys_values = keys_values_of(sdxl, subject)
        active = SimpleNamespace(rows=slice(1, 3), keys_values=keys_values)
        bias = [math.log(weight) for weight in subject.weights or (1.0, 1.0)]
        place = sdxl.sites[0]
        query = torch.randn(4, 4, self.PIXELS, 16, generator=torch.Generator().manual_seed(2)) * 3
        found = site.values_of(active, place, query, model_call.host_attention)
        key, value = (
            each.double().unflatten(-1, (4, 16)).transpose(1, 2)
            for each in subject.encoder.project(place, subject.tokens[None])
        )
        logits = query[1:3].double() @ key.mT / math.sqrt(16)
        logits += torch.tensor(bias, dtype=torch.float64).repeat_interleave(6)
        expected = logits.softmax(-1) @ value
        assert found.shape == expected.shape
        assert scenes.relative_difference(found, expected) < ROUNDING
        if weights:
            assert caplog.messages == []


def _xformers_attention(q, k, v, attn_bias=None, scale=None):
    """What xformers computes, rows x tokens x heads x channels; its bias may not be broadcast."""
    assert attn_bias is None or attn_bias.shape == (*q.transpose(1, 2).shape[:3], k.shape[1])
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, scale=scale)
    return out.transpose(1, 2)


class TestManySubjects:
    def test_one_subject_on_two_tokens(self, scene):
        subject = scene.subject()
        settings = {"strength": 0.6, "token_weight": 2.0}
        found = sampled(
            scene,
            scene.bind(subject, "<anna>", "woman"),
            scene.bind(subject, "<rex>", "dog", **settings),
            prompt="<rex> and <anna>, <rex> again",
            batch=2,
        )
        plain, changed = scene.naive(subject), scene.naive(subject, **settings)
        slots = {1: changed, 3: plain, 5: changed}
        rows = reference.positive_only(slots, 2)
        expected = of_the_value_table(scene, rows, "dog and woman, dog again", batch=2)
        assert scenes.relative_difference(found, expected) < TOLERANCE
        both_alike = of_the_value_table(
            scene,
            reference.positive_only(dict.fromkeys(slots, plain), 2),
            "dog and woman, dog again",
            batch=2,
        )
        assert scenes.relative_difference(both_alike, expected) > VISIBLE

    def test_eight_subjects_in_one_prompt(self, scene):
        subjects = [scene.subject(seed) for seed in range(8)]
        tokens = [f"<s{number}>" for number in range(8)]
        bindings = [
            scene.bind(subject, token, "woman", strength=0.5 + number / 8)
            for number, (subject, token) in enumerate(zip(subjects, tokens, strict=True))
        ]
        order = [3, 0, 7, 1, 6, 2, 5, 4]
        prompt = " and ".join(tokens[number] for number in order)
        plain = " and ".join(["woman"] * 8)
        slots = {
            1 + 2 * place: scene.naive(subjects[number], strength=0.5 + number / 8)
            for place, number in enumerate(order)
        }
        found = sampled(scene, *bindings, prompt=prompt)
        expected = of_the_value_table(scene, reference.positive_only(slots), plain)
        assert scenes.relative_difference(found, expected) < TOLERANCE
        # Each of them counts: with any two exchanged, the picture is another.
        for one, other in zip(list(slots)[:-1], list(slots)[1:], strict=True):
            exchanged = {**slots, one: slots[other], other: slots[one]}
            wrong = of_the_value_table(scene, reference.positive_only(exchanged), plain)
            assert scenes.relative_difference(wrong, expected) > 2 * TOLERANCE

    def _of_two_files(self, scene, second):
        folder = Path(folder_paths.get_folder_paths("nested_attention")[0])
        folder.mkdir(parents=True, exist_ok=True)
        subjects = []
        for name, encoder in (("people", scene.encoder), ("pets", second)):
            checkpoint.save_encoder(encoder, folder / f"{name}-{scene.family}.safetensors")
            scene.encoder = pack.run(
                "LoadEncoder", encoder_name=f"{name}-{scene.family}.safetensors"
            )
            subjects.append(scene.subject())  # of the same photograph
        anna, rex = subjects
        assert anna.encoder is not rex.encoder
        found = sampled(
            scene,
            scene.bind(anna, "<anna>", "woman"),
            scene.bind(rex, "<rex>", "dog"),
            prompt="<rex> and <anna>",
        )
        naive_anna, naive_rex = scene.naive(anna), scene.naive(rex)
        rows = reference.positive_only({1: naive_rex, 3: naive_anna})
        expected = of_the_value_table(scene, rows, "dog and woman")
        exchanged = reference.positive_only({1: naive_anna, 3: naive_rex})
        wrong = of_the_value_table(scene, exchanged, "dog and woman")
        assert scenes.relative_difference(wrong, expected) > VISIBLE
        assert scenes.relative_difference(found, expected) < TOLERANCE

    def test_two_encoders_of_different_files(self, scene):
        resampler = vars(scene.encoder.config.resampler)
        second = scenes.make_encoder(
            scene.family,
            scene.model,
            seed=9,
            noun="dog",
            resampler=type(scene.encoder.config.resampler)(**{**resampler, "num_queries": 3}),
            value_norm=scenes.value_norm("all_heads", 1.2),
        )
        self._of_two_files(scene, second)

    def test_two_encoders_that_make_the_same_tokens_of_a_photograph(self, scene):
        """As one that was trained on from another, its resampler left as it was."""
        second = scenes.make_encoder(scene.family, scene.model, seed=9)
        second.resampler.load_state_dict(scene.encoder.resampler.state_dict())
        self._of_two_files(scene, second)


class TestSubjectPerPicture:
    def line_up(self, *subjects):
        inputs = {f"subject_{number}": each for number, each in enumerate(subjects)}
        (sequence,) = SubjectPerPicture.execute(subjects=inputs).result
        return sequence

    def test_it_has_the_schema_of_its_page(self):
        schema = SubjectPerPicture.GET_SCHEMA()
        assert schema.node_id == "NestedAttention_SubjectPerPicture"
        assert schema.display_name == "Subject per Picture"
        assert schema.category == "nested_attention"
        (output,) = schema.outputs
        assert output.io_type == "NESTED_ATTENTION_SUBJECT"
        assert (pack.ROOT / "js" / "docs" / f"{schema.node_id}.md").is_file()

    def test_subjects_stand_in_the_order_of_their_sockets(self, sdxl):
        subjects = [sdxl.subject(seed) for seed in range(3)]
        sequence = self.line_up(*subjects)
        assert sequence.subjects == tuple(subjects)

    def test_a_sequence_among_them_is_continued(self, sdxl):
        one, two, three = (sdxl.subject(seed) for seed in range(3))
        assert self.line_up(self.line_up(one, two), three).subjects == (one, two, three)

    def test_sockets_left_open_are_passed_over(self, sdxl):
        one, two = (sdxl.subject(seed) for seed in range(2))
        assert self.line_up(None, one, None, two).subjects == (one, two)

    @pytest.mark.parametrize("subjects", [(), (None,)])
    def test_nothing_connected_is_an_error(self, subjects):
        with pytest.raises(ValueError, match=r"^Subject per Picture: found no subject, .* Connect"):
            self.line_up(*subjects)

    def test_subjects_of_two_encoders_are_an_error(self, sdxl):
        other = scenes.make_scene("sdxl")
        other.encoder = scenes.make_encoder("sdxl", other.model, seed=9)
        with pytest.raises(ValueError, match="subject 2 was made with the encoder 'tiny', but"):
            self.line_up(sdxl.subject(), other.subject())

    @pytest.mark.parametrize("number", [1, 2])
    def test_saving_one_is_an_error_and_writes_nothing(self, sdxl, number):
        sequence = self.line_up(*(sdxl.subject(seed) for seed in range(number)))
        with pytest.raises(
            ValueError,
            match=rf"^Save Subject: found {number} subject\(s\) of a Subject per Picture node, "
            r"expected a single one\. Save each",
        ):
            pack.run("SaveSubject", subject=sequence, filename_prefix="sequence")
        assert not any("sequence" in n for n in folder_paths.get_filename_list("nested_subjects"))

    @pytest.mark.smoke
    def test_each_picture_equals_the_value_table_of_its_own_subject(self, scene):
        """Five pictures, three subjects of different sizes and weights: the first two come again."""
        subjects = [
            scene.subject(0),
            scene.subject(1, references=2, weights="1, 4"),
            scene.subject(2, references=3),
        ]
        binding = scene.bind(self.line_up(*subjects), strength=0.9)
        found = sampled(scene, binding, batch=5)
        naive = [
            {POSITION: scene.naive(each, strength=0.9)}
            for each in (subjects[0], repeated(subjects[1], 1, 4), subjects[2])
        ]

        def rows_of(order):
            def row_slots(options, num_rows):
                kinds = options["cond_or_uncond"]
                assert num_rows == len(kinds) * len(order)
                return [naive[each] if kind == 0 else {} for kind in kinds for each in order]

            return row_slots

        expected = of_the_value_table(scene, rows_of([0, 1, 2, 0, 1]), batch=5)
        assert scenes.relative_difference(found, expected) < TOLERANCE
        wrong = of_the_value_table(scene, rows_of([0, 0, 0, 0, 0]), batch=5)
        for picture, other in zip(wrong[1:3], expected[1:3], strict=True):
            assert scenes.relative_difference(picture, other) > VISIBLE
