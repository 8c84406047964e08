"""The region graph of a watershed in a group of blocks, and how it shrinks as groups merge.

Regions are joined by Kruskal's rule: edges in ascending (saddle, place), each joining the two sides if the shallower one's depth
below the saddle is at most h (by height), or if one side holds no marker (by markers). All edges are distinct, so the outcome is
one. The whole graph fits no machine; what a group of blocks knows of it is reduced in ways that leave the outcome as it is:

dead edges    Both sides are deeper than h now (or both marked). Minima only get deeper: the edge never joins.
cycles        The highest edge of a cycle never decides: if the others did not all join before, the two ends of the first and of the
              last that failed were too deep (marked), so both ends of the highest edge are.
contraction   A region whose edges are all known, lowest edge e to b, and no deeper than h below e (or unmarked) surely joins over e,
              and joining it to b beforehand changes nothing: for saddles s below e, its minimum m >= e - h > s - h is not deep either,
              so whether b is deep at s is the same with and without m.

Regions on the group's outer planes are frozen: some of their edges are not known. A path of steepest descent that leaves the group
ends in an *exit*, a region that stands for the voxel it leads to (its value is an upper bound of the minimum), and becomes part of
that voxel's region in the merge that brings the voxel in. Thus a key k means "the region that voxel k is in", in every block.
Where only the `regions` most persistent are wanted, the height is known at the end: whatever it is, it is at least the one given, so
contraction is as safe as before, but no edge is dead and a tree of edges between the regions deeper than that is kept. A region's
persistence is its depth where it meets a deeper one; those with more than h are what remains at height h, so the height that leaves the
wanted number is the first persistence that is not wanted.

The idea of contracting by chunks: Lu et al., arXiv:2106.10795.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from vemray.geometry import Int3
from vemray.ops.base import Numbering
from vemray.ops.planes import Planes
from vemray.ops.watershed_kernels import saddles_between
from vemray.ops.watershed_reduction import find_all, persistences, reduce_graph


@dataclass(frozen=True)
class Rule:
    """How regions join: `height` in the landscape's units, or `by_marks`; `regions`: how many may be left, 0 for any number.
    `reduce=False` keeps the whole graph (for tests)."""

    volume: Int3
    full: bool
    by_marks: bool
    height: float
    reduce: bool = True
    regions: int = 0

    @property
    def most(self) -> float:
        """The largest height that may turn out."""
        return math.inf if self.regions else self.height


@dataclass
class Edges:
    """Between regions counted from 0, `a != b`; `place` identifies the pair of voxels of the lowest saddle."""

    a: np.ndarray
    b: np.ndarray
    saddle: np.ndarray
    place: np.ndarray

    def take(self, which) -> Edges:
        return Edges(self.a[which], self.b[which], self.saddle[which], self.place[which])

    def ascending(self) -> Edges:
        return self.take(np.lexsort((self.place, self.saddle)))

    def with_ends(self, lut: np.ndarray) -> Edges:
        """Ends mapped, loops left out."""
        out = Edges(lut[self.a], lut[self.b], self.saddle, self.place)
        return out.take(out.a != out.b)

    def __add__(self, other: Edges) -> Edges:
        return Edges(
            *(np.concatenate([x, y]) for x, y in zip((self.a, self.b, self.saddle, self.place), (other.a, other.b, other.saddle, other.place)))
        )


@dataclass
class Regions:
    """Regions that may still change, by number 0..n-1: their key, lowest value known, whether marked, whether an exit, and the object
    they lie in (0 where there are none)."""

    key: np.ndarray
    low: np.ndarray
    marked: np.ndarray
    is_exit: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.key)

    def take(self, which) -> Regions:
        return Regions(self.key[which], self.low[which], self.marked[which], self.is_exit[which], self.group[which])

    def __add__(self, other: Regions) -> Regions:
        return Regions(*(np.concatenate([x, y]) for x, y in zip(vars(self).values(), vars(other).values())))


def reduced(regions: Regions, edges: Edges, frozen: np.ndarray, rule: Rule) -> tuple[np.ndarray, Edges]:
    """Owner of each region, and the edges that are left, between owners. Owners' `low` and `marked` are brought up to date."""
    owner = np.arange(len(regions))
    if not rule.reduce:
        return owner, edges
    edges = edges.ascending()
    keep = reduce_graph(edges.a, edges.b, edges.saddle, regions.low, regions.marked, frozen, rule.by_marks, rule.height, rule.most, owner)
    return owner, edges.take(keep).with_ends(owner)


@dataclass
class RegionGraph:
    """Evidence of a watershed. `keys`, `firsts`, `marks`: of all blocks' labels, the first voxel and the marker (0: none);
    `joins`: (key, key of the region that it became part of). The planes hold 1 + region, 0 for none, and the landscape."""

    rule: Rule
    keys: list[np.ndarray]
    firsts: list[np.ndarray]
    marks: list[np.ndarray]
    regions: Regions
    edges: Edges
    ids: Planes
    values: Planes
    joins: list[np.ndarray] = field(default_factory=list)

    def merge(self, upper: RegionGraph, axis: int) -> RegionGraph:
        n = len(self.regions)
        regions = self.regions + upper.regions
        shift = np.arange(n, n + len(upper.regions) + 1, dtype=np.uint32)
        shift[0] = 0
        ids_a, ids_b = self.ids.facing(upper.ids, axis)
        ids_b = shift[ids_b]
        values_a, values_b = self.values.facing(upper.values, axis)
        target = np.arange(len(regions))
        self._enter(target[:n], regions.key[:n], regions.is_exit[:n], upper.ids, ids_b, axis, 0)
        self._enter(target[n:], regions.key[n:], regions.is_exit[n:], self.ids, ids_a, axis, 1)
        target = self._unify(regions, find_all(target))
        # what was contracted into an exit is part of the target now (nothing marked ever is; an exit's own value is that of a target's voxel)
        np.minimum.at(regions.low, target, regions.low.copy())

        lut = np.concatenate([[0], target + 1]).astype(np.uint32)
        corner = np.array(self.ids.box.start, np.int64)
        corner[axis] = self.ids.box.stop[axis] - 1
        rule, volume = self.rule, np.array(self.rule.volume, np.int64)
        facing = (lut[ids_a], lut[ids_b], values_a, values_b, regions.low, regions.marked, regions.group, rule.by_marks, rule.most, rule.reduce)
        a, b, saddle, place = saddles_between(*facing, axis, corner, volume, rule.full)
        upper_edges = Edges(upper.edges.a + n, upper.edges.b + n, upper.edges.saddle, upper.edges.place)
        edges = (self.edges + upper_edges).with_ends(target) + Edges(a.astype(np.int64) - 1, b.astype(np.int64) - 1, saddle, place)

        self.values = self.values.join(upper.values, axis)
        self.ids = self.ids.join(upper.ids.map(shift), axis).map(lut)
        frozen = self.ids.used(len(regions) + 1)[1:]
        owner, edges = reduced(regions, edges, frozen, rule)
        final = owner[target]
        moved = regions.key != regions.key[final]
        self.joins += [*upper.joins, np.stack([regions.key[moved], regions.key[final[moved]]], 1)]
        self.keys, self.firsts, self.marks = self.keys + upper.keys, self.firsts + upper.firsts, self.marks + upper.marks
        self._settle(regions, edges, owner, frozen)
        return self

    def _enter(self, target, keys, is_exit, other: Planes, plane: np.ndarray, axis: int, side: int) -> None:
        """Point exits whose voxel lies in the other group at the region there; `plane` is that group's facing plane."""
        which = np.flatnonzero(is_exit)
        at = np.stack(np.unravel_index(keys[which].astype(np.int64), self.rule.volume), 1)
        box = other.box
        in_it = ((at >= box.start) & (at < box.stop)).all(1)
        at = np.delete(at[in_it] - np.array(box.start), axis, axis=1)
        target[which[in_it]] = plane[at[:, 0], at[:, 1]].astype(np.int64) - 1

    def _unify(self, regions: Regions, target: np.ndarray) -> np.ndarray:
        """One region for exits that lead to the same voxel. Flat targets."""
        open_exits = np.flatnonzero(regions.is_exit & (target == np.arange(len(target))))
        _, first, back = np.unique(regions.key[open_exits], return_index=True, return_inverse=True)
        target[open_exits] = open_exits[first[back]]
        return target[target]

    def _settle(self, regions: Regions, edges: Edges, owner: np.ndarray, frozen: np.ndarray) -> None:
        """Keep the regions on the outer planes or with edges; forget the others, which are final."""
        live = np.zeros(len(regions), bool)
        live[owner[frozen]] = True
        live[edges.a] = live[edges.b] = True
        number = np.cumsum(live) - 1
        self.regions = regions.take(live)
        self.edges = Edges(number[edges.a], number[edges.b], edges.saddle, edges.place)
        self.ids = self.ids.map(np.concatenate([[0], np.where(live, number, -1)[owner] + 1]).astype(np.uint32))

    def resolve(self) -> Numbering:
        rule = self.rule
        joins = list(self.joins)
        if rule.regions or not rule.reduce:
            joins.append(self._join_all())
        all_keys = np.concatenate(self.keys)
        order = np.argsort(all_keys, kind="stable")
        keys, start = np.unique(all_keys[order], return_index=True)
        firsts = np.minimum.reduceat(np.concatenate(self.firsts)[order], start) if len(keys) else keys
        parent = np.arange(len(keys))
        for j in joins:
            parent[np.searchsorted(keys, j[:, 0])] = np.searchsorted(keys, j[:, 1])
        while True:  # chains have no circles; their length halves each time
            grand = parent[parent]
            if (grand == parent).all():
                break
            parent = grand
        if rule.by_marks:
            marks = np.maximum.reduceat(np.concatenate(self.marks)[order], start) if len(keys) else keys
            of_root = np.zeros(len(keys), np.uint64)
            np.maximum.at(of_root, parent, marks)  # a tree holds one marker
            ids = of_root[parent]
            return Numbering(keys, ids, len(np.setdiff1d(ids, [0])))
        np.minimum.at(firsts, parent, firsts.copy())
        roots = np.flatnonzero(parent == np.arange(len(keys)))
        ids = np.zeros(len(keys), np.uint64)
        ids[roots[np.argsort(firsts[roots])]] = np.arange(1, len(roots) + 1, dtype=np.uint64)
        return Numbering(keys, ids[parent], len(roots))

    def _join_all(self) -> np.ndarray:
        edges, rule = self.edges.ascending(), self.rule
        height = rule.height
        if rule.regions:
            depths = np.sort(persistences(edges.a, edges.b, edges.saddle, self.regions.low.copy()))
            # one region of each connected part of the graph has none and always stays; so do those that are out of the graph already
            everywhere = self._count() - len(depths)
            wanted = max(0, rule.regions - everywhere)
            if wanted < len(depths):
                height = max(height, float(depths[len(depths) - 1 - wanted]))
        owner = np.arange(len(self.regions))
        nothing = np.zeros(len(self.regions), bool)
        low, marked = self.regions.low.copy(), self.regions.marked.copy()  # what came from another process cannot be written to
        reduce_graph(edges.a, edges.b, edges.saddle, low, marked, nothing, rule.by_marks, height, height, owner)
        return np.stack([self.regions.key, self.regions.key[owner]], 1)

    def _count(self) -> int:
        """How many regions there are now."""
        gone = [j[:, 0] for j in self.joins]
        return len(np.setdiff1d(np.concatenate(self.keys), np.concatenate(gone) if gone else np.zeros(0, np.uint64)))
