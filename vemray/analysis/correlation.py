"""Correlation of two columns of a table of objects, with what chance and spatial dependence would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vemray.analysis import features, sentences
from vemray.analysis.points import CENTRE
from vemray.analysis.selection import Sample, number, samples
from vemray.analysis.surrogates import correlation_test, subset

CONFIDENCE = 0.95
#: objects that an interval needs
LEAST_FOR_INTERVAL = 4


def correlate(
    table,
    x: str,
    y: str,
    where: str | None = None,
    by: str | None = None,
    noun: str = "objects",
    permutations: int = 999,
    bootstraps: int = 2000,
    seed: int = 0,
    position: Sequence[str] = CENTRE,
    names: Sequence[str] | None = None,
):
    """pyarrow.Table, one row for each value of `by`, or one. `ops/statistics.py` says what the columns are."""
    import pyarrow as pa

    both = (features.value(x, table), features.value(y, table))
    rows = []
    for s in samples(table, both, where, by, position):
        row = {"by": by, "by_value": s.by, "x": x, "y": y, "objects": noun, "n": s.n, "dropped": s.dropped, "datasets": s.datasets}
        row |= dict(zip(("x_name", "y_name"), names or (None, None)))
        row |= _statistics(s, permutations, bootstraps, seed)
        row["warning"] = sentences.correlation_warning(row, s.why_not if permutations else "")
        row["sentence"] = sentences.correlation_sentence(row)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=_schema(table, by))


def _schema(table, by: str | None):
    import pyarrow as pa

    kind = pa.string() if by is None else table.schema.field(by).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    return pa.schema([
        ("by", text), ("by_value", kind), ("x", text), ("y", text), ("x_name", text), ("y_name", text), ("objects", text),
        ("n", whole), ("dropped", whole), ("datasets", whole), ("x_distinct", whole), ("y_distinct", whole),
        ("pearson_r", real), ("pearson_p", real), ("pearson_low", real), ("pearson_high", real),
        ("spearman_rho", real), ("spearman_p", real), ("spearman_low", real), ("spearman_high", real), ("slope", real), ("intercept", real),
        ("pearson_p_spatial", real), ("spearman_p_spatial", real), ("spatial_objects", whole), ("warning", text), ("sentence", text),
    ])  # fmt: skip


def _statistics(s: Sample, permutations: int, bootstraps: int, seed: int) -> dict:
    from scipy import stats

    x, y = s.columns
    out: dict = {"x_distinct": len(np.unique(x)), "y_distinct": len(np.unique(y))}
    if s.n < 3 or out["x_distinct"] < 2 or out["y_distinct"] < 2:
        return out
    r, rho = stats.pearsonr(x, y), stats.spearmanr(x, y)
    out |= {"pearson_r": number(r.statistic), "pearson_p": number(r.pvalue), "spearman_rho": number(rho.statistic), "spearman_p": number(rho.pvalue)}
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    out |= {"slope": number(slope), "intercept": number(y.mean() - slope * x.mean())}
    if s.n >= LEAST_FOR_INTERVAL:
        interval = r.confidence_interval(CONFIDENCE)
        out |= {"pearson_low": number(interval.low), "pearson_high": number(interval.high)}
        if bootstraps:
            out["spearman_low"], out["spearman_high"] = bootstrap_interval(x, y, bootstraps, seed)
    if permutations and s.positions is not None:
        some = subset(s.n, seed)
        p = correlation_test(x[some], y[some], s.positions[some], permutations, seed)
        out |= {"pearson_p_spatial": p[0], "spearman_p_spatial": p[1], "spatial_objects": len(some)}
    return out


def bootstrap_interval(x: np.ndarray, y: np.ndarray, bootstraps: int, seed: int) -> tuple[float | None, float | None]:
    """Percentile interval of Spearman's rho over objects drawn with replacement (Efron and Tibshirani 1993, An Introduction to the Bootstrap,
    ch. 13). A draw is held as how often each object is in it: its ranks follow from cumulative counts, without sorting again."""
    rng = np.random.default_rng(seed)
    ids = [np.unique(v, return_inverse=True)[1] for v in (x, y)]
    out = np.full(bootstraps, np.nan)
    for i in range(bootstraps):
        times = np.bincount(rng.integers(0, len(x), len(x)), minlength=len(x))
        a, b = (_ranks(v, times) - (len(x) + 1) / 2 for v in ids)  # the mean of ranks is (n + 1) / 2
        spread = np.sqrt((times * a * a).sum() * (times * b * b).sum())
        out[i] = (times * a * b).sum() / spread if spread > 0 else np.nan
    out = out[np.isfinite(out)]
    if len(out) == 0:
        return None, None
    low, high = np.quantile(out, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _ranks(ids: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The mean rank of each object's value where it occurs `times`: `ids` number the distinct values in ascending order."""
    count = np.bincount(ids, weights=times)
    return (np.cumsum(count) - (count - 1) / 2)[ids]
