"""Growing labelled seeds through voxels that satisfy a condition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import Int3, Spacing
from vemray.ops.base import Analysis, ArraySpec, Composite, Filter, Port, Site, Step, build, register
from vemray.ops.codes import looked_up, ranked
from vemray.ops.combine import OverlayLabels
from vemray.ops.logic import BINARY, is_set
from vemray.ops.objects import Relabel
from vemray.ops.threshold import stored
from vemray.ops.touching import Touching

PORTS = (
    Port("labels", ("labels",), doc="seeds; they keep their own voxels, whatever the condition"),
    Port("image", ("image", "probability"), optional=True, doc="whose values must lie between `low` and `high`"),
    Port("mask", BINARY, optional=True, doc="where seeds may grow; labels count as set where they are not 0"),
)

#: the 13 steps that come before a voxel in raster order, ZYX; their opposites come after
_BEFORE = np.array([d for d in itertools.product((-1, 0, 1), repeat=3) if d < (0, 0, 0)], np.int64)


def _lengths(spacing: Spacing) -> np.ndarray:
    """Lengths of the steps in whole picometres."""
    return np.array([round(1000 * math.sqrt(sum((s * c) ** 2 for s, c in zip(spacing.zyx, d)))) for d in _BEFORE.tolist()], np.int64)


def _picometres(distance_nm: float) -> int:
    """Longest path that counts as within: 1e-6 relative counts as equal, as for straight distances."""
    return math.floor(1000 * distance_nm * (1 + 1e-6))


@dataclass(frozen=True)
class _Condition(Filter):
    ports = PORTS

    low: Annotated[float | None, Field(description="least value to grow into: grey value, or 0..1 on a probability. Default: no limit")] = None
    high: Annotated[float | None, Field(description="largest value to grow into: grey value, or 0..1 on a probability. Default: no limit")] = None

    def check(self, labels: ArraySpec, image: ArraySpec | None = None, mask: ArraySpec | None = None) -> None:
        if np.dtype(labels.dtype).kind != "u":
            raise RecipeError(f"'region_grow' takes labels of an unsigned integer type, not {labels.dtype}.")

    def open_to(self, labels: np.ndarray, image: np.ndarray | None, mask: np.ndarray | None, site: Site) -> np.ndarray:
        """Bool: background voxels that satisfy the condition."""
        out = labels == 0
        if image is not None:
            spec = site.inputs[1]
            if self.low is not None:
                out &= image >= stored(self.low, spec)
            if self.high is not None:
                out &= image <= stored(self.high, spec)
        if mask is not None:
            out &= is_set(mask)
        return out


@register("grow_within", hidden=True)
@dataclass(frozen=True)
class GrowWithin(_Condition):
    """Seeds grown along paths of at most `max_distance_nm` through voxels that satisfy the condition."""

    max_distance_nm: Annotated[float, Field(description="longest path, included, nm", gt=0, allow_inf_nan=False)] = 20.0

    @classmethod
    def examples(cls):
        return [cls(), cls(0.2, 0.9, 30.0), cls(low=0.5)]

    def halo(self, spacing: Spacing) -> Int3:
        return tuple(_picometres(self.max_distance_nm) // round(1000 * s) for s in spacing.zyx)

    def output(self, labels: ArraySpec, image: ArraySpec | None = None, mask: ArraySpec | None = None) -> ArraySpec:
        return labels

    def _type(self) -> np.dtype:
        return np.dtype(np.int32 if _picometres(self.max_distance_nm) < np.iinfo(np.int32).max else np.int64)

    def memory(self, labels: ArraySpec, image: ArraySpec | None = None, mask: ArraySpec | None = None) -> float:
        return self._type().itemsize + np.dtype(labels.dtype).itemsize + 14  # codes, and a table of specks

    def __call__(self, labels: np.ndarray, image: np.ndarray | None = None, mask: np.ndarray | None = None, *, site: Site) -> np.ndarray:
        codes, ids = ranked(labels)
        paths = np.empty(labels.shape, self._type())
        free = self.open_to(labels, image, mask, site)
        _grow(codes, free, paths, _BEFORE, _lengths(site.spacing), _picometres(self.max_distance_nm))
        return looked_up(codes[site.crop], ids, labels.dtype)


@njit(cache=True, nogil=True)
def _near(rows, z, y):
    """Whether a row or one of its eight neighbours is marked; `rows` have a margin of one."""
    for dz in range(3):
        for dy in range(3):
            if rows[z + dz, y + dy]:
                return True
    return False


@njit(cache=True, nogil=True)
def _grow(codes, free, paths, before, lengths, most):
    """Changes `codes` in the free voxels to that of the smallest (path length, code) up to `most`. Sweeps forth and back relax each
    voxel by its neighbours until nothing changes, in the rows that can still change."""
    nz, ny, nx = codes.shape
    none = np.iinfo(paths.dtype).max
    # a change reaches what comes after it in its own sweep, and what comes before it in the next: rows that the last or this sweep changed
    last, now = np.zeros((nz + 2, ny + 2), np.bool_), np.zeros((nz + 2, ny + 2), np.bool_)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                seed = codes[z, y, x] != 0
                paths[z, y, x] = 0 if seed else none
                last[z + 1, y + 1] |= seed
    sweep, sign = 0, 1
    while True:
        now[:] = False
        for k in range(nz):
            z = k if sign > 0 else nz - 1 - k
            for j in range(ny):
                y = j if sign > 0 else ny - 1 - j
                if not (_near(last, z, y) or _near(now, z, y)):
                    continue
                for i in range(nx):
                    x = i if sign > 0 else nx - 1 - i
                    if not free[z, y, x]:
                        continue
                    best, code = np.int64(paths[z, y, x]), codes[z, y, x]
                    for s in range(before.shape[0]):
                        w, v, u = z + sign * before[s, 0], y + sign * before[s, 1], x + sign * before[s, 2]
                        if w < 0 or w >= nz or v < 0 or v >= ny or u < 0 or u >= nx or codes[w, v, u] == 0:
                            continue
                        d = np.int64(paths[w, v, u]) + lengths[s]
                        if d <= most and (d < best or (d == best and codes[w, v, u] < code)):
                            best, code = d, codes[w, v, u]
                    if code != codes[z, y, x] or best != paths[z, y, x]:
                        paths[z, y, x], codes[z, y, x] = best, code
                        now[z + 1, y + 1] = True
        sweep, sign = sweep + 1, -sign
        if sweep == 1:  # the seeds have not been taken the other way
            last |= now
        elif now.any():
            last[:] = now
        else:
            return


@register("open_to_growth", hidden=True)
@dataclass(frozen=True)
class OpenToGrowth(_Condition):
    """Background voxels that satisfy the condition."""

    @classmethod
    def examples(cls):
        return [cls(), cls(0.2, 0.9)]

    def output(self, labels: ArraySpec, image: ArraySpec | None = None, mask: ArraySpec | None = None) -> ArraySpec:
        return labels.like(np.bool_, "mask")

    def memory(self, labels: ArraySpec, image: ArraySpec | None = None, mask: ArraySpec | None = None) -> float:
        return 3

    def __call__(self, labels: np.ndarray, image: np.ndarray | None = None, mask: np.ndarray | None = None, *, site: Site) -> np.ndarray:
        return self.open_to(labels, image, mask, site)


@register("smallest_neighbour", hidden=True)
@dataclass(frozen=True)
class SmallestNeighbour(Analysis):
    """From pairs of touching labels, the smallest `b` of each `a`: columns `label`, `new_label`."""

    ports = (Port("pairs", ("table",)),)

    def __call__(self, pairs):
        import pyarrow as pa

        a, b = (pairs.column(c).to_numpy() for c in ("a", "b"))
        order = np.lexsort((b, a))
        label, first = np.unique(a[order], return_index=True)
        return pa.table({"label": label, "new_label": b[order][first]})


@register("region_grow")
@dataclass(frozen=True)
class RegionGrow(Composite):
    """Grow labelled seeds through the voxels whose value lies in a range (with `image`) and that lie in a mask (with `mask`). Seeds keep
    their own voxels.

    With `max_distance_nm`: along paths over the 26 neighbours, each step as long as the way between the centres (rounded to whole picometres;
    a path is at most 1.13 times as long as the straight way where voxels are cubes); a voxel gets the label at the end of its shortest path, of
    equally short ones the smallest. Without: each connected part (26 neighbours) of these voxels goes as a whole to the seed that it touches,
    of several to the smallest label; `watershed` with markers divides such a part."""

    serves = "steps 10 and 13: 3D region growing"
    ports = PORTS

    low: Annotated[float | None, Field(description="least value to grow into: grey value, or 0..1 on a probability. Default: no limit")] = None
    high: Annotated[float | None, Field(description="largest value to grow into: grey value, or 0..1 on a probability. Default: no limit")] = None
    max_distance_nm: Annotated[
        float | None, Field(description="longest path from a seed, included, nm. Default: no limit", gt=0, allow_inf_nan=False)
    ] = None

    @classmethod
    def examples(cls):
        return [cls(0.3), cls(high=0.8, max_distance_nm=25.0), cls(-20.0, 90.0, 17.0)]

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        limits = (self.low, self.high)
        if "image" not in inputs and limits != (None, None):
            raise RecipeError("region_grow: 'low' and 'high' are limits of an image. Give an image, or leave them out.")
        if "image" in inputs and limits == (None, None):
            raise RecipeError("region_grow: an image needs 'low', 'high' or both. Give one, or leave the image out.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise RecipeError(f"region_grow: 'low' ({self.low:g}) is above 'high' ({self.high:g}).")
        if "image" not in inputs and "mask" not in inputs and self.max_distance_nm is None:
            raise RecipeError("region_grow: nothing bounds the growth. Give an image with 'low' or 'high', a mask, or 'max_distance_nm'.")
        if self.max_distance_nm is not None:
            return [Step("", GrowWithin(*limits, self.max_distance_nm), inputs)]
        return [
            Step(".open", OpenToGrowth(*limits), inputs),
            Step(".parts", build("connected_components", {"connectivity": 26}), {"mask": ".open"}),
            Step(".pairs", Touching(26), {"labels": ".parts", "other": inputs["labels"]}),
            Step(".nearest", SmallestNeighbour(), {"pairs": ".pairs"}),
            Step(".grown", Relabel(), {"labels": ".parts", "table": ".nearest"}),
            Step("", OverlayLabels(), {"a": inputs["labels"], "b": ".grown"}),
        ]
