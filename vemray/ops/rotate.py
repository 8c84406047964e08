"""Volumes turned about an axis, so that their planes are sections at an angle.

Each output voxel is computed from its own global index, in float64, so blocks do not matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import ArraySpec, Box, Int3, Spacing, turned_back, turned_grid
from vemray.ops.base import Filter, Port, Site, register
from vemray.ops.resample import KINDS, LABELS, _sample

#: positions are rounded to this share of a voxel, so that a voxel half-way between two is that at every angle; a power of two, which is exact
PER_VOXEL = 2.0**30


@register("rotate")
@dataclass(frozen=True)
class Rotate(Filter):
    """A volume turned about an axis by an angle, on cubic voxels, in true proportions however thick its planes are.

    The output is the bounding box of the turned volume, centre on centre. The voxel at (z, y, x) nm from the centre shows what lies there after a
    turn: by 90 degrees about x at (-y, z, x), about y at (-x, y, z), about z at (z, -x, y); sections of `vemray train` turn the same way. Images and
    probabilities: trilinear; integers are rounded, halves up. Labels and masks: the nearest voxel. A multiple of 90 degrees on cubic voxels only
    reorders them. It interpolates and takes no means: for much coarser voxels turn a level of the pyramid.

    Outside the input labels and masks are 0, "not annotated" of classes, and images mirrored, as training and inference have them at a volume's ends:
    grey values stay those of the data, and a network sees no edge that no specimen has. `fill` gives images one value there.

    Metadata of OME-Zarr know scale and shift but no angle: voxel size and the place of the centre are right, all else lies as in the turned volume."""

    serves = "training: sections in 3D for 2D networks"
    ports = (Port("image", other_grid=True, doc="an image or labels"),)

    degrees: Annotated[float, Field(ge=-360, le=360, description="angle")]
    about: Annotated[Literal["z", "y", "x"], Field(description="the axis that stays")] = "x"
    voxel_nm: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="edge of the output's voxels; default: the smaller of the input's y and x")
    ] = None
    method: Annotated[
        Literal["linear", "nearest"] | None,
        Field(description="linear or nearest; default: linear for images and probabilities, nearest for labels and masks"),
    ] = None
    fill: Annotated[float | None, Field(allow_inf_nan=False, description="value of an image outside the input; default: mirrored")] = None

    @classmethod
    def examples(cls):
        return [cls(30.0), cls(90.0, "y"), cls(-60.0, "z", 7.0), cls(45.0, "y", method="nearest"), cls(200.0, "x", 11.0, "linear", 3.0)]

    def example_inputs(self, rng, shape, spacing):
        kinds = [k for k in KINDS if not (k[0] == "labels" and self.method == "linear") and not (k[0] in LABELS and self.fill is not None)]
        kind, dtype = kinds[rng.integers(len(kinds))]
        spec = ArraySpec(tuple(shape), dtype, Spacing(*spacing), kind, (100.0, -3.5, 0.0))
        return {"image": _sample(rng, spec)}, {"image": spec}

    def _linear(self, image: ArraySpec) -> bool:
        return self.method == "linear" or (self.method is None and image.kind not in LABELS)

    def _mirrored(self, image: ArraySpec) -> bool:
        return self.fill is None and image.kind not in LABELS

    def check(self, image: ArraySpec) -> None:
        if self._linear(image):
            if image.kind == "labels":
                raise RecipeError("'rotate' cannot interpolate labels: a mean of two ids is a third object's. Use method: nearest, or a mask.")
            if image.dtype in ("int64", "uint64"):
                raise RecipeError(f"'rotate' interpolates in float64, which does not hold every {image.dtype} value. Use method: nearest.")
        if self.fill is not None:
            if image.kind in LABELS:
                raise RecipeError(f"'rotate' fills {image.kind} with 0 outside the input: leave 'fill' out.")
            dtype = np.dtype(image.dtype)
            if dtype.kind in "iu" and not (self.fill.is_integer() and np.iinfo(dtype).min <= self.fill <= np.iinfo(dtype).max):
                raise RecipeError(f"'fill' of 'rotate' is {self.fill:g}, which {image.dtype} cannot hold.")

    def output(self, image: ArraySpec) -> ArraySpec:
        return turned_grid(image, self.degrees, self.about, self.voxel_nm)

    def memory(self, image: ArraySpec) -> float:
        return np.dtype(image.dtype).itemsize

    def block_shape(self, shape: Int3, block: Int3, chunk: Int3) -> Int3:
        """As many voxels, but of one edge in the plane of the turn: a thin block that is turned reads a box that is mostly not its own."""
        i, j = [k for k in range(3) if k != "zyx".index(self.about)]
        fitting = [min(b, -(-n // c) * c) for b, n, c in zip(block, shape, chunk)]
        edge = math.sqrt(fitting[i] * fitting[j])
        return tuple(max(c, round(edge / c) * c) if k in (i, j) else b for k, (b, c) in enumerate(zip(block, chunk)))

    def read_box_of(self, port: str, write: Box, image: ArraySpec) -> Box:
        matrix, offset = turned_back(image, self.output(image), self.degrees, self.about)
        first, last = np.array(write.start, float), np.array(write.stop, float) - 1
        low = offset + np.where(matrix > 0, matrix * first, matrix * last).sum(1) - 1e-6
        high = offset + np.where(matrix > 0, matrix * last, matrix * first).sum(1) + 1e-6
        ends = [_reach(a, b, n, self._mirrored(image)) for a, b, n in zip(low, high, image.shape)]
        return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        spec = site.inputs[0]
        matrix, offset = turned_back(spec, self.output(spec), self.degrees, self.about)
        out = np.empty(site.write.shape, image.dtype)
        stored, target = (a.view(np.uint8) if a.dtype == bool else a for a in (image, out))
        fill, low = target.dtype.type(self.fill or 0), site.boxes["image"].start
        outside = (self._mirrored(spec), fill)
        if self._linear(spec):
            finish = 2 if out.dtype == bool else 1 if out.dtype.kind in "iu" else 0
            _interpolated(stored, low, spec.shape, site.write.start, matrix, offset, *outside, finish, target)
        else:
            _nearest(stored, low, spec.shape, site.write.start, matrix, offset, *outside, target)
        return out


def _reach(low: float, high: float, n: int, mirrored: bool) -> tuple[int, int]:
    """Voxels [start, stop) of an axis of `n` that positions low..high are interpolated from; at least one."""
    if n == 1:
        return 0, 1
    if not mirrored:  # what lies outside is not read
        low, high = (min(max(p, -0.5), n - 0.5) for p in (low, high))
    turns = range(math.ceil(low / (n - 1)), math.floor(high / (n - 1)) + 1)  # ends of the volume, and of its mirror images, in between
    ends = [_folded(low, n), _folded(high, n), *((n - 1) * (k % 2) for k in turns[:2])]
    return max(0, math.floor(min(ends))), min(n, math.ceil(max(ends)) + 1)


@njit(cache=True, nogil=True)
def _folded(p, n):
    """Where position p of an axis of n voxels, mirrored at its first and its last centre, lies among them."""
    if n == 1:
        return 0.0
    p = abs(p)
    if p > n - 1:
        p -= 2 * (n - 1) * math.floor(p / (2 * (n - 1)))
        p = min(p, 2 * (n - 1) - p)
    return p


@njit(cache=True, nogil=True)
def _at(matrix, offset, z, y, x):
    """Position of a voxel of the output in the input, rounded."""
    p = offset[0] + matrix[0, 0] * z + matrix[0, 1] * y + matrix[0, 2] * x
    q = offset[1] + matrix[1, 0] * z + matrix[1, 1] * y + matrix[1, 2] * x
    r = offset[2] + matrix[2, 0] * z + matrix[2, 1] * y + matrix[2, 2] * x
    return math.floor(p * PER_VOXEL + 0.5) / PER_VOXEL, math.floor(q * PER_VOXEL + 0.5) / PER_VOXEL, math.floor(r * PER_VOXEL + 0.5) / PER_VOXEL


@njit(cache=True, nogil=True)
def _inside(p, q, r, shape):
    """Whether a position lies in a voxel of the input."""
    return -0.5 <= p < shape[0] - 0.5 and -0.5 <= q < shape[1] - 0.5 and -0.5 <= r < shape[2] - 0.5


@njit(cache=True, nogil=True)
def _between(a, b, w):
    return a if w == 0 else (1 - w) * a + w * b


@njit(cache=True, nogil=True)
def _interpolated(a, low, shape, start, matrix, offset, mirrored, fill, finish, out):
    """`a`: the input from voxel `low` on; `start`: first voxel of `out`. `finish`: 0 as it is, 1 rounded halves up, 2 whether at least one half."""
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                p, q, r = _at(matrix, offset, z + start[0], y + start[1], x + start[2])
                if not mirrored and not _inside(p, q, r, shape):
                    out[z, y, x] = fill
                    continue
                p, q, r = _folded(p, shape[0]), _folded(q, shape[1]), _folded(r, shape[2])
                i, j, k = int(p), int(q), int(r)
                u, v, w = p - i, q - j, r - k
                i, j, k = i - low[0], j - low[1], k - low[2]
                i1, j1, k1 = i + (u > 0), j + (v > 0), k + (w > 0)
                near = _between(_between(float(a[i, j, k]), float(a[i, j, k1]), w), _between(float(a[i, j1, k]), float(a[i, j1, k1]), w), v)
                far = _between(_between(float(a[i1, j, k]), float(a[i1, j, k1]), w), _between(float(a[i1, j1, k]), float(a[i1, j1, k1]), w), v)
                value = _between(near, far, u)
                if finish == 0:
                    out[z, y, x] = value
                elif finish == 1:
                    out[z, y, x] = math.floor(value + 0.5)
                else:
                    out[z, y, x] = value >= 0.5


@njit(cache=True, nogil=True)
def _nearest(a, low, shape, start, matrix, offset, mirrored, fill, out):
    """As `_interpolated`; half-way the upper voxel."""
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                p, q, r = _at(matrix, offset, z + start[0], y + start[1], x + start[2])
                if not _inside(p, q, r, shape):
                    if not mirrored:
                        out[z, y, x] = fill
                        continue
                    p, q, r = _folded(p, shape[0]), _folded(q, shape[1]), _folded(r, shape[2])
                out[z, y, x] = a[math.floor(p + 0.5) - low[0], math.floor(q + 0.5) - low[1], math.floor(r + 0.5) - low[2]]
