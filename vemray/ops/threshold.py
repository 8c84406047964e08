"""Thresholds. `threshold` in a recipe is a composite: a fixed value, or Otsu's or a percentile of the whole volume, taken from
its histogram before any block is thresholded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError
from vemray.ops.base import ArraySpec, Composite, Filter, Port, Site, Step, register
from vemray.ops.histogram import Histogram, otsu, percentile


def stored(value: float, spec: ArraySpec) -> float:
    """A value on the scale of the stored voxels: a probability of 0..1 is stored as 0..255."""
    return value * 255.0 if (spec.kind, spec.dtype) == ("probability", "uint8") else value


@register("threshold_at", hidden=True)
@dataclass(frozen=True)
class ThresholdAt(Filter):
    """`image >= value`; with `upper`, `value <= image <= upper`. On a probability both are in 0..1."""

    ports = (Port("image", ("image", "probability")),)

    value: Annotated[float | None, Field(description="lower bound, included; 0..1 on a probability, grey value otherwise")] = 0.5
    upper: Annotated[float | None, Field(description="upper bound, included")] = None

    @classmethod
    def examples(cls):
        return [cls(0.5), cls(value=0.25, upper=0.75), cls(None, 0.5)]

    def output(self, image: ArraySpec) -> ArraySpec:
        return image.like(np.bool_, "mask")

    def memory(self, image: ArraySpec) -> float:
        return 3

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        spec = site.inputs[0]
        bounds = ((np.greater_equal, self.value), (np.less_equal, self.upper))
        parts = [_compare(how, image, stored(value, spec)) for how, value in bounds if value is not None]
        if not parts:
            return np.ones(image.shape, np.bool_)
        return parts[0] if len(parts) == 1 else np.logical_and(*parts, out=parts[0])


def _compare(how, image: np.ndarray, value: float) -> np.ndarray:
    """Comparison with a float without making the image float: exact, and of one byte a voxel."""
    if image.dtype.kind in "ui":
        whole = int(np.ceil(value)) if how in (np.greater_equal, np.less) else int(np.floor(value))
        info = np.iinfo(image.dtype)
        if whole < info.min:
            return np.full(image.shape, how(0, -1))
        if whole > info.max:
            return np.full(image.shape, how(0, 1))
        return how(image, image.dtype.type(whole))
    return how(image, value)


@register("threshold_from", hidden=True)
@dataclass(frozen=True)
class ThresholdFrom(Filter):
    """A threshold taken from the histogram of the whole volume."""

    version = 2

    ports = (Port("image", ("image", "probability")), Port("histogram", ("scalars",)))

    method: Annotated[Literal["otsu", "percentile"], Field(description="how the histogram gives the threshold")] = "otsu"
    percent: Annotated[float, Field(ge=0, le=100, description="for 'percentile': per cent of all voxels at or below the threshold")] = 50.0
    above: Annotated[bool, Field(description="keep what is above the threshold, else what is not")] = True

    @classmethod
    def examples(cls):
        return [cls(), cls("percentile", 80.0), cls("percentile", 30.0, above=False)]

    def output(self, image: ArraySpec) -> ArraySpec:
        return image.like(np.bool_, "mask")

    def memory(self, image: ArraySpec) -> float:
        return 3

    def __call__(self, image: np.ndarray, histogram: dict, *, site: Site) -> np.ndarray:
        value = otsu(histogram) if self.method == "otsu" else percentile(histogram, self.percent)
        if image.dtype.kind in "ui":
            value = round(stored(value, site.inputs[0]))  # a value of the histogram, back to the voxel it came from
        return _compare(np.greater if self.above else np.less_equal, image, value)


@register("threshold")
@dataclass(frozen=True)
class Threshold(Composite):
    """Voxels of an image within a range, or above (or below) Otsu's threshold or a percentile of the whole volume, as a mask."""

    serves = "steps 2 to 10: masks from images and probabilities"
    ports = (Port("image", ("image", "probability")),)

    method: Annotated[Literal["value", "otsu", "percentile"], Field(description="where the threshold comes from")] = "value"
    value: Annotated[float | None, Field(description="for 'value': lower bound, included; 0..1 on a probability, grey value otherwise")] = None
    upper: Annotated[float | None, Field(description="for 'value': upper bound, included")] = None
    percent: Annotated[float | None, Field(ge=0, le=100, description="for 'percentile': per cent of all voxels at or below the threshold")] = None
    above: Annotated[bool, Field(description="for 'otsu' and 'percentile': keep what is above the threshold, else what is not")] = True

    @classmethod
    def examples(cls):
        return [cls("value", 0.4), cls("otsu"), cls("percentile", percent=90)]

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        if self.method == "value":
            if self.value is None and self.upper is None:
                raise RecipeError("'threshold' needs a value, or method: otsu or percentile.")
            return [Step("", ThresholdAt(self.value, self.upper), inputs)]
        if self.method == "percentile" and self.percent is None:
            raise RecipeError("'threshold' by percentile needs 'percent'.")
        if self.value is not None or self.upper is not None:
            raise RecipeError(f"'threshold' by {self.method} takes no value or upper: it finds the value itself.")
        how = ThresholdFrom(self.method, 50.0 if self.percent is None else self.percent, self.above)
        return [Step(".histogram", Histogram(), inputs), Step("", how, {**inputs, "histogram": ".histogram"})]
