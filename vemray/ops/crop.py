"""A part of a volume."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import ArraySpec, Box, Int3, Spacing
from vemray.ops.base import Filter, Port, Site, register
from vemray.ops.resample import KINDS, _sample

Span = tuple[Annotated[int, Field(ge=0)], int | None]


@register("crop")
@dataclass(frozen=True)
class Crop(Filter):
    """A part of an array, at its place in nm: what is held back to judge a network, say."""

    serves = "a part of a volume to try on, or to judge"
    ports = (Port("image", other_grid=True, doc="any array"),)

    z: Annotated[Span | None, Field(description="[from, up to] in voxels, the second without it, or null for the end; default: all")] = None
    y: Annotated[Span | None, Field(description="the same along y")] = None
    x: Annotated[Span | None, Field(description="the same along x")] = None

    @classmethod
    def examples(cls):
        return [cls(z=(1, None)), cls((2, None), (1, None), (2, None))]

    def example_inputs(self, rng, shape, spacing):
        kind, dtype = KINDS[rng.integers(len(KINDS))]
        spec = ArraySpec(tuple(max(4, n) for n in shape), dtype, Spacing(*spacing), kind, (100.0, -3.5, 0.0))
        return {"image": _sample(rng, spec)}, {"image": spec}

    def _box(self, shape: Int3) -> Box:
        spans = [s or (0, None) for s in (self.z, self.y, self.x)]
        return Box(tuple(a for a, _ in spans), tuple(n if b is None else b for (_, b), n in zip(spans, shape)))

    def check(self, image: ArraySpec) -> None:
        for axis, a, b, n in zip("zyx", self._box(image.shape).start, self._box(image.shape).stop, image.shape):
            if not a < b <= n:
                raise RecipeError(f"'{axis}' of 'crop' is [{a}, {b}]; the array has the voxels 0 to {n} along {axis}, the last one not included.")

    def output(self, image: ArraySpec) -> ArraySpec:
        box = self._box(image.shape)
        return replace(image, shape=box.shape, origin_nm=tuple(o + a * s for o, a, s in zip(image.origin_nm, box.start, image.spacing.zyx)))

    def memory(self, image: ArraySpec) -> float:
        return np.dtype(image.dtype).itemsize

    def read_box_of(self, port: str, write: Box, image: ArraySpec) -> Box:
        return write.shift(self._box(image.shape).start)

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        return image.copy()
