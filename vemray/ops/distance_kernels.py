"""Exact squared Euclidean distances in whole numbers: one pass along rows, then lower envelopes of parabolas along the other axes
(Meijster, Roerdink & Hesselink 2000; Felzenszwalb & Huttenlocher 2012). Whole numbers make the result independent of where a block
starts: envelopes in floating point choose between nearly equal parabolas by rounding.

Arrays hold squared distances to the nearest voxel of the other side, NONE (the type's largest value) where none was met yet, and 0
for a voxel whose side is not asked for; where both sides are asked for, those outside the mask are negative. A stretch of one sign
along a line ends at voxels of the other side, which are at distance 0: so each stretch is an envelope of its own.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numba import njit

from vemray.geometry import Int3, Spacing

INSIDE, OUTSIDE, BOTH = 1, 2, 3
LIMIT = 1 << 61  # of squared distances
TILE = 16  # columns taken together: 16 int32 are one cache line


@dataclass(frozen=True)
class Metric:
    """Whole-number weights of squared steps along z, y, x; one unit is `nm2` nm^2."""

    weights: Int3
    nm2: float

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of(cls, spacing: Spacing, shape: Int3 = (1, 1, 1)) -> Metric:
        """Spacings that are decimal fractions of moderate length (4.6 nm, 50 nm) are exact, others rounded, by up
        to about 1e-6 relative (sections of 100 nm of pixels of 1.1 nm), most far less. The same
        for all volumes of a spacing up to 16,384 voxels along each axis, so that a crop gets the values of the whole."""
        extent = [max(n, 1 << 14) for n in shape]
        steps = [Fraction(repr(s)) for s in spacing.zyx]
        whole = math.lcm(*(f.denominator for f in steps))
        sizes = [int(f * whole) for f in steps]
        common = math.gcd(*sizes)
        weights = tuple((s // common) ** 2 for s in sizes)
        if sum(w * n * n for w, n in zip(weights, extent)) < LIMIT:
            return cls(weights, (common / whole) ** 2)
        scale = 2.0 ** math.floor(math.log2(LIMIT / 2 / sum((s * n) ** 2 for s, n in zip(spacing.zyx, extent))))
        return cls(tuple(max(1, round(s * s * scale)) for s in spacing.zyx), 1 / scale)

    def dtype(self, shape: Int3, axes: tuple[int, ...]) -> np.dtype:
        """Smallest signed type for squared distances along `axes` of a volume."""
        return smallest(sum(self.weights[a] * shape[a] ** 2 for a in axes))

    def squared(self, radius_nm: float) -> int:
        """Largest squared distance that counts as within `radius_nm`: distance <= radius, where 1e-6 relative counts as equal."""
        return min(math.floor(radius_nm * radius_nm / self.nm2 * (1 + 2e-6)), LIMIT)

    def reach(self, radius_nm: float) -> Int3:
        """Voxels along each axis that lie within `radius_nm`."""
        return tuple(math.isqrt(self.squared(radius_nm) // w) for w in self.weights)


def smallest(value: int) -> np.dtype:
    """int32 or int64: where `value` lies below the type's NONE."""
    return np.dtype(np.int32 if value < np.iinfo(np.int32).max else np.int64)


@njit(cache=True, nogil=True, error_model="numpy")
def rows(mask, sides, out, weight, square, cap):
    """Distance along x in voxels, or `weight` times its square: the first pass. More than `cap` is NONE (`cap` < 0: no cap)."""
    nz, ny, nx = mask.shape
    none = np.iinfo(out.dtype).max
    for z in range(nz):
        for y in range(ny):
            x = 0
            while x < nx:
                a, inside = x, mask[z, y, x]
                while x < nx and mask[z, y, x] == inside:
                    x += 1
                if not (sides & (1 if inside else 2)):
                    for i in range(a, x):
                        out[z, y, i] = 0
                    continue
                sign = -1 if sides == 3 and not inside else 1
                for i in range(a, x):
                    d = np.int64(none)
                    if a > 0:
                        d = i - a + 1
                    if x < nx and x - i < d:
                        d = x - i
                    if square and d != none:
                        d = d * d * weight
                        if cap >= 0 and d > cap:
                            d = none
                    out[z, y, i] = sign * d


@njit(cache=True, nogil=True, error_model="numpy")
def sweep(src, out, weight, square_weight, cap, none_out, unit):
    """Lower envelopes along the middle axis of (outer, n, inner) arrays; `out` may be `src`.

    `square_weight` > 0: `src` holds steps along x, not squares. `none_out`: the NONE of `out`. More than `cap` is NONE (`cap` < 0: no cap).
    `unit` > 0: `out` gets signed distances, sqrt(square * unit), infinite where NONE."""
    outer, n, inner = src.shape
    none_in = np.int64(np.iinfo(src.dtype).max)
    none = np.int64(1) << 62
    g = np.empty((TILE, n), np.int64)
    vertex, height, start = np.empty(n + 2, np.int64), np.empty(n + 2, np.int64), np.empty(n + 2, np.int64)
    for o in range(outer):
        for first in range(0, inner, TILE):
            width = min(TILE, inner - first)
            for i in range(n):
                for k in range(width):
                    v = np.int64(src[o, i, first + k])
                    if v == none_in:
                        v = none
                    elif v == -none_in:
                        v = -none
                    elif square_weight > 0:
                        v = v * abs(v) * square_weight
                    g[k, i] = v
            for k in range(width):
                _envelopes(g[k], n, weight, none, vertex, height, start)
            for i in range(n):
                for k in range(width):
                    put(out, o, i, first + k, g[k, i], none, cap, none_out, unit)


@njit(cache=True, nogil=True, inline="always")
def put(out, o, i, k, v, none, cap, none_out, unit):
    size = abs(v)
    if unit > 0:
        if size == none or (cap >= 0 and size > cap):
            out[o, i, k] = math.copysign(math.inf, v)
        else:
            out[o, i, k] = math.copysign(math.sqrt(size * unit), v)
    else:
        if size == none or (cap >= 0 and size > cap):
            size = np.int64(none_out)
        out[o, i, k] = size if v > 0 else -size


@njit(cache=True, nogil=True, error_model="numpy")
def _envelopes(g, n, w, none, vertex, height, start):
    """One line, in place."""
    i = 0
    while i < n:
        if g[i] == 0:
            i += 1
            continue
        a, positive = i, g[i] > 0
        while i < n and g[i] != 0 and (g[i] > 0) == positive:
            i += 1
        envelope(g, a, i, n, w, none, vertex, height, start)


@njit(cache=True, nogil=True, error_model="numpy")
def envelope(g, a, b, n, w, none, vertex, height, start):
    """The stretch [a, b) of a line, in place: the lower envelope of its own parabolas and of those of height 0 just before and after it."""
    positive = g[a] > 0
    q = -1
    for u in range(a - 1 if a > 0 else a, b + 1 if b < n else b):
        h = abs(g[u]) if a <= u < b else np.int64(0)
        if h == none:
            continue
        while q >= 0 and height[q] + w * (start[q] - vertex[q]) ** 2 > h + w * (start[q] - u) ** 2:
            q -= 1
        if q < 0:
            q = 0
            vertex[0], height[0], start[0] = u, h, a
        else:  # not negative: the older parabola is the lower one at its start
            above = np.uint64(w * (u * u - vertex[q] * vertex[q]) + h - height[q])
            s = np.int64(above // np.uint64(2 * w * (u - vertex[q]))) + 1
            if s < b:
                q += 1
                vertex[q], height[q], start[q] = u, h, s
    end = b
    while q >= 0:
        u, h = vertex[q], height[q]
        for j in range(start[q], end):
            d = h + w * (j - u) ** 2
            g[j] = d if positive else -d
        end = start[q]
        q -= 1
