"""One pass over a block's labels, plane by plane, in runs of equal label along x: background costs a comparison, a run of an object
costs its moments and its overlaps with the runs of its neighbouring rows once, whatever its length.

Only the kernels that read voxels depend on their type; the others see runs."""

from __future__ import annotations

import numpy as np
from numba import njit

from vemray.ops.surface import DIRECTION_OF

# int64 columns of the accumulators, coordinates relative to the block. LESS: of the 2 N pairs that the voxels of a label make in each
# direction, those that have not just one voxel in it: 2 for a pair within the label, 1 for one that reaches outside the volume.
N, FIRST, LO, HI, LESS, EULER, NARROW = 0, 1, 2, 5, 8, 21, 22
S, SS, ISUM_HI, ISUM_LO, ISQ_HI, ISQ_LO, WIDE = 0, 3, 9, 10, 11, 12, 13
#: fixed point of float images: steps of 2^-20, below 2^20
FIXED = 2.0**20
_LIMIT = 2.0**40
#: wide sums are high * 2^48 + low
BITS = 48
_MASK = (1 << BITS) - 1
_CHUNK = 4096  # voxels whose squares add up within 64 bits in every limb

_DIR = DIRECTION_OF


class Plane:
    """Runs of one plane of labels: `start`, `end` (exclusive), `id` of each, those of row y from rows[y] to rows[y + 1]; and where runs of
    rows y and y + 1 with the same id overlap, likewise."""

    def __init__(self, ny: int, nx: int):
        self.rows, self.over_rows = np.zeros(ny + 1, np.int64), np.zeros(ny + 1, np.int64)
        self._room(ny * nx // 16 + 2 * nx)

    def _room(self, runs: int) -> None:
        self.start, self.end, self.id = (np.empty(runs, np.int32) for _ in range(3))
        self.key = np.empty(runs, np.uint64)
        self.over = np.empty((2 * runs if len(self.rows) > 2 else 0, 3), np.int32)  # two rows of a and b runs overlap in less than a + b places

    def read(self, labels: np.ndarray) -> int:
        """Runs of a plane; their number."""
        n = _runs(labels, self.start, self.end, self.key, self.rows)
        if n > len(self.key):
            self._room(n * 5 // 4)
            _runs(labels, self.start, self.end, self.key, self.rows)
        return n


class Found:
    """Labels met so far, numbered 0.. in the order they were met, with their accumulators."""

    def __init__(self):
        self.n = 0
        self.keys = np.zeros(64, np.uint64)
        self.narrow, self.wide = np.zeros((64, NARROW), np.int64), np.zeros((64, WIDE), np.int64)
        self.extremes = np.zeros((64, 2))
        self.slots = np.zeros(256, np.uint64), np.full(256, -1, np.int64)

    def number(self, plane: Plane, runs: int) -> None:
        """Ids of the plane's runs."""
        most = self.n + runs
        if 2 * most > len(self.slots[0]):
            size = 1 << (2 * most).bit_length()
            self.slots = _rehashed(self.keys, self.n, np.zeros(size, np.uint64), np.full(size, -1, np.int64))
        _lengthen(self.keys, most)
        self.n = _number(plane.key, runs, plane.id, *self.slots, self.keys, self.n)
        for a in (self.narrow, self.wide, self.extremes):
            _lengthen(a, self.n)


def _lengthen(a: np.ndarray, least: int) -> None:
    """In place, without a second copy: nothing else looks at these arrays."""
    if least > len(a):
        a.resize((max(least, len(a) * 5 // 4), *a.shape[1:]), refcheck=False)


def accumulate(labels: np.ndarray, image: np.ndarray | None, start, shape, surface: bool = True):
    """Sums of every label of a block whose corner is `start` in a volume of `shape`.

    labels: unsigned (z, y, x); image: of the same shape. Returns (labels uint64 (n,), sums int64 (n, NARROW) and (n, WIDE), least and largest
    intensity float64 (n, 2), and whether an intensity did not fit). Without `surface` the columns LESS and EULER stay 0."""
    nz, ny, nx = labels.shape
    start, shape = np.array(start, np.int64), np.array(shape, np.int64)
    here, before = Plane(ny, nx), Plane(ny, nx)
    found, bad, before_runs = Found(), False, 0
    for z in range(nz):
        runs = here.read(labels[z])
        if runs:
            known = found.n
            found.number(here, runs)
            _moments(found.narrow, found.wide, known, found.n, here.start, here.end, here.id, here.rows, z, start, shape, surface)
            if image is not None:
                bad |= _intensity(
                    found.wide, found.extremes, known, found.n, image[z], here.start, here.end, here.id, here.rows, image.dtype.kind == "f"
                )
            if surface:
                _within(found.narrow, here.start, here.end, here.id, here.rows, here.over, here.over_rows)
                if before_runs:
                    _between(
                        found.narrow,
                        *(before.start, before.end, before.id, before.rows, before.over, before.over_rows),
                        *(here.start, here.end, here.id, here.rows, here.over, here.over_rows),
                    )
        here, before, before_runs = before, here, runs
    return *(a[: found.n] for a in (found.keys, found.narrow, found.wide, found.extremes)), bad


@njit(cache=True, nogil=True)
def _runs(plane, start, end, key, rows):
    """Returns the number of runs; those beyond the arrays' length are counted only."""
    ny, nx = plane.shape
    n = 0
    for y in range(ny):
        rows[y] = n
        x = 0
        while x < nx:
            v = plane[y, x]
            x0 = x
            x += 1
            while x < nx and plane[y, x] == v:
                x += 1
            if v != 0:
                if n < key.size:
                    start[n], end[n], key[n] = x0, x, v
                n += 1
    rows[ny] = n
    return n


@njit(cache=True, nogil=True)
def slot(keys, ids, key):
    """Place of `key` in the open hash table, or of the free place where it goes."""
    mask = np.uint64(len(keys) - 1)
    h = key * np.uint64(0x9E3779B97F4A7C15)
    i = (h ^ (h >> np.uint64(29))) & mask
    while ids[i] >= 0 and keys[i] != key:
        i = (i + np.uint64(1)) & mask
    return i


@njit(cache=True, nogil=True)
def _rehashed(found, n, keys, ids):
    for j in range(n):
        i = slot(keys, ids, found[j])
        keys[i], ids[i] = found[j], j
    return keys, ids


@njit(cache=True, nogil=True)
def _number(run_keys, runs, run_ids, keys, ids, found, n):
    last_key, last = np.uint64(0), np.int64(-1)
    for r in range(runs):
        key = run_keys[r]
        if key != last_key:
            i = slot(keys, ids, key)
            if ids[i] < 0:
                keys[i], ids[i], found[n] = key, n, key
                n += 1
            last_key, last = key, ids[i]
        run_ids[r] = last
    return n


@njit(cache=True, nogil=True)
def _moments(acc, wide, known, n, start, end, ids, rows, z, origin, shape, surface):
    """Counts, sums of coordinates and their products, box and first voxel; labels known..n-1 are met in this plane first."""
    big = np.int64(1) << 40
    for c in range(known, n):
        acc[c, LO], acc[c, LO + 1], acc[c, LO + 2] = z, big, big
        acc[c, FIRST] = -1
    for y in range(len(rows) - 1):
        gz, gy = origin[0] + z, origin[1] + y
        edge = gz == 0 or gz == shape[0] - 1 or gy == 0 or gy == shape[1] - 1
        for r in range(rows[y], rows[y + 1]):
            x0, x1 = np.int64(start[r]), np.int64(end[r])
            row, sums = acc[ids[r]], wide[ids[r]]
            length = x1 - x0
            sx = length * (x0 + x1 - 1) // 2
            row[N] += length
            sums[S] += length * z
            sums[S + 1] += length * y
            sums[S + 2] += sx
            sums[SS] += length * z * z
            sums[SS + 1] += length * y * y
            sums[SS + 2] += ((x1 - 1) * x1 * (2 * x1 - 1) - (x0 - 1) * x0 * (2 * x0 - 1)) // 6
            sums[SS + 3] += length * z * y
            sums[SS + 4] += sx * z
            sums[SS + 5] += sx * y
            row[LO + 1] = min(row[LO + 1], y)
            row[LO + 2] = min(row[LO + 2], x0)
            row[HI] = z
            row[HI + 1] = max(row[HI + 1], y)
            row[HI + 2] = max(row[HI + 2], x1 - 1)
            if row[FIRST] < 0:
                row[FIRST] = (gz * shape[1] + gy) * shape[2] + origin[2] + x0
            if surface:
                row[LESS + _DIR[1, 1, 2]] += 2 * (length - 1)
                row[EULER] += 1
                if edge or origin[2] + x0 == 0 or origin[2] + x1 == shape[2]:
                    _outside(row, gz, gy, origin[2] + x0, origin[2] + x1, shape)


@njit(cache=True, nogil=True)
def _outside(row, z, y, x0, x1, shape):
    """Pairs of the run [x0, x1) whose other voxel lies outside the volume."""
    for dz in range(-1, 2):
        for dy in range(-1, 2):
            out_zy = z + dz < 0 or z + dz >= shape[0] or y + dy < 0 or y + dy >= shape[1]
            for dx in range(-1, 2):
                k = _DIR[dz + 1, dy + 1, dx + 1]
                if k < 0:
                    continue
                if out_zy:
                    row[LESS + k] += x1 - x0
                elif (dx < 0 and x0 == 0) or (dx > 0 and x1 == shape[2]):
                    row[LESS + k] += 1


@njit(cache=True, nogil=True)
def _intensity(acc, extremes, known, n, image, start, end, ids, rows, is_float):
    """Sums of the intensity and its square. Returns whether a value did not fit, or was not finite."""
    bad = False
    for c in range(known, n):
        extremes[c, 0], extremes[c, 1] = np.inf, -np.inf
    narrow = not is_float and image.itemsize <= 2
    for y in range(len(rows) - 1):
        for r in range(rows[y], rows[y + 1]):
            c = ids[r]
            row = acc[c]
            least, most = image[y, start[r]], image[y, start[r]]
            for first in range(start[r], end[r], _CHUNK):
                last = min(first + _CHUNK, end[r])
                total, hh, hl, ll = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
                for x in range(first, last):
                    g = image[y, x]
                    least, most = min(least, g), max(most, g)
                    if narrow:
                        v = np.int64(g)
                        total += v
                        ll += v * v
                    else:
                        if is_float:
                            f = np.rint(np.float64(g) * FIXED)
                            if not (-_LIMIT < f < _LIMIT):
                                bad = True
                                f = 0.0
                            v = np.int64(f)
                        else:
                            v = np.int64(g)
                        high, low = v >> 24, v & 0xFFFFFF
                        total += v
                        hh += high * high
                        hl += high * low
                        ll += low * low
                # v^2 = hh 2^48 + hl 2^25 + ll
                row[ISQ_HI] += hh + (hl >> 23) + (ll >> BITS)
                low = row[ISQ_LO] + ((hl & 0x7FFFFF) << 25) + (ll & _MASK)
                row[ISQ_HI] += low >> BITS
                row[ISQ_LO] = low & _MASK
                low = row[ISUM_LO] + (total & _MASK)
                row[ISUM_HI] += (total >> BITS) + (low >> BITS)
                row[ISUM_LO] = low & _MASK
            extremes[c, 0] = min(extremes[c, 0], np.float64(least))
            extremes[c, 1] = max(extremes[c, 1], np.float64(most))
    return bad


@njit(cache=True, nogil=True)
def _overlap(a0, a1, b0, b1):
    return max(0, min(a1, b1) - max(a0, b0))


@njit(cache=True, nogil=True)
def _pair_rows(acc, sa, ea, ca, a, a1, sb, eb, cb, b, b1, k_minus, k_zero, k_plus, over, n):
    """Count pairs of equal label between a row of runs a..a1 and a neighbouring one, b..b1: (x, x - 1), (x, x), (x, x + 1). Where they overlap is
    written into `over` from n on, unless it is empty; returns the new n."""
    for i in range(a, a1):
        while b < b1 and eb[b] < sa[i]:
            b += 1
        j = b
        while j < b1 and sb[j] <= ea[i]:
            if cb[j] == ca[i]:
                c = ca[i]
                x0, x1 = max(sa[i], sb[j]), min(ea[i], eb[j])
                acc[c, LESS + k_minus] += 2 * _overlap(sa[i], ea[i], sb[j] + 1, eb[j] + 1)
                acc[c, LESS + k_plus] += 2 * _overlap(sa[i], ea[i], sb[j] - 1, eb[j] - 1)
                if x1 > x0:
                    acc[c, LESS + k_zero] += 2 * (x1 - x0)
                    if len(over):
                        over[n, 0], over[n, 1], over[n, 2] = x0, x1, c
                        n += 1
            j += 1
    return n


@njit(cache=True, nogil=True)
def _within(acc, start, end, ids, rows, over, over_rows):
    """Pairs between the rows of a plane; every overlap of rows y and y + 1 takes one from the Euler number."""
    n = 0
    ny = len(rows) - 1
    for y in range(ny - 1):
        over_rows[y] = n
        a, b, b1 = rows[y], rows[y + 1], rows[y + 2]
        n = _pair_rows(acc, start, end, ids, a, b, start, end, ids, b, b1, _DIR[1, 2, 0], _DIR[1, 2, 1], _DIR[1, 2, 2], over, n)
        for i in range(over_rows[y], n):
            acc[over[i, 2], EULER] -= 1
    over_rows[ny - 1] = n


@njit(cache=True, nogil=True)
def _between(acc, sa, ea, ca, ra, oa, na, sb, eb, cb, rb, ob, nb):
    """Pairs between two planes; for the Euler number, overlaps of a row with the same row of the next plane, and of four rows."""
    ny = len(ra) - 1
    scratch = np.empty((2 * (len(sa) // ny) + 2, 3), np.int32)
    none = np.empty((0, 3), np.int32)
    for y in range(ny):
        if ra[y] == ra[y + 1]:
            continue
        for dy in range(-1, 2):
            if 0 <= y + dy < ny:
                b, b1 = rb[y + dy], rb[y + dy + 1]
                k0, k1, k2 = _DIR[2, dy + 1, 0], _DIR[2, dy + 1, 1], _DIR[2, dy + 1, 2]
                n = _pair_rows(acc, sa, ea, ca, ra[y], ra[y + 1], sb, eb, cb, b, b1, k0, k1, k2, scratch if dy == 0 else none, 0)
                for i in range(n):
                    acc[scratch[i, 2], EULER] -= 1
        if y + 1 < ny:
            b, b1 = nb[y], nb[y + 1]
            for i in range(na[y], na[y + 1]):
                while b < b1 and ob[b, 1] <= oa[i, 0]:
                    b += 1
                j = b
                while j < b1 and ob[j, 0] < oa[i, 1]:
                    if ob[j, 2] == oa[i, 2]:
                        acc[oa[i, 2], EULER] += 1
                    j += 1


@njit(cache=True, nogil=True)
def across(a, b, axis):
    """What two uint64 planes that face each other along `axis` add: for each label the pairs of voxels of that label in the 13
    directions, and the change of its Euler number. Returns (labels uint64 (n,), int64 (n, 14))."""
    ny, nx = a.shape
    keys, ids = np.zeros(256, np.uint64), np.full(256, -1, np.int64)
    found, acc = np.zeros(128, np.uint64), np.zeros((128, 14), np.int64)
    n = 0
    last_key, c = np.uint64(0), np.int64(-1)
    for y in range(ny):
        for x in range(nx):
            key = a[y, x]
            if key == 0:
                continue
            met = 0
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if 0 <= y + dy < ny and 0 <= x + dx < nx and b[y + dy, x + dx] == key:
                        met |= 1 << (3 * dy + dx + 4)
            if met == 0:
                continue
            if key != last_key:
                if 2 * (n + 1) > len(keys):
                    size = 2 * len(keys)
                    keys, ids = _rehashed(found, n, np.zeros(size, np.uint64), np.full(size, -1, np.int64))
                    more, its = np.zeros((size, 14), np.int64), np.zeros(size, np.uint64)
                    more[:n], its[:n] = acc[:n], found[:n]
                    acc, found = more, its
                i = slot(keys, ids, key)
                if ids[i] < 0:
                    keys[i], ids[i], found[n] = key, n, key
                    n += 1
                last_key, c = key, ids[i]
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if met >> (3 * dy + dx + 4) & 1:
                        if axis == 0:
                            acc[c, _DIR[2, dy + 1, dx + 1]] += 1
                        elif axis == 1:
                            acc[c, _DIR[dy + 1, 2, dx + 1]] += 1
                        else:
                            acc[c, _DIR[dy + 1, dx + 1, 2]] += 1
            if met >> 4 & 1:  # voxels - pairs + squares - cubes
                right = x + 1 < nx and a[y, x + 1] == key and (met >> 5 & 1) == 1
                down = y + 1 < ny and a[y + 1, x] == key and (met >> 7 & 1) == 1
                cube = right and down and a[y + 1, x + 1] == key and (met >> 8 & 1) == 1
                acc[c, 13] += int(right) + int(down) - int(cube) - 1
    return found[:n], acc[:n]
