"""Crops of sparsely annotated planes for training: from labelled places, rare classes as often as common ones, then augmented."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Plane:
    """One annotated plane: `image` float32 (Y, X), normalised; `labels` uint8 (Y, X): 0 unlabelled, then the classes from 1."""

    image: np.ndarray
    labels: np.ndarray


class Sampler:
    """Draws crops centred on labelled pixels: first a class, evenly, then one of its pixels in any plane."""

    def __init__(self, planes: list[Plane], classes: int, crop: int, stride: int, seed: int):
        self.planes, self.rng = planes, np.random.default_rng(seed)
        self.crop = min(crop, max(min(min(p.image.shape) for p in planes) // stride * stride, stride))
        places = [[] for _ in range(classes)]
        for i, p in enumerate(planes):
            for c in range(classes):
                y, x = np.nonzero(p.labels == c + 1)
                places[c].append(np.stack([np.full(len(y), i), y, x], 1))
        self.places = [np.concatenate(p) for p in places]
        self.present = [c for c in range(classes) if len(self.places[c])]

    def draw(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, 1, crop, crop) float32 and (n, crop, crop) int64 with -1 where nothing is known."""
        images, labels = [], []
        for _ in range(n):
            c = self.rng.choice(self.present)
            i, y, x = self.places[c][self.rng.integers(len(self.places[c]))]
            image, label = self._crop(self.planes[i], int(y), int(x))
            image, label = augment(image, label, self.rng)
            images.append(image[None])
            labels.append(label.astype(np.int64) - 1)
        return np.stack(images).astype(np.float32), np.stack(labels)

    def _crop(self, p: Plane, y: int, x: int) -> tuple[np.ndarray, np.ndarray]:
        out = []
        at = [
            int(np.clip(v + self.rng.integers(-self.crop // 3, self.crop // 3 + 1) - self.crop // 2, 0, max(0, n - self.crop)))
            for v, n in zip((y, x), p.image.shape)
        ]
        for a in (p.image, p.labels):
            part = a[at[0] : at[0] + self.crop, at[1] : at[1] + self.crop]
            pad = [(0, self.crop - s) for s in part.shape]
            out.append(np.pad(part, pad, mode="reflect") if a is p.image and any(b for _, b in pad) else np.pad(part, pad))
        return out[0], out[1]


def augment(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Flips and quarter turns; grey scale and offset; gamma; blur; noise. Labels follow the turns alone."""
    from scipy.ndimage import gaussian_filter

    k = int(rng.integers(4))
    image, labels = np.rot90(image, k), np.rot90(labels, k)
    for axis in (0, 1):
        if rng.random() < 0.5:
            image, labels = np.flip(image, axis), np.flip(labels, axis)
    # small: the volume is normalised already, and what tells structures apart is often a few per cent of grey
    image = image * rng.uniform(0.9, 1.1) + rng.uniform(-0.06, 0.06)
    if rng.random() < 0.3:
        image = np.sign(image) * np.abs(image) ** rng.uniform(0.9, 1.1)
    if rng.random() < 0.1:
        image = gaussian_filter(image, rng.uniform(0.3, 0.7))
    if rng.random() < 0.5:
        image = image + rng.normal(0, rng.uniform(0, 0.04), image.shape)
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(labels)
