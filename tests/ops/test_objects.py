"""Objects chosen by their features and relabelled, from the composite down to the lookup."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import ndimage

from tests.ops.blockwise import run, spec_of
from vemray.errors import RecipeError
from vemray.ops import build
from vemray.ops.base import Site
from vemray.ops.objects import FilterObjects, Relabel, SelectObjects


def scene(seed=0, shape=(14, 16, 18)):
    rng = np.random.default_rng(seed)
    return ndimage.label(ndimage.gaussian_filter(rng.standard_normal(shape), 1) > 0.25)[0].astype(np.uint64)


def filtered(labels, block=None, image=None, **how):
    values, specs = {"labels": labels}, {"labels": spec_of(labels, (16, 8, 8))}
    if image is not None:
        values["image"], specs["image"] = image, spec_of(image, (16, 8, 8))
    return run(build("filter_objects", how), values, specs, block=block)


def test_small_and_cut_objects_go_whatever_the_blocks():
    labels = scene()
    n = np.bincount(labels.ravel().astype(int))
    edge = np.pad(np.zeros([v - 2 for v in labels.shape], bool), 1, constant_values=True)
    keep = (n > 4) & ~np.isin(np.arange(len(n)), labels[edge])
    keep[0] = False
    assert 1 < keep.sum() < len(n) - 2
    want = np.where(keep, np.cumsum(keep), 0).astype(np.uint64)[labels]
    for block in (None, (5, 16, 4), (1, 3, 18)):
        assert np.array_equal(filtered(labels, block, where="volume_voxels > 4 and not touches_border"), want)


def test_largest_and_intensity():
    labels = scene(1)
    n = np.bincount(labels.ravel().astype(int))[1:]
    kept = np.unique(labels[filtered(labels, (6, 6, 6), largest=3) > 0])
    assert sorted(n[kept.astype(int) - 1]) == sorted(n)[-3:]
    image = np.where(labels == 2, 200, 10).astype(np.uint8)
    assert np.array_equal(filtered(labels, None, image, where="intensity_mean > 100"), (labels == 2).astype(np.uint64))


def test_result_is_canonical_whatever_the_labels_were():
    labels = scene(2)
    foreign = np.random.default_rng(0).permutation(int(labels.max()) + 1).astype(np.uint64) + np.uint64(2**63)
    foreign[0] = 0
    assert np.array_equal(filtered(foreign[labels], (5, 5, 5)), labels)


def test_unknown_features_are_refused_when_planning():
    with pytest.raises(RecipeError, match="Did you mean 'volume_nm3'"):
        FilterObjects("volume_nm > 3").expand({"labels": "l"})
    with pytest.raises(RecipeError, match="Give an image"):
        FilterObjects("intensity_mean > 3").expand({"labels": "l"})
    steps = FilterObjects("volume_nm3 > 3").expand({"labels": "l", "image": "i"})
    assert steps[0].inputs == {"labels": "l"}, "an image that the condition does not need is not read"


def test_select_without_first_voxels():
    table = pa.table({"label": np.array([9, 4, 7], np.uint64), "size": [1, 5, 6]})
    assert SelectObjects("size > 2")(table).to_pydict() == {"label": [4, 7], "new_label": [1, 2]}
    assert SelectObjects("size > 20")(table).num_rows == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_relabel(dtype):
    labels = np.array([[[0, 1, 1, 5], [9, 5, 1, 0]]], dtype)
    site = Site.whole(spec_of(labels, kind="labels"))
    table = pa.table({"old": np.array([5, 1, 0], np.int64), "kind": [2.0, 2.0, 7.0]})
    out = Relabel("old", "kind")(labels, table, site=site)
    assert out.dtype == np.uint64 and out.tolist() == [[[0, 2, 2, 2], [0, 2, 2, 0]]]
    none = Relabel("old", "kind")(labels, table.slice(0, 0), site=site)
    assert not none.any()


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"label": [1], "new_labels": [1]}, "Did you mean 'new_labels'"),
        ({"label": [1, 1], "new_label": [2, 3]}, "two different values"),
        ({"label": [1], "new_label": [-2]}, "whole numbers"),
        ({"label": [1], "new_label": [0.5]}, "whole numbers"),
        ({"label": [1], "new_label": [None]}, "whole numbers"),
        ({"label": ["a"], "new_label": [1]}, "whole numbers"),
    ],
)
def test_tables_that_cannot_relabel(columns, said):
    labels = np.ones((1, 1, 2), np.uint64)
    with pytest.raises(RecipeError, match=said):
        Relabel()(labels, pa.table(columns), site=Site.whole(spec_of(labels)))
