"""Objects of a finished run in 3D: their meshes from a level of the pyramid that fits into memory, and pictures of them from what the run left.

meshes, at = meshes_of(results.volumes["mitochondria"])
png, notes = picture(Results("out"), ["cell:0.15", "nucleus", "mitochondria"], colour="mitochondria_table.surface_to_volume_per_nm")
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vemray.analysis.mesh import BYTES_PER_FACE, SMOOTH, Mesh, decimate, exposed_faces, mesh_of
from vemray.errors import InputError, nearest
from vemray.geometry import Box, Spacing
from vemray.plan.scenes import check_map, check_view, clipped, column_of, dotted, measured, shown
from vemray.report.mesh_files import ply, stl
from vemray.report.pictures import Source
from vemray.report.precomputed import write_legacy, write_multires
from vemray.report.quantities import quantity
from vemray.report.scenes3d import VIEWS, Cut, Layer, Points, Scale, render
from vemray.run.results import Results
from vemray.store import access
from vemray.store.volume import open as open_volume

#: voxels of a level that is meshed as a whole, and bytes that the mesh of one object may take while it is made
VOXELS, BYTES = 64_000_000, 2 << 30
#: triangles in a picture: more than it has pixels would not be seen
_TRIANGLES = 1_500_000
#: balls in a picture
_BALLS = 50_000


def volume_of(results: Results, name: str):
    """A label or mask volume among the run's outputs and inputs. InputError names those that there are."""
    inputs = {n: f for n, f in results.run["inputs"].items() if f["kind"] in ("labels", "mask")}
    outputs = [n for n, kind in results.kinds.items() if kind in ("labels", "mask")]
    if name in outputs:
        return results.volumes[name]
    if name in inputs:
        return open_volume(inputs[name]["url"], spacing=Spacing(*inputs[name]["spacing_nm"]), kind=inputs[name]["kind"])
    known = [*outputs, *inputs]
    raise InputError(
        f"{results.url} has no label or mask volume '{name}'.{nearest(name, known)} There are: {', '.join(known) or 'none; name them in the outputs of the recipe'}."
    )


def meshes_of(
    volume: Any,
    level: int | None = None,
    labels: Collection[int] | None = None,
    keep: float = 1.0,
    smooth: float = SMOOTH,
    closed: bool = True,
    voxels: int = VOXELS,
) -> tuple[dict[int, Mesh], Any]:
    """label -> mesh, and the handle of the level that was taken: the finest of at most `voxels` voxels whose largest object fits into memory,
    or `level`. `labels`: only these. `keep`: share of the triangles that stays. `closed`: also where the volume ends. The label of a mask is 1."""
    source = Source.of(volume)
    chosen = [level] if level is not None else [i for i in range(volume.levels) if math.prod(source.level(i).shape) <= voxels]
    if level is not None and not 0 <= level < volume.levels:
        raise InputError(f"{volume.where} has levels 0 to {volume.levels - 1}, not {level}.")
    if not chosen:
        n = math.prod(source.level(volume.levels - 1).shape)
        raise InputError(
            f"the coarsest level of {volume.where} has {n / 1e6:,.0f} million voxels, more than the {voxels / 1e6:,.0f} that are meshed at once."
        )
    for i in chosen:
        at = source.level(i)
        if math.prod(at.shape) > voxels:
            raise InputError(
                f"level {i} of {volume.where} has {math.prod(at.shape) / 1e6:,.0f} million voxels, at most {voxels / 1e6:,.0f} are meshed at once. Take a coarser one."
            )
        array = at.read(Box.of(at.shape))
        if labels is not None:
            array = np.where(np.isin(array, np.array(sorted(labels), np.uint64).astype(array.dtype) if array.dtype != bool else [True]), array, 0)
        faces = exposed_faces(array, closed=closed)
        del array
        largest = max(map(len, faces.values()), default=0)
        if largest * BYTES_PER_FACE <= BYTES:
            meshes = {}
            for label in list(faces):
                meshes[label] = decimate(mesh_of(faces.pop(label), at.spacing, at.origin_nm, smooth), keep)
            return meshes, at
    raise InputError(
        f"an object of {volume.where} has {largest:,} exposed voxel faces at level {chosen[-1]}: its mesh would need "
        f"{largest * BYTES_PER_FACE / 1e9:.1f} GB of at most {BYTES / 1e9:.1f}. Take a coarser level."
    )


def write_meshes(
    results: Results, name: str, out: str, form: str = "ply", table: str | None = None, labels: Collection[int] | None = None,
    keep: float = 0.25, smooth: float = SMOOTH, level: int | None = None,
) -> str:  # fmt: skip
    """Write the meshes of a run's label volume under `out` (folder or s3://) and return a line about them.
    `form`: 'ply', 'stl' (LABEL.ply, LABEL.stl), 'neuroglancer' (multi-resolution) or 'neuroglancer-legacy'."""
    files = {"ply": ply, "stl": stl}
    folders = {"neuroglancer": write_multires, "neuroglancer-legacy": write_legacy}
    if form not in {**files, **folders}:
        raise InputError(f"there is no format '{form}'.{nearest(form, [*files, *folders])} There are: {', '.join([*files, *folders])}.")
    rows = _table(results, table) if table else None
    meshes, at = meshes_of(volume_of(results, name), level, labels, keep, smooth)
    if not meshes:
        raise InputError(f"'{name}' holds none of these objects: no mesh was written.")
    if form in files:
        for label, mesh in meshes.items():
            access.write_bytes(access.join(out, f"{label}.{form}"), files[form](mesh))
    else:
        folders[form](out, meshes, rows)
    triangles = sum(len(m.triangles) for m in meshes.values())
    return f"{out}: {len(meshes)} meshes, {triangles:,} triangles, from voxels of {at.spacing}"


def picture(
    results: Results,
    show: Sequence[str],
    colour: str | None = None,
    points: Sequence[str] = (),
    clip: Sequence[str] = (),
    view: str = "oblique",
    ends: tuple[float, float] | None = None,
    colours: str = "viridis",
    level: int | None = None,
    size: tuple[int, int] = (1500, 1200),
    title: str = "",
    voxels: int = VOXELS,
) -> tuple[bytes, list[str]]:
    """(PNG, lines about what was taken).

    show     'NAME' or 'NAME:OPACITY', label or mask volumes of the run
    points   'TABLE' or 'TABLE:RADIUS_NM': a ball at every centroid of a table
    colour   'TABLE.COLUMN': colours the objects that the table measures, or its points
    clip     'x=0.5' (share of the extent), 'x=3200nm': takes away what lies on the camera's side; 'NAME:x=0.5' of one volume only
    ends     of the colour scale, in the unit shown
    voxels   of the level that is meshed, at most"""
    if not show and not points:
        raise InputError("nothing to show: name label volumes with --show, or tables with --points.")
    named = [shown(s, "--show") for s in show]
    dots = [dotted(s, "--points") for s in points]
    check_view(view)
    volumes = {n: volume_of(results, n) for n, _ in named}
    steps = results.run["recipe"]["steps"]
    values, scale = _colour(results, colour, ends, colours) if colour else ({}, None)
    about = measured(steps, column_of(colour)[0]) if colour else None
    if colour and about not in volumes and about not in [measured(steps, n) for n, _ in dots]:
        table = column_of(colour)[0]
        raise InputError(f"--colour {colour}: nothing that is shown is measured by '{table}'. Show it: --show {about} or --points {table}.")
    notes, layers = [], []
    for name, opacity in named:
        meshes, at = meshes_of(volumes[name], level, voxels=voxels)
        count = sum(len(m.triangles) for m in meshes.values())
        share = min(1.0, _TRIANGLES / len(named) / max(1, count))
        if share < 1:
            meshes = {n: decimate(m, share) for n, m in meshes.items()}
        notes.append(f"{name}: {len(meshes)} objects, {sum(len(m.triangles) for m in meshes.values()):,} triangles, from voxels of {at.spacing}")
        layers.append(Layer(_called(name), meshes, opacity=opacity, values=values if name == about else None))
    for name, radius in dots:
        table = _table(results, name)
        columns = [f"centroid_{a}_nm" for a in "zyx"]
        if missing := [c for c in columns if c not in table.column_names]:
            raise InputError(f"--points {name}: the table has no column '{missing[0]}' that would say where its objects lie.")
        if (every := -(-table.num_rows // _BALLS)) > 1:
            table = table.take(np.arange(0, table.num_rows, every))
            notes.append(f"{name}: one of {every} points")
        where = np.stack([table.column(c).to_numpy() for c in columns], axis=1)
        own = np.array([values.get(int(n), np.nan) for n in table.column("label").to_pylist()]) if colour and measured(steps, name) == about else None
        layers.append(Points(_called(measured(steps, name)), where, radius, own))
    names = [n for n, _ in (*named, *dots)]
    cuts = [_cut(c, view, volumes, dict(zip(names, layers))) for c in clip]
    return render(layers, scale, cuts, view, size, title), notes


def _table(results: Results, name: str):
    if name not in results.arrow:
        raise InputError(f"{results.url} has no table '{name}'.{nearest(name, results.arrow)} There are: {', '.join(results.arrow) or 'none'}.")
    return results.arrow[name]


def _colour(results: Results, text: str, ends, colours: str) -> tuple[dict[int, float], Scale]:
    name, column = column_of(text, "--colour")
    table = _table(results, name)
    if column not in table.column_names:
        raise InputError(f"--colour {text}: '{name}' has no column '{column}'.{nearest(column, table.column_names)} Give TABLE.COLUMN.")
    values = table.column(column).to_numpy(zero_copy_only=False)
    if "label" not in table.column_names or values.dtype.kind not in "fiub":
        raise InputError(f"--colour {text}: objects are coloured by a column of numbers in a table with a column 'label'.")
    check_map(colours)
    q = quantity(column)
    low, high = ends or (None, None)
    found = {int(n): float(v) * q.factor for n, v in zip(table.column("label").to_pylist(), values)}
    return found, Scale(q.label, colours, low, high)


def _called(name: str) -> str:
    return name.replace("_", " ")


def _cut(text: str, view: str, volumes: Mapping[str, Any], layers: Mapping[str, Layer | Points]) -> Cut:
    name, axis, value, nm = clipped(text, "--clip")
    if name and name not in layers:
        raise InputError(f"--clip {text}: '{name}' is not shown.{nearest(name, layers)}")
    a = "zyx".index(axis)
    if not nm:
        ends = [e for v in volumes.values() for e in Source.of(v).extent_nm[a]] or [e for p in layers.values() for e in np.asarray(p.positions)[:, a]]
        value = min(ends) + value * (max(ends) - min(ends))
    return Cut(axis, value, VIEWS[view][0][2 - a] > 0, layers[name].name if name else "")
