"""The global tile grid of a network: fixed by the volume's shape, the model and the parameters, never by the blocks.

Along one axis, exact mode (`=` the core, where the result is taken; `-` the halo that the network sees besides):

    |====-          0                 at the volume's ends the network's own padding acts, as on the whole plane
       -====-       1
           -====|   2

blend mode: every tile counts in all of its window, rising from its edges over the overlap; a voxel is the weighted mean of its tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tile:
    """Along one axis: the network sees [window), the result is taken from [core). A window may reach beyond the volume's ends, where the image is
    reflected: to a whole number of strides, or to the only size a network takes."""

    window: tuple[int, int]
    core: tuple[int, int]


def exact_tiles(n: int, edge: int, halo: int, stride: int, window: int | None = None) -> list[Tile]:
    """Cores of `edge` voxels that partition [0, n). Windows are grown by `halo`, but not over the volume's ends; with `window` all have that size,
    and the cores are what a halo on both sides leaves of it."""
    if window is not None:
        edge = window - 2 * halo
        return [Tile((a - halo, a - halo + window), (a, min(a + edge, n))) for a in range(0, n, edge)]
    padded = -(-n // stride) * stride
    return [Tile((max(0, a - halo), min(padded, a + edge + halo)), (a, min(a + edge, n))) for a in range(0, n, edge)]


def blend_tiles(n: int, edge: int, overlap: int, stride: int, window: int | None = None) -> list[Tile]:
    """Windows of one size that overlap by `overlap`, the last two by more so that it ends with the volume."""
    edge = window or edge
    padded = -(-n // stride) * stride
    if edge >= padded:
        return [Tile((0, window or padded), (0, n))]
    step = max(stride, (edge - overlap) // stride * stride)
    starts = [*range(0, padded - edge, step), padded - edge]
    return [Tile((a, a + edge), (a, min(a + edge, n))) for a in starts]


def ramp(tile: Tile, n: int, overlap: int) -> np.ndarray:
    """float32 weights over the tile's core for blending: rising over the overlap at each side that has a neighbour."""
    a, b = tile.core
    x = np.arange(a, b, dtype=np.float32) + np.float32(0.5)
    up = (x - a) / np.float32(overlap) if a > 0 else np.ones_like(x)
    down = (b - x) / np.float32(overlap) if b < n else np.ones_like(x)
    return np.minimum(np.minimum(up, down), 1).astype(np.float32)


def reflected(start: int, stop: int, n: int) -> np.ndarray:
    """Voxel indices of [start, stop) with the volume of `n` voxels reflected at its ends, the end voxel not repeated."""
    if n == 1:
        return np.zeros(stop - start, np.int64)
    i = np.arange(start, stop) % (2 * (n - 1))
    return np.minimum(i, 2 * (n - 1) - i)


def even_edge(n: int, most: int, unit: int) -> int:
    """Tile edge, a multiple of `unit` of at most about `most`, that cuts n voxels into equal tiles."""
    count = max(1, math.ceil(n / most))
    return math.ceil(math.ceil(n / count) / unit) * unit
