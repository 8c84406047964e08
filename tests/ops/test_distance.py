"""Distances and morphology against scipy, edt and balls drawn by hand, blockwise and whole."""

import edt
import numpy as np
import pytest
from scipy import ndimage

from tests.ops.blockwise import assert_same, run, spec_of
from vemray.geometry import Spacing
from vemray.ops.distance import Close, Dilate, DistanceBand, DistanceMap, Erode, Open
from vemray.ops.distance_kernels import Metric

SPACINGS = [(1.0, 1.0, 1.0), (8.0, 8.0, 8.0), (50.0, 4.6, 4.6), (16.0, 8.0, 4.0), (3.1234567, 2.7654321, 9.1111111), (0.1, 0.3, 0.7)]
SHAPES = [((13, 17, 19), (5, 7, 6)), ((1, 20, 23), (1, 7, 9)), ((18, 1, 5), (7, 1, 2)), ((12, 11, 1), (5, 4, 1)), ((6, 5, 7), (64, 64, 64))]


def scenes(seed=0):
    rng = np.random.default_rng(seed)
    for shape, block in SHAPES:
        for spacing in SPACINGS:
            for density in (0.02, 0.5, 0.97):
                yield rng.random(shape) < density, spacing, block


def made(op, mask, spacing, block=None, seed=0):
    return run(op, {"mask": mask}, {"mask": spec_of(mask, spacing)}, block=block, seed=seed)


def expected(mask, spacing, side):
    def distance(m):
        return np.where(m, np.inf, 0.0) if m.all() else ndimage.distance_transform_edt(m, sampling=spacing)

    if side == "both":
        return distance(mask) - distance(~mask) if mask.any() and not mask.all() else np.where(mask, np.inf, -np.inf)
    return distance(mask if side == "inside" else ~mask)


@pytest.mark.parametrize("side", ["inside", "outside", "both"])
def test_map(side):
    for i, (mask, spacing, block) in enumerate(scenes()):
        whole = made(DistanceMap(side), mask, spacing)
        np.testing.assert_allclose(whole, expected(mask, spacing, side), rtol=2e-7)
        if i % 3 == 1:
            assert_same(whole, made(DistanceMap(side), mask, spacing, block, seed=1))


def test_map_against_edt():
    rng = np.random.default_rng(1)
    mask = ndimage.gaussian_filter(rng.random((40, 50, 60)), 2) > 0.49
    for spacing in ((1.0, 1.0, 1.0), (40.0, 4.0, 5.0)):
        np.testing.assert_allclose(made(DistanceMap(), mask, spacing), edt.edt(mask, anisotropy=spacing), rtol=1e-6)


def test_map_of_whole_numbers_is_exact():
    rng = np.random.default_rng(2)
    mask = rng.random((30, 30, 30)) < 0.995
    at = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True) - np.indices(mask.shape)
    assert_same(made(DistanceMap(), mask, (4.6, 4.6, 4.6)), np.sqrt((at.astype(float) ** 2).sum(0) * 4.6**2).astype(np.float32))


def test_map_without_any_border_is_infinite():
    full = np.ones((4, 5, 6), bool)
    assert np.isposinf(made(DistanceMap(), full, (8.0,) * 3, (2, 3, 4))).all()
    assert np.isneginf(made(DistanceMap("both"), ~full, (8.0,) * 3, (2, 3, 4))).all()
    assert not made(DistanceMap(), ~full, (8.0,) * 3).any()


@pytest.mark.parametrize("side", ["inside", "outside", "both"])
@pytest.mark.parametrize("steps", [0.4, 1.0, 2.3, 6.0])
def test_band(side, steps):
    for i, (mask, spacing, block) in enumerate(scenes(3)):
        bound = steps * spacing[2]
        whole = made(DistanceBand(bound, side), mask, spacing)
        np.testing.assert_allclose(whole, np.clip(expected(mask, spacing, side), -bound, bound), rtol=2e-7)
        if i % 3 == 1:
            assert_same(whole, made(DistanceBand(bound, side), mask, spacing, block, seed=1))


def ball(radius, spacing):
    reach = [int(radius / s * (1 + 1e-6)) for s in spacing]
    grid = np.ogrid[tuple(slice(-r, r + 1) for r in reach)]
    return sum((g * s) ** 2 for g, s in zip(grid, spacing)) <= radius**2 * (1 + 2e-6)


@pytest.mark.parametrize("steps", [0.9, 1.0, 2.0, 3.0])
def test_morphology_is_that_of_a_ball(steps):
    for i, (mask, spacing, block) in enumerate(scenes(4)):
        radius = steps * min(spacing)
        b = ball(radius, spacing)
        dilated, eroded = ndimage.binary_dilation(mask, b), ndimage.binary_erosion(mask, b, border_value=1)
        wanted = {Dilate: dilated, Erode: eroded, Open: ndimage.binary_dilation(eroded, b), Close: ndimage.binary_erosion(dilated, b, border_value=1)}
        for cls, want in wanted.items():
            assert_same(made(cls(radius), mask, spacing, block if i % 3 == 1 else None, seed=1), want)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_radius_of_whole_voxels_is_included(spacing):
    mask = np.zeros((15, 15, 15), bool)
    mask[7, 7, 7] = True
    for axis in range(3):
        for n in range(1, 8):
            grown = made(Dilate(n * spacing[axis]), mask, spacing)
            line = np.moveaxis(grown, axis, 0)[:, 7, 7]
            assert line.sum() == 2 * n + 1


def test_metric():
    assert Metric.of(Spacing(50, 4.6, 4.6)).weights == (62500, 529, 529)
    assert Metric.of(Spacing(8, 8, 8)) == Metric((1, 1, 1), 64.0)
    odd = Metric.of(Spacing(3.1234567, 2.7654321, 9.1111111))
    np.testing.assert_allclose([w * odd.nm2 for w in odd.weights], [3.1234567**2, 2.7654321**2, 9.1111111**2], rtol=2e-9)
    assert Metric.of(Spacing(1, 1, 1)).dtype((512, 512, 512), (1, 2)) == np.int32
    assert Metric.of(Spacing(1, 1, 1)).dtype((9, 40000, 40000), (1, 2)) == np.int64


def test_a_crop_gets_the_values_of_the_whole():
    rng = np.random.default_rng(5)
    mask = rng.random((20, 30, 40)) < 0.9
    spacing = (3.1234567, 2.7654321, 9.1111111)
    whole, crop = made(DistanceBand(9.0), mask, spacing), made(DistanceBand(9.0), mask[4:16, 4:26, 1:30], spacing)
    assert_same(np.ascontiguousarray(whole[8:12, 8:22, 3:28]), np.ascontiguousarray(crop[4:8, 4:18, 2:27]))


def test_very_long_rows():
    mask = np.ones((1, 2, 40000), bool)
    mask[0, 0, 3] = False
    got = made(DistanceMap(), mask, (8.0, 8.0, 4.0))
    np.testing.assert_allclose(got, ndimage.distance_transform_edt(mask, sampling=(8, 8, 4)), rtol=2e-7)
