"""Crops of annotated volumes for training: around annotated voxels, rare classes as often as common ones, turned and bent in nanometres.

A crop is cut by one interpolation of the volume, whatever is done to it: a plane of the stack, one of another axis, or a section at any angle (so that a
2D network meets structures in orientations that the stack does not show), rotated, scaled and bent. Voxels that are flat are flat in the section too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as strict

from vemray.geometry import Box, Int3, rotation
from vemray.training.source import Source
from vemray.training.targets import Target

#: voxels of a class that are remembered of one part of a volume
PLACES = 4096
#: voxels whose edges differ by less are cubes
EVEN = 0.02


@dataclass(frozen=True)
class Shape:
    """Of a crop: voxels along the network's axes, and neighbour planes to each side as channels (2.5D)."""

    edges: tuple[int, ...]
    context: int = 0

    @property
    def dims(self) -> int:
        return len(self.edges)

    @property
    def depth(self) -> int:
        return 2 * self.context + 1 if self.dims == 2 else self.edges[0]

    @property
    def zyx(self) -> Int3:
        return (self.depth, *self.edges[-2:])


Share = Annotated[float, Field(ge=0, le=1)]


@strict(frozen=True, config=ConfigDict(extra="forbid"))
class Turns:
    """How crops are turned and bent. Shares are of the crops."""

    flips: Annotated[bool, Field(description="mirrored, and turned by quarters where the pixels are square")] = True
    rotate: Annotated[Share, Field(description="share that is turned by any angle; 3D crops of cubic voxels about any axis")] = 0.3
    scale: Annotated[float, Field(ge=0, lt=1, description="largest change of size of those that are turned")] = 0.1
    elastic: Annotated[Share, Field(description="share that is bent")] = 0.2
    bend: Annotated[float, Field(ge=0, description="by how many pixels, one standard deviation")] = 3.0
    sections: Annotated[
        Share, Field(description="3D-aware training: share of a 2D network's crops that are sections of the volume turned by `angles`")
    ] = 0.0
    angles: Annotated[tuple[float, ...], Field(min_length=1, description="degrees, to either side")] = (30.0, 60.0, 90.0)
    about: Annotated[str, Field(pattern="^[zyx]+$", description="axes that the volume is turned about")] = "yx"
    every: Annotated[int, Field(gt=0, description="sections from every n-th plane of the turned volume")] = 1


@dataclass
class Places:
    """Annotated voxels by class: of part i of a source, some of its voxels, and how many there are."""

    part: list[tuple[int, str, np.ndarray]]  # source, axes, (n, 3)
    weight: np.ndarray

    def draw(self, rng: np.random.Generator) -> tuple[int, str, np.ndarray]:
        i = int(np.searchsorted(self.weight, rng.random() * self.weight[-1], side="right"))
        source, axes, zyx = self.part[min(i, len(self.part) - 1)]
        return source, axes, zyx[rng.integers(len(zyx))]


def places(sources: Sequence[Source], target: Target, classes: int, seed: int = 0, validation: bool = False) -> list[Places | None]:
    """For each class of `target`, where it is annotated."""
    rng, found = np.random.default_rng([seed, 17]), [([], []) for _ in range(classes)]
    for s, source in enumerate(sources):
        for box, axes in source.annotation.boxes():
            labels = source.labels(box, validation)
            if not labels.any():
                continue
            index = target.indices(np.squeeze(labels) if labels.shape.count(1) == 1 else labels).reshape(labels.shape)
            for c in range(classes):
                at = np.flatnonzero(index == c)
                if len(at):
                    n = len(at)
                    at = at if n <= PLACES else np.sort(rng.choice(at, PLACES, replace=False))
                    zyx = np.stack(np.unravel_index(at, labels.shape), 1) + np.array(box.start)
                    found[c][0].append((s, axes, zyx.astype(np.int32)))
                    found[c][1].append(n)
    return [Places(parts, np.cumsum(n, dtype=float)) if parts else None for parts, n in found]


def around(source: Source, centre: np.ndarray, shape: Shape, axis: str, validation: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(image (C, ...), labels (...)) of the crop with `centre` in its middle, as the volume has it; a 2D one is a plane stacked along `axis`."""
    box, order = _box(centre, shape, axis)
    image, labels = source.image(box).transpose(order), source.labels(box, validation).transpose(order)
    return _as_crop(image, labels, shape)


def _box(centre: np.ndarray, shape: Shape, axis: str) -> tuple[Box, tuple[int, ...]]:
    """Of the volume; and how its axes are to be ordered so that planes are stacked along the first."""
    a = "zyx".index(axis) if shape.dims == 2 else 0
    order = (a, *[i for i in range(3) if i != a])
    edges = [0, 0, 0]
    for i, n in zip(order, shape.zyx):
        edges[i] = n
    start = tuple(int(c) - n // 2 for c, n in zip(centre, edges))
    return Box(start, tuple(s + n for s, n in zip(start, edges))), order


def _as_crop(image: np.ndarray, labels: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    if shape.dims == 2:
        return image, labels[shape.context]
    return image[None], labels


def section(source: Source, centre: np.ndarray, shape: Shape, steps: np.ndarray, bend: np.ndarray | None = None, validation: bool = False):
    """(image, labels) of a crop in any orientation: image linear, labels nearest. `steps` (3, 3): the columns are the steps, in nm (ZYX), from one voxel
    of the crop to the next along its normal, its rows and its columns. `bend` (2, Y, X): pixels by which each is moved in its plane."""
    from scipy.ndimage import map_coordinates

    index = np.indices(shape.zyx, dtype=np.float32)
    for i, n in enumerate(shape.zyx):
        index[i] -= n // 2
    if bend is not None:
        index[1:] += bend[:, None]
    spacing = np.array(source.spacing.zyx)
    at = np.tensordot((steps / spacing[:, None]).astype(np.float32), index, 1) + np.asarray(centre, np.float32)[:, None, None, None]
    low, high = np.floor(at.min((1, 2, 3))).astype(int), np.floor(at.max((1, 2, 3))).astype(int) + 2
    box = Box(tuple(map(int, low)), tuple(map(int, high)))
    at -= low.astype(np.float32)[:, None, None, None]
    image = map_coordinates(source.image(box), at, order=1, mode="nearest", prefilter=False)
    labels = source.labels(box, validation)
    near = np.floor(at + np.float32(0.5)).astype(np.intp)
    labels = labels[tuple(np.minimum(n, m - 1) for n, m in zip(near, labels.shape))]
    return _as_crop(image, labels, shape)


class Sampler:
    """Draws crops around annotated voxels: first a class, evenly, then one of its voxels anywhere. What number a crop is decides all about it, so crops
    can be drawn in any order and by any number of threads."""

    def __init__(self, sources: Sequence[Source], found: Sequence[Places | None], shape: Shape, turns: Turns, seed: int, cut: bool = True):
        self.sources, self.shape, self.turns, self.seed = list(sources), shape, turns, seed
        self.found = [p for p in found if p is not None]
        #: the share of a crop's edge that the voxel may lie off its middle
        self.off = 1 / 3 if cut else 0.0

    def draw(self, number: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
        """(image float32 (C, ...), labels int32 (...), and what to go on drawing with)."""
        rng = np.random.default_rng([self.seed, number])
        s, axes, at = self.found[rng.integers(len(self.found))].draw(rng)
        source, axis = self.sources[s], axes[rng.integers(len(axes))]
        image, labels = self._cut(source, at.astype(np.int64), axis, rng)
        if self.turns.flips:
            image, labels = self._flipped(image, labels, source, axis, rng)
        return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(labels), rng

    def _cut(self, source: Source, at: np.ndarray, axis: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        t, shape = self.turns, self.shape
        off = np.array([0 if shape.dims == 2 and i == 0 else self._offset(n, rng) for i, n in enumerate(shape.zyx)])
        steps, turned = self._steps(source, axis, rng)
        bend = None
        if t.elastic and rng.random() < t.elastic:
            bend = _smooth_field(shape.zyx[1:], t.bend, rng)
        if not turned and bend is None:
            order = _box(at, shape, axis)[1]
            centre = at.copy()
            centre[list(order)] += off
            return around(source, self._inside(source, centre, axis), shape, axis)
        spacing = np.array(source.spacing.zyx)
        centre = at + steps @ off / spacing
        if t.every > 1 and shape.dims == 2:  # only planes that a stack of every n-th would have, counted from the volume's middle
            normal = steps[:, 0] / np.linalg.norm(steps[:, 0])
            apart = t.every * np.linalg.norm(steps[:, 1])
            away = ((centre - (np.array(source.shape) - 1) / 2) * spacing) @ normal
            centre = centre + (round(away / apart) * apart - away) * normal / spacing
        return section(source, centre, shape, steps, bend)

    def _inside(self, source: Source, centre: np.ndarray, axis: str) -> np.ndarray:
        """Moved so that the crop does not reach beyond the volume where it need not."""
        box, _ = _box(centre, self.shape, axis)
        out = centre.copy()
        for i, (a, b, n) in enumerate(zip(box.start, box.stop, source.shape)):
            if self.shape.dims == 2 and i == "zyx".index(axis):
                continue
            out[i] += max(0, -a) if b - a <= n else 0
            out[i] -= max(0, b - n) if b - a <= n else 0
        return out

    def _offset(self, n: int, rng: np.random.Generator) -> int:
        most = int(n * self.off)
        return int(rng.integers(-most, most + 1))

    def _steps(self, source: Source, axis: str, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """Columns: nm along the crop's normal, rows and columns; and whether that is anything but the volume's own axes."""
        t, shape, spacing = self.turns, self.shape, np.array(source.spacing.zyx)
        order = _box(np.zeros(3), shape, axis)[1]
        steps = np.diag(spacing)[:, order]
        turned = False
        even = _even(spacing[list(order[1:])])
        if shape.dims == 3 and _even(spacing) and t.rotate and rng.random() < t.rotate:
            steps, turned = _any_rotation(rng) @ steps, True
        elif even and t.rotate and rng.random() < t.rotate:
            steps, turned = rotation(rng.uniform(0, 360), axis) @ steps, True
        if t.sections and rng.random() < t.sections:
            angle, about = t.angles[rng.integers(len(t.angles))], t.about[rng.integers(len(t.about))]
            sizes = np.linalg.norm(steps, axis=0)
            wanted = np.full(3, source.spacing.pixel)  # a section has the pixels of the stack's own planes, however thick those are
            if shape.context:
                wanted[0] = sizes[0]  # and its neighbours are as far apart as theirs
            steps = rotation(angle if rng.random() < 0.5 else -angle, about) @ (steps / sizes * wanted)
            turned = True
        if t.scale and turned:
            steps = steps * rng.uniform(1 - t.scale, 1 + t.scale)
        return steps, turned

    def _flipped(self, image: np.ndarray, labels: np.ndarray, source: Source, axis: str, rng: np.random.Generator):
        """Flips, and quarter turns of what is square."""
        for a in range(1, labels.ndim + 1):
            if rng.random() < 0.5:
                image, labels = np.flip(image, -a), np.flip(labels, -a)
        if self.shape.context and rng.random() < 0.5:
            image = image[::-1]
        spacing = [s for i, s in enumerate(source.spacing.zyx) if i != "zyx".index(axis) or self.shape.dims == 3]
        if labels.shape[-1] == labels.shape[-2] and _even(np.array(spacing[-2:])) and rng.random() < 0.5:
            image, labels = np.swapaxes(image, -1, -2), np.swapaxes(labels, -1, -2)
        if self.shape.dims == 3 and len(set(labels.shape)) == 1 and _even(np.array(spacing)) and rng.random() < 0.5:
            image, labels = np.swapaxes(image, -3, -1), np.swapaxes(labels, -3, -1)
        return image, labels


def _even(spacing: np.ndarray) -> bool:
    return bool(spacing.max() <= (1 + EVEN) * spacing.min())


def _any_rotation(rng: np.random.Generator) -> np.ndarray:
    """Evenly among all rotations (Shoemake 1992)."""
    from scipy.spatial.transform import Rotation

    return Rotation.random(rng=rng).as_matrix()


def _smooth_field(shape: tuple[int, int], sigma: float, rng: np.random.Generator, cell: int = 32) -> np.ndarray:
    """(2, Y, X) float32 displacements that vary over about `cell` pixels (Simard et al. 2003)."""
    from scipy.ndimage import zoom

    coarse = rng.normal(0, sigma, (2, *[n // cell + 3 for n in shape]))
    fine = zoom(coarse, (1, cell, cell), order=3)
    start = rng.integers(0, cell, 2)
    return fine[:, start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]].astype(np.float32)
