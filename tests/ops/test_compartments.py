"""Layers along surfaces against a distance map, and parents of objects against plain counting."""

import numpy as np
import pytest
from scipy import ndimage

from tests.ops.test_combine import apply, random_shapes
from tests.ops.test_objects_morphology import SPACINGS, scene
from vemray.errors import RecipeError


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("limits", [(-24.0, -8.0), (-8.0, 0.0), (-60.0, 20.0), (0.0, 8.0), (8.0, 24.0), (-9.2, 9.2), (13.0, 60.0)])
def test_shell_is_a_band_of_the_distance_map(spacing, limits):
    rng = np.random.default_rng(1)
    some = 0
    for i in range(5):
        shape = tuple(int(n) for n in rng.integers(2, 14, 3))
        mask = ndimage.gaussian_filter(rng.standard_normal(shape), 1) > 0
        if mask.all() or not mask.any():
            continue
        d = ndimage.distance_transform_edt(~mask, sampling=spacing) - ndimage.distance_transform_edt(mask, sampling=spacing)
        want = (d >= limits[0] - 1e-6 * abs(limits[0])) & (d <= limits[1] + 1e-6 * abs(limits[1]))
        values = {"mask": mask if i % 2 else mask * np.uint64(7)}
        got = apply("shell", (5, 4, 6), i, spacing, values, from_nm=limits[0], to_nm=limits[1])
        np.testing.assert_array_equal(got, want)
        some += got.sum()
    assert some or spacing != SPACINGS[0]


def test_shell_needs_two_distances_in_order():
    with pytest.raises(RecipeError, match="must lie below"):
        apply("shell", values={"mask": np.ones((2, 2, 2), bool)}, from_nm=-20, to_nm=-30)


def test_parents():
    for i, (rng, shape, block) in enumerate(random_shapes(5, 10)):
        labels, inner = scene(rng, shape, "noise"), scene(rng, shape, "blobs")
        outer = rng.random(shape) < 0.5
        values = {"labels": labels, "compartments.inner": inner, "compartments.outer": outer}
        got = apply("parents", block, i, values=values).to_pydict()
        assert got["label"] == np.unique(labels[labels > 0]).tolist()
        for k, label in enumerate(got["label"]):
            at = labels == label
            parts = {"inner": inner[at], "outer": outer[at].astype(np.uint64)}
            held = {name: np.count_nonzero(v) / at.sum() for name, v in parts.items()}
            parent = max(held, key=held.get) if any(held.values()) else None
            assert got["volume_voxels"][k] == at.sum() and got["parent"][k] == parent
            assert [got[f"in_{name}"][k] for name in held] == pytest.approx(list(held.values()))
            if parent:
                ids, n = np.unique(parts[parent][parts[parent] > 0], return_counts=True)
                assert got["parent_label"][k] == ids[np.argmax(n)] and got["parent_fraction"][k] == pytest.approx(held[parent])
            else:
                assert got["parent_label"][k] is None and got["parent_fraction"][k] == 0


def test_no_objects_have_no_parents():
    nothing = np.zeros((3, 4, 5), np.uint64)
    table = apply("parents", values={"labels": nothing, "compartments.cell": nothing > 0})
    assert table.num_rows == 0 and table.column_names == ["label", "volume_voxels", "parent", "parent_label", "parent_fraction", "in_cell"]
