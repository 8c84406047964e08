"""Numba kernels of `pyramid.reduce`: one window of fz x fy x fx (1 or 2 each) input voxels per output voxel.

They go row by row: the rows of a window are combined first (a loop over contiguous voxels that vectorises), then pairs along x."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def mean_narrow(a, out, fz, fy, fx, row):
    """Mean of the existing voxels, rounded half up, of integers up to 32 bits. `row`: scratch of int32 (8, 16 bits) or int64, as long as x."""
    nz, ny, nx = a.shape
    for z in range(out.shape[0]):
        z0, z1 = z * fz, min(z * fz + fz, nz)
        for y in range(out.shape[1]):
            y0, y1 = y * fy, min(y * fy + fy, ny)
            rows = (z1 - z0) * (y1 - y0)
            first = a[z0, y0]
            for x in range(nx):
                row[x] = first[x]
            for r in range(1, rows):
                other = a[z0 + r // (y1 - y0), y0 + r % (y1 - y0)]
                for x in range(nx):
                    row[x] += other[x]
            target = out[z, y]
            n = rows * fx
            shift = 0
            while (1 << shift) < 2 * n:
                shift += 1
            if fx == 2:  # windows have 1, 2, 4 or 8 voxels: a shift divides, rounding down also below zero
                for x in range(nx // 2):
                    target[x] = (2 * (row[2 * x] + row[2 * x + 1]) + n) >> shift
                if nx % 2:
                    target[nx // 2] = (2 * row[nx - 1] + rows) >> (shift - 1)
            else:
                for x in range(nx):
                    target[x] = (2 * row[x] + n) >> shift


@njit(nogil=True, cache=True)
def mean_wide(a, out, fz, fy, fx):
    """The same for 64-bit integers: quotients and remainders are summed apart, so that nothing overflows."""
    nz, ny, nx = a.shape
    for z in range(out.shape[0]):
        z0, z1 = z * fz, min(z * fz + fz, nz)
        for y in range(out.shape[1]):
            y0, y1 = y * fy, min(y * fy + fy, ny)
            for x in range(out.shape[2]):
                x0, x1 = x * fx, min(x * fx + fx, nx)
                n = (z1 - z0) * (y1 - y0) * (x1 - x0)
                k = out.dtype.type(n)
                q, r = out.dtype.type(0), 0
                for i in range(z0, z1):
                    for j in range(y0, y1):
                        for m in range(x0, x1):
                            d = a[i, j, m] // k
                            q += d
                            r += np.int64(a[i, j, m] - d * k)
                out[z, y, x] = q + out.dtype.type((2 * r + n) // (2 * n))


@njit(nogil=True, cache=True)
def mean_float(a, out, fz, fy, fx):
    """Mean of the existing voxels, summed in float64 in raster order."""
    nz, ny, nx = a.shape
    for z in range(out.shape[0]):
        z0, z1 = z * fz, min(z * fz + fz, nz)
        for y in range(out.shape[1]):
            y0, y1 = y * fy, min(y * fy + fy, ny)
            for x in range(out.shape[2]):
                x0, x1 = x * fx, min(x * fx + fx, nx)
                s = 0.0
                for i in range(z0, z1):
                    for j in range(y0, y1):
                        for m in range(x0, x1):
                            s += a[i, j, m]
                out[z, y, x] = s / ((z1 - z0) * (y1 - y0) * (x1 - x0))


@njit(nogil=True, cache=True)
def mode(a, out, fz, fy, fx, differ):
    """Most frequent value of the existing voxels; ties: not 0 before 0, then the smaller. `differ`: scratch as `a`'s type, as long as x."""
    nz, ny, nx = a.shape
    w = np.empty(8, a.dtype)
    for z in range(out.shape[0]):
        z0, z1 = z * fz, min(z * fz + fz, nz)
        for y in range(out.shape[1]):
            y0, y1 = y * fy, min(y * fy + fy, ny)
            first = a[z0, y0]
            for x in range(nx):
                differ[x] = 0
            for i in range(z0, z1):
                for j in range(y0, y1):
                    other = a[i, j]
                    for x in range(nx):
                        differ[x] |= other[x] ^ first[x]
            if fx == 2:
                for x in range(nx // 2):
                    differ[2 * x] |= differ[2 * x + 1] | (first[2 * x] ^ first[2 * x + 1])
            target = out[z, y]
            for x in range(out.shape[2]):
                x0, x1 = x * fx, min(x * fx + fx, nx)
                if differ[x0] == 0:
                    target[x] = first[x0]
                    continue
                n = 0
                for i in range(z0, z1):
                    for j in range(y0, y1):
                        for m in range(x0, x1):
                            w[n] = a[i, j, m]
                            n += 1
                best, votes = w[0], 0
                for p in range(n):
                    v = w[p]
                    c = 0
                    for q in range(n):
                        c += w[q] == v
                    if c > votes or (c == votes and v != best and v != 0 and (best == 0 or v < best)):
                        best, votes = v, c
                        if 2 * c > n:
                            break
                target[x] = best
