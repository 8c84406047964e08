"""Whole-array functions of scipy and scikit-image that compute what an operator computes, and how closely they must agree.

`ORACLES[operator name]` is a list of `Oracle`s; each says for which parameters it holds (`when`). The conformance test runs those
that hold on the inputs of every scene. Operators whose definition no library shares have their oracles in their own tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from vemray.ops.base import ArraySpec, Operator

Values = dict[str, Any]


@dataclass(frozen=True)
class Oracle:
    """`expect(op, values, spec of the first port)` gives the whole-array result. `agree`: 'same' (bit for bit), 'close' (float32
    rounding: 1e-5 of the largest value, in or out), or 'partition' (labels up to a one-to-one renaming)."""

    expect: Callable[[Operator, Values, ArraySpec], np.ndarray]
    agree: str = "same"
    when: Callable[[Operator, Values], bool] = lambda op, values: True


def check(oracle: Oracle, got: np.ndarray, op: Operator, values: Values, spec: ArraySpec) -> None:
    want = np.asarray(oracle.expect(op, values, spec))
    assert got.shape == want.shape
    if oracle.agree == "same":
        wrong = np.argwhere(got != want)
        assert not len(wrong), (
            f"{len(wrong)} of {got.size} values differ, first at {tuple(wrong[0])}: {got[tuple(wrong[0])]!r}, expected {want[tuple(wrong[0])]!r}"
        )
    elif oracle.agree == "close":
        scale = max(float(np.abs(want[np.isfinite(want)]).max(initial=0)), float(np.abs(_first(values)).max(initial=0)) / unit(spec))
        assert np.array_equal(np.isfinite(got), np.isfinite(want)), "infinite or undefined in other places"
        ok = np.isfinite(want)
        assert np.array_equal(got[~ok], want[~ok]), "infinities of another sign"
        worst = float(np.abs(got[ok].astype(np.float64) - want[ok]).max(initial=0))
        assert worst <= 1e-5 * scale, f"differs by {worst:.3g} where values go up to {scale:.3g}"
    elif oracle.agree == "partition":
        same_partition(got, want)
    else:
        raise ValueError(oracle.agree)


def same_partition(got: np.ndarray, want: np.ndarray) -> None:
    """Label images are equal up to a one-to-one renaming, background to background."""
    assert np.array_equal(got == 0, want == 0), f"{np.count_nonzero((got == 0) != (want == 0))} voxels are background in one only"
    pairs = np.unique(np.stack([got.ravel(), want.ravel().astype(np.uint64)]), axis=1)
    for side, name in zip(pairs, ("got", "expected")):
        ids, n = np.unique(side, return_counts=True)
        assert (n == 1).all(), f"label {ids[n > 1][0]} ({name}) corresponds to {n[n > 1][0]} labels of the other"


# -- pieces ----------------------------------------------------------------------------------------------------------------------


def ball(radius_nm: float, spec: ArraySpec) -> np.ndarray:
    """Footprint of the voxels whose centres lie within `radius_nm`."""
    r = [int(radius_nm / s + 1e-9) for s in spec.spacing.zyx]
    grids = np.meshgrid(*[np.arange(-n, n + 1) * s for n, s in zip(r, spec.spacing.zyx)], indexing="ij")
    return sum(g * g for g in grids) <= radius_nm**2 * (1 + 1e-9)


def _first(values: Values) -> Any:
    return next(iter(values.values()))


def unit(spec: ArraySpec) -> float:
    """What stands for 1 in the array: 255 in a quantised probability."""
    return 255.0 if spec.kind == "probability" and spec.dtype == "uint8" else 1.0


def _gaussian(image: np.ndarray, sigma_nm: float, spec: ArraySpec) -> np.ndarray:
    return ndimage.gaussian_filter(image.astype(np.float64) / unit(spec), [sigma_nm / s for s in spec.spacing.zyx], mode="reflect", truncate=4.0)


def _components(connectivity: int) -> np.ndarray:
    return ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])


def _canonical(labels: np.ndarray) -> np.ndarray:
    """Ids 1..N by raster order of the first voxel (scipy's labels are in that order already)."""
    return labels.astype(np.uint64)


def _white_tophat(op, values, spec):
    image = _first(values)
    foot = ball(op.radius_nm, spec)
    # outside counts as +inf for the erosion and -inf for the dilation: neither side of the border is invented
    wide = image.astype(np.float64)
    low = ndimage.grey_erosion(wide, footprint=foot, mode="constant", cval=np.inf)
    opened = ndimage.grey_dilation(low, footprint=foot, mode="constant", cval=-np.inf)
    return (wide - opened).astype(f"u{image.dtype.name}" if image.dtype.kind == "i" else image.dtype)


def _local_mean_box(op, values, spec):
    image = _first(values).astype(np.int64)
    n = [2 * int(np.floor(op.size_nm / 2 / s + 1e-9)) + 1 for s in spec.spacing.zyx]
    total = image
    for axis, k in enumerate(n):
        total = ndimage.correlate1d(total, np.ones(k, np.int64), axis=axis, output=np.int64, mode="reflect")
    mean = total / float(np.prod(n))
    return image > mean + op.offset * unit(spec) if op.direction == "above" else image < mean - op.offset * unit(spec)


def _distance(mask: np.ndarray, side: str, spec: ArraySpec) -> np.ndarray:
    """nm to the nearest voxel of the other side; infinite where there is none."""

    def edt(inside):
        if inside.all():
            return np.full(inside.shape, np.inf)
        return ndimage.distance_transform_edt(inside, sampling=spec.spacing.zyx)

    if side == "inside":
        return edt(mask)
    return edt(~mask) if side == "outside" else np.where(mask, edt(mask), -edt(~mask))


def _dilated(mask: np.ndarray, radius_nm: float, spec: ArraySpec) -> np.ndarray:
    return _distance(mask, "outside", spec) <= radius_nm * (1 + 1e-6)


def _eroded(mask: np.ndarray, radius_nm: float, spec: ArraySpec) -> np.ndarray:
    return _distance(mask, "inside", spec) > radius_nm * (1 + 1e-6)


def _otsu(op, values, spec):
    from skimage.filters import threshold_otsu

    image = values["image"]
    above = image > threshold_otsu(image)
    return above if op.above else ~above


def _in_objects(labels: np.ndarray, spec: ArraySpec) -> np.ndarray:
    """nm to the nearest voxel that is not of the same object, one object at a time."""
    out = np.zeros(labels.shape)
    for label in np.unique(labels[labels > 0]):
        at = labels == label
        out[at] = _distance(at, "inside", spec)[at]
    return out


def _each(labels: np.ndarray, change) -> np.ndarray:
    """`change` of each object's mask by itself."""
    out = np.zeros_like(labels)
    for label in np.unique(labels[labels > 0]):
        out[change(labels == label)] = label
    return out


def _few(op, values) -> bool:
    return len(np.unique(_first(values))) < 60


ORACLES: dict[str, list[Oracle]] = {
    "invert": [Oracle(lambda op, v, s: ~_first(v), when=lambda op, v: _first(v).dtype.kind == "u" and op.maximum is None)],
    "gaussian": [Oracle(lambda op, v, s: _gaussian(_first(v), op.sigma_nm, s).astype(np.float32), "close")],
    "difference_of_gaussians": [
        Oracle(lambda op, v, s: _gaussian(_first(v), op.sigma_small_nm, s) - _gaussian(_first(v), op.sigma_large_nm, s), "close")
    ],
    "median": [Oracle(lambda op, v, s: ndimage.median_filter(_first(v), footprint=ball(op.radius_nm, s), mode="reflect"))],
    "white_tophat": [Oracle(_white_tophat)],
    "local_threshold": [Oracle(_local_mean_box, when=lambda op, v: op.method == "mean" and _first(v).dtype.kind == "u" and "mask" not in v)],
    "threshold_at": [Oracle(lambda op, v, s: v["image"] >= op.value, when=lambda op, v: op.upper is None and v["image"].dtype == np.float32)],
    "threshold": [Oracle(_otsu, when=lambda op, v: op.method == "otsu" and v["image"].dtype.kind == "u" and np.ptp(v["image"]) > 0)],
    "distance_map": [Oracle(lambda op, v, s: _distance(v["mask"], op.side, s), "close")],
    "distance_band": [Oracle(lambda op, v, s: np.clip(_distance(v["mask"], op.side, s), -op.max_nm, op.max_nm), "close")],
    "dilate": [Oracle(lambda op, v, s: _dilated(v["mask"], op.radius_nm, s))],
    "erode": [Oracle(lambda op, v, s: _eroded(v["mask"], op.radius_nm, s))],
    "open": [Oracle(lambda op, v, s: _dilated(_eroded(v["mask"], op.radius_nm, s), op.radius_nm, s))],
    "close": [Oracle(lambda op, v, s: _eroded(_dilated(v["mask"], op.radius_nm, s), op.radius_nm, s))],
    "distance_in_objects": [Oracle(lambda op, v, s: _in_objects(v["labels"], s), "close", _few)],
    "erode_objects": [
        Oracle(lambda op, v, s: _each(v["labels"], lambda m: _eroded(m, op.radius_nm, s)), when=lambda op, v: op.parts == "keep_id" and _few(op, v))
    ],
    "open_objects": [
        Oracle(
            lambda op, v, s: _each(v["labels"], lambda m: _dilated(_eroded(m, op.radius_nm, s), op.radius_nm, s)),
            when=lambda op, v: op.parts == "keep_id" and _few(op, v),
        )
    ],
    "and": [Oracle(lambda op, v, s: np.logical_and(v["a"], v["b"]))],
    "or": [Oracle(lambda op, v, s: np.logical_or(v["a"], v["b"]))],
    "minus": [Oracle(lambda op, v, s: np.logical_and(v["a"], np.logical_not(v["b"])))],
    "not": [Oracle(lambda op, v, s: np.logical_not(_first(v)))],
    "mask": [Oracle(lambda op, v, s: np.where(v["mask"] > 0, v["image"], np.asarray(op.fill, v["image"].dtype)))],
    "mask_labels": [Oracle(lambda op, v, s: np.where(v["mask"] > 0, v["labels"], 0))],
    "fill_holes": [Oracle(lambda op, v, s: ndimage.binary_fill_holes(_first(v)), when=lambda op, v: op.max_volume_nm3 is None)],
    "connected_components": [Oracle(lambda op, v, s: _canonical(ndimage.label(_first(v), _components(op.connectivity))[0]))],
}
