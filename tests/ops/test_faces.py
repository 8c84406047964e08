"""Surfaces and distances to them against brute force on small volumes, and on shapes whose areas are known."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from tests.ops.blockwise import SurfaceOf, run, spec_of
from vemray.errors import RecipeError
from vemray.geometry import Box
from vemray.ops.contacts import ContactSites
from vemray.ops.face_distance import CentreDistances, NearestSurface, SurfaceDistances
from vemray.ops.faces import AREA_STEP, Surface, SurfaceFaces, area_nm2, face_areas
from vemray.ops.membrane import Curvature, SurfaceAreas, SurfaceDensity

ISO, FLAT, ODD = (8.0, 8.0, 8.0), (16.0, 8.0, 4.0), (50.0, 4.6, 4.6)
BIG = 2**63 + 11


def objects(rng, shape, n) -> np.ndarray:
    """Labels with `n` boxes that may touch, hide one another and reach the border."""
    out = np.zeros(shape, np.uint64)
    for label in rng.permutation([3, 4, 2**40 + 1, BIG, 17, 90])[:n]:
        a = [int(rng.integers(0, s)) for s in shape]
        out[tuple(slice(v, v + int(rng.integers(1, 5))) for v in a)] = label
    return out


def brute_faces(labels: np.ndarray, background_only=False) -> list[tuple[int, int, int, int, int]]:
    """(label, z, y, x, d) by voxel after voxel."""
    out = []
    for at in np.argwhere(labels > 0):
        for axis, up in itertools.product(range(3), (0, 1)):
            other = at.copy()
            other[axis] += 1 if up else -1
            if (other < 0).any() or (other >= labels.shape).any():
                continue
            across = labels[tuple(other)]
            if across == 0 if background_only else across != labels[tuple(at)]:
                out.append((int(labels[tuple(at)]), *map(int, at), 2 * axis + up))
    return sorted(out)


def boxes(faces, spacing) -> tuple[np.ndarray, np.ndarray]:
    """lower and upper corners in nm."""
    f = np.array([v[1:] for v in faces]).reshape(-1, 4)
    lo, hi = 2.0 * f[:, :3] - 1, 2.0 * f[:, :3] + 1
    for i, d in enumerate(f[:, 3]):
        lo[i, d // 2] = hi[i, d // 2] = 2 * f[i, d // 2] + (1 if d % 2 else -1)
    return lo * np.array(spacing) / 2, hi * np.array(spacing) / 2


def brute_nearest(lo, hi, faces, spacing, own=None, which="any"):
    """(distance, label) of the nearest of `faces` to any of the boxes lo, hi."""
    faces = [f for f in faces if which == "any" or (f[0] == own) == (which == "own")]
    if not faces or not len(lo):
        return np.inf, 0
    flo, fhi = boxes(faces, spacing)
    gap = np.maximum(np.maximum(flo[None] - hi[:, None], lo[:, None] - fhi[None]), 0)
    d = np.sqrt((gap**2).sum(-1)).min(0)
    return d.min(), min(f[0] for f, v in zip(faces, d) if v <= d.min() + 1e-9)


@pytest.mark.parametrize("towards", ["any", "background"])
@pytest.mark.parametrize("shape", [(7, 8, 9), (1, 6, 7), (5, 1, 1)])
def test_faces_one_by_one(shape, towards):
    rng = np.random.default_rng(1)
    for n in range(6):
        labels = objects(rng, shape, n)
        want = brute_faces(labels, towards == "background")
        got = run(SurfaceFaces(towards), {"labels": labels}, {"labels": spec_of(labels, ODD)}, block=(3, 4, 5))
        assert [(int(a), *map(int, f)) for a, f in zip(got["label"], got["faces"])] == want


def test_reading_a_surface():
    rng = np.random.default_rng(2)
    labels = objects(rng, (12, 13, 14), 6)
    want = brute_faces(labels)
    for block in ((12, 13, 14), (5, 4, 9), (1, 1, 1)):
        surface = SurfaceOf(labels, spec_of(labels)).made(block)
        for label in (3, BIG, 5):
            assert [tuple(map(int, f)) for f in surface.faces_of(label)] == [f[1:] for f in want if f[0] == label]
        box = Box((2, 3, 0), (9, 9, 11))
        found = sorted((int(a), *map(int, f)) for part in surface.inside(box) for a in part.labels for f in part.of(a))
        assert found == [f for f in want if all(a <= v < b for a, v, b in zip(box.start, f[1:4], box.stop))]
        assert sum(len(f) for f in surface.blocks()) == len(want) == surface.index["faces"].sum()


def test_a_surface_larger_than_the_cache(monkeypatch):
    from vemray.ops import faces

    labels = objects(np.random.default_rng(3), (12, 13, 14), 6)
    monkeypatch.setattr(faces, "CACHE_BYTES", 3000)
    surface = SurfaceOf(labels, spec_of(labels)).made((4, 4, 4))
    assert [f for a in np.unique(labels[labels > 0]) for f in surface.faces_of(a).tolist()] == [list(f[1:]) for f in brute_faces(labels)]
    assert faces._cache.bytes == sum(map(faces._size, faces._cache.items.values()))
    assert faces._cache.bytes <= 3000 or len(faces._cache.items) == 1
    assert len(faces._cache.items) < len(surface)


@pytest.mark.parametrize("spacing", [ISO, FLAT, ODD])
@pytest.mark.parametrize("which", ["any", "own", "other"])
def test_surface_to_surface_by_brute_force(spacing, which):
    rng = np.random.default_rng(4)
    met = set()
    for n, m in [(0, 2), (1, 0), (1, 1), (2, 2), (4, 3), (6, 6)]:
        a, b = objects(rng, (9, 10, 11), n), objects(rng, (9, 10, 11), m)
        fa, fb = brute_faces(a), brute_faces(b)
        values = {
            "surface": SurfaceOf(a, spec_of(a, spacing)),
            "targets.b": SurfaceOf(b, spec_of(b, spacing)),
            "targets.a": SurfaceOf(a, spec_of(a, spacing)),
        }
        specs = {k: v.surface_spec for k, v in values.items()}
        got = run(SurfaceDistances(which, True), values, specs, block=(4, 5, 3))
        ids = sorted({f[0] for f in fa})
        assert got["label"].to_pylist() == ids
        for row in got.to_pylist():
            lo, hi = boxes([f for f in fa if f[0] == row["label"]], spacing)
            for name, faces in (("a", fa), ("b", fb)):
                d, label = brute_nearest(lo, hi, faces, spacing, row["label"], which)
                assert row[f"to_{name}_label"] == label
                if label == 0:
                    assert np.isnan(row[f"to_{name}_nm"])
                    continue
                met.add(d > 0)
                assert row[f"to_{name}_nm"] == pytest.approx(d, rel=1e-12)
                point = np.array([row[f"to_{name}_{x}_nm"] for x in "zyx"])
                flo, fhi = boxes([f for f in faces if f[0] == label], spacing)
                assert ((flo <= point + 1e-9) & (point <= fhi + 1e-9)).all(1).any(), "the point lies on the target"
                assert np.sqrt((np.maximum(np.maximum(lo - point, point - hi), 0) ** 2).sum(1)).min() == pytest.approx(d, abs=1e-9)
            both = [row["to_a_nm"], row["to_b_nm"]]
            if not np.isnan(both).all():
                assert row["nearest_nm"] == np.nanmin(both) and row["nearest"] == "ab"[int(np.nanargmin(both))]
    assert met, "something was found"


@pytest.mark.parametrize("spacing", [ISO, ODD])
def test_neighbours_by_brute_force(spacing):
    rng = np.random.default_rng(5)
    for n in (0, 1, 2, 4, 6):
        a = objects(rng, (9, 14, 11), n)
        faces, surface = brute_faces(a), SurfaceOf(a, spec_of(a, spacing))
        got = run(NearestSurface(), {"surface": surface}, {"surface": surface.surface_spec}, block=(4, 5, 6))
        for row in got.to_pylist():
            d, label = brute_nearest(*boxes([f for f in faces if f[0] == row["label"]], spacing), faces, spacing, row["label"], "other")
            assert row["neighbour_label"] == label and (row["neighbour_nm"] == pytest.approx(d, rel=1e-12) or label == 0)


@pytest.mark.parametrize("spacing", [ISO, FLAT, ODD])
def test_centres_to_surfaces_by_brute_force(spacing):
    rng = np.random.default_rng(6)
    for n in (0, 1, 2, 5):
        b = objects(rng, (9, 10, 11), n)
        faces = brute_faces(b)
        at = rng.random((30, 3)) * np.array(b.shape) * np.array(spacing)
        at[:10] = np.round(at[:10] / np.array(spacing) * 2) / 2 * np.array(spacing)  # on centres, faces and edges
        table = pa.table({"label": np.arange(1, 31, dtype=np.uint64), **{f"centroid_{a}_nm": at[:, i] for i, a in enumerate("zyx")}})
        surface = SurfaceOf(b, spec_of(b, spacing))
        got = run(CentreDistances(points=True), {"objects": table, "targets.m": surface}, {"targets.m": surface.surface_spec}, block=(4, 5, 3))
        for row, p in zip(got.to_pylist(), at):
            d, label = brute_nearest(p[None], p[None], faces, spacing)
            assert row["to_m_label"] == label
            if label:
                assert row["to_m_nm"] == pytest.approx(d, rel=1e-12, abs=1e-9) and row["nearest"] == "m"
                assert np.linalg.norm(np.array([row[f"to_m_{x}_nm"] for x in "zyx"]) - p) == pytest.approx(d, rel=1e-9, abs=1e-9)
            else:
                assert np.isnan(row["to_m_nm"]) and row["nearest"] is None


@pytest.mark.parametrize("spacing, radius", [((1, 1, 1), 0), ((1, 1, 1), 5), ((1, 1, 1), 12), ((4, 1, 1), 0), ((4, 1, 1), 20)])
def test_distances_finer_than_voxels(spacing, radius):
    """Tilted planes (radius 0) and balls: distances to the fitted surface have a sixth of the error of those to the faces, or less."""
    rng = np.random.default_rng(0)
    error = {None: [], 3.0 * spacing[0]: []}
    for _ in range(3):
        shape = [int((2 * radius + 60) / s) for s in spacing]
        grid = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing)], indexing="ij"), -1)
        middle = np.array(shape) * spacing / 2 + rng.random(3) * spacing
        way = rng.standard_normal((30, 3))
        way /= np.linalg.norm(way, axis=1)[:, None]
        if radius:
            mask = np.linalg.norm(grid - middle, axis=-1) <= radius
            at = middle + way * rng.uniform(radius / 2, radius + 20, 30)[:, None]
            true = np.abs(np.linalg.norm(at - middle, axis=1) - radius)
        else:
            mask = (grid - middle) @ way[0] <= 0
            true = rng.uniform(0, 12, 30)
            across = np.cross(way, way[0]) * 10
            at = middle + across + way[0] * (true * rng.choice([-1, 1], 30))[:, None]
        table, s = points(at), SurfaceOf(mask, spec_of(mask, spacing))
        for fit, found in error.items():
            got = run(CentreDistances(points=True, fit_nm=fit), {"objects": table, "targets.m": s}, {"targets.m": s.surface_spec}, block=(16, 20, 40))
            found.append(np.abs(got["to_m_nm"].to_numpy() - true))
            on = np.stack([got[f"to_m_{a}_nm"].to_numpy() for a in "zyx"], axis=1)
            np.testing.assert_allclose(np.linalg.norm(on - at, axis=1), got["to_m_nm"].to_numpy(), rtol=1e-9, atol=1e-9)
    faces, fitted = (np.median(np.concatenate(e)) for e in error.values())
    assert fitted < 0.09 and fitted < faces / (6 if radius == 5 else 8), (faces, fitted)


def test_too_few_faces_for_a_fit():
    b = np.zeros((6, 7, 8), np.uint64)
    b[3, 3, 3] = 9  # six faces
    table, s = points(np.array([[24.0, 24.0, 50.0]])), SurfaceOf(b, spec_of(b))
    for fit in (None, 5.0, 100.0):
        got = run(CentreDistances(fit_nm=fit), {"objects": table, "targets.m": s}, {"targets.m": s.surface_spec})
        assert got["to_m_nm"].to_pylist() == [22.0] and got["to_m_label"].to_pylist() == [9]


@pytest.mark.parametrize("spacing", [ISO, (16.0, 8.0, 8.0)])
def test_distances_between_voxels_are_those_of_smooth_bodies(spacing):
    """Two balls in some poses: centre of the one to the other, and surface to surface, in voxels. Faces stand out; middles do not."""
    rng = np.random.default_rng(8)
    size, error = max(spacing), {"faces": [], "voxels": []}
    shape = tuple(int(52 * size / s) for s in spacing)
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing)), indexing="ij"), -1)
    for _ in range(8):
        middle, way = rng.uniform(25, 26, 3) * size, rng.normal(size=3)
        way *= rng.uniform(27, 28) * size / np.linalg.norm(way)
        a, b = middle - way / 2, middle + way / 2
        one, other = (SurfaceOf(m, spec_of(m, spacing)) for m in (np.linalg.norm(grid - p, axis=-1) <= r * size for p, r in ((a, 7.0), (b, 11.0))))
        at = pa.table({"label": np.array([1], np.uint64), **{f"centroid_{x}_nm": [a[i]] for i, x in enumerate("zyx")}})
        for between, out in error.items():
            far = [run(CentreDistances(between=between), {"objects": at, "targets.m": other}, {"targets.m": other.surface_spec})]
            specs = {"surface": one.surface_spec, "targets.m": other.surface_spec}
            far.append(run(SurfaceDistances(between=between), {"surface": one, "targets.m": other}, specs))
            true = np.linalg.norm(b - a) - 11.0 * size - np.array([0.0, 7.0 * size])
            out.append((np.array([t["to_m_nm"][0].as_py() for t in far]) - true) / size)
    faces, voxels = (np.mean(e, axis=0) for e in error.values())
    assert (np.abs(voxels) < [0.3, 0.55]).all() and (np.abs(voxels) < 0.6 * np.abs(faces)).all(), (faces, voxels)


def test_equal_distances_and_names():
    """A point halfway between two labels gets the lesser; equal targets give the first name; the grid changes nothing."""
    b = np.zeros((5, 5, 21), np.uint64)
    b[2, 2, 2], b[2, 2, 18] = BIG, 7
    table = pa.table({"label": np.array([1], np.uint64), "centroid_z_nm": [16.0], "centroid_y_nm": [16.0], "centroid_x_nm": [80.0]})
    s = SurfaceOf(b, spec_of(b))
    values, specs = {"objects": table, "targets.z": s, "targets.a": s}, {"targets.z": s.surface_spec, "targets.a": s.surface_spec}
    for seed, block in enumerate([(5, 5, 21), (3, 2, 5), (5, 5, 10), (1, 1, 1)]):
        (row,) = run(CentreDistances(), values, specs, block=block, seed=seed).to_pylist()
        assert row["to_a_label"] == 7 and row["to_a_nm"] == 60.0 and row["nearest"] == "a" and row["nearest_nm"] == 60.0


def test_surfaces_on_different_grids():
    """The same box at two voxel sizes, one with its origin moved: distances are those of the boxes."""
    fine, coarse = np.zeros((40, 40, 40), np.uint64), np.zeros((10, 10, 10), np.uint64)
    fine[4:8, 4:8, 4:8] = 1  # from 3.5 to 7.5 voxels of 2 nm: 7 to 15 nm
    coarse[5:7, 5:7, 5:7] = 2  # from 4.5 to 6.5 voxels of 8 nm, and 3 nm further: 39 to 55 nm
    from dataclasses import replace

    a, b = SurfaceOf(fine, spec_of(fine, (2, 2, 2))), SurfaceOf(coarse, replace(spec_of(coarse, ISO), origin_nm=(3.0, 3.0, 3.0)))
    values = {"surface": a, "targets.b": b}
    got = run(SurfaceDistances(), values, {k: v.surface_spec for k, v in values.items()}, block=(6, 7, 40))
    assert got["to_b_nm"].to_pylist() == [pytest.approx(24 * np.sqrt(3), rel=1e-12)]


def test_tables_that_cannot_be_used():
    b = np.ones((4, 4, 4), np.uint64)
    s = SurfaceOf(b, spec_of(b))
    ok = {"label": np.array([1, 2], np.uint64), "centroid_z_nm": [1.0, 2.0], "centroid_y_nm": [1.0, 2.0], "centroid_x_nm": [1.0, 2.0]}

    def measured(**changed):
        table = pa.table({k: v for k, v in {**ok, **changed}.items() if v is not None})
        return run(CentreDistances(), {"objects": table, "targets.m": s}, {"targets.m": s.surface_spec})

    assert measured()["to_m_nm"].to_numpy().shape == (2,)
    for changed, says in [
        ({"label": [1, 1]}, "several rows of label 1"), ({"centroid_y_nm": None}, "no column 'centroid_y_nm'"),
        ({"centroid_y_nm": [1.0, np.nan]}, "no positions"), ({"label": [1.5, 2.0]}, "whole numbers"),
    ]:  # fmt: skip
        with pytest.raises(RecipeError, match=says):
            measured(**changed)


# -- areas -----------------------------------------------------------------------------------------------------------------------


def ball(radius_nm: float, spacing, rng, axes=(1.0, 1.0, 1.0)) -> np.ndarray:
    shape = [int(2 * radius_nm * a / s) + 12 for a, s in zip(axes, spacing)]
    grid = np.meshgrid(*[(np.arange(n) - n // 2 + rng.random()) * s / a for n, s, a in zip(shape, spacing, axes)], indexing="ij")
    return sum(g * g for g in grid) <= radius_nm**2


def area(mask: np.ndarray, spacing) -> float:
    surface: Surface = SurfaceOf(mask, spec_of(mask, spacing)).made((16, 16, 16))
    return float(area_nm2(surface.index["area"].sum(axis=0), surface.spec.spacing))


@pytest.mark.parametrize("spacing, radius, within", [((1, 1, 1), 5, 0.02), ((1, 1, 1), 12, 0.01), ((4, 1, 1), 20, 0.03), ((4, 1, 1), 40, 0.025)])
def test_area_of_balls(spacing, radius, within):
    rng = np.random.default_rng(0)
    found = np.mean([area(ball(radius, spacing, rng), spacing) for _ in range(6)])
    assert found == pytest.approx(4 * np.pi * radius**2, rel=within)
    assert area(ball(radius, spacing, rng), spacing) == pytest.approx(4 * np.pi * radius**2, rel=1.5 * within)


def test_area_is_the_same_in_any_grid():
    mask = ball(9, (1, 1, 1), np.random.default_rng(1))
    sums = {tuple(SurfaceOf(mask, spec_of(mask)).made(b).index["area"].sum(axis=0)) for b in ((99, 99, 99), (5, 7, 9), (1, 30, 4))}
    assert len(sums) == 1


# -- contacts --------------------------------------------------------------------------------------------------------------------


def near(a: list, b: list, spacing, radius) -> tuple[list, float]:
    """The faces of `a` within `radius` of a face of `b`, and the least distance."""
    (lo, hi), (blo, bhi) = boxes(a, spacing), boxes(b, spacing)
    gap = np.maximum(np.maximum(blo[None] - hi[:, None], lo[:, None] - bhi[None]), 0)
    d = np.sqrt((gap**2).sum(-1)).min(1)
    return [f for f, v in zip(a, d) if v <= radius], d.min()


def patches(faces: list) -> int:
    """Connected patches of faces, by the corners that they share."""
    lo, hi = boxes(faces, (1, 1, 1))
    corners = [set(itertools.product(*zip(a, b))) for a, b in zip(lo.tolist(), hi.tolist())]
    count = 0
    while corners:
        count, patch, more = count + 1, corners.pop(), True
        while more:
            more = [c for c in corners if c & patch]
            corners = [c for c in corners if not c & patch]
            patch = patch.union(*more)
    return count


@pytest.mark.parametrize("spacing, radius", [(ISO, 0.0), (ISO, 16.0), (ODD, 51.0), (FLAT, 9.0)])
@pytest.mark.parametrize("among", [True, False])
def test_contacts_by_brute_force(spacing, radius, among):
    rng = np.random.default_rng(7)
    pairs_met = 0
    for n, m in [(0, 2), (2, 0), (1, 1), (3, 4), (6, 6)]:
        a = objects(rng, (9, 10, 11), n)
        b = a if among else objects(rng, (9, 10, 11), m)
        values = {"a": SurfaceOf(a, spec_of(a, spacing)), **({} if among else {"b": SurfaceOf(b, spec_of(b, spacing))})}
        got = run(ContactSites(radius), values, {k: v.surface_spec for k, v in values.items()}, block=(4, 5, 6)).to_pylist()
        weights = {}
        for key, labels in (("a", a), ("b", b)):
            for f in SurfaceOf(labels, spec_of(labels, spacing)).made(labels.shape).blocks():
                areas = f.shares() * AREA_STEP * face_areas(spec_of(labels, spacing).spacing)[f.sides >> 1]
                weights |= {(key, *map(int, row)): w for row, w in zip(f.faces, areas)}
        want = []
        fa, fb = brute_faces(a), brute_faces(b)
        for i in sorted({f[0] for f in fa}):
            for j in sorted({f[0] for f in fb}):
                one, other = [f for f in fa if f[0] == i], [f for f in fb if f[0] == j]
                close, gap = near(one, other, spacing, radius)
                if close and (i < j or not among):
                    back, _ = near(other, one, spacing, radius)
                    areas = sum(weights["a", *f[1:]] for f in close), sum(weights["b", *f[1:]] for f in back)
                    want.append((i, j, gap, *areas, patches(close), patches(back)))
        assert [(r["label_a"], r["label_b"]) for r in got] == [w[:2] for w in want]
        for r, w in zip(got, want):
            assert [r["gap_nm"], r["area_a_nm2"], r["area_b_nm2"]] == pytest.approx(w[2:5], rel=1e-9)
            assert (r["sites_a"], r["sites_b"], r["sites"]) == (*w[5:], min(w[5:]))
            assert r["area_nm2"] == pytest.approx((w[3] + w[4]) / 2, rel=1e-9)
        pairs_met += len(want)
    assert pairs_met > 0


def test_contact_area_of_two_plates():
    """Two plates two voxels apart: the area that faces the other is that of the overlap, plus a rim as wide as the radius reaches."""
    labels = np.zeros((30, 60, 60), np.uint64)
    labels[4:8, 10:50, 10:50], labels[10:14, 20:40, 10:50] = 1, 2
    s = SurfaceOf(labels, spec_of(labels))
    (row,) = run(ContactSites(16.0), {"a": s}, {"a": s.surface_spec}, block=(8, 16, 16)).to_pylist()
    assert (
        row["gap_nm"] == 16.0
        and row["area_a_nm2"] == pytest.approx(20 * 40 * 64, rel=0.12)
        and row["area_b_nm2"] == pytest.approx(20 * 40 * 64, rel=0.12)
    )
    assert run(ContactSites(15.9), {"a": s}, {"a": s.surface_spec}).num_rows == 0


def test_sites_that_meet_far_from_where_they_are():
    """Two combs: as many sites as teeth touch; a back joined to them all makes them one; whatever the blocks."""
    labels = np.zeros((14, 12, 46), np.uint64)
    labels[2:4, 2:10, 1:45] = 3
    labels[9:12, 2:10, 1:45] = BIG
    for x in range(3, 44, 8):
        labels[4:8, 3:6, x : x + 3] = 3  # teeth one voxel from the plate
    for wide, sites in ((False, 6), (True, 1)):
        if wide:
            labels[4:8, 6, 3:43] = 3  # joins the teeth's ends
        for seed, block in enumerate([(14, 12, 46), (4, 5, 7), (8, 12, 3), (1, 2, 5)]):
            s = SurfaceOf(labels, spec_of(labels))
            for among in (True, False):
                values = {"a": s} if among else {"a": s, "b": SurfaceOf((labels == BIG).astype(np.uint64), spec_of(labels))}
                got = run(ContactSites(8.0), values, {k: v.surface_spec for k, v in values.items()}, block=block, seed=seed).to_pylist()
                (row,) = (r for r in got if r["label_a"] == 3)
                assert (row["sites"], row["sites_a"], row["sites_b"]) == (sites, sites, sites), (wide, block, among)


def test_what_patches_keep_grows_with_the_outside():
    """A plate through the whole volume, in contact everywhere: a group of blocks keeps the rim of its patch only."""
    from vemray.ops.contacts import _touching
    from vemray.ops.face_tree import OTHER

    labels = np.zeros((8, 64, 64), np.uint64)
    labels[2:4], labels[5:7] = 1, 2
    s = SurfaceOf(labels, spec_of(labels)).made((8, 16, 16))
    parts = [[_touching(s, s, Box((0, y, x), (8, y + 16, x + 16)), 8.0, OTHER) for x in range(0, 64, 16)] for y in range(0, 64, 16)]
    four = parts[1][1].merge(parts[1][2], 2).merge(parts[2][1].merge(parts[2][2], 2), 1)
    assert len(four.patches.of) == 2 and len(four.patches.corner) == 2 * 4 * 32 and not four.touching.sites.any()


def test_noise_is_no_objects(monkeypatch):
    from vemray.ops import contacts

    monkeypatch.setattr(contacts, "MOST_PAIRS", 100)
    noise = np.arange(1, 1001, dtype=np.uint64).reshape(10, 10, 10)
    s = SurfaceOf(noise, spec_of(noise))
    with pytest.raises(RecipeError, match="more than 100 pairs of objects come within 16 nm in one block"):
        run(ContactSites(16.0), {"a": s}, {"a": s.surface_spec})


# -- on the surface --------------------------------------------------------------------------------------------------------------


def points(at: np.ndarray, **more) -> pa.Table:
    return pa.table({"label": np.arange(1, len(at) + 1, dtype=np.uint64), **{f"centroid_{a}_nm": at[:, i] for i, a in enumerate("zyx")}, **more})


def at_surface(op, table, mask, spacing=(1, 1, 1), block=(16, 20, 24)):
    s = SurfaceOf(mask, spec_of(mask, spacing))
    return run(op, {"objects": table, "surface": s}, {"surface": s.surface_spec}, block=block)


@pytest.mark.parametrize("spacing", [(1, 1, 1), ODD])
def test_density_by_brute_force(spacing):
    rng = np.random.default_rng(8)
    labels = objects(rng, (12, 13, 14), 5)
    at = rng.random((25, 3)) * np.array(labels.shape) * spacing
    radius = 5.3 * min(spacing) if spacing[0] == 1 else 60.0
    got = at_surface(SurfaceDensity(radius), points(at), labels, spacing, (5, 6, 7))
    (f,) = SurfaceOf(labels, spec_of(labels, spacing)).made(labels.shape).blocks()
    areas = f.shares() * AREA_STEP * face_areas(spec_of(labels, spacing).spacing)[f.sides >> 1]
    middles = f.centres() * np.array(spacing) / 2
    for row, p in zip(got.to_pylist(), at):
        assert row["objects"] == (np.linalg.norm(at - p, axis=1) <= radius).sum()
        assert row["area_nm2"] == pytest.approx(areas[np.linalg.norm(middles - p, axis=1) <= radius].sum(), rel=1e-9)
        assert row["area_nm2"] == 0 or row["per_um2"] == pytest.approx(row["objects"] / row["area_nm2"] * 1e6)


def test_density_on_a_ball():
    """A sphere within distance r of a point on it is a cap of area pi r^2, whatever its radius."""
    rng = np.random.default_rng(9)
    mask = ball(25, (1, 1, 1), rng)
    middle = np.argwhere(mask).mean(0)
    way = rng.standard_normal((40, 3))
    at = middle + 25 * way / np.linalg.norm(way, axis=1)[:, None]
    area = at_surface(SurfaceDensity(15.0), points(at), mask)["area_nm2"].to_numpy()
    assert area.mean() == pytest.approx(np.pi * 15**2, rel=0.02) and np.abs(area / (np.pi * 225) - 1).max() < 0.08


def test_areas_and_objects_by_label():
    labels = np.zeros((40, 40, 60), np.uint64)
    b = ball(10, (1, 1, 1), np.random.default_rng(0))[:32, :32, :28]
    labels[2:34, 2:34, 2:30][b] = 5
    labels[2:34, 2:34, 32:60][b] = BIG
    s = SurfaceOf(labels, spec_of(labels, (10, 10, 10)))
    table = pa.table({"on": np.array([5, 5, BIG, 77], np.uint64)})
    got = run(SurfaceAreas("on"), {"surface": s, "objects": table}, {"surface": s.surface_spec}, block=(9, 30, 11)).to_pylist()
    assert [r["label"] for r in got] == [5, BIG] and [r["objects"] for r in got] == [2, 1]
    for r in got:
        assert r["area_nm2"] == pytest.approx(4 * np.pi * 100**2, rel=0.02) and r["per_um2"] == pytest.approx(r["objects"] / r["area_nm2"] * 1e6)
    assert run(SurfaceAreas(), {"surface": s}, {"surface": s.surface_spec}).column_names == ["label", "faces", "area_nm2"]


def curvatures(mask, at, radius, spacing=(1, 1, 1)) -> dict[str, np.ndarray]:
    t = at_surface(Curvature(radius), points(at), mask, spacing)
    assert (t["faces"].to_numpy() >= 12).all()
    return {n: t[n].to_numpy() for n in t.column_names}


@pytest.mark.parametrize("radius, reach, inside_out", [(20, 8, False), (30, 10, False), (30, 10, True)])
def test_curvature_of_balls(radius, reach, inside_out):
    rng = np.random.default_rng(10)
    mask = ball(radius, (1, 1, 1), rng)
    middle = np.argwhere(mask).mean(0)
    way = rng.standard_normal((60, 3))
    at = middle + radius * way / np.linalg.norm(way, axis=1)[:, None]
    c = curvatures(~mask if inside_out else mask, at, reach)
    sign = -1 if inside_out else 1
    assert np.median(c["mean_per_um"]) == pytest.approx(sign * 1000 / radius, rel=0.05)
    assert np.abs(c["mean_per_um"] / (sign * 1000 / radius) - 1).max() < 0.25
    assert np.median(c["gaussian_per_um2"]) == pytest.approx((1000 / radius) ** 2, rel=0.1)


def test_curvature_of_a_cylinder():
    rng = np.random.default_rng(11)
    axis = np.array([0.5, -0.3, 0.81])
    axis /= np.linalg.norm(axis)
    grid = np.stack(np.meshgrid(*[np.arange(80) - 40 + rng.random() for _ in range(3)], indexing="ij"), -1)
    mask = np.linalg.norm(grid - (grid @ axis)[..., None] * axis, axis=-1) <= 15
    origin = np.array([-grid[0, 0, 0, i] for i in range(3)])
    around = np.linalg.svd(axis[None])[2][1:]
    angle = rng.random(50) * 2 * np.pi
    at = origin + 15 * (np.cos(angle)[:, None] * around[0] + np.sin(angle)[:, None] * around[1]) + rng.uniform(-20, 20, 50)[:, None] * axis
    c = curvatures(mask, at, 7.0)
    assert np.median(c["largest_per_um"]) == pytest.approx(1000 / 15, rel=0.08)
    assert np.median(c["mean_per_um"]) == pytest.approx(500 / 15, rel=0.08)
    assert np.abs(np.median(c["least_per_um"])) < 0.15 * 1000 / 15


def test_curvature_of_a_turned_ellipsoid():
    rng = np.random.default_rng(13)
    axes = np.array([20.0, 26.0, 36.0])
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    grid = np.stack(np.meshgrid(*[np.arange(84) - 42 + rng.random() for _ in range(3)], indexing="ij"), -1)
    mask = (((grid @ turn) / axes) ** 2).sum(-1) <= 1
    x = rng.standard_normal((150, 3))
    x = x / np.linalg.norm(x / axes, axis=1)[:, None]
    c = curvatures(mask, x @ turn.T - grid[0, 0, 0], 8.0)
    s, abc = (x**2 / axes**4).sum(1), np.prod(axes) ** 2
    gaussian, mean = 1e6 / (abc * s**2), 1e3 * ((axes**2).sum() - (x**2).sum(1)) / (2 * abc * s**1.5)
    assert np.median(c["mean_per_um"] / mean) == pytest.approx(1, abs=0.05) and np.corrcoef(c["mean_per_um"], mean)[0, 1] > 0.9
    assert np.median(c["gaussian_per_um2"] / gaussian) == pytest.approx(1, abs=0.1) and np.corrcoef(c["gaussian_per_um2"], gaussian)[0, 1] > 0.9


def test_curvature_where_voxels_are_flat():
    spacing = (3.0, 1.0, 1.0)
    mask = ball(40, spacing, np.random.default_rng(2))
    middle = np.argwhere(mask).mean(0) * spacing
    way = np.random.default_rng(3).standard_normal((40, 3))
    at = middle + 40 * way / np.linalg.norm(way, axis=1)[:, None]
    assert np.median(curvatures(mask, at, 16.0, spacing)["mean_per_um"]) == pytest.approx(1000 / 40, rel=0.07)
