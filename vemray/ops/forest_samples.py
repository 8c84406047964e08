"""Annotated voxels on their way to a forest: which are drawn, how blocks' are merged, where features are computed together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vemray.geometry import Int3


@dataclass
class Samples:
    """Annotated voxels with their features. Of each class the `most` with the lowest hash of (raster index, seed) are kept: the same in any order."""

    index: np.ndarray  # uint64 (n,), global raster index
    classes: np.ndarray  # int64 (n,), from 0
    features: np.ndarray  # float32 (n, columns)
    annotated: np.ndarray  # int64 (classes,): all that were met
    most: int
    seed: int

    def merge(self, upper: Samples, axis: int) -> Samples:
        index, classes, features = (
            np.concatenate([getattr(self, k), getattr(upper, k)]) if len(upper.index) else getattr(self, k) for k in ("index", "classes", "features")
        )
        keep = drawn(index, classes, self.most, self.seed)
        return Samples(index[keep], classes[keep], features[keep], self.annotated + upper.annotated, self.most, self.seed)


def drawn(index: np.ndarray, classes: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Places of at most `most` voxels of each class, those of the lowest hash (SplitMix64, a bijection: no two are equal)."""
    if len(index) <= most:
        return np.arange(len(index))
    h = index + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    keep = []
    for c in np.unique(classes):
        at = np.flatnonzero(classes == c)
        keep.append(at[np.argpartition(h[at], most - 1)[:most]] if len(at) > most else at)
    return np.concatenate(keep)


def clusters(where: np.ndarray, halo: Int3) -> list[np.ndarray]:
    """Places of voxels (n, 3) in groups whose boxes, each grown by the halo, hold few voxels together: groups are cut at the widest gap between
    their coordinates along an axis for as long as that saves work."""

    def cost(at: np.ndarray) -> float:
        return float(np.prod(np.ptp(where[at], axis=0) + 1 + 2 * np.array(halo)))

    out, waiting = [], [np.arange(len(where))] if len(where) else []
    while waiting:
        at = waiting.pop()
        cuts = []
        for axis in range(3):
            values = np.unique(where[at, axis])
            if len(values) > 1:
                gap = int(np.argmax(np.diff(values)))
                cuts.append((int(values[gap + 1] - values[gap]), -axis, int(values[gap + 1])))
        if cuts:
            _, axis, value = max(cuts)
            upper = where[at, -axis] >= value
            parts = [at[~upper], at[upper]]
            if sum(map(cost, parts)) < cost(at):
                waiting += parts
                continue
        out.append(at)
    return out
