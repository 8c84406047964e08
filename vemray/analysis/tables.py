"""Tables of objects put together, extended and thinned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from vemray.analysis import features
from vemray.errors import RecipeError, nearest

KEY = "label"


def derive(table, columns: Mapping[str, str]):
    """The table with a column more for each of `columns` {name: expression}, in order; an expression may use those before it. A condition gives
    true and false, any other expression float64, empty where it is not a finite number."""
    import numpy as np
    import pyarrow as pa

    for name, expression in columns.items():
        if name in table.column_names:
            raise RecipeError(f"columns: the table has a column '{name}' already. Call the new one something else.")
        if features.is_condition(expression):
            made = pa.array(features.evaluate(expression, table))
        else:
            values = features.value(expression, table)
            made = pa.array(values, mask=~np.isfinite(values))
        table = table.append_column(name, made)
    return table


def select_rows(table, where: str):
    """The rows for which the condition holds, in their order."""
    import pyarrow as pa

    return table.filter(pa.array(features.evaluate(where, table)))


def join(tables: Mapping[str, object], on: str = KEY, missing: Literal["error", "null", "drop"] = "error", prefix: Mapping[str, str] | None = None):
    """One table with the columns of all, rows with the same key side by side, in the order of the first table. If tables have the column
    `dataset`, it is part of the key of those."""
    import numpy as np
    import pyarrow as pa

    prefix = dict(prefix or {})
    for name in prefix:
        if name not in tables:
            raise RecipeError(f"prefix names '{name}', which is not among the tables.{nearest(name, tables)} There are: {', '.join(tables)}.")
    if not tables:
        raise RecipeError("join needs one table or more.")
    (first, left), *others = tables.items()
    keys = {name: _keys(t, on, name) for name, t in tables.items()}
    if others and len({"dataset" in t.column_names for t in tables.values()}) > 1:
        raise RecipeError("some of the tables have a column 'dataset' and some have not: they cannot be joined.")
    out = left.rename_columns([_renamed(c, first, on, prefix) for c in left.column_names])
    keep = np.ones(left.num_rows, bool)
    for name, t in others:
        at = {key: i for i, key in enumerate(keys[name])}
        if len(at) < t.num_rows:
            raise RecipeError(f"the table '{name}' has two rows with the same '{on}': which is meant is not clear. Only the first table may.")
        rows = [at.get(key) for key in keys[first]]
        if missing == "error":
            _same_keys(first, keys[first], name, at, on)
        keep &= np.array([r is not None for r in rows], bool)
        t = t.take(pa.array(rows, pa.int64()))
        for column in t.column_names:
            if column in (on, "dataset"):
                continue
            called = _renamed(column, name, on, prefix)
            if called not in out.column_names:
                out = out.append_column(called, t.column(column))
            elif not _same(out.column(called), t.column(column)):
                raise RecipeError(
                    f"the tables have different values in columns called '{called}', the later one in '{name}'. Give a prefix: "
                    f"prefix: {{{name}: {name}_}}."
                )
    return out.filter(pa.array(keep)) if missing == "drop" else out


def _same(a, b) -> bool:
    """Columns equal in every row that both have."""
    import pyarrow as pa

    if a.type != b.type:
        return False
    both = pa.array(~(a.is_null().to_numpy() | b.is_null().to_numpy()))
    a, b = a.filter(both).to_pylist(), b.filter(both).to_pylist()
    return all(x == y or (x != x and y != y) for x, y in zip(a, b))


def _renamed(column: str, table: str, on: str, prefix: Mapping[str, str]) -> str:
    return column if column in (on, "dataset") else prefix.get(table, "") + column


def _keys(table, on: str, name: str) -> list:
    features.require(table, [on], f"joining the table '{name}'")
    if table.column(on).null_count:
        raise RecipeError(f"the key '{on}' of the table '{name}' is empty in some rows.")
    keys = table.column(on).to_pylist()
    return list(zip(table.column("dataset").to_pylist(), keys)) if "dataset" in table.column_names else keys


def _same_keys(first: str, left: list, name: str, right: Mapping, on: str) -> None:
    known = set(left)
    for one, here, there, n in (
        (next((k for k in left if k not in right), None), first, name, sum(k not in right for k in known)),
        (next((k for k in right if k not in known), None), name, first, sum(k not in known for k in right)),
    ):
        if n:
            shown = one[1] if isinstance(one, tuple) else one
            raise RecipeError(
                f"'{on}' {shown} of the table '{here}' (and {n - 1} more) is not in the table '{there}'. Say missing: null to keep the rows of "
                f"'{first}', or missing: drop to keep only what all tables have."
            )
