"""Comparisons of two groups against scipy, and what is said about them."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from vemray.analysis.groups import compare_groups
from vemray.errors import RecipeError
from vemray.ops import build


def two(seed, n, m, shift=1.0, spread=1.0, ties=False):
    rng = np.random.default_rng(seed)
    v = np.concatenate([rng.normal(shift, spread, n), rng.normal(0, 1, m)])
    v = np.round(v) if ties else v
    columns = {"v": v, "part": np.repeat([4, 9], [n, m]), **{f"centroid_{a}_nm": rng.random(n + m) for a in "zyx"}}
    return pa.table(columns).take(rng.permutation(n + m))


def one(table, group="part", **more):
    return compare_groups(table, "v", group, **{"permutations": 0, **more}).to_pylist()[0]


def parts(t):
    v, g = t["v"].to_numpy(), t["part"].to_numpy()
    return v[g == 4], v[g == 9]


@pytest.mark.parametrize("n, m", [(2, 2), (3, 7), (30, 50), (400, 90)])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_equals_scipy(n, m, ties, spread):
    t = two(n, n, m, 0.7, spread, ties)
    got, (a, b) = one(t), parts(t)
    student, welch, u = stats.ttest_ind(a, b), stats.ttest_ind(a, b, equal_var=False), stats.mannwhitneyu(a, b)
    pooled = np.sqrt(((n - 1) * a.var(ddof=1) + (m - 1) * b.var(ddof=1)) / (n + m - 2))
    low, high = welch.confidence_interval()
    sides = np.sign(a[:, None] - b)
    want = {
        "n_a": n, "n_b": m, "mean_a": a.mean(), "mean_b": b.mean(), "sd_a": a.std(ddof=1), "sd_b": b.std(ddof=1), "median_a": np.median(a),
        "median_b": np.median(b), "difference": a.mean() - b.mean(), "difference_low": low, "difference_high": high,
        "student_t": student.statistic, "student_p": student.pvalue, "welch_t": welch.statistic, "welch_p": welch.pvalue, "welch_df": welch.df,
        "mann_whitney_u": u.statistic, "mann_whitney_p": u.pvalue, "cohens_d": (a.mean() - b.mean()) / pooled, "cliffs_delta": sides.mean(),
        "hedges_g": (a.mean() - b.mean()) / pooled * (1 - 3 / (4 * (n + m) - 9)),
    }  # fmt: skip
    if a.std() + b.std() == 0:
        want = {k: want[k] for k in ("n_a", "n_b", "difference", "mann_whitney_u", "mann_whitney_p")}
        assert got["welch_p"] is None
    assert {k: got[k] for k in want} == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert ("ties" in got["warning"]) == (len(set(a) | set(b)) < n + m)
    sds = sorted([a.std(ddof=1), b.std(ddof=1)])
    assert ("read Welch's test" in got["warning"]) == (sds[1] > 2 * sds[0])
    assert ("There are only" in got["warning"]) == (min(n, m) < 10)


@pytest.mark.parametrize("n, m, said", [
    (0, 0, "Among 0 objects, v cannot be compared: there are none in 'part = (none)' and 'part = (none)'."),
    (1, 0, "Among 1 objects, v cannot be compared: there are none in 'part = (none)'."),
    (1, 1, "each group needs two objects"),
    (2, 1, "each group needs two objects"),
])  # fmt: skip
def test_too_few(n, m, said):
    got = one(two(0, n, m), permutations=9)
    assert (got["n_a"], got["n_b"]) == (n, m) and got["welch_p"] is None and said in got["sentence"]


def test_all_the_same():
    t = two(0, 20, 20).drop_columns(["v"]).append_column("v", pa.array(np.ones(40)))
    got = one(t, permutations=9)
    assert got["welch_p"] is None and got["p_spatial"] is None and got["cliffs_delta"] == 0 and "cannot be tested" in got["sentence"]


def test_a_condition_splits():
    t = two(3, 30, 30)
    t = t.append_column("d", pa.array([None if i == 3 else float(i) for i in range(60)])).append_column("up", pa.array([i < 20 for i in range(60)]))
    got, v = one(t, "d < 20"), t["v"].to_numpy()
    assert (got["n_a"], got["n_b"], got["dropped"]) == (19, 40, 1) and (got["group_a"], got["group_b"]) == ("d < 20", "not (d < 20)")
    assert got["mean_a"] == pytest.approx(np.delete(v[:20], 3).mean())
    up = one(t, "up")
    assert (up["n_a"], up["group_a"], up["group_b"]) == (20, "up", "not up") and up["mean_a"] == pytest.approx(v[:20].mean())
    three = t.append_column("name", pa.array(["b", "a", None] * 20))
    text = one(three, "name")
    assert (text["group_a"], text["n_a"], text["dropped"]) == ("name = a", 20, 20)
    by = compare_groups(three, "v", "part", by="name", permutations=0)
    assert by["by_value"].to_pylist() == ["a", "b"] and by["sentence"][0].as_py().startswith("Where name is a, among 20 objects")


def test_refuses():
    t = two(0, 9, 9).append_column("id", pa.array(range(18)))
    for group, said in (("prt", "Did you mean 'part'"), ("id", "18 values"), ("v + 1", "neither a column nor a condition"), ("w > 1", "'w'")):
        with pytest.raises(RecipeError, match=said):
            one(t, group)
    assert one(t, "id", where="id < 2")["n_a"] == 1


def test_order_of_rows_does_not_matter():
    t = two(5, 30, 40)
    assert one(t, permutations=49) == one(t.take(np.random.default_rng(1).permutation(70)), permutations=49)


def test_names_of_the_groups_are_those_of_the_sentence():
    got = one(two(0, 30, 50), "part == 4", names=("the first section", "the second section"))
    assert (got["group_a"], got["group_b"]) == ("the first section", "the second section") and "in the first section (mean" in got["sentence"]
    with pytest.raises(RecipeError, match="names"):
        build("compare_groups", {"names": ["one"]})
