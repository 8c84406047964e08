"""Distance to the border inside each object, and objects split where they are thin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import Int3, Spacing
from vemray.ops.base import ArraySpec, Composite, Filter, Port, Site, Step, build, register
from vemray.ops.combine import CombineLabels
from vemray.ops.distance import middle, steps_type
from vemray.ops.distance_kernels import Metric
from vemray.ops.label_distance_kernels import rows_within, sweep_within
from vemray.ops.logic import MaskLabels
from vemray.ops.measure import MeasureObjects
from vemray.ops.objects import Relabel, SelectObjects, check_condition
from vemray.ops.watershed import Watershed

LABELS = Port("labels", ("labels",), doc="objects; 0 is background")


@register("distance_in_objects")
@dataclass(frozen=True)
class DistanceInObjects(Composite):
    """Euclidean distance of each voxel of an object to the nearest voxel that is not of it, background or another object, over the whole
    volume, in nm, float32; 0 on the background.

    From voxel centre to voxel centre, infinite where the whole volume is one object. `distance_map` of each object by itself: touching objects
    are apart. Whole-array oracle: the multi-label mode of github.com/seung-lab/euclidean-distance-transform-3d."""

    serves = "step 13: large ones split"
    ports = (LABELS,)

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        labels = inputs["labels"]
        return [
            Step(".rows", RowsInObjects(), {"labels": labels}),
            Step(".columns", ColumnsInObjects(), {"image": ".rows", "labels": labels}),
            Step("", PillarsInObjects(), {"image": ".columns", "labels": labels}),
        ]


@register("rows_in_objects", hidden=True)
@dataclass(frozen=True)
class RowsInObjects(Filter):
    """Distance in voxels along x to the nearest voxel of another label; the type's largest value where a row has none."""

    whole_axes = (2,)
    ports = (LABELS,)

    def check(self, labels: ArraySpec) -> None:
        if np.dtype(labels.dtype).kind != "u":
            raise RecipeError(f"labels must be of an unsigned integer type, not {labels.dtype}.")

    def output(self, labels: ArraySpec) -> ArraySpec:
        return labels.like(steps_type(labels.shape), "image")

    def memory(self, labels: ArraySpec) -> float:
        return steps_type(labels.shape).itemsize + 0.1

    def __call__(self, labels: np.ndarray, *, site: Site) -> np.ndarray:
        out = np.empty(labels.shape, steps_type(site.shape))
        rows_within(labels, out, 0, -1)
        return out


@register("columns_in_objects", hidden=True)
@dataclass(frozen=True)
class ColumnsInObjects(Filter):
    """From distances along x to squared distances within z planes, in the whole-number units of the spacing."""

    whole_axes = (1,)
    ports = (Port("image"), LABELS)

    def output(self, image: ArraySpec, labels: ArraySpec) -> ArraySpec:
        return image.like(Metric.of(image.spacing, image.shape).dtype(image.shape, (1, 2)), "image")

    def memory(self, image: ArraySpec, labels: ArraySpec) -> float:
        return np.dtype(self.output(image, labels).dtype).itemsize + 0.5

    def __call__(self, image: np.ndarray, labels: np.ndarray, *, site: Site) -> np.ndarray:
        metric = Metric.of(site.spacing, site.shape)
        out = np.empty(image.shape, metric.dtype(site.shape, (1, 2)))
        sweep_within(labels, image, out, metric.weights[1], metric.weights[2], -1, int(np.iinfo(out.dtype).max), 0.0)
        return out

    def example_inputs(self, rng, shape: Int3, spacing):
        return _example(rng, shape, spacing, ())


@register("pillars_in_objects", hidden=True)
@dataclass(frozen=True)
class PillarsInObjects(Filter):
    """From squared distances within z planes to distances in nm."""

    whole_axes = (0,)
    ports = (Port("image"), LABELS)

    def output(self, image: ArraySpec, labels: ArraySpec) -> ArraySpec:
        return image.like(np.float32)

    def memory(self, image: ArraySpec, labels: ArraySpec) -> float:
        return 4.5

    def __call__(self, image: np.ndarray, labels: np.ndarray, *, site: Site) -> np.ndarray:
        metric = Metric.of(site.spacing, site.shape)
        out = np.empty(image.shape, np.float32)
        sweep_within(middle(labels, 0), middle(image, 0), middle(out, 0), metric.weights[0], 0, -1, 0, metric.nm2)
        return out

    def example_inputs(self, rng, shape: Int3, spacing):
        return _example(rng, shape, spacing, (ColumnsInObjects(),))


def _example(rng, shape: Int3, spacing, more: tuple[Filter, ...]) -> tuple[dict, dict]:
    """What the sweeps after the first get, for the conformance test."""
    spacing = spacing if isinstance(spacing, Spacing) else Spacing(*spacing)
    labels = rng.choice(np.array([0, 5, 2**63 + 11], np.uint64), shape, p=[0.1, 0.1, 0.8])
    spec = ArraySpec(tuple(shape), "uint64", spacing, "labels")
    array, image = RowsInObjects()(labels, site=Site.whole(spec)), RowsInObjects().output(spec)
    for op in more:
        array, image = op(array, labels, site=Site.whole(image, spec)), op.output(image, spec)
    return {"image": array, "labels": labels}, {"image": image, "labels": spec}


@register("split_objects")
@dataclass(frozen=True)
class SplitObjects(Composite):
    """Split objects where they are thin: watershed on the distance to the border inside each object, by itself even where objects touch.

    A neck splits an object if it is at least `height_nm` thinner (in distance to the border: half a width) than the smaller of its two sides.
    Pieces of an object that do not touch become objects of their own. With `where` only objects for which a condition on their
    `measure`d features holds are split; the others stay whole. All are numbered anew, 1..N in raster order."""

    serves = "step 13: large ones split"
    ports = (LABELS,)

    height_nm: Annotated[
        float, Field(description="how much thinner than both its sides a neck must be to split, in distance to the border, nm", ge=0)
    ]
    sigma_nm: Annotated[
        float | None,
        Field(description="smooth the distances first by a Gaussian of this sigma, nm; also across the borders of objects. Default: not", gt=0),
    ] = None
    where: Annotated[str | None, Field(description="split only objects for which this holds, e.g. volume_nm3 > 1e8. Default: all")] = None

    @classmethod
    def examples(cls):
        return [cls(4.0), cls(2.0, sigma_nm=9.0), cls(2.0, where="volume_voxels > 30 and not touches_border")]

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        labels, chosen, steps = inputs["labels"], inputs["labels"], []
        if self.where is not None:
            check_condition(self.where, with_image=False)
            chosen = ".chosen"
            steps += [
                Step(".measure", MeasureObjects(), {"labels": labels}),
                Step(".select", SelectObjects(self.where), {"table": ".measure"}),
                Step(".chosen", Relabel(new_column="label"), {"labels": labels, "table": ".select"}),
            ]
        steps.append(Step(".distance", DistanceInObjects(), {"labels": chosen}))
        image = ".distance"
        if self.sigma_nm is not None:
            image = ".smooth"
            steps.append(Step(".smooth", build("gaussian", {"sigma_nm": self.sigma_nm}), {"image": ".distance"}))
        watershed = Watershed(height=self.height_nm, invert=True)
        if self.where is None:
            return [*steps, Step("", watershed, {"image": image, "within": chosen})]
        return [
            *steps,
            Step(".parts", watershed, {"image": image, "within": chosen}),
            Step(".not_chosen", build("not", {}), {"mask": chosen}),
            Step(".others", MaskLabels(), {"labels": labels, "mask": ".not_chosen"}),
            Step("", CombineLabels(), {"a": ".parts", "b": ".others"}),
        ]
