"""A tree over the faces of a block for exact searches: leaves hold the faces of one label in a cube of 8^3 voxels, in Morton order, and eight
neighbours make a node of the next level. It takes a third of the memory of a k-d tree over their centres, knows rectangles from points,
and its bounds are exact, so that ties are found and not left to chance.

Lengths are in half voxels of the target's grid, where faces are integers; squared distances in nm2 are ((gz hz)^2 + (gy hy)^2) + (gx hx)^2,
g the gaps along the axes and h half a voxel in nm: the same number in whichever block it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from vemray.ops.faces import Faces

FAN = 8
CUBE_BITS = 3
#: which faces a search takes, by their label: any, the query's own, or others only
ANY, OWN, OTHER = 0, 1, 2
#: a label of so many leaves is searched leaf by leaf for its own faces
FEW = 64


@dataclass
class Tree:
    """Nodes are the leaves, then each level above, the root last."""

    origin: np.ndarray  # int64 (3,), voxels
    labels: np.ndarray  # uint64 (n,)
    voxels: np.ndarray  # uint (m, 3), leaf by leaf
    sides: np.ndarray  # uint8 (m,)
    order: np.ndarray  # int32 (m,): their places in Faces
    leaf_start: np.ndarray  # int32 (leaves + 1,)
    leaf_label: np.ndarray  # int32 (leaves,)
    of_label: np.ndarray  # int64 (n + 1,): leaves of label k are leaves[of_label[k]:of_label[k + 1]]
    leaves: np.ndarray  # int32 (leaves,)
    level: np.ndarray  # int64 (levels + 1,): first node of each level, and the end
    lo: np.ndarray  # float64 (nodes, 3)
    hi: np.ndarray
    label_min: np.ndarray  # uint64 (nodes,)
    label_max: np.ndarray

    @classmethod
    def of(cls, faces: Faces) -> Tree:
        key = _brick_keys(faces.voxels, faces.starts)
        order = np.argsort(key, kind="stable").astype(np.int32)
        key = key[order]
        first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
        leaf_label = (key[first] % max(1, len(faces.labels))).astype(np.int32)
        del key
        counts = [len(first)]
        while counts[-1] > 1:
            counts.append(-(-counts[-1] // FAN))
        level = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        lo, hi = np.empty((level[-1], 3)), np.empty((level[-1], 3))
        label_min, label_max = np.empty(level[-1], np.uint64), np.empty(level[-1], np.uint64)
        voxels, sides = faces.voxels[order], faces.sides[order]
        leaf_start = np.append(first, len(order)).astype(np.int32)
        label_min[: len(first)] = label_max[: len(first)] = faces.labels[leaf_label]
        _bound(voxels, sides, faces.origin, leaf_start, level, lo, hi, label_min, label_max)
        leaves = np.argsort(leaf_label, kind="stable").astype(np.int32)
        of_label = np.searchsorted(leaf_label[leaves], np.arange(len(faces.labels) + 1))
        return cls(
            faces.origin, faces.labels, voxels, sides, order, leaf_start, leaf_label, of_label, leaves, level, lo, hi, label_min, label_max
        )  # fmt: skip

    def arrays(self) -> tuple[np.ndarray, ...]:
        """As the kernels take it."""
        return (
            self.origin, self.labels, self.voxels, self.sides, self.leaf_start, self.leaf_label, self.of_label, self.leaves, self.level, self.lo,
            self.hi, self.label_min, self.label_max,
        )  # fmt: skip


@njit(cache=True, nogil=True)
def _spread(v):
    """The bits of a number below 2^16, two zeros between each."""
    v = np.uint64(v)
    v = (v | (v << np.uint64(32))) & np.uint64(0x1F00000000FFFF)
    v = (v | (v << np.uint64(16))) & np.uint64(0x1F0000FF0000FF)
    v = (v | (v << np.uint64(8))) & np.uint64(0x100F00F00F00F00F)
    v = (v | (v << np.uint64(4))) & np.uint64(0x10C30C30C30C30C3)
    return (v | (v << np.uint64(2))) & np.uint64(0x1249249249249249)


@njit(cache=True, nogil=True)
def _brick_keys(voxels, starts):
    """Morton number of each face's cube, times the number of labels, plus the number of its own."""
    out = np.empty(len(voxels), np.uint64)
    n = np.uint64(len(starts) - 1)
    for k in range(len(starts) - 1):
        for i in range(starts[k], starts[k + 1]):
            z, y, x = voxels[i, 0] >> CUBE_BITS, voxels[i, 1] >> CUBE_BITS, voxels[i, 2] >> CUBE_BITS
            out[i] = ((_spread(z) << np.uint64(2)) | (_spread(y) << np.uint64(1)) | _spread(x)) * n + np.uint64(k)
    return out


@njit(cache=True, nogil=True)
def _bound(voxels, sides, origin, leaf_start, level, lo, hi, label_min, label_max):
    for n in range(len(leaf_start) - 1):
        for a in range(3):
            low, high = np.inf, -np.inf
            for i in range(leaf_start[n], leaf_start[n + 1]):
                p, q = span(voxels, sides, origin, i, a)
                low, high = min(low, p), max(high, q)
            lo[n, a], hi[n, a] = low, high
    for k in range(1, len(level) - 1):
        for n in range(level[k], level[k + 1]):
            first = level[k - 1] + FAN * (n - level[k])
            last = min(first + FAN, level[k])
            label_min[n], label_max[n] = label_min[first], label_max[first]
            for a in range(3):
                lo[n, a], hi[n, a] = lo[first, a], hi[first, a]
            for c in range(first + 1, last):
                label_min[n], label_max[n] = min(label_min[n], label_min[c]), max(label_max[n], label_max[c])
                for a in range(3):
                    lo[n, a], hi[n, a] = min(lo[n, a], lo[c, a]), max(hi[n, a], hi[c, a])


@njit(cache=True, nogil=True)
def span(voxels, sides, origin, i, a):
    """Where face i begins and ends along axis a, in half voxels."""
    middle = 2.0 * (origin[a] + np.int64(voxels[i, a]))
    d = sides[i]
    if d >> 1 == a:
        at = middle + 1.0 if d & 1 else middle - 1.0
        return at, at
    return middle - 1.0, middle + 1.0


@njit(cache=True, nogil=True)
def squared(lo, hi, i, other_lo, other_hi, j, half):
    """Squared distance in nm2 of box i and box j."""
    out = 0.0
    for a in range(3):
        g = max(other_lo[j, a] - hi[i, a], lo[i, a] - other_hi[j, a])
        if g > 0.0:
            g *= half[a]
            out += g * g
    return out


@njit(cache=True, nogil=True)
def _to_face(lo, hi, i, voxels, sides, origin, j, half):
    """Squared distance in nm2 of box i and face j."""
    out = 0.0
    for a in range(3):
        p, q = span(voxels, sides, origin, j, a)
        g = max(p - hi[i, a], lo[i, a] - q)
        if g > 0.0:
            g *= half[a]
            out += g * g
    return out


@njit(cache=True, nogil=True)
def face_key(voxels, sides, origin, j, ny, nx):
    """raster index * 6 + side of face j, in a volume of ny x nx voxels a plane."""
    z, y, x = origin[0] + np.int64(voxels[j, 0]), origin[1] + np.int64(voxels[j, 1]), origin[2] + np.int64(voxels[j, 2])
    return ((z * ny + y) * nx + x) * 6 + np.int64(sides[j])


@njit(cache=True, nogil=True)
def wanted(least, most, own, which):
    """Whether labels from `least` to `most` may hold one that the search takes."""
    if which == ANY:
        return True
    if which == OWN:
        return least <= own and own <= most
    return least != own or most != own


@njit(cache=True, nogil=True)
def _leaf(lo, hi, keys, group, group_lo, group_hi, g, r, n, half, ny, nx, tree, near, d2, label, face, query):
    """Lower row r by the faces of leaf n, measured from the boxes of group g. `near`: room for the faces of a leaf."""
    origin, labels, voxels, sides, leaf_start, leaf_label = tree[0], tree[1], tree[2], tree[3], tree[4], tree[5]
    node_lo, node_hi = tree[9], tree[10]
    theirs = labels[leaf_label[n]]
    least = face_key(voxels, sides, origin, leaf_start[n], ny, nx)  # a leaf's faces come by their keys
    alone = group[g + 1] - group[g] == 1
    found = 0
    for j in range(leaf_start[n], leaf_start[n + 1]):
        if alone or _to_face(group_lo, group_hi, g, voxels, sides, origin, j, half) <= d2[r]:
            near[found] = j
            found += 1
    if not found:
        return
    for i in range(group[g], group[g + 1]):
        bound = squared(lo, hi, i, node_lo, node_hi, n, half)
        if bound > d2[r] or (bound == d2[r] and (theirs > label[r] or (theirs == label[r] and least > face[r]))):
            continue
        for at in range(found):
            j = near[at]
            d = _to_face(lo, hi, i, voxels, sides, origin, j, half)
            if d > d2[r]:
                continue
            key = face_key(voxels, sides, origin, j, ny, nx)
            if d == d2[r]:
                if theirs != label[r]:
                    if theirs > label[r]:
                        continue
                elif key != face[r]:
                    if key > face[r]:
                        continue
                elif keys[i] >= query[r]:
                    continue
            d2[r], label[r], face[r], query[r] = d, theirs, key, keys[i]


@njit(cache=True, nogil=True)
def nearest(lo, hi, keys, group, row, group_lo, group_hi, own, which, half, ny, nx, tree, d2, label, face, query):
    """Lower, for each group of boxes, what is known of its row: the least squared distance to a face of the tree, and of those as near the least
    (label, key of the face, key of the box). `row` of a group; boxes group[g]:group[g + 1]; `own` label of a row."""
    labels = tree[1]
    of_label, leaves, level, node_lo, node_hi, label_min, label_max = tree[6], tree[7], tree[8], tree[9], tree[10], tree[11], tree[12]
    levels = len(level) - 1
    stack_level, stack_node, stack_bound = np.empty(FAN * 24, np.int64), np.empty(FAN * 24, np.int64), np.empty(FAN * 24)
    sort_node, sort_bound = np.empty(FAN, np.int64), np.empty(FAN)
    largest = 0
    for n in range(len(tree[5])):
        largest = max(largest, tree[4][n + 1] - tree[4][n])
    near = np.empty(largest, np.int64)
    for g in range(len(row)):
        r = row[g]
        if which == OWN:
            k = np.searchsorted(labels, own[r])
            if k == len(labels) or labels[k] != own[r]:
                continue
            if of_label[k + 1] - of_label[k] <= FEW:
                for at in range(of_label[k], of_label[k + 1]):
                    if squared(group_lo, group_hi, g, node_lo, node_hi, leaves[at], half) <= d2[r]:
                        _leaf(lo, hi, keys, group, group_lo, group_hi, g, r, leaves[at], half, ny, nx, tree, near, d2, label, face, query)
                continue
        top = 0
        stack_level[0], stack_node[0] = levels - 1, level[levels - 1]
        stack_bound[0] = squared(group_lo, group_hi, g, node_lo, node_hi, level[levels - 1], half)
        while top >= 0:
            k, n, bound = stack_level[top], stack_node[top], stack_bound[top]
            top -= 1
            if bound > d2[r] or not wanted(label_min[n], label_max[n], own[r], which) or (bound == d2[r] and label_min[n] > label[r]):
                continue
            if k == 0:
                _leaf(lo, hi, keys, group, group_lo, group_hi, g, r, n, half, ny, nx, tree, near, d2, label, face, query)
                continue
            first = level[k - 1] + FAN * (n - level[k])
            found = 0
            for c in range(first, min(first + FAN, level[k])):
                b = squared(group_lo, group_hi, g, node_lo, node_hi, c, half)
                if b > d2[r]:
                    continue
                at = found
                while at > 0 and sort_bound[at - 1] < b:  # the nearest last, so that it is taken next
                    sort_node[at], sort_bound[at] = sort_node[at - 1], sort_bound[at - 1]
                    at -= 1
                sort_node[at], sort_bound[at] = c, b
                found += 1
            for at in range(found):
                top += 1
                stack_level[top], stack_node[top], stack_bound[top] = k - 1, sort_node[at], sort_bound[at]
