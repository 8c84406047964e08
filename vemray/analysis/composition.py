"""What share of the cell each class fills: volumes of whole classes, compartments between them, and per cent of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from vemray.errors import RecipeError, nearest

NM3_PER_UM3 = 1e9


@dataclass(frozen=True)
class ClassTotal:
    """A class as one row of the composition. `volume_nm3` may be negative for a compartment whose parts reach beyond it."""

    objects: int | None
    touching_border: int | None
    volume_nm3: float


def check_names(names: Iterable[str], whole: str, minus: Mapping[str, Iterable[str]]) -> None:
    """RecipeError unless `whole` and all that `minus` names are among `names`, or compartments defined before."""
    known = list(names)
    if whole not in known and whole not in minus:
        raise RecipeError(f"'whole' is '{whole}', which is not among the tables.{nearest(whole, known)} There are: {', '.join(known) or 'none'}.")
    for compartment, parts in minus.items():
        parts = list(parts)
        if compartment in known:
            raise RecipeError(f"minus: the compartment '{compartment}' has the name of a table (or is defined twice). Call it something else.")
        if not parts:
            raise RecipeError(f"minus: the compartment '{compartment}' is made of nothing. Write cytoplasm: [cell, nucleus].")
        for part in parts:
            if part not in known:
                raise RecipeError(f"minus: '{compartment}' names '{part}', which is neither a table nor defined before.{nearest(part, known)}")
        if len(set(parts)) < len(parts):
            raise RecipeError(f"minus: '{compartment}' names a part twice: {', '.join(parts)}.")
        known.append(compartment)


def total(table, name: str) -> ClassTotal:
    """The objects of a `measure` table together. RecipeError when the table has no volumes."""
    if "volume_nm3" not in table.column_names:
        raise RecipeError(f"the table '{name}' has no column 'volume_nm3' (it has {', '.join(table.column_names)}). Name a 'measure' step.")
    volumes = table.column("volume_nm3").to_numpy()
    border = int(np.count_nonzero(table.column("touches_border").to_numpy())) if "touches_border" in table.column_names else None
    return ClassTotal(len(volumes), border, float(np.sum(np.sort(volumes))))  # sorted: the sum does not depend on the order of the rows


def compose(tables: Mapping[str, object], whole: str, minus: Mapping[str, Iterable[str]]):
    """pyarrow.Table, one row for each class and compartment, in the order given.

    `name`; `objects` and `objects_touching_border` (null for a compartment); `volume_um3`; `percent_of_<whole>`, then `percent_of_<compartment>`
    for each of `minus`, null for the classes that it was made from and where the denominator is not above 0."""
    import pyarrow as pa

    check_names(tables, whole, minus)
    rows = {name: total(t, name) for name, t in tables.items()}
    for compartment, parts in minus.items():
        first, *rest = parts
        rows[compartment] = ClassTotal(None, None, rows[first].volume_nm3 - sum(rows[p].volume_nm3 for p in rest))
    out = {
        "name": pa.array(list(rows), pa.string()),
        "objects": pa.array([r.objects for r in rows.values()], pa.int64()),
        "objects_touching_border": pa.array([r.touching_border for r in rows.values()], pa.int64()),
        "volume_um3": pa.array([r.volume_nm3 / NM3_PER_UM3 for r in rows.values()], pa.float64()),
    }
    for denominator in dict.fromkeys([whole, *minus]):
        below = rows[denominator].volume_nm3
        outside = set() if denominator == whole else {whole, *ancestors(denominator, minus)}
        shares = [100 * r.volume_nm3 / below if below > 0 and name not in outside else None for name, r in rows.items()]
        out[f"percent_of_{denominator}"] = pa.array(shares, pa.float64())
    return pa.table(out)


def ancestors(compartment: str, minus: Mapping[str, Iterable[str]]) -> set[str]:
    """All that a compartment was made from: what it was cut from, and what was cut away."""
    out: set[str] = set()
    for part in minus.get(compartment, ()):
        out |= {part} | ancestors(part, minus)
    return out
