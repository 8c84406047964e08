"""Watershed, exact in blocks: regions by steepest descent (a drop of water runs to the smallest neighbour), joined on the graph of
their saddles.

Voxels are ordered totally by (value, raster index), so no tie depends on where a block ends. A region is what drains into one
minimum: the watershed by topographic distance (Meyer 1994), a minimum spanning forest (Cousty et al., PAMI 2009), not a flooding
with a queue, whose result depends on the order of arrival.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError, VolumeError
from vemray.geometry import Int3, Spacing
from vemray.ops.base import ArraySpec, Labeller, LocalLabels, Port, Site, register
from vemray.ops.planes import Dense, Planes
from vemray.ops.threshold import stored
from vemray.ops.watershed_graph import Edges, RegionGraph, Regions, Rule, reduced
from vemray.ops.watershed_kernels import EXIT, MARKER, OUTSIDE, basins, descend, descend_within, landscape, on_open_faces, relabel, saddles


@register("watershed")
@dataclass(frozen=True)
class Watershed(Labeller):
    """Split an image (or the part in a mask) into the regions around its minima, or around given markers.

    Without markers, regions whose depth (lowest saddle minus minimum) is at most `height` are joined to the neighbour beyond their lowest
    saddle, shallowest saddles first: h-minima by persistence; labels are 1..N in raster order. With markers, each marker is one
    region and keeps its id; what reaches no marker gets 0. With `regions` only the so many most persistent ones of the whole volume are
    left (each part that touches no other keeps at least one; of equally persistent ones that are one too many none stays); `neck` finds where
    to cut one body in two. With `within` no region passes from one object to another. Values are compared as float32. Smooth whole-number images
    first: on a plateau the voxel first in raster order takes all. Whole-array oracle: skimage.segmentation.watershed, equal on distinct values."""

    serves = "instances"
    version = 2
    ports = (
        Port("image", ("image", "probability"), doc="the landscape: low in the middle of a region, high on its border (or `invert`)"),
        Port("mask", ("mask",), optional=True, doc="only its voxels get labels"),
        Port("markers", ("labels",), optional=True, doc="one label for each region wanted; their voxels are the lowest of all"),
        Port("within", ("labels",), optional=True, doc="objects: each is split by itself, and what lies in none gets 0"),
    )

    height: Annotated[
        float, Field(description="regions no deeper than this are joined: grey value, or 0..1 on a probability; without markers only", ge=0)
    ] = 0.0
    connectivity: Annotated[Literal[6, 26], Field(description="which voxels touch: over faces (6), edges and corners too (26)")] = 26
    invert: Annotated[bool, Field(description="the middle of a region is high (a distance map, a probability)")] = False
    regions: Annotated[
        int | None, Field(description="how many regions are left at most, the most persistent ones; without markers only. Default: any number", gt=0)
    ] = None

    @classmethod
    def examples(cls):
        return [
            cls(),
            cls(height=20.0, connectivity=6),
            cls(height=30.0, invert=True),
            cls(height=1e9, connectivity=6),
            cls(height=1e9),
            cls(height=5.0, regions=3),
        ]

    def halo(self, spacing: Spacing) -> Int3:
        return (1, 1, 1)

    def memory(self, image: ArraySpec, mask: ArraySpec | None = None, markers: ArraySpec | None = None, within: ArraySpec | None = None) -> float:
        # room for the edges between the regions of white noise, of 7 and of 27 voxels each, when `height` drops none of them
        return (95 if self.connectivity == 6 else 52) + (4 if image.dtype == "float16" else 0)

    def check(self, image: ArraySpec, mask: ArraySpec | None = None, markers: ArraySpec | None = None, within: ArraySpec | None = None) -> None:
        if markers is not None and self.height > 0:
            raise RecipeError(
                f"watershed: 'height' ({self.height:g}) has no meaning with 'markers', which decide the regions. Leave one of them out."
            )
        if markers is not None and self.regions is not None:
            raise RecipeError("watershed: 'regions' has no meaning with 'markers', which decide the regions. Leave one of them out.")
        if within is not None and (mask is not None or markers is not None):
            raise RecipeError("watershed: 'within' can be combined neither with 'mask' nor with 'markers'. Cut the objects by mask_labels first.")

    def label(
        self, image: np.ndarray, mask: np.ndarray | None = None, markers: np.ndarray | None = None, within: np.ndarray | None = None, *, site: Site
    ) -> LocalLabels:
        rule = Rule(site.shape, self.connectivity == 26, markers is not None, stored(float(self.height), site.inputs[0]), regions=self.regions or 0)
        return label_block(image, mask, markers, site, rule, self.invert, within)

    def example_inputs(self, rng, shape: Int3, spacing):
        """Landscapes with and without ties, mask and markers (of ids that no block would give), for the conformance test."""
        spacing = spacing if isinstance(spacing, Spacing) else Spacing(*spacing)
        image = (rng.random(shape) * rng.choice([4, 100])).astype(rng.choice(["uint8", "float32"]))
        values, kinds = {"image": image}, {"image": "image"}
        if self.height == 0 and rng.random() < 0.4:
            ids = np.array([7, 5, 2**40 + 3, 2**63 + 11], np.uint64)
            values["markers"], kinds["markers"] = rng.choice(ids, shape) * (rng.random(shape) < 0.02), "labels"
        elif rng.random() < 0.5:
            values["mask"], kinds["mask"] = rng.random(shape) < 0.7, "mask"
        elif rng.random() < 0.5:
            slabs = np.indices(shape).sum(0) // 4 % 3 * (rng.random(shape) < 0.9)
            values["within"], kinds["within"] = np.array([0, 5, 2**63 + 11], np.uint64)[slabs], "labels"
        return values, {k: ArraySpec(tuple(shape), v.dtype.name, spacing, kinds[k]) for k, v in values.items()}


def label_block(image, mask, markers, site: Site, rule: Rule, invert: bool, within=None) -> LocalLabels:
    """Regions of one block: followed, joined as far as is certain, and the rest as evidence."""
    values = np.empty(image.shape, np.float32)
    if landscape(image if image.dtype != np.float16 else image.astype(np.float32), invert, values):
        raise VolumeError("watershed: the image holds NaN, which has no place in an order of values. Mend or mask it before.")
    use_mask, use_markers = mask is not None, markers is not None
    inside = np.ascontiguousarray(mask, np.bool_) if use_mask else np.zeros((1, 1, 1), bool)
    marks = np.ascontiguousarray(markers, np.uint64) if use_markers else np.zeros((1, 1, 1), np.uint64)
    write = site.write
    lo = np.array([a - b for a, b in zip(write.start, site.read.start)], np.int64)
    start, volume = np.array(write.start, np.int64), np.array(site.shape, np.int64)

    ways = np.full([n + 2 for n in write.shape], OUTSIDE)
    if within is None:
        descend(values.view(np.int32), inside, marks, use_mask, use_markers, lo, rule.full, ways)
    else:
        descend_within(values, within, lo, rule.full, ways)
    wide = np.zeros(ways.shape, np.uint32)
    kind, end, low, mark, first = basins(ways, values, marks, lo, start, volume, wide)
    del ways, marks, inside

    group = np.zeros(len(end), np.uint64)
    if within is not None:
        group[:] = within[tuple(f - a for f, a in zip(np.unravel_index(first.astype(np.int64), site.shape), site.read.start))]
    regions = Regions(end, low, kind == MARKER, kind == EXIT, group)
    frozen = on_open_faces(wide, len(end), start, volume)
    a, b, saddle, place = saddles(wide, values, low, regions.marked, group, rule.by_marks, rule.most, rule.reduce, lo, start, volume, rule.full)
    owner, edges = reduced(regions, Edges(a.astype(np.int64) - 1, b.astype(np.int64) - 1, saddle, place), frozen, rule)

    kept = np.unique(owner)  # labels of regions that were joined become one, numbered by first voxels again
    of_kept = np.full(len(owner), np.iinfo(np.uint64).max)
    np.minimum.at(of_kept, owner, first)
    np.maximum.at(mark, owner, mark.copy())
    kept = kept[np.argsort(of_kept[kept])]
    number = np.zeros(len(owner), np.int64)
    number[kept] = np.arange(len(kept))
    lut = np.concatenate([[0], number[owner] + 1]).astype(np.uint32)
    labels = wide[1:-1, 1:-1, 1:-1]
    relabel(labels, lut)

    regions = regions.take(kept)
    edges = Edges(number[edges.a], number[edges.b], edges.saddle, edges.place)
    ids = Planes.of(labels, write, site.shape)
    grey = Planes.of(values[site.crop], write, site.shape, Dense)
    keys = regions.key
    evidence = RegionGraph(rule, [keys], [of_kept[kept]], [mark[kept]] if rule.by_marks else [], regions, edges, ids, grey)
    evidence._settle(regions, edges, np.arange(len(keys)), ids.used(len(keys) + 1)[1:])
    return LocalLabels(labels, keys, evidence)
