"""Two groups of objects compared: means, ranks, sizes of effect, and what spatial dependence would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vemray.analysis import features, sentences
from vemray.analysis.points import CENTRE
from vemray.analysis.selection import Sample, number, samples
from vemray.analysis.surrogates import difference_test, subset
from vemray.errors import RecipeError

CONFIDENCE = 0.95


def compare_groups(
    table,
    value: str,
    group: str,
    where: str | None = None,
    by: str | None = None,
    noun: str = "objects",
    permutations: int = 999,
    seed: int = 0,
    position: Sequence[str] = CENTRE,
    names: Sequence[str] | None = None,
):
    """pyarrow.Table, one row for each value of `by`, or one. `ops/statistics.py` says what the columns are."""
    import pyarrow as pa

    values = features.value(value, table)
    keep = np.ones(table.num_rows, bool) if where is None else features.evaluate(where, table)
    second, found = split(table, group, keep)
    names = names or found
    rows = []
    for s in samples(table, (second, values), where, by, position):
        row = {"by": by, "by_value": s.by, "value": value, "group_a": names[0], "group_b": names[1], "objects": noun}
        row |= {"dropped": s.dropped, "datasets": s.datasets, **_statistics(s, permutations, seed)}
        row["warning"] = sentences.groups_warning(row, s.why_not if permutations else "")
        row["sentence"] = sentences.groups_sentence(row)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=_schema(table, by))


def _schema(table, by: str | None):
    import pyarrow as pa

    kind = pa.string() if by is None else table.schema.field(by).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    of_each = [(f"{what}_{g}", t) for what, t in (("n", whole), ("mean", real), ("sd", real), ("median", real)) for g in "ab"]
    reals = [
        "difference", "difference_low", "difference_high", "student_t", "student_p", "welch_t", "welch_df", "welch_p",
        "mann_whitney_u", "mann_whitney_p", "cohens_d", "hedges_g", "cliffs_delta", "p_spatial",
    ]  # fmt: skip
    return pa.schema([
        ("by", text), ("by_value", kind), ("value", text), ("group_a", text), ("group_b", text), ("objects", text), *of_each,
        ("dropped", whole), ("datasets", whole), ("ties", whole), *((name, real) for name in reals), ("spatial_objects", whole),
        ("warning", text), ("sentence", text),
    ])  # fmt: skip


def split(table, group: str, keep: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """float64 (rows,): 0 in the first group, 1 in the second, NaN in none; and their names. `group` is a column with two values among the rows
    to `keep` (the smaller is the first group), or a condition (the first group is where it holds; a row that lacks a value is in none)."""
    import pyarrow as pa

    if group in table.column_names and not pa.types.is_boolean(table.schema.field(group).type):
        values = np.array([*table.column(group).to_pylist(), None], object)[:-1]
        missing = np.array([v is None or v != v for v in values], bool)
        found = sorted(set(values[keep & ~missing]))
        if len(found) > 2:
            shown = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
            raise RecipeError(f"the column '{group}' has {len(found)} values ({shown}), and two groups are compared. Choose two by 'where'.")
        found = [*found, None, None][:2]
        out = np.where(values == found[1], 1.0, 0.0)
        out[missing] = np.nan
        return out, tuple(f"{group} = {'(none)' if v is None else v}" for v in found)
    is_column = group in table.column_names
    if not is_column:
        names = features.columns(group)
        if names == {group}:
            features.require(table, [group], "'group'")
        if not features.is_condition(group):
            raise RecipeError(f"'group' is '{group}', which is neither a column nor a condition such as distance_nm < 500.")
    out = np.where(features.evaluate(group, table), 0.0, 1.0)
    for name in features.columns(group):
        features.require(table, [name], "'group'")
        column = table.column(name)
        missing = np.array(column.is_null().to_numpy()) | (np.isnan(column.to_numpy()) if pa.types.is_floating(column.type) else False)
        out[missing] = np.nan
    return out, (group, f"not {group}" if is_column else f"not ({group})")


def _statistics(s: Sample, permutations: int, seed: int) -> dict:
    from scipy import stats

    second, values = s.columns
    a, b = values[second == 0], values[second == 1]
    out: dict = {"ties": s.n - len(np.unique(values))}
    for name, v in (("a", a), ("b", b)):
        out[f"n_{name}"] = len(v)
        if len(v):
            out |= {f"mean_{name}": float(v.mean()), f"median_{name}": float(np.median(v))}
        if len(v) > 1:
            out[f"sd_{name}"] = float(v.std(ddof=1))
    if len(a) == 0 or len(b) == 0:
        return out
    out["difference"] = float(a.mean() - b.mean())
    u = stats.mannwhitneyu(a, b, alternative="two-sided")
    out |= {"mann_whitney_u": float(u.statistic), "mann_whitney_p": number(u.pvalue), "cliffs_delta": float(2 * u.statistic / len(a) / len(b) - 1)}
    if len(a) > 1 and len(b) > 1 and out["sd_a"] + out["sd_b"] > 0:
        student, welch = stats.ttest_ind(a, b), stats.ttest_ind(a, b, equal_var=False)
        interval = welch.confidence_interval(CONFIDENCE)
        free = len(a) + len(b) - 2
        pooled = np.sqrt(((len(a) - 1) * out["sd_a"] ** 2 + (len(b) - 1) * out["sd_b"] ** 2) / free)
        d = out["difference"] / pooled
        out |= {
            "difference_low": number(interval.low), "difference_high": number(interval.high),
            "student_t": number(student.statistic), "student_p": number(student.pvalue),
            "welch_t": number(welch.statistic), "welch_df": number(welch.df), "welch_p": number(welch.pvalue),
            "cohens_d": number(d), "hedges_g": number(d * (1 - 3 / (4 * free - 1))),
        }  # fmt: skip
    if permutations and s.positions is not None and out["ties"] < s.n - 1:
        some = subset(s.n, seed)
        first = second[some] == 0
        if first.any() and not first.all():
            out |= {"p_spatial": difference_test(values[some], first, s.positions[some], permutations, seed), "spatial_objects": len(some)}
    return out
