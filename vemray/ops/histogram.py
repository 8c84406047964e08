"""The histogram of a whole volume: exact counts, from which thresholds and normalisation are taken before any block is touched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vemray.errors import RecipeError
from vemray.ops.base import ArraySpec, Measure, Port, Site, register


@register("histogram")
@dataclass(frozen=True)
class Histogram(Measure):
    """Counts of grey values of the whole volume, with minimum, maximum, mean and standard deviation.

    Integers up to 16 bits are counted value by value; float32 in bins of its upper 16 bits (sign, exponent, 7 bits of mantissa: 0.4 to 0.8 %
    of the value), whose lower edges stand for them. The bins are the same whatever the volume, so blocks add up exactly.
    Result: {'values': [...], 'counts': [...], 'min', 'max', 'count', 'mean', 'std'}; a probability in 0..1."""

    gives = "scalars"
    ports = (Port("image", ("image", "probability"), doc="8 or 16 bit integers, or float32"),)

    def check(self, image: ArraySpec) -> None:
        if image.dtype not in ("uint8", "int8", "uint16", "int16", "float32"):
            raise RecipeError(f"'histogram' takes 8 or 16 bit integers or float32, not {image.dtype}. Use rescale with low and high first.")

    def memory(self, image: ArraySpec) -> float:
        return 10

    def measure(self, image: np.ndarray, *, site: Site) -> Counts:
        if image.dtype == np.float32:
            if not np.isfinite(image).all():
                raise RecipeError("'histogram' met values that are not finite (NaN or infinity). Repair or mask the volume first.")
            codes = _ordered(image)
        else:
            codes = image.ravel().astype(np.uint16 if image.dtype.itemsize == 2 else np.uint8, copy=False) if image.dtype.kind == "u" else None
            if codes is None:
                codes = (image.ravel().astype(np.int32) + (1 << 15)).astype(np.uint16)
        counts = np.bincount(codes.ravel(), minlength=1)
        at = np.flatnonzero(counts)
        return Counts(at.astype(np.uint32), counts[at].astype(np.int64))

    def finish(self, partial: Counts, inputs: tuple[ArraySpec, ...]) -> dict:
        spec = inputs[0]
        values = _values(partial.codes, spec)
        scale = 1 / 255 if (spec.kind, spec.dtype) == ("probability", "uint8") else 1.0
        n = int(partial.counts.sum())
        if spec.dtype != "float32":  # exact
            v = [int(x) for x in values]
            c = [int(x) for x in partial.counts]
            total, squares = sum(a * b for a, b in zip(v, c)), sum(a * a * b for a, b in zip(v, c))
            mean, std = total / n, ((n * squares - total * total) / (n * n)) ** 0.5
        else:
            mean = float((values * partial.counts).sum() / n)
            std = float(np.sqrt((np.square(values - mean) * partial.counts).sum() / n))
        return {
            "min": float(values[0]) * scale, "max": float(values[-1]) * scale, "count": n, "mean": mean * scale, "std": std * scale,
            "values": [float(x) * scale for x in values], "counts": [int(x) for x in partial.counts],
        }  # fmt: skip


@dataclass
class Counts:
    codes: np.ndarray  # uint32, ascending
    counts: np.ndarray  # int64

    def merge(self, upper: Counts, axis: int) -> Counts:
        codes, where = np.unique(np.concatenate([self.codes, upper.codes]), return_inverse=True)
        counts = np.zeros(len(codes), np.int64)
        np.add.at(counts, where, np.concatenate([self.counts, upper.counts]))
        return Counts(codes, counts)


def _ordered(image: np.ndarray) -> np.ndarray:
    """uint16 whose order is that of the floats: their upper 16 bits, sign and magnitude made one scale."""
    bits = (np.ascontiguousarray(image).view(np.uint32) >> 16).astype(np.uint16)
    return np.where(bits & 0x8000, ~bits, bits | 0x8000).astype(np.uint16)


def _values(codes: np.ndarray, spec: ArraySpec) -> np.ndarray:
    if spec.dtype == "float32":
        codes = codes.astype(np.uint32)
        bits = np.where(codes & 0x8000, codes & 0x7FFF, ~codes & 0xFFFF).astype(np.uint32) << 16
        return bits.view(np.float32).astype(float)
    if spec.dtype in ("int8", "int16"):
        return codes.astype(np.int64) - (1 << 15)
    return codes.astype(np.int64)


def percentile(histogram: dict, q: float) -> float:
    """The smallest value below or at which at least `q` per cent of the voxels lie."""
    counts = np.cumsum(histogram["counts"])
    at = np.searchsorted(counts, q / 100 * counts[-1], side="left")
    return float(histogram["values"][min(int(at), len(counts) - 1)])


def otsu(histogram: dict) -> float:
    """Otsu's threshold t: foreground is `image > t` (Otsu 1979; the same t as scikit-image's threshold_otsu on this histogram)."""
    values, counts = np.asarray(histogram["values"], float), np.asarray(histogram["counts"], float)
    if len(values) < 2:
        return float(values[0])
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    mean_below = np.cumsum(values * counts)[:-1] / below
    mean_above = np.cumsum((values * counts)[::-1])[::-1][1:] / above
    return float(values[int(np.argmax(below * above * (mean_below - mean_above) ** 2))])
