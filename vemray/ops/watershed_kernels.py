"""Compiled steps of the watershed within one block: steepest descent, basins, saddles. See vemray.ops.watershed for the definitions.

Voxels are ordered by (class, value, raster index); class: markers first, then the others; voxels outside the mask take no part.
Arrays over the read box are those of the block and one voxel around it, as far as the volume goes; `lo` is where the write box
starts in them.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.typed import Dict

MINIMUM, EXIT, MARKER = 0, 1, 2  # how a path of steepest descent ends
SELF, ROOT, NOWHERE = np.uint8(13), np.uint8(100), np.uint8(255)  # pointers beside the 27 directions (dz+1)*9 + (dy+1)*3 + dx+1
_FAR = np.int64(1) << 40
_CLASS = np.int64(1) << 33


@njit(cache=True, nogil=True, inline="always")
def _order(bits, mask, markers, use_mask, use_markers, z, y, x):
    """Rank of a voxel by class and value: the bits of a float32 as an integer that sorts like it."""
    if use_mask and not mask[z, y, x]:
        return _FAR
    i = np.int64(bits[z, y, x])
    if i < 0:
        i ^= np.int64(0x7FFFFFFF)
    if use_markers and markers[z, y, x] != 0:
        i -= _CLASS
    return i


@njit(cache=True, nogil=True)
def descend(bits, mask, markers, use_mask, use_markers, lo, shape, full):
    """Pointer of each voxel of the write box to its smallest neighbour (26 if `full`, else 6), SELF, ROOT (a marker) or NOWHERE.

    The smallest of 27 is taken axis by axis: of equal values each pass prefers the lower index, which together is the raster order."""
    nz, ny, nx = shape
    rz, ry, rx = bits.shape
    out = np.empty((nz, ny, nx), np.uint8)
    # three planes in turn: of each read row the smallest of three along x, then of each read plane the smallest of nine
    plain = np.empty((3, ry, rx), np.int64)
    row_best, row_way = np.empty((ry, nx), np.int64), np.empty((ry, nx), np.uint8)
    best, way = np.empty((3, ny, nx), np.int64), np.empty((3, ny, nx), np.uint8)
    for z in range(max(0, lo[0] - 1), min(rz, lo[0] + nz + 1)):
        p = z % 3
        for y in range(ry):
            for x in range(rx):
                plain[p, y, x] = _order(bits, mask, markers, use_mask, use_markers, z, y, x)
        if full:
            for y in range(max(0, lo[1] - 1), min(ry, lo[1] + ny + 1)):
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
                for x in range(nx):
                    b, w = row_best[r, x], 3 + row_way[r, x]
                    if r > 0 and row_best[r - 1, x] <= b:
                        b, w = row_best[r - 1, x], row_way[r - 1, x]
                    if r + 1 < ry and row_best[r + 1, x] < b:
                        b, w = row_best[r + 1, x], 6 + row_way[r + 1, x]
                    best[p, y, x], way[p, y, x] = b, w
        if z >= lo[0] + 1:
            _point(out, z - 1, plain, best, way, lo, full, rz, use_markers)
    if lo[0] + nz == rz:
        _point(out, rz - 1, plain, best, way, lo, full, rz, use_markers)
    return out


@njit(cache=True, nogil=True)
def _point(out, z, plain, best, way, lo, full, rz, use_markers):
    """Pointers of read plane `z`, whose neighbours are in the three planes."""
    _, ny, nx = out.shape
    _, ry, rx = plain.shape
    here, under, over = z % 3, (z + 2) % 3, (z + 1) % 3
    has_under, has_over = z > 0, z + 1 < rz
    for y in range(ny):
        r = y + lo[1]
        for x in range(nx):
            c = x + lo[2]
            own = plain[here, r, c]
            if own == _FAR:
                out[z - lo[0], y, x] = NOWHERE
                continue
            if use_markers and own < -(_CLASS >> 1):
                out[z - lo[0], y, x] = ROOT
                continue
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
            out[z - lo[0], y, x] = w


@njit(cache=True, nogil=True)
def _grown(a, size):
    b = np.empty(size, a.dtype)
    b[: a.size] = a
    return b


@njit(cache=True, nogil=True)
def basins(ways, values, markers, use_markers, lo, start, volume):
    """Follow the pointers of `descend`. Labels 1..n of the write box, in the order of their first voxels; of each label: how it ends
    (MINIMUM, EXIT, MARKER), the raster index in the volume of its end (the minimum, the voxel outside the write box, a marker's
    voxel), the value there, its marker, and the raster index of its first voxel."""
    nz, ny, nx = ways.shape
    vy, vx = np.int64(volume[1]), np.int64(volume[2])
    labels = np.zeros((nz, ny, nx), np.uint32)
    n, room = 0, 1024
    kind, end, low = np.empty(room, np.uint8), np.empty(room, np.uint64), np.empty(room, np.float32)
    mark, first = np.empty(room, np.uint64), np.empty(room, np.uint64)
    known = Dict.empty(types.uint64, types.uint32)  # labels of markers
    # labels of the voxels around the write box, as six plates
    plate_z = np.zeros((2, ny + 2, nx + 2), np.uint32)
    plate_y = np.zeros((2, nz, nx + 2), np.uint32)
    plate_x = np.zeros((2, nz, ny), np.uint32)
    for z0 in range(nz):
        for y0 in range(ny):
            for x0 in range(nx):
                if ways[z0, y0, x0] == NOWHERE or labels[z0, y0, x0] != 0:
                    continue
                z, y, x = z0, y0, x0
                label = np.uint32(0)
                ends = -1
                while True:
                    w = np.int64(ways[z, y, x])
                    if w == ROOT:
                        ends = MARKER
                        m = np.uint64(markers[z + lo[0], y + lo[1], x + lo[2]])
                        if m in known:
                            label = known[m]
                        break
                    if w == SELF:
                        ends = MINIMUM
                        break
                    z, y, x = z + w // 9 - 1, y + w // 3 % 3 - 1, x + w % 3 - 1
                    if z < 0 or z == nz:
                        ends, label = EXIT, plate_z[min(z + 1, 1), y + 1, x + 1]
                        break
                    if y < 0 or y == ny:
                        ends, label = EXIT, plate_y[min(y + 1, 1), z, x + 1]
                        break
                    if x < 0 or x == nx:
                        ends, label = EXIT, plate_x[min(x + 1, 1), z, y]
                        break
                    label = labels[z, y, x]
                    if label != 0:
                        break
                if label == 0:
                    if n == room:
                        room *= 2
                        kind, end, low = _grown(kind, room), _grown(end, room), _grown(low, room)
                        mark, first = _grown(mark, room), _grown(first, room)
                    kind[n] = ends
                    end[n] = np.uint64(((z + start[0]) * vy + y + start[1]) * vx + x + start[2])
                    low[n] = values[z + lo[0], y + lo[1], x + lo[2]]
                    mark[n] = markers[z + lo[0], y + lo[1], x + lo[2]] if ends == MARKER else np.uint64(0)  # a bare 0 would make it a float
                    first[n] = np.uint64(((z0 + start[0]) * vy + y0 + start[1]) * vx + x0 + start[2])
                    n += 1
                    label = np.uint32(n)
                    if ends == MARKER:
                        known[mark[n - 1]] = label
                    elif ends == EXIT:
                        if z < 0 or z == nz:
                            plate_z[min(z + 1, 1), y + 1, x + 1] = label
                        elif y < 0 or y == ny:
                            plate_y[min(y + 1, 1), z, x + 1] = label
                        else:
                            plate_x[min(x + 1, 1), z, y] = label
                z, y, x = z0, y0, x0
                while 0 <= z < nz and 0 <= y < ny and 0 <= x < nx and labels[z, y, x] == 0:
                    labels[z, y, x] = label
                    w = np.int64(ways[z, y, x])
                    if w == SELF or w == ROOT:
                        break
                    z, y, x = z + w // 9 - 1, y + w // 3 % 3 - 1, x + w % 3 - 1
    return labels, kind[:n].copy(), end[:n].copy(), low[:n].copy(), mark[:n].copy(), first[:n].copy()


# -- edges: for each pair of labels the lowest place where they touch ---------------------------------------------------------------


@njit(cache=True, nogil=True)
def _shallow(saddle, low, height):
    return saddle <= low or np.float64(saddle) - np.float64(low) <= height


@njit(cache=True, nogil=True)
def joins(saddle, low_a, low_b, marked_a, marked_b, by_marks, height):
    """Whether the watershed may join two regions over a saddle: the shallower is no deeper than `height`, or one is unmarked."""
    if by_marks:
        return not (marked_a and marked_b)
    return _shallow(saddle, max(low_a, low_b), height)


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
def saddles(labels, values, low, marked, by_marks, height, drop, lo, start, volume, full):
    """Edges (a, b, saddle, place) between labels of the write box, a < b: the lowest saddle, and of equal ones the lowest place, a
    number of the pair of voxels. With `drop`, places over which the two can never join are left out: minima only get deeper."""
    nz, ny, nx = labels.shape
    vy, vx = np.int64(volume[1]), np.int64(volume[2])
    table, saddle, place = np.zeros(1 << 12, np.uint64), np.empty(1 << 12, np.float32), np.empty(1 << 12, np.uint64)
    n = 0
    for z in range(nz):
        for y in range(ny):
            for w in range(14, 27):
                dz, dy, dx = w // 9 - 1, w // 3 % 3 - 1, w % 3 - 1
                if not full and abs(dz) + abs(dy) + abs(dx) > 1:
                    continue
                if z + dz >= nz or y + dy < 0 or y + dy >= ny:
                    continue
                here, there = labels[z, y], labels[z + dz, y + dy]
                for x in range(max(0, -dx), min(nx, nx - dx)):
                    a, b = here[x], there[x + dx]
                    if a == b or a == 0 or b == 0:
                        continue
                    s = max(values[z + lo[0], y + lo[1], x + lo[2]], values[z + dz + lo[0], y + dy + lo[1], x + dx + lo[2]])
                    if drop and not joins(s, low[a - 1], low[b - 1], marked[a - 1], marked[b - 1], by_marks, height):
                        continue
                    pair = (np.uint64(min(a, b)) << np.uint64(32)) | np.uint64(max(a, b))
                    i = _slot(table, pair)
                    if table[i] == 0 or s <= saddle[i]:
                        p = np.uint64((((z + start[0]) * vy + y + start[1]) * vx + x + start[2]) * 16 + (w - 14))
                        if table[i] == 0:
                            table[i], saddle[i], place[i] = pair, s, p
                            n += 1
                            if 2 * n > table.size:
                                table, saddle, place = _double(table, saddle, place)
                        elif s < saddle[i] or p < place[i]:
                            saddle[i], place[i] = s, p
    return _edges(table, saddle, place, n)


@njit(cache=True, nogil=True)
def saddles_between(ids_a, ids_b, values_a, values_b, low, marked, by_marks, height, drop, axis, corner, volume, full):
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
                    if a == b or b == 0:
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


# -- reduction of the region graph ---------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def find(owner, i):
    while owner[i] != i:
        owner[i] = owner[owner[i]]
        i = owner[i]
    return i


@njit(cache=True, nogil=True)
def reduce_graph(a, b, s, low, marked, frozen, by_marks, height, owner):
    """Contract what is certain to join, over edges in ascending order; see `vemray.ops.watershed_graph`. All ids count from 0.
    Changes `low` and `marked` of what regions are contracted into; fills `owner`. Returns which edges must be kept."""
    n = owner.size
    tree = np.arange(n)
    blocked = np.zeros(n, np.bool_)
    keep = np.zeros(a.size, np.bool_)
    for e in range(a.size):
        u, v = find(owner, a[e]), find(owner, b[e])
        if u == v or not joins(s[e], low[u], low[v], marked[u], marked[v], by_marks, height):
            continue
        ru, rv = find(tree, u), find(tree, v)
        if ru == rv:  # the highest edge of a cycle decides nothing
            continue
        tree[ru] = rv
        u_can = not (frozen[u] or blocked[u]) and (not marked[u] if by_marks else _shallow(s[e], low[u], height))
        v_can = not (frozen[v] or blocked[v]) and (not marked[v] if by_marks else _shallow(s[e], low[v], height))
        if not u_can and not v_can:
            keep[e] = blocked[u] = blocked[v] = True
            continue
        if u_can and v_can:
            gone, into = (u, v) if low[v] <= low[u] else (v, u)
        else:
            gone, into = (u, v) if u_can else (v, u)
        owner[gone] = into
        low[into] = min(low[into], low[gone])
        marked[into] = marked[into] or marked[gone]
    for i in range(n):
        owner[i] = find(owner, i)
    return keep


@njit(cache=True, nogil=True)
def find_all(target):
    """The end of the chain from each entry; chains have no circles."""
    out = target.copy()
    for i in range(out.size):
        out[i] = find(out, i)
    return out
