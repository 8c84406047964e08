"""How often each pair of labels of two volumes meets: what every comparison of two labellings is computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from vemray.errors import RecipeError
from vemray.ops.base import ArraySpec, Measure, Port, Site, register


@register("contingency")
@dataclass(frozen=True)
class Contingency(Measure):
    """Number of voxels of every pair (a, b) of labels that meet, 0 included: columns `a`, `b`, `voxels`, ascending."""

    ports = (Port("a", ("labels", "mask")), Port("b", ("labels", "mask")))

    def check(self, a: ArraySpec, b: ArraySpec) -> None:
        for spec in (a, b):
            if np.dtype(spec.dtype).kind not in "ub":
                raise RecipeError(f"'contingency' takes masks and labels of unsigned integer types, not {spec.dtype}.")

    def memory(self, a: ArraySpec, b: ArraySpec) -> float:
        return 20  # about 100 bytes a pair: components of 20 % noise, of two voxels each, against others

    def measure(self, a: np.ndarray, b: np.ndarray, *, site: Site) -> Pairs:
        a, b = (x.view(np.uint8) if x.dtype == np.bool_ else x for x in (a, b))
        return Pairs(*_count(a, b)).sorted()

    def finish(self, partial: Pairs, inputs: tuple[ArraySpec, ...]):
        import pyarrow as pa

        return pa.table({"a": partial.a, "b": partial.b, "voxels": partial.counts})


@dataclass
class Pairs:
    """Pairs of labels with what is counted of them, sorted by (a, b)."""

    a: np.ndarray  # uint64
    b: np.ndarray  # uint64
    counts: np.ndarray  # int64 (n,) or (n, k)

    def sorted(self) -> Pairs:
        order = np.lexsort((self.b, self.a))
        return Pairs(self.a[order], self.b[order], self.counts[order])

    def merge(self, upper: Pairs, axis: int) -> Pairs:
        both = Pairs(*(np.concatenate([x, y]) for x, y in ((self.a, upper.a), (self.b, upper.b), (self.counts, upper.counts)))).sorted()
        a, b = both.a, both.b
        if not len(a):
            return both
        starts = np.flatnonzero(np.concatenate([[True], (a[1:] != a[:-1]) | (b[1:] != b[:-1])]))
        return Pairs(a[starts], b[starts], np.add.reduceat(both.counts, starts))


@njit(cache=True, nogil=True)
def place(table, a, b, slots):
    """Where the pair is in the open hash table of places in `table`, or the free slot where it goes."""
    mask = np.uint64(len(slots) - 1)
    h = (a * np.uint64(0x9E3779B97F4A7C15)) ^ (b * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(0x165667B19E3779F9))
    h ^= h >> np.uint64(32)
    h *= np.uint64(0xD6E8FEB86659FD93)
    i = (h ^ (h >> np.uint64(29))) & mask
    while slots[i] >= 0 and (table[slots[i], 0] != a or table[slots[i], 1] != b):
        i = (i + np.uint64(1)) & mask
    return i


@njit(cache=True, nogil=True)
def _count(left, right):
    """Pairs in the order they are met: labels a and b (uint64) and voxels (int64). Runs of one pair are looked up once."""
    table, voxels = np.zeros((64, 2), np.uint64), np.zeros(64, np.int64)
    slots = np.full(256, -1, np.int64)
    n = 0
    nz, ny, nx = left.shape
    last_a, last_b, at = np.uint64(0), np.uint64(0), -1
    for z in range(nz):
        for y in range(ny):
            x = 0
            while x < nx:
                u, v = left[z, y, x], right[z, y, x]
                x0 = x
                x += 1
                while x < nx and left[z, y, x] == u and right[z, y, x] == v:
                    x += 1
                a, b = np.uint64(u), np.uint64(v)
                if at < 0 or a != last_a or b != last_b:
                    i = place(table, a, b, slots)
                    if slots[i] < 0:
                        if n == len(table):
                            more, its = np.zeros((3 * n // 2, 2), np.uint64), np.zeros(3 * n // 2, np.int64)
                            more[:n], its[:n] = table, voxels
                            table, voxels = more, its
                        slots[i] = n
                        table[n, 0], table[n, 1] = a, b
                        n += 1
                        if 2 * n > len(slots):
                            slots = np.full(2 * len(slots), -1, np.int64)
                            for k in range(n):
                                slots[place(table, table[k, 0], table[k, 1], slots)] = k
                        at = n - 1
                    else:
                        at = slots[i]
                    last_a, last_b = a, b
                voxels[at] += x - x0
    return table[:n, 0].copy(), table[:n, 1].copy(), voxels[:n].copy()
