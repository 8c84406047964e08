"""Labellings put together, objects chosen by tables, which objects touch, and their holes: against plain loops over voxels."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import ndimage

from tests.ops.blockwise import run, spec_of
from tests.ops.test_objects_morphology import IDS, SPACINGS, scene
from tests.ops.test_parts import by_definition
from vemray.errors import RecipeError
from vemray.ops import build


def apply(name, block=None, seed=0, spacing=(8.0, 8.0, 8.0), values=None, **parameters):
    specs = {k: spec_of(v, spacing) for k, v in values.items() if isinstance(v, np.ndarray)}
    return run(build(name, parameters), values, specs, block=block, seed=seed)


def raster_order(codes):
    """Each value (0: background) numbered 1..N by its first voxel."""
    values, first = np.unique(codes, return_index=True)
    order = values[np.argsort(first)]
    order = order[order != 0]
    out = np.zeros(codes.shape, np.uint64)
    for i, v in enumerate(order, 1):
        out[codes == v] = i
    return out


def random_shapes(seed, n=12, most=10):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        yield rng, tuple(int(v) for v in rng.integers(1, most, 3)), tuple(int(v) for v in rng.integers(1, 7, 3))


def test_combined_labels_are_numbered_in_raster_order():
    for i, (rng, shape, block) in enumerate(random_shapes(1)):
        a, b = scene(rng, shape, "noise"), scene(rng, shape, "blobs")
        codes = np.where(a != 0, np.searchsorted(np.sort(IDS), a), np.where(b != 0, 100 + np.searchsorted(np.sort(IDS), b), 0))
        np.testing.assert_array_equal(apply("combine_labels", block, i, values={"a": a, "b": b}), raster_order(codes))
        np.testing.assert_array_equal(apply("combine_labels", block, i, values={"a": a, "b": b}, ids="keep"), np.where(a != 0, a, b))


def test_objects_chosen_by_a_table():
    table = pa.table({"label": np.array([9, 4, 2**63 + 11, 4], np.uint64), "distance_nm": [3.0, 70.0, None, 1.0], "kind": [1, 1, 2, 3]})
    for i, (rng, shape, block) in enumerate(random_shapes(2)):
        labels = scene(rng, shape, "noise")
        want = np.where(np.isin(labels, IDS[[1, 2]]), labels, 0)
        how = {"values": {"labels": labels, "table": table}, "where": "distance_nm < 5"}
        np.testing.assert_array_equal(apply("select_labels", block, i, renumber=False, **how), want)
        np.testing.assert_array_equal(apply("select_labels", block, i, **how), raster_order(want))
    none = apply("select_labels", values={"labels": labels, "table": table.slice(0, 0)}, where="kind == 1")
    assert not none.any()
    with pytest.raises(RecipeError, match="Did you mean 'distance_nm'"):
        apply("select_labels", values={"labels": labels, "table": table}, where="distance < 3")


def touches(a, b, connectivity):
    """{(label of a, label of b): faces by axis} of all pairs of neighbouring voxels; `b` None: within `a`."""
    found = {}
    other = a if b is None else b
    for v in np.ndindex(a.shape):
        for d in np.ndindex(3, 3, 3):
            d = np.array(d) - 1
            w = tuple(v + d)
            if not d.any() or (connectivity == 6 and abs(d).sum() > 1) or any(not 0 <= c < n for c, n in zip(w, a.shape)):
                continue
            p, q = int(a[v]), int(other[w])
            if p and q and (b is not None or p < q):
                faces = found.setdefault((p, q), [0, 0, 0])
                if abs(d).sum() == 1:
                    faces[int(np.flatnonzero(d)[0])] += 1
    return found


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("other", ["none", "labels", "mask"])
def test_touching(connectivity, other):
    for i, (rng, shape, block) in enumerate(random_shapes(3, 8, 7)):
        values = {"labels": scene(rng, shape, "noise" if i % 2 else "blobs")}
        if other != "none":
            values["other"] = scene(rng, shape, "noise") if other == "labels" else rng.random(shape) < 0.3
        got = apply("touching", block, i, (16.0, 8.0, 4.0), values, connectivity=connectivity).to_pydict()
        want = touches(values["labels"], values.get("other"), connectivity)
        rows = dict(zip(zip(got["a"], got["b"]), zip(got["faces_z"], got["faces_y"], got["faces_x"])))
        assert list(rows) == sorted(want) and all(list(rows[k]) == want[k] for k in want)
        assert got["area_nm2"] == [z * 32 + y * 64 + x * 128 for z, y, x in rows.values()]


def filled(labels, spacing, largest):
    background = by_definition(labels == 0, 6).astype(int)
    out = labels.copy()
    edge = np.pad(np.zeros([max(0, n - 2) for n in labels.shape], bool), 1, constant_values=True)[tuple(slice(n) for n in labels.shape)]
    for part in range(1, background.max() + 1):
        at = background == part
        around = np.unique(labels[ndimage.binary_dilation(at) & ~at])
        if not (at & edge).any() and len(around) == 1 and at.sum() * np.prod(spacing) <= largest:
            out[at] = around[0]
    return out


@pytest.mark.parametrize("spacing", SPACINGS)
def test_holes_of_objects(spacing):
    changed = 0
    for i, (rng, _, block) in enumerate(random_shapes(4, 10)):
        shape = tuple(int(v) for v in rng.integers(6, 13, 3))
        labels = scene(rng, shape, "blobs") if i % 2 else IDS[1 + (np.indices(shape)[2] > 4)]
        labels = labels * (rng.random(shape) < 0.9)
        volume = float(np.prod(spacing))
        for parameters, largest in (({}, np.inf), ({"max_volume_nm3": 1.5 * volume}, 1.5 * volume)):
            got = apply("fill_objects", block, i, spacing, {"labels": labels}, **parameters)
            np.testing.assert_array_equal(got, filled(labels, spacing, largest))
            changed += np.count_nonzero(got != labels)
    assert changed > 20


def test_a_hole_between_two_objects_and_one_that_holds_another_stay():
    labels = np.zeros((7, 9, 18), np.uint64)
    labels[1:6, 1:8, 1:8] = 5
    labels[2:5, 2:7, 2:7] = 0
    labels[3, 3, 3] = 9  # an object within
    labels[1:6, 1:8, 8:12], labels[1:6, 1:8, 12:17] = 3, 4
    labels[3, 4, 11:13] = 0  # a hole of both
    labels[3, 4, 15] = 0  # a hole of one
    got = apply("fill_objects", (3, 4, 5), values={"labels": labels})
    want = labels.copy()
    want[3, 4, 15] = 4
    np.testing.assert_array_equal(got, want)
