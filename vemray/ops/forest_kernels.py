"""Inner loops of the random forest: its trees laid out for speed, and many voxels sent through them together.

Small trees answer all their questions for all voxels, without a jump: a question answered 'greater' strikes out the leaves on its left, and the first
leaf that is left is the voxel's (QuickScorer, Lucchese et al. 2015; this is its form for vector units). In large trees voxels walk from the root."""

from __future__ import annotations

import numpy as np
from numba import njit

#: voxels that go through the trees together
TOGETHER = 128
#: leaves of a small tree: one bit each
BITS = 32
_ALL = np.uint32(0xFFFFFFFF)
#: position of the lowest set bit, by de Bruijn's sequence
_SEQUENCE = np.uint64(0x077CB531)
_PLACE = np.empty(32, np.uint32)
_PLACE[[((1 << i) * 0x077CB531 & 0xFFFFFFFF) >> 27 for i in range(32)]] = np.arange(32)


@njit(cache=True, nogil=True)
def lay_out(feature, threshold, left, right, first, row, out_feature, out_threshold, out_left, out_leaf, out_keep):
    """One tree, given with its nodes in preorder, breadth first from node `first` on, so that children are neighbours; returns its depth.

    A leaf points to itself under a threshold that nothing exceeds, so that a walk of as many steps as the tree is deep needs no question whether
    it has arrived. Its row of the probabilities is `row` + its `left`: leaves are numbered from left to right. `out_keep`, in a small tree: the leaves
    that are not on the left of a node. `out_feature` is where the feature's values begin among those of TOGETHER voxels."""
    n = len(feature)
    order, level = np.empty(n, np.int64), np.zeros(n, np.int64)
    leaves = np.empty((n, 2), np.int64)  # first and last below each node
    for i in range(n - 1, -1, -1):
        if right[i] < 0:
            leaves[i] = left[i]
        else:
            leaves[i, 0], leaves[i, 1] = leaves[left[i], 0], leaves[right[i], 1]
    order[0] = 0
    known, depth = 1, 0
    for i in range(n):
        node, at = order[i], first + i
        depth = max(depth, level[i])
        if right[node] < 0:
            out_feature[at], out_threshold[at], out_left[at], out_leaf[at], out_keep[at] = 0, np.inf, at, row + left[node], _ALL
            continue
        out_feature[at], out_threshold[at] = feature[node] * TOGETHER, threshold[node]
        out_left[at], out_leaf[at] = first + known, -1
        if n < 2 * BITS:
            a, b = leaves[left[node]]
            out_keep[at] = 0xFFFFFFFF ^ (((1 << (b - a + 1)) - 1) << a)
        order[known], order[known + 1] = left[node], right[node]
        level[known] = level[known + 1] = level[i] + 1
        known += 2
    return depth


@njit(cache=True, nogil=True, error_model="numpy")
def vote(x, n, roots, depths, rows, feature, threshold, left, leaf, keep, probability, node, sums):
    """Sums over the trees, in their order, of the class probabilities (float64) of `n` voxels into `sums` (classes, TOGETHER). `x` holds each feature's values of TOGETHER
    voxels; `roots` and `rows` each tree's first node and row of the probabilities, and the end."""
    sums[:] = 0.0
    for t in range(len(depths)):
        first, end = roots[t], roots[t + 1]
        if end - first < 2 * BITS:
            for v in range(n):
                node[v] = _ALL
            for i in range(first, end):
                if leaf[i] < 0:
                    values, limit, some = x[feature[i] : feature[i] + n], threshold[i], keep[i]
                    for v in range(n):
                        node[v] &= some if values[v] > limit else _ALL
            for v in range(n):
                bits = np.uint64(node[v])
                lowest = bits & (~bits + np.uint64(1))
                node[v] = rows[t] + _PLACE[(lowest * _SEQUENCE & np.uint64(_ALL)) >> np.uint64(27)]
        else:
            for v in range(n):
                node[v] = first
            for _ in range(depths[t]):  # all go one step before any goes the next: the processor waits for none of them
                for v in range(n):
                    i = node[v]
                    node[v] = left[i] + np.uint32(x[feature[i] + np.uint32(v)] > threshold[i])
            for v in range(n):
                node[v] = leaf[node[v]]
        for c in range(sums.shape[0]):
            total = sums[c]
            for v in range(n):
                total[v] += probability[node[v], c]


@njit(cache=True, nogil=True, error_model="numpy")
def classify(features, mask, roots, depths, rows, feature, threshold, left, leaf, keep, probability, wanted, out):
    """`features` (columns, z, y, x). Into `out` (outputs, z, y, x), uint8: the mean probability of each class in `wanted` in 255 steps, rounded to nearest;
    if `wanted` is empty, the number (from 1) of the likeliest class, of equal ones the first. 0 where `mask` (z, y, x; empty for none) is not set."""
    columns, nz, ny, nx = features.shape
    trees, classes = len(depths), probability.shape[1]
    x = np.empty(TOGETHER * columns, np.float32)
    node = np.empty(TOGETHER, np.uint32)
    where = np.empty(TOGETHER, np.int64)
    sums = np.empty((classes, TOGETHER), np.float64)
    for z in range(nz):
        for y in range(ny):
            start = 0
            while start < nx:
                n = 0
                while start < nx and n < TOGETHER:
                    if mask.size == 0 or mask[z, y, start]:
                        where[n] = start
                        n += 1
                    else:
                        for o in range(out.shape[0]):
                            out[o, z, y, start] = 0
                    start += 1
                for f in range(columns):
                    line, values = features[f, z, y], x[f * TOGETHER : f * TOGETHER + n]
                    for v in range(n):
                        values[v] = line[where[v]]
                vote(x, n, roots, depths, rows, feature, threshold, left, leaf, keep, probability, node, sums)
                for v in range(n):
                    if len(wanted) == 0:
                        best = 0
                        for c in range(1, classes):
                            if sums[c, v] > sums[best, v]:
                                best = c
                        out[0, z, y, where[v]] = best + 1
                    for o in range(len(wanted)):
                        out[o, z, y, where[v]] = np.uint8(np.rint(sums[wanted[o], v] / trees * 255.0))
