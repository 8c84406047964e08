"""Merging partials in a tree over the grid, away from the driver: eight neighbours at a time, as soon as they are there."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from vemray.geometry import Int3


def merge_cube(coords: list[Int3], *partials: Any) -> Any:
    """Merge up to 2 x 2 x 2 neighbours (x, then y, then z), so that every pair merged is two adjoining boxes. Runs as a task."""
    cells = dict(zip(coords, partials))
    for axis in (2, 1, 0):
        joined: dict[Int3, Any] = {}
        for c in sorted(cells):
            key = c[:axis] + (c[axis] >> 1,) + c[axis + 1 :]
            joined[key] = cells[c] if key not in joined or joined[key] is None else joined[key].merge(cells[c], axis)
        cells = joined
    (out,) = cells.values()
    return out


class Tree:
    """Collects partials of cubes of blocks and merges siblings when all are there. `call(fn, *args) -> handle`."""

    def __init__(self, counts: Int3, call: Callable[..., Any]):
        self.counts, self.call = counts, call
        self.waiting: dict[tuple[int, Int3], dict[Int3, Any]] = {}
        self.root: Any = None

    def add(self, coords: Int3, handle: Any, level: int = 0) -> None:
        """`handle`: the partial of cell `coords` of level 0 (whose counts were given)."""
        counts = tuple(-(-n // (1 << level)) for n in self.counts)
        if counts == (1, 1, 1):
            self.root = handle
            return
        parent = tuple(c >> 1 for c in coords)
        here = self.waiting.setdefault((level, parent), {})
        here[coords] = handle
        siblings = [c for c in itertools.product(*(range(2 * p, 2 * p + 2) for p in parent)) if all(a < n for a, n in zip(c, counts))]
        if len(here) == len(siblings):
            del self.waiting[level, parent]
            order = sorted(here)
            self.add(parent, self.call(merge_cube, order, *[here[c] for c in order]), level + 1)
