"""What a pixel classifier sees of an image: smoothed grey value, gradient, curvature and texture of each voxel's surroundings at several scales.

The block streams along z: of each scale a few smoothed planes are kept, and features come out in slabs of a few planes, so that neither
the number of scales nor that of features multiplies the memory of a block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import Box, Int3, Spacing
from vemray.ops.base import ArraySpec, Filter, Operator, Port, Site, register
from vemray.ops.intensity import GREY
from vemray.ops.pixel_kernels import derived, tensor_along_z, tensor_eigenvalues
from vemray.ops.smooth import convolve, gaussian_radius, gaussian_weights, reflected

#: planes of features that are made together
SLAB = 8
#: blocks are at least this thick, so that the planes that are kept are few beside the block
THICK = 64
#: the structure tensor's window ends here, in its own sigmas: an average over a wide window needs no longer tail
WINDOW_TRUNCATE = 3.0
#: feature -> how many numbers it has
FEATURES = {"intensity": 1, "gradient_magnitude": 1, "laplacian": 1, "hessian_eigenvalues": 3, "structure_tensor_eigenvalues": 3}

Feature = Literal["intensity", "gradient_magnitude", "laplacian", "hessian_eigenvalues", "structure_tensor_eigenvalues"]


@dataclass(frozen=True)
class Described(Operator):
    """Which features, at which scales: shared by all that use them."""

    sigmas_nm: Annotated[
        tuple[float, ...], Field(min_length=1, description="standard deviations of the Gaussians, nm: one scale each; from one voxel to a few")
    ] = (16, 32, 64)
    features: Annotated[
        tuple[Feature, ...], Field(min_length=1, description="what is computed at each scale; eigenvalues are three numbers each, largest first")
    ] = tuple(FEATURES)
    window: Annotated[float, Field(gt=0, description="standard deviation of the structure tensor's window, in sigmas of its scale")] = 2.0

    def columns(self) -> list[str]:
        """A name for each number, in their order: scale by scale."""
        out = []
        for sigma in self.sigmas_nm:
            for f in self.features:
                n = FEATURES[f]
                out += [f"{f.removesuffix('s') if n > 1 else f}{f'_{i + 1}' if n > 1 else ''}_{sigma:g}nm".replace(".", "_") for i in range(n)]
        return out

    def check_features(self) -> None:
        for key in ("sigmas_nm", "features"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise RecipeError(f"'{key}' names something twice: {', '.join(map(str, values))}.")
        if not all(math.isfinite(s) and s > 0 for s in self.sigmas_nm):
            raise RecipeError(f"'sigmas_nm' must be positive numbers of nm, got {', '.join(f'{s:g}' for s in self.sigmas_nm)}.")

    def reaches(self, sigma_nm: float, spacing: Spacing) -> tuple[Int3, int, Int3]:
        """Voxels that take part on each side: in the smoothing, in the differences, in the structure tensor's window."""
        window = (0, 0, 0)
        if "structure_tensor_eigenvalues" in self.features:
            window = tuple(int(WINDOW_TRUNCATE * self.window * sigma_nm / s + 0.5) for s in spacing.zyx)
        return gaussian_radius(sigma_nm, spacing), int(self.features != ("intensity",)), window

    def halo(self, spacing: Spacing) -> Int3:
        reaches = [self.reaches(s, spacing) for s in self.sigmas_nm]
        return tuple(max(g[a] + d + w[a] for g, d, w in reaches) for a in range(3))

    def block_shape(self, shape: Int3, block: Int3, chunk: Int3) -> Int3:
        return (max(block[0], -(-THICK // chunk[0]) * chunk[0]), *block[1:])

    def features_memory(self, spec: ArraySpec) -> float:
        """Bytes per voxel of the read box, of one that is thin in z: what `stream` keeps."""
        depth, (_, ny, nx) = min(THICK, spec.shape[0]), (min(THICK, n) for n in spec.shape)
        wide = (ny + 2) * (nx + 2) / (ny * nx)  # one voxel beyond the volume's edges
        windows = [self.reaches(s, spec.spacing)[2][0] for s in self.sigmas_nm]
        kept = sum(min(2 * r + SLAB + 2, spec.shape[0] + 2) for r in windows)
        tensor = 6 * (SLAB + 1) + 6 * (2 * max(windows) + SLAB) / ny
        planes = min(spec.shape[0], depth + self.halo(spec.spacing)[0])
        column = 4 * (wide * (kept + tensor) + len(self.columns()) * min(SLAB, spec.shape[0]) + 1)
        return column / planes + (4 if spec.dtype == "float16" else 0) + 0.5

    def stream(self, image: np.ndarray, site: Site) -> Iterator[tuple[int, np.ndarray]]:
        """(first plane, features) of slabs of the write box: float32 (columns, planes, y, x), which the next slab overwrites. `image` covers a
        read box that holds the write box grown by the halo."""
        if image.dtype == np.float16:
            image = image.astype(np.float32)
        scales = [Scale(self, sigma, image, site) for sigma in self.sigmas_nm]
        numbers = sum(FEATURES[f] for f in self.features)
        _, ny, nx = site.write.shape
        most = min(SLAB, site.write.shape[0])
        out = np.empty(numbers * len(scales) * most * ny * nx, np.float32)
        space = np.empty(6 * (most + 1) * max(math.prod(s.products.shape[1:]) for s in scales), np.float32) if scales[0].tensor else None
        for z in range(site.write.start[0], site.write.stop[0], SLAB):
            n = min(SLAB, site.write.stop[0] - z)
            slab = _front(out, (numbers * len(scales), n, ny, nx))
            for i, scale in enumerate(scales):
                scale.into(slab[i * numbers : (i + 1) * numbers], z, space)
            yield z, slab


class Scale:
    """One scale of a block: a ring of smoothed planes, and the features of the next planes from them.

    Derivatives are central differences of the smoothed image over one voxel, which also serve where sections are thicker than sigma and a sampled
    derivative of a Gaussian would be empty. The image is reflected at the volume's true edges; so are the products of the structure tensor."""

    def __init__(self, op: Described, sigma_nm: float, image: np.ndarray, site: Site):
        self.features, self.image, self.site = op.features, image, site
        radius, step, self.window = op.reaches(sigma_nm, site.spacing)
        self.tensor = "structure_tensor_eigenvalues" in op.features
        self.products = site.write.grow(self.window).clip(site.shape)
        self.smoothed = self.products.grow((step, step, step))
        self.weights = [gaussian_weights(sigma_nm / s, r) for s, r in zip(site.spacing.zyx, radius)]
        if self.tensor:
            self.window_weights = [gaussian_weights(op.window * sigma_nm / s, r) for s, r in zip(site.spacing.zyx, self.window)]
            self.window_rows = [
                reflected(a - r, b + r, n, o)
                for a, b, r, n, o in list(zip(site.write.start, site.write.stop, self.window, site.shape, self.products.start))[1:]
            ]
        self.rows = [
            reflected(a - r, b + r, n, o) for a, b, r, n, o in zip(self.smoothed.start, self.smoothed.stop, radius, site.shape, site.read.start)
        ]
        spec = site.inputs[0]
        self.unit = np.float32(1 / 255 if spec.kind == "probability" and spec.dtype == "uint8" else 1)
        self.per_nm = tuple(np.float32(1 / s) for s in site.spacing.zyx)
        depth = min(2 * self.window[0] + SLAB + 2 * step, self.smoothed.shape[0])
        self.step, self.ring = step, np.empty((depth, *self.smoothed.shape[1:]), np.float32)
        self.next = self.smoothed.start[0]

    def slots(self, start: int, stop: int) -> np.ndarray:
        """Where the smoothed planes start..stop lie in the ring; those that are missing are made."""
        while self.next < stop:
            at, radius = self.next - self.smoothed.start[0], len(self.weights[0]) - 1
            planes, place = self.rows[0][at : at + 2 * radius + 1], at % len(self.ring)
            convolve(self.image, *self.weights, planes, *self.rows[1:], self.unit, self.ring[place : place + 1])
            self.next += 1
        return (np.arange(start, stop) - self.smoothed.start[0]) % len(self.ring)

    def into(self, out: np.ndarray, z: int, space: np.ndarray | None) -> None:
        """Features of the planes from `z` into `out` (numbers, planes, y, x)."""
        parts, at = {}, 0
        for f in self.features:
            parts[f] = out[at : at + FEATURES[f]]
            at += FEATURES[f]
        n, (ny, nx) = out.shape[1], out.shape[2:]
        low, high = max(z - self.window[0], 0), min(z + n + self.window[0], self.site.shape[0])
        slots = self.slots(low - self.step, high + self.step)
        here = slots[z - low : z - low + n + 2 * self.step]
        y, x = (a - b for a, b in zip(self.site.write.start[1:], self.smoothed.start[1:]))
        if "intensity" in parts:
            for plane, slot in zip(parts["intensity"][0], here[self.step :]):
                plane[...] = self.ring[slot, y : y + ny, x : x + nx]
        none = np.empty((0, 0, 0), np.float32)
        gradient, laplacian = (parts[f][0] if f in parts else none for f in ("gradient_magnitude", "laplacian"))
        hessian = parts.get("hessian_eigenvalues", none[None])
        if gradient.size or laplacian.size or hessian.size:
            derived(self.ring, here, y, x, ny, nx, self.per_nm, gradient, laplacian, hessian)
        if self.tensor:
            self.structure(parts["structure_tensor_eigenvalues"], z, low, slots, space)

    def structure(self, out: np.ndarray, z: int, low: int, slots: np.ndarray, space: np.ndarray) -> None:
        n, (py, px) = out.shape[1], self.products.shape[1:]
        along_z = _front(space, (6, n, py, px))
        smooth = _front(space[along_z.size :], (6, *out.shape[2:]))
        rows = np.empty((len(slots) - 2, 6, px), np.float32)
        r = self.window[0]
        planes = reflected(z - r, z + n + r, self.site.shape[0], low)
        tensor_along_z(self.ring, slots, self.per_nm, self.window_weights[0], planes, rows, along_z)
        one, first = np.ones(1, np.float32), np.zeros(1, np.int64)
        for i in range(n):
            for c in range(6):
                convolve(along_z[c, i : i + 1], one, *self.window_weights[1:], first, *self.window_rows, np.float32(1), smooth[c : c + 1])
            tensor_eigenvalues(smooth, out, i)


def _front(space: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The beginning of a flat array as a contiguous array: what compiled loops need to be vectorised."""
    return space[: math.prod(shape)].reshape(shape)


@register("pixel_features")
@dataclass(frozen=True)
class PixelFeatures(Described, Filter):
    """The features that a pixel classifier is trained on, as float32 volumes: one output for each number, named `step.feature_SIGMAnm`, such as
    `hessian_eigenvalue_1_16nm`. To look at what tells two classes apart; `pixel_classifier` computes them by itself.

    At each scale the image is smoothed by a Gaussian of sigma (`intensity`, in units of the image, 0..1 of a probability); all others are
    differences of the smoothed image over one voxel to each side, in units of the image per nm or nm2, so that voxels may be anisotropic: length
    of the gradient; Laplacian; eigenvalues of the Hessian (blobs, tubes, sheets: Frangi et al. 1998); eigenvalues of the structure tensor, the
    gradient's outer product averaged over a Gaussian window (texture and its orientation: Foerstner & Guelch 1987). As in ilastik (Berg et al.
    2019)."""

    serves = "step 6: what the random forest sees"
    ports = (Port("image", GREY),)

    @classmethod
    def examples(cls):
        return [
            cls((8, 20)),
            cls((30,), ("structure_tensor_eigenvalues", "intensity"), 1.2),
            cls((12.5,), ("intensity",)),
            cls((5, 9), ("laplacian",)),
        ]

    def check(self, image: ArraySpec) -> None:
        self.check_features()

    def output(self, image: ArraySpec) -> dict[str, ArraySpec]:
        return {name: image.like(np.float32, "image") for name in self.columns()}

    def memory(self, image: ArraySpec) -> float:
        return self.features_memory(image) + 4 * len(self.columns())

    def __call__(self, image: np.ndarray, *, site: Site) -> dict[str, np.ndarray]:
        out = {name: np.empty(site.write.shape, np.float32) for name in self.columns()}
        for z, slab in self.stream(image, site):
            at = z - site.write.start[0]
            for array, values in zip(out.values(), slab):
                array[at : at + values.shape[0]] = values
        return out


def part_of(site: Site, box: Box) -> Site:
    """The site whose write box is a part of that of `site`; its arrays are those of `site`."""
    return replace(site, write=box)
