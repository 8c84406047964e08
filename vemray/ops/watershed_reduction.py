"""Compiled steps on the region graph of a watershed: what is certain to join, and how persistent regions are. Ids count from 0."""

from __future__ import annotations

import numpy as np
from numba import njit

from vemray.ops.watershed_kernels import joins, shallow


@njit(cache=True, nogil=True)
def find(owner, i):
    while owner[i] != i:
        owner[i] = owner[owner[i]]
        i = owner[i]
    return i


@njit(cache=True, nogil=True)
def reduce_graph(a, b, s, low, marked, frozen, by_marks, height, most, owner):
    """Contract what is certain to join, over edges in ascending order; see `vemray.ops.watershed_graph`. All ids count from 0. The height
    to come is at least `height` and at most `most`. Changes `low` and `marked` of what regions are contracted into; fills `owner`. Returns which edges must be kept."""
    n = owner.size
    tree = np.arange(n)
    blocked = np.zeros(n, np.bool_)
    keep = np.zeros(a.size, np.bool_)
    for e in range(a.size):
        u, v = find(owner, a[e]), find(owner, b[e])
        if u == v or not joins(s[e], low[u], low[v], marked[u], marked[v], by_marks, most):
            continue
        ru, rv = find(tree, u), find(tree, v)
        if ru == rv:  # the highest edge of a cycle decides nothing
            continue
        tree[ru] = rv
        u_can = not (frozen[u] or blocked[u]) and (not marked[u] if by_marks else shallow(s[e], low[u], height))
        v_can = not (frozen[v] or blocked[v]) and (not marked[v] if by_marks else shallow(s[e], low[v], height))
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


@njit(cache=True, nogil=True)
def persistences(a, b, s, low):
    """Depth of each region at the edge where it meets a deeper one (of equal ones one stays), over edges in ascending order; regions that
    meet none have none. Changes `low`."""
    n = low.size
    owner = np.arange(n)
    out = np.empty(a.size, np.float64)
    k = 0
    for e in range(a.size):
        u, v = find(owner, a[e]), find(owner, b[e])
        if u == v:
            continue
        higher = max(low[u], low[v])
        out[k] = 0.0 if s[e] <= higher else np.float64(s[e]) - np.float64(higher)
        k += 1
        owner[u] = v
        low[v] = min(low[u], low[v])
    return out[:k].copy()
