"""Voxel filters beyond the laws: what each computes, on cases that can be worked out by hand or by a whole-array library."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.ops.blockwise import assert_same, run, spec_of
from tests.ops.oracles import ball
from tests.ops.test_conformance import measured_memory, usable
from vemray.errors import RecipeError
from vemray.geometry import Box, Spacing
from vemray.ops import build
from vemray.ops.base import Site

ISO = (8.0, 8.0, 8.0)


def apply(name, *arrays, spacing=ISO, kinds=(), block=None, **params):
    op = build(name, params)
    values = {p.name: a for p, a in zip(op.ports, arrays)}
    kinds = dict(zip(values, kinds))
    specs = {k: spec_of(a, spacing, kinds.get(k)) for k, a in values.items()}
    return run(op, values, specs, block=block)


def picture(shape, dtype, seed=0):
    f = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1, mode="wrap")
    f = (f - f.min()) / max(1e-9, np.ptp(f))
    return (f * 100 - 30).astype(dtype) if np.dtype(dtype).kind in "fi" else np.round(f * np.iinfo(dtype).max).astype(dtype)


# -- any shape, any block, any spacing -------------------------------------------------------------------------------------------

FILTERS = [
    ("gaussian", {"sigma_nm": 13}),
    ("difference_of_gaussians", {"sigma_small_nm": 6, "sigma_large_nm": 21}),
    ("median", {"radius_nm": 17}),
    ("white_tophat", {"radius_nm": 19}),
    ("local_threshold", {"size_nm": 70, "offset": 2}),
    ("local_threshold", {"size_nm": 70, "offset": 2, "method": "gaussian", "direction": "below"}),
]
side = st.integers(1, 14)
nm = st.sampled_from([3.0, 4.24, 8.0, 25.0, 50.0])


@pytest.mark.parametrize("name,params", FILTERS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(FILTERS)])
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=st.tuples(side, side, side), block=st.tuples(side, side, side), spacing=st.tuples(nm, nm, nm), dtype=st.sampled_from(["uint8", "float32"])
)
def test_blocks_do_not_matter(name, params, shape, block, spacing, dtype):
    """Halos that reach beyond a small volume, several times reflected, included."""
    op, image = build(name, params), picture(shape, dtype)
    specs = {"image": spec_of(image, spacing)}
    assert_same(run(op, {"image": image}, specs), run(op, {"image": image}, specs, block=block, seed=1))


# -- smoothing -------------------------------------------------------------------------------------------------------------------


def test_gaussian_is_a_normalised_symmetric_kernel():
    image = np.zeros((21, 31, 41), np.uint16)
    image[10, 15, 20] = 60000
    out = apply("gaussian", image, spacing=(16, 8, 4), sigma_nm=12)
    assert out.dtype == np.float32 and abs(out.astype(np.float64).sum() - 60000) < 0.05
    for axis in range(3):
        assert np.array_equal(out, np.flip(out, axis))
    z, y, x = out[:, 15, 20], out[10, :, 20], out[10, 15, :]
    assert np.allclose(z[10 + 1], x[20 + 4], rtol=0.02) and np.allclose(y[15 + 2], x[20 + 4], rtol=0.02)  # equal at equal nm


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 40), (1, 30, 2)])
def test_gaussian_wider_than_the_volume(shape):
    image = picture(shape, "uint8", 3)
    want = ndimage.gaussian_filter(image.astype(np.float64), [40 / 4.6] * 3, truncate=4, mode="reflect")
    assert np.abs(apply("gaussian", image, spacing=(4.6, 4.6, 4.6), sigma_nm=40) - want).max() < 1e-3


def test_gaussian_of_a_probability_is_in_0_to_1():
    image = np.full((6, 7, 8), 255, np.uint8)
    out = apply("gaussian", image, kinds=("probability",), sigma_nm=10)
    assert np.allclose(out, 1, atol=1e-6)
    assert build("gaussian", {}).output(spec_of(image, ISO, "probability")).kind == "probability"


def test_difference_of_gaussians_finds_bright_particles():
    z, y, x = np.mgrid[:40, :40, :40]
    image = (60 + x).astype(np.uint8)  # a ramp, which vanishes
    particle = (z - 20) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 <= 9
    image[particle] += 100
    out = apply("difference_of_gaussians", image, sigma_small_nm=8, sigma_large_nm=32)
    assert np.unravel_index(out.argmax(), out.shape) == (20, 20, 20) and out[20, 20, 20] > 20
    assert np.abs(out[8, 8, 15:25]).max() < 1
    with pytest.raises(RecipeError, match="below"):
        apply("difference_of_gaussians", image, sigma_small_nm=8, sigma_large_nm=8)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("spacing,radius", [(ISO, 8), ((4, 4, 4), 11), ((50, 4.6, 4.6), 14), ((8, 16, 30), 33)])
def test_median_is_scipys(dtype, spacing, radius):
    image = picture((7, 12, 15), dtype, 5)
    foot = ball(radius, spec_of(image, spacing))
    want = ndimage.median_filter(image.astype(np.float64), footprint=foot, mode="reflect").astype(dtype)
    assert_same(apply("median", image, spacing=spacing, radius_nm=radius, block=(4, 5, 7)), want)


def test_median_takes_the_full_range_of_16_bits():
    image = np.random.default_rng(0).choice(np.array([0, 255, 256, 65279, 65280, 65535], np.uint16), (9, 10, 11))
    assert_same(apply("median", image, radius_nm=16), ndimage.median_filter(image, footprint=ball(16, spec_of(image)), mode="reflect"))


# -- white top-hat ---------------------------------------------------------------------------------------------------------------


def reference_tophat(image, radius, spacing):
    foot = ball(radius, spec_of(image, spacing))
    wide = image.astype(np.float64)
    low = ndimage.grey_erosion(wide, footprint=foot, mode="constant", cval=np.inf)
    dtype = f"u{image.dtype.name}" if image.dtype.kind == "i" else image.dtype
    return (wide - ndimage.grey_dilation(low, footprint=foot, mode="constant", cval=-np.inf)).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("spacing,radius", [(ISO, 7), (ISO, 25), ((50, 4.6, 4.6), 30), ((8, 4, 2), 21), ((2, 30, 60), 61)])
def test_tophat_is_exact(dtype, spacing, radius):
    image = picture((11, 14, 19), dtype, 2)
    want = reference_tophat(image, radius, spacing) if dtype != "float32" else None
    got = apply("white_tophat", image, spacing=spacing, radius_nm=radius, block=(6, 5, 8))
    if want is None:
        assert np.allclose(got, reference_tophat(image.astype(np.float64), radius, spacing), atol=1e-5)
    else:
        assert_same(got, want)


def test_tophat_of_signed_values_does_not_overflow():
    image = np.full((5, 5, 5), -30000, np.int16)
    image[2, 2, 2] = 30000
    out = apply("white_tophat", image, radius_nm=16)
    assert out.dtype == np.uint16 and out[2, 2, 2] == 60000 and out.sum() == 60000


def test_tophat_with_a_ball_beyond_the_volume():
    image = picture((5, 6, 7), "uint8")
    assert_same(apply("white_tophat", image, radius_nm=500, block=(2, 3, 3)), image - image.min())


def test_tophat_keeps_particles_and_makes_none_at_the_edge():
    image = np.tile((50 + 2 * np.arange(40)).astype(np.uint8), (40, 40, 1))  # a ramp that meets the edges
    z, y, x = np.mgrid[:40, :40, :40]
    image[(z - 20) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 <= 9] += 60
    out = apply("white_tophat", image, radius_nm=6 * 8)
    assert out[20, 20, 20] >= 55
    assert out[:, :, :3].max() == 0 and out[:3].max() <= 12  # at the dark end nothing; elsewhere at most the ramp within the ball


# -- local threshold -------------------------------------------------------------------------------------------------------------


def test_local_threshold_is_strict_and_exact():
    image = np.full((6, 7, 8), 65535, np.uint16)
    for direction in ("above", "below"):
        assert not apply("local_threshold", image, size_nm=40, direction=direction).any()  # equal to its mean: not beyond it
        assert apply("local_threshold", image, size_nm=40, offset=-1, direction=direction).all()


@pytest.mark.parametrize("method", ["mean", "gaussian"])
@pytest.mark.parametrize("spacing", [ISO, (50, 4.6, 4.6), (7.3, 1.1, 2.9)])
@pytest.mark.parametrize("size", [30, 100, 200])
def test_flat_ground_is_never_beyond_its_mean(method, spacing, size):
    """Saturated resin and padding: no grey value is set or unset by rounding."""
    rng = np.random.default_rng(size)
    floats = (10.0 ** rng.uniform(-6, 6, 40) * rng.choice([-1, 1], 40)).astype(np.float32)
    for values in (np.arange(256, dtype=np.uint8)[::3], rng.integers(0, 65536, 40).astype(np.uint16), floats, np.array([2**32 - 1], np.uint32)):
        for v in values:
            flat = np.full((1, 2, 3), v)
            for direction in ("above", "below"):
                assert not apply("local_threshold", flat, spacing=spacing, size_nm=size, method=method, direction=direction).any(), v


def test_the_gaussian_mean_is_scipys():
    image = picture((9, 20, 22), "float32", 4)
    local = ndimage.gaussian_filter(image.astype(np.float64), [60 / 6 / s for s in (9, 6.5, 5)], mode="reflect", truncate=4.0)
    got = apply("local_threshold", image, spacing=(9, 6.5, 5), size_nm=60, offset=3, method="gaussian", block=(4, 9, 22))
    clear = np.abs(image - local - 3) > 1e-3
    assert clear.mean() > 0.99 and np.array_equal(got[clear], (image > local + 3)[clear])


def test_local_threshold_follows_the_background():
    image = np.tile((20 + 3 * np.arange(60)).astype(np.uint8), (12, 12, 1))
    image[6, 6, 10] += 15
    image[6, 6, 45] += 15
    out = apply("local_threshold", image, size_nm=56, offset=10)
    assert np.argwhere(out).tolist() == [[6, 6, 10], [6, 6, 45]]


@pytest.mark.parametrize("method", ["mean", "gaussian"])
def test_local_threshold_within_a_mask(method):
    """Against a mean taken over the mask alone, voxel by voxel; what lies outside the mask changes nothing."""
    rng = np.random.default_rng(5)
    image, mask = rng.integers(0, 255, (9, 14, 15)).astype(np.uint8), rng.random((9, 14, 15)) < 0.4
    mask[:, 3:9, 4:9] = False
    got = apply("local_threshold", image, mask, kinds=("image", "mask"), size_nm=40, offset=2, method=method)
    other = np.where(mask, image, 255 - image)
    assert np.array_equal(got, apply("local_threshold", other, mask, kinds=("image", "mask"), size_nm=40, offset=2, method=method))
    op = build("local_threshold", {"size_nm": 40, "offset": 2, "method": method})
    half = op.halo(Spacing(8, 8, 8))
    line = [np.ones(2 * h + 1) for h in half] if method == "mean" else [np.exp(-0.5 * (np.arange(-h, h + 1) / (40 / 6 / 8)) ** 2) for h in half]
    weights = line[0][:, None, None] * line[1][:, None] * line[2]
    padded = [np.pad(a.astype(float), [(h, h) for h in half], mode="symmetric") for a in (image * mask, mask)]
    views = [np.lib.stride_tricks.sliding_window_view(a, weights.shape) for a in padded]
    grey, share = ((v * weights).sum((-3, -2, -1)) for v in views)
    want = np.divide(grey, share, out=np.full(image.shape, np.inf), where=share > 0)
    assert not got[~mask].any() and got.any()
    clear = np.abs(image - want - 2) > 1e-3
    assert np.array_equal(got[clear], (mask & (image > want + 2))[clear])


def test_local_threshold_agrees_with_skimage():
    from skimage.filters import threshold_local

    image = picture((9, 20, 22), "float64")
    local = threshold_local(image, (5, 7, 9), method="mean", mode="reflect")
    got = apply("local_threshold", image, spacing=(9, 6.5, 5), size_nm=47, offset=3)
    clear = np.abs(image - local - 3) > 1e-9
    assert np.array_equal(got[clear], (image > local + 3)[clear])


def test_local_threshold_of_a_probability_takes_offsets_of_0_to_1():
    image = np.zeros((5, 5, 5), np.uint8)
    image[2, 2, 2] = 255
    for method in ("mean", "gaussian"):
        assert apply("local_threshold", image, kinds=("probability",), size_nm=40, offset=0.5, method=method).sum() == 1
        assert not apply("local_threshold", image, kinds=("probability",), size_nm=40, offset=1.5, method=method).any()


# -- grey values -----------------------------------------------------------------------------------------------------------------


def test_invert():
    for dtype in ("uint8", "uint16", "int16"):
        image = picture((4, 5, 6), dtype)
        assert_same(apply("invert", apply("invert", image)), image)
    assert apply("invert", np.array([[[0, 200, 255]]], np.uint8), maximum=200).ravel().tolist() == [200, 0, 0]
    assert apply("invert", np.array([[[0, 0.25]]], np.float32), maximum=1).ravel().tolist() == [1, 0.75]
    with pytest.raises(RecipeError, match="needs 'maximum'"):
        apply("invert", np.zeros((2, 2, 2), np.float32))
    with pytest.raises(RecipeError, match="whole number of 0 to 255"):
        apply("invert", np.zeros((2, 2, 2), np.uint8), maximum=300)
    with pytest.raises(RecipeError, match="takes no 'maximum'"):
        apply("invert", np.zeros((2, 2, 2), np.int16), maximum=30)


def test_grey_values_of_a_probability_are_in_0_to_1():
    """Whether it is stored in 255 steps or as floats."""
    p = np.array([[[0, 64, 128, 255]]], np.uint8)
    as_float = p / np.float32(255)
    keep = p > 100
    for name, arrays, params in (("invert", (), {"maximum": 1}), ("invert", (), {"maximum": 0.6}), ("mask", (keep,), {"fill": 0.4})):
        got = apply(name, p, *arrays, kinds=("probability", "mask"), **params)
        want = apply(name, as_float, *arrays, kinds=("probability", "mask"), **params)
        assert got.dtype == np.uint8 and np.allclose(got / 255, np.maximum(want, 0), atol=0.5 / 255), (name, params)
    for name, arrays, params in (("invert", (), {"maximum": 255}), ("mask", (keep,), {"fill": 17}), ("mask", (keep,), {"fill": -0.1})):
        with pytest.raises(RecipeError, match="0 to 1"):
            apply(name, p, *arrays, kinds=("probability", "mask"), **params)


def test_rescale_between_values():
    image = np.array([[[0, 10, 20, 30, 40]]], np.uint8)
    assert apply("rescale", image, low=10, high=30).ravel().tolist() == [0, 0, 128, 255, 255]
    out = apply("rescale", image.astype(np.float32), low=10, high=30, dtype="float32")
    assert out.dtype == np.float32 and out.ravel().tolist() == [0, 0, 0.5, 1, 1]
    for wrong in ({"low": 3}, {"low": 9, "high": 9}, {"low_percentile": 50, "high_percentile": 50}):
        with pytest.raises(RecipeError, match="rescale"):
            apply("rescale", image, **wrong)


def test_rescale_by_percentiles_of_the_volume():
    image = np.arange(1000, dtype=np.uint16).reshape(10, 10, 10)
    out = apply("rescale", image, low_percentile=10, high_percentile=90, dtype="float32", block=(3, 4, 10))
    assert (out.ravel()[:100] == 0).all() and (out.ravel()[901:] == 1).all() and abs(out.ravel()[500] - 0.5) < 0.01
    assert apply("rescale", np.full((3, 3, 3), 7, np.uint8)).max() == 0  # no contrast: nothing to stretch


def test_mask_image():
    image, keep = picture((4, 5, 6), "uint8"), np.arange(120).reshape(4, 5, 6) % 3 == 0
    assert_same(apply("mask", image, keep, fill=9), np.where(keep, image, np.uint8(9)))
    assert_same(apply("mask", image, keep * np.uint64(2**40)), np.where(keep, image, np.uint8(0)))
    for wrong in (300, -1, 0.5):
        with pytest.raises(RecipeError, match="cannot hold"):
            apply("mask", image, keep, fill=wrong)


# -- logic -----------------------------------------------------------------------------------------------------------------------


def test_truth_tables():
    a, b = np.array([[[False, False, True, True]]]), np.array([[[False, True, False, True]]])
    as_labels = b * np.uint64(2**63)
    for other in (b, as_labels):
        assert apply("and", a, other).ravel().tolist() == [False, False, False, True]
        assert apply("or", a, other).ravel().tolist() == [False, True, True, True]
        assert apply("minus", a, other).ravel().tolist() == [False, False, True, False]
        assert apply("not", other).ravel().tolist() == [True, False, True, False]
        assert apply("mask_labels", np.array([[[5, 6, 7, 2**63]]], np.uint64), other).ravel().tolist() == [0, 6, 0, 2**63]


# -- holes -----------------------------------------------------------------------------------------------------------------------


def shell(shape=(16, 17, 18)):
    """A box of set voxels with three hollows: one large, one of a single voxel, one that is open to the volume's edge."""
    mask = np.zeros(shape, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    mask[4:10, 4:12, 4:13] = False
    mask[11, 13, 14] = False
    mask[12, 4, :5] = False
    return mask


def test_fill_holes_across_blocks():
    mask = shell()
    for block in (mask.shape, (5, 6, 7), (3, 17, 4)):
        got = apply("fill_holes", mask, block=block)
        assert_same(got, ndimage.binary_fill_holes(mask))
    assert got[6, 6, 6] and got[11, 13, 14] and not got[12, 4, 3]


def test_fill_holes_up_to_a_volume():
    got = apply("fill_holes", shell(), max_volume_nm3=2 * 8**3, block=(5, 6, 7))
    assert got[11, 13, 14] and not got[6, 6, 6]
    with pytest.raises(RecipeError):
        build("fill_holes", {"max_volume_nm3": 0})


def test_a_hole_open_over_a_corner_only_is_a_hole():
    mask = np.ones((5, 5, 5), bool)
    mask[2, 2, 2] = mask[1, 1, 1] = mask[0, 0, 0] = False
    got = apply("fill_holes", mask)
    assert got[2, 2, 2] and got[1, 1, 1] and not got[0, 0, 0]


def test_halos_are_in_voxels_of_each_axis():
    spacing = Spacing(50, 4.6, 4.6)
    assert build("gaussian", {"sigma_nm": 10}).halo(spacing) == (1, 9, 9)
    assert build("median", {"radius_nm": 10}).halo(spacing) == (0, 2, 2)
    assert build("white_tophat", {"radius_nm": 50}).halo(spacing) == (2, 20, 20)
    assert build("local_threshold", {"size_nm": 100}).halo(spacing) == (1, 10, 10)


@pytest.mark.parametrize("shape", [(1, 900, 1000), (1000, 900, 1)])
@pytest.mark.parametrize("name,params", [*FILTERS, ("rescale_between", {"low": 10, "high": 100}), ("white_tophat", {"radius_nm": 96})])
def test_memory_of_thin_volumes(name, params, shape):
    op = build(name, params)
    declared, traced, _ = measured_memory(op, usable(op)[0], shape)
    assert traced <= declared + 0.1


@pytest.mark.parametrize("name,params", [*FILTERS, ("rescale_between", {"low": 10, "high": 100}), ("white_tophat", {"radius_nm": 96})])
def test_memory_of_thin_blocks_of_thick_volumes(name, params):
    """A read box is no thicker than the halo makes it, however thick the volume."""
    op, spacing = build(name, params), Spacing(50, 4.6, 4.6)
    image = picture((40, 300, 300), "uint8")
    spec = spec_of(image, spacing)
    write = Box((20, 0, 0), (21, 300, 300))
    site = Site(spec.shape, spacing, op.read_box(write, spec.shape, spacing), write, (spec,))
    part = image[site.read.slices]
    op(part, site=site)  # compiles
    tracemalloc.start()
    op(part, site=site)
    traced = tracemalloc.get_traced_memory()[1] / part.size
    tracemalloc.stop()
    assert traced <= op.memory(spec) + 0.2
