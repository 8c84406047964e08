"""Choosing and renumbering objects by what was measured on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from vemray.analysis import features
from vemray.errors import RecipeError
from vemray.ops.base import Analysis, ArraySpec, Composite, Filter, Port, Site, Step, register
from vemray.ops.measure import MeasureObjects


@register("select_objects", hidden=True)
@dataclass(frozen=True)
class SelectObjects(Analysis):
    """Rows of a table of objects for which a condition holds, numbered 1..M in their order: columns `label`, `new_label`."""

    where: Annotated[str, Field(description="condition on the table's columns")] = "volume_voxels > 0"
    largest: Annotated[int | None, Field(gt=0, description="of these keep only the so many largest")] = None

    @classmethod
    def examples(cls):
        return [cls("volume_voxels > 20"), cls(largest=1)]

    def __call__(self, table):
        import pyarrow as pa

        keep = features.evaluate(self.where, table)
        label = table.column("label").to_numpy()
        if self.largest is not None and keep.sum() > self.largest:
            size = table.column("volume_voxels").to_numpy()
            order = np.lexsort((label, -size))  # of equal ones the first
            chosen = order[keep[order]][: self.largest]
            keep = np.zeros_like(keep)
            keep[chosen] = True
        kept = label[keep]
        return pa.table({"label": kept, "new_label": np.arange(1, len(kept) + 1, dtype=np.uint64)})


@register("relabel")
@dataclass(frozen=True)
class Relabel(Filter):
    """Labels replaced as a table says; a label that the table does not have becomes 0."""

    serves = "step 4: feature filter; tables of classes and groups"
    ports = (Port("labels", ("labels",)), Port("table", ("table",)))

    label_column: Annotated[str, Field(description="column of the present labels")] = "label"
    new_column: Annotated[str, Field(description="column of the labels to come, whole numbers from 0")] = "new_label"

    def output(self, labels: ArraySpec) -> ArraySpec:
        return labels.like(np.uint64, "labels")

    def memory(self, labels: ArraySpec) -> float:
        return 40

    def __call__(self, labels: np.ndarray, table, *, site: Site) -> np.ndarray:
        import fastremap

        for name in (self.label_column, self.new_column):
            if name not in table.column_names:
                raise RecipeError(f"the table has no column '{name}': it has {', '.join(table.column_names)}.")
        old = table.column(self.label_column).to_numpy().astype(np.uint64)
        new = table.column(self.new_column).to_numpy().astype(np.uint64)
        order = np.argsort(old, kind="stable")
        old, new = old[order], new[order]
        local, mapping = fastremap.renumber(np.array(labels, np.uint64), preserve_zero=True, in_place=True)
        here = np.zeros(max(mapping.values(), default=0) + 1, np.uint64)
        for label, i in mapping.items():
            here[i] = label
        lut = np.zeros(len(here), np.uint64)
        if len(old):
            at = np.minimum(np.searchsorted(old, here), len(old) - 1)
            lut = np.where((old[at] == here) & (here > 0), new[at], 0).astype(np.uint64)
        return lut[local]


@register("filter_objects")
@dataclass(frozen=True)
class FilterObjects(Composite):
    """Objects for which a condition on their measured features holds, numbered 1..N anew; the condition may use every column of
    `measure`, with and, or, not and arithmetic."""

    serves = "step 4: segment feature filter removes small orphans"
    ports = (Port("labels", ("labels",)), Port("image", ("image", "probability"), optional=True, doc="for conditions on intensity"))

    where: Annotated[str, Field(description="condition on measured columns, e.g. volume_nm3 > 1e7 and sphericity > 0.2")] = "volume_voxels > 0"
    largest: Annotated[int | None, Field(gt=0, description="of these keep only the so many largest")] = None

    @classmethod
    def examples(cls):
        return [cls("volume_voxels > 20 and not touches_border"), cls(largest=2)]

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        known = MeasureObjects.column_names("image" in inputs)
        for name in features.columns(self.where):
            if name not in known:
                from vemray.errors import nearest

                hint = " Give an image." if name.startswith("intensity_") and "image" not in inputs else nearest(name, known)
                raise RecipeError(f"the condition '{self.where}' names '{name}', which is not measured.{hint} There are: {', '.join(known)}.")
        return [
            Step(".measure", MeasureObjects(), inputs),
            Step(".select", SelectObjects(self.where, self.largest), {"table": ".measure"}),
            Step("", Relabel(), {"labels": inputs["labels"], "table": ".select"}),
        ]
