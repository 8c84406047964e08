"""Agreement against scikit-image and against counting by hand."""

import numpy as np
import pytest
from skimage.metrics import adapted_rand_error
from skimage.metrics import variation_of_information as skimage_voi

from vemray.analysis import agreement as ag
from vemray.errors import RecipeError
from vemray.geometry import Spacing
from vemray.ops import build
from vemray.ops.base import ArraySpec, Site


def pairs(a, b):
    specs = [ArraySpec(a.shape, "uint64", Spacing(1, 1, 1), "labels")] * 2
    op = build("contingency", {})
    return op.finish(op.measure(a, b, site=Site.whole(*specs)), specs)


@pytest.mark.parametrize("seed", range(5))
def test_partitions_agree_with_scikit_image(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, (9, 10, 11)).astype(np.uint64)
    guess = np.where(rng.random(truth.shape) < 0.3, rng.integers(0, 8, truth.shape), truth).astype(np.uint64)
    o = ag.Overlaps(pairs(guess, truth))
    error, precision, recall = adapted_rand_error(truth.astype(int), guess.astype(int), ignore_labels=(0,))
    got = ag.adapted_rand(o)
    # which of the two scikit-image calls precision has changed between its versions
    assert got["error"] == pytest.approx(error, abs=1e-12)
    assert sorted([got["precision"], got["recall"]]) == pytest.approx(sorted([precision, recall]), abs=1e-12)
    under, over = skimage_voi(truth.astype(int), guess.astype(int))
    voi = ag.variation_of_information(o)
    assert sorted([voi["split"], voi["merge"]]) == pytest.approx(sorted([under, over]), rel=1e-9)


def test_voi_names_split_and_merge_rightly():
    truth = np.ones((4, 4, 4), np.uint64)
    halves = truth.copy()
    halves[:2] = 2
    assert ag.variation_of_information(ag.Overlaps(pairs(halves, truth))) == {"split": 1.0, "merge": 0.0, "sum": 1.0}
    assert ag.variation_of_information(ag.Overlaps(pairs(truth, halves))) == {"split": 0.0, "merge": 1.0, "sum": 1.0}


def test_objects_are_matched_one_to_one():
    truth, guess = np.zeros((1, 1, 30), np.uint64), np.zeros((1, 1, 30), np.uint64)
    truth[0, 0, :10], truth[0, 0, 10:20] = 1, 2
    guess[0, 0, :9] = 5  # IoU 0.9 with 1
    guess[0, 0, 9:16] = 6  # IoU 1/16 with 1, 6/11 with 2
    guess[0, 0, 16:20] = 7  # IoU 0.4 with 2
    o = ag.Overlaps(pairs(guess, truth))
    half, strict, loose = ag.objects(o, (0.5, 0.75, 0.3))
    assert (half["matched"], half["predicted"], half["true"]) == (2, 3, 2)
    assert half["recall"] == 1 and half["precision"] == pytest.approx(2 / 3) and half["f1"] == pytest.approx(0.8)
    assert half["mean_iou"] == pytest.approx((0.9 + 6 / 11) / 2)
    assert strict["matched"] == 1 and loose["matched"] == 2


def test_below_one_half_the_best_matching_is_found():
    truth, guess = np.zeros((1, 1, 100), np.uint64), np.zeros((1, 1, 100), np.uint64)
    truth[0, 0, :40], truth[0, 0, 40:80] = 1, 2
    guess[0, 0, 10:55], guess[0, 0, 60:90] = 1, 2
    (row,) = ag.objects(ag.Overlaps(pairs(guess, truth)), (0.2,))
    assert row["matched"] == 2


def test_voxels_and_the_empty():
    zero, one = np.zeros((3, 3, 3), np.uint64), np.ones((3, 3, 3), np.uint64)
    same = ag.agreement(pairs(zero, zero))
    assert same["voxels"]["dice"] == 1 and same["objects"][0]["f1"] == 1 and same["variation_of_information"]["sum"] == 0
    none = ag.agreement(pairs(zero, one))
    assert none["voxels"]["dice"] == 0 and none["objects"][0]["f1"] == 0 and none["objects"][0]["recall"] == 0
    extra = ag.agreement(pairs(one, zero))
    assert extra["voxels"]["precision"] == 0 and extra["objects"][0]["precision"] == 0


def test_background_of_the_truth_is_left_out_on_request():
    rng = np.random.default_rng(9)
    truth = rng.integers(0, 4, (6, 7, 8)).astype(np.uint64)
    guess = rng.integers(0, 4, truth.shape).astype(np.uint64)
    o = ag.Overlaps(pairs(guess, truth))
    for ignore in ((), (0,), (0, 3)):
        error, *_ = adapted_rand_error(truth.astype(int), guess.astype(int), ignore_labels=ignore)
        assert ag.adapted_rand(o, ignore)["error"] == pytest.approx(error, abs=1e-12)
        split, merge = skimage_voi(truth.astype(int), guess.astype(int), ignore_labels=ignore)
        assert ag.variation_of_information(o, ignore) == pytest.approx({"split": split, "merge": merge, "sum": split + merge})
    whole = ag.agreement(pairs(guess, truth))
    assert whole["adapted_rand"] == ag.adapted_rand(o, (0,)) and whole["variation_of_information"] == ag.variation_of_information(o, (0,))


def test_pairs_of_voxels_beyond_64_bits():
    """Two halves of 2^40 voxels run together: half of the pairs are right."""
    table = {"a": [1, 1], "b": [1, 2], "voxels": [1 << 40, 1 << 40]}
    got = ag.adapted_rand(ag.Overlaps(table))
    assert got["recall"] == 1 and got["precision"] == pytest.approx(0.5, rel=1e-11) and got["error"] == pytest.approx(1 / 3, rel=1e-11)
    many = {"a": np.arange(1, 100_001), "b": np.ones(100_000), "voxels": np.full(100_000, 1 << 19)}
    assert ag.adapted_rand(ag.Overlaps(many))["recall"] == pytest.approx(1e-5, rel=1e-4)


def test_many_objects_at_a_low_threshold():
    """A chain in which every object overlaps two others: the matching with most pairs, not the greedy one."""
    n = 2001
    voxels = np.where(np.arange(n) % 2, 60, 50)
    table = {"a": np.arange(n) // 2 + 1, "b": (np.arange(n) + 1) // 2 + 1, "voxels": voxels}
    (row,) = ag.objects(ag.Overlaps(table), (0.2,))
    assert (row["matched"], row["predicted"], row["true"]) == (1001, 1001, 1001)


def test_thresholds_are_shares():
    for wrong in (0, -0.5, 1.1, 50):
        with pytest.raises(RecipeError, match="IoU threshold"):
            ag.agreement({"a": [1], "b": [1], "voxels": [3]}, (wrong,))


def test_tables_of_objects():
    table = {"a": [0, 0, 1, 1, 1, 2, 3], "b": [0, 8, 0, 7, 8, 8, 0], "voxels": [50, 1, 4, 6, 2, 2, 9]}
    got = ag.agreement_tables(table)
    assert got["predicted"].to_pydict() == {
        "label": [1, 2, 3], "voxels": [12, 2, 9], "partner": [7, 8, 0], "iou": [0.5, 0.4, 0.0],
        "shared_voxels": [6, 2, 0], "partners": [2, 1, 0], "background_voxels": [4, 0, 9],
    }  # fmt: skip
    assert got["truth"].to_pydict() == {
        "label": [7, 8], "voxels": [6, 5], "partner": [1, 2], "iou": [0.5, 0.4],
        "shared_voxels": [6, 2], "partners": [1, 2], "background_voxels": [0, 1],
    }  # fmt: skip
    empty = ag.agreement_tables({"a": [0], "b": [0], "voxels": [3]})
    assert empty["truth"].num_rows == 0 and empty["predicted"].schema.equals(got["predicted"].schema)


def test_centroids_match_one_to_one():
    truth = np.array([[0.0, 0, 0], [0, 0, 100], [0, 0, 500]])
    guess = np.array([[0.0, 0, 55], [0, 0, 40], [0, 0, 900]])  # both of the first lie within 60 of both: as many pairs as possible, then the nearest
    assert ag.match_points(guess, truth, 60).tolist() == [[0, 1], [1, 0]]
    got = ag.centroids(guess, truth, 60)
    assert got["matched"] == 2 and got["precision"] == got["recall"] == got["f1"] == pytest.approx(2 / 3)
    assert got["median_distance_nm"] == pytest.approx(42.5)
    none = np.zeros((0, 3))
    assert ag.centroids(none, none, 60)["f1"] == 1 and ag.centroids(none, truth, 60)["recall"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_centroid_matching_is_the_best(seed):
    """Against every way to pair up few points."""
    from itertools import permutations

    rng = np.random.default_rng(seed)
    a, b = rng.random((5, 3)) * 100, rng.random((5, 3)) * 100
    d = np.linalg.norm(a[:, None] - b, axis=-1)
    best = max((sum(d[i, p[i]] <= 60 for i in range(5)), -sum(v for i in range(5) if (v := d[i, p[i]]) <= 60)) for p in permutations(range(5)))
    pairs = ag.match_points(a, b, 60)
    assert (len(pairs), -d[pairs[:, 0], pairs[:, 1]].sum()) == pytest.approx(best)
