"""Watershed: against the definition written plainly, against scikit-image, and block by block in every order."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import ndimage
from skimage.segmentation import watershed as skimage_watershed

from tests.ops.blockwise import assert_same, merge_tree, run, site_of, spec_of
from vemray.errors import RecipeError, VolumeError
from vemray.geometry import Grid
from vemray.ops.base import ArraySpec, Site
from vemray.ops.distance import DistanceMap
from vemray.ops.watershed import Watershed, label_block
from vemray.ops.watershed_graph import Rule


def steps_of(connectivity):
    return [d for d in itertools.product((-1, 0, 1), repeat=3) if any(d) and (connectivity == 26 or sum(map(abs, d)) == 1)]


def by_definition(image, height=0.0, connectivity=26, mask=None, markers=None, invert=False):
    """The watershed as its documentation says, one voxel at a time, one Kruskal over all edges. Labels canonical, or markers'."""
    shape, values = image.shape, np.float32(image) * np.float32(-1 if invert else 1)
    steps = steps_of(connectivity)
    voxels = [v for v in np.ndindex(shape) if mask is None or mask[v]]
    inside = set(voxels)
    index = {v: int(np.ravel_multi_index(v, shape)) for v in voxels}
    marker = {v: int(markers[v]) if markers is not None else 0 for v in voxels}

    def around(v):
        return [w for d in steps if (w := tuple(a + b for a, b in zip(v, d))) in inside]

    def order(v):
        return (not marker[v], values[v], index[v])

    def end(v):
        while not marker[v]:
            w = min([v, *around(v)], key=order)
            if w == v:
                break
            v = w
        return f"marker {marker[v]}" if marker[v] else v

    region = {v: end(v) for v in voxels}
    height_of = {v: np.float32(-np.inf) if marker[v] else values[v] for v in voxels}
    edges = []
    for v in voxels:
        for w in around(v):
            if index[v] < index[w] and region[v] != region[w]:
                edges.append(
                    (float(max(height_of[v], height_of[w])), index[v], steps.index(tuple(b - a for a, b in zip(v, w))), region[v], region[w])
                )
    owner = {r: r for r in region.values()}
    low = {r: -np.inf if isinstance(r, str) else float(values[r]) for r in owner}

    def find(r):
        while owner[r] != r:
            r = owner[r]
        return r

    for saddle, _, _, a, b in sorted(edges, key=lambda e: e[:3]):
        a, b = find(a), find(b)
        if a == b:
            continue
        if markers is None:
            higher = max(low[a], low[b])
            ok = saddle <= higher or saddle - higher <= height
        else:
            ok = not (isinstance(a, str) and isinstance(b, str))
        if ok:
            if isinstance(a, str):
                a, b = b, a
            owner[a] = b
            low[b] = min(low[a], low[b])
    out, ids = np.zeros(shape, np.uint64), {}
    for v in voxels:
        r = find(region[v])
        if markers is not None:
            out[v] = int(r.split()[1]) if isinstance(r, str) else 0
        else:
            out[v] = ids.setdefault(r, len(ids) + 1)
    return out


def made(op, block, seed, **arrays):
    arrays = {k: v for k, v in arrays.items() if v is not None}
    specs = {k: spec_of(v, kind={"image": "image", "mask": "mask", "markers": "labels", "within": "labels"}[k]) for k, v in arrays.items()}
    return run(op, arrays, specs, block=block, seed=seed)


def blockwise(label, op, grid, call, arrays, rng):
    sites = [site_of(op, grid, i, call) for i in range(len(grid))]
    found = [label([None if a is None else a[s.read.slices] for a in arrays], s) for s in sites]
    root = merge_tree({i: f.evidence for i, f in enumerate(found)}, grid, rng)
    numbering = root.resolve()
    out = np.zeros(grid.shape, np.uint64)
    for s, f in zip(sites, found):
        ids = numbering.ids[np.searchsorted(numbering.keys, f.keys)]
        out[s.write.slices] = np.concatenate([np.zeros(1, np.uint64), ids])[f.labels]
    return out, root


def landscape(rng, shape, levels):
    smooth = ndimage.gaussian_filter(rng.random(shape), rng.choice([0, 0.7, 1.5]))
    smooth = (smooth - smooth.min()) / max(1e-9, np.ptp(smooth))
    return (smooth * levels).astype(np.uint8) if levels < 256 else (smooth * 100).astype(np.float32)


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("seed", range(24))
def test_as_defined_however_cut(connectivity, seed):
    rng = np.random.default_rng([seed, connectivity])
    shape = tuple(int(n) for n in rng.integers(1, 12, 3))
    image = landscape(rng, shape, [3, 12, 1000][seed % 3])
    mask = rng.random(shape) < 0.8 if seed % 2 else None
    height = float(rng.choice([0, 1, 3, 10, 40, 1e9]))
    op = Watershed(height=height, connectivity=connectivity, invert=bool(seed % 4 == 3))
    want = by_definition(image, height, connectivity, mask, invert=op.invert)
    for order in range(5):
        block = tuple(int(n) for n in rng.integers(1, 7, 3))
        assert_same(made(op, block, order, image=image, mask=mask), want)


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("seed", range(24))
def test_markers_as_defined_however_cut(connectivity, seed):
    rng = np.random.default_rng([seed, connectivity, 1])
    shape = tuple(int(n) for n in rng.integers(1, 12, 3))
    image = landscape(rng, shape, [3, 12, 1000][seed % 3])
    mask = rng.random(shape) < 0.7 if seed % 2 else None
    ids = np.array([0, 5, 7, 2**40 + 3, 2**63 + 11], np.uint64)
    markers = ids[rng.choice(5, shape, p=[1 - 4 * p, p, p, p, p])] if (p := rng.choice([0.002, 0.02, 0.2])) else None
    want = by_definition(image, 0, connectivity, mask, markers)
    for order in range(5):
        block = tuple(int(n) for n in rng.integers(1, 7, 3))
        assert_same(made(Watershed(connectivity=connectivity), block, order, image=image, mask=mask, markers=markers), want)


def test_a_basin_that_joins_an_exit_lowers_what_the_exit_leads_to():
    image = np.array([[[0, 1, 1, 2, 2, 2, 2, 0, 1, 0, 0], [2, 3, 2, 1, 2, 1, 0, 3, 2, 0, 1], [2, 1, 3, 1, 2, 2, 2, 2, 2, 0, 1]]], np.float32)
    op = Watershed(1.0, 6, True)
    want = by_definition(image, 1.0, 6, invert=True)
    assert want.max() == 2
    for seed in range(90, 100):
        assert_same(made(op, (2, 2, 2), seed, image=image), want)


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("distinct", [False, True])
def test_thin_volumes_in_tiny_blocks(connectivity, distinct):
    """Where most regions lie in several blocks, and are known by their exits alone in most of them."""
    rng = np.random.default_rng([connectivity, distinct])
    for _ in range(60):
        shape = (int(rng.integers(1, 3)), int(rng.integers(3, 6)), int(rng.integers(9, 16)))
        image = (rng.integers(0, 4, shape) + (rng.random(shape) * 0.3 if distinct else 0)).astype(np.float32)
        op = Watershed(float(rng.uniform(0.6, 1.6) if distinct else rng.integers(1, 3)), connectivity, bool(rng.random() < 0.5))
        whole = made(op, None, 0, image=image)
        for seed in range(3):
            assert_same(whole, made(op, tuple(int(n) for n in rng.integers(1, 4, 3)), seed, image=image))


def test_height_of_a_probability_is_in_0_to_1():
    image = np.array([[[0, 50, 100, 50, 40, 200, 10, 0, 255]]], np.uint8)
    for height in (0.0, 0.2, 0.3):
        want = made(Watershed(height), (1, 1, 3), 0, image=image / np.float32(255))
        got = run(Watershed(height), {"image": image}, {"image": spec_of(image, kind="probability")}, block=(1, 1, 3))
        assert_same(got, want)
    assert got.max() == 2


@pytest.mark.parametrize("connectivity", [6, 26])
def test_equals_scikit_image_on_distinct_values(connectivity):
    rng = np.random.default_rng(connectivity)
    for sigma in (0.0, 1.0, 2.0):
        smooth = ndimage.gaussian_filter(rng.random((24, 30, 28)), sigma)
        image = np.argsort(np.argsort(smooth, axis=None)).reshape(smooth.shape).astype(np.float32)  # below 2^24: distinct as float32
        got = made(Watershed(connectivity=connectivity), (9, 11, 13), 1, image=image)
        structure = ndimage.generate_binary_structure(3, 3 if connectivity == 26 else 1)
        minima = image == ndimage.minimum_filter(image, footprint=structure, mode="nearest")
        want = skimage_watershed(image, np.where(minima, got, 0).astype(np.int64), connectivity=structure)
        assert len(np.unique(got[minima])) == np.count_nonzero(minima)
        np.testing.assert_array_equal(got, want)


def test_given_markers_are_near_scikit_image():
    rng = np.random.default_rng(3)
    mask = ndimage.gaussian_filter(rng.random((40, 44, 48)), 2.5) > 0.5
    image = ndimage.gaussian_filter(run(DistanceMap(), {"mask": mask}, {"mask": spec_of(mask)}), 1)
    peaks = (image == ndimage.maximum_filter(image, 7)) & mask
    markers = ndimage.label(peaks, np.ones((3, 3, 3)))[0].astype(np.uint64)
    got = made(Watershed(invert=True), (16, 20, 24), 1, image=image, mask=mask, markers=markers)
    want = skimage_watershed(-image, markers.astype(np.int64), connectivity=np.ones((3, 3, 3)), mask=mask)
    assert np.mean(got[mask] == want[mask]) > 0.99


@pytest.mark.parametrize("by_marks", [False, True])
def test_reduction_changes_nothing_and_keeps_little(by_marks):
    rng = np.random.default_rng(4)
    image = ndimage.gaussian_filter(rng.random((20, 22, 24), dtype=np.float32), 0.8)
    markers = (rng.integers(1, 9, image.shape) * (rng.random(image.shape) < 0.003)).astype(np.uint64) if by_marks else None
    op, grid = Watershed(), Grid(image.shape, (7, 8, 9))
    call = (spec_of(image), None, spec_of(markers) if by_marks else None)
    for height in (0.0, 0.02, 0.1, 0.3):
        rule = Rule(image.shape, True, by_marks, height)
        results = {}
        for reduce in (True, False):
            rule = dataclasses.replace(rule, reduce=reduce)
            results[reduce] = blockwise(
                lambda given, site, rule=rule: label_block(*given, site, rule, False),
                op,
                grid,
                call,
                [image, None, markers],
                np.random.default_rng(5),
            )
        assert_same(results[True][0], results[False][0])
        assert len(results[True][1].edges.a) == 0 == len(results[True][1].regions), "the whole volume's graph is reduced to nothing"


def test_a_deeper_height_only_joins():
    rng = np.random.default_rng(6)
    image = ndimage.gaussian_filter(rng.random((18, 20, 22), dtype=np.float32), 1)
    last = made(Watershed(height=0.0), (7, 7, 7), 0, image=image)
    for height in (0.005, 0.02, 0.05, 1.0):
        now = made(Watershed(height=height), (7, 7, 7), 0, image=image)
        pairs = np.unique(np.stack([last.ravel(), now.ravel()]), axis=1)
        assert len(np.unique(pairs[0])) == pairs.shape[1] and now.max() <= last.max()
        last = now
    assert last.max() == 1


def test_two_wells_and_two_markers_in_one():
    image = np.array([[[0, 3, 1, 9, 2, 9, 5]]], np.float32)
    assert made(Watershed(), (1, 1, 2), 0, image=image).ravel().tolist() == [1, 1, 2, 2, 3, 3, 4]
    assert made(Watershed(height=2.0), (1, 1, 2), 0, image=image).max() == 3
    one_well = np.array([[[3, 2, 1, 0, 1, 2, 3]]], np.float32)
    markers = np.array([[[9, 0, 0, 0, 0, 0, 4]]], np.uint64)
    assert set(made(Watershed(), (1, 1, 3), 0, image=one_well, markers=markers).ravel().tolist()) == {9, 4}


def test_infinite_values_and_plateaus():
    rng = np.random.default_rng(7)
    image = np.where(rng.random((6, 7, 8)) < 0.3, np.inf, np.where(rng.random((6, 7, 8)) < 0.3, -np.inf, 1.0)).astype(np.float32)
    for height in (0.0, 5.0):
        assert_same(made(Watershed(height=height), (3, 3, 3), 0, image=image), by_definition(image, height))
    assert (made(Watershed(), (2, 3, 4), 0, image=np.ones((5, 6, 7), np.uint8)) == 1).all()
    assert (made(Watershed(), (2, 3, 4), 0, image=np.ones((5, 6, 7), np.uint8), mask=np.zeros((5, 6, 7), bool)) == 0).all()


def test_refusals():
    spec = ArraySpec((4, 4, 4), "float32", spec_of(np.zeros((4, 4, 4))).spacing)
    with pytest.raises(RecipeError, match="height"):
        Watershed(height=3.0).check(spec, None, spec.like("uint64", "labels"))
    bad = np.zeros((4, 4, 4), np.float32)
    bad[1, 1, 1] = np.nan
    with pytest.raises(VolumeError, match="NaN"):
        Watershed().label(bad, site=Site.whole(spec))


def in_raster_order(labels):
    values, first = np.unique(labels, return_index=True)
    out = np.zeros(labels.shape, np.uint64)
    for i, v in enumerate((v for v in values[np.argsort(first)] if v), 1):
        out[labels == v] = i
    return out


def objects(rng, shape):
    ids = np.array([0, 7, 5, 2**63 + 11], np.uint64)
    return ids[(np.indices(shape).sum(0) // rng.integers(2, 6) + 1) % 4 * (rng.random(shape) < 0.9)]


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("seed", range(12))
def test_within_objects_is_each_object_alone(connectivity, seed):
    rng = np.random.default_rng([seed, connectivity, 2])
    shape = tuple(int(n) for n in rng.integers(1, 12, 3))
    image, within = landscape(rng, shape, [3, 12, 1000][seed % 3]), objects(rng, shape)
    height = float(rng.choice([0, 1, 3, 10, 40, 1e9]))
    want, n = np.zeros(shape, np.uint64), 0
    for label in np.unique(within[within > 0]):
        part = by_definition(image, height, connectivity, within == label)
        want[part > 0] = part[part > 0] + n
        n = int(want.max())
    for order in range(4):
        block = tuple(int(n) for n in rng.integers(1, 7, 3))
        got = made(Watershed(height=height, connectivity=connectivity), block, order, image=image, within=within)
        assert_same(got, in_raster_order(want))


@pytest.mark.parametrize("seed", range(12))
def test_most_persistent_regions(seed):
    """The smallest height at which no more regions are left than wanted, or than there are parts."""
    rng = np.random.default_rng([seed, 3])
    shape = tuple(int(n) for n in rng.integers(2, 9, 3))
    image = landscape(rng, shape, [12, 1000][seed % 2])
    mask = rng.random(shape) < 0.6 if seed % 3 == 2 else None
    least = float(rng.choice([0, 0, 2]))
    heights = np.unique(np.abs(np.float64(image.ravel())[:, None] - np.float64(image.ravel())[None]))
    heights = np.unique([least, *heights[heights > least]])
    for regions in (1, 2, 3, 7):
        low, high = 0, len(heights) - 1
        fewest = by_definition(image, heights[-1], 26, mask).max()
        while low < high:
            middle = (low + high) // 2
            if by_definition(image, heights[middle], 26, mask).max() <= max(regions, fewest):
                high = middle
            else:
                low = middle + 1
        want = by_definition(image, heights[low], 26, mask)
        for order in range(3):
            block = tuple(int(n) for n in rng.integers(1, 6, 3))
            assert_same(made(Watershed(height=least, regions=regions), block, order, image=image, mask=mask), want)


def test_what_cannot_be_combined():
    image, labels = np.zeros((2, 2, 2), np.float32), np.ones((2, 2, 2), np.uint64)
    with pytest.raises(RecipeError, match="'regions' has no meaning"):
        made(Watershed(regions=2), None, 0, image=image, markers=labels)
    with pytest.raises(RecipeError, match="'within' can be combined neither"):
        made(Watershed(), None, 0, image=image, markers=labels, within=labels)
