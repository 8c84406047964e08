"""Meshes as files: STL and PLY (binary), units nm, XYZ."""

from __future__ import annotations

import numpy as np

from vemray.analysis.mesh import Mesh
from vemray.errors import InputError


def stl(mesh: Mesh, name: str = "vemray") -> bytes:
    """Binary STL: for each triangle its normal and corners as float32."""
    v = mesh.vertices[:, ::-1].astype(np.float32)
    corners = v[mesh.triangles]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    record = np.zeros(len(corners), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    record["normal"] = np.divide(normal, length, out=np.zeros_like(normal), where=length > 0)
    record["corners"] = corners
    head = f"{name}, nm".encode("ascii", "replace")[:80].ljust(80, b" ")  # must not begin with "solid"
    if head.startswith(b"solid"):
        raise InputError(f"an STL cannot be called '{name}': a name that begins with 'solid' marks the text form.")
    return head + np.uint32(len(corners)).tobytes() + record.tobytes()


def ply(mesh: Mesh, label: int | None = None) -> bytes:
    """Binary PLY, little-endian: vertices as float32, triangles as int32."""
    comment = "comment vemray, units nm" + (f", label {label}" if label is not None else "")
    head = (
        f"ply\nformat binary_little_endian 1.0\n{comment}\nelement vertex {len(mesh.vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(mesh.triangles)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    faces = np.empty(len(mesh.triangles), [("n", "u1"), ("corners", "<i4", 3)])
    faces["n"], faces["corners"] = 3, mesh.triangles
    return head.encode() + mesh.vertices[:, ::-1].astype("<f4").tobytes() + faces.tobytes()
