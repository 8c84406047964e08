"""What is done to grey values before a network sees them, as a list of steps: each looks at one voxel, statistics come from the whole volume's
histogram. So no step knows of tiles, and blocks change nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pydantic


class Step(pydantic.BaseModel):
    """linear: (value - shift) * gain + offset; standard: (value - mean) / (standard deviation + eps); range: (value - a) / (b - a + eps) with the
    percentiles a, b `low` and `high`; clip: to `low`..`high`, which are percentiles where `low_percentile`, `high_percentile` say so (None: no
    limit); binarize: 1 above `threshold`, else 0; sigmoid: 1 / (1 + exp(-value)). Statistics are of what the steps before have made."""

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    op: Literal["linear", "standard", "range", "clip", "binarize", "sigmoid"]
    gain: float = 1.0
    offset: float = 0.0
    shift: float = 0.0  # instead of an offset: exact for grey values that are large against their range
    eps: pydantic.PositiveFloat = 1e-6
    low: float | None = None
    high: float | None = None
    low_percentile: bool = False
    high_percentile: bool = False
    threshold: float = 0.0

    @pydantic.model_validator(mode="after")
    def _fitting(self):
        ends = [v for v, given in ((self.low, self.low_percentile), (self.high, self.high_percentile)) if given or self.op == "range"]
        if any(v is None or not 0 <= v <= 100 for v in ends):
            raise ValueError("percentiles lie between 0 and 100")
        if self.shift and self.offset:
            raise ValueError("a shift and an offset exclude each other")
        if self.low is not None and self.high is not None and self.low_percentile == self.high_percentile and not self.high > self.low:
            raise ValueError(f"high ({self.high:g}) must be above low ({self.low:g})")
        return self

    @property
    def of_the_volume(self) -> bool:
        return self.op in ("standard", "range") or self.low_percentile or self.high_percentile


class Steps(pydantic.BaseModel):
    """A normalisation of several steps, in place of vemray.models.facts.Normalisation."""

    model_config = pydantic.ConfigDict(extra="forbid")
    method: Literal["steps"] = "steps"
    steps: list[Step] = []

    @property
    def needs_histogram(self) -> bool:
        return any(s.of_the_volume for s in self.steps)

    def constants(self, histogram: dict | None, dtype=None) -> Chain:
        """The steps with their numbers, from the histogram as the operator of that name gives it; whatever the image's type."""
        seen, known = [], None if histogram is None else _Population.of(histogram)
        for s in self.steps:
            one = numbers(s, known)
            seen.append(one)
            known = None if known is None else known.after(*one)
        return Chain(tuple(seen))


@dataclass(frozen=True)
class Chain:
    """Steps that need nothing any more but the values."""

    steps: tuple[tuple[str, float, float], ...]

    def __call__(self, values: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Into `out` (float32)."""
        np.copyto(out, values, casting="unsafe")
        for step in self.steps:
            applied(*step, out)
        return out


def applied(op: str, a: float, b: float, x: np.ndarray) -> np.ndarray:
    """One step in place, in the array's type. linear: (value - a) * b; affine: value * a + b; clip: to a..b; binarize: above a; else sigmoid."""
    a, b = x.dtype.type(a), x.dtype.type(b)
    if op == "linear":
        x -= a
        x *= b
    elif op == "affine":
        x *= a
        x += b
    elif op == "clip":
        np.clip(x, a, b, out=x)
    elif op == "binarize":
        np.greater(x, a, out=x)
    else:
        with np.errstate(over="ignore"):  # exp of a large number: the result is 0, as it should be
            np.negative(x, out=x)
            np.exp(x, out=x)
            x += x.dtype.type(1)
            np.divide(x.dtype.type(1), x, out=x)
    return x


def numbers(s: Step, known: _Population | None) -> tuple[str, float, float]:
    """Name and two numbers, as `applied` takes them."""
    if s.op == "linear":
        return ("linear", s.shift, s.gain) if s.shift else ("affine", s.gain, s.offset)
    if s.op == "standard":
        return "linear", known.mean, 1 / (known.std + s.eps)
    if s.op == "range":
        low = known.percentile(s.low)
        return "linear", low, 1 / (known.percentile(s.high) - low + s.eps)
    if s.op == "clip":
        low = -math.inf if s.low is None else known.percentile(s.low) if s.low_percentile else s.low
        high = math.inf if s.high is None else known.percentile(s.high) if s.high_percentile else s.high
        return "clip", low, high
    return s.op, s.threshold, 0.0


@dataclass(frozen=True)
class _Population:
    """How often each value occurs, ascending."""

    values: np.ndarray
    counts: np.ndarray
    mean: float
    std: float

    @classmethod
    def of(cls, histogram: dict[str, Any]) -> _Population:
        return cls(np.asarray(histogram["values"], float), np.asarray(histogram["counts"], np.int64), histogram["mean"], histogram["std"])

    def percentile(self, q: float) -> float:
        """As numpy.percentile: linear between the two values at that place in the sorted voxels."""
        upto = np.cumsum(self.counts)
        place = q / 100 * (int(upto[-1]) - 1)
        a, b = (float(self.values[np.searchsorted(upto, i, side="right")]) for i in (math.floor(place), math.ceil(place)))
        return a + (b - a) * (place - math.floor(place))

    def after(self, op: str, a: float, b: float) -> _Population:
        """What one step makes of them. Mean and deviation of floats are known better than by their bins, so they go through what is linear."""
        values = applied(op, a, b, self.values.copy())
        counts = self.counts
        if op in ("linear", "affine"):
            mean, std = float(applied(op, a, b, np.array([self.mean]))[0]), self.std * abs(b if op == "linear" else a)
        else:
            n = int(counts.sum())
            mean = math.fsum((values * counts).tolist()) / n
            std = math.sqrt(math.fsum(((values - mean) ** 2 * counts).tolist()) / n)
        order = slice(None, None, -1) if len(values) and values[0] > values[-1] else slice(None)  # a negative gain turns the order
        return _Population(values[order], counts[order], mean, std)


def histogram_of(values: np.ndarray) -> dict[str, Any]:
    """As the operator `histogram`, of one array in memory and of its values one by one."""
    found, counts = np.unique(values, return_counts=True)
    mean = float(values.mean(dtype=np.float64))
    return {"values": found, "counts": counts, "mean": mean, "std": float(values.std(dtype=np.float64))}
