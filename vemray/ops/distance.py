"""Euclidean distances in nm and what follows from them: morphology with a ball. Right for anisotropic voxels.

Distances go from voxel centre to voxel centre. The volume's outside is neither object nor background: it is no distance's target,
erodes nothing and dilates nothing. A voxel is within a radius if distance <= radius, where 1e-6 relative counts as equal.

Distances up to a bound need that much halo and are exact in blocks. The unbounded map is separable: whole rows, then whole columns
along y, then along z (Meijster, Roerdink & Hesselink 2000; Felzenszwalb & Huttenlocher 2012), each over pencils of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vemray.geometry import Int3, Spacing
from vemray.ops.base import ArraySpec, Composite, Filter, Port, Site, Step, register
from vemray.ops.distance_kernels import BOTH, INSIDE, OUTSIDE, Metric, rows, smallest, sweep

Side = Literal["inside", "outside", "both"]
_SIDES = {"inside": INSIDE, "outside": OUTSIDE, "both": BOTH}
_MASK = (Port("mask", ("mask",), doc="the object"),)


def middle(array: np.ndarray, axis: int) -> np.ndarray:
    """A view whose middle axis is `axis`, as `sweep` wants it."""
    return array if axis == 1 else array.transpose(1, 0, 2)


def capped(mask: np.ndarray, spacing: Spacing, radius_nm: float, sides: int, final: np.ndarray | None = None) -> np.ndarray:
    """Signed squared distances up to `radius_nm`, NONE beyond, of one array; or written into float32 `final` in nm, inf beyond."""
    metric = Metric.of(spacing)
    cap = metric.squared(radius_nm)
    squares = np.empty(mask.shape, smallest(cap))
    none = int(np.iinfo(squares.dtype).max)
    wz, wy, wx = metric.weights
    rows(mask, sides, squares, wx, True, cap)
    sweep(squares, squares, wy, 0, cap, none, 0.0)
    lines = middle(squares, 0)
    if final is None:
        sweep(lines, lines, wz, 0, cap, none, 0.0)
        return squares
    sweep(lines, middle(final, 0), wz, 0, cap, 0, metric.nm2)
    return final


def within(mask: np.ndarray, spacing: Spacing, radius_nm: float) -> np.ndarray:
    """Voxels of the mask, or not farther than `radius_nm` from one."""
    squares = capped(mask, spacing, radius_nm, OUTSIDE)
    return squares != np.iinfo(squares.dtype).max


def _beyond(mask: np.ndarray, spacing: Spacing, radius_nm: float) -> np.ndarray:
    """Voxels of the mask farther than `radius_nm` from all that are not in it."""
    squares = capped(mask, spacing, radius_nm, INSIDE)
    return squares == np.iinfo(squares.dtype).max


def square_bytes(spacing: Spacing, radius_nm: float) -> int:
    return smallest(Metric.of(spacing).squared(radius_nm)).itemsize


@register("distance_band")
@dataclass(frozen=True)
class DistanceBand(Filter):
    """Distance to the mask's border up to a bound, in nm, float32; farther voxels get the bound. For shells and soft edges.

    From voxel centre to the centre of the nearest voxel of the other side; with `both`, positive inside and negative outside."""

    serves = "distances"
    ports = _MASK

    max_nm: Annotated[float, Field(description="distances beyond are set to it, nm", gt=0)]
    side: Annotated[Side, Field(description="inside: from the mask to the nearest voxel not in it; outside: the reverse; both: outside negative")] = (
        "inside"
    )

    @classmethod
    def examples(cls):
        return [cls(25.0), cls(60.0, "outside"), cls(16.0, "both")]

    def halo(self, spacing: Spacing) -> Int3:
        return Metric.of(spacing).reach(self.max_nm)

    def output(self, mask: ArraySpec) -> ArraySpec:
        return mask.like(np.float32, "image")

    def memory(self, mask: ArraySpec) -> float:
        return square_bytes(mask.spacing, self.max_nm) + 4.2

    def __call__(self, mask: np.ndarray, *, site: Site) -> np.ndarray:
        out = capped(mask, site.spacing, self.max_nm, _SIDES[self.side], np.empty(mask.shape, np.float32))
        bound = np.float32(self.max_nm)
        return np.clip(out, -bound, bound, out=out)


@dataclass(frozen=True)
class _Ball(Filter):
    serves = "clean-up"
    ports = _MASK

    radius_nm: Annotated[float, Field(description="radius of the ball, included, nm", gt=0)]

    #: how many balls of halo
    _balls = 1

    @classmethod
    def examples(cls):
        return [cls(8.0), cls(21.0)]

    def halo(self, spacing: Spacing) -> Int3:
        return tuple(self._balls * n for n in Metric.of(spacing).reach(self.radius_nm))

    def output(self, mask: ArraySpec) -> ArraySpec:
        return mask

    def memory(self, mask: ArraySpec) -> float:
        return square_bytes(mask.spacing, self.radius_nm) + self._balls + 0.2


@register("dilate")
@dataclass(frozen=True)
class Dilate(_Ball):
    """Grow a mask by a ball: all voxels not farther from it than the radius."""

    def __call__(self, mask: np.ndarray, *, site: Site) -> np.ndarray:
        return within(mask, site.spacing, self.radius_nm)


@register("erode")
@dataclass(frozen=True)
class Erode(_Ball):
    """Shrink a mask by a ball: its voxels farther from the background than the radius. The volume's edge erodes nothing."""

    def __call__(self, mask: np.ndarray, *, site: Site) -> np.ndarray:
        return _beyond(mask, site.spacing, self.radius_nm)


@register("open")
@dataclass(frozen=True)
class Open(_Ball):
    """Erode, then dilate by the same ball: removes what the ball does not fit into. The volume's edge cuts no ball."""

    _balls = 2

    def __call__(self, mask: np.ndarray, *, site: Site) -> np.ndarray:
        return within(_beyond(mask, site.spacing, self.radius_nm), site.spacing, self.radius_nm)


@register("close")
@dataclass(frozen=True)
class Close(_Ball):
    """Dilate, then erode by the same ball: fills gaps that the ball does not fit into."""

    _balls = 2

    def __call__(self, mask: np.ndarray, *, site: Site) -> np.ndarray:
        return _beyond(within(mask, site.spacing, self.radius_nm), site.spacing, self.radius_nm)


@register("distance_map")
@dataclass(frozen=True)
class DistanceMap(Composite):
    """Euclidean distance to the mask's border over the whole volume, in nm, float32.

    From voxel centre to the centre of the nearest voxel of the other side; infinite where there is none in the volume. As
    scipy.ndimage.distance_transform_edt with `sampling`, but in blocks, by three sweeps along whole axes."""

    serves = "distances"
    ports = _MASK

    side: Annotated[Side, Field(description="inside: from the mask to the nearest voxel not in it; outside: the reverse; both: outside negative")] = (
        "inside"
    )

    @classmethod
    def examples(cls):
        return [cls(), cls("outside"), cls("both")]

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        return [
            Step(".rows", DistanceRows(self.side), {"mask": inputs["mask"]}),
            Step(".columns", DistanceColumns(), {"image": ".rows"}),
            Step("", DistancePillars(), {"image": ".columns"}),
        ]


def steps_type(shape: Int3) -> np.dtype:
    """Of distances along a row in voxels."""
    return np.dtype(np.int16 if shape[2] < np.iinfo(np.int16).max else np.int32)


@register("distance_rows", hidden=True)
@dataclass(frozen=True)
class DistanceRows(Filter):
    """Signed distance in voxels along x to the nearest voxel of the other side; the type's largest value where a row has none."""

    whole_axes = (2,)
    ports = _MASK

    side: Annotated[Side, Field(description="inside: from the mask to the nearest voxel not in it; outside: the reverse; both: outside negative")] = (
        "inside"
    )

    @classmethod
    def examples(cls):
        return [cls(), cls("outside"), cls("both")]

    def output(self, mask: ArraySpec) -> ArraySpec:
        return mask.like(steps_type(mask.shape), "image")

    def memory(self, mask: ArraySpec) -> float:
        return steps_type(mask.shape).itemsize + 0.1

    def __call__(self, mask: np.ndarray, *, site: Site) -> np.ndarray:
        out = np.empty(mask.shape, steps_type(site.shape))
        rows(mask, _SIDES[self.side], out, 0, False, -1)
        return out


@register("distance_columns", hidden=True)
@dataclass(frozen=True)
class DistanceColumns(Filter):
    """From distances along x to squared distances within z planes, in the whole-number units of the spacing."""

    whole_axes = (1,)

    def output(self, image: ArraySpec) -> ArraySpec:
        return image.like(Metric.of(image.spacing, image.shape).dtype(image.shape, (1, 2)), "image")

    def memory(self, image: ArraySpec) -> float:
        return np.dtype(self.output(image).dtype).itemsize + 0.3

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        metric = Metric.of(site.spacing, site.shape)
        out = np.empty(image.shape, metric.dtype(site.shape, (1, 2)))
        sweep(image, out, metric.weights[1], metric.weights[2], -1, int(np.iinfo(out.dtype).max), 0.0)
        return out

    def example_inputs(self, rng, shape: Int3, spacing):
        return _example(rng, shape, spacing, 1)


@register("distance_pillars", hidden=True)
@dataclass(frozen=True)
class DistancePillars(Filter):
    """From squared distances within z planes to distances in nm."""

    whole_axes = (0,)

    def output(self, image: ArraySpec) -> ArraySpec:
        return image.like(np.float32)

    def memory(self, image: ArraySpec) -> float:
        return 4.3

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        metric = Metric.of(site.spacing, site.shape)
        out = np.empty(image.shape, np.float32)
        sweep(middle(image, 0), middle(out, 0), metric.weights[0], 0, -1, 0, metric.nm2)
        return out

    def example_inputs(self, rng, shape: Int3, spacing):
        return _example(rng, shape, spacing, 2)


def _example(rng, shape: Int3, spacing, steps: int) -> tuple[dict, dict]:
    """What the sweep after the first `steps` ones gets, for the conformance test."""
    mask = rng.random(shape) < 0.8
    spacing = spacing if isinstance(spacing, Spacing) else Spacing(*spacing)
    array, spec = mask, ArraySpec(tuple(shape), "bool", spacing, "mask")
    for op in (DistanceRows("both"), DistanceColumns())[:steps]:
        array, spec = op(array, site=Site.whole(spec)), op.output(spec)
    return {"image": array}, {"image": spec}
