"""Inner loops of meshes: faces of voxels, sewing them edge to edge, diffusion along edges, integrals over triangles."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def faces_of(labels, closed, label, face):
    """Exposed faces of every label in raster order of their voxels; fills `label` (m,) and `face` (m, 4) unless they are empty. Their number.
    `closed`: the array's border counts as the outside."""
    n, shape = 0, labels.shape
    fill = len(label) > 0
    for z in range(shape[0]):
        for y in range(shape[1]):
            for x in range(shape[2]):
                v = labels[z, y, x]
                if v == 0:
                    continue
                for d in range(6):
                    axis, step = d >> 1, 2 * (d & 1) - 1
                    k, j, i = z + step * (axis == 0), y + step * (axis == 1), x + step * (axis == 2)
                    if 0 <= k < shape[0] and 0 <= j < shape[1] and 0 <= i < shape[2]:
                        if labels[k, j, i] == v:
                            continue
                    elif not closed:
                        continue
                    if fill:
                        label[n] = v
                        face[n, 0], face[n, 1], face[n, 2], face[n, 3] = z, y, x, d
                    n += 1
    return n


@njit(cache=True, nogil=True)
def corners_and_edges(faces, low, dims, corner, key):
    """Of each face its four corners, raster indices in a grid of `dims` points from `low`, in turn so that it looks outwards in XYZ; and
    of the edge from each corner to the next (raster index of its lower end, axis, place of the face's voxel around it) as one number."""
    step = (dims[1] * dims[2], dims[2], np.int64(1))
    for k in range(len(faces)):
        axis, up = faces[k, 3] >> 1, faces[k, 3] & 1
        b, c = (axis + 1) % 3, (axis + 2) % 3
        voxel = np.int64(0)
        for i in range(3):
            voxel += (faces[k, i] - low[i]) * step[i]
        at = voxel + up * step[axis]
        if up:
            b, c = c, b
        corner[k, 0], corner[k, 1], corner[k, 2], corner[k, 3] = at, at + step[b], at + step[b] + step[c], at + step[c]
        for i in range(4):
            along = b if i % 2 == 0 else c
            lower = min(corner[k, i], corner[k, (i + 1) % 4])
            off = lower - voxel  # 0 or 1 along the two other axes
            z = off // step[0]
            y = (off - z * step[0]) // step[1]
            side = (z, y, off - z * step[0] - y * step[1])
            key[k, i] = ((lower * 3 + along) << 2) | (side[(along + 1) % 3] << 1) | side[(along + 2) % 3]


@njit(cache=True, nogil=True)
def _root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def _join(parent, i, j):
    i, j = _root(parent, i), _root(parent, j)
    if i < j:
        parent[j] = i
    elif j < i:
        parent[i] = j


@njit(cache=True, nogil=True)
def sew(key, order, corner, parent, seams):
    """Join faces along edges, two and two. Where four meet in an edge, the two of one voxel are joined: voxels that touch over an edge only
    stay apart. `seams` (e, 2): the two face-edges, -1 for none. Returns their number."""
    e, i, n = 0, 0, len(order)
    while i < n:
        s = order[i]
        seams[e, 0], seams[e, 1] = s, -1
        i += 1
        if i < n and key[order[i]] >> 2 == key[s] >> 2:
            t = order[i]
            after_s, after_t = (s >> 2 << 2) | ((s + 1) & 3), (t >> 2 << 2) | ((t + 1) & 3)
            if corner[s] == corner[t]:
                _join(parent, s, t)
                _join(parent, after_s, after_t)
            else:
                _join(parent, s, after_t)
                _join(parent, after_s, t)
            seams[e, 1] = t
            i += 1
        e += 1
    return e


@njit(cache=True, nogil=True)
def number(parent, vertex, first):
    """Number the classes in the order of their first member; their number."""
    n = 0
    for i in range(len(parent)):
        r = _root(parent, i)
        if r == i:
            vertex[i], first[n] = n, i
            n += 1
        else:
            vertex[i] = vertex[r]
    return n


@njit(cache=True, nogil=True)
def _pull(v, edges, weight, axis, change):
    """`change`: sum over each vertex' edges of weight times the way to the other end."""
    change[:] = 0
    for e in range(len(edges)):
        i, j, w = edges[e, 0], edges[e, 1], weight[axis[e]]
        for d in range(3):
            t = w * (v[j, d] - v[i, d])
            change[i, d] += t
            change[j, d] -= t


@njit(cache=True, nogil=True)
def diffuse(v, edges, weight, axis, time, stages, held, before, change):
    """One step of diffusion along the edges, of length `time`, in stages of the Runge-Kutta-Legendre scheme of first order (Meyer, Balsara and
    Aslam 2014, J Comput Phys 257:594): stable up to (stages^2 + stages) / 2 times as long as a plain explicit step. `held` (n, 3): coordinates
    that stay. `before`, `change`: room."""
    first = 2.0 / (stages * stages + stages)
    before[:] = v
    _pull(v, edges, weight, axis, change)
    for i in range(len(v)):
        for d in range(3):
            if not held[i, d]:
                v[i, d] += first * time * change[i, d]
    for k in range(2, stages + 1):
        mu, nu = (2 * k - 1) / k, (1 - k) / k
        _pull(v, edges, weight, axis, change)
        for i in range(len(v)):
            for d in range(3):
                if not held[i, d]:
                    old = v[i, d]
                    v[i, d] = mu * old + nu * before[i, d] + mu * first * time * change[i, d]
                    before[i, d] = old


@njit(cache=True, nogil=True)
def integrals(v, triangles, sheet, centre, area, volume):
    """Adds to `area` and signed `volume` of each sheet (of a vertex), from its `centre`. Vertices ZYX, triangles outwards in XYZ."""
    for t in range(len(triangles)):
        i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        s = sheet[i]
        az, ay, ax = v[i, 0] - centre[s, 0], v[i, 1] - centre[s, 1], v[i, 2] - centre[s, 2]
        uz, uy, ux = v[j, 0] - v[i, 0], v[j, 1] - v[i, 1], v[j, 2] - v[i, 2]
        wz, wy, wx = v[k, 0] - v[i, 0], v[k, 1] - v[i, 1], v[k, 2] - v[i, 2]
        nx, ny, nz = uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx
        area[s] += np.sqrt(nx * nx + ny * ny + nz * nz) / 2
        volume[s] += (ax * nx + ay * ny + az * nz) / 6


@njit(cache=True, nogil=True)
def add_normals(v, triangles, out):
    """Adds to `out` (n, 3) each triangle's area vector (ZYX, outwards) at its three vertices."""
    for t in range(len(triangles)):
        i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        uz, uy, ux = v[j, 0] - v[i, 0], v[j, 1] - v[i, 1], v[j, 2] - v[i, 2]
        wz, wy, wx = v[k, 0] - v[i, 0], v[k, 1] - v[i, 1], v[k, 2] - v[i, 2]
        nx, ny, nz = uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx
        for p in (i, j, k):
            out[p, 0] += nz
            out[p, 1] += ny
            out[p, 2] += nx


@njit(cache=True, nogil=True)
def spread_plane(state, known, across_b, across_c):
    """Fill a border plane: `state` holds where `known`; `across_b[b, c]` says that the object ends between (b, c) and (b + 1, c). Repeated
    sweeps until nothing changes."""
    nb, nc = state.shape
    changed = True
    while changed:
        changed = False
        for turn in range(2):
            for bb in range(nb):
                b = bb if turn == 0 else nb - 1 - bb
                for cc in range(nc):
                    c = cc if turn == 0 else nc - 1 - cc
                    if known[b, c]:
                        continue
                    if b > 0 and known[b - 1, c]:
                        state[b, c] = state[b - 1, c] ^ across_b[b - 1, c]
                    elif b < nb - 1 and known[b + 1, c]:
                        state[b, c] = state[b + 1, c] ^ across_b[b, c]
                    elif c > 0 and known[b, c - 1]:
                        state[b, c] = state[b, c - 1] ^ across_c[b, c - 1]
                    elif c < nc - 1 and known[b, c + 1]:
                        state[b, c] = state[b, c + 1] ^ across_c[b, c]
                    else:
                        continue
                    known[b, c] = True
                    changed = True
