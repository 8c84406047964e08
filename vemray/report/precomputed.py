"""Meshes for Neuroglancer, in its "precomputed" formats (github.com/google/neuroglancer, src/datasource/precomputed/meshes.md).

multi-resolution   an octree of Draco-compressed fragments: `info`, and for each label LABEL.index (manifest) and LABEL (fragments)
legacy             one resolution: `info`, and for each label LABEL:0 (JSON) and one fragment

Both with `segment_properties/info`: columns of a table that the viewer lists, sorts by and colours by. Positions in nm."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vemray.analysis.mesh import Mesh, decimate
from vemray.errors import InputError, MissingExtra
from vemray.store import access

#: bits of a vertex coordinate within its fragment: 10 or 16
BITS = 16
#: a level of detail has a quarter of the triangles of the finer one; so many triangles at most at the coarsest, and levels
_COARSEST, _LEVELS = 4000, 6


def write_multires(url: str, meshes: Mapping[int, Mesh], table: Any = None) -> None:
    """Write `meshes` (label -> mesh) and the numbers of `table` (pyarrow, with a column label) under `url`."""
    for label, mesh in meshes.items():
        manifest, fragments = multires(mesh)
        access.write_bytes(access.join(url, str(label)), fragments)
        access.write_bytes(access.join(url, f"{label}.index"), manifest)
    info: dict[str, Any] = {
        "@type": "neuroglancer_multilod_draco", "vertex_quantization_bits": BITS, "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        "lod_scale_multiplier": 1.0,
    }  # fmt: skip
    _finish(url, info, meshes, table)


def write_legacy(url: str, meshes: Mapping[int, Mesh], table: Any = None) -> None:
    """The single-resolution format, likewise."""
    for label, mesh in meshes.items():
        vertices = mesh.vertices[:, ::-1].astype("<f4")
        data = np.uint32(len(vertices)).tobytes() + vertices.tobytes() + mesh.triangles.astype("<u4").tobytes()
        access.write_bytes(access.join(url, f"{label}:0:0"), data)
        access.write_bytes(access.join(url, f"{label}:0"), json.dumps({"fragments": [f"{label}:0:0"]}).encode())
    _finish(url, {"@type": "neuroglancer_legacy_mesh"}, meshes, table)


def _finish(url: str, info: dict[str, Any], meshes: Mapping[int, Mesh], table: Any) -> None:
    properties = segment_properties(list(meshes), table)
    access.write_json_bytes(access.join(url, "segment_properties", "info"), properties)
    access.write_json_bytes(access.join(url, "info"), {**info, "segment_properties": "segment_properties"})


def segment_properties(labels: list[int], table: Any = None) -> dict[str, Any]:
    """The viewer's table: every numeric column of `table` that has a finite value for each of these labels."""
    numbers = []
    if table is not None:
        if "label" not in table.column_names:
            raise InputError(f"the table has no column 'label' that would say whose rows they are. It has: {', '.join(table.column_names)}.")
        row = {int(n): i for i, n in enumerate(table.column("label").to_pylist())}
        if all(n in row for n in labels):
            at = [row[n] for n in labels]
            for name in table.column_names:
                values = table.column(name).to_numpy(zero_copy_only=False)
                if name == "label" or values.dtype.kind not in "fiub" or not np.isfinite(kept := values[at].astype(float)).all():
                    continue
                numbers.append({"id": name, "type": "number", "data_type": "float32", "values": [float(np.float32(v)) for v in kept]})
    names = {"id": "label", "type": "label", "values": [str(n) for n in labels]}
    return {"@type": "neuroglancer_segment_properties", "inline": {"ids": [str(n) for n in labels], "properties": [names, *numbers]}}


# ------------------------------------------------------------------------------------------------------- multi-resolution


def multires(mesh: Mesh) -> tuple[bytes, bytes]:
    """(manifest, fragments) of one object: levels of detail 0 (as it is), 1 (a quarter of the triangles), ..., each cut into cubes whose side
    doubles from level to level, so that the coarsest is one cube."""
    if not len(mesh.triangles):
        raise InputError("an object without a surface has no mesh to write.")
    levels = int(np.clip(1 + math.ceil(math.log(max(1.0, len(mesh.triangles) / _COARSEST), 4)), 1, _LEVELS))
    v = mesh.vertices[:, ::-1]
    origin = np.floor(v.min(axis=0)) - 1
    side = 2.0 * math.ceil((v.max(axis=0) + 1 - origin).max() / 2**levels)  # even: planes at its half are whole numbers
    parts: list[tuple[np.ndarray, list[bytes]]] = []
    scales, below = [], np.empty((0, 3), np.int64)
    detail = mesh
    for lod in range(levels):
        if lod:
            detail = decimate(detail, 0.25)
        scales.append(max(math.sqrt(2 * detail.area_nm2 / max(1, len(detail.triangles))), scales[-1] * 1.01 if scales else 0.0))
        cube = side * 2**lod
        points, triangles = _cut(detail.vertices[:, ::-1].copy(), detail.triangles, origin, cube / 2 if lod else cube)
        pieces = _fragments(points, triangles, origin, cube)
        for parent in np.unique(below // 2, axis=0):  # the octree has every cube whose finer ones hold something
            pieces.setdefault(tuple(int(p) for p in parent), b"")
        order = sorted(pieces, key=_z_order)
        below = np.array(order, np.int64).reshape(-1, 3)
        parts.append((below, [pieces[p] for p in order]))
    out = [
        np.full(3, side, "<f4").tobytes(), origin.astype("<f4").tobytes(), np.uint32(levels).tobytes(), np.array(scales, "<f4").tobytes(),
        np.zeros((levels, 3), "<f4").tobytes(), np.array([len(p) for p, _ in parts], "<u4").tobytes(),
    ]  # fmt: skip
    for positions, pieces in parts:
        out += [positions.T.astype("<u4").tobytes(), np.array([len(p) for p in pieces], "<u4").tobytes()]
    return b"".join(out), b"".join(p for _, pieces in parts for p in pieces)


def _z_order(position: tuple[int, int, int]) -> int:
    code = 0
    for bit in range(_LEVELS + 1):
        for axis in range(3):
            code |= (position[axis] >> bit & 1) << (3 * bit + axis)
    return code


def _fragments(v: np.ndarray, triangles: np.ndarray, origin: np.ndarray, cube: float) -> dict[tuple[int, int, int], bytes]:
    """Draco of the triangles in each cube, vertices as whole numbers 0 .. 2^BITS - 1. None crosses a face of a cube."""
    try:
        import DracoPy
    except ImportError:
        raise MissingExtra("DracoPy", "pictures", "a multi-resolution mesh for Neuroglancer") from None
    at = np.floor((v[triangles].mean(axis=1) - origin) / cube).astype(np.int64)
    places, which = np.unique(at, axis=0, return_inverse=True)
    order = np.argsort(which.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(which.reshape(-1), minlength=len(places)))
    out = {}
    for place, mine in zip(places, np.split(triangles[order], ends[:-1])):
        share = (v[mine.reshape(-1)] - (origin + place * cube)) / cube
        whole = np.clip(np.rint(share * (2**BITS - 1)), 0, 2**BITS - 1).astype(np.uint32)
        points, index = np.unique(whole, axis=0, return_inverse=True)
        faces = index.reshape(-1, 3).astype(np.uint32)
        faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
        if len(faces):
            out[tuple(int(p) for p in place)] = DracoPy.encode(points, faces, compression_level=7)
    return out


def _cut(v: np.ndarray, triangles: np.ndarray, origin: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with its triangles cut along the planes origin + k * step across each axis, so that none crosses one."""
    for axis in range(3):
        for k in range(1, math.ceil((v[:, axis].max() - origin[axis]) / step)):
            v, triangles = _cut_by(v, triangles, axis, origin[axis] + k * step)
    return v, triangles


def _cut_by(v: np.ndarray, triangles: np.ndarray, axis: int, at: float) -> tuple[np.ndarray, np.ndarray]:
    near = np.abs(v[:, axis] - at) < 1e-6 * max(1.0, abs(at))
    v[near, axis] = at
    side = np.sign(v[:, axis] - at).astype(np.int8)
    s = side[triangles]
    crossed = (s.min(axis=1) < 0) & (s.max(axis=1) > 0)
    if not crossed.any():
        return v, triangles
    mine = triangles[crossed]
    # first the vertex that is alone on its side, or, where one lies on the plane, that one
    s = s[crossed]
    alone = np.where((s == 0).any(axis=1), np.argmax(s == 0, axis=1), np.argmax(s == -np.sign(s.sum(axis=1, dtype=np.int8))[:, None], axis=1))
    mine = np.take_along_axis(mine, (alone[:, None] + np.arange(3)) % 3, axis=1)
    on = side[mine[:, 0]] == 0
    a, b, c = mine.T
    ends = np.concatenate([np.stack([b, c], 1)[on], np.stack([a, b], 1)[~on], np.stack([a, c], 1)[~on]])
    ends.sort(axis=1)
    edges, index = np.unique(ends, axis=0, return_inverse=True)
    index = index.reshape(-1) + len(v)
    p, q = v[edges[:, 0]], v[edges[:, 1]]
    share = (at - p[:, axis]) / (q[:, axis] - p[:, axis])
    added = p + share[:, None] * (q - p)
    added[:, axis] = at
    n_on, n_off = np.count_nonzero(on), np.count_nonzero(~on)
    bc, ab, ac = index[:n_on], index[n_on : n_on + n_off], index[n_on + n_off :]
    new = [np.stack(t, 1) for t in ((a[on], b[on], bc), (a[on], bc, c[on]), (a[~on], ab, ac), (ab, b[~on], c[~on]), (ab, c[~on], ac))]
    return np.concatenate([v, added]), np.concatenate([triangles[~crossed], *new]).astype(np.int32)
