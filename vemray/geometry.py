"""Integer voxel geometry in ZYX: boxes, blocks, grids; the voxel spacing in nm; what an array of voxels holds. Imports nothing of vemray."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Int3 = tuple[int, int, int]
Kind = Literal["image", "probability", "mask", "labels"]


@dataclass(frozen=True, order=True)
class Box:
    """Half-open box of voxels [start, stop) in ZYX. May be empty; never carries units or data."""

    start: Int3
    stop: Int3

    @classmethod
    def of(cls, shape: Int3) -> Box:
        return cls((0, 0, 0), tuple(int(n) for n in shape))

    @property
    def shape(self) -> Int3:
        return tuple(max(0, b - a) for a, b in zip(self.start, self.stop))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop))

    def grow(self, by: Int3) -> Box:
        return Box(tuple(a - h for a, h in zip(self.start, by)), tuple(b + h for b, h in zip(self.stop, by)))

    def intersect(self, other: Box) -> Box:
        start = tuple(max(a, b) for a, b in zip(self.start, other.start))
        return Box(start, tuple(max(s, min(a, b)) for s, a, b in zip(start, self.stop, other.stop)))

    def clip(self, shape: Int3) -> Box:
        return self.intersect(Box.of(shape))

    def shift(self, by: Int3) -> Box:
        return Box(tuple(a + d for a, d in zip(self.start, by)), tuple(b + d for b, d in zip(self.stop, by)))

    def within(self, outer: Box) -> Box:
        """This box in coordinates relative to `outer.start`: use its `.slices` to index an array that covers `outer`."""
        return self.shift(tuple(-a for a in outer.start))

    def contains(self, other: Box) -> bool:
        return all(a <= c and d <= b for a, b, c, d in zip(self.start, self.stop, other.start, other.stop))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop)) + "]"


@dataclass(frozen=True)
class Spacing:
    """Voxel size in nanometres, ZYX."""

    z: float
    y: float
    x: float

    def __post_init__(self):
        for name in "zyx":
            v = float(getattr(self, name))
            object.__setattr__(self, name, v)
            if not (math.isfinite(v) and v > 0):
                raise ValueError(f"voxel size along {name} must be a positive number of nm, got {v}")

    @property
    def zyx(self) -> tuple[float, float, float]:
        return (self.z, self.y, self.x)

    @property
    def voxel_nm3(self) -> float:
        return self.z * self.y * self.x

    @property
    def pixel(self) -> float:
        """Edge in nm of the pixels of a section at any angle: that of the planes' own pixels, the smaller of y and x, however thick they are."""
        return min(self.y, self.x)

    def halo(self, radius_nm: float, extra: int = 0) -> Int3:
        """Voxels per axis that cover `radius_nm` (rounded up), plus `extra`."""
        return tuple(math.ceil(radius_nm / s - 1e-9) + extra for s in self.zyx)

    def __str__(self) -> str:
        return " x ".join(f"{s:g}" for s in self.zyx) + " nm (z, y, x)"


@dataclass(frozen=True)
class ArraySpec:
    """What a volume holds. `probability` is quantised: uint8 0..255 stands for 0..1. `mask` is bool in memory. `labels` is
    uint64 when vemray wrote them, any unsigned integer when foreign. `origin_nm`: where the centre of voxel (0, 0, 0) lies (ZYX)."""

    shape: Int3
    dtype: str
    spacing: Spacing
    kind: Kind = "image"
    origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def like(self, dtype=None, kind: Kind | None = None) -> ArraySpec:
        return replace(self, dtype=self.dtype if dtype is None else np.dtype(dtype).name, kind=kind or self.kind)


@dataclass(frozen=True)
class ArtefactSpec:
    """What files of blocks hold that are no array of voxels, such as the faces of surfaces; `shape`, `spacing` and `origin_nm` are of the
    volume they were made from."""

    shape: Int3
    spacing: Spacing
    kind: Literal["surface"] = "surface"
    origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Block:
    """One unit of work: it reads `read` and alone writes `write`. `coords` is its place in the grid."""

    index: int
    coords: Int3
    read: Box
    write: Box


@dataclass(frozen=True)
class Grid:
    """A partition of a volume into blocks of `block_shape`; the last ones along an axis may be smaller."""

    shape: Int3
    block_shape: Int3

    def __post_init__(self):
        if any(b < 1 for b in self.block_shape):
            raise ValueError(f"block shape must be at least 1 voxel along each axis, got {self.block_shape}")

    @property
    def counts(self) -> Int3:
        return tuple(-(-n // b) for n, b in zip(self.shape, self.block_shape))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def index(self, coords: Int3) -> int:
        _, ny, nx = self.counts
        return (coords[0] * ny + coords[1]) * nx + coords[2]

    def coords(self, index: int) -> Int3:
        _, ny, nx = self.counts
        return (index // (ny * nx), index // nx % ny, index % nx)

    def write_box(self, index: int) -> Box:
        start = tuple(c * b for c, b in zip(self.coords(index), self.block_shape))
        return Box(start, tuple(min(a + b, n) for a, b, n in zip(start, self.block_shape, self.shape)))

    def block(self, index: int, halo: Int3 = (0, 0, 0)) -> Block:
        """Block number `index`; its read box is the write box grown by `halo` and clipped to the volume."""
        write = self.write_box(index)
        return Block(index, self.coords(index), write.grow(halo).clip(self.shape), write)

    def groups(self, side: int = 2) -> Iterator[tuple[Int3, list[int]]]:
        """Blocks in cubes of side^3 neighbours, cubes in the order of a depth-first octree (Morton order), so that
        neighbours finish together and a tree merge keeps few partials alive. Yields (cube's coords, block indices)."""
        outer = tuple(-(-n // side) for n in self.counts)
        for g in morton(outer):
            yield g, self.group(g, side)

    def group(self, coords: Int3, side: int) -> list[int]:
        """Indices of the blocks in the cube `coords` of side^3 neighbours."""
        ranges = [range(c * side, min((c + 1) * side, n)) for c, n in zip(coords, self.counts)]
        return [self.index(c) for c in itertools.product(*ranges)]


def morton(counts: Int3) -> Iterator[Int3]:
    """All coordinates of a grid of `counts` cells in Morton (Z) order, lazily."""
    side = 1 << max(0, max(counts) - 1).bit_length()

    def descend(corner: Int3, side: int):
        if any(c >= n for c, n in zip(corner, counts)):
            return
        if side == 1:
            yield corner
            return
        half = side // 2
        for dz, dy, dx in itertools.product((0, half), repeat=3):
            yield from descend((corner[0] + dz, corner[1] + dy, corner[2] + dx), half)

    if all(counts):
        yield from descend((0, 0, 0), side)


def rotation(degrees: float, about: str) -> np.ndarray:
    """(3, 3) float64 for vectors (z, y, x). By 90 degrees about x z goes to y and y to -z, about y z to x and x to -z, about z y to x and x to -y."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = [k for k in range(3) if k != "zyx".index(about)]
    out = np.eye(3)
    out[i, i], out[i, j], out[j, i], out[j, j] = c, -s, s, c
    return out


def turned_grid(spec: ArraySpec, degrees: float, about: str, voxel_nm: float | None = None) -> ArraySpec:
    """Cubic voxels that hold the whole volume of `spec` after its sections were turned: the bounding box, its centre on the volume's centre.

    The voxel at nm p from the centre shows what lies at `rotation(degrees, about) @ p` from it in the volume. `voxel_nm`: edge of a voxel; default
    `spec.spacing.pixel`."""
    edge = float(voxel_nm or spec.spacing.pixel)
    extent = np.abs(rotation(degrees, about)).T @ (np.array(spec.shape) * spec.spacing.zyx)
    shape = tuple(max(1, math.ceil(e / edge - 1e-6)) for e in extent)
    origin = tuple(o + (n - 1) / 2 * s - (m - 1) / 2 * edge for o, n, s, m in zip(spec.origin_nm, spec.shape, spec.spacing.zyx, shape))
    return replace(spec, shape=shape, spacing=Spacing(edge, edge, edge), origin_nm=origin)


def turned_back(spec: ArraySpec, turned: ArraySpec, degrees: float, about: str) -> tuple[np.ndarray, np.ndarray]:
    """`matrix` (3, 3) and `offset` (3,), float64: voxel v (ZYX) of `turned` lies at `matrix @ v + offset` in voxels of `spec`."""
    matrix = rotation(degrees, about) * turned.spacing.x / np.array(spec.spacing.zyx)[:, None]
    return matrix, (np.array(spec.shape) - 1) / 2 - matrix @ ((np.array(turned.shape) - 1) / 2)
