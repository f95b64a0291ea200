"""The maps are right: on a UNet whose attention is known, the very pixels are found."""

from __future__ import annotations

import comfy.samplers
import known_maps
import pack
import pytest
import torch
from known_maps import applied

ANNA_AT = known_maps.pattern((slice(8, 10), slice(4, 6)), (slice(12, 14), slice(4, 8)))
REX_AT = known_maps.pattern((slice(10, 14), slice(8, 10)))
AT_THE_LEFT = known_maps.pattern((slice(2, 4), slice(0, 2)))
ELSEWHERE = known_maps.pattern((slice(0, 2), slice(10, 12)))


class TestKnownMaps:
    @pytest.fixture
    def scene(self):
        return known_maps.make_scene()

    @staticmethod
    def recorded(scene, patterns, *, alter=lambda conditioning: conditioning, **options):
        """The record of one sampling; `patterns` are [pictures, subjects, height, width]."""
        record = options.pop("record", {})
        sampler = {name: options.pop(name) for name in ("sampler", "steps") if name in options}
        model, clip, found = applied(scene, record=record, **options)
        positive, negative = known_maps.conditionings(scene, clip, patterns)
        scene.sample(model, alter(positive), negative, batch=len(patterns), **sampler)
        return found

    @staticmethod
    def assert_shows(record, patterns):
        for each in record.maps:
            known = patterns[each.picture, known_maps.TOKENS.index(each.token)]
            expected = known_maps.on_grid(known, each.grid)
            torch.testing.assert_close(
                each.attention.float(), expected, rtol=0, atol=known_maps.HALF
            )

    @pytest.mark.smoke
    @pytest.mark.parametrize("before", [True, False])
    def test_every_site_shows_the_very_pixels(self, scene, before):
        patterns = torch.stack([ANNA_AT, REX_AT])[None]
        record = self.recorded(scene, patterns, before=before)
        self.assert_shows(record, patterns)
        found = [(each.step, each.site, each.token) for each in record.maps]
        expected = {
            (s, site, t) for s in range(3) for site in scene.sites for t in ("<anna>", "<rex>")
        }
        assert set(found) == expected
        assert len(found) == len(expected)
        assert {each.grid for each in record.maps} == {(16, 12), (8, 6)}
        assert {each.site.text for each in record.maps} == {
            "d1.0", "d3.0", "m0.0", "u0.0", "u1.0", "u2.0", "u3.0",
        }  # fmt: skip

    def test_pictures_of_a_batch_are_not_confused(self, scene):
        patterns = torch.stack(
            [torch.stack(each) for each in ((ANNA_AT, REX_AT), (ELSEWHERE, ANNA_AT))]
        )
        record = self.recorded(scene, patterns)
        assert record.pictures == [0, 1]
        assert record.tokens == ["<rex>", "<anna>"]  # as the prompt says them
        self.assert_shows(record, patterns)

    @pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
    def test_the_wanted_steps_of_any_sampler(self, scene, sampler):
        patterns = torch.stack([ANNA_AT, REX_AT])[None]
        record = self.recorded(
            scene, patterns, sampler=sampler, steps=4, record={"steps": "0, last"}
        )
        assert {each.step for each in record.maps} == {0, 3}
        assert {each.num_steps for each in record.maps} == {4}
        self.assert_shows(record, patterns)
        with_values = {each.step for each in record.maps if each.values is not None}
        assert with_values == {3}
        assert all(each.values is not None for each in record.maps if each.step == 3)

    def test_wanted_sites_and_no_values(self, scene):
        patterns = torch.stack([ANNA_AT, REX_AT])[None]
        record = self.recorded(scene, patterns, record={"sites": "m0,u2", "values": False})
        assert {each.site.text for each in record.maps} == {"m0.0", "u2.0"}
        assert all(each.values is None for each in record.maps)
        self.assert_shows(record, patterns)

    def test_a_binding_is_shown_where_it_acts_only(self, scene):
        patterns = torch.stack([ANNA_AT, REX_AT])[None]
        record = self.recorded(scene, patterns, anna={"sites": "u", "start_percent": 0.5}, steps=4)
        anna = record.select(0, "<anna>")
        assert {each.site.block for each in anna} == {"output"}
        assert {each.step for each in anna} == {2, 3}
        assert {each.step for each in record.select(0, "<rex>")} == {0, 1, 2, 3}
        self.assert_shows(record, patterns)

    def test_an_area_lies_where_it_is_in_the_picture(self, scene):
        patterns = torch.stack([ANNA_AT + ELSEWHERE, REX_AT])[None]

        def lower_right(conditioning):
            return pack.run_host(
                "ConditioningSetArea",
                conditioning=conditioning,
                width=64,
                height=64,
                x=32,
                y=64,
                strength=1.0,
            )

        record = self.recorded(scene, patterns, alter=lower_right)
        self.assert_shows(record, torch.stack([ANNA_AT, REX_AT])[None])  # all in the area

    def test_a_value_is_one_colour_wherever_the_query_is_the_same(self, scene):
        """Each subject in its own half, two pictures: every row and token has its own values."""
        right = torch.zeros(1, 16, 12)
        right[..., 6:] = 1.0
        masks = {"<anna>": 1.0 - right, "<rex>": right}
        patterns = torch.stack(
            [torch.stack(each) for each in ((ANNA_AT, REX_AT), (AT_THE_LEFT, ANNA_AT + REX_AT))]
        )
        record = self.recorded(
            scene,
            patterns,
            anna={"mask": masks["<anna>"]},
            mask=masks["<rex>"],
            record={"steps": "last"},
        )
        for picture in (0, 1):
            for token, mask in masks.items():
                own = patterns[picture, known_maps.TOKENS.index(token)]
                others = patterns[picture].sum(0) - own
                for each in record.values(picture, token):
                    places = (mask[0], own * (1 - others), others)
                    self.assert_one_colour_each(
                        each.values, *(known_maps.on_grid(at, each.grid).bool() for at in places)
                    )

    @staticmethod
    def assert_one_colour_each(values, inside, own, others):
        colours, flat = values.colours.float(), values.flat.float()
        size = float(colours.abs().max())
        outside = colours[~inside]  # there the token's own value stands
        torch.testing.assert_close(outside, flat.expand_as(outside), rtol=0, atol=0.01 * size)
        alike = [inside & own, inside & ~own & ~others]
        means = [colours[same].mean(0) for same in alike]
        for same, mean in zip(alike, means, strict=True):
            assert float((colours[same] - mean).abs().max()) < 0.01 * size
        assert float((means[0] - means[1]).norm()) > 0.1 * size

    def test_values_move_from_the_text_by_strength_and_presence(self, scene):
        """In this UNet no query changes from step to step: the picture only grows and shrinks."""
        patterns = torch.stack([ANNA_AT, REX_AT])[None]
        full, half, early = (
            self.recorded(scene, patterns, record={"steps": "1"}, **settings).values(0, "<rex>")
            for settings in ({}, {"strength": 0.5}, {"schedule": "early"})
        )
        sampling = scene.model.get_model_object("model_sampling")
        sigma = comfy.samplers.calculate_sigmas(sampling, "normal", 3)[1]
        percent = 1.0 - float(sampling.timestep(sigma)) / 999
        presence = 1.0 - percent * percent * (3 - 2 * percent)
        assert 0.2 < presence < 0.8
        for found, share in ((half, 0.5), (early, presence)):
            for each, whole in zip(found, full, strict=True):
                for name in ("colours", "flat"):
                    expected = share * getattr(whole.values, name).float()
                    size = float(whole.values.colours.abs().max())
                    torch.testing.assert_close(
                        getattr(each.values, name).float(), expected, rtol=0, atol=0.005 * size
                    )

    def test_each_picture_with_a_subject_of_its_own_is_shown(self, scene):
        patterns = torch.stack(
            [torch.stack(each) for each in ((ANNA_AT, REX_AT), (ELSEWHERE, ANNA_AT))]
        )
        row = pack.run(
            "SubjectPerPicture",
            subjects={"subject_0": scene.subject(2), "subject_1": scene.subject(3)},
        )
        record = self.recorded(scene, patterns, anna={"subject": row})
        assert len(record.maps) == 2 * 2 * 3 * len(scene.sites)
        self.assert_shows(record, patterns)
        first, second = (record.values(picture, "<anna>")[0].values for picture in (0, 1))
        assert not torch.equal(first.flat, second.flat)

    def test_separation_gives_each_pixel_to_the_subject_that_is_there(self, scene):
        """Two pictures, the sides exchanged: every row has owners of its own."""
        left, right = (known_maps.pattern((slice(6, 10), slice(x, x + 2))) for x in (2, 8))
        patterns = torch.stack([torch.stack(each) for each in ((left, right), (right, left))])
        owners = []

        def look(query, key, value, options):
            owners.append(
                {
                    each.subject.binding.token: each.share
                    for group in options["nested_attention"].plan.groups
                    for each in group.occurrences
                }
            )
            return query

        model = scene.model.clone()
        model.set_model_attn2_replace(look, "middle", 0)
        model, clip, _ = applied(scene, model=model, separation=1.0)
        scene.sample(model, *known_maps.conditionings(scene, clip, patterns), batch=2)
        assert owners[0] == {"<anna>": None, "<rex>": None}
        for found in owners[1:]:
            anna, rex = found["<anna>"], found["<rex>"]
            torch.testing.assert_close(anna + rex, torch.ones(2, 1, 16, 12))
            assert float(anna[0, 0, :, :5].min()) > 0.99
            assert float(rex[0, 0, :, 7:].min()) > 0.99
            assert float(rex[1, 0, :, :5].min()) > 0.99
            assert float(anna[1, 0, :, 7:].min()) > 0.99
