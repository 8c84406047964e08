"""The global tile grid of a network: fixed by the volume's shape and the model, never by the blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tile:
    """Along one axis: the network sees [window), the result is taken from [core). The window may reach beyond the volume's far end,
    where the image is reflected to a whole number of strides."""

    window: tuple[int, int]
    core: tuple[int, int]


def exact_tiles(n: int, edge: int, halo: int, stride: int) -> list[Tile]:
    """Cores of `edge` voxels that partition [0, n); windows grown by `halo`, but not over the volume's ends, where the network's own
    padding acts as it does on the whole."""
    padded = -(-n // stride) * stride
    return [Tile((max(0, a - halo), min(padded, a + edge + halo)), (a, min(a + edge, n))) for a in range(0, n, edge)]


def blend_tiles(n: int, edge: int, overlap: int, stride: int) -> list[Tile]:
    """Windows of `edge` voxels that overlap by `overlap`; each counts in all of its window."""
    padded = -(-n // stride) * stride
    if edge >= padded:
        return [Tile((0, padded), (0, n))]
    starts = list(range(0, max(1, padded - overlap), edge - overlap))
    return [Tile((a, min(a + edge, padded)), (a, min(a + edge, n))) for a in starts]


def ramp(tile: Tile, n: int, overlap: int) -> np.ndarray:
    """float32 weights over the tile's core for blending: rising over the overlap at each side that has a neighbour."""
    a, b = tile.core
    x = np.arange(a, b, dtype=np.float32) + np.float32(0.5)
    up = (x - a) / np.float32(max(overlap, 1)) if a > 0 else np.ones_like(x)
    down = (b - x) / np.float32(max(overlap, 1)) if b < n else np.ones_like(x)
    return np.minimum(np.minimum(up, down), 1).astype(np.float32)


def reflected(start: int, stop: int, n: int) -> np.ndarray:
    """Voxel indices of [start, stop) with the volume of `n` voxels reflected at its ends, the end voxel not repeated."""
    if n == 1:
        return np.zeros(stop - start, np.int64)
    i = np.arange(start, stop) % (2 * (n - 1))
    return np.minimum(i, 2 * (n - 1) - i)


def even_edge(n: int, most: int, stride: int) -> int:
    """Tile edge, a multiple of `stride` of at most about `most`, that cuts n voxels into equal tiles."""
    count = max(1, -(-n // most))
    return -(-(-(-n // count)) // stride) * stride
