"""Morphology of labelled objects with a ball: grow, shrink, open and close each object without merging it with its neighbours.

Distances are those of `vemray.ops.distance`: from voxel centre to voxel centre, right for anisotropic voxels, 1e-6 relative counts as
equal; the volume's outside is neither object nor background. Where several objects are equally near, the smaller label wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import Int3, Spacing
from vemray.ops.base import Analysis, ArraySpec, Composite, Filter, Port, Site, Step, register
from vemray.ops.codes import looked_up, ranked
from vemray.ops.components import Connectivity, LabelParts
from vemray.ops.contingency import Contingency
from vemray.ops.distance import middle, square_bytes, within
from vemray.ops.distance_kernels import Metric, smallest
from vemray.ops.label_distance_kernels import rows_nearest, rows_within, sweep_nearest, sweep_within
from vemray.ops.logic import BINARY, is_set
from vemray.ops.objects import Relabel

LABELS = (Port("labels", ("labels",), doc="objects; 0 is background"),)


def nearest(codes: np.ndarray, spacing: Spacing, radius_nm: float) -> np.ndarray:
    """Changes `codes` (uint32, 0: no object) into those of the nearest object up to `radius_nm`; returns it."""
    metric = Metric.of(spacing)
    cap = metric.squared(radius_nm)
    squares = np.empty(codes.shape, smallest(cap))
    wz, wy, wx = metric.weights
    rows_nearest(codes, squares, wx, cap)
    sweep_nearest(codes, squares, wy, cap)
    sweep_nearest(middle(codes, 0), middle(squares, 0), wz, cap)
    return codes


def core(labels: np.ndarray, spacing: Spacing, radius_nm: float) -> np.ndarray:
    """Bool: labelled voxels farther than `radius_nm` from all voxels of another label or of none."""
    metric = Metric.of(spacing)
    cap = metric.squared(radius_nm)
    squares = np.empty(labels.shape, smallest(cap))
    none = int(np.iinfo(squares.dtype).max)
    wz, wy, wx = metric.weights
    rows_within(labels, squares, wx, cap)
    sweep_within(labels, squares, squares, wy, 0, cap, none, 0.0)
    lines = middle(squares, 0)
    sweep_within(middle(labels, 0), lines, lines, wz, 0, cap, none, 0.0)
    return squares == none


@dataclass(frozen=True)
class _LabelFilter(Filter):
    serves = "step 4: segment morphology on objects"
    ports = LABELS

    #: how many balls of halo
    _balls = 1

    def _reach(self, spacing: Spacing, radius_nm: float) -> Int3:
        return tuple(self._balls * n for n in Metric.of(spacing).reach(radius_nm))

    def output(self, labels: ArraySpec, *others: ArraySpec | None) -> ArraySpec:
        return labels

    def check(self, labels: ArraySpec, *others: ArraySpec | None) -> None:
        if np.dtype(labels.dtype).kind != "u":
            raise RecipeError(f"'{self.name}' takes labels of an unsigned integer type, not {labels.dtype}.")


@register("expand_labels")
@dataclass(frozen=True)
class ExpandLabels(_LabelFilter):
    """Grow objects into the background: each background voxel not farther than `distance_nm` from an object gets the label of the nearest
    one, of equally near ones the smallest label. The dilation of every object by a ball that never merges two of them.

    The distance is straight, through whatever lies between: `region_grow` goes along paths. With `mask` only its voxels are given labels.
    As skimage.segmentation.expand_labels, which decides ties otherwise. An exact feature transform: lower envelopes of parabolas
    (Felzenszwalb & Huttenlocher 2012) ordered by (distance, label)."""

    ports = (*LABELS, Port("mask", BINARY, optional=True, doc="where objects may grow; labels count as set where they are not 0"))

    distance_nm: Annotated[float, Field(description="how far objects grow, included, nm", gt=0, allow_inf_nan=False)]

    @classmethod
    def examples(cls):
        return [cls(8.0), cls(30.0)]

    def halo(self, spacing: Spacing) -> Int3:
        return self._reach(spacing, self.distance_nm)

    def memory(self, labels: ArraySpec, mask: ArraySpec | None = None) -> float:
        return square_bytes(labels.spacing, self.distance_nm) + np.dtype(labels.dtype).itemsize + 13  # codes, and a table of specks

    def __call__(self, labels: np.ndarray, mask: np.ndarray | None = None, *, site: Site) -> np.ndarray:
        codes, ids = ranked(labels)
        out = looked_up(nearest(codes, site.spacing, self.distance_nm)[site.crop], ids, labels.dtype)
        if mask is not None:
            out *= is_set(mask[site.crop]) | (labels[site.crop] != 0)
        return out


@dataclass(frozen=True)
class _BallOnLabels(_LabelFilter):
    radius_nm: Annotated[float, Field(description="radius of the ball, included, nm", gt=0, allow_inf_nan=False)]

    @classmethod
    def examples(cls):
        return [cls(8.0), cls(21.0)]

    def halo(self, spacing: Spacing) -> Int3:
        return self._reach(spacing, self.radius_nm)

    def memory(self, labels: ArraySpec) -> float:
        return square_bytes(labels.spacing, self.radius_nm) + (1 + self._balls) * np.dtype(labels.dtype).itemsize + 2


@register("erode_labels", hidden=True)
@dataclass(frozen=True)
class ErodeLabels(_BallOnLabels):
    """Labels kept where every voxel within the radius has the same label. The volume's edge erodes nothing."""

    def __call__(self, labels: np.ndarray, *, site: Site) -> np.ndarray:
        return labels[site.crop] * core(labels, site.spacing, self.radius_nm)[site.crop]


@register("open_labels", hidden=True)
@dataclass(frozen=True)
class OpenLabels(_BallOnLabels):
    """Labels kept where some ball that lies within the object reaches."""

    _balls = 2

    def __call__(self, labels: np.ndarray, *, site: Site) -> np.ndarray:
        # all that the ball around an eroded voxel reaches is of its own object
        return labels[site.crop] * within(core(labels, site.spacing, self.radius_nm), site.spacing, self.radius_nm)[site.crop]


@register("close_objects")
@dataclass(frozen=True)
class CloseObjects(_BallOnLabels):
    """Fill the gaps and pits of each object that a ball does not fit into: dilate it as far as no neighbour is nearer (`expand_labels`),
    then erode it by the same ball, the neighbours counting as outside. Only background is filled, and no object loses a voxel.

    An object that has no other within twice the radius is closed as `close` does it. The gap between two objects stays open."""

    _balls = 2

    def memory(self, labels: ArraySpec) -> float:
        return square_bytes(labels.spacing, self.radius_nm) + np.dtype(labels.dtype).itemsize + 17

    def __call__(self, labels: np.ndarray, *, site: Site) -> np.ndarray:
        codes, ids = ranked(labels)
        grown = nearest(codes, site.spacing, self.radius_nm)
        keep = core(grown, site.spacing, self.radius_nm)[site.crop]
        keep |= labels[site.crop] != 0
        out = looked_up(grown[site.crop], ids, labels.dtype)
        out *= keep
        return out


@register("largest_parts", hidden=True)
@dataclass(frozen=True)
class LargestParts(Analysis):
    """From the voxels of every pair (part, object): the largest part of each object, of equal ones the first. Columns `label` (part) and
    `new_label` (object)."""

    ports = (Port("pairs", ("table",)),)

    def __call__(self, pairs):
        import pyarrow as pa

        part, obj, voxels = (pairs.column(c).to_numpy() for c in ("a", "b", "voxels"))
        order = np.lexsort((part, -voxels, obj))
        order = order[part[order] != 0]
        first = np.concatenate([np.ones(min(1, len(order)), bool), obj[order][1:] != obj[order][:-1]])
        chosen = np.sort(order[first])  # pairs are sorted by part
        return pa.table({"label": part[chosen], "new_label": obj[chosen]})


@dataclass(frozen=True)
class _FallsApart(Composite):
    serves = "step 4: segment morphology on objects"
    ports = LABELS

    radius_nm: Annotated[float, Field(description="radius of the ball, included, nm", gt=0, allow_inf_nan=False)]
    parts: Annotated[
        Literal["keep_id", "largest", "relabel"],
        Field(
            description="of an object that falls apart: keep_id: all pieces keep its label; largest: only the largest piece is kept (of equal "
            "ones the first in raster order), with its label; relabel: all pieces become objects of their own, 1..N in raster order"
        ),
    ] = "keep_id"
    connectivity: Annotated[
        Connectivity, Field(description="what holds a piece together: touch over faces (6), edges too (18), corners too (26)")
    ] = 6

    @classmethod
    def examples(cls):
        return [cls(8.0), cls(8.0, "largest"), cls(10.0, "relabel", 26), cls(20.0, "largest", 18)]

    def _filter(self) -> Filter:
        raise NotImplementedError

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        if self.parts == "keep_id":
            return [Step("", self._filter(), inputs)]
        left = Step(".left", self._filter(), inputs)
        if self.parts == "relabel":
            return [left, Step("", LabelParts(self.connectivity), {"labels": ".left"})]
        return [
            left,
            Step(".parts", LabelParts(self.connectivity), {"labels": ".left"}),
            Step(".pairs", Contingency(), {"a": ".parts", "b": ".left"}),
            Step(".largest", LargestParts(), {"pairs": ".pairs"}),
            Step("", Relabel(), {"labels": ".parts", "table": ".largest"}),
        ]


@register("erode_objects")
@dataclass(frozen=True)
class ErodeObjects(_FallsApart):
    """Shrink each object by a ball: its voxels farther than the radius from the background and from all other objects. The volume's edge
    erodes nothing. Ids stay, also of pieces (see `parts`)."""

    def _filter(self) -> Filter:
        return ErodeLabels(self.radius_nm)


@register("open_objects")
@dataclass(frozen=True)
class OpenObjects(_FallsApart):
    """Remove from each object what a ball does not fit into: erode it, then dilate it by the same ball. Other objects count as background;
    the volume's edge cuts no ball. Ids stay, also of pieces (see `parts`)."""

    def _filter(self) -> Filter:
        return OpenLabels(self.radius_nm)
