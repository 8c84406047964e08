"""Per cent of the cell: tables of classes in, one table out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import Field

from vemray.analysis.composition import check_names, compose
from vemray.ops.base import Analysis, Composite, Port, Step, register

TABLES = Port("tables", ("table",), many=True, doc="tables of 'measure' by class name: {cell: cell_table, mitochondria: mito_table}")


def _example_inputs(rng) -> tuple[dict, dict]:
    import pyarrow as pa

    def table(n: int, mean: float):
        return pa.table({"label": np.arange(1, n + 1, dtype=np.uint64), "volume_nm3": rng.gamma(2.0, mean, n), "touches_border": rng.random(n) < 0.2})

    return {"tables.one": table(1, 1e12), "tables.two": table(1, 1e10), "tables.three": table(40, 1e8), "tables.none": table(0, 1.0)}, {}


@register("composition_of", hidden=True)
@dataclass(frozen=True)
class CompositionOf(Analysis):
    """Volumes of classes and compartments and their per cent, from tables of objects."""

    ports = (TABLES,)

    whole: Annotated[str, Field(description="name of the class that is 100 per cent")] = "cell"
    minus: Annotated[
        dict[str, list[str]], Field(description="compartments, each the first class of a list without the others: {cytoplasm: [cell, nucleus]}")
    ] = field(default_factory=dict)

    @classmethod
    def examples(cls):
        return [cls("one"), cls("one", {"rest": ["one", "two"], "remainder": ["rest", "three"]}), cls("none", {"rest": ["none", "two"]})]

    def __hash__(self):
        return hash((self.whole, json.dumps(self.minus)))

    def example_inputs(self, rng, shape, spacing):
        return _example_inputs(rng)

    def __call__(self, tables: Mapping):
        return compose(tables, self.whole, self.minus)


@register("composition")
@dataclass(frozen=True)
class Composition(Composite):
    """What part of the cell each class fills: a row for each class with its number of objects, its volume in um3 and its per cent of the whole
    and of compartments such as the cytoplasm (the cell without its nucleus).

    Columns: `name`, `objects`, `objects_touching_border`, `volume_um3`, `percent_of_<whole>` and `percent_of_<compartment>` for each of `minus`
    (empty for what the compartment was made from). Volumes are added up as measured: the classes of a compartment must lie inside it, and objects
    of two classes that overlap count in both. In cultured HeLa cells mitochondria fill about a tenth of the cytoplasm (Posakony, England and Attardi
    1977, J Cell Biol 74:468)."""

    serves = "step 8: per cent of the cell"
    ports = (TABLES,)

    whole: Annotated[str, Field(description="name of the class that is 100 per cent")] = "cell"
    minus: Annotated[
        dict[str, list[str]], Field(description="compartments, each the first class of a list without the others: {cytoplasm: [cell, nucleus]}")
    ] = field(default_factory=dict)

    @classmethod
    def examples(cls):
        return [cls("one"), cls("one", {"rest": ["one"]})]

    def __hash__(self):
        return hash((self.whole, json.dumps(self.minus)))

    def example_inputs(self, rng, shape, spacing):
        return _example_inputs(rng)

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        # here the names are known before anything has run
        check_names([k.partition(".")[2] for k in inputs], self.whole, self.minus)
        return [Step("", CompositionOf(self.whole, self.minus), inputs)]
