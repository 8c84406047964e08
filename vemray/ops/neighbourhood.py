"""How close objects lie to each other: tables of objects in, a row for each object out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from vemray.analysis.density import kernel_density
from vemray.analysis.neighbours import neighbours
from vemray.ops.base import Analysis, Port, register

OBJECTS = Port("table", ("table",), doc="of objects, as 'measure' gives: label and centroid_{z,y,x}_nm")


def example_objects(rng, n: int):
    """n objects at centres of voxels of 50 x 4 x 4 nm, so that distances tie."""
    import pyarrow as pa

    zyx = rng.integers(0, 12, (n, 3)) * np.array([50.0, 4.0, 4.0])
    centres = {f"centroid_{a}_nm": zyx[:, i] for i, a in enumerate("zyx")}
    return pa.table({"label": (rng.permutation(n) + 1).astype(np.uint64), **centres, "volume_nm3": rng.gamma(2.0, 1e8, n)})


@register("neighbours")
@dataclass(frozen=True)
class Neighbours(Analysis):
    """Distances to the nearest neighbours of each object, centre to centre: the mean over the k nearest, and the nearest and its label.

    Columns, a row for each object of `table`: `label`; `neighbours`, how many the mean is of (k, or all there are); `mean_neighbour_distance_nm`;
    `nearest_distance_nm`; `nearest_label` (the smallest of those equally near, to 1e-9); with `radius_nm` also `neighbours_within_radius`, the
    number of objects not farther than it. Neighbours are the other objects of the same table, or those of `others` (then an object of the same label
    is one like any). Empty where there is no neighbour. An object near the border of the volume has neighbours that the volume does not show:
    its distances are upper bounds."""

    serves = "step 14: mean distance to the nearest 8"
    ports = (OBJECTS, Port("others", ("table",), optional=True, doc="whose objects are the neighbours"))

    k: Annotated[int, Field(gt=0, description="how many nearest neighbours the mean is of")] = 8
    radius_nm: Annotated[float | None, Field(gt=0, description="count the neighbours within this distance, nm")] = None

    @classmethod
    def examples(cls):
        return [cls(), cls(k=3, radius_nm=60.0), cls(k=500)]

    def example_inputs(self, rng, shape, spacing):
        values = {"table": example_objects(rng, int(rng.integers(0, 60)))}
        return ({**values, "others": example_objects(rng, 20)} if rng.random() < 0.5 else values), {}

    def __call__(self, table, others=None):
        return neighbours(table, others, self.k, self.radius_nm)


@register("kernel_density")
@dataclass(frozen=True)
class KernelDensity(Analysis):
    """Gaussian kernel density of the objects' centres, at each of them; scikit-learn's KernelDensity(kernel='gaussian').score_samples.

    Columns, a row for each object: `label`; `log_density_per_nm3`, the natural logarithm of the density that integrates to 1 over space:
    sum_j exp(-d_ij^2 / 2 h^2) / (n (2 pi)^(3/2) h^3) (Silverman 1986, Density Estimation, 4.2); `density_per_um3`, the same as a number;
    `number_density_per_um3`, times the number of objects n; `kernel_sum`, the sum alone: how many objects lie about one bandwidth around it, itself
    included. Pairs so far apart that all of them together change a density by less than 1e-12 of its value are left out. Near the border of
    the volume, or on a membrane, it is no density per volume of tissue: compare places of one kind."""

    serves = "step 14: Gaussian kernel density of centroids"
    ports = (OBJECTS,)

    bandwidth_nm: Annotated[float, Field(gt=0, description="standard deviation h of the Gaussian, nm")] = 100.0

    @classmethod
    def examples(cls):
        return [cls(), cls(3.0)]

    def example_inputs(self, rng, shape, spacing):
        return {"table": example_objects(rng, int(rng.integers(0, 60)))}, {}

    def __call__(self, table):
        return kernel_density(table, self.bandwidth_nm)
