"""Mesh files, read back as their specifications say."""

import json

import numpy as np
import pyarrow as pa
import pytest

from vemray.analysis.mesh import Mesh, exposed_faces, mesh_of
from vemray.errors import InputError
from vemray.geometry import Spacing
from vemray.report.mesh_files import ply, stl
from vemray.report.precomputed import BITS, segment_properties, write_legacy, write_multires


@pytest.fixture(scope="module")
def ring() -> Mesh:
    z, y, x = np.mgrid[-12:13, -40:41, -40:41]
    return mesh_of(exposed_faces((np.hypot(x, y) - 28) ** 2 + z**2 < 9**2)[1], Spacing(15, 16, 16), origin_nm=(1000.0, 2000.0, 3000.0))


def of_points(xyz: np.ndarray, faces: np.ndarray) -> Mesh:
    """A mesh whose vertices are joined where they lie at the same place."""
    points, index = np.unique(np.asarray(xyz, float).reshape(-1, 3), axis=0, return_inverse=True)
    return Mesh(points[:, ::-1], index.reshape(-1)[np.asarray(faces, np.int64)].astype(np.int32))


def assert_like(found: Mesh, mesh: Mesh, rel: float) -> None:
    assert set(found.edge_counts()) == {2}, "closed: its pieces fit vertex by vertex"
    assert found.area_nm2 == pytest.approx(mesh.area_nm2, rel=rel) and found.volume_nm3 == pytest.approx(mesh.volume_nm3, rel=rel)
    assert found.vertices.min(axis=0) == pytest.approx(mesh.vertices.min(axis=0), abs=rel * 1000)


def test_stl(ring):
    data = stl(ring, "ring")
    n = int(np.frombuffer(data, "<u4", 1, 80)[0])
    record = np.frombuffer(data, [("n", "<f4", 3), ("p", "<f4", (3, 3)), ("a", "<u2")], n, 84)
    assert len(data) == 84 + 50 * n and n == len(ring.triangles)
    assert_like(of_points(record["p"], np.arange(3 * n).reshape(-1, 3)), ring, 1e-4)
    assert np.linalg.norm(record["n"], axis=1) == pytest.approx(1, abs=1e-5)
    outwards = (record["p"].mean(axis=1) - ring.vertices[:, ::-1].mean(axis=0)) * record["n"]
    assert outwards[:, 2].mean() > 0, "normals look outwards"
    with pytest.raises(InputError, match="solid"):
        stl(ring, "solid ring")


@pytest.mark.parametrize("form", ["stl", "ply"])
def test_files_open_in_another_library(form, ring, tmp_path):
    pv = pytest.importorskip("pyvista")
    (tmp_path / f"ring.{form}").write_bytes(stl(ring) if form == "stl" else ply(ring, 7))
    read = pv.read(tmp_path / f"ring.{form}")
    assert read.n_cells == len(ring.triangles) and read.area == pytest.approx(ring.area_nm2, rel=1e-4)
    assert read.volume == pytest.approx(ring.volume_nm3, rel=1e-4)
    assert np.array(read.bounds).reshape(3, 2)[::-1, 0] == pytest.approx(ring.vertices.min(axis=0), rel=1e-5)


def test_legacy_precomputed(ring, tmp_path):
    write_legacy(str(tmp_path), {2**63: ring}, pa.table({"label": pa.array([2**63], pa.uint64()), "volume_nm3": [ring.volume_nm3]}))
    assert json.loads((tmp_path / "info").read_text())["@type"] == "neuroglancer_legacy_mesh"
    (name,) = json.loads((tmp_path / f"{2**63}:0").read_text())["fragments"]
    data = (tmp_path / name).read_bytes()
    n = int(np.frombuffer(data, "<u4", 1)[0])
    xyz, faces = np.frombuffer(data, "<f4", 3 * n, 4).reshape(-1, 3), np.frombuffer(data, "<u4", offset=4 + 12 * n).reshape(-1, 3)
    assert_like(of_points(xyz, faces), ring, 1e-4)
    properties = json.loads((tmp_path / "segment_properties" / "info").read_text())["inline"]
    assert properties["ids"] == [str(2**63)] and properties["properties"][1]["values"] == [pytest.approx(ring.volume_nm3, rel=1e-6)]


def read_multires(folder, label: int) -> list[Mesh]:
    """A mesh for each level of detail, by the text of the specification; checks what it asks of the octree."""
    DracoPy = pytest.importorskip("DracoPy")
    info = json.loads((folder / "info").read_text())
    assert info["@type"] == "neuroglancer_multilod_draco" and info["vertex_quantization_bits"] == BITS
    data, fragments = (folder / f"{label}.index").read_bytes(), (folder / str(label)).read_bytes()
    at = 0

    def take(dtype, n):
        nonlocal at
        out = np.frombuffer(data, dtype, n, at)
        at += out.nbytes
        return out

    chunk, origin, (lods,) = take("<f4", 3), take("<f4", 3), take("<u4", 1)
    scales, offsets, counts = take("<f4", lods), take("<f4", 3 * lods).reshape(-1, 3), take("<u4", lods)
    assert (np.diff(scales) > 0).all()
    out, start, finer = [], 0, None
    for lod in range(lods):
        positions, sizes = take("<u4", 3 * counts[lod]).reshape(3, -1).T, take("<u4", counts[lod])
        code = [sum((int(p[a]) >> b & 1) << (3 * b + a) for a in range(3) for b in range(10)) for p in positions]
        assert code == sorted(set(code)), "in Z order"
        here = {tuple(int(v) for v in p) for p in positions}
        assert finer is None or {tuple(v // 2 for v in p) for p in finer} <= here, "every cube with finer ones is there"
        finer, xyz, faces, n = here, [], [], 0
        for p, size in zip(positions, sizes):
            if size:
                piece = DracoPy.decode(fragments[start : start + size])
                assert piece.points.dtype.kind in "ui" and piece.points.max() < 2**BITS
                if lod:
                    halves = piece.points[piece.faces].astype(int) - 2 ** (BITS - 1)
                    assert ((halves.max(axis=1) <= 0) | (halves.min(axis=1) >= 0)).all(), "no triangle crosses the 2 x 2 x 2 grid"
                xyz.append(np.round(origin + offsets[lod] + chunk.astype(float) * 2**lod * (p + piece.points / (2**BITS - 1)), 6))
                faces.append(piece.faces.astype(np.int64) + n)
                n += len(piece.points)
            start += size
        out.append(of_points(np.concatenate(xyz), np.concatenate(faces)))
    assert at == len(data) and start == len(fragments)
    return out


def test_multires_precomputed(ring, tmp_path):
    pytest.importorskip("fast_simplification")
    pytest.importorskip("DracoPy")
    write_multires(str(tmp_path), {5: ring, 9: Mesh(ring.vertices + 50.0, ring.triangles)})
    for label, moved in ((5, 0), (9, 50)):
        levels = read_multires(tmp_path, label)
        assert len(levels) >= 3
        assert_like(levels[0], Mesh(ring.vertices + moved, ring.triangles), 1e-4)
        for coarse, fine in zip(levels[1:], levels):
            assert len(coarse.triangles) < len(fine.triangles) / 2
            assert_like(coarse, levels[0], 0.02)
    small = mesh_of(exposed_faces(np.ones((3, 3, 3), bool), closed=True)[1], Spacing(15, 16, 16))
    write_multires(str(tmp_path / "small"), {1: small})
    (only,) = read_multires(tmp_path / "small", 1)
    assert_like(only, small, 1e-3)


def test_segment_properties_hold_what_every_label_has():
    table = pa.table({"dataset": ["a"] * 3, "label": [1, 2, 3], "volume_nm3": [1.0, 2.0, 3.0], "sphericity": [0.5, np.nan, 0.7]})
    inline = segment_properties([3, 1], table)["inline"]
    assert inline["ids"] == ["3", "1"]
    assert {p["id"]: p["values"] for p in inline["properties"] if p["type"] == "number"} == {
        "volume_nm3": [3.0, 1.0],
        "sphericity": [pytest.approx(0.7), 0.5],
    }
    assert [p["id"] for p in segment_properties([1, 2], table)["inline"]["properties"]] == ["label", "volume_nm3"]
    with pytest.raises(InputError, match="no column 'label'"):
        segment_properties([1], pa.table({"id": [1]}))
