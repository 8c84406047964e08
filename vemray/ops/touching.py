"""Which objects touch, and over how many faces of voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import Int3, Spacing
from vemray.ops.base import ArraySpec, Measure, Port, Site, register
from vemray.ops.contingency import Pairs, place

#: forward steps ZYX: the three over faces first, then those over edges and corners
_STEPS = np.array(
    [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    + [(z, y, x) for z in (0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1) if (z, y, x) > (0, 0, 0) and abs(z) + abs(y) + abs(x) > 1],
    np.int64,
)


@register("touching")
@dataclass(frozen=True)
class Touching(Measure):
    """Every pair of objects that touch: columns `a`, `b` (labels, ascending), `faces_z`, `faces_y`, `faces_x` (faces of voxels across that axis
    with `a` on one side and `b` on the other) and `area_nm2` (of these faces together: up to 1.7 times that of a smooth contact).

    Of one labelling: pairs of different labels, a < b. With `other`: `a` from `labels`, `b` from `other` (a mask counts as label 1), on
    neighbouring voxels; two labels that only lie on the same voxels do not touch. With 26 neighbours also pairs that meet over an edge or a
    corner, with no faces."""

    serves = "contacts between organelles; step 4"
    ports = (Port("labels", ("labels",)), Port("other", ("labels", "mask"), optional=True, doc="the other side; default: the labels themselves"))

    connectivity: Annotated[Literal[6, 26], Field(description="which voxels touch: over faces (6), edges and corners too (26)")] = 6

    @classmethod
    def examples(cls):
        return [cls(), cls(26)]

    def halo(self, spacing: Spacing) -> Int3:
        return (1, 1, 1)

    def check(self, labels: ArraySpec, other: ArraySpec | None = None) -> None:
        for spec in (labels, other):
            if spec is not None and np.dtype(spec.dtype).kind not in "ub":
                raise RecipeError(f"'touching' takes labels of an unsigned integer type, not {spec.dtype}.")

    def memory(self, labels: ArraySpec, other: ArraySpec | None = None) -> float:
        return 62  # some 150 bytes a pair: specks that touch others over corners

    def measure(self, labels: np.ndarray, other: np.ndarray | None = None, *, site: Site) -> Pairs:
        two = other is not None
        other = labels if other is None else other.view(np.uint8) if other.dtype == np.bool_ else other
        inner = site.write.within(site.read)
        steps = _STEPS[: 3 if self.connectivity == 6 else 13]
        return Pairs(*_touches(labels, other, two, np.array(inner.start), np.array(inner.stop), steps)).sorted()

    def finish(self, partial: Pairs, inputs: tuple[ArraySpec, ...]):
        import pyarrow as pa

        z, y, x = inputs[0].spacing.zyx
        nz, ny, nx = partial.counts.T
        area = nz * (y * x) + ny * (z * x) + nx * (z * y)
        return pa.table({"a": partial.a, "b": partial.b, "faces_z": nz, "faces_y": ny, "faces_x": nx, "area_nm2": area})


@njit(cache=True, nogil=True)
def _entry(table, faces, slots, n, a, b):
    """Row of a pair, new ones at the end: (row, table, faces, slots, n)."""
    i = place(table, a, b, slots)
    if slots[i] >= 0:
        return slots[i], table, faces, slots, n
    if n == len(table):
        more, its = np.zeros((3 * n // 2, 2), np.uint64), np.zeros((3 * n // 2, 3), np.int64)
        more[:n], its[:n] = table, faces
        table, faces = more, its
    slots[i] = n
    table[n, 0], table[n, 1] = a, b
    if 2 * (n + 1) > len(slots):
        slots = np.full(2 * len(slots), -1, np.int64)
        for k in range(n + 1):
            slots[place(table, table[k, 0], table[k, 1], slots)] = k
    return n, table, faces, slots, n + 1


@njit(cache=True, nogil=True)
def _touches(labels, other, two, start, stop, steps):
    """Pairs of voxels (v, v + step), v in the box: a, b (uint64), faces (n, 3)."""
    table, faces, slots = np.zeros((64, 2), np.uint64), np.zeros((64, 3), np.int64), np.full(256, -1, np.int64)
    n, at = 0, np.int64(-1)
    last_a, last_b = np.uint64(0), np.uint64(0)
    nz, ny, nx = labels.shape
    for z in range(start[0], stop[0]):
        for y in range(start[1], stop[1]):
            for x in range(start[2], stop[2]):
                a, b = np.uint64(labels[z, y, x]), np.uint64(other[z, y, x])
                if a == 0 and b == 0:
                    continue
                for s in range(steps.shape[0]):
                    w, v, u = z + steps[s, 0], y + steps[s, 1], x + steps[s, 2]
                    if w >= nz or v < 0 or v >= ny or u < 0 or u >= nx:
                        continue
                    far_a, far_b = np.uint64(labels[w, v, u]), np.uint64(other[w, v, u])
                    for turn in range(2 if two else 1):
                        p, q = (a, far_b) if turn == 0 else (far_a, b)
                        if p == 0 or q == 0 or (not two and p == q):
                            continue
                        if not two and p > q:
                            p, q = q, p
                        if at < 0 or p != last_a or q != last_b:
                            at, table, faces, slots, n = _entry(table, faces, slots, n, p, q)
                            last_a, last_b = p, q
                        if s < 3:
                            faces[at, s] += 1
    return table[:n, 0].copy(), table[:n, 1].copy(), faces[:n].copy()
