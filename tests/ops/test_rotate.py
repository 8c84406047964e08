"""Turned volumes against numpy's quarter turns, scipy's affine_transform, balls in nm, and the sections that training cuts."""

import numpy as np
import pytest
from scipy import ndimage

from tests.ops.blockwise import assert_same, run, spec_of
from vemray.errors import RecipeError
from vemray.geometry import ArraySpec, Box, Spacing, rotation, turned_grid
from vemray.models.files import Normalisation
from vemray.ops import build
from vemray.training.crops import Shape, section
from vemray.training.source import Array, LabelVolume, Source

FLAT = (40.0, 10.0, 10.0)
PLANE = {"x": (0, 1), "y": (0, 2), "z": (1, 2)}


def rotate(array, spacing=(8.0, 8.0, 8.0), kind=None, block=None, **parameters):
    """(the turned array, its spec)."""
    spec = spec_of(array, spacing, kind)
    return run(build("rotate", parameters), {"image": array}, {"image": spec}, block=block, spec=True)


def by_definition(spec: ArraySpec, turned: ArraySpec, degrees: float, about: str) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset for affine_transform, from the turn of each unit vector in words: about x z goes to y, about y z to x, about z y to x."""
    i, j = PLANE[about]
    t = np.deg2rad(degrees)
    turn = np.eye(3)
    turn[:, i], turn[:, j] = 0, 0
    turn[[i, j], i] = np.cos(t), np.sin(t)
    turn[[i, j], j] = -np.sin(t), np.cos(t)
    matrix = np.diag(1 / np.array(spec.spacing.zyx)) @ turn @ np.diag(turned.spacing.zyx)
    return matrix, (np.array(spec.shape) - 1) / 2 - matrix @ ((np.array(turned.shape) - 1) / 2)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bool", "uint64"])
@pytest.mark.parametrize("about", "zyx")
@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 3])
def test_quarter_turns_of_cubes_only_reorder_them(dtype, about, quarters):
    array = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 250, (7, 10, 13)).astype(dtype)
    got, declared = rotate(array, degrees=90.0 * quarters, about=about, block=(4, 5, 6))
    assert_same(got, np.ascontiguousarray(np.rot90(array, -quarters, PLANE[about])))
    assert declared.spacing.zyx == (8, 8, 8) and declared.shape == got.shape


@pytest.mark.parametrize("spacing", [(8.0, 8.0, 8.0), (50.0, 4.6, 4.6), (16.0, 8.0, 4.0)])
@pytest.mark.parametrize("about, degrees", [("x", 30.0), ("y", 60.0), ("z", -75.0), ("x", 200.0)])
def test_as_affine_transform(spacing, about, degrees):
    rng = np.random.default_rng(1)
    shape = (6, 31, 34)
    smooth = ndimage.gaussian_filter(rng.normal(0, 50, shape), 1).astype(np.float32)
    spec = spec_of(smooth, spacing)
    turned = turned_grid(spec, degrees, about)
    matrix, offset = by_definition(spec, turned, degrees, about)
    want = ndimage.affine_transform(smooth.astype(np.float64), matrix, offset, turned.shape, order=1, mode="mirror")
    got, declared = rotate(smooth, spacing, degrees=degrees, about=about)
    assert declared == turned
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    grey = (smooth - smooth.min()).astype(np.uint8)
    want = ndimage.affine_transform(grey.astype(np.float64), matrix, offset, turned.shape, order=1, mode="mirror")
    np.testing.assert_allclose(rotate(grey, spacing, degrees=degrees, about=about)[0], want, rtol=0, atol=0.5 + 1e-6)

    ids = rng.integers(1, 2**63, shape).astype(np.uint64)
    positions = np.einsum("ab,b...->a...", matrix, np.indices(turned.shape)) + offset[:, None, None, None]
    tied = (np.abs(positions % 1 - 0.5) < 1e-6).any(0)
    nearest = np.floor(positions + 0.5).astype(int)
    inside = ((nearest >= 0) & (nearest < np.array(shape)[:, None, None, None])).all(0)
    want = np.where(inside, ids[tuple(np.clip(nearest, 0, np.array(shape)[:, None, None, None] - 1))], np.uint64(0))
    got, _ = rotate(ids, spacing, degrees=degrees, about=about)
    assert_same(np.where(tied, np.uint64(0), got), np.where(tied, np.uint64(0), want))
    assert tied.mean() < 0.3 and (got == 0).any() and abs((got > 0).sum() * turned.spacing.voxel_nm3 / (ids.size * spec.spacing.voxel_nm3) - 1) < 0.02


def ball(shape=(40, 120, 130), spacing=FLAT, radius=400.0, off=(0.0, 0.0, 0.0)):
    at = [(np.arange(n) - (n - 1) / 2) * s - o for n, s, o in zip(shape, spacing, off)]
    return sum(a**2 for a in np.meshgrid(*at, indexing="ij")) < radius**2


@pytest.mark.parametrize("about", "zyx")
@pytest.mark.parametrize("degrees", [0.0, 30.0, 60.0, 90.0])
def test_a_ball_in_flat_voxels_stays_a_ball_where_it_belongs(about, degrees):
    off = np.array([150.0, -80.0, 60.0])
    got, declared = rotate(ball(off=off).astype(np.uint64), FLAT, degrees=degrees, about=about)
    at = np.argwhere(got > 0) * 10.0
    assert declared.spacing.zyx == (10, 10, 10)
    middle = (np.array(declared.shape) - 1) / 2 * 10
    wanted = np.linalg.solve(rotation(degrees, about), off)
    np.testing.assert_allclose(at.mean(0) - middle, wanted, atol=3)
    np.testing.assert_allclose(np.ptp(at, 0) + 10, 800, atol=60)  # planes are 40 nm apart
    np.testing.assert_allclose(at.std(0), 400 / 5**0.5, rtol=0.02)
    smooth, _ = rotate(ball(off=off).astype(np.float32), FLAT, degrees=degrees, about=about)
    far = np.sqrt(((np.indices(smooth.shape).T * 10 - middle - wanted) ** 2).sum(-1)).T
    assert smooth[far < 350].min() == 1 and smooth[(far > 450) & (far < 500)].max() == 0


def test_turned_there_and_back():
    labels = ball((61, 61, 61), (8.0, 8.0, 8.0), 130.0, (40.0, 20.0, -30.0)) + np.uint64(2) * ball(
        (61, 61, 61), (8.0, 8.0, 8.0), 60.0, (-100.0, 0.0, 90.0)
    )
    labels = labels.astype(np.uint64)
    for about in "zyx":
        there, spec = rotate(labels, degrees=31.0, about=about)
        back, again = run(build("rotate", {"degrees": -31.0, "about": about}), {"image": there}, {"image": spec}, spec=True)
        start = -np.array(again.origin_nm) / 8
        if (start % 1).any():  # a half-voxel apart
            back, start = back[tuple(slice(None, -1) if s % 1 else slice(None) for s in start)], np.ceil(start)
        back = back[tuple(slice(int(s), int(s) + 61) for s in start)]
        calm = ndimage.maximum_filter(labels, 5) == ndimage.minimum_filter(labels, 5)
        assert_same(back[calm], labels[calm])
        assert calm.mean() > 0.8 and (labels[calm] == 1).any() and (labels[calm] == 2).any()


@pytest.mark.parametrize("about, degrees", [("x", 30.0), ("y", 60.0), ("x", 90.0), ("z", -45.0)])
def test_its_planes_are_the_sections_that_training_cuts(about, degrees):
    rng = np.random.default_rng(2)
    image = rng.random((21, 41, 45)).astype(np.float32)
    labels = rng.integers(1, 5, image.shape).astype(np.uint8)
    source = Source("v", Array(image, Spacing(*FLAT)), LabelVolume(Array(labels, Spacing(*FLAT))), Normalisation(method="fixed", low=0, high=1))
    turned, spec = rotate(image, FLAT, degrees=degrees, about=about)
    known, _ = rotate(labels, FLAT, "labels", degrees=degrees, about=about)
    steps = rotation(degrees, about) * 10
    for z in (spec.shape[0] // 2, spec.shape[0] // 3):
        here = (z, spec.shape[1] // 2, spec.shape[2] // 2)
        centre = (np.array(image.shape) - 1) / 2 + steps @ (here - (np.array(spec.shape) - 1) / 2) / FLAT
        cut, cut_labels = section(source, centre, Shape(spec.shape[1:]), steps)  # to beyond the volume
        np.testing.assert_allclose(cut[0], turned[z], atol=2e-4)
        assert (cut_labels != known[z]).mean() < (0.02 if degrees % 45 else 0.5)  # ties are rounded in float32 there
        assert (known[z] == 0).any() or not degrees % 90


@pytest.mark.parametrize("shape", [(2, 57, 3), (41, 1, 2), (3, 4, 60), (5, 5, 5)])
def test_any_blocks_where_an_image_is_mirrored_many_times(shape):
    rng = np.random.default_rng(3)
    for degrees, about, spacing in ((45.0, "x", (8.0, 8.0, 8.0)), (137.3, "y", (50.0, 4.6, 4.6)), (-60.0, "z", (8.0, 8.0, 20.0))):
        for array in (rng.random(shape).astype(np.float32), rng.integers(0, 9, shape).astype(np.uint64)):
            whole, spec = rotate(array, spacing, degrees=degrees, about=about)
            for _ in range(2):
                block = tuple(int(rng.integers(max(1, n // 5), n + 1)) for n in spec.shape)
                assert_same(whole, rotate(array, spacing, block=block, degrees=degrees, about=about)[0])


def test_grid_and_place():
    spec = ArraySpec((10, 100, 80), "uint8", Spacing(50, 5, 4), "image", (1000.0, -20.0, 7.0))
    for about in "zyx":
        for degrees, voxel in ((0, None), (30, None), (90, 6.0), (-60, 11.0)):
            turned = turned_grid(spec, degrees, about, voxel)
            edge = voxel or 4.0
            assert turned.spacing.zyx == (edge,) * 3
            middle = [o + (n - 1) / 2 * s for o, n, s in zip(spec.origin_nm, spec.shape, spec.spacing.zyx)]
            np.testing.assert_allclose([o + (n - 1) / 2 * edge for o, n in zip(turned.origin_nm, turned.shape)], middle)
            corners = np.array([[a, b, c] for a in (-250, 250) for b in (-250, 250) for c in (-160, 160)]) @ rotation(degrees, about)
            np.testing.assert_array_equal(turned.shape, np.ceil(np.ptp(corners, 0) / edge - 1e-6))
    assert turned_grid(spec, 90, "x").shape == (125, 125, 80) and turned_grid(spec, 0, "y").shape == (125, 125, 80)


def test_outside_images_are_mirrored_or_filled_and_labels_are_nothing():
    image = np.full((20, 20, 20), 100, np.uint8)
    image[::2] = 140
    mirrored, _ = rotate(image, degrees=45.0)
    filled, _ = rotate(image, degrees=45.0, fill=7)
    labels, _ = rotate(image.astype(np.uint64), degrees=45.0)
    assert mirrored.min() >= 100 and mirrored.max() <= 140, "grey values of the data alone"
    assert ((filled == 7) == (labels == 0)).all() and (filled[labels > 0] == mirrored[labels > 0]).all()
    mask, spec = rotate(np.ones((20, 20, 20), bool), degrees=45.0, method="linear")
    assert_same(mask, labels > 0)


def test_blocks_are_cubes_in_the_plane_of_the_turn_and_read_little_more():
    spec = ArraySpec((4000, 4000, 4000), "uint8", Spacing(8, 8, 8))
    op = build("rotate", {"degrees": 45.0, "about": "x"})
    block = op.block_shape(op.output(spec).shape, (64, 512, 512), (64, 64, 64))
    assert block == (192, 192, 512)
    start = (1500, 1500, 1500)
    for shape, most in ((block, 2.1), ((64, 512, 512), 6)):
        box = op.read_box_of("image", Box(start, tuple(a + b for a, b in zip(start, shape))), spec)
        assert box.size < most * np.prod(shape)
    labels = ArraySpec(spec.shape, "uint64", spec.spacing, "labels")
    assert op.read_box_of("image", Box((0, 0, 0), (64, 64, 64)), labels).size < 64**3 / 10, "of what lies outside hardly anything"
    assert op.block_shape((20, 3000, 3000), (128, 128, 128), (64, 64, 64)) == (64, 64, 128)


@pytest.mark.parametrize(
    "parameters, array, says",
    [
        ({"method": "linear"}, np.zeros((4, 4, 4), np.uint64), "cannot interpolate labels"),
        ({}, np.zeros((4, 4, 4), np.int64), "Use method: nearest"),
        ({"fill": 3}, np.zeros((4, 4, 4), bool), "leave 'fill' out"),
        ({"fill": 300}, np.zeros((4, 4, 4), np.uint8), "uint8 cannot hold"),
    ],
)
def test_what_cannot_be_turned_is_refused(parameters, array, says):
    with pytest.raises(RecipeError, match=says):
        rotate(array, degrees=30.0, **parameters)
    with pytest.raises(RecipeError, match="about"):
        build("rotate", {"degrees": 30, "about": "w"})
