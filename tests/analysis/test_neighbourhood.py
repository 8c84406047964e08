"""Neighbours and kernel density against scipy and scikit-learn on random points."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import KernelDensity

from vemray.analysis.density import kernel_density, kernel_sums
from vemray.analysis.neighbours import neighbours
from vemray.errors import RecipeError


def objects(zyx, labels=None, **more):
    zyx = np.asarray(zyx, float).reshape(-1, 3)
    labels = np.arange(1, len(zyx) + 1) if labels is None else labels
    return pa.table({"label": np.asarray(labels, np.uint64), **{f"centroid_{a}_nm": zyx[:, i] for i, a in enumerate("zyx")}, **more})


def scattered(seed, n, lattice):
    """Points; on a lattice of thin voxels many distances tie and places coincide."""
    rng = np.random.default_rng(seed)
    zyx = rng.integers(0, 9, (n, 3)) * np.array([13.8, 4.6, 4.6]) if lattice else rng.normal(0, 300, (n, 3))
    return zyx, rng.permutation(3 * n)[:n].astype(np.uint64) + np.uint64(2**63)


def reference(zyx, labels, other, other_labels, same, k, radius):
    """All distances, row by row."""
    rows = []
    for i, d in enumerate(cdist(zyx, other)):
        keep = np.arange(len(other)) != i if same else np.ones(len(other), bool)
        d, ids = d[keep], other_labels[keep]
        if len(d) == 0:
            rows.append((0, None, None, None, 0))
            continue
        near = np.sort(d)[:k]
        rows.append((len(near), near.mean(), d.min(), int(ids[d <= d.min() * (1 + 1e-9)].min()), int((d <= radius).sum())))
    return rows


@pytest.mark.parametrize(
    "seed, n, lattice", [(0, 400, False), (1, 300, True), (2, 40, True), (3, 5, False), (4, 2, False), (5, 1, False), (6, 0, True)]
)
@pytest.mark.parametrize("m", [None, 0, 1, 150])
def test_neighbours_are_those_of_all_distances(seed, n, lattice, m):
    zyx, labels = scattered(seed, n, lattice)
    other, other_labels = (zyx, labels) if m is None else scattered(seed + 10, m, lattice)
    got = neighbours(objects(zyx, labels), None if m is None else objects(other, other_labels), 8, 50.3)
    assert got.column_names == [
        "label", "neighbours", "mean_neighbour_distance_nm", "nearest_distance_nm", "nearest_label", "neighbours_within_radius",
    ]  # fmt: skip
    want = reference(zyx, labels, other, other_labels, m is None, 8, 50.3)
    rows = [tuple(r.values())[1:] for r in got.to_pylist()]
    assert [(r[0], *r[3:]) for r in rows] == [(r[0], *r[3:]) for r in want]
    for i in (1, 2):
        assert [r[i] is None for r in rows] == [r[i] is None for r in want]
        np.testing.assert_allclose([r[i] for r in rows if r[i] is not None], [r[i] for r in want if r[i] is not None], rtol=1e-12)


def test_fewer_than_k_and_order_of_rows():
    got = neighbours(objects([[0, 0, 0], [0, 0, 3], [0, 4, 0]]))
    assert got["neighbours"].to_pylist() == [2, 2, 2]
    assert got["mean_neighbour_distance_nm"].to_pylist() == [3.5, 4.0, 4.5]
    zyx, labels = scattered(7, 200, True)
    order = np.random.default_rng(0).permutation(200)
    for call in (lambda t: neighbours(t, radius_nm=20.0), lambda t: kernel_density(t, 20.0)):
        assert call(objects(zyx, labels)).take(order).equals(call(objects(zyx[order], labels[order])))


def test_all_at_one_place():
    got = neighbours(objects(np.full((5000, 3), 7.0)), radius_nm=1.0)
    assert set(got["nearest_distance_nm"].to_pylist()) == {0.0} and set(got["neighbours_within_radius"].to_pylist()) == {4999}
    assert got["nearest_label"].to_pylist() == [2] + [1] * 4999
    assert kernel_sums(np.full((200_000, 3), 7.0), 100.0).tolist() == [200_000.0] * 200_000


def test_without_a_centre_and_in_other_data_sets():
    t = objects([[0, 0, 0], [0, 0, np.nan], [0, 0, 5], [0, 0, 1]], dataset=["a", "a", "a", "b"])
    got = neighbours(t, radius_nm=10.0)
    assert got["nearest_distance_nm"].to_pylist() == [5.0, None, 5.0, None]
    assert got["neighbours"].to_pylist() == [1, None, 1, 0] and got["neighbours_within_radius"].to_pylist() == [1, None, 1, 0]
    sums = kernel_density(t, 5.0)["kernel_sum"].to_pylist()
    assert sums == [pytest.approx(1 + np.exp(-0.5)), None, pytest.approx(1 + np.exp(-0.5)), 1.0]
    with pytest.raises(RecipeError, match="'centroid_z_nm', which is not a column"):
        neighbours(t.drop_columns(["centroid_z_nm"]))


@pytest.mark.parametrize("n, h", [(1, 10.0), (2, 10.0), (300, 0.5), (300, 40.0), (300, 1e4), (3000, 100.0)])
@pytest.mark.parametrize("lattice", [False, True])
def test_density_is_scikit_learns(n, h, lattice):
    zyx, labels = scattered(n, n, lattice)
    got = kernel_density(objects(zyx, labels), h)
    want = KernelDensity(kernel="gaussian", bandwidth=h).fit(zyx).score_samples(zyx)
    np.testing.assert_allclose(got["log_density_per_nm3"].to_numpy(), want, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(got["density_per_um3"].to_numpy(), np.exp(want) * 1e9, rtol=1e-10)
    np.testing.assert_allclose(got["number_density_per_um3"].to_numpy(), n * np.exp(want) * 1e9, rtol=1e-10)
    exact = np.exp(-(cdist(zyx, zyx) ** 2) / (2 * h * h)).sum(1)
    np.testing.assert_allclose(got["kernel_sum"].to_numpy(), exact, rtol=2e-12)


def test_far_apart_for_the_bandwidth():
    zyx = np.array([[0, 0, 0], [1e9, 0, 0], [1e9, 0, 1e-3]])
    assert kernel_sums(zyx, 1e-3).tolist() == pytest.approx([1, 1 + np.exp(-0.5), 1 + np.exp(-0.5)])
    assert kernel_density(objects([]), 10.0).num_rows == 0
