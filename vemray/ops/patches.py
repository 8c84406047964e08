"""Connected patches of faces, counted exactly in blocks: faces of one kind are of one patch if they share a corner of voxels, or other faces of the
kind lead from one to the other.

A face's corners lie in its block or on the block's faces, and two blocks share only these. So a block joins its own faces, and of patches that reach a
side where the volume goes on it keeps their corners there: what a group of blocks holds grows with its outside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from vemray.geometry import Box, Int3
from vemray.ops.contingency import place


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
    """The patches of one block, while its faces come."""

    def __init__(self, box: Box, shape: Int3):
        self.box, self.shape = box, shape
        self.kinds, self.n_kinds, self.kind_slots = np.empty((0, 2), np.uint64), 0, np.full(1, -1, np.int32)
        self.keys, self.parent, self.n, self.slots = np.empty(0, np.int64), np.empty(0, np.int32), 0, np.full(1, -1, np.int32)

    def add(self, of: np.ndarray, to: np.ndarray, voxels: np.ndarray, sides: np.ndarray) -> None:
        """Faces of the kinds (of, to), by kind; `voxels` (m, 3) are global."""
        first = np.ones(len(of), bool)
        first[1:] = (of[1:] != of[:-1]) | (to[1:] != to[:-1])
        new = np.stack([of[first], to[first]], axis=1)
        most = self.n_kinds + len(new)
        self.kinds = _room(self.kinds, self.n_kinds, most)
        if 3 * most > 2 * len(self.kind_slots):
            self.kind_slots = np.full(1 << (2 * most - 1).bit_length(), -1, np.int32)
            _kinds_again(self.kinds, self.n_kinds, self.kind_slots)
        rows, self.n_kinds = _rows(new, self.kinds, self.n_kinds, self.kind_slots)
        most = self.n + 4 * len(of)
        self.keys, self.parent = _room(self.keys, self.n, most), _room(self.parent, self.n, most)
        if 3 * most > 2 * len(self.slots):
            self.slots = np.empty(0, np.int32)
            self.slots = np.full(1 << (2 * most - 1).bit_length(), -1, np.int32)
            _again(self.keys, self.n, self.slots)
        self.n = _link(rows[np.cumsum(first) - 1], voxels, self._start(), sides, self._corners(), self.keys, self.parent, self.slots, self.n)

    def done(self) -> tuple[Patches, np.ndarray, np.ndarray]:
        """The patches that may go on, and the kinds of the others."""
        self.slots = np.empty(0, np.int32)
        kind, open_, corner, patch = _ended(self.keys, self.parent, self.n, self._start(), self._corners(), np.array(self.shape, np.int64))
        of, to = self.kinds[kind].T
        return Patches(self.box, self.shape, of[open_], to[open_], corner, (np.cumsum(open_) - 1)[patch]), of[~open_], to[~open_]

    def _start(self) -> np.ndarray:
        return np.array(self.box.start, np.int64)

    def _corners(self) -> np.ndarray:
        return np.array(self.box.shape, np.int64) + 1


def _room(array: np.ndarray, used: int, most: int) -> np.ndarray:
    """The array, longer if it has no room for `most`."""
    if most <= len(array):
        return array
    out = np.empty((max(most, 3 * len(array) // 2), *array.shape[1:]), array.dtype)
    out[:used] = array[:used]
    return out


@njit(cache=True, nogil=True)
def _kinds_again(kinds, n, slots):
    for k in range(n):
        slots[place(kinds, kinds[k, 0], kinds[k, 1], slots)] = k


@njit(cache=True, nogil=True)
def _rows(new, kinds, n, slots):
    """Row of each kind, new ones from n on; and their number."""
    out = np.empty(len(new), np.int64)
    for k in range(len(new)):
        i = place(kinds, new[k, 0], new[k, 1], slots)
        if slots[i] < 0:
            slots[i], kinds[n, 0], kinds[n, 1] = n, new[k, 0], new[k, 1]
            n += 1
        out[k] = slots[i]
    return out, n


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
def _again(keys, n, slots):
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
def _ended(keys, parent, n, start, dims, shape):
    """Of each patch its kind and whether it reaches a side where the volume goes on; of the corners there, raster index and patch."""
    number, patches = np.empty(n, np.int32), 0
    for i in range(n):  # a root is the least of its patch
        if parent[i] == i:
            number[i] = patches
            patches += 1
        else:
            number[i] = number[parent[i]]
    kind, open_ = np.empty(patches, np.int64), np.zeros(patches, np.bool_)
    corner, patch = np.empty(0, np.int64), np.empty(0, np.int64)
    for turn in range(2):  # counted, then written
        found = 0
        for i in range(n):
            rest, index, outside, stride = keys[i], np.int64(0), False, np.int64(1)
            for a in range(2, -1, -1):
                at = rest % dims[a]
                rest //= dims[a]
                outside |= (at == 0 and start[a] > 0) or (at == dims[a] - 1 and start[a] + at < shape[a])
                index += (at + start[a]) * stride
                stride *= shape[a] + 1
            kind[number[i]] = rest
            if outside:
                if turn:
                    corner[found], patch[found] = index, number[i]
                    open_[number[i]] = True
                found += 1
        if not turn:
            corner, patch = np.empty(found, np.int64), np.empty(found, np.int64)
    return kind, open_, corner, patch
