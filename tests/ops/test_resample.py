"""Upsampling and downsampling against scipy and the store's pyramid, on grids whose voxels and origins differ."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from tests.ops.blockwise import assert_same, run, spec_of
from vemray.errors import RecipeError
from vemray.geometry import ArraySpec, Spacing
from vemray.ops import build
from vemray.store import pyramid

#: fine shape and spacing, coarse spacing, shift of the coarse grid's first centre against the fine one's, all nm ZYX
CASES = {
    "level 2": ((17, 30, 41), (8.0, 8.0, 8.0), (32.0, 32.0, 32.0), (12.0, 12.0, 12.0)),
    "anisotropic": ((9, 33, 28), (50.0, 4.6, 4.6), (50.0, 9.2, 18.4), (0.0, 2.3, 6.9)),
    "any ratio": ((20, 21, 22), (8.0, 8.0, 8.0), (19.7, 8.0, 31.0), (3.1, -2.0, 5.0)),
    "finer along x": ((12, 13, 14), (8.0, 8.0, 8.0), (16.0, 8.0, 5.0), (4.0, 0.0, -1.5)),
    "one voxel thick": ((1, 20, 21), (8.0, 8.0, 8.0), (8.0, 32.0, 32.0), (0.0, 12.0, 12.0)),
}


def grids(case: str, dtype: str, kind: str = "image") -> tuple[ArraySpec, ArraySpec]:
    shape, fine_nm, coarse_nm, shift = CASES[case]
    fine = ArraySpec(shape, "uint8", Spacing(*fine_nm), "image", (1000.0, -70.0, 3.3))
    coarse_shape = tuple(-(-round(n * f) // round(c)) for n, f, c in zip(shape, fine_nm, coarse_nm))
    origin = tuple(o + s for o, s in zip(fine.origin_nm, shift))
    return ArraySpec(coarse_shape, dtype, Spacing(*coarse_nm), kind, origin), fine


def positions(coarse: ArraySpec, fine: ArraySpec) -> np.ndarray:
    axes = [
        (of + np.arange(n) * sf - oc) / sc
        for of, n, sf, oc, sc in zip(fine.origin_nm, fine.shape, fine.spacing.zyx, coarse.origin_nm, coarse.spacing.zyx)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def upsample(image: np.ndarray, coarse: ArraySpec, fine: ArraySpec, block=None, **parameters) -> np.ndarray:
    values = {"image": image, "like": np.zeros(fine.shape, np.uint8)}
    return run(build("upsample", parameters), values, {"image": coarse, "like": fine}, block=block or fine.shape)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "uint8", "int16"])
def test_linear_is_map_coordinates(case, dtype):
    coarse, fine = grids(case, dtype)
    rng = np.random.default_rng(0)
    image = (rng.normal(0, 100, coarse.shape) if dtype[0] == "f" else rng.integers(-90 if dtype == "int16" else 0, 250, coarse.shape)).astype(dtype)
    want = ndimage.map_coordinates(image.astype(np.float64), positions(coarse, fine), order=1, mode="nearest")
    got = upsample(image, coarse, fine)
    assert got.dtype == dtype
    tolerance = {"float64": 1e-6, "float32": 1e-4}.get(dtype, 0.5 + 1e-6)  # positions are rounded to 1e-9 voxels
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
    for block in ((7, 5, 9), (1, 64, 3), (4, 4, 4)):
        assert_same(got, upsample(image, coarse, fine, block))


@pytest.mark.parametrize("case", CASES)
def test_labels_take_the_nearest(case):
    coarse, fine = grids(case, "uint64", "labels")
    image = np.random.default_rng(1).integers(0, 2**63, coarse.shape).astype(np.uint64) * np.uint64(2)
    at = [np.clip(np.ceil(np.round(p, 9) - 0.5), 0, n - 1).astype(int) for p, n in zip(positions(coarse, fine), coarse.shape)]
    assert_same(image[tuple(at)], upsample(image, coarse, fine))


def test_a_pyramid_level_is_repeated_whether_or_not_the_file_says_its_shift():
    """Labels of a level of factor 3 and 2: each coarse voxel fills its window; half-way positions go down, in any unit."""
    image = np.arange(1, 4 * 5 * 6 + 1, dtype=np.uint64).reshape(4, 5, 6)
    for spacing in ((8.0, 8.0, 8.0), (50.0, 4.6, 0.7)):
        fine = ArraySpec((12, 10, 12), "uint8", Spacing(*spacing))
        coarse = ArraySpec((4, 5, 6), "uint64", Spacing(spacing[0] * 3, spacing[1] * 2, spacing[2] * 2), "labels")
        want = image.repeat(3, 0).repeat(2, 1).repeat(2, 2)
        shifted = replace(coarse, origin_nm=(spacing[0], spacing[1] / 2, spacing[2] / 2))
        assert_same(want, upsample(image, shifted, fine))
        assert_same(want, upsample(image, replace(shifted, origin_nm=(spacing[0], 0.0, 0.0)), fine))


def test_a_mask_is_smoothed_on_request():
    z, y, x = np.mgrid[:20, :20, :20]
    ball = (z - 9.5) ** 2 + (y - 9.5) ** 2 + (x - 9.5) ** 2 < 64
    coarse = ArraySpec(ball.shape, "bool", Spacing(32, 32, 32), "mask", (12.0, 12.0, 12.0))
    fine = ArraySpec((80, 80, 80), "uint8", Spacing(8, 8, 8))
    want = ndimage.map_coordinates(ball.astype(float), positions(coarse, fine), order=1, mode="nearest")
    smooth, steps = upsample(ball, coarse, fine, method="linear"), upsample(ball, coarse, fine)
    decided = abs(want - 0.5) > 1e-6
    assert smooth.dtype == bool and np.array_equal(smooth[decided], want[decided] > 0.5)
    assert_same(steps, ball.repeat(4, 0).repeat(4, 1).repeat(4, 2))

    def faces(mask):
        return sum(np.count_nonzero(np.diff(mask.astype(np.int8), axis=a)) for a in range(3))

    assert faces(smooth) <= faces(steps) and not np.array_equal(smooth, steps)
    assert smooth.mean() == pytest.approx(ball.mean(), rel=0.03)


def test_infinite_distances_stay_infinite():
    coarse, fine = grids("level 2", "float32")
    assert np.isposinf(upsample(np.full(coarse.shape, np.inf, np.float32), coarse, fine)).all()


@pytest.mark.parametrize(
    "change, method, says",
    [
        ({"dtype": "uint64", "kind": "labels"}, "linear", "cannot interpolate labels"),
        ({"dtype": "int64"}, None, "Use method: nearest"),
        ({"origin_nm": (5000.0, 0.0, 0.0)}, None, "along z, but 'like' reaches from"),
        ({"spacing": Spacing(8, 8, 8)}, None, "must lie in the same place"),
    ],
)
def test_what_cannot_be_upsampled_is_refused(change, method, says):
    coarse, fine = grids("level 2", "uint8")
    with pytest.raises(RecipeError, match=says):
        build("upsample", {"method": method}).check(replace(coarse, **change), fine)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "bool", "uint64"])
@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2)])
def test_downsampling_by_two_is_the_pyramids_next_level(dtype, factor):
    rng = np.random.default_rng(3)
    image = rng.normal(0, 9, (11, 14, 17)).astype(dtype) if dtype == "float32" else rng.integers(-5 if dtype == "int16" else 0, 3, (11, 14, 17))
    image = image.astype(dtype)
    spec = spec_of(image, (16.0, 8.0, 4.0))
    got, declared = run(build("downsample", {"factor": factor}), {"image": image}, {"image": spec}, block=(3, 4, 5), spec=True)
    labels = spec.kind in ("mask", "labels")
    want = pyramid.reduce(image.view(np.uint8) if dtype == "bool" else image, factor, labels)
    assert_same(got, want.astype(dtype))
    if factor == (1, 2, 2):
        assert declared.spacing.zyx == (16.0, 16.0, 8.0) and declared.origin_nm == (0.0, 4.0, 2.0)


def test_downsampling_by_any_factor():
    rng = np.random.default_rng(4)
    image = rng.integers(-100, 100, (9, 10, 12)).astype(np.int16)
    labels = rng.integers(0, 3, (9, 10, 12)).astype(np.uint64)
    op = build("downsample", {"factor": (3, 5, 4)})
    windows = image.reshape(3, 3, 2, 5, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(3, 2, 3, -1)
    assert_same(run(op, {"image": image}, {"image": spec_of(image)}, block=(2, 1, 2)), np.floor(windows.mean(-1) + 0.5).astype(np.int16))
    windows = labels.reshape(3, 3, 2, 5, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 60)
    counts = np.stack([(windows == v).sum(1) for v in (1, 2, 0)], 1)  # in the order in which ties are decided
    want = np.array([1, 2, 0], np.uint64)[counts.argmax(1)].reshape(3, 2, 3)
    assert_same(run(op, {"image": labels}, {"image": spec_of(labels)}, block=(2, 1, 2)), want)


def test_what_cannot_be_downsampled_is_refused():
    with pytest.raises(RecipeError, match="1 to 16 voxels"):
        build("downsample", {"factor": (0, 2, 2)}).check(spec_of(np.zeros((4, 4, 4), np.uint8)))
    with pytest.raises(RecipeError, match="takes no int64 images"):
        build("downsample", {}).check(spec_of(np.zeros((4, 4, 4), np.int64)))
