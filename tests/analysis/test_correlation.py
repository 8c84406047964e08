"""Correlations against scipy, and what is said about them."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from vemray.analysis.correlation import bootstrap_interval, correlate
from vemray.errors import RecipeError


def related(seed, n, slope=1.0, ties=False):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = slope * x + rng.normal(size=n)
    if ties:
        x, y = np.round(x), np.round(2 * y)
    return pa.table({"label": np.arange(1, n + 1, dtype=np.uint64), "x": x, "y": y, **{f"centroid_{a}_nm": rng.random(n) for a in "zyx"}})


def one(table, **more):
    return correlate(table, "x", "y", **{"permutations": 0, "bootstraps": 200, **more}).to_pylist()[0]


@pytest.mark.parametrize("n", [3, 4, 20, 500])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("slope", [-0.5, 0.0, 3.0])
def test_equals_scipy(n, ties, slope):
    t = related(n, n, slope, ties)
    got, x, y = one(t), t["x"].to_numpy(), t["y"].to_numpy()
    r, rho, line = stats.pearsonr(x, y), stats.spearmanr(x, y), stats.linregress(x, y)
    want = {
        "pearson_r": r.statistic, "pearson_p": r.pvalue, "spearman_rho": rho.statistic, "spearman_p": rho.pvalue,
        "slope": line.slope, "intercept": line.intercept,
    }  # fmt: skip
    if n > 3:
        low, high = r.confidence_interval(0.95)
        want |= {"pearson_low": low, "pearson_high": high}
    assert {k: got[k] for k in want} == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert (got["pearson_low"] is None) == (n == 3) and got["n"] == n
    assert ("ties" in got["warning"]) == (len(set(x)) < n or len(set(y)) < n)


@pytest.mark.parametrize("ties", [False, True])
def test_bootstrap_is_that_of_drawn_rows(ties):
    t = related(3, 60, 0.6, ties)
    x, y = t["x"].to_numpy(), t["y"].to_numpy()
    rng = np.random.default_rng(5)
    drawn = [rng.integers(0, 60, 60) for _ in range(300)]
    want = np.quantile([stats.spearmanr(x[i], y[i]).statistic for i in drawn], [0.025, 0.975])
    assert bootstrap_interval(x, y, 300, 5) == pytest.approx(tuple(want), rel=1e-12)


def test_the_interval_holds_the_truth():
    """Of two normal variables rho is 6/pi asin(r/2)."""
    r = 1 / np.sqrt(2)
    true = 6 / np.pi * np.arcsin(r / 2)
    held = [one(related(s, 80)) for s in range(60)]
    assert sum(h["spearman_low"] <= true <= h["spearman_high"] for h in held) >= 52
    assert sum(h["pearson_low"] <= r <= h["pearson_high"] for h in held) >= 52


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few(n):
    got = one(related(0, n), permutations=99)
    assert got["n"] == n and got["pearson_r"] is None and got["spearman_p_spatial"] is None
    assert got["sentence"].startswith(f"Among {n} objects, no correlation of y with x can be computed: 3 or more are needed.")


def test_all_the_same():
    t = related(0, 20).drop_columns(["x"]).append_column("x", [np.full(20, 7.0)])
    got = one(t, permutations=99)
    assert got["pearson_r"] is None and "can be computed: all have the same x." in got["sentence"]


def test_missing_values_are_dropped_and_counted():
    t = related(1, 30)
    x = t["x"].to_numpy().copy()
    x[[0, 5]] = np.nan, np.inf
    t = t.set_column(1, "x", pa.array(x)).set_column(2, "y", pa.array([None if i == 9 else v for i, v in enumerate(t["y"].to_pylist())]))
    got = one(t)
    keep = [i for i in range(30) if i not in (0, 5, 9)]
    assert (got["n"], got["dropped"]) == (27, 3) and "3 rows without a value were left out." in got["warning"]
    assert got["pearson_r"] == pytest.approx(stats.pearsonr(x[keep], t["y"].to_numpy()[keep]).statistic)


def test_order_of_rows_does_not_matter():
    t = related(4, 50, 0.4, ties=True)
    a, b = one(t, permutations=49), one(t.take(np.random.default_rng(0).permutation(50)), permutations=49)
    assert a == b
    assert one(t, permutations=49, seed=1)["spearman_low"] != a["spearman_low"]


def test_x_and_y_may_change_places():
    t = related(4, 50, 0.4)
    a = correlate(t, "x", "y", permutations=49).to_pylist()[0]
    b = correlate(t, "y", "x", permutations=49).to_pylist()[0]
    assert a["spearman_rho"] == pytest.approx(b["spearman_rho"]) and a["pearson_p"] == pytest.approx(b["pearson_p"])


def test_groups_conditions_and_expressions():
    t = related(6, 90).append_column("part", pa.array(["b", "a", None] * 30)).append_column("part_n", pa.array([2, 1, 2] * 30))
    got = correlate(t, "abs(x)", "y / 2", "x > 0", "part", permutations=0, bootstraps=0).to_pylist()
    assert [r["by_value"] for r in got] == ["a", "b"] and got[0]["spearman_low"] is None
    x, y = t["x"].to_numpy(), t["y"].to_numpy()
    chosen = (np.arange(90) % 3 == 1) & (x > 0)
    assert got[0]["n"] == chosen.sum() and got[0]["pearson_r"] == pytest.approx(stats.pearsonr(x[chosen], y[chosen]).statistic)
    assert got[0]["sentence"].startswith("Where part is a, among")
    assert correlate(t, "x", "y", by="part_n", permutations=0, bootstraps=0)["by_value"].to_pylist() == [1, 2]
    assert correlate(t.slice(0, 0), "x", "y", by="part").num_rows == 0


def test_several_data_sets():
    t = related(2, 40).append_column("dataset", pa.array(["one", "two"] * 20).dictionary_encode())
    got = one(t, permutations=19)
    assert got["datasets"] == 2 and got["spearman_p_spatial"] is None
    assert "come from 2 data sets" in got["warning"] and "several data sets lie in no common space" in got["warning"]
    each = correlate(t, "x", "y", by="dataset", permutations=19, bootstraps=0).to_pylist()
    assert [r["by_value"] for r in each] == ["one", "two"] and all(r["spatial_objects"] == 20 and r["datasets"] == 1 for r in each)
    means = t.slice(0, 12).drop_columns(["dataset"]).append_column("dataset", pa.array([str(i) for i in range(12)]))
    assert "replicate" not in one(means)["warning"], "a row for each data set: rows are replicates"


def test_without_positions():
    got = one(related(2, 40).drop_columns(["centroid_y_nm"]), permutations=19)
    assert got["spearman_p_spatial"] is None and "was not made: the table has no columns centroid_z_nm" in got["warning"]


@pytest.mark.parametrize("change, said", [({"x": "xx"}, "Did you mean 'x'"), ({"by": "labl"}, "Did you mean 'label'"), ({"where": "z > 1"}, "'z'")])
def test_unknown_columns(change, said):
    with pytest.raises(RecipeError, match=said):
        correlate(related(0, 9), **{"x": "x", "y": "y", **change})
