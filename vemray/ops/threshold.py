"""Thresholds. `threshold` in a recipe is a composite: a fixed value, or Otsu's or a percentile of the whole volume, taken from
its histogram before any block is thresholded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError
from vemray.ops.base import ArraySpec, Composite, Filter, Port, Site, Step, register


@register("threshold_at", hidden=True)
@dataclass(frozen=True)
class ThresholdAt(Filter):
    """`image >= value`; with `upper`, `value <= image <= upper`. On a probability both are in 0..1."""

    value: Annotated[float, Field(description="lower bound, included; 0..1 on a probability, grey value otherwise")] = 0.5
    upper: Annotated[float | None, Field(description="upper bound, included")] = None

    @classmethod
    def examples(cls):
        return [cls(0.5), cls(value=0.25, upper=0.75)]

    def output(self, image: ArraySpec) -> ArraySpec:
        return image.like(np.bool_, "mask")

    def memory(self, image: ArraySpec) -> float:
        return 3

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        scale = 255.0 if site.inputs[0].kind == "probability" and site.inputs[0].dtype == "uint8" else 1.0
        out = image >= self.value * scale
        if self.upper is not None:
            out &= image <= self.upper * scale
        return out
