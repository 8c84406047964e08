"""Adaptive threshold: each voxel against the mean of its neighbourhood.

The box mean is an exact ratio of integer sums, so running sums keep the law; on floating-point images the box is summed directly,
term by term in a fixed order, as the Gaussian is. On flat ground both means are the grey value itself, exactly: rounding sets no voxel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import Int3, Spacing
from vemray.ops.base import ArraySpec, Filter, Port, Site, register
from vemray.ops.intensity import GREY
from vemray.ops.logic import BINARY
from vemray.ops.smooth import gaussian_radius, planes, reflections
from vemray.ops.threshold import stored


@register("local_threshold")
@dataclass(frozen=True)
class LocalThreshold(Filter):
    """Voxels brighter (`above`) than the mean of their neighbourhood plus `offset`, or darker (`below`) than the mean minus `offset`.
    The neighbourhood is a box of `size_nm` along each axis (a whole odd number of voxels, rounded down, at least 1) or a Gaussian with
    sigma = `size_nm` / 6, as in scikit-image's `threshold_local`. At the volume's true edges the image is reflected. With a mask the mean is
    that of the neighbourhood's voxels in the mask, and only voxels in the mask are set: a dark membrane beside a layer does not count."""

    serves = "step 10: 3D adaptive threshold"
    version = 2
    ports = (Port("image", GREY), Port("mask", BINARY, optional=True, doc="only its voxels count, and only they are set"))

    size_nm: Annotated[float, Field(gt=0, description="side of the neighbourhood, nm; larger than the particles looked for")] = 100
    offset: Annotated[float, Field(description="how far beyond the local mean a voxel must be, strictly; grey value, or 0..1 on a probability")] = 0
    method: Annotated[Literal["mean", "gaussian"], Field(description="weights of the neighbourhood: equal (a box) or Gaussian")] = "mean"
    direction: Annotated[Literal["above", "below"], Field(description="which voxels are set: brighter or darker than the local mean")] = "above"

    @classmethod
    def examples(cls):
        return [cls(), cls(60, 5.5, "mean", "below"), cls(50, 0.02, "gaussian"), cls(30, 3, "gaussian", "below")]

    def check(self, image: ArraySpec, mask: ArraySpec | None = None) -> None:
        if not math.isfinite(self.offset):
            raise RecipeError(f"'offset' of 'local_threshold' must be a finite number, got {self.offset}.")

    def halo(self, spacing: Spacing) -> Int3:
        if self.method == "gaussian":
            return gaussian_radius(self.size_nm / 6, spacing)
        return tuple(int(self.size_nm / 2 / s + 1e-9) for s in spacing.zyx)

    def output(self, image: ArraySpec, mask: ArraySpec | None = None) -> ArraySpec:
        return image.like(np.bool_, "mask")

    def memory(self, image: ArraySpec, mask: ArraySpec | None = None) -> float:
        # the result and the box's sums; one plane's sums along z and its local mean; a float32 copy of a float16 image
        sums = 0 if self.method == "gaussian" else 8
        masked = 0 if mask is None else sums + np.dtype(image.dtype).itemsize + 2  # the image where the mask is set, and sums of the mask
        return 1.5 + sums + masked + 32 / planes(image, self.halo(image.spacing)) + (4 if image.dtype == "float16" else 0)

    def __call__(self, image: np.ndarray, mask: np.ndarray | None = None, *, site: Site) -> np.ndarray:
        spec = site.inputs[0]
        out = np.empty(site.write.shape, np.bool_)
        here = image[site.crop]
        sign, offset = (1 if self.direction == "above" else -1), stored(self.offset, spec)
        sums = self._gaussian_sums if self.method == "gaussian" else self._box_sums
        if mask is None:
            whole = 1.0 if self.method == "gaussian" else float(math.prod(2 * h + 1 for h in self.halo(site.spacing)))
            pairs = ((grey, whole) for grey in sums(image, site))
        else:
            inside = mask != 0
            pairs = zip(sums(np.where(inside, image, image.dtype.type(0)), site), sums(inside.view(np.uint8), site))
        for z, (local, weight) in enumerate(pairs):
            with np.errstate(invalid="ignore", divide="ignore"):  # NaN where no voxel of the mask is near: nothing is beyond it
                local /= weight
            np.subtract(here[z], local, out=local)
            local *= sign
            np.greater(local, offset, out=out[z])
        if mask is not None:
            out &= inside[site.crop]
        return out

    def _box_sums(self, image: np.ndarray, site: Site) -> Iterator[np.ndarray]:
        """float64, which holds every sum below 2^53 exactly, a plane at a time."""
        for sums in box_sums(image, self.halo(site.spacing), site):
            yield sums.astype(np.float64)

    def _gaussian_sums(self, image: np.ndarray, site: Site) -> Iterator[np.ndarray]:
        """float64, a plane at a time. The weights along each axis are multiples of 2^-20 that sum to 1: with values of up to 32 bits, or
        float32, every sum over flat ground is exact."""
        radius = self.halo(site.spacing)
        weights = [whole_weights(self.size_nm / 6 / s, r) for s, r in zip(site.spacing.zyx, radius)]
        iz, iy, ix = reflections(radius, site)
        if image.dtype == np.float16:
            image = image.astype(np.float32)
        columns = np.empty(image.shape[1:])
        for z in range(site.write.shape[0]):
            yield _gaussian_plane(image, *weights, iz[z : z + 2 * radius[0] + 1], iy, ix, columns, np.empty(site.write.shape[1:]))


def box_sums(image: np.ndarray, half: Int3, site: Site) -> np.ndarray:
    """Sum over the box of 2 `half` + 1 voxels around each voxel of the write box: int64 of integers, float64 of floats."""
    integer = image.dtype.kind in "iu"
    out = np.zeros(site.write.shape, np.int64 if integer else np.float64)
    if image.dtype == np.float16:
        image = image.astype(np.float32)
    (_box_sums_integer if integer else _box_sums_float)(image, *reflections(half, site), out)
    return out


def whole_weights(sigma: float, radius: int) -> np.ndarray:
    """float64 [centre, 1, 2, ..., radius] of a Gaussian, each a whole number of 2^-20; both sides together sum to 1. `sigma` in voxels."""
    w = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    w = np.rint(w / (w[0] + 2 * w[1:].sum()) * 2.0**20)
    w[0] = 2.0**20 - 2 * w[1:].sum()
    return w / 2.0**20


@njit(cache=True, nogil=True)
def _gaussian_plane(image, wz, wy, wx, iz, iy, ix, columns, out):
    """Weighted mean around each voxel of one plane: along z (into `columns`, as large as a plane of the image), then y, then x; every voxel
    adds its terms from the centre outwards. `iz`: planes of the image, those of the kernel; iy, ix: its rows and columns for the output's,
    and a kernel's radius more on each side."""
    ny, nx = out.shape
    my, mx = columns.shape
    rz, ry, rx = len(wz) - 1, len(wy) - 1, len(wx) - 1
    row = np.empty(mx, np.float64)
    line = np.empty(nx + 2 * rx, np.float64)
    for y in range(my):
        acc = columns[y]
        src = image[iz[rz], y]
        for x in range(mx):
            acc[x] = wz[0] * np.float64(src[x])
        for k in range(1, rz + 1):
            a, b = image[iz[rz - k], y], image[iz[rz + k], y]
            for x in range(mx):
                acc[x] += wz[k] * (np.float64(a[x]) + np.float64(b[x]))
    for y in range(ny):
        src = columns[iy[y + ry]]
        for x in range(mx):
            row[x] = wy[0] * src[x]
        for k in range(1, ry + 1):
            a, b = columns[iy[y + ry - k]], columns[iy[y + ry + k]]
            for x in range(mx):
                row[x] += wy[k] * (a[x] + b[x])
        for x in range(nx + 2 * rx):
            line[x] = row[ix[x]]
        acc = out[y]
        for x in range(nx):
            acc[x] = wx[0] * line[x + rx]
        for k in range(1, rx + 1):
            a, b = line[rx - k : rx - k + nx], line[rx + k : rx + k + nx]
            for x in range(nx):
                acc[x] += wx[k] * (a[x] + b[x])
    return out


@njit(cache=True, nogil=True)
def _box_sums_integer(image, iz, iy, ix, out):
    """Running sums along z, y and x. `out` is int64 zeros."""
    nz, ny, nx = out.shape
    kz, ky, kx = len(iz) - nz + 1, len(iy) - ny + 1, len(ix) - nx + 1
    my, mx = image.shape[1], image.shape[2]
    columns = np.zeros((my, mx), np.int64)  # sums along z
    row = np.empty(mx, np.int64)  # sums along z and y
    for z in range(nz):
        for k in range(kz if z == 0 else 1):
            plane = image[iz[z + kz - 1 if z > 0 else k]]
            for y in range(my):
                for x in range(mx):
                    columns[y, x] += np.int64(plane[y, x])
        if z > 0:
            plane = image[iz[z - 1]]
            for y in range(my):
                for x in range(mx):
                    columns[y, x] -= np.int64(plane[y, x])
        row[:] = 0
        for y in range(ny):
            for k in range(ky if y == 0 else 1):
                line = columns[iy[y + ky - 1 if y > 0 else k]]
                for x in range(mx):
                    row[x] += line[x]
            if y > 0:
                line = columns[iy[y - 1]]
                for x in range(mx):
                    row[x] -= line[x]
            total = np.int64(0)
            for x in range(kx):
                total += row[ix[x]]
            out[z, y, 0] = total
            for x in range(1, nx):
                total += row[ix[x + kx - 1]] - row[ix[x - 1]]
                out[z, y, x] = total


@njit(cache=True, nogil=True)
def _box_sums_float(image, iz, iy, ix, out):
    """Every term is added for every voxel, in ascending order along z, then y, then x. `out` is float64 zeros."""
    nz, ny, nx = out.shape
    kz, ky, kx = len(iz) - nz + 1, len(iy) - ny + 1, len(ix) - nx + 1
    my, mx = image.shape[1], image.shape[2]
    columns = np.empty((my, mx), np.float64)
    row = np.empty(mx, np.float64)
    line = np.empty(nx + kx - 1, np.float64)
    for z in range(nz):
        columns[:] = 0
        for k in range(kz):
            plane = image[iz[z + k]]
            for y in range(my):
                for x in range(mx):
                    columns[y, x] += np.float64(plane[y, x])
        for y in range(ny):
            row[:] = 0
            for k in range(ky):
                src = columns[iy[y + k]]
                for x in range(mx):
                    row[x] += src[x]
            for x in range(nx + kx - 1):
                line[x] = row[ix[x]]
            acc = out[z, y]
            for k in range(kx):
                src = line[k : k + nx]
                for x in range(nx):
                    acc[x] += src[x]
