"""Replace-patches of other packs: called once, kept whole, our effect beside them."""

from __future__ import annotations

import composition
import foreign_patches
import pytest
import reference
import scenes
import torch


@pytest.mark.smoke
@pytest.mark.parametrize("place", composition.PLACES)
@pytest.mark.parametrize(
    "kind, keys",
    [
        (foreign_patches.Patch, "(block, n, i)"),
        (foreign_patches.Patch, "(block, n)"),
        (foreign_patches.MovablePatch, "(block, n, i)"),
    ],
)
@composition.FAMILIES_AND_CASTS
def test_a_foreign_patch_is_the_base_and_is_called_once(scene, cast, kind, keys, place):
    subject, patch = scene.subject(), kind()
    found = composition.sample_bound(
        scene,
        subject,
        lambda model: foreign_patches.put_on(model, patch, foreign_patches.KEYS[keys](scene)),
        place,
        cast=cast,
    )
    assert patch.sites == foreign_patches.sites_of(scene) * scene.steps
    expected = foreign_patches.expect(scene, subject, foreign_patches.Patch(), cast=cast)
    assert scenes.relative_difference(found, expected) < composition.TOLERANCE
    without_foreign = foreign_patches.expect(scene, subject, foreign_patches.attention, cast=cast)
    assert scenes.relative_difference(without_foreign, found) > composition.VISIBLE


@pytest.mark.parametrize("place", composition.PLACES)
def test_a_patch_on_the_site_wins_over_one_on_the_block(sdxl, place):
    """As in the host: the loser is not called."""
    subject, on_block, on_site = (
        sdxl.subject(),
        foreign_patches.Patch(0.7),
        foreign_patches.Patch(1.2),
    )
    first = [site for site in foreign_patches.sites_of(sdxl) if site[2] == 0]
    second = [site for site in foreign_patches.sites_of(sdxl) if site[2] == 1]

    def alter(model):
        return foreign_patches.put_on(
            foreign_patches.put_on(model, on_block, foreign_patches.blocks_of(sdxl)), on_site, first
        )

    found = composition.sample_bound(sdxl, subject, alter, place)
    assert on_site.sites == first * sdxl.steps
    assert on_block.sites == second * sdxl.steps

    def base(query, key, value, options):
        scale = 1.2 if options["block_index"] == 0 else 0.7
        return scale * foreign_patches.attention(query, key, value, options)

    assert (
        scenes.relative_difference(found, foreign_patches.expect(sdxl, subject, base))
        < composition.TOLERANCE
    )


def test_two_foreign_patches_around_apply_both_count(sdxl):
    subject, before, behind = sdxl.subject(), foreign_patches.Patch(0.7), foreign_patches.Patch(1.2)
    ours = [site for site in foreign_patches.sites_of(sdxl) if site[0] == "input"]
    theirs = [site for site in foreign_patches.sites_of(sdxl) if site[0] == "output"]
    model, clip = sdxl.apply(
        sdxl.bind(subject), model=foreign_patches.put_on(sdxl.model, before, ours)
    )
    model = foreign_patches.put_on(model, behind, theirs)
    found = sdxl.sample(
        model, sdxl.encode(clip, composition.PROMPT), sdxl.encode(clip, composition.NEGATIVE)
    )
    assert before.sites == ours * sdxl.steps
    assert behind.sites == theirs * sdxl.steps

    def base(query, key, value, options):
        scale = {"input": 0.7, "middle": 1.0, "output": 1.2}[options["block"][0]]
        return scale * foreign_patches.attention(query, key, value, options)

    assert (
        scenes.relative_difference(found, foreign_patches.expect(sdxl, subject, base))
        < composition.TOLERANCE
    )


def test_a_later_patch_on_the_same_key_replaces_the_earlier_one(sdxl):
    """As in the host, and Apply between them changes nothing about it."""
    earlier, later = foreign_patches.Patch(0.7), foreign_patches.Patch(1.2)
    model, clip = sdxl.apply(
        sdxl.bind(),
        model=foreign_patches.put_on(sdxl.model, earlier, foreign_patches.sites_of(sdxl)),
    )
    model = foreign_patches.put_on(model, later, foreign_patches.sites_of(sdxl))
    sdxl.sample(
        model, sdxl.encode(clip, composition.PROMPT), sdxl.encode(clip, composition.NEGATIVE)
    )
    assert earlier.sites == []
    assert later.sites == foreign_patches.sites_of(sdxl) * sdxl.steps


def test_a_foreign_patch_is_told_what_the_host_tells_it(sdxl):
    bound, plain = foreign_patches.Patch(), foreign_patches.Patch()
    composition.sample_bound(
        sdxl,
        sdxl.subject(),
        lambda model: foreign_patches.put_on(model, bound, foreign_patches.blocks_of(sdxl)),
    )
    foreign_patches.sample_host(
        sdxl, lambda model: foreign_patches.put_on(model, plain, foreign_patches.blocks_of(sdxl))
    )
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
    patch = foreign_patches.MovablePatch()
    model, clip = sdxl.apply(
        sdxl.bind(), model=foreign_patches.put_on(sdxl.model, patch, foreign_patches.sites_of(sdxl))
    )
    sdxl.sample(
        model, sdxl.encode(clip, composition.PROMPT), sdxl.encode(clip, composition.NEGATIVE)
    )
    assert model.load_device in patch.devices
    replaced = model.model_options["transformer_options"]["patches_replace"]["attn2"]
    assert set(replaced) == set(foreign_patches.sites_of(sdxl))
    assert all(each is patch for each in replaced.values())


class TestTensorsOfAForeignPatchStayWhole:
    def test_a_result_that_it_keeps(self, sdxl):
        kept = {}

        def cached(query, key, value, options):
            site = (*options["block"], options["block_index"])
            if site not in kept:
                result = foreign_patches.attention(query, key, value, options)
                kept[site] = (result, result.clone())
            return kept[site][0]

        composition.sample_bound(
            sdxl,
            sdxl.subject(),
            lambda m: foreign_patches.put_on(m, cached, foreign_patches.sites_of(sdxl)),
        )
        assert kept.keys() == set(foreign_patches.sites_of(sdxl))
        for result, copy in kept.values():
            assert torch.equal(result, copy)

    def test_a_query_that_it_returns(self, sdxl):
        """Also where two groups of rows follow each other: the second one reads the query again."""
        anna, rex = sdxl.subject(0), sdxl.subject(1)
        model, clip = sdxl.apply(sdxl.bind(anna), sdxl.bind(rex, "<rex>", "dog"))
        model = foreign_patches.put_on(
            model, lambda query, *_: query, foreign_patches.sites_of(sdxl)
        )
        found = sdxl.sample(
            model, sdxl.encode(clip, composition.PROMPT), sdxl.encode(clip, "no <rex>")
        )
        slots = [{composition.POSITION: sdxl.naive(anna)}, {2: sdxl.naive(rex)}]

        def rows(options, _):
            return [slots[kind] for kind in options["cond_or_uncond"]]

        def attend(query, key, value, options):
            delta = reference.attend(query, key, value, options, rows) - foreign_patches.attention(
                query, key, value, options
            )
            return query + delta

        expected = sdxl.sample(
            foreign_patches.put_on(sdxl.model, attend, foreign_patches.sites_of(sdxl)),
            sdxl.encode(sdxl.clip, composition.PLAIN),
            sdxl.encode(sdxl.clip, "no dog"),
        )
        assert scenes.relative_difference(found, expected) < composition.TOLERANCE
