"""Replace-patches of other packs: called once, kept whole, our effect beside them."""

from __future__ import annotations

import beside
import foreign
import pytest
import reference
import scenes
import torch


@pytest.mark.smoke
@pytest.mark.parametrize("place", beside.PLACES)
@pytest.mark.parametrize(
    "kind, keys",
    [
        (foreign.Patch, "(block, n, i)"),
        (foreign.Patch, "(block, n)"),
        (foreign.MovablePatch, "(block, n, i)"),
    ],
)
@beside.FAMILIES_AND_CASTS
def test_a_foreign_patch_is_the_base_and_is_called_once(scene, cast, kind, keys, place):
    subject, patch = scene.subject(), kind()
    found = beside.sample_bound(
        scene,
        subject,
        lambda model: foreign.put_on(model, patch, foreign.KEYS[keys](scene)),
        place,
        cast=cast,
    )
    assert patch.sites == foreign.sites_of(scene) * scene.steps
    expected = foreign.expect(scene, subject, foreign.Patch(), cast=cast)
    assert scenes.relative_difference(found, expected) < beside.TOLERANCE
    without_foreign = foreign.expect(scene, subject, foreign.attention, cast=cast)
    assert scenes.relative_difference(without_foreign, found) > beside.VISIBLE


@pytest.mark.parametrize("place", beside.PLACES)
def test_a_patch_on_the_site_wins_over_one_on_the_block(sdxl, place):
    """As in the host: the loser is not called."""
    subject, on_block, on_site = sdxl.subject(), foreign.Patch(0.7), foreign.Patch(1.2)
    first = [site for site in foreign.sites_of(sdxl) if site[2] == 0]
    second = [site for site in foreign.sites_of(sdxl) if site[2] == 1]

    def alter(model):
        return foreign.put_on(
            foreign.put_on(model, on_block, foreign.blocks_of(sdxl)), on_site, first
        )

    found = beside.sample_bound(sdxl, subject, alter, place)
    assert on_site.sites == first * sdxl.steps
    assert on_block.sites == second * sdxl.steps

    def base(query, key, value, options):
        scale = 1.2 if options["block_index"] == 0 else 0.7
        return scale * foreign.attention(query, key, value, options)

    assert scenes.relative_difference(found, foreign.expect(sdxl, subject, base)) < beside.TOLERANCE


def test_two_foreign_patches_around_apply_both_count(sdxl):
    subject, before, behind = sdxl.subject(), foreign.Patch(0.7), foreign.Patch(1.2)
    ours = [site for site in foreign.sites_of(sdxl) if site[0] == "input"]
    theirs = [site for site in foreign.sites_of(sdxl) if site[0] == "output"]
    model, clip = sdxl.apply(sdxl.bind(subject), model=foreign.put_on(sdxl.model, before, ours))
    model = foreign.put_on(model, behind, theirs)
    found = sdxl.sample(model, sdxl.encode(clip, beside.PROMPT), sdxl.encode(clip, beside.NEGATIVE))
    assert before.sites == ours * sdxl.steps
    assert behind.sites == theirs * sdxl.steps

    def base(query, key, value, options):
        scale = {"input": 0.7, "middle": 1.0, "output": 1.2}[options["block"][0]]
        return scale * foreign.attention(query, key, value, options)

    assert scenes.relative_difference(found, foreign.expect(sdxl, subject, base)) < beside.TOLERANCE


def test_a_later_patch_on_the_same_key_replaces_the_earlier_one(sdxl):
    """As in the host, and Apply between them changes nothing about it."""
    earlier, later = foreign.Patch(0.7), foreign.Patch(1.2)
    model, clip = sdxl.apply(
        sdxl.bind(), model=foreign.put_on(sdxl.model, earlier, foreign.sites_of(sdxl))
    )
    model = foreign.put_on(model, later, foreign.sites_of(sdxl))
    sdxl.sample(model, sdxl.encode(clip, beside.PROMPT), sdxl.encode(clip, beside.NEGATIVE))
    assert earlier.sites == []
    assert later.sites == foreign.sites_of(sdxl) * sdxl.steps


def test_a_foreign_patch_is_told_what_the_host_tells_it(sdxl):
    bound, plain = foreign.Patch(), foreign.Patch()
    beside.sample_bound(
        sdxl, sdxl.subject(), lambda model: foreign.put_on(model, bound, foreign.blocks_of(sdxl))
    )
    foreign.sample_host(sdxl, lambda model: foreign.put_on(model, plain, foreign.blocks_of(sdxl)))
    for ours, hosts in zip(bound.options, plain.options, strict=True):
        assert ours.keys() - hosts.keys() == {"nested_attention"}
        assert hosts.keys() <= ours.keys()
        for name in (
            "block",
            "block_index",
            "n_heads",
            "dim_head",
            "cond_or_uncond",
            "original_shape",
        ):
            assert ours[name] == hosts[name], name


def test_patch_objects_are_moved_by_the_host_alone(sdxl):
    """None of our objects stands where another pack would ask it for `.add`."""
    patch = foreign.MovablePatch()
    model, clip = sdxl.apply(
        sdxl.bind(), model=foreign.put_on(sdxl.model, patch, foreign.sites_of(sdxl))
    )
    sdxl.sample(model, sdxl.encode(clip, beside.PROMPT), sdxl.encode(clip, beside.NEGATIVE))
    assert model.load_device in patch.devices
    replaced = model.model_options["transformer_options"]["patches_replace"]["attn2"]
    assert set(replaced) == set(foreign.sites_of(sdxl))
    assert all(each is patch for each in replaced.values())


class TestTensorsOfAForeignPatchStayWhole:
    def test_a_result_that_it_keeps(self, sdxl):
        kept = {}

        def cached(query, key, value, options):
            site = (*options["block"], options["block_index"])
            if site not in kept:
                result = foreign.attention(query, key, value, options)
                kept[site] = (result, result.clone())
            return kept[site][0]

        beside.sample_bound(
            sdxl, sdxl.subject(), lambda m: foreign.put_on(m, cached, foreign.sites_of(sdxl))
        )
        assert kept.keys() == set(foreign.sites_of(sdxl))
        for result, copy in kept.values():
            assert torch.equal(result, copy)

    def test_a_query_that_it_returns(self, sdxl):
        """Also where two groups of rows follow each other: the second one reads the query again."""
        anna, rex = sdxl.subject(0), sdxl.subject(1)
        model, clip = sdxl.apply(sdxl.bind(anna), sdxl.bind(rex, "<rex>", "dog"))
        model = foreign.put_on(model, lambda query, *_: query, foreign.sites_of(sdxl))
        found = sdxl.sample(model, sdxl.encode(clip, beside.PROMPT), sdxl.encode(clip, "no <rex>"))
        slots = [{beside.POSITION: sdxl.naive(anna)}, {2: sdxl.naive(rex)}]

        def rows(options, _):
            return [slots[kind] for kind in options["cond_or_uncond"]]

        def attend(query, key, value, options):
            delta = reference.attend(query, key, value, options, rows) - foreign.attention(
                query, key, value, options
            )
            return query + delta

        expected = sdxl.sample(
            foreign.put_on(sdxl.model, attend, foreign.sites_of(sdxl)),
            sdxl.encode(sdxl.clip, beside.PLAIN),
            sdxl.encode(sdxl.clip, "no dog"),
        )
        assert scenes.relative_difference(found, expected) < beside.TOLERANCE
