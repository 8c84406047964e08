"""Crops in every orientation are what a rotation of the whole volume gives, and hold nothing that is kept for validation."""

import numpy as np
import pytest

from vemray.geometry import Box, Spacing, rotation
from vemray.models.files import Normalisation
from vemray.training import source as source_module
from vemray.training.crops import Sampler, Shape, Turns, around, places, section
from vemray.training.source import Array, Cached, LabelVolume, PaintedPlanes, Source, painted
from vemray.training.targets import Target

FIXED = Normalisation(method="fixed", low=0, high=1)
TWO = Target("classes", ("a", "b"))


def blobs(shape=(40, 48, 56), spacing=(8, 8, 8), axes="zyx", seed=0):
    rng = np.random.default_rng(seed)
    image = rng.random(shape, np.float32)
    labels = (1 + (rng.random(shape) > 0.7)).astype(np.uint8)
    return Source("v", Array(image, Spacing(*spacing)), LabelVolume(Array(labels, Spacing(*spacing)), axes=axes), FIXED), image, labels


@pytest.mark.parametrize("axis", "zyx")
@pytest.mark.parametrize("context", [0, 1])
def test_planes_as_the_volume_has_them(axis, context):
    source, image, labels = blobs()
    a = "zyx".index(axis)
    found, known = around(source, np.array([20, 24, 28]), Shape((16, 12), context), axis)
    at = [slice(12, 28), slice(18, 30)]
    centre = [c for i, c in enumerate((20, 24, 28)) if i != a]
    at = [slice(centre[0] - 8, centre[0] + 8), slice(centre[1] - 6, centre[1] + 6)]
    turned = np.moveaxis(image, a, 0)
    p = (20, 24, 28)[a]
    np.testing.assert_array_equal(found, turned[(slice(p - context, p + context + 1), *at)])
    np.testing.assert_array_equal(known, np.moveaxis(labels, a, 0)[(p, *at)])


def test_beyond_the_volume_the_image_is_reflected_and_nothing_is_known():
    source, image, labels = blobs()
    found, known = around(source, np.array([0, 2, 28]), Shape((16, 16), 1), "z")
    wide = np.pad(image, [(1, 1), (8, 8), (0, 0)], mode="reflect")
    np.testing.assert_array_equal(found, wide[0:3, 2:18, 20:36])
    assert (known[:6] == 0).all() and (known[6:] > 0).all()


@pytest.mark.parametrize("angle, about, moved", [(90, "x", lambda a: np.rot90(a, 1, (1, 0))), (90, "y", lambda a: np.rot90(a, 1, (2, 0)))])
def test_a_quarter_turn_is_exact(angle, about, moved):
    """The section of cubic voxels turned by 90 degrees about x is a plane along y."""
    source, image, labels = blobs((33, 33, 33))
    steps = rotation(angle, about) @ np.diag([8.0, 8.0, 8.0])
    centre = np.array([16.0, 16.0, 16.0])
    found, known = section(source, centre, Shape((15, 15)), steps)
    # the crop's rows and columns run along the turned axes: look each voxel up
    i, j = np.mgrid[-7:8, -7:8]
    at = np.round(centre[:, None, None] + np.einsum("ab,bij->aij", steps / 8, np.stack([0 * i, i, j]))).astype(int)
    np.testing.assert_allclose(found[0], image[tuple(at)], atol=1e-5)
    np.testing.assert_array_equal(known, labels[tuple(at)])
    axis = 1 if about == "x" else 2
    assert len(np.unique(at[axis])) == 1, "the section is a plane across the other axis"


def test_sections_have_the_right_proportions_in_flat_voxels():
    """A ball in voxels four times as high as wide is a disc of its radius in every section through its middle."""
    spacing, shape = Spacing(40, 10, 10), (40, 160, 160)
    zyx = np.indices(shape).astype(float)
    r = np.sqrt(sum(((zyx[i] - (shape[i] - 1) / 2) * s) ** 2 for i, s in enumerate(spacing.zyx)))
    ball = (r < 400).astype(np.uint8)
    source = Source("v", Array((500 - r).astype(np.float32), spacing), LabelVolume(Array(ball + 1, spacing)), FIXED)
    centre = (np.array(shape) - 1) / 2
    for angle in (0, 30, 60, 90):
        steps = rotation(angle, "x") @ (np.eye(3) * 10)
        image, labels = section(source, centre, Shape((112, 112)), steps)
        disc = labels == 2
        rows, cols = (np.flatnonzero(disc.any(i)) for i in (1, 0))
        assert abs(np.ptp(rows) - 79) <= 4 and abs(np.ptp(cols) - 79) <= 2, angle  # the nearest plane is up to 20 nm away
        assert abs(disc.sum() / (np.pi * 40**2) - 1) < 0.03
        y, x = np.mgrid[-56:56, -56:56]
        inner = np.hypot(y, x) < 45
        off = np.abs(image[0] - (500 - np.hypot(y, x) * 10))[inner & (np.hypot(y, x) > 5)]
        assert off.max() < 12, "linear between planes 40 nm apart"


def test_only_every_nth_plane():
    source, image, labels = blobs((61, 61, 61), axes="z")
    turns = Turns(flips=False, rotate=0, elastic=0, scale=0, sections=1.0, angles=(90.0,), about="x", every=5)
    sampler = Sampler([source], places([source], TWO, 2), Shape((9, 9)), turns, 1)
    z, y, x = np.indices(image.shape)
    source.cached.volume.array = y.astype(np.float32)  # after which a section across y shows which plane it is
    for number in range(20):
        plane = sampler.draw(number)[0]
        value = np.median(plane)
        assert np.ptp(plane) < 1e-3 and abs((value - 30) / 5 - round((value - 30) / 5)) < 1e-3


def test_streamed_as_in_memory(monkeypatch, tmp_path):
    """From an OME-Zarr in parts, with hardly any memory."""
    from vemray.store.volume import create
    from vemray.store.volume import open as open_volume

    monkeypatch.setattr(source_module, "BLOCK", (8, 16, 16))
    rng = np.random.default_rng(0)
    array = rng.integers(0, 255, (30, 50, 41)).astype(np.uint8)
    made = create(str(tmp_path / "v.zarr"), array.shape, "uint8", Spacing(8, 8, 8), "image", levels=1)
    made.write(made.box, array)
    cached = Cached(open_volume(str(tmp_path / "v.zarr")), 3 * 8 * 16 * 16)
    for _ in range(40):
        a = [int(rng.integers(0, n)) for n in array.shape]
        b = [int(rng.integers(i + 1, n + 1)) for i, n in zip(a, array.shape)]
        np.testing.assert_array_equal(cached.read(Box(tuple(a), tuple(b))), array[tuple(slice(i, j) for i, j in zip(a, b))])
        assert cached.bytes <= 4 * 8 * 16 * 16


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_held_back_is_in_no_crop(dims):
    source, image, labels = blobs((48, 48, 48))
    source.held = Box((0, 20, 0), (48, 28, 48))
    source.gap = Box((0, 16, 0), (48, 32, 48))
    where = np.indices(image.shape)[1].astype(np.float32)
    source.cached.volume.array = where
    turns = Turns(sections=0.5 if dims == 2 else 0.0)
    sampler = Sampler([source], places([source], TWO, 2), Shape((16,) * dims), turns, 3)
    seen = []
    for number in range(60):
        crop, known, _ = sampler.draw(number)
        seen.append(crop[0][known > 0])
    seen = np.concatenate(seen)
    # linear between voxels, labels from the nearest: half a voxel
    assert len(seen) > 1000 and not ((seen > 16.5) & (seen < 30.5)).any()
    assert (seen < 16).any() and (seen > 31).any()


def test_numbers_decide_and_classes_are_drawn_evenly():
    image = np.zeros((4, 64, 64), np.float32)
    labels = np.ones((4, 64, 64), np.uint8)
    labels[1, 5, 7] = 2  # one voxel in sixteen thousand
    source = painted(image, dict(enumerate(labels)), Spacing(8, 8, 8), FIXED)
    sampler = Sampler([source], places([source], TWO, 2), Shape((16, 16)), Turns(), 1)
    again = Sampler([source], places([source], TWO, 2), Shape((16, 16)), Turns(), 1)
    crops = [sampler.draw(i)[1] for i in range(200)]
    np.testing.assert_array_equal(crops[117], again.draw(117)[1])
    assert 70 < sum((c == 2).any() for c in crops) < 140


def test_objects_and_unknown_zero():
    ids = np.array([[[0, 5, 5, 9]]], np.uint16)
    for zero, wanted in ((None, [1, 6, 6, 10]), (False, [0, 6, 6, 10])):
        for made in (LabelVolume(Array(ids, Spacing(1, 1, 1)), "objects", zero), PaintedPlanes(ids.shape, {"z": {0: ids[0]}}, "objects", zero)):
            np.testing.assert_array_equal(made.read(Box.of(ids.shape))[0, 0], wanted)
    np.testing.assert_array_equal(LabelVolume(Array(ids, Spacing(1, 1, 1)), "classes", True).read(Box.of(ids.shape))[0, 0], [1, 6, 6, 10])


@pytest.mark.parametrize("axis, apart", [("z", 40.0), ("x", 10.0)])
def test_neighbours_of_a_section_are_as_far_apart_as_those_of_the_stack(axis, apart):
    """A 2.5D network must meet its channels at one distance."""
    spacing = Spacing(40, 10, 10)
    ramp = np.indices((30, 90, 90))[1].astype(np.float32) * 10  # nm along y
    source = Source(
        "v",
        Array(ramp, spacing),
        LabelVolume(Array(np.ones(ramp.shape, np.uint8), spacing), region=Box((12, 40, 40), (18, 50, 50)), axes=axis),
        FIXED,
    )
    turns = Turns(flips=False, rotate=0, elastic=0, scale=0, sections=1.0, angles=(90.0,), about="x" if axis == "z" else "z")
    sampler = Sampler([source], places([source], Target("classes", ("a",)), 1), Shape((16, 16), 1), turns, 1)
    for number in range(6):
        planes = sampler.draw(number)[0]
        assert abs(np.diff(planes.mean((1, 2)))) == pytest.approx([apart, apart], abs=0.01)
        inside = np.abs(np.diff(planes, axis=2)).mean() + np.abs(np.diff(planes, axis=1)).mean()
        assert inside == pytest.approx(0, abs=0.01)


def test_planes_that_nobody_need_paint():
    volume, part = Array(np.ones((20, 30, 40), np.uint8), Spacing(8, 8, 8)), Box((5, 0, 0), (9, 30, 40))
    assert LabelVolume(volume, "objects", region=part).done("z") == {5, 6, 7, 8} and LabelVolume(volume, "objects", region=part).done("y") == set()
    assert LabelVolume(volume, "classes", region=part).done("z") == set(), "0 is not painted"
    assert LabelVolume(volume, "objects", mask=volume).done("z") == set() and len(LabelVolume(volume, "objects").done("x")) == 40
    assert LabelVolume(volume, every=5).done("z") == {0, 5, 10, 15}
    both = PaintedPlanes((20, 30, 40), {"z": {3: np.ones((30, 40), np.uint8)}, "y": {7: np.ones((20, 40), np.uint8)}})
    assert both.done("z") == {3} and both.done("y") == {7} and both.done("x") == set()
