"""The rows that a statistic is made from, in an order that does not depend on the table's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vemray.analysis import features
from vemray.analysis.points import coordinates, datasets

#: objects that the permutation test needs: fewer make no variogram
LEAST_SPATIAL = 10


@dataclass(frozen=True)
class Sample:
    """`columns` of float64 (n,), no value missing; `positions` (n, axes), or None and `why_not`. `dropped` rows had a value missing; the objects
    come from `datasets` data sets (a table without that column is of one)."""

    by: Any
    columns: tuple[np.ndarray, ...]
    positions: np.ndarray | None
    why_not: str
    dropped: int
    datasets: int

    @property
    def n(self) -> int:
        return len(self.columns[0])


def samples(table, columns: Sequence[np.ndarray], where: str | None, by: str | None, position: Sequence[str]) -> Iterator[Sample]:
    """One for each value of the column `by`, ascending; one of the whole table without it. `columns` are float64 (rows,)."""
    keep = np.ones(table.num_rows, bool) if where is None else features.evaluate(where, table)
    space = coordinates(table, position) if all(c in table.column_names for c in position) else None
    of = datasets(table)
    if by is None:
        groups: list[tuple[Any, np.ndarray]] = [(None, keep)]
    else:
        features.require(table, [by], "'by'")
        values = np.array([*table.column(by).to_pylist(), None], object)[:-1]
        names = sorted({v for v in values if v is not None and v == v}, key=lambda v: (isinstance(v, str), v))
        groups = [(v, keep & (values == v)) for v in names]
    for value, rows in groups:
        whole = rows & np.all([np.isfinite(c) for c in columns], axis=0)
        chosen = np.flatnonzero(whole)
        order = chosen[np.lexsort([*(c[chosen] for c in columns[::-1]), *(() if space is None else space[chosen].T[::-1])])]
        count = 1 if of is None else len(set(of[order]))
        positions, why_not = _positions(None if space is None else space[order], count, position)
        yield Sample(value, tuple(c[order] for c in columns), positions, why_not, int(rows.sum() - whole.sum()), count)


def _positions(space: np.ndarray | None, datasets: int, names: Sequence[str]) -> tuple[np.ndarray | None, str]:
    if space is None:
        return None, f"the table has no columns {', '.join(names)}"
    if datasets > 1:
        return None, "objects of several data sets lie in no common space (use by: dataset)"
    if not np.isfinite(space).all():
        return None, "some objects have no position"
    if len(space) < LEAST_SPATIAL:
        return None, f"it needs {LEAST_SPATIAL} objects"
    return space, ""


def number(value: float) -> float | None:
    """A result of scipy as a table holds it: None where it is not defined."""
    return float(value) if np.isfinite(value) else None
