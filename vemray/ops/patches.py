"""Connected patches of faces, counted exactly in blocks: faces of one kind are of one patch if they share a corner of voxels, or other faces of the
kind lead from one to the other.

A face's corners lie in its block or on the block's faces, and two blocks share only these. So a block joins its own faces, and of patches that reach a
side where the volume goes on it keeps their corners there: what a group of blocks holds grows with its outside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from vemray.geometry import Box, Int3


@dataclass
class Patches:
    """Patches of the kinds (of, to) that may go on beyond `box`, and each one's `corner`s on its outside: raster indices among the voxels' corners."""

    box: Box
    shape: Int3
    of: np.ndarray  # uint64 (n,)
    to: np.ndarray  # uint64 (n,)
    corner: np.ndarray  # int64 (m,)
    patch: np.ndarray  # int64 (m,): numbers of patches

    def merge(self, upper: Patches) -> tuple[Patches, np.ndarray, np.ndarray]:
        """Of the joint box; and the kinds (of, to) of the patches that are now complete, each as often as there are."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        of, to = np.concatenate([self.of, upper.of]), np.concatenate([self.to, upper.to])
        corner, patch = np.concatenate([self.corner, upper.corner]), np.concatenate([self.patch, upper.patch + len(self.of)])
        if len(of):
            order = np.lexsort((corner, to[patch], of[patch]))
            corner, patch = corner[order], patch[order]
            a, b = patch[:-1], patch[1:]
            same = (corner[1:] == corner[:-1]) & (of[a] == of[b]) & (to[a] == to[b])
            _, joined = connected_components(coo_matrix((np.ones(same.sum(), bool), (a[same], b[same])), shape=(len(of),) * 2), directed=False)
            first = np.unique(joined, return_index=True)[1]
            of, to = of[first], to[first]
            once = np.append(True, ~same)
            corner, patch = corner[once], joined[patch[once]].astype(np.int64)
        return Patches(Box(self.box.start, upper.box.stop), self.shape, of, to, corner, patch).parted()

    def parted(self) -> tuple[Patches, np.ndarray, np.ndarray]:
        """The patches that may go on, and the kinds of the others."""
        _, ny, nx = (n + 1 for n in self.shape)
        outside = np.zeros(len(self.corner), bool)
        for axis, at in enumerate((self.corner // (ny * nx), self.corner // nx % ny, self.corner % nx)):
            start, stop = self.box.start[axis], self.box.stop[axis]
            outside |= (at == start) & (start > 0) | (at == stop) & (stop < self.shape[axis])
        corner, patch = self.corner[outside], self.patch[outside]
        open_ = np.zeros(len(self.of), bool)
        open_[patch] = True
        number = np.cumsum(open_) - 1
        return Patches(self.box, self.shape, self.of[open_], self.to[open_], corner, number[patch]), self.of[~open_], self.to[~open_]


class Growing:
    """The patches of one block, while its faces come. Takes some 30 bytes for each corner of each kind."""

    def __init__(self, box: Box, shape: Int3):
        self.box, self.shape = box, shape
        self.kinds: dict[tuple[int, int], int] = {}
        self.n = 0  # corners so far
        self.keys, self.parent, self.slots = np.empty(0, np.int64), np.empty(0, np.int32), np.full(1, -1, np.int32)

    def add(self, of: np.ndarray, to: np.ndarray, voxels: np.ndarray, sides: np.ndarray) -> None:
        """Faces of the kinds (of, to), by kind; `voxels` (m, 3) are global."""
        first = np.ones(len(of), bool)
        first[1:] = (of[1:] != of[:-1]) | (to[1:] != to[:-1])
        rows = np.array([self.kinds.setdefault(kind, len(self.kinds)) for kind in zip(of[first].tolist(), to[first].tolist())], np.int64)
        most = self.n + 4 * len(of)
        if most > len(self.keys):
            more = most + len(self.keys) // 2 - self.n
            self.keys, self.parent = (
                np.append(self.keys[: self.n], np.empty(more, np.int64)),
                np.append(self.parent[: self.n], np.empty(more, np.int32)),
            )
        if 3 * most > 2 * len(self.slots):
            self.slots = np.full(1 << (2 * most - 1).bit_length(), -1, np.int32)
            _rehash(self.keys, self.n, self.slots)
        dims = np.array(self.box.shape, np.int64) + 1
        self.n = _link(rows[np.cumsum(first) - 1], voxels, np.array(self.box.start), sides, dims, self.keys, self.parent, self.slots, self.n)

    def done(self) -> tuple[Patches, np.ndarray, np.ndarray]:
        """As `Patches.parted`."""
        keys = self.keys[: self.n]
        roots = _flat(self.parent[: self.n])
        is_root = roots == np.arange(self.n)
        dims = np.array(self.box.shape, np.int64) + 1
        kinds = np.array(list(self.kinds), np.uint64).reshape(-1, 2)[keys[is_root] // dims.prod()]
        outer = np.array(self.shape, np.int64) + 1
        at = [i + a for i, a in zip(np.unravel_index(keys % dims.prod(), dims), self.box.start)]
        corner = (at[0] * outer[1] + at[1]) * outer[2] + at[2]
        return Patches(self.box, self.shape, kinds[:, 0], kinds[:, 1], corner, (np.cumsum(is_root) - 1)[roots]).parted()


@njit(cache=True, nogil=True)
def _slot(key, keys, slots):
    """Where the key is in the open hash table of places in `keys`, or the free slot where it goes."""
    mask = np.uint64(len(slots) - 1)
    h = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    i = (h ^ (h >> np.uint64(29))) & mask
    while slots[i] >= 0 and keys[slots[i]] != key:
        i = (i + np.uint64(1)) & mask
    return i


@njit(cache=True, nogil=True)
def _rehash(keys, n, slots):
    for k in range(n):
        slots[_slot(keys[k], keys, slots)] = k


@njit(cache=True, nogil=True)
def _root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def _link(row, voxels, start, sides, dims, keys, parent, slots, n):
    """Join the four corners of each face; new ones from n on. Their number."""
    for f in range(len(row)):
        a = sides[f] >> 1
        b, c = (1 if a == 0 else 0), (1 if a == 2 else 2)
        at = np.int64(0)
        step_b = step_c = np.int64(1)
        for k in range(3):
            at = at * dims[k] + voxels[f, k] - start[k] + (sides[f] & 1 if k == a else 0)
            step_b *= dims[k] if k > b else 1
            step_c *= dims[k] if k > c else 1
        at += row[f] * dims[0] * dims[1] * dims[2]
        first = np.int32(-1)
        for corner in range(4):
            key = at + (corner >> 1) * step_b + (corner & 1) * step_c
            i = _slot(key, keys, slots)
            if slots[i] < 0:
                slots[i], keys[n], parent[n] = n, key, n
                n += 1
            root = _root(parent, slots[i])
            if first < 0:
                first = root
            elif root < first:
                parent[first] = root
                first = root
            else:
                parent[root] = first
    return n


@njit(cache=True, nogil=True)
def _flat(parent):
    """The root of each, the least of its patch."""
    out = np.empty(len(parent), np.int64)
    for i in range(len(parent)):
        out[i] = i if parent[i] == i else out[parent[i]]
    return out
