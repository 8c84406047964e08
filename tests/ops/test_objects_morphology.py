"""Morphology of objects: against brute force on small volumes, against scipy and scikit-image, and against masks one object at a time."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.segmentation import expand_labels

from tests.ops.blockwise import run, spec_of
from vemray.ops import build

IDS = np.array([0, 9, 4, 2**40 + 3, 2**63 + 11, 77], np.uint64)
SPACINGS = [(8.0, 8.0, 8.0), (16.0, 8.0, 4.0), (50.0, 4.6, 4.6)]


def scene(rng, shape, kind):
    """Touching objects (blobs cut by planes), specks, or both."""
    if kind == "noise":
        return IDS[rng.integers(1, len(IDS), shape) * (rng.random(shape) < 0.3)]
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    zones = sum(rng.integers(0, 5, 1) + (np.indices(shape)[a] > shape[a] // 2) for a in range(3))
    return IDS[np.where((field > -0.02) | (rng.random(shape) < 0.03), 1 + zones % 5, 0)]


def squared(shape, spacing):
    """Squared distances between all voxels (n, n), in nm2."""
    at = np.indices(shape).reshape(3, -1).T * np.array(spacing)
    return ((at[:, None] - at[None]) ** 2).sum(-1)


def apply(name, labels, spacing, block=None, seed=0, mask=None, **parameters):
    values, specs = {"labels": labels}, {"labels": spec_of(labels, spacing)}
    if mask is not None:
        values["mask"], specs["mask"] = mask, spec_of(mask, spacing)
    return run(build(name, parameters), values, specs, block=block, seed=seed)


def expanded(labels, spacing, r, mask=None):
    d = squared(labels.shape, spacing)
    flat = labels.ravel()
    out = flat.copy()
    for v in np.flatnonzero((flat == 0) & (True if mask is None else mask.ravel())):
        near = [(round(d[v, u], 6), int(flat[u])) for u in np.flatnonzero((flat != 0) & (d[v] <= r * r * (1 + 2e-6)))]
        out[v] = min(near)[1] if near else 0
    return out.reshape(labels.shape)


def eroded(labels, spacing, r):
    other = labels.ravel()[:, None] != labels.ravel()[None]
    return labels * ~(other & (squared(labels.shape, spacing) <= r * r * (1 + 2e-6))).any(1).reshape(labels.shape)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["noise", "blobs"])
def test_against_brute_force(spacing, kind):
    rng = np.random.default_rng(len(kind))
    for seed in range(12):
        shape = tuple(int(n) for n in rng.integers(1, 11, 3))
        block = tuple(int(n) for n in rng.integers(1, 7, 3))
        labels = scene(rng, shape, kind)
        sparse = labels * (rng.random(shape) < 0.15).astype(np.uint64)
        r = float(rng.choice([4.0, 8.0, 8.0 * 2**0.5, 17.0, 24.0, 50.0]))
        mask = rng.random(shape) < 0.5 if seed % 2 else None
        np.testing.assert_array_equal(apply("expand_labels", sparse, spacing, block, seed, mask, distance_nm=r), expanded(sparse, spacing, r, mask))
        np.testing.assert_array_equal(apply("erode_objects", labels, spacing, block, seed, radius_nm=r), eroded(labels, spacing, r))
        grown = expanded(sparse, spacing, r)
        closed = np.where(sparse != 0, sparse, eroded(grown, spacing, r))
        np.testing.assert_array_equal(apply("close_objects", sparse, spacing, block, seed, radius_nm=r), closed)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_open_is_the_opening_of_each_object_alone(spacing):
    rng = np.random.default_rng(3)
    for seed in range(6):
        labels = scene(rng, (12, 17, 15), "blobs")
        want = np.zeros_like(labels)
        for label in np.unique(labels[labels != 0]):
            want[run(build("open", {"radius_nm": 9.0}), {"mask": labels == label}, {"mask": spec_of(labels == label, spacing)})] = label
        assert want.any() and (want != labels).any()
        np.testing.assert_array_equal(apply("open_objects", labels, spacing, (5, 6, 7), seed, radius_nm=9.0), want)


def test_close_of_one_object_is_that_of_a_mask():
    rng = np.random.default_rng(4)
    mask = ndimage.gaussian_filter(rng.standard_normal((14, 18, 16)), 1) > 0.1
    labels = mask * np.uint64(2**63 + 1)
    want = run(build("close", {"radius_nm": 17.0}), {"mask": mask}, {"mask": spec_of(mask)})
    assert (want & ~mask).any()
    np.testing.assert_array_equal(apply("close_objects", labels, (8, 8, 8), (5, 9, 6), radius_nm=17.0), want * np.uint64(2**63 + 1))


def test_expand_equals_scikit_image_where_nothing_ties():
    rng = np.random.default_rng(5)
    labels = np.zeros((20, 24, 22), np.uint64)
    labels[tuple(rng.integers(0, n, 12) for n in labels.shape)] = np.arange(1, 13, dtype=np.uint64)
    spacing = (13.0, 8.0, 5.0)
    d = np.sort([ndimage.distance_transform_edt(labels != i, sampling=spacing) for i in range(1, 13)], axis=0)
    clear = d[1] - d[0] > 1e-6
    assert 0 < np.count_nonzero(~clear) < clear.size / 2
    want = expand_labels(labels.astype(np.int64), 60.0, spacing=spacing).astype(np.uint64)
    np.testing.assert_array_equal(apply("expand_labels", labels, spacing, (9, 7, 8), distance_nm=60.0)[clear], want[clear])


def test_a_tie_of_three_goes_to_the_smallest_label():
    """Parabolas that meet in one place: the middle one, the lowest there only, may not be lost."""
    labels = np.zeros((1, 6, 11), np.uint64)
    for y, x, label in ((0, 5, 7), (1, 2, 5), (1, 8, 6), (2, 1, 1), (2, 9, 2)):  # all 5 voxels from (5, 5)
        labels[0, y, x] = label
    for turned in (labels, labels.transpose(0, 2, 1), labels.transpose(1, 2, 0), labels.transpose(2, 0, 1)):
        got = apply("expand_labels", turned, (8, 8, 8), (1, 2, 3), distance_nm=60.0)
        np.testing.assert_array_equal(got, expanded(turned, (8, 8, 8), 60.0))
    assert apply("expand_labels", labels, (8, 8, 8), distance_nm=60.0)[0, 5, 5] == 1


def dumb_bell():
    """One object of two unequal lobes on a thin neck, a second object that touches it."""
    labels = np.zeros((7, 7, 22), np.uint64)
    labels[1:6, 1:6, 1:6] = 8
    labels[:, :, 9:16] = 8
    labels[3, 3, 6:9] = 8
    labels[:, :, 16:] = 5
    return labels


@pytest.mark.parametrize("name", ["erode_objects", "open_objects"])
@pytest.mark.parametrize("block", [(7, 7, 22), (3, 4, 5), (2, 7, 8)])
def test_an_object_that_falls_apart(name, block):
    labels = dumb_bell()
    whole = apply(name, labels, (8, 8, 8), block, radius_nm=8.0)
    assert set(np.unique(whole)) == {0, 5, 8} and ndimage.label(whole == 8)[1] == 2
    largest = apply(name, labels, (8, 8, 8), block, radius_nm=8.0, parts="largest")
    np.testing.assert_array_equal(largest, np.where((whole == 8) & (np.arange(22) < 8), 0, whole))
    parts = apply(name, labels, (8, 8, 8), block, radius_nm=8.0, parts="relabel")
    assert len(np.unique(parts)) == 4 and ((parts > 0) == (whole > 0)).all()
    for i in (1, 2, 3):
        assert len(np.unique(whole[parts == i])) == 1 and ndimage.label(parts == i)[1] == 1


def test_of_equal_pieces_the_first_is_kept():
    labels = np.zeros((5, 5, 13), np.uint64)
    labels[:, :, :5] = labels[:, :, 8:] = labels[2, 2] = 3
    got = apply("open_objects", labels, (8, 8, 8), (2, 5, 4), radius_nm=8.0, parts="largest")
    assert (got > 0)[:, :, :5].sum() > 60 and not got[:, :, 8:].any()
