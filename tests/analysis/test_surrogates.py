"""The tests that respect spatial dependence: how often they reject where nothing is to be found, and where something is."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import pearsonr, spearmanr

from vemray.analysis import surrogates as su
from vemray.analysis.correlation import correlate
from vemray.analysis.groups import compare_groups
from vemray.analysis.simulation import envelope_test, simulation_test
from vemray.errors import RecipeError

N, TESTS, SEEDS = 120, 20, (1, 2, 3)


def on_a_shell(rng, n=N):
    """Objects on an ellipsoid of some um, as pores lie."""
    z = rng.normal(size=(n, 3))
    return z / np.linalg.norm(z, axis=1, keepdims=True) * np.array([2000.0, 2600.0, 1600.0])


def fields(rng, zyx, reach, count=2):
    """Independent Gaussian fields whose correlation falls to 1/e within `reach` nm."""
    c = np.exp(-cdist(zyx, zyx) / reach) + 1e-6 * np.eye(len(zyx))
    return np.linalg.cholesky(c) @ rng.standard_normal((len(zyx), count))


def table(zyx, x, y):
    return pa.table({"x": x, "y": y, **{f"centroid_{a}_nm": zyx[:, i] for i, a in enumerate("zyx")}})


def correlations(seed, relation):
    """Of TESTS pairs of fields: (plain p, spatial p)."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(TESTS):
        zyx = on_a_shell(rng)
        f = fields(rng, zyx, 1500.0)
        t = table(zyx, f[:, 0], np.exp(0.5 * (f[:, 1] + relation * f[:, 0])))
        r = correlate(t, "x", "y", permutations=199, bootstraps=0).to_pylist()[0]
        out.append((r["pearson_p"], r["pearson_p_spatial"], r["spearman_p_spatial"]))
    return np.array(out)


def test_correlation_of_unrelated_fields_is_not_found():
    p = [correlations(seed, 0.0) for seed in SEEDS]
    rejected = [(v <= 0.05).sum(0) for v in p]
    assert all(r[1] <= 2 and r[2] <= 2 for r in rejected), rejected
    assert sum(r[0] for r in rejected) >= 15, "the plain test takes likeness of neighbours for a relation"


def test_correlation_of_related_fields_is_found():
    assert ((correlations(4, 1.5) <= 0.05).sum(0) >= 16).all()


def differences(seed, shift):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(TESTS):
        zyx = on_a_shell(rng)
        lower = zyx[:, 1] < 500
        t = table(zyx, lower.astype(float), fields(rng, zyx, 1500.0, 1)[:, 0] + shift * lower)
        r = compare_groups(t, "y", "x", permutations=199).to_pylist()[0]
        out.append((r["welch_p"], r["p_spatial"]))
    return np.array(out)


def test_difference_of_sections_alike_is_not_found():
    rejected = [(differences(seed, 0.0) <= 0.05).sum(0) for seed in SEEDS]
    assert all(r[1] <= 2 for r in rejected), rejected
    assert sum(r[0] for r in rejected) >= 25


def test_difference_of_sections_is_found():
    assert (differences(4, 3.0)[:, 1] <= 0.05).sum() >= 16


def test_independent_values_are_tested_as_by_the_plain_test():
    rng = np.random.default_rng(8)
    p = []
    for _ in range(40):
        zyx, x = rng.random((60, 3)), rng.normal(size=60)
        y = 0.3 * x + rng.normal(size=60)
        r = correlate(table(zyx, x, y), "x", "y", permutations=199, bootstraps=0).to_pylist()[0]
        p.append((r["spearman_p"], r["spearman_p_spatial"]))
    p = np.array(p)
    assert abs(p[:, 0] - p[:, 1]).mean() < 0.1 and (p[:, 1] >= 1 / 200).all()


def test_surrogates_keep_values_and_variogram():
    rng = np.random.default_rng(0)
    zyx = on_a_shell(rng, 400)
    x = np.exp(fields(rng, zyx, 1500.0, 1)[:, 0])
    made = su.surrogates(x, zyx, 200, 3)
    assert np.array_equal(np.sort(made, axis=1), np.tile(np.sort(x), (200, 1)))
    variogram = su.Variogram.of(zyx, su.NEAR, rng)
    scores = np.stack([su.normal_scores(v) for v in made], axis=1)
    target, got = variogram(su.normal_scores(x)[:, None])[:, 0], variogram(scores).mean(1)
    np.testing.assert_allclose(got, target, rtol=0.2)
    shuffled = variogram(np.stack([rng.permutation(su.normal_scores(x)) for _ in range(50)], axis=1)).mean(1)
    assert abs(shuffled - target).max() > 0.5
    r = [abs(spearmanr(m, x).statistic) for m in made]
    assert np.mean(r) < 0.35


def test_variogram_is_half_the_mean_squared_difference():
    rng = np.random.default_rng(1)
    zyx, f = rng.random((30, 3)), rng.random((30, 4))
    v = su.Variogram.of(zyx, 0.5, rng)
    d = cdist(zyx, zyx)[np.triu_indices(30, 1)]
    assert len(v.pairs) == 217 and len(v.starts) == su.CLASSES + 1
    near = np.stack(np.triu_indices(30, 1), 1)[np.argsort(d)][: v.starts[1]]
    np.testing.assert_allclose(v(f)[0], [0.5 * np.mean((f[near[:, 0], c] - f[near[:, 1], c]) ** 2) for c in range(4)])


def test_order_and_seed():
    rng = np.random.default_rng(2)
    zyx, x = rng.random((50, 3)), rng.random(50)
    order = rng.permutation(50)
    a = su.surrogates(x, zyx, 9, 0)
    assert np.array_equal(a[:, order], su.surrogates(x[order], zyx[order], 9, 0))
    assert not np.array_equal(a, su.surrogates(x, zyx, 9, 1))


@pytest.mark.parametrize("zyx", [np.zeros((12, 3)), np.repeat(np.eye(3), 4, axis=0), np.arange(36.0).reshape(12, 3)])
def test_places_that_coincide_or_lie_on_a_line(zyx):
    x, y = np.arange(12.0), np.arange(12.0) % 5
    for p in su.correlation_test(x, y, zyx, 49, 0):
        assert 1 / 50 <= p <= 1


def test_beyond_the_limit_a_subset_is_tested(monkeypatch):
    monkeypatch.setattr(su, "TEST_OBJECTS", 30)
    rng = np.random.default_rng(3)
    t = table(rng.random((80, 3)), rng.random(80), rng.random(80))
    r = correlate(t, "x", "y", permutations=9, bootstraps=0).to_pylist()[0]
    assert r["spatial_objects"] == 30 and "made with 30 of the 80 objects" in r["warning"]
    assert r == correlate(t.take(rng.permutation(80)), "x", "y", permutations=9, bootstraps=0).to_pylist()[0]
    x, y = t["x"].to_numpy(), t["y"].to_numpy()
    assert r["pearson_r"] == pytest.approx(pearsonr(x, y).statistic)


def test_simulated_patterns():
    values = np.arange(1.0, 100.0)
    high = simulation_test(100, values, "The count", "greater")
    assert high["p"] == 0.01 and "above what chance gives" in high["sentence"]
    assert simulation_test(100, values, "The count")["p"] == 0.02 and simulation_test(0, values, "The count")["p"] == 0.02
    assert "below what chance gives" in simulation_test(0, values, "The count", "less")["sentence"]
    middle = simulation_test(50, values, "The count")
    assert middle["p"] == 1 and "as chance gives" in middle["sentence"]
    assert (middle["low"], middle["high"]) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    assert simulation_test(99, values, "The count", "greater")["p"] == 0.02, "an equal one counts"
    few = simulation_test(5, [1, 2, 3], "The count", "greater")
    assert few["p"] == 0.25 and "p cannot fall below 0.25" in few["sentence"]
    for observed, some in ((1, []), (np.nan, [1]), (1, [np.inf])):
        with pytest.raises(RecipeError, match="The count"):
            simulation_test(observed, some, "The count")


def test_curves_of_simulated_patterns():
    rng = np.random.default_rng(6)
    p, left = [], 0
    for _ in range(200):
        every = rng.normal(size=(100, 8)).cumsum(1)
        t = envelope_test(every[0], every[1:], "The curve")
        p.append(t["p"])
        left += len(t["outside"]) > 0
        assert (len(t["outside"]) > 0) == (t["p"] <= 0.05 + 1e-12)
    assert 1 <= left <= 22 and 0.4 < np.mean(p) < 0.6
    out = envelope_test(every[0] + np.eye(8)[3] * 30, every[1:], "The curve")
    assert out["p"] == 0.01 and 3 in out["outside"] and "left the envelope" in out["sentence"]
    with pytest.raises(RecipeError, match="simulated ones"):
        envelope_test([1, 2], [[1, 2, 3]], "The curve")
