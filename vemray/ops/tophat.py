"""White top-hat with a ball: what is bright and smaller than the ball stays, the background vanishes.

Grey-scale erosion and dilation by a ball are exact: the ball is cut into chords along x, minima over all chord lengths of a line come
from each other (Urbach & Wilkinson, "Efficient 2-D grayscale morphological transformations with arbitrary flat structuring elements",
IEEE TIP 2008), and the minimum over a disc of the ball serves the two planes at equal distance above and below."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numba import njit
from pydantic import Field

from vemray.geometry import Box, Int3, Spacing
from vemray.ops.base import ArraySpec, Filter, Port, Site, register
from vemray.ops.intensity import GREY
from vemray.ops.smooth import ball_radius, planes


@register("white_tophat")
@dataclass(frozen=True)
class WhiteTophat(Filter):
    """The image minus its opening by a ball: keeps bright particles that the ball does not fit into.

    Keeps the type of the image; signed integers become unsigned of the same size, which holds every difference. The ball holds the
    voxels whose centres lie within `radius_nm`. What lies outside the volume counts neither as bright nor as dark (infinitely bright for
    the erosion, infinitely dark for the dilation), so that the volume's edge makes no particles. Floating-point images must be free of NaN."""

    serves = "step 13: bright particles preserved, background removed"
    ports = (Port("image", GREY),)

    radius_nm: Annotated[float, Field(gt=0, description="radius of the ball, nm; larger than the particles to keep")] = 40

    @classmethod
    def examples(cls):
        return [cls(), cls(11)]

    def halo(self, spacing: Spacing) -> Int3:
        return tuple(2 * r for r in ball_radius(self.radius_nm, spacing))

    def output(self, image: ArraySpec) -> ArraySpec:
        dtype = np.dtype(image.dtype)
        return image.like(f"uint{8 * dtype.itemsize}" if dtype.kind == "i" else dtype)

    def memory(self, image: ArraySpec) -> float:
        # erosion and opening, both of the image's type, and minima of one plane for each length of chord
        size = 4 if image.dtype == "float16" else np.dtype(image.dtype).itemsize
        lengths = len(np.unique(_half_lengths(self.radius_nm, image.spacing)))
        return size * (2.2 + lengths / planes(image, self.halo(image.spacing))) + (4 + 2 if image.dtype == "float16" else 0) + 0.5

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        if image.dtype == np.float16:  # numba knows no float16; float32 holds every value and difference rounds once, on the way back
            spec = site.inputs[0].like(np.float32)
            return self(image.astype(np.float32), site=replace(site, inputs=(spec,))).astype(np.float16)
        radius = ball_radius(self.radius_nm, site.spacing)
        around = site.write.grow(radius).clip(site.shape)
        low = extremum(image, site.read, around, self.radius_nm, site.spacing)
        opened = extremum(_flip(low), around, site.write, self.radius_nm, site.spacing)
        out = np.subtract(image[site.crop], _flip(opened), out=opened)
        return out.view(self.output(site.inputs[0]).dtype)  # of signed values modulo 2^bits, which is the difference as unsigned


def _flip(array: np.ndarray) -> np.ndarray:
    """Reverses the order of the values, in place and without loss: a maximum is a flipped minimum."""
    return np.negative(array, out=array) if array.dtype.kind == "f" else np.invert(array, out=array)


def extremum(image: np.ndarray, read: Box, write: Box, radius_nm: float, spacing: Spacing) -> np.ndarray:
    """Minimum over the ball around each voxel of `write`; `image` covers `read`, voxels beyond it do not count. New array."""
    half = _half_lengths(radius_nm, spacing)
    lengths = np.unique(half[half >= 0])
    which = np.searchsorted(lengths, half)
    dtype = image.dtype
    top = dtype.type(np.inf) if dtype.kind == "f" else np.iinfo(dtype).max
    out = np.full(write.shape, top, dtype)
    start = np.array([w - r for w, r in zip(write.start, read.start)], np.int64)
    _minimum(image, start, half, which, lengths, dtype.type(top), out)
    return out


def _half_lengths(radius_nm: float, spacing: Spacing) -> np.ndarray:
    """Half length along x, in voxels, of the ball's chord at distance (dz, dy) >= 0; -1 where there is none. int64 (rz + 1, ry + 1)."""
    rz, ry, _ = ball_radius(radius_nm, spacing)
    dz, dy = np.mgrid[: rz + 1, : ry + 1]
    room = radius_nm**2 * (1 + 1e-9) - (dz * spacing.z) ** 2 - (dy * spacing.y) ** 2
    return np.where(room >= 0, np.floor(np.sqrt(np.maximum(room, 0)) / spacing.x + 1e-9), -1).astype(np.int64)


@njit(cache=True, nogil=True)
def _minimum(image, start, half, which, lengths, top, out):
    """Each plane of the image is met once: minima along x for every chord length, discs of them, and each disc goes to the output
    planes above and below at its distance. `start`: where the output begins in the image."""
    mz, my, mx = image.shape
    nz, ny, nx = out.shape
    rz, ry = half.shape[0] - 1, half.shape[1] - 1
    widest = lengths[-1]
    lines = np.empty((len(lengths), my, nx), image.dtype)
    now = np.empty(nx + 2 * widest, image.dtype)
    nxt = np.empty(nx + 2 * widest, image.dtype)
    disc = np.empty(nx, image.dtype)
    left = start[2] - widest  # of `now`, in the image
    first, last = max(0, left), min(mx, start[2] + nx + widest)
    for z in range(max(0, start[0] - rz), min(mz, start[0] + nz + rz)):
        for y in range(max(0, start[1] - ry), min(my, start[1] + ny + ry)):
            now[: first - left] = top
            now[last - left :] = top
            src = image[z, y]
            for x in range(first, last):
                now[x - left] = src[x]
            length = 1  # now[i] is the minimum over `length` values from i on
            for k in range(len(lengths)):
                wanted = 2 * lengths[k] + 1
                while length < wanted:
                    step = min(length, wanted - length)
                    n = len(now) - length - step + 1
                    a, b = now[:n], now[step : step + n]
                    np.minimum(a, b, nxt[:n])  # vectorised for floats too, which a loop over min() is not
                    now, nxt = nxt, now
                    length += step
                dst = lines[k, y]
                a = now[widest - lengths[k] : widest - lengths[k] + nx]
                for x in range(nx):
                    dst[x] = a[x]
        for d in range(rz + 1):
            below, above = z - d - start[0], z + d - start[0]
            if not (0 <= below < nz or 0 <= above < nz):
                continue
            for y in range(ny):
                disc[:] = top
                for e in range(-ry, ry + 1):
                    at = y + start[1] + e
                    if half[d, abs(e)] < 0 or at < 0 or at >= my:
                        continue
                    a = lines[which[d, abs(e)], at]
                    np.minimum(disc, a, disc)
                if 0 <= below < nz:
                    acc = out[below, y]
                    np.minimum(acc, disc, acc)
                if 0 <= above < nz and d > 0:
                    acc = out[above, y]
                    np.minimum(acc, disc, acc)
