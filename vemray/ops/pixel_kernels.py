"""Inner loops of the pixel features. Every voxel's terms are computed and added in one fixed order, so that no bit depends on the block."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")  # numpy: a division that cannot raise can be vectorised
def eigenvalues(zz, yy, xx, zy, zx, yx, high, middle, low):
    """Eigenvalues of symmetric 3x3 matrices, one an element of these float32 rows, in descending order.

    The scaled characteristic polynomial is 4 c^3 - 3 c = r with r = cos(3 t) (Smith 1961). Its root of largest magnitude is simple and lies between
    cos(30 deg) and 1 in magnitude, so four steps of Newton reach it from a straight line, in float64 and without a cosine; the other two follow from it."""
    for i in range(len(high)):
        a, b, c = np.float64(zz[i]), np.float64(yy[i]), np.float64(xx[i])
        d, e, f = np.float64(zy[i]), np.float64(zx[i]), np.float64(yx[i])
        q = (a + b + c) / 3.0
        a -= q
        b -= q
        c -= q
        off = d * d + e * e + f * f
        p = np.sqrt((a * a + b * b + c * c + 2.0 * off) / 6.0) + 1e-60
        det = a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)
        r = det / (2.0 * p * p * p)
        sign = 1.0 if r >= 0.0 else -1.0
        r = min(abs(r), 1.0)
        t = 0.8660254037844386 + 0.1339745962155614 * r
        for _ in range(4):
            t -= ((4.0 * t * t - 3.0) * t - r) / (12.0 * t * t - 3.0)
        root = np.sqrt(max(3.0 * (1.0 - t * t), 0.0))
        far, one, two = 2.0 * t, root - t, -root - t  # for r >= 0: descending
        high[i] = q + p * (far if sign > 0.0 else -two)
        middle[i] = q + p * sign * one
        low[i] = q + p * (two if sign > 0.0 else -far)


@njit(cache=True, nogil=True)
def derived(smooth, slots, y0, x0, ny, nx, per_nm, gradient, laplacian, hessian):
    """Features of one scale made of differences of the smoothed image. `smooth` (ring, y, x) holds planes at `slots`, of which the first is the one
    before the first output plane; the first output voxel lies at row `y0`, column `x0` of it. Outputs (z, ny, nx), or empty where not wanted: gradient
    magnitude, Laplacian, and (3, z, ny, nx) eigenvalues of the Hessian."""
    nz = len(slots) - 2
    iz, iy, ix = per_nm
    hz, hy, hx = np.float32(0.5) * iz, np.float32(0.5) * iy, np.float32(0.5) * ix
    zz, yy, xx = np.empty(nx, np.float32), np.empty(nx, np.float32), np.empty(nx, np.float32)
    zy, zx, yx = np.empty(nx, np.float32), np.empty(nx, np.float32), np.empty(nx, np.float32)
    two = np.float32(2)
    cross_zy, cross_zx, cross_yx = hz * hy, hz * hx, hy * hx
    for z in range(nz):
        below, here, above = smooth[slots[z]], smooth[slots[z + 1]], smooth[slots[z + 2]]
        for y in range(ny):
            v = y + y0
            c, cl, cr = here[v, x0 : x0 + nx], here[v, x0 - 1 : x0 - 1 + nx], here[v, x0 + 1 : x0 + 1 + nx]
            up, down = here[v - 1, x0 : x0 + nx], here[v + 1, x0 : x0 + nx]
            front, back = below[v, x0 : x0 + nx], above[v, x0 : x0 + nx]
            if gradient.size:
                g = gradient[z, y]
                for x in range(nx):
                    gz, gy, gx = (back[x] - front[x]) * hz, (down[x] - up[x]) * hy, (cr[x] - cl[x]) * hx
                    g[x] = np.sqrt(gz * gz + gy * gy + gx * gx)
            if laplacian.size or hessian.size:
                for x in range(nx):
                    twice = two * c[x]
                    zz[x] = ((back[x] + front[x]) - twice) * (iz * iz)
                    yy[x] = ((down[x] + up[x]) - twice) * (iy * iy)
                    xx[x] = ((cr[x] + cl[x]) - twice) * (ix * ix)
            if laplacian.size:
                g = laplacian[z, y]
                for x in range(nx):
                    g[x] = zz[x] + yy[x] + xx[x]
            if hessian.size:
                upl, upr = here[v - 1, x0 - 1 : x0 - 1 + nx], here[v - 1, x0 + 1 : x0 + 1 + nx]
                downl, downr = here[v + 1, x0 - 1 : x0 - 1 + nx], here[v + 1, x0 + 1 : x0 + 1 + nx]
                fl, fr = below[v, x0 - 1 : x0 - 1 + nx], below[v, x0 + 1 : x0 + 1 + nx]
                bl, br = above[v, x0 - 1 : x0 - 1 + nx], above[v, x0 + 1 : x0 + 1 + nx]
                fu, fd = below[v - 1, x0 : x0 + nx], below[v + 1, x0 : x0 + nx]
                bu, bd = above[v - 1, x0 : x0 + nx], above[v + 1, x0 : x0 + nx]
                for x in range(nx):
                    yx[x] = ((downr[x] - downl[x]) - (upr[x] - upl[x])) * cross_yx
                    zx[x] = ((br[x] - bl[x]) - (fr[x] - fl[x])) * cross_zx
                    zy[x] = ((bd[x] - bu[x]) - (fd[x] - fu[x])) * cross_zy
                eigenvalues(zz, yy, xx, zy, zx, yx, hessian[0, z, y], hessian[1, z, y], hessian[2, z, y])


@njit(cache=True, nogil=True)
def tensor_along_z(smooth, slots, per_nm, weights, iz, rows, out):
    """Products of the gradient's components, smoothed along z: `out` (6, z, y, x), in the order zz, yy, xx, zy, zx, yx.

    `smooth` (ring, y + 2, x + 2) holds planes at `slots`: those of the products and one more at each end; `iz`: which of the products' planes the output
    planes, and a kernel's radius more at each end, take. `rows` (planes, 6, x) is working space."""
    ny, nx = out.shape[2], out.shape[3]
    r = len(weights) - 1
    hz, hy, hx = np.float32(0.5) * per_nm[0], np.float32(0.5) * per_nm[1], np.float32(0.5) * per_nm[2]
    for y in range(ny):
        for p in range(len(slots) - 2):
            front, back = smooth[slots[p], y + 1, 1 : nx + 1], smooth[slots[p + 2], y + 1, 1 : nx + 1]
            here = smooth[slots[p + 1]]
            up, down = here[y, 1 : nx + 1], here[y + 2, 1 : nx + 1]
            left, right = here[y + 1, 0:nx], here[y + 1, 2 : nx + 2]
            zz, yy, xx, zy, zx, yx = rows[p, 0], rows[p, 1], rows[p, 2], rows[p, 3], rows[p, 4], rows[p, 5]
            for x in range(nx):
                gz, gy, gx = (back[x] - front[x]) * hz, (down[x] - up[x]) * hy, (right[x] - left[x]) * hx
                zz[x] = gz * gz
                yy[x] = gy * gy
                xx[x] = gx * gx
                zy[x] = gz * gy
                zx[x] = gz * gx
                yx[x] = gy * gx
        for z in range(out.shape[1]):
            for c in range(6):
                acc = out[c, z, y]
                here = rows[iz[z + r], c]
                w = weights[0]
                for x in range(nx):
                    acc[x] = w * here[x]
                for k in range(1, r + 1):
                    w = weights[k]
                    a = rows[iz[z + r - k], c]
                    b = rows[iz[z + r + k], c]
                    for x in range(nx):
                        acc[x] += w * (a[x] + b[x])


@njit(cache=True, nogil=True)
def tensor_eigenvalues(tensor, out, z):
    """`tensor` (6, y, x) to plane `z` of `out` (3, z, y, x)."""
    for y in range(out.shape[2]):
        eigenvalues(
            tensor[0, y], tensor[1, y], tensor[2, y], tensor[3, y], tensor[4, y], tensor[5, y], out[0, z, y], out[1, z, y], out[2, z, y]
        )  # fmt: skip
