"""Windows over the pictures of a batch, or over the rows and columns of one: whose subject, whose mask."""

from __future__ import annotations

import functools

import composition
import pack
import pytest
import scenes
import torch
from reference_separation import NaiveSeparation
from stand_ins.windows import Windows
from two_subjects import warnings_of
from value_table import Cropped, ValueTable

BATCH = 5
MASKS = torch.rand(BATCH, 32, 24, generator=torch.Generator().manual_seed(3))
ROUNDING = 2e-5  # pictures weighed and added, in several orders


def _core(**inputs):
    """ComfyUI's own node, as an `Alter`."""
    settings = {
        "context_length": 3,
        "context_overlap": 1,
        "context_schedule": "standard_static",
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "dim": 0,
        "freenoise": False,
        **inputs,
    }
    node = pack.host_node("ContextWindowsManual", extra="nodes_context_windows")
    known = {each.id for each in node.define_schema().inputs}
    settings = {name: each for name, each in settings.items() if name in known}
    return lambda model: node.execute(model, **settings).result[0]


def _bound(
    family, cast, alter=composition.unaltered, place="behind", subject=None, batch=BATCH, **inputs
):
    scene = scenes.shared_scene(family)
    subject = scene.subject() if subject is None else subject
    return composition.sample_bound(
        scene, subject, alter, place, cast=composition.BY_NAME[cast], batch=batch, binding=inputs
    )


def _several(scene, number=BATCH):
    """One subject for each picture."""
    subjects = {f"subject_{n}": scene.subject(n) for n in range(number)}
    return pack.run("SubjectPerPicture", subjects=subjects)


OVERLAPPING = {
    "static": _core(),
    "static, no anchor": _core(causal_window_fix=False, fuse_method="flat"),
    "uniform": _core(context_schedule="standard_uniform", context_length=2, fuse_method="flat"),
    "with strides": _core(context_schedule="standard_uniform", context_stride=2, context_length=2),
    "looped": _core(context_schedule="looped_uniform", closed_loop=True, fuse_method="flat"),
    "relative": _core(fuse_method="relative", context_overlap=2),
    "batched": _core(context_schedule="batched", context_length=2, fuse_method="flat"),
    "told by animations": Windows([[0, 1, 2], [2, 3, 4]]).on,
    "in another order": Windows([[4, 2], [3, 0, 1], [1, 2, 3]]).on,
    "not told": Windows([[2, 3, 4], [0, 1, 2]], tells=False).on,
    "not told, in another order": Windows([[4, 1, 3], [2, 0]], tells=False).on,
}


@functools.cache
def _whole(with_masks):
    masks = {"mask": MASKS} if with_masks else {}
    return _bound("small", "alone", subject=_several(scenes.shared_scene("small")), **masks)


class TestPictures:
    """Each is drawn by itself: windows that overlap weigh equal results."""

    @pytest.mark.parametrize("name", OVERLAPPING)
    @pytest.mark.parametrize("place", composition.PLACES)
    def test_each_keeps_its_subject_and_its_mask(self, name, place, caplog):
        """One subject for each picture, and one mask."""
        whole = _whole(with_masks=True)
        several = _several(scenes.shared_scene("small"))
        found = _bound("small", "alone", OVERLAPPING[name], place, several, mask=MASKS)
        assert scenes.relative_difference(found, whole) < ROUNDING
        others = _bound("small", "alone")
        assert scenes.relative_difference(_whole(with_masks=False)[:1], others[:1]) < ROUNDING
        assert scenes.relative_difference(others[4:], whole[4:]) > composition.VISIBLE
        assert not warnings_of(caplog)

    @pytest.mark.parametrize(
        "alter",
        [
            _core(context_schedule="batched", causal_window_fix=False, fuse_method="flat"),
            Windows([[3, 1], [2, 0, 4]]).on,
            Windows([[3, 1], [2, 0, 4]], tells=False).on,
        ],
        ids=["core", "told", "not told"],
    )
    @pytest.mark.parametrize("place", composition.PLACES)
    def test_each_keeps_its_evidence(self, alter, place, caplog):
        """Where every picture is in one window, subjects learn as they do in the whole batch."""
        scene = scenes.shared_scene("small")
        whole = _bound("small", "apart")
        found = _bound("small", "apart", alter, place)
        mixed = composition.sample_bound(
            scene, scene.subject(), cast=composition.MIXED, batch=BATCH
        )
        composition.assert_apart(found, whole, mixed)
        assert not warnings_of(caplog)


def _table(alter, place_of, cast="alone", batch=BATCH, row_key=None, family="sdxl", mask=MASKS):
    scene, cast = scenes.shared_scene(family), composition.BY_NAME[cast]
    texts = [scene.encode(scene.clip, each) for each in (cast.plain, composition.NEGATIVE)]
    settings = {} if mask is None else {"mask": mask}
    slots = composition.naive_slots(scene, scene.subject(), cast, **settings)
    owners = NaiveSeparation(cast.separation, row_key) if cast.separation else None
    table = ValueTable(scene, [(texts[0][0][0], slots)], owners, see=Cropped(scenes.SIZE))
    table.place_of = lambda row, rows: place_of(_indices(table.options), row, rows)
    return scene.sample(alter(table.on_patches(scene.model)), *texts, batch=batch)


def _indices(options):
    """What ComfyUI has put into the latent of a window, in its order."""
    window = options["context_window"]
    anchor = getattr(window, "causal_anchor_index", None)
    found = list(window.index_list)
    if anchor is not None and anchor >= 0:
        found = [anchor, *found]
    return found


class TestWindowsThatOneMustKnow:
    """Here ComfyUI's own results differ from the whole batch's: the table knows the window."""

    @pytest.mark.parametrize("place", composition.PLACES)
    def test_pictures_that_stay_in_every_window(self, place, caplog):
        alter = _core(latent_retain_index_list="0, 1")

        def where(indices, row, rows):
            indices = [0, 1, *indices[2:]]
            return (
                indices[row % len(indices)],
                list(range(scenes.HEIGHT)),
                list(range(scenes.WIDTH)),
            )

        right = _table(alter, where)
        found = _bound("sdxl", "alone", alter, place, mask=MASKS)
        assert scenes.relative_difference(found, right) < composition.TOLERANCE
        whole = _bound("sdxl", "alone", mask=MASKS)
        assert scenes.relative_difference(whole, found) > composition.VISIBLE
        assert not warnings_of(caplog)

    @pytest.mark.parametrize("alter", [_core(), OVERLAPPING["looped"]], ids=["static", "looped"])
    def test_evidence_of_windows_that_overlap(self, alter):
        """What one window has shown of a picture counts in the next."""

        def where(indices, row, rows):
            return (
                indices[row % len(indices)],
                list(range(scenes.HEIGHT)),
                list(range(scenes.WIDTH)),
            )

        def key(slots, options, row):
            indices = _indices(options)
            kind = options["cond_or_uncond"][row // len(indices)]
            return kind, indices[row % len(indices)]

        scene = scenes.shared_scene("small")
        right = _table(alter, where, "apart", row_key=key, family="small", mask=None)
        found = _bound("small", "apart", alter)
        mixed = composition.sample_bound(
            scene, scene.subject(), alter, cast=composition.MIXED, batch=BATCH
        )
        composition.assert_apart(found, right, mixed)

    @pytest.mark.parametrize(
        "inputs",
        [
            {},
            {"causal_window_fix": False},
            {"context_schedule": "looped_uniform", "closed_loop": True},
            {"context_schedule": "standard_uniform", "context_stride": 2, "context_length": 4},
        ],
        ids=["anchored", "no anchor", "looped", "strides"],
    )
    @pytest.mark.parametrize("cast, dim", [("alone", 3), ("apart", 2)])
    def test_rows_and_columns_of_a_picture(self, cast, inputs, dim, caplog):
        alter = _core(**{"context_length": 7, "context_overlap": 2, "dim": dim, **inputs})

        def where(indices, row, rows):
            down = indices if dim == 2 else list(range(scenes.HEIGHT))
            return 0, down, indices if dim == 3 else list(range(scenes.WIDTH))

        def key(slots, options, row):
            return options["cond_or_uncond"][row], tuple(_indices(options)), 0

        mask = MASKS[:1]
        right = _table(alter, where, cast, 1, key, mask=mask)
        found = _bound("sdxl", cast, alter, batch=1, mask=mask)
        assert scenes.relative_difference(found, right) < composition.TOLERANCE
        stretched = _bound("sdxl", cast, alter, batch=1)
        assert scenes.relative_difference(stretched, right) > composition.VISIBLE
        assert not warnings_of(caplog)
