"""One pass over a block's labels, run by run along x: background costs a comparison, an object's run costs its moments once."""

from __future__ import annotations

import numpy as np
from numba import njit

from vemray.ops.surface import DIRECTION_OF

# columns of the accumulator, int64, coordinates relative to the block
N, S, SS, LO, HI, FIRST, SAME, OUT, ISUM, ISQ_LO, ISQ_HI, IMIN, IMAX, WIDTH = 0, 1, 4, 10, 13, 16, 17, 30, 43, 44, 45, 46, 47, 48
#: fixed point of float images: values are rounded to 1 / 65536
FIXED = 65536.0
LIMIT = 1 << 31

_DIR = DIRECTION_OF


@njit(cache=True, nogil=True)
def _slot(keys, ids, key):
    """Place of `key` in the open hash table, or of the free place where it goes."""
    mask = np.uint64(len(keys) - 1)
    h = key * np.uint64(0x9E3779B97F4A7C15)
    i = (h ^ (h >> np.uint64(29))) & mask
    while ids[i] >= 0 and keys[i] != key:
        i = (i + np.uint64(1)) & mask
    return i


@njit(cache=True, nogil=True)
def _grown(keys, ids):
    more, its = np.zeros(2 * len(keys), np.uint64), np.full(2 * len(ids), -1, np.int64)
    for j in range(len(keys)):
        if ids[j] >= 0:
            i = _slot(more, its, keys[j])
            more[i], its[i] = keys[j], ids[j]
    return more, its


@njit(cache=True, nogil=True)
def _overlap(a0, a1, b0, b1):
    return max(0, min(a1, b1) - max(a0, b0))


@njit(cache=True, nogil=True)
def _pair_rows(acc, sa, ea, ca, na, sb, eb, cb, nb, k_minus, k_zero, k_plus):
    """Count pairs of equal label between two rows of runs: (x, x - 1), (x, x), (x, x + 1)."""
    j0 = 0
    for i in range(na):
        while j0 < nb and eb[j0] < sa[i]:
            j0 += 1
        j = j0
        while j < nb and sb[j] <= ea[i]:
            if cb[j] == ca[i]:
                c = ca[i]
                acc[c, SAME + k_minus] += _overlap(sa[i], ea[i], sb[j] + 1, eb[j] + 1)
                acc[c, SAME + k_zero] += _overlap(sa[i], ea[i], sb[j], eb[j])
                acc[c, SAME + k_plus] += _overlap(sa[i], ea[i], sb[j] - 1, eb[j] - 1)
            j += 1


@njit(cache=True, nogil=True)
def accumulate(labels, image, has_image, is_float, start, shape):
    """Accumulators of every label of a block.

    labels: unsigned (z, y, x); image: of the same shape, or of shape (1, 1, 1) without one; start: the block's corner in the volume of
    `shape`. Returns (keys uint64 (n,), accumulators int64 (n, WIDTH), 1 if an intensity does not fit)."""
    nz, ny, nx = labels.shape
    keys, ids = np.zeros(256, np.uint64), np.full(256, -1, np.int64)
    acc = np.zeros((128, WIDTH), np.int64)
    found = np.zeros(128, np.uint64)
    n = 0
    bad = 0
    # runs of two planes: start, end, id of each, row by row
    rs, re, rc = np.zeros((2, ny, nx), np.int32), np.zeros((2, ny, nx), np.int32), np.zeros((2, ny, nx), np.int32)
    rn = np.zeros((2, ny), np.int64)
    last_key, last_id = np.uint64(0), np.int64(-1)
    for z in range(nz + 1):
        here, before = z & 1, (z + 1) & 1
        if z < nz:
            for y in range(ny):
                count = 0
                x = 0
                while x < nx:
                    key = np.uint64(labels[z, y, x])
                    x0 = x
                    x += 1
                    while x < nx and np.uint64(labels[z, y, x]) == key:
                        x += 1
                    if key == 0:
                        continue
                    if key == last_key:
                        c = last_id
                    else:
                        i = _slot(keys, ids, key)
                        c = ids[i]
                        if c < 0:
                            c = n
                            keys[i], ids[i] = key, c
                            n += 1
                            if 2 * n > len(keys):
                                keys, ids = _grown(keys, ids)
                            if n > len(acc):
                                more = np.zeros((2 * len(acc), WIDTH), np.int64)
                                more[: len(acc)] = acc
                                acc = more
                                its = np.zeros(2 * len(found), np.uint64)
                                its[: len(found)] = found
                                found = its
                            found[c] = key
                            acc[c, LO], acc[c, LO + 1], acc[c, LO + 2] = z, y, x0
                            acc[c, HI], acc[c, HI + 1], acc[c, HI + 2] = z, y, x - 1
                            acc[c, FIRST] = ((start[0] + z) * shape[1] + start[1] + y) * shape[2] + start[2] + x0
                            acc[c, IMIN], acc[c, IMAX] = np.int64(1) << 62, -(np.int64(1) << 62)
                        last_key, last_id = key, c
                    rs[here, y, count], re[here, y, count], rc[here, y, count] = x0, x, c
                    count += 1
                    length = x - x0
                    sx = length * (x0 + x - 1) // 2
                    row = acc[c]
                    row[N] += length
                    row[S] += length * z
                    row[S + 1] += length * y
                    row[S + 2] += sx
                    row[SS] += length * z * z
                    row[SS + 1] += length * y * y
                    row[SS + 2] += ((x - 1) * x * (2 * x - 1) - (x0 - 1) * x0 * (2 * x0 - 1)) // 6
                    row[SS + 3] += length * z * y
                    row[SS + 4] += sx * z
                    row[SS + 5] += sx * y
                    row[LO + 1] = min(row[LO + 1], y)
                    row[LO + 2] = min(row[LO + 2], x0)
                    row[HI] = z
                    row[HI + 1] = max(row[HI + 1], y)
                    row[HI + 2] = max(row[HI + 2], x - 1)
                    row[SAME + _DIR[1, 1, 2]] += length - 1
                    if has_image:
                        total, low, high, least, most = np.int64(0), np.int64(0), np.int64(0), row[IMIN], row[IMAX]
                        for i in range(x0, x):
                            if is_float:
                                f = image[z, y, i] * FIXED
                                if not (-LIMIT < f < LIMIT):
                                    bad = 1
                                    f = 0.0
                                v = np.int64(np.rint(f))
                            else:
                                v = np.int64(image[z, y, i])
                                if v >= LIMIT or v <= -LIMIT:
                                    bad = 1
                                    v = 0
                            total += v
                            square = v * v
                            low += square & 0xFFFFFFFF
                            high += square >> 32
                            least = min(least, v)
                            most = max(most, v)
                        row[ISUM] += total
                        row[ISQ_LO] += low
                        row[ISQ_HI] += high
                        row[IMIN], row[IMAX] = least, most
                    gz, gy = start[0] + z, start[1] + y
                    if gz == 0 or gz == shape[0] - 1 or gy == 0 or gy == shape[1] - 1 or start[2] + x0 == 0 or start[2] + x == shape[2]:
                        _count_outside(row, gz, gy, start[2] + x0, start[2] + x, shape)
                rn[here, y] = count
            for y in range(ny - 1):
                _pair_rows(acc, rs[here, y], re[here, y], rc[here, y], rn[here, y], rs[here, y + 1], re[here, y + 1], rc[here, y + 1], rn[here, y + 1], _DIR[1, 2, 0], _DIR[1, 2, 1], _DIR[1, 2, 2])
        if 0 < z < nz:
            for y in range(ny):
                if rn[before, y] == 0:
                    continue
                for dy in range(-1, 2):
                    if 0 <= y + dy < ny and rn[here, y + dy]:
                        _pair_rows(acc, rs[before, y], re[before, y], rc[before, y], rn[before, y], rs[here, y + dy], re[here, y + dy], rc[here, y + dy], rn[here, y + dy], _DIR[2, dy + 1, 0], _DIR[2, dy + 1, 1], _DIR[2, dy + 1, 2])
    return found[:n], acc[:n], bad


@njit(cache=True, nogil=True)
def _count_outside(row, z, y, x0, x1, shape):
    """Pairs of the run [x0, x1) whose other voxel lies outside the volume."""
    for dz in range(-1, 2):
        for dy in range(-1, 2):
            out_zy = z + dz < 0 or z + dz >= shape[0] or y + dy < 0 or y + dy >= shape[1]
            for dx in range(-1, 2):
                k = _DIR[dz + 1, dy + 1, dx + 1]
                if k < 0:
                    continue
                if out_zy:
                    row[OUT + k] += x1 - x0
                elif dx < 0 and x0 == 0 or dx > 0 and x1 == shape[2]:
                    row[OUT + k] += 1


@njit(cache=True, nogil=True)
def same_across(a, b, axis):
    """Pairs of equal label between two planes that face each other along `axis`. Returns (labels uint64 (n,), counts int64 (n, 13))."""
    ny, nx = a.shape
    keys, ids = np.zeros(256, np.uint64), np.full(256, -1, np.int64)
    acc = np.zeros((128, 13), np.int64)
    found = np.zeros(128, np.uint64)
    n = 0
    last_key, last_id = np.uint64(0), np.int64(-1)
    for y in range(ny):
        for x in range(nx):
            key = np.uint64(a[y, x])
            if key == 0:
                continue
            c = np.int64(-1)
            for dy in range(-1, 2):
                if not 0 <= y + dy < ny:
                    continue
                for dx in range(-1, 2):
                    if not 0 <= x + dx < nx or np.uint64(b[y + dy, x + dx]) != key:
                        continue
                    if c < 0:
                        if key == last_key:
                            c = last_id
                        else:
                            i = _slot(keys, ids, key)
                            c = ids[i]
                            if c < 0:
                                c = n
                                keys[i], ids[i] = key, c
                                n += 1
                                if 2 * n > len(keys):
                                    keys, ids = _grown(keys, ids)
                                if n > len(acc):
                                    more = np.zeros((2 * len(acc), 13), np.int64)
                                    more[: len(acc)] = acc
                                    acc = more
                                    its = np.zeros(2 * len(found), np.uint64)
                                    its[: len(found)] = found
                                    found = its
                                found[c] = key
                            last_key, last_id = key, c
                    if axis == 0:
                        acc[c, _DIR[2, dy + 1, dx + 1]] += 1
                    elif axis == 1:
                        acc[c, _DIR[dy + 1, 2, dx + 1]] += 1
                    else:
                        acc[c, _DIR[dy + 1, dx + 1, 2]] += 1
    return found[:n], acc[:n]
