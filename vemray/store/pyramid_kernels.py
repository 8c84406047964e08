"""Numba kernels of `pyramid.reduce`: one window of fz x fy x fx (1 or 2 each) input voxels per output voxel."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def mean_int(a, out, fz, fy, fx):
    """Mean of the existing voxels, rounded half up; quotient and remainder are summed apart so that 64-bit sums cannot overflow."""
    nz, ny, nx = a.shape
    wide = a.itemsize == 8
    for z in range(out.shape[0]):
        z0, z1 = z * fz, min(z * fz + fz, nz)
        for y in range(out.shape[1]):
            y0, y1 = y * fy, min(y * fy + fy, ny)
            rows = (z1 - z0) * (y1 - y0)
            for x in range(out.shape[2]):
                x0, x1 = x * fx, min(x * fx + fx, nx)
                n = rows * (x1 - x0)
                if wide:
                    k = out.dtype.type(n)
                    q, r = out.dtype.type(0), 0
                    for i in range(z0, z1):
                        for j in range(y0, y1):
                            for m in range(x0, x1):
                                d = a[i, j, m] // k
                                q += d
                                r += np.int64(a[i, j, m] - d * k)
                    out[z, y, x] = q + out.dtype.type((2 * r + n) // (2 * n))
                else:
                    s = 0
                    for i in range(z0, z1):
                        for j in range(y0, y1):
                            for m in range(x0, x1):
                                s += np.int64(a[i, j, m])
                    out[z, y, x] = (2 * s + n) // (2 * n)


@njit(nogil=True, cache=True)
def mean_float(a, out, fz, fy, fx):
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
def mode(a, out, fz, fy, fx):
    """Most frequent value; ties: not 0 before 0, then the smaller."""
    nz, ny, nx = a.shape
    w = np.empty(8, a.dtype)
    for z in range(out.shape[0]):
        z0, z1 = z * fz, min(z * fz + fz, nz)
        for y in range(out.shape[1]):
            y0, y1 = y * fy, min(y * fy + fy, ny)
            for x in range(out.shape[2]):
                x0, x1 = x * fx, min(x * fx + fx, nx)
                first = a[z0, y0, x0]
                n = 0
                same = True
                for i in range(z0, z1):
                    for j in range(y0, y1):
                        for m in range(x0, x1):
                            v = a[i, j, m]
                            w[n] = v
                            n += 1
                            same &= v == first
                if same:
                    out[z, y, x] = first
                    continue
                best, votes = first, 0
                for p in range(n):
                    v = w[p]
                    c = 0
                    for q in range(n):
                        c += w[q] == v
                    if c > votes or (c == votes and v != best and v != 0 and (best == 0 or v < best)):
                        best, votes = v, c
                out[z, y, x] = best
