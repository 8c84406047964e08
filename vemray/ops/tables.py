"""Tables of objects put together, extended and thinned: what stands between measuring and statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from vemray.analysis import features, tables
from vemray.errors import RecipeError
from vemray.ops.base import Analysis, Port, register
from vemray.ops.neighbourhood import example_objects


def _read(what: str):
    """Validates by reading, so that a recipe with a wrong expression fails before anything runs."""

    def check(text: str) -> str:
        try:
            features.parse(text, what)
        except RecipeError as e:
            raise ValueError(str(e)) from None
        return text

    return AfterValidator(check)


#: parameters that hold a condition, or an expression, on columns
Condition = Annotated[str, _read("condition")]
Expression = Annotated[str, _read("expression")]


@register("derive")
@dataclass(frozen=True)
class Derive(Analysis):
    """The table with columns computed from others: to_membrane_nm: min(to_nucleus_nm, to_plasma_membrane_nm).

    Expressions hold names of columns, numbers, + - * /, brackets, min, max, abs, sqrt, log (natural; all row by row), and comparisons with and, or,
    not, which give true and false. They are computed in order, and one may use those before it. Where a value is missing, or the result is no
    finite number (a logarithm of 0), the new column is empty."""

    serves = "step 9: the smaller of the distances to both membranes"

    columns: Annotated[dict[str, Expression], Field(description="new columns and their expressions, e.g. {volume_um3: volume_nm3 / 1e9}")] = field(
        default_factory=dict
    )

    @classmethod
    def examples(cls):
        return [cls({"volume_um3": "volume_nm3 / 1e9", "log_volume": "log(volume_um3)", "deep": "centroid_z_nm > 200"}), cls()]

    def __hash__(self):
        return hash(json.dumps(self.columns))

    def example_inputs(self, rng, shape, spacing):
        return {"table": example_objects(rng, int(rng.integers(0, 30)))}, {}

    def __call__(self, table):
        return tables.derive(table, self.columns)


@register("select_rows")
@dataclass(frozen=True)
class SelectRows(Analysis):
    """The rows of a table for which a condition on its columns holds, in their order. A comparison with a missing value does not hold."""

    serves = "step 9: objects that the statistics are about"

    where: Annotated[Condition, Field(description="condition on columns, e.g. volume_nm3 > 1e7 and not touches_border")] = "label > 0"

    @classmethod
    def examples(cls):
        return [cls(), cls("centroid_z_nm > 200 or volume_nm3 < 1e8")]

    def example_inputs(self, rng, shape, spacing):
        return {"table": example_objects(rng, int(rng.integers(0, 30)))}, {}

    def __call__(self, table):
        return tables.select_rows(table, self.where)


@register("join")
@dataclass(frozen=True)
class Join(Analysis):
    """Tables side by side: one row for each row of the first table, with the columns of all the tables that have the same key.

    The rows keep the first table's order. In the other tables a key may occur once. A column that two tables have must hold the same in
    both, or one of them gets a prefix."""

    serves = "step 9: what was measured and the distances in one table"
    ports = (Port("tables", ("table",), many=True, doc="by name, the first gives the rows: {objects: mito_table, distance: mito_to_nucleus}"),)

    key: Annotated[str, Field(description="column that tells which rows belong together")] = tables.KEY
    missing: Annotated[
        Literal["error", "null", "drop"],
        Field(
            description="a key that not all tables have: an error; keep the rows of the first table, empty where there is nothing; or drop the row"
        ),
    ] = "error"
    prefix: Annotated[dict[str, str], Field(description="put before the column names of a table: {distance: nucleus_}")] = field(default_factory=dict)

    @classmethod
    def examples(cls):
        return [cls(), cls(missing="null", prefix={"two": "other_"}), cls(missing="drop", prefix={"one": "a_", "two": "b_"})]

    def __hash__(self):
        return hash((self.key, self.missing, json.dumps(self.prefix)))

    def example_inputs(self, rng, shape, spacing):
        import pyarrow as pa

        n = int(rng.integers(0, 30))
        one = example_objects(rng, n)
        if self.missing != "error":
            return {"tables.one": one, "tables.two": example_objects(rng, 12)}, {}
        return {"tables.one": one, "tables.two": pa.table({"label": np.arange(1, n + 1, dtype=np.uint64), "to_nucleus_nm": rng.random(n)})}, {}

    def __call__(self, tables_by_name: Mapping):
        return tables.join(tables_by_name, self.key, self.missing, self.prefix)
