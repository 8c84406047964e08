"""Inner loops of the random forest: its trees laid out for a fast walk, and the walk of many voxels at once."""

from __future__ import annotations

import numpy as np
from numba import njit

#: voxels that walk through the trees together
TOGETHER = 64


@njit(cache=True, nogil=True)
def breadth_first(feature, threshold, left, right, first, row, out_feature, out_threshold, out_left, out_leaf):
    """One tree in a layout in which children are neighbours, from node `first` on; returns its depth.

    A leaf points to itself under a threshold that nothing exceeds, so that a walk of as many steps as the tree is deep needs no question whether
    it has arrived. Leaves are numbered from `row` on in the order of their own rows (`left` of a leaf)."""
    n = len(feature)
    order, level = np.empty(n, np.int64), np.zeros(n, np.int64)
    order[0] = 0
    known, depth = 1, 0
    for i in range(n):
        node = order[i]
        depth = max(depth, level[i])
        if right[node] < 0:
            out_feature[first + i], out_threshold[first + i] = 0, np.inf
            out_left[first + i], out_leaf[first + i] = first + i, row + left[node]
            continue
        out_feature[first + i], out_threshold[first + i] = feature[node], threshold[node]
        out_left[first + i], out_leaf[first + i] = first + known, -1
        order[known], order[known + 1] = left[node], right[node]
        level[known] = level[known + 1] = level[i] + 1
        known += 2
    return depth


@njit(cache=True, nogil=True)
def walk(x, n, roots, depths, feature, threshold, left, leaf, probability, node, sums):
    """Sums over the trees, in their order, of the class probabilities (float64) of the first `n` voxels of `x` (voxels, features) into `sums`."""
    classes = probability.shape[1]
    sums[:n] = 0.0
    for t in range(len(roots)):
        for v in range(n):
            node[v] = roots[t]
        for _ in range(depths[t]):
            for v in range(n):
                i = node[v]
                node[v] = left[i] + np.int32(x[v, feature[i]] > threshold[i])
        for v in range(n):
            row = leaf[node[v]]
            for c in range(classes):
                sums[v, c] += probability[row, c]


@njit(cache=True, nogil=True, error_model="numpy")
def classify(features, mask, roots, depths, feature, threshold, left, leaf, probability, wanted, out):
    """`features` (columns, z, y, x). Into `out` (outputs, z, y, x), uint8: the mean probability of each class in `wanted` in 255 steps, rounded to nearest;
    if `wanted` is empty, the number (from 1) of the likeliest class, of equal ones the first. 0 where `mask` (z, y, x; empty for none) is not set."""
    columns, nz, ny, nx = features.shape
    trees, classes = len(roots), probability.shape[1]
    x = np.empty((TOGETHER, columns), np.float32)
    node = np.empty(TOGETHER, np.int32)
    where = np.empty(TOGETHER, np.int64)
    sums = np.empty((TOGETHER, classes), np.float64)
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
                    line = features[f, z, y]
                    for v in range(n):
                        x[v, f] = line[where[v]]
                walk(x, n, roots, depths, feature, threshold, left, leaf, probability, node, sums)
                for v in range(n):
                    if len(wanted) == 0:
                        best = 0
                        for c in range(1, classes):
                            if sums[v, c] > sums[v, best]:
                                best = c
                        out[0, z, y, where[v]] = best + 1
                    for o in range(len(wanted)):
                        out[o, z, y, where[v]] = np.uint8(np.rint(sums[v, wanted[o]] / trees * 255.0))
