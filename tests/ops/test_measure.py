"""Measurements against scikit-image, against exact arithmetic, and at sizes that overflow 64 bits."""

import fractions
import pickle

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import regionprops_table

from tests.ops.blockwise import assert_same, run, spec_of
from vemray.errors import RecipeError
from vemray.geometry import Box, Spacing
from vemray.ops.base import ArraySpec, Site
from vemray.ops.measure import SURFACE_COLUMNS, MeasureObjects

SPACING = (16.0, 8.0, 4.5)


def scene(rng, shape=(20, 24, 28), ids=None) -> np.ndarray:
    parts, n = ndimage.label(ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) > 0.05)
    ids = np.arange(n + 1) * 7_000_000_019 if ids is None else ids
    return ids.astype(np.uint64)[parts]


def measured(labels, image=None, block=None, seed=0, kind="image", spacing=SPACING):
    values, specs = {"labels": labels}, {"labels": spec_of(labels, spacing, "labels")}
    if image is not None:
        values["image"], specs["image"] = image, spec_of(image, spacing, kind)
    return run(MeasureObjects(), values, specs, block=block, seed=seed)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32])
def test_against_scikit_image(dtype):
    rng = np.random.default_rng(3)
    labels = scene(rng)
    image = (rng.standard_normal(labels.shape) * 40 + 90).clip(0, 250).astype(dtype)
    table = measured(labels, image, block=(7, 9, 11))
    dense = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    names = ("num_pixels", "area", "bbox", "centroid", "axis_major_length", "axis_minor_length")
    greys = ("intensity_mean", "intensity_std", "intensity_min", "intensity_max")
    want = regionprops_table(dense, image, properties=names + greys, spacing=SPACING)
    assert table["volume_voxels"].to_pylist() == want["num_pixels"].tolist()
    centroids = {f"centroid_{a}_nm": f"centroid-{i}" for i, a in enumerate("zyx")}
    for ours, theirs in {"volume_nm3": "area", **centroids, **{g: g for g in greys}}.items():
        np.testing.assert_allclose(table[ours].to_numpy(), want[theirs], rtol=1e-6, atol=1e-5, err_msg=ours)
    for i, a in enumerate("zyx"):
        assert table[f"bbox_{a}_min"].to_pylist() == want[f"bbox-{i}"].tolist()
        assert table[f"bbox_{a}_max"].to_pylist() == want[f"bbox-{i + 3}"].tolist()
    # scikit-image's axes are those of the ellipsoid of equal inertia; on covariances both are 2 sqrt(5 l)
    voluminous = want["num_pixels"] > 30
    np.testing.assert_allclose(table["axis_major_nm"].to_numpy()[voluminous], want["axis_major_length"][voluminous], rtol=1e-9)
    np.testing.assert_allclose(table["axis_minor_nm"].to_numpy()[voluminous], want["axis_minor_length"][voluminous], rtol=1e-6, atol=1e-5)


def test_axes_and_orientation_of_a_rod():
    """A long rod: its axis, and the axes of the ellipsoid with its moments."""
    points = np.stack(np.meshgrid(*[np.arange(60.0)] * 3, indexing="ij"), -1) * [2, 1, 1] - [60, 30, 30]
    axis = np.array([0.6, -0.48, 0.64])
    along = points @ axis
    labels = ((np.abs(along) <= 25) & (((points - along[..., None] * axis) ** 2).sum(-1) <= 16)).astype(np.uint8)
    (row,) = measured(labels, spacing=(2, 1, 1)).to_pylist()
    found = np.array([row[f"orientation_{a}"] for a in "zyx"])
    assert np.linalg.norm(found) == pytest.approx(1) and abs(found @ axis) > 0.9999
    assert found[np.abs(found).argmax()] > 0, "the sign is fixed"
    assert row["axis_major_nm"] == pytest.approx(2 * np.sqrt(5 * 50**2 / 12), rel=0.03)
    assert row["axis_minor_nm"] == pytest.approx(2 * np.sqrt(5 * 16 / 4), rel=0.05)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("block", [(7, 9, 11), (1, 24, 28), (20, 1, 5), (64, 64, 64), (3, 24, 2)])
def test_blocks_do_not_matter(block, dtype):
    rng = np.random.default_rng(5)
    labels = scene(rng, ids=rng.permutation(200).astype(np.uint64) + np.uint64(2**63))
    image = (rng.standard_normal(labels.shape) * 3000 + 9000).clip(0, 60000).astype(dtype)
    assert_same(measured(labels, image), measured(labels, image, block, seed=2), rtol=0)


def test_first_voxel_border_and_dtypes():
    rng = np.random.default_rng(6)
    small = ndimage.label(rng.random((6, 7, 8)) > 0.7)[0]
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64):
        table = measured(small.astype(dtype), block=(4, 4, 3))
        assert table["label"].to_pylist() == list(range(1, small.max() + 1)) and table.schema.field("label").type == "uint64"
        first = [int(np.flatnonzero(small.ravel() == k)[0]) for k in table["label"].to_pylist()]
        assert table["first_voxel"].to_pylist() == first
        inner = small[1:-1, 1:-1, 1:-1]
        cut = [bool((small == k).sum() > (inner == k).sum()) for k in table["label"].to_pylist()]
        assert table["touches_border"].to_pylist() == cut


def test_nothing_there():
    empty = measured(np.zeros((4, 5, 6), np.uint64), np.zeros((4, 5, 6), np.uint8), block=(2, 2, 2))
    assert empty.num_rows == 0 and empty.column_names == MeasureObjects.column_names(True)
    assert empty.schema.equals(measured(np.ones((2, 2, 2), np.uint64), np.ones((2, 2, 2), np.uint8)).schema)


def test_single_voxel():
    labels = np.zeros((3, 3, 3), np.uint64)
    labels[1, 1, 1] = 9
    (row,) = measured(labels).to_pylist()
    assert (row["axis_major_nm"], row["axis_minor_nm"], row["euler_number"], row["touches_border"]) == (0, 0, 1, False)
    assert [row[f"centroid_{a}_nm"] for a in "zyx"] == list(SPACING)


def test_probability_is_in_0_1():
    labels = np.ones((2, 2, 2), np.uint64)
    image = np.array([0, 255] * 4, np.uint8).reshape(2, 2, 2)
    (row,) = measured(labels, image, kind="probability").to_pylist()
    assert (row["intensity_mean"], row["intensity_std"], row["intensity_max"], row["intensity_sum"]) == (0.5, 0.5, 1, 4)


def exact_moments(boxes: list[Box], spacing) -> dict:
    """Centroid and covariance, from closed sums in rational numbers, of disjoint boxes."""
    n, s, ss = 0, [0] * 3, [[0] * 3 for _ in range(3)]
    for box in boxes:
        sizes = box.shape
        one = [sum(range(a, b)) for a, b in zip(box.start, box.stop)]
        two = [(b - 1) * b * (2 * b - 1) // 6 - (a - 1) * a * (2 * a - 1) // 6 for a, b in zip(box.start, box.stop)]
        n += box.size
        for a in range(3):
            s[a] += one[a] * box.size // sizes[a]
            for b in range(3):
                ss[a][b] += two[a] * box.size // sizes[a] if a == b else one[a] * one[b] * box.size // (sizes[a] * sizes[b])
    mean = [fractions.Fraction(v, n) for v in s]
    cov = np.array([[float(fractions.Fraction(ss[a][b], n) - mean[a] * mean[b]) * spacing[a] * spacing[b] for b in range(3)] for a in range(3)])
    return {"n": n, "centroid": [float(m) * v for m, v in zip(mean, spacing)], "cov": cov}


@pytest.mark.parametrize(
    "corners", [[(0, 0, 0), (1_000_003, 777_777, 999_999)], [(900_000, 900_000, 900_000), (900_020, 900_000, 900_011)], [(0, 0, 5)]]
)
def test_coordinates_of_any_size(corners):
    """Two solid blocks far from the origin, and from each other: sums beyond 64 bits come out exact."""
    side, spacing = 20, Spacing(4.0, 3.0, 5.0)
    shape = (1 << 20, 1 << 20, 1 << 20)
    spec = ArraySpec(shape, "uint32", spacing, "labels")
    op, part, boxes = MeasureObjects(), None, []
    for corner in corners:
        box = Box(corner, tuple(c + side for c in corner))
        one = op.measure_local(np.ones((side,) * 3, np.uint32), np.array([77], np.uint64), site=Site(shape, spacing, box, box, (spec,)))
        part = one if part is None else part.merge(one, 0)  # without surfaces no planes need to face
        boxes.append(box)
    (row,) = op.finish(part, (spec,)).to_pylist()
    want = exact_moments(boxes, spacing.zyx)
    assert (row["label"], row["volume_voxels"]) == (77, want["n"])
    np.testing.assert_allclose([row[f"centroid_{a}_nm"] for a in "zyx"], want["centroid"], rtol=1e-15)
    lengths = np.sqrt(20 * np.linalg.eigvalsh(want["cov"]))[::-1]
    np.testing.assert_allclose([row[f"axis_{n}_nm"] for n in ("major", "middle", "minor")], lengths, rtol=1e-9, atol=1e-9 * lengths[0])


def test_many_large_blocks_add_up_beyond_64_bits():
    """One object of 4096 blocks of 2^24 voxels each, as sums only: more than 10^10 voxels, second moments beyond 10^23."""
    op, spacing, shape = MeasureObjects(), Spacing(1, 1, 1), (256 * 16,) * 3
    spec = ArraySpec(shape, "uint32", spacing, "labels")
    box = Box((0, 0, 0), (256,) * 3)
    grey = ArraySpec(shape, "float32", spacing)
    labels, image = np.ones(box.shape, np.uint32), np.full(box.shape, 50_000.0, np.float32)
    image[::2] = 50_001.0
    base = op.measure_local(labels, np.array([1], np.uint64), image, site=Site(shape, spacing, box, box, (spec, grey)))

    def merged(start, count, axis):
        """Blocks start.. of `count` along each axis: the first is measured, the others are it moved."""
        if axis == 3:
            return moved(base, start)
        parts = [merged((*start, i), count, axis + 1) for i in range(count)]
        while len(parts) > 1:
            parts = [parts[i].merge(parts[i + 1], axis) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
        return parts[0]

    def moved(part, at):
        from vemray.ops import measure as m

        out = pickle.loads(pickle.dumps(part))
        shift = [256 * v for v in at]
        n = int(part.narrow[0, 0])
        s = [int(part._exact(np.array([0]), i)[0]) for i in range(3)]
        ss = [int(part._exact(np.array([0]), 3 + i)[0]) for i in range(6)]
        ss = [v + shift[a] * s[b] + shift[b] * s[a] + shift[a] * shift[b] * n for v, (a, b) in zip(ss, m._PRODUCTS)]
        for i, v in enumerate([*(v + shift[a] * n for a, v in enumerate(s)), *ss]):
            out.high[0, i], out.low[0, i] = v >> m.mk.BITS, v & m._MASK
        out.narrow[0, 2:5] += shift
        out.narrow[0, 5:8] += shift
        return out

    (row,) = op.finish(merged((), 16, 0), (spec, grey)).to_pylist()
    side = 4096
    assert row["volume_voxels"] == side**3
    assert row["centroid_y_nm"] == (side - 1) / 2
    assert row["axis_major_nm"] == pytest.approx(np.sqrt(20 * (side**2 - 1) / 12), rel=1e-12)
    assert (row["intensity_mean"], row["intensity_std"]) == (50_000.5, 0.5)


def test_measured_between_the_passes():
    """Local labels by their keys, joined to final ids after the merge, without surfaces; or with them when no pieces touch in a block."""
    rng = np.random.default_rng(8)
    labels = scene(rng)
    specs = (spec_of(labels, SPACING, "labels"),)
    op = MeasureObjects()
    halves = [Box((0, 0, 0), (20, 24, 13)), Box((0, 0, 13), (20, 24, 28))]
    for surface in (False, True):
        parts, keys, ids, offset = [], [], [], 100
        for box in halves:
            here = np.unique(labels[box.slices])
            here = here[here > 0]
            local = np.searchsorted(here, labels[box.slices]) + 1
            local = np.where(labels[box.slices] > 0, local, 0).astype(np.uint32)
            if surface:  # keys that are not those of the other block join nothing
                mine = here
            else:
                mine = np.arange(offset, offset + len(here), dtype=np.uint64)
                offset += 1000
            site = Site(labels.shape, specs[0].spacing, box, box, specs)
            parts.append(pickle.loads(pickle.dumps(op.measure_local(local, mine, site=site, surface=surface))))
            keys.append(mine)
            ids.append(here)
        both, where = np.unique(np.concatenate(keys), return_index=True)
        final = np.concatenate(ids)[where]
        final[final == final[0]] = 0  # dropped
        part = parts[0].merge(parts[1], 2).rekey(both, final)
        whole = op.finish(op.measure(labels, site=Site.whole(*specs)), specs)
        whole = whole.filter(np.isin(whole["label"].to_numpy(), final[final > 0]))
        assert_same(whole if surface else whole.drop_columns(list(SURFACE_COLUMNS)), op.finish(part, specs), rtol=0)
    with pytest.raises(ValueError, match="surface"):
        op.measure(labels, site=Site.whole(*specs)).rekey(whole["label"].to_numpy(), np.ones(whole.num_rows, np.uint64))


@pytest.mark.parametrize("value", [np.nan, np.inf, -2e6])
def test_intensities_that_do_not_fit(value):
    image = np.full((2, 2, 2), value, np.float32)
    with pytest.raises(RecipeError, match="Rescale"):
        measured(np.ones((2, 2, 2), np.uint64), image)
    assert measured(np.zeros((2, 2, 2), np.uint64), image).num_rows == 0, "what lies outside the objects is not looked at"


def test_intensities_below_the_steps_are_refused():
    labels = np.ones((2, 2, 2), np.uint64)
    with pytest.raises(RecipeError, match="too small"):
        measured(labels, np.full((2, 2, 2), 3e-7, np.float32))
    image = np.zeros((2, 2, 2), np.float32)
    assert measured(labels, image)["intensity_mean"].to_pylist() == [0]
    image[0, 0, 0] = 0.25
    assert measured(labels, image)["intensity_mean"].to_pylist() == [0.25 / 8]


def test_refused_types():
    with pytest.raises(RecipeError, match="float64"):
        measured(np.ones((2, 2, 2), np.uint64), np.ones((2, 2, 2)))
    with pytest.raises(RecipeError, match="unsigned"):
        MeasureObjects().check(ArraySpec((2, 2, 2), "int32", Spacing(1, 1, 1), "labels"))
