"""Compartments of the cell: layers along a surface, and in which compartment each object lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import Int3, Spacing
from vemray.ops.base import Analysis, ArraySpec, Composite, Filter, Port, Site, Step, register
from vemray.ops.contingency import Contingency
from vemray.ops.distance import capped, square_bytes
from vemray.ops.distance_kernels import INSIDE, OUTSIDE, Metric
from vemray.ops.logic import BINARY, is_set


@register("shell")
@dataclass(frozen=True)
class Shell(Filter):
    """The layer between two distances from the surface of a mask: negative ones inside, positive ones outside, both ends included.

    `from_nm: -120, to_nm: -20` on the nucleus is the layer just inside its envelope. Distances go from the centre of a voxel to the centre of
    the nearest voxel of the other side, so the outermost voxels of the mask are at minus one voxel and no voxel is at 0; 1e-6
    relative counts as equal. The volume's outside is neither side."""

    serves = "step 10: the layer just inside the nuclear membrane"
    ports = (Port("mask", BINARY, doc="labels count as set where they are not 0"),)

    from_nm: Annotated[float, Field(description="distance where the layer begins, nm; negative: inside the mask", allow_inf_nan=False)]
    to_nm: Annotated[float, Field(description="distance where it ends, nm; negative: inside the mask", allow_inf_nan=False)]

    @classmethod
    def examples(cls):
        return [cls(-25.0, -8.0), cls(-8.0, 16.0), cls(9.0, 30.0), cls(0.0, 12.0)]

    def check(self, mask: ArraySpec) -> None:
        if self.from_nm >= self.to_nm:
            raise RecipeError(f"shell: 'from_nm' ({self.from_nm:g}) must lie below 'to_nm' ({self.to_nm:g}); negative distances lie inside the mask.")

    @property
    def _farthest_nm(self) -> float:
        return max(abs(self.from_nm), abs(self.to_nm))

    def halo(self, spacing: Spacing) -> Int3:
        return Metric.of(spacing).reach(self._farthest_nm)

    def output(self, mask: ArraySpec) -> ArraySpec:
        return mask.like(np.bool_, "mask")

    def memory(self, mask: ArraySpec) -> float:
        return square_bytes(mask.spacing, self._farthest_nm) + (3 if mask.dtype == "bool" else 4)

    def __call__(self, mask: np.ndarray, *, site: Site) -> np.ndarray:
        inside, outside = self.from_nm < 0, self.to_nm > 0
        mask = is_set(mask)
        squares = capped(mask, site.spacing, self._farthest_nm, INSIDE * inside + OUTSIDE * outside)[site.crop]
        if not (inside and outside):
            least, most = (-self.to_nm, -self.from_nm) if inside else (self.from_nm, self.to_nm)
            metric = Metric.of(site.spacing)
            out = squares <= metric.squared(most)
            out &= squares >= max(1, math.ceil(least * least / metric.nm2 * (1 - 2e-6)))  # 0: the side that is not asked for
            return out
        metric = Metric.of(site.spacing)
        out = squares >= -metric.squared(self.to_nm)
        out &= squares <= metric.squared(-self.from_nm)
        return out


@register("parents_of", hidden=True)
@dataclass(frozen=True)
class ParentsOf(Analysis):
    """The compartment that holds most of each object, from the voxels of every pair (object, label of a compartment)."""

    ports = (Port("pairs", ("table",), many=True),)

    def __call__(self, pairs: Mapping):
        import pyarrow as pa

        names = list(pairs)
        first = pairs[names[0]]
        a, voxels = first.column("a").to_numpy(), first.column("voxels").to_numpy()
        label, at = np.unique(a, return_inverse=True)
        total = np.zeros(len(label), np.int64)
        np.add.at(total, at, voxels)
        shares, inner = np.zeros((len(names), len(label)), np.int64), np.zeros((len(names), len(label)), np.uint64)
        for i, name in enumerate(names):
            a, b, voxels = (pairs[name].column(c).to_numpy() for c in ("a", "b", "voxels"))
            a, b, voxels = a[b != 0], b[b != 0], voxels[b != 0]
            np.add.at(shares[i], np.searchsorted(label, a), voxels)
            order = np.lexsort((b, -voxels, a))  # of equal ones the smallest label
            which, start = np.unique(a[order], return_index=True)
            inner[i, np.searchsorted(label, which)] = b[order][start]
        keep = label != 0
        label, total, shares, inner = label[keep], total[keep], shares[:, keep], inner[:, keep]
        best = np.argmax(shares, axis=0)  # of equal ones the first
        some = shares.max(axis=0, initial=0) > 0
        everyone = np.arange(len(label))
        columns = {
            "label": label,
            "volume_voxels": total,
            "parent": pa.array([names[i] if s else None for i, s in zip(best, some)], pa.string()),
            "parent_label": pa.array(inner[best, everyone], mask=~some),
            "parent_fraction": pa.array(shares[best, everyone] / np.maximum(total, 1)),
        }
        columns |= {f"in_{name}": shares[i] / np.maximum(total, 1) for i, name in enumerate(names)}
        return pa.table(columns)


@register("parents")
@dataclass(frozen=True)
class Parents(Composite):
    """In which compartment each object lies: columns `label`, `volume_voxels`, `parent` (the name of the compartment that holds most of its
    voxels; of equal ones the one named first; empty where none holds any), `parent_label` (the compartment's label that holds most of
    them, of equal ones the smallest), `parent_fraction` (part of the object's voxels in the parent), and `in_<name>` for each compartment.

    Compartments may overlap: name the inner one first (`nucleus`, then `cell`), and an object that lies in both wholly has the inner one."""

    serves = "steps 7 and 15: compartments, and what lies in them"
    ports = (
        Port("labels", ("labels",), doc="the objects"),
        Port("compartments", ("labels", "mask"), many=True, doc="masks or labels by name: {nucleus: nucleus_mask, cell: cell_mask}"),
    )

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        names = [k.partition(".")[2] for k in inputs if k.startswith("compartments.")]
        if not names:
            raise RecipeError("parents: name at least one compartment.")
        steps = [Step(f".{n}", Contingency(), {"a": inputs["labels"], "b": inputs[f"compartments.{n}"]}) for n in names]
        return [*steps, Step("", ParentsOf(), {f"pairs.{n}": f".{n}" for n in names})]
