"""Recording where subjects act: the picture is the same with and without anybody looking."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import comfy.utils
import known_maps
import numpy as np
import pack
import pytest
import reference
import scenes
import torch
from PIL import Image

recording = pack.module("nodes.bridge.model.recording")
Sampling = pack.module("nodes.bridge.model.sampling").Sampling
MapRecord, RecordPlan, MapError, draw_sheet, live_view = (
    getattr(pack.module("nested_core.maps"), name)
    for name in ("MapRecord", "RecordPlan", "MapError", "draw_sheet", "live_view")
)

PROMPT, PLAIN = "<rex> and <anna>, <rex> again", "dog and woman, dog again"
TOLERANCE = 1e-4  # float32 against float64 over a few sampler steps


def show(record, samples=None, **inputs):
    samples = torch.zeros(1, 4, 2, 2) if samples is None else samples
    return pack.run("ShowMaps", record=record, samples={"samples": samples}, **inputs)


def sampled(scene, model, clip, prompt=PROMPT, **options):
    return scene.sample(model, scene.encode(clip, prompt), scene.encode(clip, "bad"), **options)


class TestLookingOn:
    @pytest.mark.smoke
    @pytest.mark.parametrize("separation", [0.0, 1.0])
    def test_leaves_the_picture_exactly_as_it_is(self, scene, separation):
        model, clip, _ = known_maps.applied(scene, separation=separation)
        expected = sampled(scene, model, clip, batch=2)
        for before in (True, False):
            inputs = {"preview": True}
            model, clip, record = known_maps.applied(
                scene, record=inputs, before=before, separation=separation
            )
            assert torch.equal(sampled(scene, model, clip, batch=2), expected)
            assert len(record.maps) == 2 * 2 * 3 * len(scene.sites)

    def test_equals_the_attention_of_the_host(self, sd15, monkeypatch):
        """Summed over the places of a token, mean over heads: from the reference's own logits."""
        model, clip, record = known_maps.applied(sd15, strength=0.0, token_weight=2.0, record={})
        sampled(sd15, model, clip, steps=1)
        expected, make = {}, reference._value_tables

        def keep(site, q, k, v, slots, options, row):
            tables, logits = make(site, q, k, v, slots, options, row)
            if slots:
                plain = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).mean(0)
                grid = options["activations_shape"][-2:]
                expected.setdefault((site, "<anna>"), plain[:, 3].view(*grid))
                expected.setdefault((site, "<rex>"), plain[:, [1, 5]].sum(-1).view(*grid))
            return tables, logits

        monkeypatch.setattr(reference, "_value_tables", keep)
        naive = sd15.naive(sd15.subject(), strength=0.0, token_weight=2.0)
        conditionings = [sd15.encode(sd15.clip, text) for text in (PLAIN, "bad")]
        slots = reference.positive_only(dict.fromkeys((1, 3, 5), naive))
        sd15.sample_naively(slots, *conditionings, steps=1)
        assert len(record.maps) == len(expected) == 2 * len(sd15.sites)
        for each in record.maps:
            known = expected[(tuple(each.site), each.token)].float()
            torch.testing.assert_close(
                each.attention.float(), known, rtol=known_maps.HALF, atol=1e-6
            )

    def test_everything_recorded_is_on_the_cpu_and_small(self, sd15):
        model, clip, record = known_maps.applied(sd15, record={})
        sampled(sd15, model, clip)
        tensors = [each.attention for each in record.maps]
        values = [each.values for each in record.maps if each.values is not None]
        tensors += [tensor for each in values for tensor in (each.colours, each.flat)]
        assert len(tensors) > len(record.maps)
        for tensor in tensors:
            assert tensor.device.type == "cpu"
            assert tensor.dtype == torch.float16
            # No view that would keep the maps of all sites alive.
            assert tensor.untyped_storage().nbytes() == 2 * tensor.numel()

    def test_a_second_sampling_clears_the_record(self, sd15):
        model, clip, record = known_maps.applied(sd15, record={})
        sampled(sd15, model, clip, batch=2)
        assert (record.num_steps, record.pictures) == (3, [0, 1])
        sampled(sd15, model, clip, "<anna>", steps=2)
        assert (record.num_steps, record.pictures, record.tokens) == (2, [0], ["<anna>"])
        assert {each.step for each in record.maps} == {0, 1}
        sampled(sd15, model, clip, PLAIN)
        assert record.maps == []

    def test_two_records_see_each_what_they_want(self, sd15):
        model, clip, first = known_maps.applied(sd15, record={"steps": "0", "sites": "u"})
        model, second = pack.run("RecordMaps", model=model, steps="last", sites="!u", values=False)
        sampled(sd15, model, clip)
        assert {(each.step, each.site.block) for each in first.maps} == {(0, "output")}
        assert {each.step for each in second.maps} == {2}
        assert {each.site.block for each in second.maps} == {"input", "middle"}
        assert all(each.values is not None for each in first.maps)
        assert all(each.values is None for each in second.maps)

    def test_values_that_one_record_wants_are_in_no_other(self, sd15):
        model, clip, first = known_maps.applied(sd15, record={"steps": "0"})
        model, second = pack.run("RecordMaps", model=model)
        model, third = pack.run("RecordMaps", model=model, values=False)
        sampled(sd15, model, clip)
        assert all(each.values is not None for each in first.maps)
        assert {each.step for each in second.maps if each.values is not None} == {2}
        assert len(third.maps) == len(second.maps)
        assert all(each.values is None for each in third.maps)

    def test_values_are_of_the_first_place_of_a_token(self, sd15):
        """The text encoder reads forward, and nothing has moved before the first site."""
        found = []
        for prompt in ("<rex> and <anna>", PROMPT):
            plan = {"steps": "0", "sites": "d1.0"}
            model, clip, record = known_maps.applied(sd15, record=plan)
            sampled(sd15, model, clip, prompt)
            found.append(record.values(0, "<rex>")[0].values)
        for name in ("colours", "flat"):
            once, twice = (getattr(each, name).float() for each in found)
            torch.testing.assert_close(twice, once, rtol=known_maps.HALF, atol=1e-3)

    def test_a_part_of_the_schedule_counts_its_own_steps(self, sd15):
        model, clip, record = known_maps.applied(sd15, record={"steps": "0, last"})
        sampled(sd15, model, clip, steps=4, denoise=0.5)
        assert (record.num_steps, {each.step for each in record.maps}) == (4, {0, 3})


class TestWhoLooksOn:
    """Nobody looks on, and nothing is computed to be looked at, where no record wants it."""

    @staticmethod
    def recorder(sites=frozenset(), preview=False, **plan):
        record = recording.SampledRecord(RecordPlan.from_text(**plan))
        return recording.Recorder(record, sites, preview)

    @pytest.mark.parametrize(
        "noise_level, step",
        [
            (9, 0),
            (8, 0),
            (7.9999, 0),
            (4.1, 0),
            (4, 1),
            (3.9999, 1),
            (2.1, 1),
            (2, 2),
            (1.1, 2),
            (1, 2),
        ],
    )
    def test_a_call_is_of_the_step_in_which_its_noise_is(self, noise_level, step):
        for wanted in range(3):
            sampling = Sampling((8.0, 4.0, 2.0, 1.0), False, [self.recorder(steps=str(wanted))])
            assert sampling.watch(noise_level, ()).wants_maps == (wanted == step)

    def test_with_separation_every_call_is_looked_at(self):
        sampling = Sampling((8.0, 4.0, 2.0, 1.0), True, [self.recorder(steps="1")])
        assert all(sampling.watch(level, ()).wants_maps for level in (8, 4, 2))
        assert Sampling((8.0, 4.0), True, ()).watch(None, ()).wants_maps
        assert not Sampling((8.0, 4.0), False, ()).watch(None, ()).wants_maps

    def test_rows_of_unknown_places_are_not_looked_at(self):
        sampling = Sampling((8.0, 4.0), True, [self.recorder()])
        assert sampling.watch(8.0, ()).wants_maps
        assert not sampling.watch(8.0, None).wants_maps

    def test_values_are_made_where_a_record_wants_them(self, sd15):
        first, second, third = (frozenset([site]) for site in sd15.sites[:3])
        recorders = [
            self.recorder(first),
            self.recorder(second, steps="0-2"),
            self.recorder(third, values=False),
        ]
        recordings = [each.start(5) for each in recorders]
        found = [recording.any_values(recordings, step, 5) for step in range(5)]
        assert found == [frozenset(), frozenset(), second, frozenset(), first]


class TestPreview:
    @pytest.fixture
    def shown(self, monkeypatch):
        calls = []
        monkeypatch.setattr(
            comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_: calls.append(args[:3])
        )
        return calls

    def test_shows_each_recorded_step_behind_the_samplers_own_callback(self, sd15, shown):
        order = []
        record = {"preview": True, "steps": "0, last"}
        model, clip, _ = known_maps.applied(sd15, record=record)
        shown.clear()
        sampled(sd15, model, clip, callback=lambda step, *_: order.append((step, len(shown))))
        assert order == [(0, 0), (1, 1), (2, 1)]
        assert [(value, total) for value, total, _ in shown] == [(1, 3), (3, 3)]
        for _, _, (kind, image, side) in shown:
            assert kind == "JPEG"
            assert image.mode == "RGB"
            assert max(image.size) == side

    def test_shows_the_first_picture_as_it_is_at_the_step(self, sd15, shown):
        model, clip, record = known_maps.applied(sd15, record={"preview": True})
        shown.clear()
        sampled(sd15, model, clip, batch=2)
        views = [live_view(record, picture, step=n) for picture in (0, 1) for n in (0, 1, 2)]
        assert len({view.tobytes() for view in views}) == 6
        for view, (_, _, (_, image, _)) in zip(views[:3], shown, strict=True):
            small = image.resize((12, 16), Image.Resampling.NEAREST)
            assert np.array_equal(np.asarray(small), (view * 255).round())

    def test_of_two_records_each_may_be_shown(self, sd15, shown):
        model, clip, _ = known_maps.applied(sd15, record={"preview": True, "steps": "0"})
        model, _ = pack.run("RecordMaps", model=model, preview=True, steps="last")
        shown.clear()
        sampled(sd15, model, clip)
        assert [value for value, _, _ in shown] == [1, 3]

    def test_without_it_nothing_is_shown_and_the_callback_still_runs(self, sd15, shown):
        order = []
        model, clip, _ = known_maps.applied(sd15, record={})
        shown.clear()
        sampled(sd15, model, clip, callback=lambda step, *_: order.append(step))
        assert (order, shown) == ([0, 1, 2], [])

    def test_no_callback_is_needed(self, sd15, shown):
        model, clip, _ = known_maps.applied(sd15, record={"preview": True})
        shown.clear()
        sampled(sd15, model, clip, callback=None)
        assert len(shown) == 3


class TestShowMaps:
    @pytest.mark.parametrize("sheet", list(pack.module("nested_core.maps").SHEETS))
    def test_draws_every_sheet(self, sd15, sheet):
        model, clip, record = known_maps.applied(sd15, record={})
        latents = sampled(sd15, model, clip, batch=2)
        below = torch.rand(2, 128, 96, 3, generator=torch.Generator().manual_seed(1))
        drawn = [
            show(record, latents, show=sheet, picture=1),
            show(record, latents, show=sheet, picture=0, image=below),
        ]
        for image in drawn:
            assert image.ndim == 4
            assert image.shape[::3] == (1, 3)
            assert image.dtype == torch.float32
            assert 0.0 <= float(image.min()) < float(image.max()) <= 1.0
        again = show(record, latents, show=sheet, picture=1)
        assert np.array_equal(again, drawn[0])

    def test_the_chosen_picture_lies_under_the_maps_whatever_its_channels(self, sd15):
        model, clip, record = known_maps.applied(sd15, record={"values": False})
        latents = sampled(sd15, model, clip, steps=1, batch=3)
        images = torch.rand(3, 16, 12, 4, generator=torch.Generator().manual_seed(1))
        third = images[2, ..., :3]
        grey = images[..., :1]
        for image, below in (
            (images[..., :3], third),
            (images, third),
            (images[:2], images[0, ..., :3]),  # fewer images than pictures: the first
            (grey, grey[2].expand(-1, -1, 3)),
        ):
            expected = draw_sheet(record, "overview", 2, below.numpy())
            assert np.array_equal(show(record, latents, picture=2, image=image)[0], expected)

    def test_nothing_sampled(self, sd15):
        _, record = pack.run("RecordMaps", model=sd15.model)
        with pytest.raises(MapError, match=r"^Record Maps: nothing was sampled with this node's"):
            show(record)

    def test_nothing_bound(self, sd15):
        model, clip, record = known_maps.applied(sd15, record={"steps": "1"})
        latents = sampled(sd15, model, clip, PLAIN)
        with pytest.raises(
            MapError,
            match=r"^Record Maps: a sampling of 3 steps \(0 to 2\) left no maps; .*'1'\. Check",
        ):
            show(record, latents)

    def test_without_apply_nothing_is_recorded(self, sd15):
        model, record = pack.run("RecordMaps", model=sd15.model)
        sampled(sd15, model, sd15.clip, PLAIN)
        with pytest.raises(MapError, match="nothing was sampled"):
            show(record)

    @pytest.mark.parametrize(
        "inputs, message",
        [
            ({"picture": 1}, "no maps of picture 1 were recorded, only of 0."),
            ({"show": "values"}, "the record holds no values of this picture"),
        ],
    )
    def test_what_was_not_recorded(self, sd15, inputs, message):
        model, clip, record = known_maps.applied(sd15, record={"values": False})
        latents = sampled(sd15, model, clip)
        with pytest.raises(MapError, match=re.escape(message)):
            show(record, latents, **inputs)


class TestWhoseRecordItIs:
    """A record belongs to one sampling, and Show Maps draws it over no other picture."""

    def test_a_picture_of_the_model_before_is_refused(self, sd15):
        bound, clip, _ = known_maps.applied(sd15)
        model, record = pack.run("RecordMaps", model=bound)
        recorded = sampled(sd15, model, clip)
        other = sampled(sd15, bound, clip, prompt="<anna>")
        show(record, recorded)
        with pytest.raises(MapError, match="give the sampler the MODEL of Record Maps"):
            show(record, other)

    def test_each_of_two_samplers_has_its_own(self, sd15):
        model, clip, record = known_maps.applied(sd15, record={})
        first = sampled(sd15, model, clip, prompt="<anna>")
        second = sampled(sd15, model, clip, prompt="<rex>")
        assert record.of({"samples": first}).tokens == ["<anna>"]
        assert record.of({"samples": second}).tokens == ["<rex>"]

    def test_a_sampling_that_fails_leaves_the_one_before(self, sd15):
        model, clip, record = known_maps.applied(sd15, record={})
        first = sampled(sd15, model, clip, prompt="<anna>")
        failing = model.clone()
        failing.set_model_sampler_post_cfg_function(lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sampled(sd15, failing, clip, prompt="<rex>")
        assert record.of({"samples": first}).tokens == ["<anna>"]

    def test_a_part_of_the_batch_and_another_precision_are_the_same_pictures(self, sd15):
        model, clip, record = known_maps.applied(sd15, record={})
        latents = sampled(sd15, model, clip, batch=3)
        for part in (latents[1:2], latents[[2, 0]], latents.half(), latents.double()):
            show(record, part)
        with pytest.raises(MapError, match="belong to another picture"):
            show(record, latents + 1e-3)

    def test_what_the_last_step_took_for_finished_is_the_same_picture(self, sd15):
        model, clip, record = known_maps.applied(sd15, record={})
        seen = []
        sampled(sd15, model, clip, last_step=2, callback=lambda *each: seen.append(each[1]))
        show(record, model.model.process_latent_out(seen[-1]))


def _smooth_step(x):
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


SHAPES = {
    "constant": lambda x: 1.0,
    "early": lambda x: 1 - _smooth_step(x),
    "late": _smooth_step,
    "ease": lambda x: _smooth_step(4 * x) * _smooth_step(4 * (1 - x)),
}


@pytest.mark.parametrize("schedule", ["early", "late", "ease"])
@pytest.mark.parametrize("part", [(0.0, 1.0), (0.2, 0.75)])
def test_a_schedule_equals_the_value_table_of_its_presence(scene, schedule, part):
    """A presence is a mask that is so much everywhere; the percent is ComfyUI's linear timestep."""
    start, end = part
    settings = {"strength": 1.2, "token_weight": 2.0}
    subject = scene.subject()
    binding = scene.bind(
        subject, schedule=schedule, start_percent=start, end_percent=end, **settings
    )
    naive = scene.naive(subject, **settings)
    model, clip = scene.apply(binding)
    found = sampled(scene, model, clip, "<anna>", steps=9)

    levels = scene.model.get_model_object("model_sampling").log_sigmas.numpy()
    presences = []

    def row_slots(options, _):
        sigma = float(options["sigmas"][0])
        percent = 1 - np.interp(math.log(sigma), levels, np.arange(len(levels))) / 999
        inside = start <= percent <= end
        presence = SHAPES[schedule]((percent - start) / (end - start)) if inside else 0.0
        presences.append(presence)
        present = replace(naive, mask=torch.full((1, 1, 1), presence))
        return [{1: present} if kind == 0 else {} for kind in options["cond_or_uncond"]]

    conditionings = [scene.encode(scene.clip, text) for text in ("woman", "bad")]
    expected = scene.sample_naively(row_slots, *conditionings, steps=9)
    assert len({round(each, 3) for each in presences}) >= 3
    assert scenes.relative_difference(found, expected) < TOLERANCE
    constant, clip = scene.apply(
        scene.bind(subject, start_percent=start, end_percent=end, **settings)
    )
    other = sampled(scene, constant, clip, "<anna>", steps=9)
    assert scenes.relative_difference(other, expected) > 1e-3
