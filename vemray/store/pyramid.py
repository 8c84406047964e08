"""Resolution levels: their shapes, shards and voxel sizes, and the exact reduction from one level to the next.

Each level halves the axes whose voxels are less than twice the finest voxel of the level before: an anisotropic volume first
becomes near isotropic, then shrinks along every axis. Windows start at even voxels; at the volume's end they hold what is there.
A level is *inline* when the shard that a block of the full resolution determines is whole chunks of its own: the block writes it.
Later levels are a pass of their own, because no shard may have two writers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vemray.errors import VolumeError
from vemray.geometry import Box, Int3, Spacing

MAX_LEVELS = 12


@dataclass(frozen=True)
class Level:
    """One resolution level. `factor` (ZYX, 1 or 2) leads to it from the level before; shard is a multiple of chunk."""

    path: str
    shape: Int3
    spacing: Spacing
    origin_nm: tuple[float, float, float]
    shard: Int3
    chunk: Int3
    factor: Int3 = (1, 1, 1)
    inline: bool = True


def _power(n: int) -> int:
    return 1 << max(0, int(n) - 1).bit_length()


def _crop(n: int, shard: int, chunk: int) -> tuple[int, int]:
    """(shard, chunk) along an axis of `n` voxels: not much larger than the axis, the shard always a multiple of the chunk."""
    chunk = min(chunk, _power(n))
    fitted = chunk
    while fitted < n and fitted < shard:
        fitted *= 2
    return (shard if n > shard else min(fitted, shard)), chunk


def next_factor(shape: Int3, spacing: Spacing) -> Int3:
    """Which axes the next level halves (2) or keeps (1)."""
    fine = [s for s, n in zip(spacing.zyx, shape) if n > 1]
    if not fine:
        return (1, 1, 1)
    return tuple(2 if n > 1 and s < 2 * min(fine) else 1 for s, n in zip(spacing.zyx, shape))


def plan_levels(
    shape: Int3, spacing: Spacing, shard: Int3, chunk: Int3, levels: int | None = None, origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> tuple[Level, ...]:
    """All levels of a volume of `shape`. `levels` None: until one chunk holds the whole volume. VolumeError for a shard that is not whole chunks."""
    for name, given in (("shape", shape), ("shard", shard), ("chunk", chunk)):
        if len(given) != 3 or any(int(v) < 1 for v in given):
            raise VolumeError(f"{name} must be three numbers of at least 1 voxel (z, y, x), got {tuple(given)}.")
    if any(s % c for s, c in zip(shard, chunk)):
        legal = tuple(max(c, round(s / c) * c) for s, c in zip(shard, chunk))
        raise VolumeError(
            f"a shard (the block that is written at once) must be whole chunks: shard {tuple(shard)} is not a multiple of chunk {tuple(chunk)}. "
            f"Nearest: {legal}."
        )
    if levels is not None and levels < 1:
        raise VolumeError(f"a volume has at least 1 resolution level, got levels={levels}.")
    fitted = [_crop(n, s, c) for n, s, c in zip(shape, shard, chunk)]
    first = Level("0", tuple(map(int, shape)), spacing, tuple(map(float, origin_nm)), tuple(s for s, _ in fitted), tuple(c for _, c in fitted))
    out = [first]
    while len(out) < (MAX_LEVELS if levels is None else levels):
        last = out[-1]
        if levels is None and all(n <= c for n, c in zip(last.shape, chunk)):
            break
        factor = next_factor(last.shape, last.spacing)
        if factor == (1, 1, 1):
            break
        out.append(_coarser(last, factor, str(len(out)), first, chunk))
    return tuple(out)


def _coarser(last: Level, factor: Int3, path: str, first: Level, chunk: Int3) -> Level:
    shape = tuple(-(-n // f) for n, f in zip(last.shape, factor))
    spacing = Spacing(*(s * f for s, f in zip(last.spacing.zyx, factor)))
    origin = tuple(o + (f - 1) / 2 * s for o, f, s in zip(last.origin_nm, factor, last.spacing.zyx))
    inline, pairs = last.inline, []
    for n, f, whole, s, c, given in zip(shape, factor, last.shape, last.shard, last.chunk, chunk):
        if whole <= s:  # one shard spans the axis: every block does, at every level
            pairs.append(_crop(n, max(s, given), given))
        elif s % f == 0 and (s // f) % c == 0:
            pairs.append((s // f, c))
        else:
            inline = False
    if not inline:
        # half of the full resolution's shard: its sources then take no more memory than a block
        pairs = [_crop(n, max(c, s // 2 // c * c), c) for n, s, c in zip(shape, first.shard, chunk)]
    return Level(path, shape, spacing, origin, tuple(s for s, _ in pairs), tuple(c for _, c in pairs), factor, inline)


def source_box(box: Box, factor: Int3, finer_shape: Int3) -> Box:
    """The finer level's voxels that determine `box` of the coarser."""
    return Box(tuple(a * f for a, f in zip(box.start, factor)), tuple(min(b * f, n) for b, f, n in zip(box.stop, factor, finer_shape)))


def reduce(array: np.ndarray, factor: Int3, labels: bool) -> np.ndarray:
    """The next level of `array` (ZYX): windows of `factor` voxels, fewer at the end.

    labels False: the mean over the voxels that exist, rounded half up for integers (exact for 64 bits), summed in raster order for floats.
    labels True: the most frequent value; a tie goes to foreground before background (0), then to the smaller value."""
    if factor == (1, 1, 1):
        return array
    from vemray.store import pyramid_kernels as kernels

    array = np.ascontiguousarray(array)
    out = np.empty(tuple(-(-n // f) for n, f in zip(array.shape, factor)), array.dtype)
    if not out.size:
        return out
    if labels:
        kernels.mode(array, out, *factor, np.empty(array.shape[2], array.dtype))
    elif array.dtype.kind == "f":
        kernels.mean_float(array, out, *factor)
    elif array.dtype.itemsize == 8:
        kernels.mean_wide(array, out, *factor)
    else:
        kernels.mean_narrow(array, out, *factor, np.empty(array.shape[2], np.int32 if array.dtype.itemsize <= 2 else np.int64))
    return out
