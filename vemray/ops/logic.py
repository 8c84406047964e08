"""Set operations on masks, and labels cut by a mask. Labels are accepted as masks: a voxel is set where its label is not 0.

Compartments are made of these: `cytoplasm = minus(cell, nucleus)`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vemray.ops.base import ArraySpec, Filter, Port, Site, register

BINARY = ("mask", "labels")
PAIR = (Port("a", BINARY, doc="labels count as set where they are not 0"), Port("b", BINARY, doc="labels count as set where they are not 0"))


def is_set(array: np.ndarray) -> np.ndarray:
    """Bool view of a mask; a new bool array for labels."""
    return array if array.dtype == np.bool_ else array != 0


@dataclass(frozen=True)
class _MaskFilter(Filter):
    """Voxelwise, bool out; no parameters, no halo."""

    serves = "steps 7, 10 and 11: compartments and masks made of masks"

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        return inputs[0].like(np.bool_, "mask")

    def memory(self, *inputs: ArraySpec) -> float:
        return 1 + sum(s.dtype != "bool" for s in inputs)


@register("and")
@dataclass(frozen=True)
class And(_MaskFilter):
    """Voxels that are set in both `a` and `b`."""

    ports = PAIR

    def __call__(self, a: np.ndarray, b: np.ndarray, *, site: Site) -> np.ndarray:
        return is_set(a) & is_set(b)


@register("or")
@dataclass(frozen=True)
class Or(_MaskFilter):
    """Voxels that are set in `a`, in `b` or in both."""

    ports = PAIR

    def __call__(self, a: np.ndarray, b: np.ndarray, *, site: Site) -> np.ndarray:
        return is_set(a) | is_set(b)


@register("minus")
@dataclass(frozen=True)
class Minus(_MaskFilter):
    """Voxels that are set in `a` and not in `b`."""

    ports = PAIR

    def __call__(self, a: np.ndarray, b: np.ndarray, *, site: Site) -> np.ndarray:
        return np.greater(is_set(a), is_set(b))


@register("not")
@dataclass(frozen=True)
class Not(_MaskFilter):
    """Voxels that are not set."""

    ports = (Port("mask", BINARY, doc="labels count as set where they are not 0"),)

    def __call__(self, mask: np.ndarray, *, site: Site) -> np.ndarray:
        return np.logical_not(mask)


@register("mask_labels")
@dataclass(frozen=True)
class MaskLabels(Filter):
    """Labels kept where the mask is set, 0 elsewhere. Ids stay as they are: an object may be cut into parts that share one id."""

    serves = "step 10: objects restricted to a layer"
    ports = (Port("labels", ("labels",)), Port("mask", BINARY, doc="labels count as set where they are not 0"))

    def output(self, labels: ArraySpec, mask: ArraySpec) -> ArraySpec:
        return labels

    def memory(self, labels: ArraySpec, mask: ArraySpec) -> float:
        return np.dtype(labels.dtype).itemsize + (mask.dtype != "bool")

    def __call__(self, labels: np.ndarray, mask: np.ndarray, *, site: Site) -> np.ndarray:
        return labels * is_set(mask)
