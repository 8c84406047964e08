"""The histogram of a whole volume: exact counts, from which thresholds and normalisation are taken before any block is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numba import njit

from vemray.errors import RecipeError
from vemray.ops.base import ArraySpec, Measure, Port, Site, register

_CODES = 1 << 18  # bins of floats: sign, exponent, 9 bits of the mantissa
_LOW = 14  # bits of the mantissa below that


@register("histogram")
@dataclass(frozen=True)
class Histogram(Measure):
    """Counts of grey values of the whole volume, with minimum, maximum, mean and standard deviation.

    Integers of 8 and 16 bits are counted value by value. float32 is counted in bins of its upper 18 bits (sign, exponent, 9 bits of mantissa:
    0.1 to 0.2 % of the value), for which their largest value stands; minimum, maximum, mean and standard deviation are of the values
    themselves. The bins are the same whatever the volume, so blocks add up exactly.
    Result: {'min', 'max', 'count', 'mean', 'std', 'values': [...], 'counts': [...]} of the bins that occur, ascending; a probability in 0..1."""

    gives = "scalars"
    ports = (Port("image", ("image", "probability"), doc="8 or 16 bit integers, or float32"),)

    def check(self, image: ArraySpec) -> None:
        if image.dtype not in ("uint8", "int8", "uint16", "int16", "float32"):
            raise RecipeError(f"'histogram' takes 8 or 16 bit integers or float32, not {image.dtype}. Use rescale with low and high first.")

    def memory(self, image: ArraySpec) -> float:
        return 12 if image.dtype == "float32" else 2  # the tables, spread over a small block

    def measure(self, image: np.ndarray, *, site: Site) -> Counts:
        if image.dtype == np.float32:
            sums = np.zeros((_CODES, 3), np.int64)
            if _count_floats(image.view(np.uint32), sums):
                raise RecipeError("'histogram' met values that are not finite (NaN or infinity). Repair or mask the volume first.")
            at = np.flatnonzero(sums[:, 0])
            return Counts(at, sums[at], (float(image.min()), float(image.max())))
        lowest = np.iinfo(image.dtype).min
        counts = np.zeros(1 << (8 * image.dtype.itemsize), np.int64)
        _count_integers(image, lowest, counts)
        at = np.flatnonzero(counts)
        return Counts(at + lowest, counts[at, None], (float(at[0] + lowest), float(at[-1] + lowest)))

    def finish(self, partial: Counts, inputs: tuple[ArraySpec, ...]) -> dict:
        spec = inputs[0]
        top = 255.0 if (spec.kind, spec.dtype) == ("probability", "uint8") else 1.0
        counts = partial.sums[:, 0]
        if spec.dtype == "float32":
            n, mean, variance = _float_moments(partial.codes, partial.sums)
            values = np.minimum(_float(partial.codes, (1 << _LOW) - 1), partial.extremes[1])
        else:
            values, c = [int(v) for v in partial.codes], [int(v) for v in counts]
            n, total, squares = sum(c), sum(v * k for v, k in zip(values, c)), sum(v * v * k for v, k in zip(values, c))
            mean, variance = total / n, (n * squares - total * total) / (n * n)
        return {
            "min": partial.extremes[0] / top, "max": partial.extremes[1] / top, "count": n, "mean": mean / top, "std": variance**0.5 / top,
            "values": [float(v) / top for v in values], "counts": [int(v) for v in counts],
        }  # fmt: skip


@dataclass
class Counts:
    """Counts by integer value; of floats by bin, with sums of the low bits of their mantissa and of its square."""

    codes: np.ndarray  # int64 (n,), ascending
    sums: np.ndarray  # int64 (n, 1) or (n, 3)
    extremes: tuple[float, float]

    def merge(self, upper: Counts, axis: int) -> Counts:
        codes, where = np.unique(np.concatenate([self.codes, upper.codes]), return_inverse=True)
        sums = np.zeros((len(codes), self.sums.shape[1]), np.int64)
        np.add.at(sums, where, np.concatenate([self.sums, upper.sums]))
        return Counts(codes, sums, (min(self.extremes[0], upper.extremes[0]), max(self.extremes[1], upper.extremes[1])))


@njit(cache=True, nogil=True)
def _count_integers(image, lowest, counts):
    for z in range(image.shape[0]):
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                counts[np.int64(image[z, y, x]) - lowest] += 1


@njit(cache=True, nogil=True)
def _count_floats(bits, sums):
    """`bits`: floats seen as uint32. Returns whether one is not finite."""
    bad = False
    for z in range(bits.shape[0]):
        for y in range(bits.shape[1]):
            for x in range(bits.shape[2]):
                b = np.int64(bits[z, y, x])
                bad |= (b >> 23 & 0xFF) == 0xFF
                code = 0xFFFFFFFF ^ b if b >> 31 else b | 0x80000000  # in the order of the floats
                low = code & ((1 << _LOW) - 1)
                code >>= _LOW
                sums[code, 0] += 1
                sums[code, 1] += low
                sums[code, 2] += low * low
    return bad


def _float(codes: np.ndarray, low: int) -> np.ndarray:
    """float64 of the value at place `low` in each bin."""
    code = (codes.astype(np.int64) << _LOW) + low
    bits = np.where(code >> 31, code & 0x7FFFFFFF, code ^ 0xFFFFFFFF)
    return bits.astype(np.uint32).view(np.float32).astype(float)


def _float_moments(codes: np.ndarray, sums: np.ndarray) -> tuple[int, float, float]:
    """Number, mean and variance, exact until rounded at the end: in a bin, a float is its first value plus low * step."""
    first = _float(codes, 0)
    step = _float(codes, 1) - first
    n = int(sums[:, 0].sum())
    total, squares = Fraction(0), Fraction(0)
    for a, d, (k, low, low2) in zip(first.tolist(), step.tolist(), sums.tolist()):
        a, d = Fraction(a), Fraction(d)
        total += a * k + d * low
        squares += a * a * k + 2 * a * d * low + d * d * low2
    return n, float(total / n), float((n * squares - total * total) / (n * n))


def percentile(histogram: dict, q: float) -> float:
    """The smallest value that occurs at or below which at least `q` per cent of the voxels lie; `q` is the decimal number that it prints as."""
    counts = np.cumsum(histogram["counts"])
    wanted = math.ceil(Fraction(repr(float(q))) / 100 * int(counts[-1]))
    return float(histogram["values"][int(np.searchsorted(counts, wanted, side="left"))])


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
