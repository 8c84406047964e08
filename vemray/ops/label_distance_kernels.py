"""Exact squared distances between labels, in whole numbers, by one pass along each axis; see `distance_kernels` for the units.

Within: distance of each labelled voxel to the nearest voxel that carries another label or none (0 on the background).
Nearest: distance of each voxel to the nearest object, and which it is: of all labels the smallest in the order (distance, label)."""

from __future__ import annotations

import numpy as np
from numba import njit

from vemray.ops.distance_kernels import TILE, envelope, put


@njit(cache=True, nogil=True, error_model="numpy")
def rows_within(labels, out, weight, cap):
    """Within: distance along x in voxels, or `weight` times its square where `weight` > 0. More than `cap` is NONE (`cap` < 0: no cap)."""
    none = np.iinfo(out.dtype).max
    nx = labels.shape[2]
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            x = 0
            while x < nx:
                a, label = x, labels[z, y, x]
                while x < nx and labels[z, y, x] == label:
                    x += 1
                for i in range(a, x):
                    d = np.int64(none)
                    if label == 0:
                        d = 0
                    else:
                        if a > 0:
                            d = i - a + 1
                        if x < nx and x - i < d:
                            d = x - i
                        if weight > 0 and d != none:
                            d = d * d * weight
                            if cap >= 0 and d > cap:
                                d = none
                    out[z, y, i] = d


@njit(cache=True, nogil=True, error_model="numpy")
def sweep_within(labels, src, out, weight, square_weight, cap, none_out, unit):
    """Within: lower envelopes along the middle axis of (outer, n, inner) arrays, for each stretch of one label; parameters as of
    `distance_kernels.sweep`."""
    outer, n, inner = src.shape
    none_in = np.int64(np.iinfo(src.dtype).max)
    none = np.int64(1) << 62
    g = np.empty((TILE, n), np.int64)
    part = np.empty((TILE, n), labels.dtype)
    vertex, height, start = np.empty(n + 2, np.int64), np.empty(n + 2, np.int64), np.empty(n + 2, np.int64)
    for o in range(outer):
        for first in range(0, inner, TILE):
            width = min(TILE, inner - first)
            for i in range(n):
                for k in range(width):
                    v = np.int64(src[o, i, first + k])
                    if v == none_in:
                        v = none
                    elif square_weight > 0:
                        v = v * v * square_weight
                    g[k, i] = v
                    part[k, i] = labels[o, i, first + k]
            for k in range(width):
                i = 0
                while i < n:
                    a = i
                    while i < n and part[k, i] == part[k, a]:
                        i += 1
                    if part[k, a] != 0:
                        envelope(g[k], a, i, n, weight, none, vertex, height, start)
            for i in range(n):
                for k in range(width):
                    put(out, o, i, first + k, g[k, i], none, cap, none_out, unit)


@njit(cache=True, nogil=True, error_model="numpy")
def rows_nearest(codes, squares, weight, cap):
    """Nearest: the pass along x. `codes` (0: no object) become those of the nearest, 0 where farther than `cap`; `squares` are filled."""
    none = np.iinfo(squares.dtype).max
    nx = codes.shape[2]
    before = np.empty(nx, np.int64)
    for z in range(codes.shape[0]):
        for y in range(codes.shape[1]):
            last = -1
            for x in range(nx):
                if codes[z, y, x] != 0:
                    last = x
                before[x] = last
            if last < 0:
                squares[z, y] = none
                continue
            after, after_code = -1, codes[z, y, 0]
            for x in range(nx - 1, -1, -1):
                if before[x] == x:
                    after, after_code = x, codes[z, y, x]
                    squares[z, y, x] = 0
                    continue
                u = before[x]  # its code is still as it was: places are taken from the right
                steps, code = np.int64(-1), after_code
                if after >= 0:
                    steps = after - x
                if u >= 0 and (steps < 0 or x - u < steps or (x - u == steps and codes[z, y, u] < code)):
                    steps, code = x - u, codes[z, y, u]
                d = steps * steps * weight
                if steps < 0 or d > cap:
                    codes[z, y, x], squares[z, y, x] = 0, none
                else:
                    codes[z, y, x], squares[z, y, x] = code, d


@njit(cache=True, nogil=True, error_model="numpy")
def sweep_nearest(codes, squares, weight, cap):
    """Nearest: along the middle axis of (outer, n, inner) arrays, in place. Parabolas are ordered by (height, code): at a whole place
    where two meet the smaller code is the lower one."""
    outer, n, inner = codes.shape
    none = np.int64(np.iinfo(squares.dtype).max)
    g, c = np.empty((TILE, n), np.int64), np.empty((TILE, n), np.uint32)
    vertex, start = np.empty(n, np.int64), np.empty(n, np.int64)
    for o in range(outer):
        for first in range(0, inner, TILE):
            width = min(TILE, inner - first)
            some = False
            for i in range(n):
                for k in range(width):
                    g[k, i], c[k, i] = squares[o, i, first + k], codes[o, i, first + k]
                    some |= c[k, i] != 0
            if not some:
                continue
            for k in range(width):
                q = _lowest(g[k], c[k], n, weight, none, vertex, start)
                end = n
                while q >= 0:
                    u = vertex[q]
                    h, code = g[k, u], c[k, u]
                    for j in range(start[q], end):
                        d = h + weight * (j - u) ** 2
                        if d > cap:
                            squares[o, j, first + k], codes[o, j, first + k] = none, 0
                        else:
                            squares[o, j, first + k], codes[o, j, first + k] = d, code
                    end = start[q]
                    q -= 1


@njit(cache=True, nogil=True, error_model="numpy")
def _lowest(g, c, n, w, none, vertex, start):
    """Fills which parabola is the lowest from where; returns the number of the last one."""
    q = -1
    for u in range(n):
        h, code = g[u], c[u]
        if h == none:
            continue
        while q >= 0:
            old, new = g[vertex[q]] + w * (start[q] - vertex[q]) ** 2, h + w * (start[q] - u) ** 2
            if new > old or (new == old and code >= c[vertex[q]]):
                break
            q -= 1
        if q < 0:
            q, vertex[0], start[0] = 0, u, 0
            continue
        v = vertex[q]
        above, step = np.uint64(w * (u * u - v * v) + h - g[v]), np.uint64(2 * w * (u - v))  # not negative: the older one is lower at its start
        s = np.int64(above // step)
        if above % step != 0 or code >= c[v]:
            s += 1
        if s < n:
            q += 1
            vertex[q], start[q] = u, s
    return q
