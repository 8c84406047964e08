"""Arrays carried from one grid of voxels to another: coarse to fine by interpolation, fine to coarse by windows.

Positions are physical: a grid's voxel i lies at `origin + i * spacing`, with origins as the volumes' metadata give them (levels of a
pyramid differ by half voxels). Each output voxel is computed from its own global index, so blocks do not matter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import ArraySpec, Box, Int3, Spacing
from vemray.ops.base import Filter, Port, Site, register

LABELS = ("labels", "mask")
#: what the examples are made of
KINDS = (("image", "uint8"), ("image", "float32"), ("image", "int16"), ("probability", "uint8"), ("mask", "bool"), ("labels", "uint64"))


def _sample(rng: np.random.Generator, spec: ArraySpec) -> np.ndarray:
    if spec.kind == "labels":
        return rng.choice(np.array([0, 1, 7, 2**63 + 11], np.uint64), spec.shape)
    if spec.dtype == "float32":
        return rng.normal(0, 1, spec.shape).astype(np.float32)
    return rng.integers(-90 if spec.dtype == "int16" else 0, 2 if spec.kind == "mask" else 200, spec.shape).astype(spec.dtype)


def _positions(start: int, stop: int, axis: int, fine: ArraySpec, coarse: ArraySpec) -> np.ndarray:
    """Where the voxels [start, stop) of the fine grid lie along an axis of the coarse one, in its voxels, kept within its first and last centre.
    Rounded to 1e-9 voxels, so that a voxel half-way between two is that in every unit."""
    here = fine.origin_nm[axis] + np.arange(start, stop) * fine.spacing.zyx[axis]
    return np.clip(np.round((here - coarse.origin_nm[axis]) / coarse.spacing.zyx[axis], 9), 0, coarse.shape[axis] - 1)


def _neighbours(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower neighbour of each position and the weight of the upper one; at weight 0 there is no upper one."""
    lower = np.floor(at)
    return lower.astype(np.int64), at - lower


def _nearest(at: np.ndarray) -> np.ndarray:
    """Nearest voxel; half-way the lower one."""
    return np.ceil(at - 0.5).astype(np.int64)


@register("upsample")
@dataclass(frozen=True)
class Upsample(Filter):
    """A coarse array on the voxels of a fine one: `image`, computed at a pyramid level, say, on the voxels of `like`, which is not read.

    Linear: trilinear interpolation between the centres of the coarse voxels; beyond the outermost centres the value at the edge. Integers are
    rounded, halves up. On a mask: the share of set neighbours, set where it is at least one half; this rounds the steps of the coarse voxels off.
    Nearest: the value of the nearest coarse voxel; half-way the one of lower index. Any ratio of voxel sizes, along each axis its own."""

    serves = "step 6: the whole cell, found at a coarse pyramid level, on the voxels of the image"
    ports = (
        Port("image", other_grid=True, doc="the coarse array"),
        Port("like", grid_only=True, doc="an array on the fine voxels; only its shape, voxel size and origin are used"),
    )

    method: Annotated[
        Literal["linear", "nearest"] | None,
        Field(description="linear or nearest; default: linear for images and probabilities, nearest for labels and masks"),
    ] = None

    @classmethod
    def examples(cls):
        return [cls(), cls("linear"), cls("nearest")]

    def example_inputs(self, rng, shape, spacing):
        kind, dtype = KINDS[rng.integers(len(KINDS) - (self.method == "linear"))]
        fine = ArraySpec(tuple(shape), "uint8", Spacing(*spacing), "image", (100.0, -3.5, 0.0))
        ratio = rng.choice([1.0, 2.0, 2.7, 4.0, 0.8], 3)
        coarse = replace(fine, shape=tuple(math.ceil(n / r) for n, r in zip(shape, ratio)), spacing=Spacing(*(s * r for s, r in zip(spacing, ratio))))
        shift = tuple(o + (r - 1) / 2 * s for o, r, s in zip(fine.origin_nm, ratio, spacing))
        coarse = replace(coarse, dtype=dtype, kind=kind, origin_nm=shift)
        return {"image": _sample(rng, coarse), "like": np.zeros(shape, np.uint8)}, {"image": coarse, "like": fine}

    def _linear(self, image: ArraySpec) -> bool:
        return self.method == "linear" or (self.method is None and image.kind not in LABELS)

    def check(self, image: ArraySpec, like: ArraySpec) -> None:
        if self._linear(image):
            if image.kind == "labels":
                raise RecipeError("'upsample' cannot interpolate labels: a mean of two ids is a third object's. Use method: nearest, or a mask.")
            if image.dtype in ("int64", "uint64"):
                raise RecipeError(f"'upsample' interpolates in float64, which does not hold every {image.dtype} value. Use method: nearest.")
        for axis, name in enumerate("zyx"):
            low, high = _extent(image, axis)
            first, last = _extent(like, axis)
            slack = image.spacing.zyx[axis] * (1 + 1e-6)  # pyramids that drop the last voxel, or do not say their shift
            if first < low - slack or last > high + slack:
                raise RecipeError(
                    f"'upsample': 'image' covers {low:g} to {high:g} nm along {name}, but 'like' reaches from {first:g} to {last:g} nm. "
                    "They must lie in the same place: check the volumes' origins and voxel sizes."
                )

    def output(self, image: ArraySpec, like: ArraySpec) -> ArraySpec:
        return like.like(image.dtype, image.kind)

    def memory(self, image: ArraySpec, like: ArraySpec) -> float:
        return np.dtype(image.dtype).itemsize + 0.5  # positions along the axes

    def read_box_of(self, port: str, write: Box, image: ArraySpec, like: ArraySpec) -> Box:
        start, stop = [], []
        for axis, (a, b) in enumerate(zip(write.start, write.stop)):
            ends = [_positions(i, i + 1, axis, like, image) for i in (a, max(a, b - 1))]
            first, last = (f(e) if self._linear(image) else _nearest(e) for f, e in zip((np.floor, np.ceil), ends))
            start.append(int(first[0]))
            stop.append(int(last[0]) + 1)
        return Box(tuple(start), tuple(stop))

    def __call__(self, image: np.ndarray, like: None, *, site: Site) -> np.ndarray:
        coarse, fine = site.inputs
        offset = site.boxes["image"].start
        at = [_positions(a, b, axis, fine, coarse) for axis, (a, b) in enumerate(zip(site.write.start, site.write.stop))]
        if not self._linear(coarse):
            return image[np.ix_(*(_nearest(p) - o for p, o in zip(at, offset)))]
        (z, wz), (y, wy), (x, wx) = ((lower - o, w) for (lower, w), o in zip(map(_neighbours, at), offset))
        out = np.empty(site.write.shape, image.dtype)
        stored, target = (a.view(np.uint8) if a.dtype == bool else a for a in (image, out))
        finish = 2 if out.dtype == bool else 1 if out.dtype.kind in "iu" else 0
        _interpolate(stored, z, wz, y, wy, x, wx, np.empty(image.shape[2]), np.empty(out.shape[2]), finish, target)
        return out


def _extent(spec: ArraySpec, axis: int) -> tuple[float, float]:
    """Outer faces of the first and last voxel, nm."""
    s = spec.spacing.zyx[axis]
    low = spec.origin_nm[axis] - s / 2
    return low, low + spec.shape[axis] * s


@njit(cache=True, nogil=True)
def _interpolate(a, z0, wz, y0, wy, x0, wx, row, line, finish, out):
    """Along z, then y, then x, in float64. `row`, `line`: scratch as long as the x axis of `a` and of `out`. `finish`: 0 as it is, 1 rounded
    halves up, 2 whether at least one half."""
    for z in range(len(z0)):
        z1 = z0[z] + (wz[z] > 0)
        for y in range(len(y0)):
            y1 = y0[y] + (wy[y] > 0)
            for x in range(len(row)):
                low, high = float(a[z0[z], y0[y], x]), float(a[z0[z], y1, x])
                if wz[z] > 0:
                    low = (1 - wz[z]) * low + wz[z] * float(a[z1, y0[y], x])
                    high = (1 - wz[z]) * high + wz[z] * float(a[z1, y1, x])
                row[x] = (1 - wy[y]) * low + wy[y] * high if wy[y] > 0 else low
            for x in range(len(line)):
                low = row[x0[x]]
                line[x] = (1 - wx[x]) * low + wx[x] * row[x0[x] + 1] if wx[x] > 0 else low
            target = out[z, y]
            if finish == 0:
                for x in range(len(line)):
                    target[x] = line[x]
            elif finish == 1:
                for x in range(len(line)):
                    target[x] = math.floor(line[x] + 0.5)
            else:
                for x in range(len(line)):
                    target[x] = line[x] >= 0.5


@register("downsample")
@dataclass(frozen=True)
class Downsample(Filter):
    """An array on coarser voxels: one for each window of `factor` voxels, fewer at the volume's end, as the levels of a pyramid.

    Images and probabilities: the mean of the voxels that exist, integers rounded with halves up. Labels and masks: the most frequent value; of
    equally frequent ones foreground before background, then the smaller. At factor 2 the same as a pyramid's next level."""

    serves = "step 6: a coarse volume where no pyramid has it"
    ports = (Port("image", other_grid=True),)

    factor: Annotated[tuple[int, int, int], Field(description="voxels of a window along z, y, x")] = (2, 2, 2)

    @classmethod
    def examples(cls):
        return [cls(), cls((1, 3, 4))]

    def example_inputs(self, rng, shape, spacing):
        kind, dtype = KINDS[rng.integers(len(KINDS))]
        spec = ArraySpec(tuple(shape), dtype, Spacing(*spacing), kind, (100.0, -3.5, 0.0))
        return {"image": _sample(rng, spec)}, {"image": spec}

    def check(self, image: ArraySpec) -> None:
        if min(self.factor) < 1 or max(self.factor) > 16:
            raise RecipeError(f"'factor' of 'downsample' must be 1 to 16 voxels along each axis, got {self.factor}.")
        if image.kind not in LABELS and image.dtype in ("int64", "uint64"):
            raise RecipeError(f"'downsample' adds integers up in 64 bits and takes no {image.dtype} images.")

    def output(self, image: ArraySpec) -> ArraySpec:
        shape = tuple(-(-n // f) for n, f in zip(image.shape, self.factor))
        spacing = Spacing(*(s * f for s, f in zip(image.spacing.zyx, self.factor)))
        origin = tuple(o + (f - 1) / 2 * s for o, f, s in zip(image.origin_nm, self.factor, image.spacing.zyx))
        return replace(image, shape=shape, spacing=spacing, origin_nm=origin)

    def memory(self, image: ArraySpec) -> float:
        return np.dtype(image.dtype).itemsize

    def block_shape(self, shape: Int3, block: Int3, chunk: Int3) -> Int3:
        """About as many voxels read as another filter reads."""
        return tuple(max(c, b // f // c * c) for b, f, c in zip(block, self.factor, chunk))

    def read_box_of(self, port: str, write: Box, image: ArraySpec) -> Box:
        return Box(tuple(a * f for a, f in zip(write.start, self.factor)), tuple(b * f for b, f in zip(write.stop, self.factor))).clip(image.shape)

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        out = np.empty(site.write.shape, image.dtype)
        stored, target = (a.view(np.uint8) if a.dtype == bool else a for a in (image, out))
        if site.inputs[0].kind in LABELS:
            _mode(stored, target, *self.factor, np.empty(math.prod(self.factor), stored.dtype))
        elif image.dtype.kind == "f":
            _mean_float(image, out, *self.factor)
        else:
            _mean_integer(image, out, *self.factor)
        return out


@njit(cache=True, nogil=True)
def _mean_integer(a, out, fz, fy, fx):
    """Rounded, halves up, also below zero."""
    for z in range(out.shape[0]):
        z1 = min(z * fz + fz, a.shape[0])
        for y in range(out.shape[1]):
            y1 = min(y * fy + fy, a.shape[1])
            for x in range(out.shape[2]):
                x1 = min(x * fx + fx, a.shape[2])
                total = np.int64(0)
                for i in range(z * fz, z1):
                    for j in range(y * fy, y1):
                        for k in range(x * fx, x1):
                            total += np.int64(a[i, j, k])
                n = (z1 - z * fz) * (y1 - y * fy) * (x1 - x * fx)
                out[z, y, x] = (2 * total + n) // (2 * n)


@njit(cache=True, nogil=True)
def _mean_float(a, out, fz, fy, fx):
    """Summed in float64 in raster order."""
    for z in range(out.shape[0]):
        z1 = min(z * fz + fz, a.shape[0])
        for y in range(out.shape[1]):
            y1 = min(y * fy + fy, a.shape[1])
            for x in range(out.shape[2]):
                x1 = min(x * fx + fx, a.shape[2])
                total = 0.0
                for i in range(z * fz, z1):
                    for j in range(y * fy, y1):
                        for k in range(x * fx, x1):
                            total += a[i, j, k]
                out[z, y, x] = total / ((z1 - z * fz) * (y1 - y * fy) * (x1 - x * fx))


@njit(cache=True, nogil=True)
def _mode(a, out, fz, fy, fx, window):
    """Most frequent value; ties: not 0 before 0, then the smaller. `window`: scratch for one window's values."""
    for z in range(out.shape[0]):
        z1 = min(z * fz + fz, a.shape[0])
        for y in range(out.shape[1]):
            y1 = min(y * fy + fy, a.shape[1])
            for x in range(out.shape[2]):
                first, n, same = a[z * fz, y * fy, x * fx], 0, True
                for i in range(z * fz, z1):
                    for j in range(y * fy, y1):
                        for k in range(x * fx, min(x * fx + fx, a.shape[2])):
                            window[n] = a[i, j, k]
                            same &= window[n] == first
                            n += 1
                best = first
                if not same:
                    window[:n].sort()
                    votes = start = 0
                    for i in range(1, n + 1):
                        if i == n or window[i] != window[start]:
                            if i - start > votes or (i - start == votes and best == 0):
                                best, votes = window[start], i - start
                            start = i
                out[z, y, x] = best
