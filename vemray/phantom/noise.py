"""Random numbers, noises and soft edges as functions of a place, for the phantom's kernels.

Numba's cache of `kernels.render` does not see a change here: change kernels.py with it (or delete __pycache__)."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, inline="always")
def mix(h):
    """splitmix64's finaliser."""
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def key(a, b, c, seed):
    return (
        np.uint64(a) * np.uint64(0x9E3779B97F4A7C15)
        + np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F)
        + np.uint64(c) * np.uint64(0x165667B19E3779F9)
        + np.uint64(seed) * np.uint64(0xD6E8FEB86659FD93)
    )


@njit(cache=True, nogil=True, inline="always")
def bits(h, shift, n):
    """n bits of a hash as a number in 0..1."""
    return float((h >> np.uint64(shift)) & np.uint64((1 << n) - 1)) / (1 << n)


@njit(cache=True, nogil=True, inline="always")
def normal(a, b, c, seed):
    """About standard normal: the sum of four 16 bit uniforms of one hash."""
    h = mix(key(a, b, c, seed))
    return (bits(h, 0, 16) + bits(h, 16, 16) + bits(h, 32, 16) + bits(h, 48, 16) - 2.0) * 1.7320508075688772


@njit(cache=True, nogil=True)
def value_noise(z, x, seed):
    """Smooth noise in -1..1 over a plane, with unit lattice."""
    iz, ix = int(np.floor(z)), int(np.floor(x))
    fz, fx = z - iz, x - ix
    fz, fx = fz * fz * (3 - 2 * fz), fx * fx * (3 - 2 * fx)
    total = 0.0
    for dz in range(2):
        for dx in range(2):
            total += (fz if dz else 1 - fz) * (fx if dx else 1 - fx) * bits(mix(key(iz + dz, 0, ix + dx, seed)), 0, 32)
    return 2 * total - 1


@njit(cache=True, nogil=True)
def noise(z, y, x, seed):
    """Three independent smooth noises without direction (simplex), each of mean 0 and standard deviation 1."""
    s = (z + y + x) / 3.0
    fz, fy, fx = np.floor(z + s), np.floor(y + s), np.floor(x + s)
    s = (fz + fy + fx) / 6.0
    z, y, x = z - fz + s, y - fy + s, x - fx + s
    base = key(int(fz), int(fy), int(fx), seed)
    # the order in which the path from the first to the last corner of the simplex takes the axes
    first, last = (0 if z >= y and z >= x else (1 if y >= x else 2)), (2 if x < y and x < z else (1 if y < z else 0))
    a, b, c = 0.0, 0.0, 0.0
    for corner in range(4):
        oz = corner == 3 or (corner == 1 and first == 0) or (corner == 2 and last != 0)
        oy = corner == 3 or (corner == 1 and first == 1) or (corner == 2 and last != 1)
        ox = corner == 3 or (corner == 1 and first == 2) or (corner == 2 and last != 2)
        uz, uy, ux = z - oz + corner / 6.0, y - oy + corner / 6.0, x - ox + corner / 6.0
        t = 0.5 - uz * uz - uy * uy - ux * ux
        if t > 0:
            h = mix(
                base
                + (np.uint64(0x9E3779B97F4A7C15) if oz else np.uint64(0))
                + (np.uint64(0xC2B2AE3D27D4EB4F) if oy else np.uint64(0))
                + (np.uint64(0x165667B19E3779F9) if ox else np.uint64(0))
            )
            t *= t
            t *= t
            m = np.uint64(127)
            a += t * ((float(h & m) - 63.5) * uz + (float((h >> np.uint64(7)) & m) - 63.5) * uy + (float((h >> np.uint64(14)) & m) - 63.5) * ux)
            h >>= np.uint64(21)
            b += t * ((float(h & m) - 63.5) * uz + (float((h >> np.uint64(7)) & m) - 63.5) * uy + (float((h >> np.uint64(14)) & m) - 63.5) * ux)
            h >>= np.uint64(21)
            c += t * ((float(h & m) - 63.5) * uz + (float((h >> np.uint64(7)) & m) - 63.5) * uy + (float((h >> np.uint64(14)) & m) - 63.5) * ux)
    return 4.2 * a, 4.2 * b, 4.2 * c


@njit(cache=True, nogil=True)
def dots(z, y, x, many, seed):
    """Depth (0..1) in soft balls of radius 0.48 strewn over unit cells, three at most in each, `many` (0..1) of them there."""
    iz, iy, ix = int(np.floor(z - 0.5)), int(np.floor(y - 0.5)), int(np.floor(x - 0.5))
    total = 0.0
    for oz in range(2):
        for oy in range(2):
            for ox in range(2):
                h = mix(key(iz + oz, iy + oy, ix + ox, seed))
                for _ in range(3):
                    uz, uy, ux = iz + oz + bits(h, 0, 5) - z, iy + oy + bits(h, 5, 5) - y, ix + ox + bits(h, 10, 5) - x
                    t = 1.0 - (uz * uz + uy * uy + ux * ux) * 4.34
                    if t > 0:
                        total += t * t * min(1.0, max(0.0, (many - bits(h, 15, 6)) * 2.0))
                    h >>= np.uint64(21)
    return total


@njit(cache=True, nogil=True)
def vesicle(z, y, x, many, seed):
    """(distance, kind 0..1) to the surface of a small ball, one at most in each unit cell of a lattice that is turned against the axes."""
    a, b, c = 0.36 * z + 0.48 * y - 0.8 * x, -0.8 * z + 0.6 * y, 0.48 * z + 0.64 * y + 0.6 * x
    fa, fb, fc = np.floor(a), np.floor(b), np.floor(c)
    h = mix(key(int(fa), int(fb), int(fc), seed))
    if bits(h, 0, 10) > many:
        return 1e9, 0.0
    # where few are wanted, the ball shrinks to nothing instead of being cut
    r = 0.14 + 0.18 * bits(h, 10, 10) ** 2 - 0.3 * max(0.0, 1 - 8 * (many - bits(h, 0, 10)))
    free = 0.72 - 2 * max(r, 0.14)
    a, b, c = (
        a - fa - 0.5 - free * (bits(h, 20, 10) - 0.5),
        b - fb - 0.5 - free * (bits(h, 30, 10) - 0.5),
        c - fc - 0.5 - free * (bits(h, 40, 10) - 0.5),
    )
    return np.sqrt(a * a + b * b + c * c) - r, bits(h, 50, 10)


@njit(cache=True, nogil=True, inline="always")
def filled(d, w):
    """Share of a blurred voxel (w: the whole width of the blur) on the inner side of a surface at signed distance d."""
    t = min(1.0, max(0.0, 0.5 - d / w))
    return t * t * (3 - 2 * t)


@njit(cache=True, nogil=True, inline="always")
def sheet(d, t, w):
    """Share of it taken by a sheet of thickness t at distance d."""
    return filled(d - t / 2, w) - filled(d + t / 2, w)


@njit(cache=True, nogil=True, inline="always")
def sine(t):
    """(sin, cos) within 1e-7."""
    n = np.rint(t * 0.3183098861837907)
    r = t - n * 3.141592653589793
    q = r * r
    s = r * (1 + q * (-1 / 6 + q * (1 / 120 + q * (-1 / 5040 + q * (1 / 362880 - q / 39916800)))))
    c = 1 + q * (-1 / 2 + q * (1 / 24 + q * (-1 / 720 + q * (1 / 40320 - q / 3628800))))
    sign = 1.0 - 2.0 * (int(n) & 1)
    return sign * s, sign * c
