"""Are objects placed at random on a surface? Compared with as many points placed on it uniformly by area, many times."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numba import njit
from pydantic import Field

from vemray.analysis.sentences import placement_sentence
from vemray.errors import RecipeError
from vemray.geometry import Int3
from vemray.ops.base import Analysis, Port, register
from vemray.ops.face_distance import nearest_to_points, positions, some_objects
from vemray.ops.faces import Surface, area_nm2, face_areas

#: points of several simulations that are drawn in one pass over the surface
BATCH = 1 << 20


@njit(cache=True, nogil=True)
def _mixed(x):
    """splitmix64 (Steele, Lea and Flood 2014): well mixed bits of a number."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _unit(x):
    """A number in [0, 1) from 64 bits."""
    return (x >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True)
def _drawn(keys, weights, seeds, time):
    """The arrivals before `time` of a clock at each face that rings at the rate of its weight, one clock for each of `seeds`: (number of the seed,
    face, when). A face's clock depends on its key and the seed alone."""
    which, face, when, n = np.empty(1024, np.int64), np.empty(1024, np.int64), np.empty(1024), 0
    for i in range(len(keys)):
        chance = -np.expm1(-time * weights[i])
        own = _mixed(np.uint64(keys[i]))
        for s in range(len(seeds)):
            u = _unit(_mixed(own ^ seeds[s]))
            if u >= chance:
                continue
            if n == len(which):
                which, face, when = np.append(which, np.empty_like(which)), np.append(face, np.empty_like(face)), np.append(when, np.empty_like(when))
            which[n], face[n], when[n] = s, i, -np.log1p(-u) / weights[i]
            n += 1
    return which[:n], face[:n], when[:n]


@njit(cache=True, nogil=True)
def _within_faces(keys, seeds, which):
    """Two numbers in [-1, 1) for each drawn face."""
    out = np.empty((len(keys), 2))
    for i in range(len(keys)):
        x = _mixed(_mixed(np.uint64(keys[i])) ^ seeds[which[i]])
        for k in range(2):
            x = _mixed(x)
            out[i, k] = 2 * _unit(x) - 1
    return out


@dataclass
class Points:
    """Points on the surface, in the order of their clocks: nm (n, 3) and the label there."""

    at: np.ndarray
    label: np.ndarray


def place(surface: Surface, n: int, seeds: np.ndarray, apart_nm: float = 0.0) -> list[Points]:
    """For each seed `n` points, uniform by area, none nearer than `apart_nm` to one before it; the same whatever the blocks. RecipeError where they
    find no room."""
    total = float(area_nm2(surface.index["area"].sum(axis=0), surface.spec.spacing)) if len(surface) else 0.0
    if not n:
        return [Points(np.zeros((0, 3)), np.zeros(0, np.uint64)) for _ in seeds]
    if not total:
        raise RecipeError("the surface has no faces to place points on.")
    out: dict[int, Points] = {}
    wanted = n + 6 * np.sqrt(n) + 10
    while missing := [s for s in range(len(seeds)) if s not in out]:
        some = missing[: max(1, int(BATCH / wanted))]
        for s, points in zip(some, _passed(surface, seeds[some], wanted / total)):
            kept = _apart(points, n, apart_nm)
            if len(kept) == n:
                out[s] = Points(points.at[kept], points.label[kept])
            elif wanted > 64 * n + 640:
                raise RecipeError(f"{n} points find no room on the surface {apart_nm:g} nm apart, 64 tries for each. Use a smaller minimum_nm.")
        if any(s not in out for s in some):
            wanted *= 2
    return [out[s] for s in range(len(seeds))]


def _passed(surface: Surface, seeds: np.ndarray, time: float) -> list[Points]:
    """One pass over the surface."""
    spec = surface.spec
    areas, half = face_areas(spec.spacing), np.array(spec.spacing.zyx) / 2
    parts = []
    for faces in surface.blocks():
        keys = faces.keys(spec.shape)
        weights = faces.shares() * 2.0**-16 * areas[faces.sides >> 1]
        which, face, when = _drawn(keys, weights, seeds, time)
        inside = _within_faces(keys[face], seeds, which)
        at = faces.centres(face).astype(np.float64)
        axis = faces.sides[face] >> 1
        rows = np.arange(len(face))
        at[rows, np.where(axis == 0, 1, 0)] += inside[:, 0]
        at[rows, np.where(axis == 2, 1, 2)] += inside[:, 1]
        parts.append((which, keys[face], when, at * half + np.array(spec.origin_nm), faces.labels[faces.label_rows()[face]]))
    which, keys, when, at, label = (np.concatenate(p) for p in zip(*parts))
    order = np.lexsort((keys, when, which))
    ends = np.searchsorted(which[order], np.arange(len(seeds) + 1))
    return [Points(at[order[a:b]], label[order[a:b]]) for a, b in itertools.pairwise(ends)]


def _apart(points: Points, n: int, apart_nm: float) -> np.ndarray:
    """Numbers of the first `n` points of which none is nearer than `apart_nm` to an earlier one kept."""
    if apart_nm <= 0:
        return np.arange(min(n, len(points.at)))
    from scipy.spatial import cKDTree

    pairs = cKDTree(points.at).query_pairs(apart_nm, output_type="ndarray")
    pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]  # by the later of the two
    out = np.ones(len(points.at), bool)
    for earlier, later in pairs:
        if out[earlier]:
            out[later] = False
    return np.flatnonzero(out)[:n]


@register("random_placement")
@dataclass(frozen=True)
class RandomPlacement(Analysis):
    """Objects on a surface against as many points placed on the same surface uniformly by area, in many simulations: which of their statistics lie
    outside what chance gives.

    The objects are moved to the nearest point of the surface first. Rows by `statistic`: `mean_nearest_nm` and `mean_k_nearest_nm`, mean
    distance to the nearest other and to the k nearest; `ripley_l_nm` at each radius (column `radius_nm`), sqrt(K / pi) with
    K = area / (n (n - 1)) times the ordered pairs within the radius (Ripley 1977; larger than by chance: clustered); `density_variance_per_um6`,
    variance of the Gaussian kernel density at the objects; and, on a surface of two labels, `density_difference_per_um2`, objects per
    area on the lesser label minus those on the greater, and `density_ratio`, the one over the other. Distances are straight lines, as much shorter
    than along the surface in the simulations as among the objects, so that edges and curvature need no correction. Columns: `observed`, `mean`,
    `low` and `high` (2.5 and 97.5 per cent of the simulations), `p` (two-sided, by rank: at least 2 / (simulations + 1)), `simulations`, `objects`;
    of the ratio also its interval of 95 %, `interval_low` and `interval_high`: see `ratio_interval` (ops/placement.py); `sentence`, the ratio and the
    mean distance to the nearest in words. Statistics of too few objects are NaN.

    A face takes a point at most once, so two never lie within one face. Random numbers are made from the seed, the simulation and the face:
    they do not depend on the blocks."""

    version = 3
    serves = "step 14: distribution of the pores, against random placement on the envelope"
    ports = (Port("objects", ("table",), doc="with positions, as `measure` gives them"), Port("surface", ("surface",)))

    simulations: Annotated[int, Field(ge=19, le=9999, description="how many times points are placed")] = 199
    seed: Annotated[int, Field(ge=0, description="seed of the placements")] = 1
    minimum_nm: Annotated[float, Field(ge=0, description="least distance between placed points, in nm, such as the width of a pore; 0 for none")] = (
        0.0
    )
    k: Annotated[int, Field(gt=0, description="how many nearest others")] = 8
    radii_nm: Annotated[tuple[float, ...], Field(description="radii of Ripley's L, in nm")] = (100.0, 200.0, 400.0)
    bandwidth_nm: Annotated[float, Field(gt=0, description="standard deviation of the kernel of the density, in nm")] = 100.0
    position: Annotated[str, Field(description="positions are the columns NAME_z_nm, NAME_y_nm, NAME_x_nm")] = "centroid"
    what: Annotated[str, Field(description="what the objects are, for the sentences")] = "objects"
    names: Annotated[tuple[str, str], Field(description="the surface's lesser and greater label in words, for the sentence on their densities")] = (
        "the first section",
        "the second section",
    )

    @classmethod
    def examples(cls):
        return [cls(19, radii_nm=(20.0, 40.0), k=3), cls(19, seed=2, minimum_nm=2.0)]

    def example_tables(self, rng, shape: Int3, spacing):
        return {"objects": some_objects(rng, shape, spacing).slice(0, 4)}

    def __call__(self, objects, surface: Surface):
        import pyarrow as pa

        at = positions(objects, self.position)
        found = nearest_to_points(at, surface)
        there = np.isfinite(found.d2)
        placed = [Points(found.point[there], found.label[there])]
        n = int(there.sum())
        if n:
            seeds = _mixed_seeds(self.seed, self.simulations)
            placed += place(surface, n, seeds, self.minimum_nm)
        areas = _areas(surface)
        names, values = zip(*(self._statistics(p, areas) for p in placed))
        values = np.array(values, np.float64)
        observed, simulated = values[0], values[1:]
        if len(simulated):
            with np.errstate(invalid="ignore"):  # a ratio is infinite where one label has no points
                low, high = np.percentile(simulated, [2.5, 97.5], axis=0)
            mean = simulated.mean(axis=0)
            tail = 1 + np.minimum((simulated <= observed).sum(axis=0), (simulated >= observed).sum(axis=0))
            p = np.where(np.isnan(observed), np.nan, np.minimum(1.0, 2 * tail / (len(simulated) + 1)))
        else:
            low = high = mean = p = np.full(len(observed), np.nan)
        is_ratio = np.array([a == "density_ratio" for a, _ in names[0]])
        interval = ratio_interval(_counts(placed, areas), areas) if is_ratio.any() and len(simulated) else (np.nan, np.nan)
        rows = {
            "statistic": [a for a, _ in names[0]],
            "radius_nm": np.array([r for _, r in names[0]], np.float64),
            "observed": observed,
            "mean": mean,
        }
        rows |= {"low": low, "high": high, "p": p, "simulations": np.full(len(p), len(simulated)), "objects": np.full(len(p), n)}
        rows |= {f"interval_{end}": np.where(is_ratio, value, np.nan) for end, value in zip(("low", "high"), interval)}
        each = [{**{c: v[i] for c, v in rows.items()}, "what": self.what} for i in range(len(names[0]))]
        rows["sentence"] = [placement_sentence(r, self.names, self.minimum_nm) for r in each]
        return pa.table(rows)

    def _statistics(self, points: Points, areas: dict[int, float]) -> tuple[list[tuple[str, float]], list[float]]:
        """[(name, radius)] and their values."""
        from scipy.spatial import cKDTree

        n, at = len(points.at), points.at
        names, values = [], []

        def put(name: str, value: float, radius: float = np.nan) -> None:
            names.append((name, radius))
            values.append(value)

        tree = cKDTree(at) if n > 1 else None
        k = min(self.k, n - 1)
        near = tree.query(at, k=k + 1)[0][:, 1:] if tree else np.full((1, 1), np.nan)
        put("mean_nearest_nm", near[:, 0].mean())
        put("mean_k_nearest_nm", near.mean() if n > self.k else np.nan)
        for r in self.radii_nm:
            pairs = tree.count_neighbors(tree, r) - n if tree else np.nan
            put("ripley_l_nm", float(np.sqrt(sum(areas.values()) * pairs / max(1, n * (n - 1)) / np.pi)), r)
        put("density_variance_per_um6", self._variance(tree, n) if tree else np.nan)
        if len(areas) == 2:
            one, other = 1e6 * _counts([points], areas)[0] / list(areas.values())
            put("density_difference_per_um2", one - other if n else np.nan)
            put("density_ratio", one / other if other else np.inf if one else np.nan)
        return names, values

    def _variance(self, tree, n: int) -> float:
        """Variance over the points of the Gaussian kernel density, in 1 / um3; cut at 5 bandwidths."""
        h = self.bandwidth_nm
        pairs = tree.query_pairs(5 * h, output_type="ndarray")
        d2 = ((tree.data[pairs[:, 0]] - tree.data[pairs[:, 1]]) ** 2).sum(axis=1)
        kernel = np.exp(-d2 / (2 * h * h))
        density = 1 + np.bincount(pairs[:, 0], kernel, n) + np.bincount(pairs[:, 1], kernel, n)
        return float(np.var(density * (2 * np.pi * h * h) ** -1.5 * 1e9))


def _mixed_seeds(seed: int, n: int) -> np.ndarray:
    return np.array([_mixed(np.uint64(_mixed(np.uint64(seed)) + np.uint64(s))) for s in range(n)], np.uint64)


def _counts(placed: list[Points], areas: dict[int, float]) -> np.ndarray:
    """(placements, labels): points on each label."""
    return np.array([[np.count_nonzero(p.label == np.uint64(label)) for label in areas] for p in placed])


def ratio_interval(counts: np.ndarray, areas: dict[int, float]) -> tuple[float, float]:
    """Interval of 95 % of the ratio of two labels' densities, from the points on each: (1 + simulations, 2), the observed ones first.

    log((a + 1/2) / (b + 1/2) / (area_a / area_b)) has about the standard error sqrt(1 / (a + 1/2) + 1 / (b + 1/2)) where points are independent (Gart
    and Zweifel 1967, Biometrika 54:181). Points that keep apart vary less: the simulations, whose true ratio is 1, say how many standard errors
    hold 95 % (the studentised bootstrap interval, Davison and Hinkley 1997, Bootstrap Methods and their Application, 5.2). A label without
    points leaves the interval open on its side."""
    half = counts + 0.5
    log_ratio = np.log(half[:, 0] / half[:, 1]) - np.subtract(*np.log(list(areas.values())))
    error = np.sqrt((1 / half).sum(axis=1))
    low, high = np.percentile(log_ratio[1:] / error[1:], [2.5, 97.5])
    a, b = counts[0]
    return float(np.exp(log_ratio[0] - high * error[0])) if a else 0.0, float(np.exp(log_ratio[0] - low * error[0])) if b else np.inf


def _areas(surface: Surface) -> dict[int, float]:
    """nm2 of each label; block after block."""
    sums: dict[int, np.ndarray] = {}
    for faces in surface.blocks():
        mine = np.zeros((len(faces.labels), 3), np.int64)
        np.add.at(mine, (faces.label_rows(), faces.sides >> 1), faces.shares())
        for label, s in zip(faces.labels.tolist(), mine):
            sums[label] = sums.get(label, 0) + s
    return {label: float(area_nm2(sums[label], surface.spec.spacing)) for label in sorted(sums)}


@register("sample_surface")
@dataclass(frozen=True)
class SampleSurface(Analysis):
    """Points spread over a surface uniformly by area, as a table of objects: where a surface itself is looked at (its curvature, its distance to
    others) and has no objects of its own.

    Columns: `label` 1..N, `centroid_{z,y,x}_nm`, `on_label` (the surface's label there). A surface without faces gives no rows. Random numbers are
    made from the seed and the face: they do not depend on the blocks."""

    serves = "step 15: curvature of the membrane"
    ports = (Port("surface", ("surface",)),)

    points: Annotated[int, Field(gt=0, le=1_000_000, description="how many")] = 1000
    seed: Annotated[int, Field(ge=0, description="seed of their places")] = 1
    minimum_nm: Annotated[float, Field(ge=0, description="least distance between two of them, nm; 0 for none")] = 0.0

    @classmethod
    def examples(cls):
        return [cls(12), cls(3, seed=2, minimum_nm=2.0)]

    def __call__(self, surface: Surface):
        import pyarrow as pa

        (found,) = (
            place(surface, self.points, _mixed_seeds(self.seed, 1), self.minimum_nm)
            if len(surface)
            else [Points(np.zeros((0, 3)), np.zeros(0, np.uint64))]
        )
        columns = {f"centroid_{a}_nm": found.at[:, i] for i, a in enumerate("zyx")}
        return pa.table({"label": np.arange(1, len(found.at) + 1, dtype=np.uint64), **columns, "on_label": found.label})
