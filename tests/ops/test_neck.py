"""The neck of a body: two balls that overlap, whose neck is known; convex bodies, which have none; the sections cut by it."""

import numpy as np
import pyarrow as pa
import pytest

from tests.ops.blockwise import assert_same, run, spec_of
from vemray.errors import InputError, RecipeError
from vemray.geometry import ArraySpec, Spacing
from vemray.ops import build
from vemray.ops.neck import COLUMNS

#: voxels of the coarsest axis
RADIUS = 16
SPACINGS = [(8.0, 8.0, 8.0), (16.0, 8.0, 4.0), (50.0, 20.0, 20.0)]


def grid(shape, spacing) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing)], indexing="ij"), -1)


def balls(spacing, small: float, apart: float, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Two balls that overlap, the second `small` and `apart` radii away; the middle of the neck, the way to the smaller, the neck's area."""
    r = RADIUS * max(spacing)
    way = rng.standard_normal(3)
    way /= np.linalg.norm(way)
    ends = np.stack([-np.ones(3), apart * way - small, np.ones(3), apart * way + small]) * r
    low, high = ends.min(axis=0), ends.max(axis=0)
    middle = rng.random(3) * spacing + 2 * np.array(spacing) - low
    at = grid(np.ceil((high - low) / spacing).astype(int) + 5, spacing)
    body = (np.linalg.norm(at - middle, axis=-1) < r) | (np.linalg.norm(at - middle - apart * r * way, axis=-1) < small * r)
    cut = (apart**2 + 1 - small**2) / (2 * apart)
    return body, middle + cut * r * way, way, np.pi * (1 - cut**2) * r**2


def found(body: np.ndarray, spacing, **parameters) -> dict:
    table = run(build("neck", {"voxel_nm": 1.0} | parameters), {"labels": body}, {"labels": spec_of(body, spacing)}, block=(21, 30, 26), seed=1)
    return table.to_pylist()[0]


def vector(row: dict, name: str) -> np.ndarray:
    return np.array([row[name.format(a)] for a in "zyx"])


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("small, apart", [(0.7, 1.35), (0.6, 1.1), (0.5, 1.2)])
def test_two_balls(spacing, small, apart):
    """The plane within a voxel and a few degrees in any pose, although the smaller ball of the second pair is hardly wider than its neck."""
    rng = np.random.default_rng(2)
    for _ in range(3):
        body, neck, way, area = balls(spacing, small, apart, rng)
        row = found(body, spacing)
        normal = vector(row, "normal_{}")
        assert np.linalg.norm(normal) == pytest.approx(1)
        assert np.degrees(np.arccos(normal @ way)) < 6, "towards the smaller"
        assert abs((neck - vector(row, "point_{}_nm")) @ normal) < max(spacing)
        assert row["ratio"] < 0.7 and 1 < row["cut_area_nm2"] / area < 1.55
        at = grid(body.shape, spacing)[body]
        beyond = np.count_nonzero((at - neck) @ way > 0) * np.prod(spacing)
        assert row["volume_2_nm3"] == pytest.approx(beyond, rel=0.12) and row["volume_1_nm3"] > row["volume_2_nm3"]
        assert row["volume_1_nm3"] + row["volume_2_nm3"] == pytest.approx(len(at) * np.prod(spacing))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_convex_bodies_have_none(spacing):
    rng = np.random.default_rng(3)
    r = RADIUS * max(spacing)
    at = grid([int(2.4 * r / s) for s in spacing], spacing) - 1.2 * r
    turned = at @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
    bodies = [np.linalg.norm(at, axis=-1) < r, np.linalg.norm(turned * [1, 1.4, 2], axis=-1) < r, (np.abs(turned) < 0.6 * r).all(-1)]
    for body in bodies:
        assert found(body, spacing)["ratio"] > 0.95


def test_a_lattice_finds_the_same_plane():
    """Every third voxel, and the origin of the volume."""
    spacing = (8.0, 8.0, 8.0)
    body, neck, way, _ = balls(spacing, 0.7, 1.35, np.random.default_rng(4))
    origin = (1000.0, -70.0, 5e5)
    spec = ArraySpec(body.shape, "bool", Spacing(*spacing), "mask", origin)
    (row,) = run(build("neck", {"voxel_nm": 24.0}), {"labels": body}, {"labels": spec}).to_pylist()
    normal = vector(row, "normal_{}")
    assert np.degrees(np.arccos(normal @ way)) < 6 and abs((neck + origin - vector(row, "point_{}_nm")) @ normal) < 24


def test_sections():
    """1 is the larger, whatever the labels; a body without a neck is one; what is cut may be on other voxels."""
    spacing = (8.0, 8.0, 8.0)
    body, neck, way, _ = balls(spacing, 0.7, 1.35, np.random.default_rng(5))
    labels = np.where(body, np.where(np.indices(body.shape)[0] > 20, 9, 4), 0).astype(np.uint64)
    spec = {"labels": spec_of(labels, spacing)}
    table = run(build("neck", {"voxel_nm": 16.0}), {"labels": labels}, spec)
    got = run(build("sections_at_neck", {}), {"labels": labels, "neck": table}, spec, block=(9, 14, 11), seed=1)
    want = np.where(body, np.where((grid(body.shape, spacing) - neck) @ way > 0, 2, 1), 0)
    assert np.mean(got[body] == want[body]) > 0.98 and np.count_nonzero(got == 1) > np.count_nonzero(got == 2) > 0
    (row,) = table.to_pylist()
    plane = build("sections", {"point_nm": vector(row, "point_{}_nm").tolist(), "normal": vector(row, "normal_{}").tolist()})
    assert_same(got, run(plane, {"labels": labels}, spec))
    half = body[::2, ::2, ::2]
    coarse = run(build("sections_at_neck", {}), {"labels": half, "neck": table}, {"labels": spec_of(half, (16.0, 16.0, 16.0))})
    assert_same(coarse, got[::2, ::2, ::2])
    one = run(build("sections_at_neck", {"most_ratio": 0.3}), {"labels": labels, "neck": table}, spec)
    assert_same(one, body.astype(np.uint64))


def test_nothing_and_a_single_voxel():
    empty = np.zeros((7, 8, 9), bool)
    spec = {"labels": spec_of(empty)}
    table = run(build("neck", {}), {"labels": empty}, spec)
    assert table.num_rows == 0 and table.column_names == list(COLUMNS)
    assert not run(build("sections_at_neck", {}), {"labels": empty, "neck": table}, spec).any()
    empty[3, 4, 5] = True
    (row,) = run(build("neck", {"voxel_nm": 1.0}), {"labels": empty}, spec).to_pylist()
    assert row["ratio"] == pytest.approx(1) and vector(row, "point_{}_nm") == pytest.approx([24, 32, 40], abs=5)


def test_two_parts_that_do_not_touch():
    """The neck is the gap."""
    body = np.zeros((6, 7, 40), bool)
    body[:, :, :20] = body[:, :, 30:] = True
    row = found(body, (8.0, 8.0, 8.0))
    assert row["ratio"] < 1e-3 and row["volume_2_nm3"] == pytest.approx(6 * 7 * 10 * 512)
    assert 20 * 8 < row["point_x_nm"] < 29 * 8


def test_tables_that_are_none():
    body = np.ones((3, 4, 5), bool)
    spec, op = {"labels": spec_of(body)}, build("sections_at_neck", {})
    with pytest.raises(InputError, match="no column 'point_z_nm'"):
        run(op, {"labels": body, "neck": pa.table({"label": [1]})}, spec)
    with pytest.raises(RecipeError, match="has 2 rows"):
        run(op, {"labels": body, "neck": pa.table({name: [1.0, 0.5] for name in COLUMNS})}, spec)
