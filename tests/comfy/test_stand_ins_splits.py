"""Packs that split the batch or the picture in front of the UNet: whose rows, and which part of it."""

from __future__ import annotations

import functools

import composition
import foreign_patches
import pack
import pytest
import scenes
import torch
from reference_separation import NaiveSeparation
from stand_ins import splits, unet_forwards
from two_subjects import warnings_of
from value_table import Cropped, ValueTable

# Different in every part of the picture, and along both sides.
MASK = torch.rand(1, 32, 24, generator=torch.Generator().manual_seed(3))
MASKS = torch.rand(3, 32, 24, generator=torch.Generator().manual_seed(4))
MASKS_SWAPPED = MASKS.flip(0)


def _rows_place(split, batch):
    """Where the table's rows are, as the stand-in says: picture, rows and columns of cells."""

    def place(row, _):
        number, down, across = split.now[row]
        return number % batch, down, across

    return place


def _row_key(batch, split):
    """For the naive owners: whose prompt, which tile, and the picture last."""

    def key(slots, options, row):
        number, down, across = split.now[row]
        kind = options["cond_or_uncond"][number // batch]
        return kind, repr((down, across)), number % batch

    return key


def _inside(model, split):
    return split.on(model)


def expected(family, cast, split, mask=None, batch=1, install=unet_forwards.in_front):
    """The value table in the same split, every row with its picture's masks, cropped to its place."""
    scene, cast = scenes.shared_scene(family), composition.BY_NAME[cast]
    texts = [scene.encode(scene.clip, each) for each in (cast.plain, composition.NEGATIVE)]
    settings = {} if mask is None else {"mask": mask}
    slots = composition.naive_slots(scene, scene.subject(), cast, **settings)
    tables = None
    if cast.separation:
        tables = NaiveSeparation(cast.separation, _row_key(batch, split))
    table = ValueTable(
        scene, [(texts[0][0][0], slots)], tables, _rows_place(split, batch), Cropped(scenes.SIZE)
    )
    # The wrapper that watches for the table stands within the split.
    model = table.on_patches(install(scene.model, split))
    return scene.sample(model, *texts, batch=batch)


def _bound(family, cast, split, mask=None, batch=1, place="behind", install=unet_forwards.in_front):
    scene = scenes.shared_scene(family)
    binding = {} if mask is None else {"mask": mask}
    return composition.sample_bound(
        scene,
        scene.subject(),
        lambda model: install(model, split),
        place,
        cast=composition.BY_NAME[cast],
        binding=binding,
        batch=batch,
    )


@functools.cache
def _whole(family, cast, mask=None, batch=1):
    """Without a split."""
    scene = scenes.shared_scene(family)
    binding = {} if mask is None else {"mask": mask}
    return composition.sample_bound(
        scene, scene.subject(), cast=composition.BY_NAME[cast], binding=binding, batch=batch
    )


class TestRows:
    @pytest.mark.parametrize("parts", splits.PARTS)
    @pytest.mark.parametrize("kind", [splits.Rows, splits.RowsOfAll])
    @pytest.mark.parametrize("cast", composition.BY_NAME)
    def test_each_keeps_its_prompt_picture_and_mask(self, cast, kind, parts, caplog):
        whole = _whole("small", cast, MASKS, batch=3)
        for place in composition.PLACES:
            found = _bound("small", cast, kind(splits.PARTS[parts]), MASKS, 3, place)
            assert scenes.relative_difference(found, whole) < 1e-5
        swapped = _whole("small", cast, MASKS_SWAPPED, batch=3)
        assert scenes.relative_difference(swapped, whole) > composition.VISIBLE
        assert not warnings_of(caplog)

    @pytest.mark.parametrize("parts", ["one by one", "reversed"])
    def test_each_keeps_its_subject(self, parts):
        """One subject for each picture."""
        scene = scenes.shared_scene("sdxl")
        several = pack.run(
            "SubjectPerPicture", subjects={f"subject_{n}": scene.subject(n) for n in range(3)}
        )
        sampled = []
        for alter in (
            composition.unaltered,
            lambda model: unet_forwards.in_front(model, splits.Rows(splits.PARTS[parts])),
        ):
            sampled.append(composition.sample_bound(scene, several, alter, batch=3))
        assert scenes.relative_difference(*sampled) < 1e-5

    def test_a_text_that_was_exchanged_keeps_nobody(self, caplog):
        """Rows whose text was never sent belong to no prompt, however many they are."""

        def exchange(apply_model, arguments):
            conditions = dict(arguments["c"])
            conditions["c_crossattn"] = conditions["c_crossattn"].flip(1).repeat(2, 1, 1)
            conditions["y"] = conditions["y"].repeat(2, 1)
            x, t = arguments["input"].repeat(2, 1, 1, 1), arguments["timestep"].repeat(2)
            return apply_model(x, t, **conditions)[: len(arguments["input"])]

        found = _bound("sdxl", "alone", exchange)
        alter = functools.partial(unet_forwards.in_front, function=exchange)
        assert torch.equal(found, foreign_patches.sample_host(scenes.shared_scene("sdxl"), alter))
        (warning,) = warnings_of(caplog)
        assert "4 rows" in warning


TILES = {
    "same size": lambda **inputs: splits.Tiles(splits.SAME_SIZE, **inputs),
    "several sizes": lambda **inputs: splits.Tiles(splits.SEVERAL_SIZES, **inputs),
    "in one batch": lambda: splits.TilesInOneBatch(splits.SAME_SIZE),
    "in one batch, by row": lambda: splits.TilesInOneBatch(splits.SAME_SIZE, by_row=True),
    "past the model": lambda: unet_forwards.CallsTheUNet(splits.SEVERAL_SIZES),
}


class TestTiles:
    @pytest.mark.parametrize("name", TILES)
    @pytest.mark.parametrize("family, cast, batch", [("sdxl", "alone", 1), ("sd15", "apart", 2)])
    def test_each_has_its_part_of_the_masks(self, family, cast, batch, name, caplog):
        masks = MASKS[:batch]
        right = expected(family, cast, TILES[name](), masks, batch)
        for place in composition.PLACES:
            found = _bound(family, cast, TILES[name](), masks, batch, place)
            assert scenes.relative_difference(found, right) < composition.TOLERANCE, place
        squeezed = _bound(family, cast, TILES[name](), batch=batch)
        assert scenes.relative_difference(squeezed, right) > composition.VISIBLE
        assert not warnings_of(caplog)

    def test_subjects_kept_apart_without_masks(self, caplog):
        """Each tile has evidence of its own, or the one would hear of the other's places."""
        right = expected("sd15", "apart", TILES["same size"]())
        found = _bound("sd15", "apart", TILES["same size"]())
        composition.assert_apart(found, right, _bound("sd15", "alone", TILES["same size"]()))
        assert not warnings_of(caplog)

    ALTERED = pytest.mark.parametrize(
        "alter, back",
        [
            (lambda x: x.roll(3, -1), lambda x: x.roll(-3, -1)),
            (lambda x: x * 1.001, None),
            (lambda x: x + 0.001 * x.flip(-1), None),
            (lambda x: x.flip(-1), lambda x: x.flip(-1)),
        ],
        ids=["rolled", "scaled", "noisy", "mirrored"],
    )
    BOXES = pytest.mark.parametrize(
        "boxes", [[(0, 0, 16, 12)], splits.SAME_SIZE], ids=["whole", "tiles"]
    )

    @ALTERED
    @BOXES
    def test_where_a_place_cannot_be_known_masks_rest(self, alter, back, boxes, caplog):
        """Also where what arrives has the size of all."""
        found = _bound("sdxl", "alone", splits.Tiles(boxes, alter, back), MASK)
        (warning,) = warnings_of(caplog)
        assert "masks and separation rest" in warning
        right = expected("sdxl", "alone", splits.Tiles(boxes, alter, back))
        assert scenes.relative_difference(found, right) < composition.TOLERANCE

    def test_where_a_place_cannot_be_known_separation_rests(self, caplog):
        split = functools.partial(splits.Tiles, [(0, 0, 16, 12)], lambda x: x.roll(3, -1))
        found = _bound("sd15", "apart", split())
        (warning,) = warnings_of(caplog)
        assert "masks and separation rest" in warning
        scene, cast = scenes.shared_scene("sd15"), composition.MIXED
        subject = scene.subject()
        mixed = composition.sample_bound(
            scene, subject, lambda model: unet_forwards.in_front(model, split()), cast=cast
        )
        assert torch.equal(found, mixed)

    def test_without_masks_and_separation_nothing_is_said(self, caplog):
        split = functools.partial(splits.Tiles, splits.SAME_SIZE, lambda x: x.roll(3, -1))
        found = _bound("sdxl", "alone", split())
        right = expected("sdxl", "alone", split())
        assert scenes.relative_difference(found, right) < composition.TOLERANCE
        assert not warnings_of(caplog)

    def test_each_sampling_says_so_once(self, caplog):
        scene = scenes.shared_scene("sd15")
        model, clip = scene.apply(scene.bind(mask=MASK))
        model = unet_forwards.in_front(model, splits.Tiles(splits.SAME_SIZE, lambda x: x * 1.001))
        texts = [scene.encode(clip, each) for each in (composition.PROMPT, composition.NEGATIVE)]
        for count in (1, 2, 3):
            scene.sample(model, *texts)
            assert len(warnings_of(caplog)) == count


INSIDE = {
    "same size": lambda: splits.TilesInside(splits.SAME_SIZE),
    "several sizes": lambda: splits.TilesInside(splits.SEVERAL_SIZES),
    "in one batch": lambda: splits.TilesInsideInOneBatch(splits.SAME_SIZE),
    "in one batch, by row": lambda: splits.TilesInsideInOneBatch(splits.SAME_SIZE, by_row=True),
    "reversed": splits.ReversedInside,
}


class TestInsideTheUNet:
    """A wrapper around the UNet's own forward, behind everything that ComfyUI tells."""

    @pytest.mark.parametrize("name", INSIDE)
    @pytest.mark.parametrize("family, cast, batch", [("sdxl", "alone", 1), ("sd15", "apart", 2)])
    def test_each_part_has_its_own_of_the_masks(self, family, cast, batch, name, caplog):
        masks, split = MASKS[:batch], INSIDE[name]()
        right = expected(family, cast, split, masks, batch, install=_inside)
        for place in composition.PLACES:
            found = _bound(family, cast, INSIDE[name](), masks, batch, place, install=_inside)
            assert scenes.relative_difference(found, right) < composition.TOLERANCE, place
        if name != "reversed":
            stretched = _bound(family, cast, INSIDE[name](), batch=batch, install=_inside)
            assert scenes.relative_difference(stretched, right) > composition.VISIBLE
        assert not warnings_of(caplog)

    @TestTiles.ALTERED
    def test_where_a_place_cannot_be_known_masks_rest(self, alter, back, caplog):
        def split():
            out = (lambda x: x) if back is None else back
            return splits.TilesInside([(0, 0, 16, 12)], alter, out)

        found = _bound("sdxl", "alone", split(), MASK, install=_inside)
        (warning,) = warnings_of(caplog)
        assert "masks and separation rest" in warning
        right = expected("sdxl", "alone", split(), install=_inside)
        assert scenes.relative_difference(found, right) < composition.TOLERANCE
