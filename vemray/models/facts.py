"""What must be known of a network to run it. It travels inside the model file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from vemray.errors import ModelError
from vemray.models.process import Chain, Steps

FORMAT = 1


class Normalisation(pydantic.BaseModel):
    """How grey values become the network's input, from the whole volume's histogram and never from a tile.

    percentile: (value - a) / (b - a), where a and b are the percentiles `low` and `high` of the volume;
    fixed: (value - low) / (high - low); standard: (value - mean) / standard deviation of the volume;
    dtype: integers by the largest of their type, 0..1; float images as they are."""

    model_config = pydantic.ConfigDict(extra="forbid")
    method: Literal["percentile", "fixed", "standard", "dtype"] = "percentile"
    low: float = 1.0
    high: float = 99.0

    @pydantic.model_validator(mode="after")
    def _ordered(self):
        if self.method in ("percentile", "fixed") and not self.high > self.low:
            raise ValueError(f"high ({self.high:g}) must be above low ({self.low:g})")
        if self.method == "percentile" and not (0 <= self.low and self.high <= 100):
            raise ValueError("percentiles lie between 0 and 100")
        return self

    @property
    def needs_histogram(self) -> bool:
        return self.method in ("percentile", "standard")

    def constants(self, histogram: dict | None, dtype=None) -> tuple[np.float32, np.float32]:
        """(offset, scale): the network's input is (value - offset) * scale. `histogram` as the operator of that name gives it."""
        from vemray.ops.histogram import percentile

        if self.method == "standard":
            low, width = histogram["mean"], histogram["std"]
        elif self.method == "percentile":
            low = percentile(histogram, self.low)
            width = percentile(histogram, self.high) - low
        elif self.method == "dtype":
            low, width = 0, np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
        else:
            low, width = self.low, self.high - self.low
        return np.float32(low), np.float32(1 / width if width > 0 else 1.0)


def normalised(values: np.ndarray, constants: tuple[np.float32, np.float32] | Chain, out: np.ndarray) -> np.ndarray:
    """Grey values as the network sees them, into `out` (float32): the one way, in training and in use."""
    if isinstance(constants, Chain):
        return constants(values, out)
    offset, scale = constants
    np.subtract(values, offset, out=out)
    out *= scale
    return out


def restored(values: np.ndarray, constants: tuple[np.float32, np.float32] | Chain, dtype) -> np.ndarray:
    """What a network gives on the scale of its input as grey values of `dtype`: the inverse of `normalised`; integers rounded to nearest, clipped.
    Where steps came before the network, those after it belong to the model, and its output is grey values already."""
    offset, scale = (np.float32(0), np.float32(1)) if isinstance(constants, Chain) else constants
    out = values / scale
    out += offset
    if not np.issubdtype(dtype, np.integer):
        return out.astype(dtype, copy=False)
    np.rint(out, out=out)
    return np.clip(out, np.iinfo(dtype).min, np.iinfo(dtype).max, out=out).astype(dtype)


#: voxels: no network has a larger stride or sees farther
LARGEST = 1 << 14


class Facts(pydantic.BaseModel):
    """`classes` name the output channels. `voxel_nm`: ZYX of what it was trained on. `stride` (the network's
    total stride) and `halo` (its receptive field to each side, rounded up to the stride) in voxels, one number or one an axis of the network."""

    model_config = pydantic.ConfigDict(extra="forbid")
    format: int = FORMAT
    classes: list[str] = pydantic.Field(min_length=1, max_length=256)
    dims: Literal[2, 3] = 2
    channels: pydantic.PositiveInt = 1
    #: planes to each side that a 2D network sees as channels, from the one before to the one after; channels are 2 * context + 1 then
    context: pydantic.NonNegativeInt = 0
    #: None where the file does not say: then whoever runs it must
    voxel_nm: tuple[pydantic.PositiveFloat, pydantic.PositiveFloat, pydantic.PositiveFloat] | None
    normalisation: Normalisation | Steps = Normalisation()
    #: what has to be applied to the output to make probabilities; 'none' where the network does it itself
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    stride: pydantic.PositiveInt | list[pydantic.PositiveInt]
    #: None: it sees all of its tile, as with statistics of the tile itself, and its tiles can only be blended
    halo: pydantic.NonNegativeInt | list[pydantic.NonNegativeInt] | None
    #: the only input size that the network takes, (Y, X) or (Z, Y, X); None: every multiple of the stride
    window: list[pydantic.PositiveInt] | None = None
    #: the only batch size that the network takes; None: every
    batch: pydantic.PositiveInt | None = None
    #: 'image': grey values on the scale of the input (a denoised image), each of `classes` one of them
    gives: Literal["probabilities", "image"] = "probabilities"
    #: how tiles are joined where the recipe does not say; None: exact in 2D, blend in 3D. blend where the halo is not known
    mode: Literal["exact", "blend"] | None = None
    #: whether the first class is what nobody asks for unless by name
    background: bool = True
    #: bytes that predicting takes for each voxel of the input
    memory: pydantic.PositiveFloat = 1024.0
    network: dict[str, Any] | None = None
    training: dict[str, Any] = {}

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        if self.gives == "image" and self.activation != "none":
            raise ValueError(f"an image has no {self.activation}: activation must be 'none'")
        if self.context and (self.dims == 3 or self.channels != 2 * self.context + 1):
            if self.dims == 3:
                raise ValueError("context is for 2D networks: a 3D one sees neighbouring planes anyway")
            raise ValueError(f"context {self.context} makes {2 * self.context + 1} planes, one a channel, but channels is {self.channels}")
        for name in ("stride", "halo", "window"):
            v = getattr(self, name)
            if isinstance(v, list) and len(v) != self.dims:
                raise ValueError(f"{name} must have {self.dims} numbers, one an axis of the network")
        if max(*self.strides, *self.halos) > LARGEST:
            raise ValueError(f"stride {self.stride} and halo {self.halo} must be at most {LARGEST:,} voxels")
        if any(h % s for h, s in zip(self.halos, self.strides)):
            raise ValueError(f"halo {self.halo} must be a multiple of the stride {self.stride}")
        if self.window and any(w % s or w <= 2 * h for w, s, h in zip(self.zyx(self.window, 1), self.strides, self.halos)):
            raise ValueError(f"window {self.window} must be a multiple of the stride and larger than twice the halo")
        return self

    def zyx(self, value: int | list[int], z: int) -> tuple[int, int, int]:
        """A number or one an axis as three; `z` for a 2D network, which takes each plane by itself."""
        per_axis = [value] * self.dims if isinstance(value, int) else value
        return tuple(([z] if self.dims == 2 else []) + per_axis)

    @property
    def strides(self) -> tuple[int, int, int]:
        return self.zyx(self.stride, 1)

    @property
    def halos(self) -> tuple[int, int, int]:
        return self.zyx(self.halo or 0, 0)


def parse(data: bytes, path: Path | str) -> Facts:
    """Facts from JSON. ModelError names the file and the first thing that is wrong."""
    try:
        facts = Facts.model_validate_json(data)
    except pydantic.ValidationError as e:
        p = e.errors()[0]
        raise ModelError(f"{path}: its facts cannot be used: {'.'.join(map(str, p['loc'])) or 'all'}: {p['msg']}.") from None
    if facts.format > FORMAT:
        raise ModelError(f"{path} was written by a newer vemray (format {facts.format}; this one reads up to {FORMAT}).")
    return facts


def contents(sidecar: Path) -> bytes:
    try:
        return sidecar.read_bytes()
    except OSError as e:
        raise ModelError(f"{sidecar} cannot be read: {e.strerror}.") from None


def beside(sidecar: Path) -> dict[str, Any]:
    """The facts that a sidecar gives, some or all of them. ModelError for what is no JSON mapping."""
    try:
        given = json.loads(contents(sidecar))
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{sidecar} is no JSON: {e}.") from None
    if not isinstance(given, dict):
        raise ModelError(f'{sidecar} must hold facts of the model by name, such as {{"voxel_nm": [8, 8, 8]}}.')
    return given
