"""Labels of a block as small whole numbers: labels are sparse and up to 2^64, which neither tables nor compiled union-find can index."""

from __future__ import annotations

import numpy as np
from numba import njit

from vemray.ops.contingency import place


def paired(a: np.ndarray, b: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes (uint32): 0 where `a` (or `b`) is 0, else 1 + row of its pair (a, b) in the second array (n, 2), which is uint64. Codes are
    numbered as they are met; without `b` it counts as 1."""
    codes = np.empty(a.shape, np.uint32)
    a = a.view(np.uint8) if a.dtype == np.bool_ else a
    if b is None:
        return codes, _code(a, np.ones((1, 1, 1), np.uint8), False, codes)
    return codes, _code(a, b.view(np.uint8) if b.dtype == np.bool_ else b, True, codes)


def ranked(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes (uint32) in the order of the labels, and the label of each code: `ids[codes]` gives the labels back; ids[0] is 0."""
    codes, pairs = paired(labels)
    order = np.argsort(pairs[:, 0], kind="stable")
    lut = np.zeros(len(order) + 1, np.uint32)
    lut[order + 1] = np.arange(1, len(order) + 1, dtype=np.uint32)
    _map(codes, lut)
    return codes, np.concatenate([np.zeros(1, np.uint64), pairs[order, 0]])


def looked_up(codes: np.ndarray, ids: np.ndarray, dtype=np.uint64) -> np.ndarray:
    """`ids[codes]` as a new array of `dtype`."""
    out = np.empty(codes.shape, dtype)
    np.take(ids.astype(dtype), codes, out=out, mode="clip")  # "raise" would make a copy of it all
    return out


@njit(cache=True, nogil=True)
def _code(left, right, two, out):
    """Fills `out`; returns the pairs. Runs of one pair are looked up once."""
    table, slots = np.zeros((64, 2), np.uint64), np.full(256, -1, np.int64)
    n = 0
    last_a, last_b, at = np.uint64(0), np.uint64(1), -1
    for z in range(left.shape[0]):
        for y in range(left.shape[1]):
            for x in range(left.shape[2]):
                a, b = np.uint64(left[z, y, x]), np.uint64(1)
                if two:
                    b = np.uint64(right[z, y, x])
                if a == 0 or b == 0:
                    out[z, y, x] = 0
                    continue
                if at < 0 or a != last_a or b != last_b:
                    i = place(table, a, b, slots)
                    if slots[i] < 0:
                        if n == len(table):
                            more = np.zeros((3 * n // 2, 2), np.uint64)
                            more[:n] = table
                            table = more
                        slots[i] = n
                        table[n, 0], table[n, 1] = a, b
                        n += 1
                        at = n - 1
                        if 2 * n > len(slots):
                            slots = np.full(2 * len(slots), -1, np.int64)
                            for k in range(n):
                                slots[place(table, table[k, 0], table[k, 1], slots)] = k
                    else:
                        at = slots[i]
                    last_a, last_b = a, b
                out[z, y, x] = at + 1
    return table[:n].copy()


@njit(cache=True, nogil=True)
def _map(codes, lut):
    for z in range(codes.shape[0]):
        for y in range(codes.shape[1]):
            for x in range(codes.shape[2]):
                codes[z, y, x] = lut[codes[z, y, x]]
