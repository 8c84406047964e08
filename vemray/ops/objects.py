"""Choosing and renumbering objects by what was measured on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numba import njit
from pydantic import Field

from vemray.analysis import features
from vemray.errors import RecipeError, nearest
from vemray.ops.base import Analysis, ArraySpec, Composite, Filter, Port, Site, Step, register
from vemray.ops.measure import MeasureObjects


@register("select_objects", hidden=True)
@dataclass(frozen=True)
class SelectObjects(Analysis):
    """Rows of a table of objects for which a condition holds, numbered 1..M by their first voxels (of a table without `first_voxel`: by
    label): columns `label`, `new_label`, by label. Labels that are canonical already keep their order."""

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
            size = table.column("volume_voxels").to_numpy().astype(np.int64)
            order = np.lexsort((label, -size))  # of equal ones the first
            chosen = order[keep[order]][: self.largest]
            keep = np.zeros_like(keep)
            keep[chosen] = True
        kept = label[keep]
        new = np.empty(len(kept), np.uint64)
        first = table.column("first_voxel").to_numpy()[keep] if "first_voxel" in table.column_names else kept
        new[np.argsort(first, kind="stable")] = np.arange(1, len(kept) + 1, dtype=np.uint64)
        order = np.argsort(kept, kind="stable")
        return pa.table({"label": kept[order], "new_label": new[order]})


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

    def rows(self) -> dict[str, tuple[str, str]]:
        return {"table": ("labels", self.label_column)}

    def check(self, labels: ArraySpec) -> None:
        if np.dtype(labels.dtype).kind != "u":
            raise RecipeError(f"'relabel' takes labels of an unsigned integer type, not {labels.dtype}.")

    def memory(self, labels: ArraySpec) -> float:
        return 9

    def __call__(self, labels: np.ndarray, table, *, site: Site) -> np.ndarray:
        old, new = (self._whole(table, name) for name in (self.label_column, self.new_column))
        order = np.argsort(old, kind="stable")
        old, new = old[order], new[order]
        twice = old[1:] == old[:-1]
        if (new[1:] != new[:-1])[twice].any():
            one = old[1:][twice & (new[1:] != new[:-1])][0]
            raise RecipeError(f"the table gives label {one} of column '{self.label_column}' two different values of '{self.new_column}'.")
        return _relabelled(labels, old, new)

    def _whole(self, table, name: str) -> np.ndarray:
        """A column as uint64."""
        if name not in table.column_names:
            raise RecipeError(f"the table has no column '{name}'.{nearest(name, table.column_names)} It has {', '.join(table.column_names)}.")
        column = table.column(name)
        values = column.to_numpy()
        if column.null_count or values.dtype.kind not in "uif" or not ((values >= 0) & (values == np.floor(values))).all():
            raise RecipeError(f"column '{name}' of the table must hold whole numbers from 0, in every row, to be used as labels.")
        return values.astype(np.uint64)


@njit(cache=True, nogil=True)
def _relabelled(labels, old, new):
    """Each run looked up once, by bisection in the sorted `old`."""
    out = np.zeros(labels.shape, np.uint64)
    last_key, last = np.uint64(0), np.uint64(0)
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                key = np.uint64(labels[z, y, x])
                if key == 0:
                    continue
                if key != last_key:
                    at = np.searchsorted(old, key)
                    last_key, last = key, new[at] if at < len(old) and old[at] == key else np.uint64(0)
                out[z, y, x] = last
    return out


def check_condition(where: str, with_image: bool) -> set[str]:
    """The columns of `measure` that a condition names; RecipeError if it names one that is not measured."""
    known, names = MeasureObjects.column_names(with_image), features.columns(where)
    for name in sorted(names):
        if name not in known:
            hint = " Give an image." if name.startswith("intensity_") and not with_image else nearest(name, known)
            raise RecipeError(f"the condition '{where}' names '{name}', which is not measured.{hint} There are: {', '.join(known)}.")
    return names


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
        names = check_condition(self.where, "image" in inputs)
        return [
            Step(".measure", MeasureObjects(), inputs if any(n.startswith("intensity_") for n in names) else {"labels": inputs["labels"]}),
            Step(".select", SelectObjects(self.where, self.largest), {"table": ".measure"}),
            Step("", Relabel(), {"labels": inputs["labels"], "table": ".select"}),
        ]
