"""Arrays of tiles: taken from the image, added up for blending."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vemray.geometry import Int3


class Sums:
    """Weighted sums over a box, float32, tiles added in the order of the grid."""

    def __init__(self, shape: Int3, layers: int):
        self.sums = np.zeros((layers, *shape), np.float32)
        self.weights = np.zeros(shape, np.float32)

    def add(self, values: Sequence[np.ndarray], weights: np.ndarray, at) -> None:
        for total, layer in zip(self.sums, values):
            total[at] += weights * layer
        self.weights[at] += weights

    def mean(self) -> np.ndarray:
        np.maximum(self.weights, 1e-20, out=self.weights)  # voxels that no tile was computed for
        for total in self.sums:
            total /= self.weights
        return self.sums


def taken(image: np.ndarray, at: list[np.ndarray]) -> np.ndarray:
    """image[np.ix_(*at)], as a slice where the indices run on without a reflection."""
    if all(len(i) == i[-1] - i[0] + 1 for i in at):
        return image[tuple(slice(int(i[0]), int(i[-1]) + 1) for i in at)]
    return image[np.ix_(*at)]


def added(scores: np.ndarray, channels: list[int]) -> np.ndarray:
    """Sum of the channels of (classes, ...), in order."""
    value = scores[channels[0]]
    for c in channels[1:]:
        value = value + scores[c]
    return value


def picked(scores: np.ndarray, layers: list[list[int]]) -> Sequence[np.ndarray]:
    """For each of the layers the sum of its channels of (classes, ...)."""
    if layers == [[c] for c in range(len(scores))]:
        return scores
    return [added(scores, channels) for channels in layers]
