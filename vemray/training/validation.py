"""How good a network is on annotated voxels: Dice, the threshold that makes the most of each class, the best and the worst places."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vemray.geometry import Box
from vemray.training.crops import Shape, around
from vemray.training.source import Source
from vemray.training.targets import Target

#: edges of what is looked at in one piece, and how many pieces at most, of 2D and of 3D networks
EDGE, MOST = {2: 512, 3: 96}, {2: 64, 3: 16}
#: levels of probability
BINS = 256


@dataclass(frozen=True)
class View:
    """A piece of a volume with annotated voxels in it."""

    source: int
    centre: tuple[int, int, int]
    axis: str
    shape: Shape


def views(sources: Sequence[Source], dims: int, context: int, stride: int) -> list[View]:
    """Pieces that hold what is kept for validation, or all that is annotated where nothing is; evenly thinned out if there are many."""
    out = []
    for s, source in enumerate(sources):
        for box, axes in source.annotation.boxes():
            part = box if source.held is None else box.intersect(source.held)
            if not part.size:
                continue
            for axis in axes if dims == 2 else "z":
                out += [View(s, c, axis, shape) for c, shape in _pieces(part, axis, dims, context, stride)]
    out = [v for v in out if around(sources[v.source], np.array(v.centre), v.shape, v.axis, validation=True)[1].any()]
    if len(out) > MOST[dims]:
        out = [out[i] for i in np.linspace(0, len(out) - 1, MOST[dims]).round().astype(int)]
    return out


def _pieces(part: Box, axis: str, dims: int, context: int, stride: int):
    """(centre, shape) of pieces of the box, of whole strides; of a thick box a 2D network gets a plane in every 32."""
    order = ("zyx".index(axis), *[i for i in range(3) if i != "zyx".index(axis)]) if dims == 2 else (0, 1, 2)
    ranges = []
    for k, i in enumerate(order):
        a, n = part.start[i], part.shape[i]
        if dims == 2 and k == 0:
            ranges.append([(z, 1) for z in range(a + min(n - 1, 16) // 2, a + n, 32)])
        else:
            count = math.ceil(n / EDGE[dims])
            edge = math.ceil(n / count / stride) * stride
            ranges.append([(a + j * edge + edge // 2, edge) for j in range(count)])
    for at in np.ndindex(*[len(r) for r in ranges]):
        centre, edges = [0, 0, 0], []
        for k, i in enumerate(order):
            centre[i], edge = ranges[k][at[k]]
            edges.append(edge)
        yield tuple(centre), Shape(tuple(edges[1:] if dims == 2 else edges), context)


class Scores:
    """Counts of true and false voxels by class and by level of probability; and of likeliest classes."""

    def __init__(self, classes: int, exclusive: bool):
        self.counts = np.zeros((classes, 2, BINS), np.int64)
        self.likeliest = np.zeros((classes, 3), np.int64)  # both, guessed, true
        self.exclusive = exclusive

    def add(self, p: np.ndarray, true: np.ndarray, known: np.ndarray) -> None:
        """p float (K, ...) in 0..1, true and known bool like it."""
        level = np.minimum((p * BINS).astype(np.int64), BINS - 1)
        for c in range(len(p)):
            k = known[c]
            self.counts[c] += np.bincount(level[c][k] + BINS * true[c][k], minlength=2 * BINS).reshape(2, BINS)
        guess = p.argmax(0)[None] == np.arange(len(p)).reshape(-1, *[1] * (p.ndim - 1)) if self.exclusive else p >= 0.5
        for c in range(len(p)):
            g, t = guess[c] & known[c], true[c] & known[c]
            self.likeliest[c] += (np.count_nonzero(g & t), np.count_nonzero(g), np.count_nonzero(t))

    def dice(self) -> np.ndarray:
        """Of each class; nan where it is not annotated."""
        both, guessed, true = self.likeliest.T
        return np.where(true > 0, 2 * both / np.maximum(guessed + true, 1), np.nan)

    def curve(self, c: int) -> np.ndarray:
        """Dice of a class at each threshold i / BINS."""
        false, true = (np.cumsum(n[::-1])[::-1] for n in self.counts[c])
        return 2 * true / np.maximum(true + false + self.counts[c, 1].sum(), 1)

    def thresholds(self) -> list[tuple[float, float]]:
        """(threshold, Dice) of each class: the middle of the thresholds whose Dice is within 0.002 of the best, which others hit as well."""
        out = []
        for c in range(len(self.counts)):
            curve = self.curve(c)
            good = np.flatnonzero(curve >= curve.max() - 0.002)
            run = np.split(good, np.flatnonzero(np.diff(good) > 1) + 1)
            longest = max(run, key=len)
            at = int(longest[len(longest) // 2])
            out.append((at / BINS, float(curve[at])))
        return out


@dataclass
class Example:
    """A place of the validation: `image` (Y, X) float32, `truth` (Y, X) class from 0, -1 unknown, `guess` (Y, X) the likeliest class."""

    where: str
    dice: float
    image: np.ndarray
    truth: np.ndarray
    guess: np.ndarray


def judge(predict: Callable[[np.ndarray], np.ndarray], sources: Sequence[Source], pieces: Sequence[View], target: Target, classes: int,
          examples: int = 0) -> tuple[Scores, list[Example]]:  # fmt: skip
    """`predict` takes (B, C, ...) and gives probabilities (B, K, ...). And the best and the worst `examples` places, the worst first."""
    scores, found = Scores(classes, target.exclusive), []
    for v in pieces:
        source = sources[v.source]
        image, labels = around(source, np.array(v.centre), v.shape, v.axis, validation=True)
        p = predict(image[None])[0]
        pixel = pixel_nm(source, v.axis, v.shape.dims)
        if target.exclusive:
            index = target.indices(labels)
            true = index[None] == np.arange(classes).reshape(-1, *[1] * index.ndim)
            known = np.broadcast_to(index >= 0, true.shape)
        else:
            values, known = target.values(labels, pixel)
            true = values >= 0.5
            index = np.where(known.all(0), true[0].astype(np.int64), -1)
        own = Scores(classes, target.exclusive)
        own.add(p, true, known)
        scores.counts += own.counts
        scores.likeliest += own.likeliest
        if examples:
            dice = own.dice()[1 if target.exclusive and classes > 1 else 0 :]
            if not np.isnan(dice).all():
                found.append((float(np.nanmean(dice)), v))
    if not examples:
        return scores, []
    found.sort(key=lambda f: f[0])
    chosen = found if len(found) <= 2 * examples else found[:examples] + found[-examples:]
    return scores, [_example(predict, sources, v, d, target) for d, v in chosen]


def _example(predict, sources, v: View, dice: float, target: Target) -> Example:
    source = sources[v.source]
    image, labels = around(source, np.array(v.centre), v.shape, v.axis, validation=True)
    p = predict(image[None])[0]
    index = target.indices(labels)
    guess = p.argmax(0) if target.exclusive else (p[0] >= 0.5).astype(np.int64)
    grey = image[v.shape.context] if v.shape.dims == 2 else image[0]
    if v.shape.dims == 3:
        z = int((index >= 0).sum((1, 2)).argmax())
        grey, index, guess = grey[z], index[z], guess[z]
    at = v.centre["zyx".index(v.axis)]
    return Example(f"{source.name}, plane {at} along {v.axis}", dice, grey, index, guess)


def pixel_nm(source: Source, axis: str, dims: int) -> tuple[float, ...]:
    """Of a crop's axes."""
    return tuple(s for i, s in enumerate(source.spacing.zyx) if dims == 3 or i != "zyx".index(axis))
