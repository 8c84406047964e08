"""Skeletons of single objects: centre lines as a graph, with its length in nm, branch points, end points and loops.

The centre line is Lee, Kashyap and Chu's thinning (1994, CVGIP 56:462; `skimage.morphology.skeletonize`), which keeps the object's topology.
Voxels with three and more neighbours that touch are one branch point; the chains between are branches. Thinning leaves spurs where the surface is
rough: a branch that ends freely and is shorter than `prune` times the object's radius at its branch point is taken away, the shortest first, and
a branch point with two branches left is none. Lengths are those of the branches smoothed along themselves, since steps from voxel to voxel are
up to a tenth longer than the line that they follow; a line ends about a radius before the object does."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from vemray.geometry import Spacing

#: standard deviation, in voxels along a branch, of the smoothing before its length is measured
_SMOOTH = 2.0
#: bytes that the work takes for each voxel of the object's box
BYTES_PER_VOXEL = 16
_AROUND = [d for d in itertools.product((-1, 0, 1), repeat=3) if any(d)]


@dataclass
class Branch:
    """`path` float (n, 3): nm from the box's first voxel, ZYX, nodes included; `ends`: its two nodes (-1, -1 for a ring); `radius` (n,) nm."""

    path: np.ndarray
    ends: tuple[int, int]
    radius: np.ndarray
    length_nm: float = 0.0

    def __post_init__(self):
        self.length_nm = _length(self.path, self.ends[0] < 0)


@dataclass
class Skeleton:
    """`nodes`: id -> (position nm ZYX, radius nm) of branch points and end points; `points`: single voxels without a branch."""

    nodes: dict[int, tuple[np.ndarray, float]] = field(default_factory=dict)
    branches: list[Branch] = field(default_factory=list)
    points: list[tuple[np.ndarray, float]] = field(default_factory=list)

    def degrees(self) -> dict[int, int]:
        out = dict.fromkeys(self.nodes, 0)
        for b in self.branches:
            for n in b.ends:
                if n >= 0:
                    out[n] += 1
        return out

    def features(self) -> dict[str, float | int]:
        """length_nm; longest_path_nm: the longest of the shortest ways between two nodes (half of a ring); branch_points, end_points, loops;
        radius_mean_nm along the line."""
        degree = self.degrees()
        radius = np.concatenate([*(b.radius for b in self.branches), [r for _, r in self.points]])
        rings = sum(b.ends[0] < 0 for b in self.branches)
        loops = len(self.branches) - rings - len(self.nodes) + _components(self) + rings
        return {
            "length_nm": float(sum(b.length_nm for b in self.branches)),
            "longest_path_nm": _longest(self),
            "branch_points": sum(d > 2 for d in degree.values()),
            "end_points": sum(d == 1 for d in degree.values()) + len(self.points),
            "loops": loops,
            "radius_mean_nm": float(radius.mean()) if len(radius) else float("nan"),
        }


def skeleton_of(mask: np.ndarray, spacing: Spacing, prune: float = 1.0) -> Skeleton:
    """The skeleton of the object in `mask` (bool, its box; the box's border counts as the object's outside only where it has a margin)."""
    from edt import edt
    from skimage.morphology import skeletonize

    if not mask.any():
        return Skeleton()
    mask = np.ascontiguousarray(mask, dtype=bool)
    line = np.argwhere(skeletonize(mask, method="lee") > 0)
    distance = edt(mask, anisotropy=spacing.zyx, black_border=False)
    radius = distance[tuple(line.T)].astype(np.float64)
    found = np.isfinite(radius)
    radius[~found] = 0.0
    graph = _graph(line, radius, np.array(spacing.zyx))
    return _pruned(graph, prune) if prune > 0 else graph


def _graph(line: np.ndarray, radius: np.ndarray, size: np.ndarray) -> Skeleton:
    index = {tuple(v): i for i, v in enumerate(line.tolist())}
    near = [[j for d in _AROUND if (j := index.get((v[0] + d[0], v[1] + d[1], v[2] + d[2]))) is not None] for v in line.tolist()]
    node_of, out = np.full(len(line), -1), Skeleton()
    place = line * size
    for i, around in enumerate(near):  # voxels of one branch point
        if len(around) > 2 and node_of[i] < 0:
            group, stack = [], [i]
            node_of[i] = len(out.nodes)
            while stack:
                k = stack.pop()
                group.append(k)
                for j in near[k]:
                    if len(near[j]) > 2 and node_of[j] < 0:
                        node_of[j] = node_of[i]
                        stack.append(j)
            out.nodes[int(node_of[i])] = (place[group].mean(axis=0), float(radius[group].max()))
    done = node_of >= 0

    def chain(i: int, came: int) -> list[int]:
        """Voxels of a chain from i on, away from `came`."""
        walked = [i]
        done[i] = True
        while True:
            onward = [j for j in near[walked[-1]] if j != came and node_of[j] < 0 and not done[j]]
            if not onward:
                return walked
            came = walked[-1]
            walked.append(onward[0])
            done[onward[0]] = True

    def node_at(i: int, but: int) -> int:
        """The branch point that voxel i touches, another than `but` where there are two; -1 for none."""
        touched = sorted({int(node_of[j]) for j in near[i] if node_of[j] >= 0})
        others = [n for n in touched if n != but]
        return (others or touched or [-1])[0]

    starts = [i for i in range(len(line)) if not done[i] and sum(node_of[j] < 0 for j in near[i]) < 2]
    for i in starts:  # chains with an end
        if done[i]:
            continue
        walked = chain(i, -1)
        touched = [int(node_of[j]) for j in near[i] if node_of[j] >= 0]
        first = node_at(i, -1)
        if len(walked) == 1:
            last = node_at(i, first) if len(touched) > 1 else -1
            if first < 0:
                out.points.append((place[i], float(radius[i])))
                continue
        else:
            last = node_at(walked[-1], -1)
        _add(out, place[walked], radius[walked], first, last)
    for i in range(len(line)):  # rings
        if not done[i]:
            walked = chain(i, -1)
            out.branches.append(Branch(place[walked], (-1, -1), radius[walked]))
    return out


def _add(out: Skeleton, path: np.ndarray, radius: np.ndarray, first: int, last: int) -> None:
    """A branch between branch points; a free end (-1) becomes a node."""
    ends = []
    for node, at in ((first, 0), (last, -1)):
        if node >= 0:
            position, r = out.nodes[node]
            path = np.concatenate([position[None], path]) if at == 0 else np.concatenate([path, position[None]])
            radius = np.concatenate([[r], radius]) if at == 0 else np.concatenate([radius, [r]])
        else:
            node = max(out.nodes, default=-1) + 1
            out.nodes[node] = (path[at], float(radius[at]))
        ends.append(node)
    out.branches.append(Branch(path, (ends[0], ends[1]), radius))


def _length(path: np.ndarray, ring: bool) -> float:
    """Length in nm of the smoothed path; its ends stay where they are."""
    n = len(path)
    if n < 2:
        return 0.0
    reach = min(int(3 * _SMOOTH), n - 1)
    if ring:
        wide = path[np.arange(-reach, n + reach) % n]
    else:
        wide = np.concatenate([2 * path[0] - path[reach:0:-1], path, 2 * path[-1] - path[-2 : -2 - reach : -1]])
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _SMOOTH) ** 2)
    weight /= weight.sum()
    smooth = np.stack([np.convolve(wide[:, a], weight, "valid") for a in range(3)], axis=1)
    if ring:
        smooth = np.concatenate([smooth, smooth[:1]])
    return float(np.linalg.norm(np.diff(smooth, axis=0), axis=1).sum())


def _pruned(graph: Skeleton, prune: float) -> Skeleton:
    while True:
        degree = graph.degrees()
        spurs = []
        for i, b in enumerate(graph.branches):
            free = [k for k in (0, 1) if b.ends[k] >= 0 and degree[b.ends[k]] == 1]
            if len(free) == 1 and degree[b.ends[1 - free[0]]] > 2 and b.length_nm < prune * graph.nodes[b.ends[1 - free[0]]][1]:
                spurs.append((b.length_nm, i, b.ends[free[0]], b.ends[1 - free[0]]))
        if not spurs:
            return graph
        _, i, tip, node = min(spurs)
        del graph.branches[i], graph.nodes[tip]
        _joined(graph, node)


def _joined(graph: Skeleton, node: int) -> None:
    """A branch point with two branches left is a place on one."""
    mine = [b for b in graph.branches if node in b.ends]
    if sum(b.ends.count(node) for b in mine) != 2:
        return
    graph.branches = [b for b in graph.branches if node not in b.ends]
    del graph.nodes[node]
    if len(mine) == 1:  # from the node to itself: a ring
        graph.branches.append(Branch(mine[0].path[:-1], (-1, -1), mine[0].radius[:-1]))
        return
    one, other = (b if b.ends[k] == node else _turned(b) for b, k in zip(mine, (1, 0)))
    path, radius = np.concatenate([one.path, other.path[1:]]), np.concatenate([one.radius, other.radius[1:]])
    graph.branches.append(Branch(path, (one.ends[0], other.ends[1]), radius))


def _turned(b: Branch) -> Branch:
    return Branch(b.path[::-1], (b.ends[1], b.ends[0]), b.radius[::-1])


def _edges(graph: Skeleton):
    from scipy.sparse import coo_matrix

    number = {n: i for i, n in enumerate(graph.nodes)}
    shortest: dict[tuple[int, int], float] = {}
    for b in graph.branches:
        if b.ends[0] >= 0:
            pair = tuple(sorted((number[b.ends[0]], number[b.ends[1]])))
            shortest[pair] = min(b.length_nm, shortest.get(pair, np.inf))
    ends = np.array(list(shortest), np.int64).reshape(-1, 2)
    weight = np.maximum(np.array(list(shortest.values())), 1e-9)
    return coo_matrix((weight, (ends[:, 0], ends[:, 1])), shape=(len(number), len(number))).tocsr()


def _components(graph: Skeleton) -> int:
    from scipy.sparse.csgraph import connected_components

    return int(connected_components(_edges(graph), directed=False)[0]) if graph.nodes else 0


def _longest(graph: Skeleton) -> float:
    from scipy.sparse.csgraph import dijkstra

    longest = max((b.length_nm / 2 for b in graph.branches if b.ends[0] < 0), default=0.0)
    if graph.nodes:
        way = dijkstra(_edges(graph), directed=False)
        longest = max(longest, float(way[np.isfinite(way)].max(initial=0.0)))
    return longest
