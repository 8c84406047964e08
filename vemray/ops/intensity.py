"""Grey values voxel by voxel: inversion, rescaling to a range taken from the whole volume, masking."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import Int3
from vemray.ops.base import ArraySpec, Composite, Filter, Port, Site, Step, build, register
from vemray.ops.logic import BINARY, is_set
from vemray.ops.threshold import stored

GREY = ("image", "probability")


def _fits(value: float, spec: ArraySpec) -> bool:
    """Whether the integer image holds this value: a probability 0 to 1 (to the nearest of its 255 steps), others whole numbers."""
    if spec.kind == "probability":
        return 0 <= value <= 1
    info = np.iinfo(spec.dtype)
    return info.min <= value <= info.max and value == int(value)


def _held(value: float, spec: ArraySpec) -> np.generic:
    """A grey value as the image stores it."""
    v = stored(value, spec)
    return np.dtype(spec.dtype).type(v if np.dtype(spec.dtype).kind == "f" else round(v))


@register("invert")
@dataclass(frozen=True)
class Invert(Filter):
    """Bright becomes dark: `maximum - value`. Without `maximum`, integers are reflected in the range of their type (uint8: 255 - value;
    int16: -1 - value), which loses nothing; a floating-point image has no such range and needs `maximum`."""

    serves = "steps 1 and 10: inversion of the intensities"
    version = 2
    ports = (Port("image", GREY),)

    maximum: Annotated[
        float | None,
        Field(description="grey value (0..1 on a probability) that becomes 0; values above it become 0 in unsigned images. Default: the largest"),
    ] = None

    @classmethod
    def examples(cls):
        return [cls(), cls(maximum=200)]

    def check(self, image: ArraySpec) -> None:
        dtype = np.dtype(image.dtype)
        if dtype.kind == "f" and self.maximum is None and image.kind != "probability":
            raise RecipeError(f"'invert' of a {image.dtype} image needs 'maximum': the grey value that becomes 0 (1.0 for values of 0 to 1).")
        if dtype.kind == "i" and self.maximum is not None:
            raise RecipeError(f"'invert' of a {image.dtype} image takes no 'maximum': signed values are reflected in the range of their type.")
        if dtype.kind == "u" and self.maximum is not None and not _fits(self.maximum, image):
            if image.kind == "probability":
                raise RecipeError(f"'maximum' of 'invert' must be 0 to 1 for a probability, got {self.maximum}.")
            raise RecipeError(
                f"'maximum' of 'invert' must be a whole number of 0 to {np.iinfo(dtype).max} for a {image.dtype} image, got {self.maximum}."
            )

    def output(self, image: ArraySpec) -> ArraySpec:
        return image

    def memory(self, image: ArraySpec) -> float:
        return np.dtype(image.dtype).itemsize

    def __call__(self, image: np.ndarray, *, site: Site) -> np.ndarray:
        if image.dtype.kind in "iu" and self.maximum is None:
            return np.invert(image)
        maximum = _held(1 if self.maximum is None else self.maximum, site.inputs[0])
        if image.dtype.kind == "f":
            return maximum - image
        out = np.minimum(image, maximum)
        return np.subtract(maximum, out, out=out)


@register("mask")
@dataclass(frozen=True)
class MaskImage(Filter):
    """The image where the mask is set, `fill` elsewhere."""

    serves = "steps 10 and 11: the image restricted to a layer or a compartment"
    version = 2
    ports = (Port("image", GREY), Port("mask", BINARY, doc="labels count as set where they are not 0"))

    fill: Annotated[float, Field(description="value outside the mask: grey value, or 0..1 on a probability")] = 0

    @classmethod
    def examples(cls):
        return [cls(), cls(fill=17)]

    def check(self, image: ArraySpec, mask: ArraySpec) -> None:
        dtype = np.dtype(image.dtype)
        if dtype.kind in "iu" and not _fits(self.fill, image):
            wanted = "a value of 0 to 1" if image.kind == "probability" else "a whole number in its range"
            raise RecipeError(f"'fill' of 'mask' is {self.fill}, which a {image.dtype} {image.kind} cannot hold: give {wanted}.")

    def output(self, image: ArraySpec, mask: ArraySpec) -> ArraySpec:
        return image

    def memory(self, image: ArraySpec, mask: ArraySpec) -> float:
        return np.dtype(image.dtype).itemsize + (mask.dtype != "bool")

    def __call__(self, image: np.ndarray, mask: np.ndarray, *, site: Site) -> np.ndarray:
        return np.where(is_set(mask), image, _held(self.fill, site.inputs[0]))


Target = Literal["uint8", "float32"]


@register("rescale_between", hidden=True)
@dataclass(frozen=True)
class RescaleBetween(Filter):
    """`low` becomes 0 and `high` the top of the output (255 in uint8, 1 in float32); values outside are clipped. With a histogram,
    low and high are percentiles of it."""

    serves = "step 3: grey values as a network or a threshold expects them"
    version = 2
    ports = (Port("image", GREY), Port("histogram", ("scalars",), optional=True, doc="of the whole volume"))

    low: Annotated[float, Field(description="grey value, or percentile in 0..100 with a histogram, that becomes 0")] = 0
    high: Annotated[float, Field(description="grey value, or percentile in 0..100 with a histogram, that becomes the top of the output")] = 255
    dtype: Annotated[Target, Field(description="uint8 (0..255) or float32 (0..1)")] = "uint8"

    @classmethod
    def examples(cls):
        return [cls(20, 180), cls(30, 100.5, "float32")]

    def output(self, image: ArraySpec) -> ArraySpec:
        return image.like(self.dtype, "image")

    def memory(self, image: ArraySpec) -> float:
        return np.dtype(self.dtype).itemsize + 1.5  # the output; some rows at a time in float64, and the table

    def levels(self, histogram: dict[str, Any] | None) -> tuple[float, float]:
        """Grey values that become 0 and the top."""
        if histogram is None:
            return self.low, self.high
        from vemray.ops.histogram import percentile

        return percentile(histogram, self.low), percentile(histogram, self.high)

    def __call__(self, image: np.ndarray, histogram: dict[str, Any] | None = None, *, site: Site) -> np.ndarray:
        spec = site.inputs[0]
        low, high = (stored(v, spec) for v in self.levels(histogram))
        out = np.empty(image.shape, self.dtype)
        if image.dtype in (np.uint8, np.uint16):
            table = _rescaled(np.arange(np.iinfo(image.dtype).max + 1), low, high, out.dtype)
            for part in _strips(image.shape):  # take() makes an index array of 8 bytes a voxel
                out[part] = table[image[part]]
        else:
            for part in _strips(image.shape):
                out[part] = _rescaled(image[part], low, high, out.dtype)
        return out


def _strips(shape: Int3) -> Iterator[tuple[int, slice]]:
    """Some rows of a plane at a time, about 8192 voxels: temporaries stay small in thin blocks too."""
    rows = max(1, 8192 // max(1, shape[2]))
    for z in range(shape[0]):
        for y in range(0, shape[1], rows):
            yield z, slice(y, y + rows)


def _rescaled(values: np.ndarray, low: float, high: float, dtype: np.dtype) -> np.ndarray:
    """In float64. A range of no width splits at `low`."""
    v = values.astype(np.float64)
    if high > low:
        v -= low
        v /= high - low
        np.clip(v, 0, 1, out=v)
    else:
        v = (v > low).astype(np.float64)
    if dtype == np.uint8:
        v *= 255
        np.rint(v, out=v)
    return v.astype(dtype)


@register("rescale")
@dataclass(frozen=True)
class Rescale(Composite):
    """Grey values stretched linearly to 0..255 (uint8) or 0..1 (float32) between two percentiles of the whole volume, or between the
    values `low` and `high`; what lies outside is clipped. The percentiles come from the volume's histogram, never from a block's."""

    serves = "step 3: grey values as a network or a threshold expects them"
    ports = (Port("image", GREY),)

    low_percentile: Annotated[float, Field(ge=0, le=100, description="percentile of the volume that becomes 0, per cent")] = 0.5
    high_percentile: Annotated[float, Field(ge=0, le=100, description="percentile of the volume that becomes the top, per cent")] = 99.5
    low: Annotated[float | None, Field(description="grey value (0..1 on a probability) that becomes 0; with `high`, in place of the percentiles")] = (
        None
    )
    high: Annotated[
        float | None, Field(description="grey value (0..1 on a probability) that becomes the top; with `low`, in place of the percentiles")
    ] = None
    dtype: Annotated[Target, Field(description="type of the output: uint8 (0..255) or float32 (0..1)")] = "uint8"

    @classmethod
    def examples(cls):
        return [cls(), cls(2, 98, dtype="float32"), cls(low=40, high=200)]

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        if (self.low is None) != (self.high is None):
            raise RecipeError("'rescale' takes 'low' and 'high' together, or neither.")
        if self.low is not None:
            if not (math.isfinite(self.low) and self.low < self.high):
                raise RecipeError(f"'low' of 'rescale' must be below 'high', got {self.low} and {self.high}.")
            return [Step("", RescaleBetween(self.low, self.high, self.dtype), {"image": inputs["image"]})]
        if self.low_percentile >= self.high_percentile:
            raise RecipeError(f"'low_percentile' of 'rescale' must be below 'high_percentile', got {self.low_percentile} and {self.high_percentile}.")
        between = RescaleBetween(self.low_percentile, self.high_percentile, self.dtype)
        return [
            Step(".histogram", build("histogram", {}), {"image": inputs["image"]}),
            Step("", between, {"image": inputs["image"], "histogram": ".histogram"}),
        ]
