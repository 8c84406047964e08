"""Points placed at random on surfaces, and what is found where objects are random, clustered and spread out."""

import numpy as np
import pytest
from scipy import stats

from tests.ops.blockwise import SurfaceOf, assert_same, run, spec_of
from tests.ops.test_faces import ball, points
from vemray.errors import RecipeError
from vemray.ops.placement import RandomPlacement, SampleSurface, _mixed_seeds, place, ratio_interval

RADIUS = 25


@pytest.fixture(scope="module")
def sphere():
    mask = ball(RADIUS, (1, 1, 1), np.random.default_rng(0))
    return SurfaceOf(mask, spec_of(mask, (1, 1, 1))), np.argwhere(mask).mean(0)


def test_uniform_by_area(sphere):
    """On a sphere each coordinate of uniform points is uniform (Archimedes)."""
    surface, middle = sphere
    (p,) = place(surface.made((16, 20, 40)), 2000, _mixed_seeds(3, 1))
    away = p.at - middle
    assert len(away) == 2000 and np.abs(np.linalg.norm(away, axis=1) - RADIUS).max() < 1.3
    for axis in (*np.eye(3), np.ones(3) / np.sqrt(3)):
        assert stats.kstest((away @ axis / RADIUS + 1) / 2, "uniform").pvalue > 0.01


def test_placements_do_not_depend_on_blocks(sphere):
    surface, _ = sphere
    seeds = _mixed_seeds(1, 3)
    whole = place(surface.made((99, 99, 99)), 50, seeds, 3.0)
    for block in ((7, 9, 11), (20, 20, 60)):
        for a, b in zip(whole, place(surface.made(block), 50, seeds, 3.0)):
            np.testing.assert_array_equal(a.at, b.at)
    assert not np.array_equal(whole[0].at, whole[1].at)
    for p in whole:
        d = np.linalg.norm(p.at[:, None] - p.at, axis=-1)
        assert d[d > 0].min() >= 3.0 and len(d) == 50


def test_no_room(sphere):
    surface, _ = sphere
    with pytest.raises(RecipeError, match="500 points find no room on the surface 20 nm apart"):
        place(surface.made((99, 99, 99)), 500, _mixed_seeds(1, 1), 20.0)


def judged(surface, at, **more) -> dict:
    op = RandomPlacement(simulations=99, k=4, radii_nm=(5.0, 10.0), bandwidth_nm=4.0, **more)
    values, specs = {"objects": points(at), "surface": surface}, {"surface": surface.surface_spec}
    t = run(op, values, specs)
    assert_same(t, run(op, values, specs, block=(9, 14, 30), seed=5))
    return {(r["statistic"], r["radius_nm"] if r["statistic"] == "ripley_l_nm" else None): r for r in t.to_pylist()}


def on_sphere(rng, n, middle) -> np.ndarray:
    way = rng.standard_normal((n, 3))
    return middle + RADIUS * way / np.linalg.norm(way, axis=1)[:, None]


def test_random_clustered_and_spread_objects(sphere):
    surface, middle = sphere
    rng = np.random.default_rng(4)
    seen = judged(surface, on_sphere(rng, 60, middle))
    assert sum(r["p"] <= 0.05 for r in seen.values()) <= 1 and all(r["simulations"] == 99 and r["objects"] == 60 for r in seen.values())
    near = seen["mean_nearest_nm", None]
    assert near["low"] < near["mean"] < near["high"] and near["mean"] == pytest.approx(RADIUS * 2 / np.sqrt(60), rel=0.1)
    # K of random points on a sphere is the cap's area, pi r^2
    assert seen["ripley_l_nm", 10.0]["mean"] == pytest.approx(10.0, rel=0.06)
    centres = on_sphere(rng, 12, middle)
    clustered = judged(surface, (centres[:, None] + rng.normal(0, 2, (12, 5, 3))).reshape(-1, 3))
    distances = [r for (name, _), r in clustered.items() if name != "density_variance_per_um6"]  # clusters of one size are equally dense
    assert all(r["p"] == pytest.approx(0.02) for r in distances)
    assert clustered["ripley_l_nm", 5.0]["observed"] > clustered["ripley_l_nm", 5.0]["high"]
    i = np.arange(60) + 0.5
    ring = np.sqrt(1 - (1 - 2 * i / 60) ** 2)
    spread = middle + RADIUS * np.stack([1 - 2 * i / 60, ring * np.cos(np.pi * (1 + 5**0.5) * i), ring * np.sin(np.pi * (1 + 5**0.5) * i)], 1)
    even = judged(surface, spread)
    assert even["mean_nearest_nm", None]["observed"] > even["mean_nearest_nm", None]["high"]


def test_two_sections(sphere):
    """Twice as dense on one half: the difference is found, and is that of counts over areas."""
    surface, middle = sphere
    labels = surface.labels.astype(np.uint64)
    labels[: round(middle[0])] *= 2
    from vemray.ops.faces import SurfaceFaces

    halves = SurfaceOf(labels, spec_of(labels, (1, 1, 1)), SurfaceFaces("background"))
    rng = np.random.default_rng(5)
    at = on_sphere(rng, 400, middle)
    at = at[(at[:, 0] < middle[0]) | (rng.random(400) < 0.4)]
    seen = judged(halves, at)
    row, half = seen["density_difference_per_um2", None], 2 * np.pi * RADIUS**2 * 1e-6
    a, b = (at[:, 0] >= middle[0]).sum(), (at[:, 0] < middle[0]).sum()
    assert row["observed"] == pytest.approx((a - b) / half, rel=0.15)
    assert row["observed"] < row["low"] and row["p"] == pytest.approx(0.02)
    ratio = seen["density_ratio", None]
    assert ratio["observed"] == pytest.approx(a / b, rel=0.15) and ratio["p"] == row["p"] and np.isnan(row["interval_low"])
    assert ratio["interval_low"] < 0.4 < ratio["interval_high"] < 1, "the planted one"


def test_interval_of_a_ratio_holds_the_true_one():
    """In 95 % of many draws, of independent points and of points that keep apart (as if each drew half the variance)."""
    rng = np.random.default_rng(9)
    areas = {1: 3.0e6, 2: 1.0e6}

    def drawn(ratio, regular, n, times):
        share = ratio * areas[1] / (ratio * areas[1] + areas[2])
        a = np.rint(rng.normal(n * share, np.sqrt(regular * n * share * (1 - share)), times)) if regular < 1 else rng.binomial(n, share, times)
        return np.stack([a, n - a], axis=1)

    for true, regular in ((1.0, 1.0), (1.6, 1.0), (0.6, 1.0), (1.6, 0.5)):
        held = []
        for observed in drawn(true, regular, 160, 300):
            low, high = ratio_interval(np.vstack([observed, drawn(1.0, regular, 160, 199)]), areas)
            held.append(low <= true <= high)
        assert 0.91 < np.mean(held) < 0.985, (true, regular, np.mean(held))
    for observed, end, value in (([0, 9], 0, 0.0), ([9, 0], 1, np.inf)):
        assert ratio_interval(np.array([observed, [5, 4], [3, 6]]), areas)[end] == value


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_objects(sphere, n):
    surface, middle = sphere
    seen = judged(surface, on_sphere(np.random.default_rng(6), n, middle))
    assert np.isnan(seen["mean_k_nearest_nm", None]["observed"])
    assert np.isfinite(seen["mean_nearest_nm", None]["observed"]) == (n == 2)


def test_sampled_points_are_a_table_of_objects(sphere):
    surface, middle = sphere
    values, specs = {"surface": surface}, {"surface": surface.surface_spec}
    t = run(SampleSurface(300, seed=4), values, specs)
    away = np.stack([t.column(f"centroid_{a}_nm").to_numpy() for a in "zyx"], 1) - middle
    assert t.column("label").to_pylist() == list(range(1, 301)) and set(t.column("on_label").to_pylist()) == {1}
    assert np.abs(np.linalg.norm(away, axis=1) - RADIUS).max() < 1.3 and np.linalg.norm(away.mean(0)) < 0.15 * RADIUS
    assert_same(t, run(SampleSurface(300, seed=4), values, specs, block=(9, 14, 30), seed=5))
    assert not t.equals(run(SampleSurface(300, seed=5), values, specs))
