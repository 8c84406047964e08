"""Distances inside objects, and objects split at their necks."""

import numpy as np
import pytest
from scipy import ndimage

from tests.ops.blockwise import run, spec_of
from tests.ops.test_combine import apply, raster_order
from tests.ops.test_objects_morphology import SPACINGS, scene, squared
from vemray.errors import RecipeError
from vemray.ops import build


@pytest.mark.parametrize("spacing", SPACINGS)
def test_distance_in_objects(spacing):
    rng = np.random.default_rng(1)
    for i in range(8):
        shape = tuple(int(n) for n in rng.integers(1, 11, 3))
        block = tuple(int(n) for n in rng.integers(1, 7, 3))
        labels = scene(rng, shape, "blobs" if i % 4 else "noise")
        other = labels.ravel()[:, None] != labels.ravel()[None]
        want = np.sqrt(np.where(other, squared(shape, spacing), np.inf).min(1)).reshape(shape)
        got = apply("distance_in_objects", block, i, spacing, {"labels": labels})
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, np.where(labels > 0, want, 0), rtol=1e-6)


def balls(*centres_and_radii, shape=(15, 17, 48)):
    grid = np.indices(shape)
    return np.any([sum((g - c) ** 2 for g, c in zip(grid, at)) <= r * r for *at, r in centres_and_radii], axis=0)


def test_two_balls_on_a_neck_are_two_and_a_touching_object_stays_one():
    labels = np.zeros((15, 17, 48), np.uint64)
    labels[balls((7, 8, 7, 6.3), (7, 8, 17, 6.3))] = 9
    labels[balls((7, 8, 29, 6.3), (7, 8, 30, 6.3)) & (labels == 0)] = 2**63 + 1  # a short capsule that touches
    labels[balls((7, 8, 42, 4.0))] = 4
    assert run(build("touching", {}), {"labels": labels}, {"labels": spec_of(labels)})["b"].to_pylist() == [2**63 + 1]
    for block in ((15, 17, 48), (7, 8, 9), (4, 17, 16)):
        for sigma in (None, 6.0):
            parts = apply("split_objects", block, 0, (8, 8, 8), {"labels": labels}, height_nm=10.0, sigma_nm=sigma)
            assert parts.max() == 4 and ((parts > 0) == (labels > 0)).all()
            assert [len(np.unique(parts[labels == i])) for i in (9, 2**63 + 1, 4)] == [2, 1, 1]
            cut = np.argwhere((labels == 9) & (parts == parts[7, 8, 7]))[:, 2]
            assert abs(cut.max() - 12) <= 1, "cut at the neck"
    whole = apply("split_objects", (7, 8, 9), 0, (8, 8, 8), {"labels": labels}, height_nm=30.0)
    np.testing.assert_array_equal(whole, raster_order(labels))


def test_only_chosen_objects_are_split_and_the_others_stay_in_one():
    labels = np.zeros((15, 17, 48), np.uint64)
    labels[balls((7, 8, 7, 6.3), (7, 8, 17, 6.3))] = 9
    labels[balls((7, 8, 30, 4.0), (7, 8, 42, 4.0))] = 3  # in two pieces
    for block in ((15, 17, 48), (7, 8, 9)):
        got = apply("split_objects", block, 0, (8, 8, 8), {"labels": labels}, height_nm=10.0, where="volume_voxels > 1000")
        assert got.max() == 3 and [len(np.unique(got[labels == i])) for i in (9, 3)] == [2, 1]
        np.testing.assert_array_equal(got, raster_order(got))
        none = apply("split_objects", block, 0, (8, 8, 8), {"labels": labels}, height_nm=10.0, where="volume_voxels > 1e6")
        np.testing.assert_array_equal(none, raster_order(labels))
    with pytest.raises(RecipeError, match="Did you mean 'volume_nm3'"):
        apply("split_objects", None, 0, (8, 8, 8), {"labels": labels}, height_nm=10.0, where="volume_nm > 1")


@pytest.mark.parametrize("sigma", [None, 10.0])
def test_random_objects_are_split_each_by_itself(sigma):
    """Without smoothing an object gets the parts that it gets alone in the volume."""
    rng = np.random.default_rng(7)
    for seed in range(5):
        labels = scene(rng, (13, 14, 15), "blobs")
        got = apply("split_objects", (5, 6, 7), seed, (16, 8, 4), {"labels": labels}, height_nm=3.0, sigma_nm=sigma)
        np.testing.assert_array_equal(got, raster_order(got))
        pairs = np.unique(np.stack([got.ravel(), labels.ravel()]), axis=1)
        assert (np.unique(pairs[0], return_counts=True)[1] == 1).all(), "no part lies in two objects"
        if sigma is None:
            for label in np.unique(labels[labels > 0]):
                alone = apply("split_objects", None, seed, (16, 8, 4), {"labels": np.where(labels == label, labels, 0)}, height_nm=3.0)
                np.testing.assert_array_equal(alone, raster_order(np.where(labels == label, got, 0)))


def test_an_object_that_is_the_whole_volume_stays():
    labels = np.full((5, 6, 7), 3, np.uint64)
    for sigma in (None, 9.0):
        assert (apply("split_objects", (2, 6, 4), 0, (8, 8, 8), {"labels": labels}, height_nm=1.0, sigma_nm=sigma) == 1).all()


def test_a_nucleus_cut_in_two_at_its_neck():
    mask = balls((7, 8, 10, 6.5), (7, 8, 20, 5.5), (7, 8, 29, 4.5)) & (np.random.default_rng(0).random((15, 17, 48)) > 0.002)
    distance = run(build("distance_map", {}), {"mask": mask}, {"mask": spec_of(mask)})
    for block in ((15, 17, 48), (6, 7, 10)):
        values = {"image": distance, "mask": mask}
        parts = apply("watershed", block, 0, (8, 8, 8), values, regions=2, invert=True)
        assert parts.max() == 2 and ndimage.label(mask, np.ones((3, 3, 3)))[1] == 1
