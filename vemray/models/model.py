"""A network that predicts, whatever its file and whatever runs it."""

from __future__ import annotations

import numpy as np

from vemray.errors import ModelError
from vemray.models.facts import Facts


class Model:
    """A network that predicts. One thread, one device; the same batch gives the same bits."""

    facts: Facts

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """float32 (B, channels, [Z,] Y, X) -> float32 probabilities (B, classes, [Z,] Y, X). ModelError where the channels do not fit."""
        raise ModelError(f"{type(self).__name__} cannot predict.")

    def check_input(self, batch: np.ndarray) -> None:
        f = self.facts
        if batch.ndim != f.dims + 2 or batch.shape[1] != f.channels:
            axes = "(batch, channel, z, y, x)" if f.dims == 3 else "(batch, channel, y, x)"
            raise ModelError(f"the network takes {axes} with {f.channels} channel{'s' * (f.channels > 1)}, not an array of {batch.shape}.")

    def check_output(self, scores, where: str) -> None:
        if scores.shape[1] != len(self.facts.classes):
            raise ModelError(
                f"{where}: the network gives {scores.shape[1]} channels for {len(self.facts.classes)} classes ({', '.join(self.facts.classes)}). "
                "Name as many classes as it has channels."
            )


def activated(scores: np.ndarray, activation: str) -> np.ndarray:
    """Scores (B, classes, ...) as float32 probabilities."""
    y = scores
    if activation == "softmax":
        y = np.exp(y - y.max(axis=1, keepdims=True))
        y /= y.sum(axis=1, keepdims=True)
    elif activation == "sigmoid":
        y = 1 / (1 + np.exp(-y))
    return y.astype(np.float32, copy=False)
