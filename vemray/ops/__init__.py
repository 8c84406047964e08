"""Operators: numpy in, numpy out. One family a file; importing this package registers them all.

A new family is a module here and a line below."""

from vemray.ops import (  # noqa: F401
    base,
    combine,
    compartments,
    components,
    composition,
    contingency,
    distance,
    fill_holes,
    forest,
    grow,
    histogram,
    intensity,
    local_threshold,
    logic,
    measure,
    neighbourhood,
    objects,
    objects_morphology,
    per_object,
    pixel_features,
    resample,
    smooth,
    split,
    statistics,
    tables,
    threshold,
    tophat,
    touching,
    watershed,
)
from vemray.ops.base import OPERATORS, build, find, parameters, register  # noqa: F401
