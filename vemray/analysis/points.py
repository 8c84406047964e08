"""Objects of a table as points: their labels and centres, data set by data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vemray.analysis.features import require
from vemray.errors import RecipeError

CENTRE = ("centroid_z_nm", "centroid_y_nm", "centroid_x_nm")


@dataclass(frozen=True)
class Points:
    """`labels` uint64 (n,) and `zyx` float64 (n, 3) in nm, of the objects that have a centre; `rows` (n,) are their rows in the table."""

    labels: np.ndarray
    zyx: np.ndarray
    rows: np.ndarray


def coordinates(table, columns: Sequence[str] = CENTRE) -> np.ndarray:
    """float64 (rows, columns), NaN where empty. RecipeError unless the columns are there."""
    require(table, columns, "the position of an object")
    # + 0.0 makes -0.0 and 0.0 one place
    return np.stack([np.asarray(table.column(c).to_numpy(), float) for c in columns], axis=1) + 0.0


def points(table) -> Points:
    """Of one data set. Objects without a finite centre are left out."""
    require(table, ["label"], "the table of objects")
    label = table.column("label")
    if label.null_count or label.to_numpy().dtype.kind not in "ui":
        raise RecipeError("column 'label' must hold a whole number in every row.")
    zyx = coordinates(table)
    rows = np.flatnonzero(np.isfinite(zyx).all(1))
    return Points(label.to_numpy().astype(np.uint64)[rows], zyx[rows], rows)


def datasets(table) -> np.ndarray | None:
    """The data set of each row; None for a table without the column, whose objects are of one."""
    return np.asarray(table.column("dataset").to_pylist(), object) if "dataset" in table.column_names else None


def by_dataset(table) -> Iterator[tuple[object, np.ndarray]]:
    """(data set, its rows), in order of the data sets' names: space is shared only within one."""
    of = datasets(table)
    if of is None:
        yield None, np.arange(table.num_rows)
        return
    for name in sorted(set(of), key=str):
        yield name, np.flatnonzero(of == name)
