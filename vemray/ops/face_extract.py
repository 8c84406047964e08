"""The faces of voxels that bound objects, with the normal of the surface at each: inner loops of `surface`.

A face belongs to the voxel of the label; its side d = 2 * axis + (1 on the upper side). Faces come by label, then by raster index and side."""

from __future__ import annotations

import numpy as np
from numba import njit

#: voxels around a face that its normal is estimated from: this far along its axis, one less across
REACH = 4
SIGMA = 1.3
#: what a component of a stored normal is divided by
UNIT = 127.0


def _weights() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of a Gaussian and of its derivative along the face's axis (voxels at -REACH + 0.5 ... REACH - 0.5) and across it."""
    along, across = np.arange(-REACH, REACH) + 0.5, np.arange(1.0 - REACH, REACH)
    bell = [np.exp(-0.5 * (t / SIGMA) ** 2) for t in (along, across)]
    bell = [b / b.sum() for b in bell]
    slope = [b * t / (b * t * t).sum() for b, t in zip(bell, (along, across))]
    return np.stack([bell[0], slope[0]]), np.stack([bell[1], slope[1]])


ALONG, ACROSS = _weights()


@njit(cache=True, nogil=True)
def _place(keys, label):
    return np.searchsorted(keys, label)


@njit(cache=True, nogil=True)
def _bounds(labels, label, z, y, x, d, background_only):
    """Whether side `d` of the voxel is a face; the volume's border is none."""
    step = 1 if d & 1 else -1
    a = d >> 1
    if a == 0:
        z += step
    elif a == 1:
        y += step
    else:
        x += step
    if z < 0 or y < 0 or x < 0 or z >= labels.shape[0] or y >= labels.shape[1] or x >= labels.shape[2]:
        return False
    other = labels[z, y, x]
    return other == 0 if background_only else other != label


@njit(cache=True, nogil=True)
def count(labels, start, stop, keys, background_only):
    """Faces of each of `keys` (sorted, as `labels`) owned by voxels of the box start:stop of the array."""
    out = np.zeros(len(keys), np.int64)
    last, at = labels.dtype.type(0), 0
    for z in range(start[0], stop[0]):
        for y in range(start[1], stop[1]):
            for x in range(start[2], stop[2]):
                label = labels[z, y, x]
                if label == 0:
                    continue
                if label != last:
                    last, at = label, _place(keys, label)
                for d in range(6):
                    if _bounds(labels, label, z, y, x, d, background_only):
                        out[at] += 1
    return out


@njit(cache=True, nogil=True)
def fill(labels, start, stop, keys, background_only, at_face, per_nm, along, across, voxels, sides, normals):
    """Write the faces, those of key k from `at_face[k]` on: `voxels` from the box's corner, and `normals`, outward, of length 127 in physical
    space. `per_nm`: 1 / spacing."""
    last, at = labels.dtype.type(0), 0
    g = np.zeros(3)
    for z in range(start[0], stop[0]):
        for y in range(start[1], stop[1]):
            for x in range(start[2], stop[2]):
                label = labels[z, y, x]
                if label == 0:
                    continue
                if label != last:
                    last, at = label, _place(keys, label)
                for d in range(6):
                    if not _bounds(labels, label, z, y, x, d, background_only):
                        continue
                    _gradient(labels, label, z, y, x, d, along, across, g)
                    i = at_face[at]
                    at_face[at] += 1
                    voxels[i, 0], voxels[i, 1], voxels[i, 2] = z - start[0], y - start[1], x - start[2]
                    sides[i] = d
                    a, up = d >> 1, d & 1
                    if (g[a] < 0) != up:  # a thin or ragged place: the face's own side decides
                        g[a] = -1e-6 if up else 1e-6
                    norm = 0.0
                    for k in range(3):
                        g[k] *= per_nm[k]
                        norm += g[k] * g[k]
                    norm = np.sqrt(norm)
                    for k in range(3):
                        normals[i, k] = np.int8(np.rint(-UNIT * g[k] / norm))


@njit(cache=True, nogil=True)
def _gradient(labels, label, z, y, x, d, along, across, g):
    """Gradient per voxel of the label's indicator, smoothed, at the middle of a face; beyond the volume the border's voxels go on."""
    a, up = d >> 1, d & 1
    r = along.shape[1] // 2
    first = r - 1 if up else r  # the voxel at -0.5 from the face is number r - 1
    nz, ny, nx = labels.shape
    g[0] = g[1] = g[2] = 0.0
    lz = r + r if a == 0 else r + r - 1
    ly = r + r if a == 1 else r + r - 1
    lx = r + r if a == 2 else r + r - 1
    oz = z - (first if a == 0 else r - 1)
    oy = y - (first if a == 1 else r - 1)
    ox = x - (first if a == 2 else r - 1)
    wz = along if a == 0 else across
    wy = along if a == 1 else across
    wx = along if a == 2 else across
    for i in range(lz):
        zz = min(max(oz + i, 0), nz - 1)
        for j in range(ly):
            yy = min(max(oy + j, 0), ny - 1)
            row = slope = 0.0
            for k in range(lx):
                if labels[zz, yy, min(max(ox + k, 0), nx - 1)] == label:
                    row += wx[0, k]
                    slope += wx[1, k]
            g[0] += wz[1, i] * wy[0, j] * row
            g[1] += wz[0, i] * wy[1, j] * row
            g[2] += wz[0, i] * wy[0, j] * slope


@njit(cache=True, nogil=True)
def _share(normals, i, steps):
    square = total = 0
    for k in range(3):
        n = np.int64(normals[i, k])
        square += n * n
        total += abs(n)
    return np.int64(np.rint(np.sqrt(square) / total * steps))


@njit(cache=True, nogil=True)
def shares(normals, steps):
    """For each normal its length over the sum of its components' sizes, in 1 / steps."""
    out = np.empty(len(normals), np.int64)
    for i in range(len(normals)):
        out[i] = _share(normals, i, steps)
    return out


@njit(cache=True, nogil=True)
def share_sums(normals, sides, steps):
    """Sums of `shares` by the axis of the face."""
    out = np.zeros(3, np.int64)
    for i in range(len(normals)):
        out[sides[i] >> 1] += _share(normals, i, steps)
    return out
