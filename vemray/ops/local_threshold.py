"""Adaptive threshold: each voxel against the mean of its neighbourhood.

The box mean is an exact ratio of integer sums, so running sums keep the law; on floating-point images the box is summed directly,
term by term in a fixed order, as the Gaussian is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import Int3, Spacing
from vemray.ops.base import ArraySpec, Filter, Port, Site, register
from vemray.ops.intensity import GREY
from vemray.ops.smooth import gaussian, gaussian_memory, gaussian_radius, planes, reflections


@register("local_threshold")
@dataclass(frozen=True)
class LocalThreshold(Filter):
    """Voxels brighter (`above`) than the mean of their neighbourhood plus `offset`, or darker (`below`) than the mean minus `offset`.
    The neighbourhood is a box of `size_nm` along each axis (a whole odd number of voxels, rounded down, at least 1) or a Gaussian with
    sigma = `size_nm` / 6, as in scikit-image's `threshold_local`. At the volume's true edges the image is reflected."""

    serves = "step 10: 3D adaptive threshold"
    ports = (Port("image", GREY),)

    size_nm: Annotated[float, Field(gt=0, description="side of the neighbourhood, nm; larger than the particles looked for")] = 100
    offset: Annotated[float, Field(description="how far beyond the local mean a voxel must be, strictly; grey value, or 0..1 on a probability")] = 0
    method: Annotated[Literal["mean", "gaussian"], Field(description="weights of the neighbourhood: equal (a box) or Gaussian")] = "mean"
    direction: Annotated[Literal["above", "below"], Field(description="which voxels are set: brighter or darker than the local mean")] = "above"

    @classmethod
    def examples(cls):
        return [cls(), cls(60, 5.5, "mean", "below"), cls(50, 0.02, "gaussian"), cls(30, 3, "gaussian", "below")]

    def check(self, image: ArraySpec) -> None:
        if not math.isfinite(self.offset):
            raise RecipeError(f"'offset' of 'local_threshold' must be a finite number, got {self.offset}.")

    def halo(self, spacing: Spacing) -> Int3:
        if self.method == "gaussian":
            return gaussian_radius(self.size_nm / 6, spacing)
        return tuple(int(self.size_nm / 2 / s + 1e-9) for s in spacing.zyx)

    def output(self, image: ArraySpec) -> ArraySpec:
        return image.like(np.bool_, "mask")

    def memory(self, image: ArraySpec) -> float:
        # the result; the local mean (float32) or sum (8 bytes), with a plane on the way; the comparison of a plane in float64
        mean = gaussian_memory(image) if self.method == "gaussian" else 8 + 8 / planes(image) + (4 if image.dtype == "float16" else 0)
        return 1.5 + mean + 24 / planes(image)

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        spec = site.inputs[0]
        quantised = spec.kind == "probability" and spec.dtype == "uint8"
        out = np.empty(site.write.shape, np.bool_)
        here = image[site.crop]
        sign = 1 if self.direction == "above" else -1
        if self.method == "gaussian":
            mean = gaussian(image, self.size_nm / 6, site)
            scale, count, offset = (255.0 if quantised else 1.0), 1, self.offset
        else:
            half = self.halo(site.spacing)
            mean, count = box_sums(image, half, site), math.prod(2 * h + 1 for h in half)
            scale, offset = 1.0, self.offset * (255 if quantised else 1)
        for z in range(len(out)):  # float64, which holds every sum below 2^53 exactly, a plane at a time
            local = mean[z] / float(count)
            np.greater(sign * (here[z] / scale - local), offset, out=out[z])
        return out


def box_sums(image: np.ndarray, half: Int3, site: Site) -> np.ndarray:
    """Sum over the box of 2 `half` + 1 voxels around each voxel of the write box: int64 of integers, float64 of floats."""
    integer = image.dtype.kind in "iu"
    out = np.zeros(site.write.shape, np.int64 if integer else np.float64)
    if image.dtype == np.float16:
        image = image.astype(np.float32)
    (_box_sums_integer if integer else _box_sums_float)(image, *reflections(half, site), out)
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
