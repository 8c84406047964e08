"""Histograms of whole volumes, and the thresholds taken from them."""

import json

import numpy as np
import pyarrow as pa
import pytest
from scipy import ndimage
from skimage.filters import threshold_otsu

from tests.ops.blockwise import assert_same, run, spec_of
from vemray.errors import RecipeError
from vemray.ops import build
from vemray.ops.base import Site
from vemray.ops.contingency import Contingency
from vemray.ops.histogram import Histogram, otsu, percentile
from vemray.ops.threshold import ThresholdAt


def image(dtype, seed=0, shape=(12, 15, 17)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), 1)
    field = np.where(smooth > 0.1, 1.0, 0.4) + 0.1 * rng.standard_normal(shape)
    scaled = {"uint8": field * 120, "int8": field * 80 - 60, "uint16": field * 30_000, "int16": field * 30_000 - 25_000, "float32": field * 1e3 - 700}
    info = (np.finfo if dtype == "float32" else np.iinfo)(dtype)
    return scaled[dtype].clip(info.min, info.max).astype(dtype)


def histogram(a, block=None, kind="image"):
    return run(Histogram(), {"image": a}, {"image": spec_of(a, kind=kind)}, block=block)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_integers_are_counted_exactly(dtype):
    a = image(dtype)
    h = histogram(a, (5, 4, 7))
    values, counts = np.unique(a, return_counts=True)
    assert h["values"] == values.tolist() and h["counts"] == counts.tolist()
    assert (h["min"], h["max"], h["count"]) == (a.min(), a.max(), a.size)
    assert h["mean"] == pytest.approx(a.mean(), rel=1e-12) and h["std"] == pytest.approx(a.std(), rel=1e-12)
    assert otsu(h) == threshold_otsu(hist=(counts, values))
    for q in (0, 1, 37, 50, 99, 100):
        assert percentile(h, q) == np.percentile(a, q, method="inverted_cdf")


def test_floats_in_bins_that_no_block_changes():
    a = image("float32")
    a[0, 0, :4] = [0.0, -0.0, 1e-40, -1e30]
    h = histogram(a)
    for block in ((5, 4, 7), (1, 1, 17), (64, 64, 64)):
        assert_same(h, histogram(a, block), rtol=0)
    assert json.loads(json.dumps(h)) == h
    exact = a.astype(np.longdouble)
    assert (h["min"], h["max"], h["count"]) == (a.min(), a.max(), a.size)
    assert h["mean"] == pytest.approx(float(exact.mean()), rel=1e-12) and h["std"] == pytest.approx(float(exact.std()), rel=1e-12)
    assert (np.diff(h["values"]) > 0).all()
    for q in (1, 37, 50, 99):
        want = float(np.percentile(a, q, method="inverted_cdf"))
        assert want <= percentile(h, q) <= want + abs(want) / 256
    cut = otsu(histogram(np.abs(a[1:])))
    assert cut == pytest.approx(float(threshold_otsu(np.abs(a[1:]), nbins=4096)), rel=0.02)


def test_percentiles_are_exact():
    """As defined, in whole numbers: no rounding of q / 100 moves a threshold to the next grey value."""
    for n in (100, 1000, 300):
        h = {"values": list(range(1, n + 1)), "counts": [1] * n}
        assert [percentile(h, q) for q in range(101)] == [max(1, -(-q * n // 100)) for q in range(101)]
    assert percentile({"values": list(range(1, 1001)), "counts": [1] * 1000}, 0.1) == 1


def test_a_probability_is_in_0_1():
    h = histogram(np.array([[[0, 51, 255]]], np.uint8), kind="probability")
    assert (h["min"], h["max"], h["values"]) == (0, 1, [0, 0.2, 1])
    assert h["mean"] == pytest.approx(0.4)


def test_what_is_not_counted():
    for bad in (np.nan, np.inf):
        with pytest.raises(RecipeError, match="not finite"):
            histogram(np.array([[[0, bad]]], np.float32))
    with pytest.raises(RecipeError, match="float64"):
        histogram(np.zeros((2, 2, 2)))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float32"])
def test_otsu_of_the_whole_volume(dtype):
    a = image(dtype, 1)
    whole = run(build("threshold", {"method": "otsu"}), {"image": a}, {"image": spec_of(a)}, block=(4, 15, 5))
    assert np.array_equal(whole, a > otsu(histogram(a)))
    assert 0.2 < whole.mean() < 0.7


@pytest.mark.parametrize("dtype, kind", [("uint8", "image"), ("int16", "image"), ("float32", "image"), ("uint8", "probability")])
def test_percentile_of_the_whole_volume(dtype, kind):
    a = image(dtype, 2)
    specs = {"image": spec_of(a, kind=kind)}
    above = run(build("threshold", {"method": "percentile", "percent": 80}), {"image": a}, specs, block=(5, 5, 5))
    at_or_below = run(build("threshold", {"method": "percentile", "percent": 80, "above": False}), {"image": a}, specs, block=(6, 6, 6))
    assert np.array_equal(above, ~at_or_below)
    assert above.mean() == pytest.approx(0.2, abs=0.02) and above.mean() <= 0.2


@pytest.mark.parametrize("lower, upper", [(0.5, None), (None, 0.5), (0.2, 0.7), (None, None), (-3.0, 7.0), (2.0, None)])
def test_values_on_a_probability(lower, upper):
    a = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    p = a / 255
    want = (p >= (-np.inf if lower is None else lower)) & (p <= (np.inf if upper is None else upper))
    got = ThresholdAt(lower, upper)(a, site=Site.whole(spec_of(a, kind="probability")))
    assert got.dtype == bool and np.array_equal(got, want)


def test_thresholds_that_make_no_sense():
    for parameters in ({}, {"method": "otsu", "value": 3}, {"method": "percentile"}):
        with pytest.raises(RecipeError, match="threshold"):
            build("threshold", parameters).expand({"image": "a"})


@pytest.mark.parametrize("block", [None, (5, 4, 3), (1, 9, 9)])
def test_contingency(block):
    rng = np.random.default_rng(4)
    a = rng.choice(np.array([0, 3, 2**64 - 1], np.uint64), (7, 8, 9))
    b = (rng.random(a.shape) > 0.5) if block else rng.integers(0, 5, a.shape).astype(np.uint16)
    specs = {"a": spec_of(a), "b": spec_of(b, kind="mask" if b.dtype == bool else "labels")}
    table = run(Contingency(), {"a": a, "b": b}, specs, block=block)
    pairs, n = np.unique(np.stack([a.ravel(), b.ravel().astype(np.uint64)]), axis=1, return_counts=True)
    assert table.equals(pa.table({"a": pairs[0], "b": pairs[1], "voxels": n}))


def test_contingency_of_many_pairs():
    """More pairs than the table first has room for."""
    a = np.arange(20_000, dtype=np.uint32).reshape(20, 50, 20)
    b = a[::-1].astype(np.uint64) << np.uint64(33)
    table = run(Contingency(), {"a": a, "b": b}, {"a": spec_of(a, kind="labels"), "b": spec_of(b)}, block=(7, 50, 11))
    assert table.num_rows == a.size and table["voxels"].to_numpy().max() == 1 and (table["a"].to_numpy() == np.arange(a.size)).all()
