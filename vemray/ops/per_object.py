"""Operators that look at one object at a time, whole, whatever blocks it lies in: skeletons, meshes.

The objects and their boxes come from the table of `measure`. Each block does the objects whose box begins in it and reads, for each, the
object's box and one voxel around it; so the blocks decide who does the work, not what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from vemray.analysis.mesh import BYTES_PER_FACE, exposed_faces, mesh_of
from vemray.analysis.skeleton import BYTES_PER_VOXEL, skeleton_of
from vemray.errors import InputError
from vemray.geometry import ArraySpec, Box, Spacing
from vemray.ops.base import Measure, Port, Site, register

#: bytes that any object may take
_LEAST = 16 << 20
_BOX = tuple(f"bbox_{a}_{end}" for end in ("min", "max") for a in "zyx")


@dataclass
class Rows:
    """Partial: columns of the objects done so far."""

    columns: dict[str, np.ndarray]

    def merge(self, upper: Rows, axis: int) -> Rows:
        return Rows({n: np.concatenate([c, upper.columns[n]]) for n, c in self.columns.items()})


@dataclass(frozen=True)
class PerObject(Measure):
    """Base. `memory` is per voxel of the object's box, for what `alone` takes; `need` may say more once the object is seen."""

    ports: ClassVar[tuple[Port, ...]] = (
        Port("labels", ("labels",), doc="the objects"),
        Port("table", ("table",), doc="of `measure` on the same labels, or rows of it: only these objects are done"),
    )
    #: name -> dtype of the columns beside label
    columns: ClassVar[dict[str, str]] = {}

    def alone(self, mask: np.ndarray, spacing: Spacing) -> dict[str, Any]:
        """The columns of one object. `mask` (bool) is its box with one voxel around it, none where the volume ends."""
        raise NotImplementedError

    def need(self, mask: np.ndarray) -> int:
        """Bytes that `alone` takes for this mask."""
        return 0

    def read_box(self, write, shape, spacing):
        return Box.of(shape)

    def bytes_for(self, voxels: int, labels: ArraySpec) -> int:
        """Bytes that an object in a box of so many voxels takes: read (decoded and assembled), compared, and worked on."""
        return int(voxels * (2 * np.dtype(labels.dtype).itemsize + 1 + self.memory(labels))) + _LEAST

    def measure(self, labels: np.ndarray, table, *, site: Site) -> Rows:
        return self.objects(table, lambda box: labels[box.within(site.read).slices], site)

    def objects(self, table, read: Callable[[Box], np.ndarray], site: Site, limit: int | None = None) -> Rows:
        """The objects of `table` whose box begins in `site.write`; `read` gives the labels of a box. InputError if one needs more than `limit`."""
        if missing := [c for c in ("label", *_BOX) if c not in table.column_names]:
            raise InputError(f"the table has no column '{missing[0]}': '{self.name}' takes the table of `measure`, with its boxes.")
        label = table.column("label").to_numpy()
        low, high = (np.stack([table.column(c).to_numpy() for c in names], axis=1).astype(np.int64) for names in (_BOX[:3], _BOX[3:]))
        mine = np.flatnonzero(((low >= site.write.start) & (low < site.write.stop)).all(axis=1))
        found: dict[str, list] = {"label": [], **{n: [] for n in self.columns}}
        for i in mine:
            box = Box(tuple(map(int, low[i])), tuple(map(int, high[i])))
            around = box.grow((1, 1, 1)).clip(site.shape)
            self._refuse(self.bytes_for(around.size, site.inputs[0]), limit, label[i], box)
            mask = read(around) == np.uint64(label[i])
            self._refuse(self.need(mask), limit, label[i], box)
            values = self.alone(mask, site.spacing)
            found["label"].append(label[i])
            for n in self.columns:
                found[n].append(values[n])
        types = {"label": "uint64", **self.columns}
        return Rows({n: np.array(v, dtype=types[n]) for n, v in found.items()})

    def _refuse(self, need: int, limit: int | None, label: int, box: Box) -> None:
        if limit is not None and need > limit:
            raise InputError(
                f"object {label} in {box} needs {need / 1e6:,.0f} MB, and a task may use {limit / 1e6:,.0f} MB. Take labels of a coarser level "
                "('downsample'), leave it out of the table ('select_rows'), or allow more with --memory."
            )

    def finish(self, partial: Rows, inputs):
        import pyarrow as pa

        order = np.argsort(partial.columns["label"], kind="stable")
        return pa.table({n: c[order] for n, c in partial.columns.items()})

    def example_inputs(self, rng, shape, spacing):
        """Labels for the conformance test with their table."""
        from scipy import ndimage

        from vemray.ops.measure import MeasureObjects

        noise = ndimage.gaussian_filter(rng.random(shape), [min(2.0, n / 4) for n in shape], mode="wrap")
        labels = ndimage.label(noise > noise.mean() + 1.1 * noise.std())[0].astype(np.uint64) * np.uint64(2**40 + 1)
        spec = ArraySpec(tuple(shape), "uint64", Spacing(*spacing), "labels")
        op = MeasureObjects()
        table = op.finish(op.measure(labels, None, site=Site.whole(spec)), (spec, None))
        return {"labels": labels, "table": table}, {"labels": spec}


@register("skeletons")
@dataclass(frozen=True)
class Skeletons(PerObject):
    """Centre lines of objects as graphs: their length and where they branch.

    Thinning by Lee, Kashyap and Chu (1994, CVGIP 56:462), one object at a time. Gives a table, a row a label: `length_nm` of all branches,
    `longest_path_nm` (the longest of the shortest ways between two ends or branch points; half of a ring), `branch_points`, `end_points`,
    `loops`, `radius_mean_nm` (mean distance from the line to the object's surface). A branch that ends freely and is shorter than
    `prune` times the radius at its branch point counts as roughness and is taken away. Lengths are measured along the smoothed line; a line
    ends about one radius before its object does. Where the volume's border cuts an object, its line ends there."""

    prune: Annotated[float, Field(ge=0, le=10, description="free branches shorter than this times the local radius are taken away; 0 keeps all")] = (
        1.0
    )

    serves: ClassVar[str] = "beyond the note: skeletons of mitochondria"
    columns: ClassVar[dict[str, str]] = {
        "length_nm": "float64", "longest_path_nm": "float64", "branch_points": "int64", "end_points": "int64", "loops": "int64",
        "radius_mean_nm": "float64",
    }  # fmt: skip

    def memory(self, labels, *_):
        return BYTES_PER_VOXEL

    def alone(self, mask, spacing):
        return skeleton_of(mask, spacing, self.prune).features()


@register("measure_meshes")
@dataclass(frozen=True)
class MeasureMeshes(PerObject):
    """Surface area of objects from smoothed meshes: less biased on flat and on anisotropic surfaces than counts of voxel pairs.

    Faces of voxels are sewn into a mesh, smoothed within half the coarsest voxel with the enclosed volume kept (analysis/mesh.py; of the
    kind of Taubin 1995 and Gibson 1998), and its triangles summed. Gives a table, a row a label: `mesh_area_nm2`, which leaves out where
    the volume's border cuts the object, as `measure` does; `mesh_volume_nm3` (divergence theorem; NaN for a cut object);
    `mesh_surface_to_volume_per_nm` with the voxels' volume. On spheres, ellipsoids and tori of radius 5 coarsest voxels the area is 0.4 to
    0.9 % too large (mean over poses, isotropic and 1:1:4), cylinders lose 3.5 % at their rims, planes are 0 to 2 % too large in any
    direction."""

    smooth: Annotated[float, Field(ge=0, le=5, description="standard deviation of the smoothing in units of the coarsest voxel side")] = 1.75

    serves: ClassVar[str] = "8: surface-to-volume ratio"
    columns: ClassVar[dict[str, str]] = {"mesh_area_nm2": "float64", "mesh_volume_nm3": "float64", "mesh_surface_to_volume_per_nm": "float64"}

    def memory(self, labels, *_):
        return 56  # of an object as ragged as noise; what a still more ragged one takes is counted in `need`

    def need(self, mask):
        inner = np.pad(mask, 1)
        faces = sum(np.count_nonzero(np.diff(inner, axis=a)) for a in range(3))
        return BYTES_PER_FACE * faces + 4 * mask.size

    def alone(self, mask, spacing):
        faces = exposed_faces(mask).get(1)
        mesh = mesh_of(faces if faces is not None else np.empty((0, 4), np.int32), spacing, smooth=self.smooth)
        area, voxels = mesh.area_nm2, np.count_nonzero(mask) * spacing.voxel_nm3
        return {"mesh_area_nm2": area, "mesh_volume_nm3": mesh.volume_nm3, "mesh_surface_to_volume_per_nm": area / voxels if voxels else float("nan")}
