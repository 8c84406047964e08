"""Compiled steps of the watershed within one block: steepest descent, basins, saddles. See vemray.ops.watershed for the definitions.

Voxels are ordered by (class, value, raster index); class: markers first, then the others; voxels outside the mask take no part.
Arrays over the read box are those of the block and one voxel around it, as far as the volume goes; `lo` is where the write box
starts in them. Arrays as large as the block come from numpy, which asks the kernel for huge pages; numba's own cost a fault for each 4 kB.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.typed import Dict

MINIMUM, EXIT, MARKER = 0, 1, 2  # how a path of steepest descent ends
# pointers beside the 27 directions (dz+1)*9 + (dy+1)*3 + dx+1, of which 13 is the voxel itself
SELF, ROOT, OUTSIDE, NOWHERE = np.uint8(13), np.uint8(100), np.uint8(200), np.uint8(255)
_FAR = np.int64(1) << 40
_CLASS = np.int64(1) << 33


@njit(cache=True, nogil=True)
def landscape(image, invert, out):
    """Fills `out`: float32 copy, negated if `invert`, with one zero. Returns whether it holds NaN."""
    nz, ny, nx = image.shape
    bad = False
    sign = np.float32(-1 if invert else 1)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                v = np.float32(image[z, y, x]) * sign + np.float32(0)
                bad |= v != v
                out[z, y, x] = v
    return bad


@njit(cache=True, nogil=True)
def _order_row(bits, mask, markers, use_mask, use_markers, z, y, out):
    """Rank of the voxels of a row by class and value: the bits of a float32 as an integer that sorts like it. True if none is in."""
    some = not use_mask
    if use_mask:
        for x in range(out.size):
            some |= mask[z, y, x]
        if not some:
            out[:] = _FAR
            return True
    for x in range(out.size):
        i = np.int64(bits[z, y, x])
        out[x] = i ^ (np.int64(0x7FFFFFFF) if i < 0 else np.int64(0))
    if use_markers:
        for x in range(out.size):
            if markers[z, y, x] != 0:
                out[x] -= _CLASS
    if use_mask:
        for x in range(out.size):
            if not mask[z, y, x]:
                out[x] = _FAR
    return False


@njit(cache=True, nogil=True)
def descend(bits, mask, markers, use_mask, use_markers, lo, full, out):
    """Fills `out`: pointer of each voxel of the write box to its smallest neighbour (26 if `full`, else 6), SELF, ROOT (a marker) or
    NOWHERE, inside a margin of one voxel, OUTSIDE.

    The smallest of 27 is taken axis by axis: of equal values each pass prefers the lower index, which together is the raster order."""
    nz, ny, nx = out.shape[0] - 2, out.shape[1] - 2, out.shape[2] - 2
    rz, ry, rx = bits.shape
    # three planes in turn: of each read row the smallest of three along x, then of each read plane the smallest of nine
    plain, empty = np.empty((3, ry, rx), np.int64), np.zeros((3, ry), np.bool_)
    row_best, row_way = np.empty((ry, nx), np.int64), np.empty((ry, nx), np.uint8)
    best, way = np.empty((3, ny, nx), np.int64), np.empty((3, ny, nx), np.uint8)
    for z in range(rz):
        p = z % 3
        for y in range(ry):
            empty[p, y] = _order_row(bits, mask, markers, use_mask, use_markers, z, y, plain[p, y])
        if full:
            for y in range(ry):
                if empty[p, y]:
                    row_best[y] = _FAR
                    continue
                for x in range(nx):
                    r = x + lo[2]
                    b, w = plain[p, y, r], 1
                    if r > 0 and plain[p, y, r - 1] <= b:
                        b, w = plain[p, y, r - 1], 0
                    if r + 1 < rx and plain[p, y, r + 1] < b:
                        b, w = plain[p, y, r + 1], 2
                    row_best[y, x], row_way[y, x] = b, w
            for y in range(ny):
                r = y + lo[1]
                if empty[p, r] and (r == 0 or empty[p, r - 1]) and (r + 1 == ry or empty[p, r + 1]):
                    best[p, y] = _FAR
                    continue
                for x in range(nx):
                    b, w = row_best[r, x], 3 + row_way[r, x]
                    if r > 0 and row_best[r - 1, x] <= b:
                        b, w = row_best[r - 1, x], row_way[r - 1, x]
                    if r + 1 < ry and row_best[r + 1, x] < b:
                        b, w = row_best[r + 1, x], 6 + row_way[r + 1, x]
                    best[p, y, x], way[p, y, x] = b, w
        if z >= lo[0] + 1:
            _point(out, z - 1, plain, empty, best, way, lo, full, rz, use_markers)
    if lo[0] + nz == rz:
        _point(out, rz - 1, plain, empty, best, way, lo, full, rz, use_markers)


@njit(cache=True, nogil=True)
def _point(out, z, plain, empty, best, way, lo, full, rz, use_markers):
    """Pointers of read plane `z`, whose neighbours are in the three planes."""
    ny, nx = out.shape[1] - 2, out.shape[2] - 2
    _, ry, rx = plain.shape
    here, under, over = z % 3, (z + 2) % 3, (z + 1) % 3
    has_under, has_over = z > 0, z + 1 < rz
    for y in range(ny):
        r = y + lo[1]
        row = out[z - lo[0] + 1, y + 1, 1 : nx + 1]
        if empty[here, r]:
            row[:] = NOWHERE
            continue
        for x in range(nx):
            c = x + lo[2]
            own = plain[here, r, c]
            if full:
                b, w = best[here, y, x], 9 + way[here, y, x]
                if has_under and best[under, y, x] <= b:
                    b, w = best[under, y, x], way[under, y, x] + 0
                if has_over and best[over, y, x] < b:
                    w = 18 + way[over, y, x]
            else:  # in raster order, so that the first of equal ones stays
                b, w = own, 13
                if c > 0 and plain[here, r, c - 1] <= b:
                    b, w = plain[here, r, c - 1], 12
                if r > 0 and plain[here, r - 1, c] <= b:
                    b, w = plain[here, r - 1, c], 10
                if has_under and plain[under, r, c] <= b:
                    b, w = plain[under, r, c], 4
                if c + 1 < rx and plain[here, r, c + 1] < b:
                    b, w = plain[here, r, c + 1], 14
                if r + 1 < ry and plain[here, r + 1, c] < b:
                    b, w = plain[here, r + 1, c], 16
                if has_over and plain[over, r, c] < b:
                    w = 22
            if use_markers and own < -(_CLASS >> 1):
                w = 100
            row[x] = 255 if own == _FAR else w


@njit(cache=True, nogil=True)
def descend_within(values, objects, lo, full, out):
    """Fills `out` as `descend` does, of paths that stay within the object (label) they start in; 0 takes no part."""
    nz, ny, nx = out.shape[0] - 2, out.shape[1] - 2, out.shape[2] - 2
    rz, ry, rx = values.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                a, b, c = z + lo[0], y + lo[1], x + lo[2]
                label = objects[a, b, c]
                if label == 0:
                    out[z + 1, y + 1, x + 1] = NOWHERE
                    continue
                way, best = 13, values[a, b, c]
                for w in range(27):  # in raster order: of equal values the first
                    dz, dy, dx = w // 9 - 1, w // 3 % 3 - 1, w % 3 - 1
                    if w == 13 or (not full and abs(dz) + abs(dy) + abs(dx) > 1):
                        continue
                    if a + dz < 0 or a + dz >= rz or b + dy < 0 or b + dy >= ry or c + dx < 0 or c + dx >= rx:
                        continue
                    v = values[a + dz, b + dy, c + dx]
                    if (v < best or (v == best and w < way)) and objects[a + dz, b + dy, c + dx] == label:
                        way, best = w, v
                out[z + 1, y + 1, x + 1] = way


@njit(cache=True, nogil=True)
def _grown(a, size):
    b = np.empty(size, a.dtype)
    b[: a.size] = a
    return b


@njit(cache=True, nogil=True)
def basins(ways, values, markers, lo, start, volume, labels):
    """Follow the pointers of `descend`. Fills `labels`, zeros like `ways`, with 1..n in the order of their first voxels. Returns of each:
    how it ends (MINIMUM, EXIT, MARKER), the raster index in the volume of its end (the minimum, the voxel outside the write box, a
    marker's voxel), the value there, its marker, and the raster index of its first voxel. Marker voxels' values become -inf: they are
    the lowest."""
    pz, py, px = ways.shape
    vy, vx = np.int64(volume[1]), np.int64(volume[2])
    ways_flat = ways.reshape(-1)
    flat = labels.reshape(-1)
    offset = np.empty(27, np.int64)
    for w in range(27):
        offset[w] = ((w // 9 - 1) * py + w // 3 % 3 - 1) * px + w % 3 - 1
    n, room = 0, 1024
    kind, end, low = np.empty(room, np.uint8), np.empty(room, np.uint64), np.empty(room, np.float32)
    mark, first = np.empty(room, np.uint64), np.empty(room, np.uint64)
    known = Dict.empty(types.uint64, types.uint32)  # labels of markers
    last, last_label = np.uint64(0), np.uint32(0)  # markers come in runs
    for z in range(1, pz - 1):
        for y in range(1, py - 1):
            for i in range((z * py + y) * px + 1, (z * py + y) * px + px - 1):
                w = ways_flat[i]
                if w == NOWHERE:
                    continue
                if w == ROOT:
                    x = i % px - 1 + lo[2]
                    values[z - 1 + lo[0], y - 1 + lo[1], x] = -np.inf
                    if markers[z - 1 + lo[0], y - 1 + lo[1], x] == last and flat[i] == 0:
                        flat[i] = last_label
                if flat[i] != 0:
                    continue
                p = i
                while flat[p] == 0 and ways_flat[p] < 27 and ways_flat[p] != SELF:
                    p += offset[ways_flat[p]]
                label = flat[p]
                if label == 0:
                    ez, ey, ex = p // (py * px) - 1, p // px % py - 1, p % px - 1
                    ends = MARKER if ways_flat[p] == ROOT else EXIT if ways_flat[p] == OUTSIDE else MINIMUM
                    m = markers[ez + lo[0], ey + lo[1], ex + lo[2]] if ends == MARKER else np.uint64(0)
                    if ends == MARKER and m in known:
                        label = known[m]
                    else:
                        if n == room:
                            room *= 2
                            kind, end, low = _grown(kind, room), _grown(end, room), _grown(low, room)
                            mark, first = _grown(mark, room), _grown(first, room)
                        kind[n], mark[n] = ends, m
                        end[n] = np.uint64(((ez + start[0]) * vy + ey + start[1]) * vx + ex + start[2])
                        low[n] = values[ez + lo[0], ey + lo[1], ex + lo[2]]
                        first[n] = np.uint64(((z - 1 + start[0]) * vy + y - 1 + start[1]) * vx + i % px - 1 + start[2])
                        n += 1
                        label = np.uint32(n)
                        if ends == MARKER:
                            known[m] = label
                    if ends == MARKER:
                        last, last_label = m, label
                    flat[p] = label
                p = i
                while flat[p] == 0:
                    flat[p] = label
                    p += offset[ways_flat[p]]
    return kind[:n].copy(), end[:n].copy(), low[:n].copy(), mark[:n].copy(), first[:n].copy()


@njit(cache=True, nogil=True)
def on_open_faces(labels, n, start, volume):
    """Which of the labels 1..n occur on a face of the box (inside the margin of one voxel) that lies within the volume."""
    seen = np.zeros(n + 1, np.bool_)
    pz, py, px = labels.shape
    nz, ny, nx = pz - 2, py - 2, px - 2
    for z in range(nz):
        for y in range(ny):
            whole = (z == 0 and start[0] > 0) or (z == nz - 1 and start[0] + nz < volume[0])
            whole |= (y == 0 and start[1] > 0) or (y == ny - 1 and start[1] + ny < volume[1])
            if whole:
                for x in range(nx):
                    seen[labels[z + 1, y + 1, x + 1]] = True
            if start[2] > 0:
                seen[labels[z + 1, y + 1, 1]] = True
            if start[2] + nx < volume[2]:
                seen[labels[z + 1, y + 1, nx]] = True
    return seen[1:]


@njit(cache=True, nogil=True)
def relabel(labels, lut):
    """Maps labels in place."""
    nz, ny, nx = labels.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                labels[z, y, x] = lut[labels[z, y, x]]


# -- edges: for each pair of labels the lowest place where they touch ---------------------------------------------------------------


@njit(cache=True, nogil=True)
def shallow(saddle, low, height):
    return saddle <= low or np.float64(saddle) - np.float64(low) <= height


@njit(cache=True, nogil=True)
def joins(saddle, low_a, low_b, marked_a, marked_b, by_marks, height):
    """Whether two regions may join over a saddle: the shallower is no deeper than `height`, or one is unmarked."""
    if by_marks:
        return not (marked_a and marked_b)
    return shallow(saddle, max(low_a, low_b), height)


@njit(cache=True, nogil=True)
def _slot(table, pair):
    h = pair * np.uint64(0x9E3779B97F4A7C15)
    h ^= h >> np.uint64(29)
    i = np.int64(h & np.uint64(table.size - 1))
    while table[i] != 0 and table[i] != pair:
        i = (i + 1) & (table.size - 1)
    return i


@njit(cache=True, nogil=True)
def _double(table, saddle, place):
    new = np.zeros(2 * table.size, np.uint64)
    s, p = np.empty(new.size, np.float32), np.empty(new.size, np.uint64)
    for j in range(table.size):
        if table[j] != 0:
            i = _slot(new, table[j])
            new[i], s[i], p[i] = table[j], saddle[j], place[j]
    return new, s, p


@njit(cache=True, nogil=True)
def _edges(table, saddle, place, n):
    a, b, s, p = np.empty(n, np.uint32), np.empty(n, np.uint32), np.empty(n, np.float32), np.empty(n, np.uint64)
    k = 0
    for i in range(table.size):
        if table[i] != 0:
            a[k], b[k] = np.uint32(table[i] >> np.uint64(32)), np.uint32(table[i] & np.uint64(0xFFFFFFFF))
            s[k], p[k] = saddle[i], place[i]
            k += 1
    return a, b, s, p


@njit(cache=True, nogil=True)
def _runs(labels, begin, stop, count):
    """Runs of equal labels but 0 in the rows of a plane, without the plane's margin, which holds exits' labels."""
    for y in range(count.size):
        n, last = 0, np.uint32(0)
        for x in range(begin.shape[1]):
            label = labels[y + 1, x + 1]
            if label == last:
                continue
            if last != 0:
                stop[y, n - 1] = x
            if label != 0:
                begin[y, n] = x
                n += 1
            last = label
        if last != 0:
            stop[y, n - 1] = begin.shape[1]
        count[y] = n


@njit(cache=True, nogil=True)
def saddles(labels, values, low, marked, group, by_marks, height, drop, lo, start, volume, full):
    """Edges (a, b, saddle, place) between labels (inside their margin), a < b: the lowest saddle, and of equal ones the lowest place, a
    number of the pair of voxels. Only regions of one `group` have edges. With `drop`, edges over which the two can never join are left out: minima only get deeper.

    Runs of rows are compared, not voxels: a block holds few regions in long runs."""
    nz, ny, nx = labels.shape[0] - 2, labels.shape[1] - 2, labels.shape[2] - 2
    vy, vx = np.int64(volume[1]), np.int64(volume[2])
    table, saddle, place = np.zeros(1 << 12, np.uint64), np.empty(1 << 12, np.float32), np.empty(1 << 12, np.uint64)
    n = 0
    # of two planes in turn: runs of their rows, from begin to stop
    begin, stop, count = np.empty((2, ny, nx), np.int32), np.empty((2, ny, nx), np.int32), np.empty((2, ny), np.int32)
    _runs(labels[1], begin[0], stop[0], count[0])
    for z in range(nz):
        if z + 1 < nz:
            _runs(labels[z + 2], begin[(z + 1) % 2], stop[(z + 1) % 2], count[(z + 1) % 2])
        for y in range(ny):
            runs = count[z % 2, y]
            if runs == 0:
                continue
            here, b_here, e_here = labels[z + 1, y + 1, 1:], begin[z % 2, y], stop[z % 2, y]
            v_here = values[z + lo[0], y + lo[1], lo[2] :]
            base = ((z + start[0]) * vy + y + start[1]) * vx + start[2]
            for way in range(13, 27, 3):  # the row itself, then the four others that come later in raster order
                dz, dy = way // 9 - 1, way // 3 % 3 - 1
                if z + dz >= nz or y + dy < 0 or y + dy >= ny or (not full and dz + abs(dy) > 1):
                    continue
                others = count[(z + dz) % 2, y + dy]
                there, b_there, e_there = labels[z + dz + 1, y + dy + 1, 1:], begin[(z + dz) % 2, y + dy], stop[(z + dz) % 2, y + dy]
                v_there = values[z + dz + lo[0], y + dy + lo[1], lo[2] :]
                first_dx, last_dx = (1, 1) if way == 13 else (-1, 1) if full else (0, 0)
                low_j = 0
                for i in range(runs):
                    while low_j < others and e_there[low_j] < b_here[i]:
                        low_j += 1
                    a = here[b_here[i]]
                    for j in range(low_j, others):
                        if b_there[j] > e_here[i]:
                            break
                        b = there[b_there[j]]
                        if a == b or group[a - 1] != group[b - 1]:
                            continue
                        for dx in range(first_dx, last_dx + 1):
                            at, end = max(b_here[i], b_there[j] - dx), min(e_here[i], e_there[j] - dx)
                            if at >= end:
                                continue
                            s = max(v_here[at], v_there[at + dx])
                            for x in range(at + 1, end):
                                v = max(v_here[x], v_there[x + dx])
                                if v < s:
                                    at, s = x, v
                            if drop and not joins(s, low[a - 1], low[b - 1], marked[a - 1], marked[b - 1], by_marks, height):
                                continue
                            pair = (np.uint64(min(a, b)) << np.uint64(32)) | np.uint64(max(a, b))
                            k = _slot(table, pair)
                            where = np.uint64((base + at) * 16 + (way + dx - 14))
                            if table[k] == 0:
                                table[k], saddle[k], place[k] = pair, s, where
                                n += 1
                                if 2 * n > table.size:
                                    table, saddle, place = _double(table, saddle, place)
                            elif s < saddle[k] or (s == saddle[k] and where < place[k]):
                                saddle[k], place[k] = s, where
    return _edges(table, saddle, place, n)


@njit(cache=True, nogil=True)
def saddles_between(ids_a, ids_b, values_a, values_b, low, marked, group, by_marks, height, drop, axis, corner, volume, full):
    """The same over two facing planes; `corner`: global voxel at the start of the lower plane, `axis` the one across."""
    ny, nx = ids_a.shape
    stride = np.array([np.int64(volume[1]) * np.int64(volume[2]), np.int64(volume[2]), 1], np.int64)
    p, q = (1, 2) if axis == 0 else (0, 2) if axis == 1 else (0, 1)
    base = corner[0] * stride[0] + corner[1] * stride[1] + corner[2] * stride[2]
    table, saddle, place = np.zeros(1 << 12, np.uint64), np.empty(1 << 12, np.float32), np.empty(1 << 12, np.uint64)
    n = 0
    step = np.zeros(3, np.int64)
    for y in range(ny):
        for x in range(nx):
            a = ids_a[y, x]
            if a == 0:
                continue
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if not full and (dy != 0 or dx != 0):
                        continue
                    if y + dy < 0 or y + dy >= ny or x + dx < 0 or x + dx >= nx:
                        continue
                    b = ids_b[y + dy, x + dx]
                    if a == b or b == 0 or group[a - 1] != group[b - 1]:
                        continue
                    s = max(values_a[y, x], values_b[y + dy, x + dx])
                    if drop and not joins(s, low[a - 1], low[b - 1], marked[a - 1], marked[b - 1], by_marks, height):
                        continue
                    pair = (np.uint64(min(a, b)) << np.uint64(32)) | np.uint64(max(a, b))
                    i = _slot(table, pair)
                    if table[i] == 0 or s <= saddle[i]:
                        step[axis], step[p], step[q] = 1, dy, dx
                        way = (step[0] + 1) * 9 + (step[1] + 1) * 3 + step[2] + 1
                        at = base + y * stride[p] + x * stride[q]
                        if way < 13:  # counted from the voxel that is first in raster order
                            at += step[0] * stride[0] + step[1] * stride[1] + step[2] * stride[2]
                            way = 26 - way
                        where = np.uint64(at * 16 + (way - 14))
                        if table[i] == 0:
                            table[i], saddle[i], place[i] = pair, s, where
                            n += 1
                            if 2 * n > table.size:
                                table, saddle, place = _double(table, saddle, place)
                        elif s < saddle[i] or where < place[i]:
                            saddle[i], place[i] = s, where
    return _edges(table, saddle, place, n)
