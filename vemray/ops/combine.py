"""Labels put together and numbered anew, in raster order of the objects' first voxels whatever the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import RecipeError
from vemray.ops.base import Analysis, ArraySpec, Composite, Filter, Measure, Port, Site, Step, build, register
from vemray.ops.codes import paired
from vemray.ops.objects import Relabel, SelectObjects

PAIR = (Port("a", ("labels",), doc="its labels come first"), Port("b", ("labels",), doc="its labels where `a` is 0"))


@register("first_voxels", hidden=True)
@dataclass(frozen=True)
class FirstVoxels(Measure):
    """Labels with the raster index of their first voxel and their voxels: columns `label`, `first_voxel`, `volume_voxels`, by label."""

    ports = (Port("labels", ("labels",)),)

    def check(self, labels: ArraySpec) -> None:
        if np.dtype(labels.dtype).kind != "u":
            raise RecipeError(f"labels must be of an unsigned integer type, not {labels.dtype}.")

    def memory(self, labels: ArraySpec) -> float:
        return 20

    def measure(self, labels: np.ndarray, *, site: Site) -> Firsts:
        codes, pairs = paired(labels[site.crop])
        first, voxels = np.empty(len(pairs), np.uint64), np.zeros(len(pairs), np.int64)
        _firsts(codes, np.array(site.write.start, np.int64), np.array(site.shape, np.int64), first, voxels)
        return Firsts(pairs[:, 0].copy(), first, voxels).joined()

    def finish(self, partial: Firsts, inputs: tuple[ArraySpec, ...]):
        import pyarrow as pa

        return pa.table({"label": partial.label, "first_voxel": partial.first, "volume_voxels": partial.voxels})


@dataclass
class Firsts:
    """By label, ascending."""

    label: np.ndarray
    first: np.ndarray
    voxels: np.ndarray

    def joined(self) -> Firsts:
        label, at = np.unique(self.label, return_inverse=True)
        first, voxels = np.full(len(label), np.iinfo(np.uint64).max), np.zeros(len(label), np.int64)
        np.minimum.at(first, at, self.first)
        np.add.at(voxels, at, self.voxels)
        return Firsts(label, first, voxels)

    def merge(self, upper: Firsts, axis: int) -> Firsts:
        return Firsts(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(upper).values()))).joined()


@njit(cache=True, nogil=True)
def _firsts(codes, start, shape, first, voxels):
    for z in range(codes.shape[0]):
        for y in range(codes.shape[1]):
            base = ((z + start[0]) * shape[1] + y + start[1]) * shape[2] + start[2]
            for x in range(codes.shape[2]):
                i = np.int64(codes[z, y, x]) - 1
                if i >= 0:
                    if voxels[i] == 0:
                        first[i] = np.uint64(base + x)
                    voxels[i] += 1


def renumbered(name: str, labels: str) -> list[Step]:
    """Steps that number `labels` 1..N in raster order, each object whole even where it is in pieces; the last is called `name`."""
    return [
        Step(f"{name or '.new'}_firsts", FirstVoxels(), {"labels": labels}),
        Step(f"{name or '.new'}_numbers", SelectObjects(), {"table": f"{name or '.new'}_firsts"}),
        Step(name, Relabel(), {"labels": labels, "table": f"{name or '.new'}_numbers"}),
    ]


@register("number_together", hidden=True)
@dataclass(frozen=True)
class NumberTogether(Analysis):
    """New numbers for the objects of two labellings together, 1..N by first voxels: columns `label`, `new_label` of the one asked for."""

    ports = (Port("a", ("table",)), Port("b", ("table",)))

    of: Annotated[Literal["a", "b"], Field(description="whose numbers are given")] = "a"

    @classmethod
    def examples(cls):
        return [cls("a"), cls("b")]

    def __call__(self, a, b):
        import pyarrow as pa

        # first voxels of the two never coincide: where one lies the other is 0
        first = np.concatenate([t.column("first_voxel").to_numpy() for t in (a, b)])
        new = np.empty(len(first), np.uint64)
        new[np.argsort(first, kind="stable")] = np.arange(1, len(first) + 1, dtype=np.uint64)
        mine, new = (a, new[: a.num_rows]) if self.of == "a" else (b, new[a.num_rows :])
        return pa.table({"label": mine.column("label"), "new_label": new})


@register("overlay_labels", hidden=True)
@dataclass(frozen=True)
class OverlayLabels(Filter):
    """Labels of `a`, and where it is 0 those of `b`, with their ids."""

    ports = PAIR

    def check(self, a: ArraySpec, b: ArraySpec) -> None:
        for spec in (a, b):
            if np.dtype(spec.dtype).kind != "u":
                raise RecipeError(f"labels must be of an unsigned integer type, not {spec.dtype}.")

    def output(self, a: ArraySpec, b: ArraySpec) -> ArraySpec:
        return a.like(np.uint64, "labels")

    def memory(self, a: ArraySpec, b: ArraySpec) -> float:
        return 9

    def __call__(self, a: np.ndarray, b: np.ndarray, *, site: Site) -> np.ndarray:
        out = b.astype(np.uint64)
        np.copyto(out, a, where=a != 0)
        return out


@register("combine_labels")
@dataclass(frozen=True)
class CombineLabels(Composite):
    """Two labellings in one: the labels of `a`, and where it is 0 those of `b`.

    By default the objects of both are numbered anew, 1..N in raster order of their first voxels, so that no two become one; an object
    of `b` that `a` covers in part keeps the rest as one object. With `ids: keep` all keep their ids, and equal ids become one object."""

    serves = "step 13: small ones grown and large ones split, put together"
    ports = PAIR

    ids: Annotated[Literal["renumber", "keep"], Field(description="renumber: 1..N anew; keep: ids stay, equal ids of `a` and `b` are one object")] = (
        "renumber"
    )

    @classmethod
    def examples(cls):
        return [cls(), cls("keep")]

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        if self.ids == "keep":
            return [Step("", OverlayLabels(), inputs)]
        a, b = inputs["a"], inputs["b"]
        tables = {"a": ".a_firsts", "b": ".b_firsts"}
        return [
            Step(".free", build("not", {}), {"mask": a}),
            Step(".rest", build("mask_labels", {}), {"labels": b, "mask": ".free"}),
            Step(".a_firsts", FirstVoxels(), {"labels": a}),
            Step(".b_firsts", FirstVoxels(), {"labels": ".rest"}),
            Step(".a_numbers", NumberTogether("a"), tables),
            Step(".b_numbers", NumberTogether("b"), tables),
            Step(".a_new", Relabel(), {"labels": a, "table": ".a_numbers"}),
            Step(".b_new", Relabel(), {"labels": ".rest", "table": ".b_numbers"}),
            Step("", OverlayLabels(), {"a": ".a_new", "b": ".b_new"}),
        ]


@register("select_labels")
@dataclass(frozen=True)
class SelectLabels(Composite):
    """Objects chosen by a table: those for which a condition on any of its columns holds, with and, or, not and arithmetic. Of a table with
    several rows for an object one row is enough; objects that the table does not have go.

    `filter_objects` measures by itself; this takes any table with a column `label`: distances, densities, classes, parents."""

    serves = "steps 10 and 13: objects chosen by distance and by any other feature"
    ports = (Port("labels", ("labels",)), Port("table", ("table",), doc="a table with a column `label`"))

    where: Annotated[str, Field(description="condition on the table's columns, e.g. distance_nm < 40 and volume_nm3 > 1e5")]
    renumber: Annotated[bool, Field(description="number the chosen anew, 1..N in raster order of their first voxels; else they keep their ids")] = (
        True
    )

    @classmethod
    def examples(cls):
        return [cls("distance_nm < 5 or group == 2"), cls("distance_nm < 5", renumber=False)]

    def example_inputs(self, rng, shape, spacing):
        import pyarrow as pa

        from vemray.geometry import Spacing

        spacing = spacing if isinstance(spacing, Spacing) else Spacing(*spacing)
        ids = np.array([0, 7, 5, 2**40 + 3, 2**63 + 11], np.uint64)
        labels = rng.choice(ids, shape) * (rng.random(shape) < 0.3)
        table = pa.table({"label": ids[[2, 4, 1]], "distance_nm": [3.0, 9.0, 9.0], "group": [1, 1, 2]})
        return {"labels": labels, "table": table}, {"labels": ArraySpec(tuple(shape), "uint64", spacing, "labels")}

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        kept = ".kept" if self.renumber else ""
        return [
            Step(".chosen", SelectObjects(self.where), {"table": inputs["table"]}),
            Step(kept, Relabel(new_column="label"), {"labels": inputs["labels"], "table": ".chosen"}),
            *(renumbered("", ".kept") if self.renumber else []),
        ]
