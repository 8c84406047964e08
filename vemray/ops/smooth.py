"""Smoothing: Gaussian, difference of Gaussians, median. At the volume's true edges, and only there, the image is reflected
(half-sample symmetric, scipy's 'reflect'), as often as a small volume needs.

The Gaussian is a direct separable convolution in float32 whose terms are added in one fixed order for every voxel, so that no bit
depends on where a block starts; running sums, recursive filters and FFTs are faster for wide kernels and cannot keep that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import Int3, Spacing
from vemray.ops.base import ArraySpec, Filter, Port, Site, register
from vemray.ops.intensity import GREY

#: the kernel ends here, in sigmas (scipy's default)
TRUNCATE = 4.0


@register("gaussian")
@dataclass(frozen=True)
class Gaussian(Filter):
    """Gaussian smoothing, float32. Sigma is the same length along each axis, in nm: along an axis with thick sections few voxels or
    none take part (none below an eighth of a voxel). A probability comes out as float32 in 0..1."""

    serves = "step 10: noise before thresholds; smooth ground for the watershed"
    ports = (Port("image", GREY),)

    sigma_nm: Annotated[float, Field(gt=0, description="standard deviation of the Gaussian, nm")] = 16

    @classmethod
    def examples(cls):
        return [cls(), cls(5)]

    def halo(self, spacing: Spacing) -> Int3:
        return gaussian_radius(self.sigma_nm, spacing)

    def output(self, image: ArraySpec) -> ArraySpec:
        return image.like(np.float32)

    def memory(self, image: ArraySpec) -> float:
        return gaussian_memory(image, self.halo(image.spacing))

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        return gaussian(image, self.sigma_nm, site)


@register("difference_of_gaussians")
@dataclass(frozen=True)
class DifferenceOfGaussians(Filter):
    """Particle enhancement: a narrow Gaussian minus a wide one, float32. Bright particles of a diameter between about
    `2 sigma_small_nm` and `2 sigma_large_nm` come out positive, dark ones negative; slow changes of the background vanish
    (Marr & Hildreth 1980). In units of the image; of a probability, in units of 0..1."""

    serves = "step 10: 3D particle enhancement"
    ports = (Port("image", GREY),)

    sigma_small_nm: Annotated[float, Field(gt=0, description="standard deviation of the narrow Gaussian, nm")] = 8
    sigma_large_nm: Annotated[float, Field(gt=0, description="standard deviation of the wide Gaussian, nm; larger than the narrow one")] = 24

    @classmethod
    def examples(cls):
        return [cls(), cls(3, 12)]

    def check(self, image: ArraySpec) -> None:
        if self.sigma_small_nm >= self.sigma_large_nm:
            raise RecipeError(f"'sigma_small_nm' must be below 'sigma_large_nm', got {self.sigma_small_nm} and {self.sigma_large_nm}.")

    def halo(self, spacing: Spacing) -> Int3:
        return gaussian_radius(self.sigma_large_nm, spacing)

    def output(self, image: ArraySpec) -> ArraySpec:
        return image.like(np.float32, "image")

    def memory(self, image: ArraySpec) -> float:
        return 4 + gaussian_memory(image, gaussian_radius(self.sigma_small_nm, image.spacing))

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        out = gaussian(image, self.sigma_small_nm, site)
        out -= gaussian(image, self.sigma_large_nm, site)
        return out


@register("median")
@dataclass(frozen=True)
class Median(Filter):
    """Median over a ball: removes specks and keeps edges. Keeps the type of the image. The ball holds the voxels whose centres lie within
    `radius_nm`; along an axis with thick sections it may be a disc.

    Sliding histograms for uint8 and uint16 (Huang et al. 1979, along x), selection for other types."""

    serves = "step 10: noise before thresholds"
    ports = (Port("image", GREY),)

    radius_nm: Annotated[float, Field(gt=0, description="radius of the ball, nm")] = 10

    @classmethod
    def examples(cls):
        return [cls(), cls(20)]

    def halo(self, spacing: Spacing) -> Int3:
        return ball_radius(self.radius_nm, spacing)

    def output(self, image: ArraySpec) -> ArraySpec:
        return image

    def memory(self, image: ArraySpec) -> float:
        # beside the result, a copy reflected along x: at most twice what was read, or more where the volume is thinner than the ball
        size = np.dtype(image.dtype).itemsize
        reach = 2 * self.halo(image.spacing)[2]
        wide = 12 if image.dtype == "float16" else 0
        return size * (1 + max(2.0, 1 + reach / max(1, image.shape[2]))) + wide + 0.5

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        if image.dtype == np.float16:  # numba knows no float16; float32 holds it exactly
            return self(image.astype(np.float32), site=site).astype(np.float16)
        z, y, x = reflections(self.halo(site.spacing), site)
        if len(x) != image.shape[2]:
            image = _take_x(image, x)
        out = np.empty(site.write.shape, image.dtype)
        kernel = {"uint8": _median_uint8, "uint16": _median_uint16}.get(image.dtype.name, _median_any)
        kernel(image.reshape(-1), *image.shape[1:], z, y, chords(self.radius_nm, site.spacing), out)
        return out


# -- geometry of the kernels -----------------------------------------------------------------------------------------------------


def gaussian_radius(sigma_nm: float, spacing: Spacing) -> Int3:
    return tuple(int(TRUNCATE * sigma_nm / s + 0.5) for s in spacing.zyx)


def gaussian_weights(sigma: float, radius: int) -> np.ndarray:
    """float32 [centre, 1, 2, ..., radius]; `sigma` in voxels. The whole kernel, both sides, sums to 1."""
    w = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    return (w / (w[0] + 2 * w[1:].sum())).astype(np.float32)


def ball_radius(radius_nm: float, spacing: Spacing) -> Int3:
    """Whole voxels within `radius_nm` along each axis."""
    return tuple(int(radius_nm / s + 1e-9) for s in spacing.zyx)


def chords(radius_nm: float, spacing: Spacing) -> np.ndarray:
    """A ball as lines along x: int64 (n, 3) of (dz, dy, half length in voxels), for all voxels whose centres lie within the radius."""
    sz, sy, sx = spacing.zyx
    rz, ry, _ = ball_radius(radius_nm, spacing)
    dz, dy = (a.ravel() for a in np.mgrid[-rz : rz + 1, -ry : ry + 1])
    room = radius_nm**2 * (1 + 1e-9) - (dz * sz) ** 2 - (dy * sy) ** 2
    inside = room >= 0
    half = np.floor(np.sqrt(room[inside]) / sx + 1e-9)
    return np.stack([dz[inside], dy[inside], half], 1).astype(np.int64)


def reflected(start: int, stop: int, n: int, origin: int) -> np.ndarray:
    """Where the coordinates start..stop of an axis of n voxels lie in an array that begins at `origin`, reflected at 0 and n."""
    i = np.arange(start, stop) % (2 * n)
    return np.where(i >= n, 2 * n - 1 - i, i) - origin


def reflections(halo: Int3, site: Site) -> list[np.ndarray]:
    """For each axis the indices, into an array over the read box, of the write box grown by `halo`."""
    return [reflected(a - h, b + h, n, origin) for a, b, h, n, origin in zip(site.write.start, site.write.stop, halo, site.shape, site.read.start)]


def planes(spec: ArraySpec, halo: Int3) -> int:
    """What temporaries of one plane are shared by: the planes of the thinnest read box, which holds a halo unless the volume is thinner."""
    return max(1, min(spec.shape[0], 1 + halo[0]))


def gaussian_memory(spec: ArraySpec, halo: Int3) -> float:
    """Bytes per voxel of the read box: the result, a plane on the way, and a float32 copy of a float16 image."""
    return 4.5 + 4 / planes(spec, halo) + (4 if spec.dtype == "float16" else 0)


def gaussian(image: np.ndarray, sigma_nm: float, site: Site) -> np.ndarray:
    """float32 over the write box; `image` covers a read box that holds the write box grown by `gaussian_radius`."""
    radius = gaussian_radius(sigma_nm, site.spacing)
    weights = [gaussian_weights(sigma_nm / s, r) for s, r in zip(site.spacing.zyx, radius)]
    spec = site.inputs[0]
    unit = np.float32(1 / 255 if spec.kind == "probability" and spec.dtype == "uint8" else 1)
    out = np.empty(site.write.shape, np.float32)
    if image.dtype == np.float16:
        image = image.astype(np.float32)
    convolve(image, *weights, *reflections(radius, site), unit, out)
    return out


# -- inner loops -----------------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def convolve(image, wz, wy, wx, iz, iy, ix, unit, out):
    """Separable symmetric convolution, plane by plane: z, then y, then x. Every voxel adds its terms from the centre outwards.
    iz, iy, ix: rows of `image` that the output's voxels, and a kernel's radius more on each side, take."""
    nz, ny, nx = out.shape
    rz, ry, rx = len(wz) - 1, len(wy) - 1, len(wx) - 1
    my, mx = image.shape[1], image.shape[2]
    plane = np.empty((my, mx), np.float32)
    row = np.empty(mx, np.float32)
    line = np.empty(nx + 2 * rx, np.float32)
    for z in range(nz):
        for y in range(my):
            acc = plane[y]
            here = image[iz[z + rz], y]
            w = wz[0] * unit
            for x in range(mx):
                acc[x] = w * np.float32(here[x])
            for k in range(1, rz + 1):
                w = wz[k] * unit
                a = image[iz[z + rz - k], y]
                b = image[iz[z + rz + k], y]
                for x in range(mx):
                    acc[x] += w * (np.float32(a[x]) + np.float32(b[x]))
        for y in range(ny):
            c = plane[iy[y + ry]]
            for x in range(mx):
                row[x] = wy[0] * c[x]
            for k in range(1, ry + 1):
                w = wy[k]
                a = plane[iy[y + ry - k]]
                b = plane[iy[y + ry + k]]
                for x in range(mx):
                    row[x] += w * (a[x] + b[x])
            for x in range(nx + 2 * rx):
                line[x] = row[ix[x]]
            acc = out[z, y]
            for x in range(nx):
                acc[x] = wx[0] * line[x + rx]
            for k in range(1, rx + 1):
                w = wx[k]
                a = line[rx - k : rx - k + nx]
                b = line[rx + k : rx + k + nx]
                for x in range(nx):
                    acc[x] += w * (a[x] + b[x])


@njit(cache=True, nogil=True)
def _take_x(image, ix):
    out = np.empty((image.shape[0], image.shape[1], len(ix)), image.dtype)
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(len(ix)):
                out[z, y, x] = image[z, y, ix[x]]
    return out


@njit(cache=True, nogil=True, inline="always")
def _line_ends(z, y, iz, iy, my, mx, rx, chords, first, last):
    """Where each chord of the ball around voxel (z, y, 0) begins and ends (one beyond) in the flat image."""
    rz, ry = chords[-1, 0], chords[:, 1].max()
    for c in range(len(chords)):
        line = (iz[z + rz + chords[c, 0]] * my + iy[y + ry + chords[c, 1]]) * mx + rx
        first[c] = line - chords[c, 2]
        last[c] = line + chords[c, 2] + 1


@njit(cache=True, nogil=True)
def _median_uint8(flat, my, mx, iz, iy, chords, out):
    """`flat`: an image of planes of my x mx that covers the output grown along x by the ball's radius; iz, iy: its rows for the output
    grown along z and y. The histogram slides along x; `below` counts values under `median`."""
    nz, ny, nx = out.shape
    first, last = np.empty(len(chords), np.uint64), np.empty(len(chords), np.uint64)
    rank = (2 * chords[:, 2] + 1).sum() // 2
    hist = np.empty(256, np.int32)
    for z in range(nz):
        for y in range(ny):
            _line_ends(z, y, iz, iy, my, mx, (mx - nx) // 2, chords, first, last)
            hist[:] = 0
            median, below = 0, 0
            for c in range(len(chords)):
                for i in range(first[c], last[c]):
                    hist[flat[i]] += 1
            for x in range(nx):
                if x > 0:
                    step = np.uint64(x - 1)
                    for c in range(len(chords)):
                        old, new = flat[first[c] + step], flat[last[c] + step]
                        hist[old] -= 1
                        hist[new] += 1
                        below += np.int64(new < median) - np.int64(old < median)
                while below > rank:
                    median -= 1
                    below -= hist[median]
                while below + hist[median] <= rank:
                    below += hist[median]
                    median += 1
                out[z, y, x] = median


@njit(cache=True, nogil=True)
def _median_uint16(flat, my, mx, iz, iy, chords, out):
    """As for uint8, in two levels: the histogram of high bytes slides its median, the low byte is looked up below it."""
    nz, ny, nx = out.shape
    first, last = np.empty(len(chords), np.uint64), np.empty(len(chords), np.uint64)
    rank = (2 * chords[:, 2] + 1).sum() // 2
    high = np.empty(256, np.int32)
    fine = np.zeros(65536, np.int32)
    for z in range(nz):
        for y in range(ny):
            _line_ends(z, y, iz, iy, my, mx, (mx - nx) // 2, chords, first, last)
            high[:] = 0
            median, below = 0, 0
            for c in range(len(chords)):
                for i in range(first[c], last[c]):
                    high[flat[i] >> 8] += 1
                    fine[flat[i]] += 1
            for x in range(nx):
                if x > 0:
                    step = np.uint64(x - 1)
                    for c in range(len(chords)):
                        old, new = flat[first[c] + step], flat[last[c] + step]
                        fine[old] -= 1
                        fine[new] += 1
                        high[old >> 8] -= 1
                        high[new >> 8] += 1
                        below += np.int64((new >> 8) < median) - np.int64((old >> 8) < median)
                while below > rank:
                    median -= 1
                    below -= high[median]
                while below + high[median] <= rank:
                    below += high[median]
                    median += 1
                value, count = median << 8, below
                while count + fine[value] <= rank:
                    count += fine[value]
                    value += 1
                out[z, y, x] = value
            for c in range(len(chords)):  # what the last window holds: cheaper than clearing 65,536 counts
                for i in range(first[c], last[c]):
                    fine[flat[i + np.uint64(nx - 1)]] = 0


@njit(cache=True, nogil=True)
def _median_any(flat, my, mx, iz, iy, chords, out):
    """Selects the middle of the sorted window (Hoare's quickselect)."""
    nz, ny, nx = out.shape
    first, last = np.empty(len(chords), np.uint64), np.empty(len(chords), np.uint64)
    n = (2 * chords[:, 2] + 1).sum()
    rank = n // 2
    window = np.empty(n, flat.dtype)
    for z in range(nz):
        for y in range(ny):
            _line_ends(z, y, iz, iy, my, mx, (mx - nx) // 2, chords, first, last)
            for x in range(nx):
                k = 0
                for c in range(len(chords)):
                    for i in range(first[c], last[c]):
                        window[k] = flat[i + np.uint64(x)]
                        k += 1
                low, high = 0, n - 1
                while low < high:
                    pivot = window[(low + high) >> 1]
                    i, j = low, high
                    while i <= j:
                        while window[i] < pivot:
                            i += 1
                        while window[j] > pivot:
                            j -= 1
                        if i <= j:
                            t = window[i]
                            window[i] = window[j]
                            window[j] = t
                            i += 1
                            j -= 1
                    if rank <= j:
                        high = j
                    elif rank >= i:
                        low = i
                    else:
                        break
                out[z, y, x] = window[rank]
