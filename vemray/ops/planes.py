"""The six outer planes of a box of labels, run-length coded: what a labeller's evidence carries of a group of blocks.

When two groups merge along an axis, the planes that face each other give the pairs of labels that touch, and only the planes of
their joint outside are kept. Two voxels of different blocks that touch (also over an edge or a corner where four or eight blocks
meet) lie on facing planes exactly once, in the merge that brings their blocks together, because joint planes are kept whole.
Planes on the border of the volume face nothing and are never kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vemray.geometry import Box, Int3

Face = tuple[int, int]  # axis, side (0 lower, 1 upper)


@dataclass(frozen=True)
class Runs:
    """A plane of unsigned integers in runs along its raster order."""

    shape: tuple[int, int]
    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def encode(cls, plane: np.ndarray) -> Runs:
        flat = np.ascontiguousarray(plane).ravel()
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if flat.size else np.zeros(0, np.int64)
        lengths = np.diff(starts, append=flat.size)
        return cls(plane.shape, flat[starts], lengths.astype(np.uint32 if flat.size < 1 << 32 else np.int64))

    def decode(self) -> np.ndarray:
        return np.repeat(self.values, self.lengths).reshape(self.shape)

    def map(self, lut: np.ndarray) -> Runs:
        return Runs(self.shape, lut[self.values], self.lengths)

    def join(self, other: Runs, axis: int) -> Runs:
        """This plane and `other` beyond it along the plane's own `axis`, 0 or 1."""
        if axis == 0:
            lengths = np.concatenate([self.lengths, other.lengths])
            return Runs((self.shape[0] + other.shape[0], self.shape[1]), np.concatenate([self.values, other.values]), lengths)
        return Runs.encode(np.concatenate([self.decode(), other.decode()], axis=1))


@dataclass(frozen=True)
class Dense:
    """A plane of values that do not come in runs, such as grey values."""

    array: np.ndarray

    @classmethod
    def encode(cls, plane: np.ndarray) -> Dense:
        return cls(np.array(plane))  # a copy: a view would keep, and pickle, the whole block

    def decode(self) -> np.ndarray:
        return self.array

    def join(self, other: Dense, axis: int) -> Dense:
        return Dense(np.concatenate([self.array, other.array], axis=axis))


@dataclass(frozen=True)
class Planes:
    """Outer planes of `box` by face, those inside the volume only. A plane along axis a spans the two other axes in ZYX order."""

    box: Box
    faces: dict[Face, Runs | Dense]

    @classmethod
    def of(cls, array: np.ndarray, box: Box, shape: Int3, coder: type[Runs] | type[Dense] = Runs) -> Planes:
        """Planes of `array`, which covers `box` of a volume of `shape`."""
        faces = {}
        for axis in range(3):
            if box.start[axis] > 0:
                faces[axis, 0] = coder.encode(np.take(array, 0, axis))
            if box.stop[axis] < shape[axis]:
                faces[axis, 1] = coder.encode(np.take(array, -1, axis))
        return cls(box, faces)

    def facing(self, upper: Planes, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """The two planes, of equal shape, that touch where `upper` adjoins."""
        return self.faces[axis, 1].decode(), upper.faces[axis, 0].decode()

    def join(self, upper: Planes, axis: int) -> Planes:
        """Planes of the joint outside."""
        faces = {}
        for a in range(3):
            for side in (0, 1):
                mine, its = self.faces.get((a, side)), upper.faces.get((a, side))
                if a == axis:
                    kept = its if side else mine
                else:  # a plane across `a` has the other two axes: those after `a` move down by one
                    kept = mine and mine.join(its, axis - (a < axis))
                if kept is not None:
                    faces[a, side] = kept
        return Planes(Box(self.box.start, upper.box.stop), faces)

    def map(self, lut: np.ndarray) -> Planes:
        return Planes(self.box, {f: r.map(lut) for f, r in self.faces.items()})

    def used(self, size: int) -> np.ndarray:
        """bool (size,): which integers occur on the planes."""
        seen = np.zeros(size, bool)
        for runs in self.faces.values():
            seen[runs.values] = True
        return seen
