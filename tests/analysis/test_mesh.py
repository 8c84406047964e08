"""Meshes: closed, without seams whatever the blocks, with the area and the volume of known shapes."""

import tracemalloc

import numpy as np
import pytest

from tests.ops.test_surface import drawn, shapes
from vemray.analysis.mesh import BYTES_PER_FACE, Mesh, border_faces, decimate, exposed_faces, mesh_of
from vemray.errors import InputError
from vemray.geometry import Grid, Spacing

SPACINGS = [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0)]


def ordered(faces: np.ndarray) -> np.ndarray:
    return faces[np.lexsort(faces.T[::-1])]


def of_mask(mask: np.ndarray, spacing=(1.0, 1.0, 1.0), closed: bool = True, **how) -> Mesh:
    return mesh_of(exposed_faces(mask, closed=closed)[1], Spacing(*spacing), **how)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", ["sphere", "ellipsoid", "torus", "cylinder"])
def test_area_and_volume_of_known_shapes(shape, spacing):
    """Radius 5 of the coarsest voxel, mean over poses and centres; decimated to a quarter too."""
    pytest.importorskip("fast_simplification")
    rng = np.random.default_rng(7)
    inside, reach, area, allowed, euler = shapes(5 * max(spacing))[shape]
    meshes = [of_mask(mask, spacing) for mask in (drawn(inside, reach, spacing, rng) for _ in range(8))]
    error = np.array([m.area_nm2 / area - 1 for m in meshes])
    assert abs(error.mean()) < allowed and error.std() < 0.01, np.round(error, 4)
    rng = np.random.default_rng(7)
    for m in meshes:
        voxels = np.count_nonzero(drawn(inside, reach, spacing, rng)) * np.prod(spacing)
        assert m.volume_nm3 == pytest.approx(voxels, rel=2e-4)
        assert set(m.edge_counts()) == {2}
        assert len(m.vertices) - len(m.edge_counts()) + len(m.triangles) == 2 * euler
        small = decimate(m, 0.25)
        assert set(small.edge_counts()) == {2} and len(small.triangles) <= 0.26 * len(m.triangles)
        assert small.volume_nm3 == pytest.approx(m.volume_nm3) and small.area_nm2 == pytest.approx(m.area_nm2, rel=0.01)


def test_plain_boxes_are_their_voxels():
    mask = np.ones((2, 3, 4), bool)
    mesh = of_mask(mask, (5.0, 2.0, 1.0), smooth=0, origin_nm=(100.0, 10.0, 1.0))
    assert mesh.volume_nm3 == pytest.approx(24 * 10) and mesh.area_nm2 == pytest.approx(2 * (6 * 4 + 10 * 4 + 10 * 6))
    assert mesh.vertices.min(axis=0) == pytest.approx([97.5, 9, 0.5]) and mesh.vertices.max(axis=0) == pytest.approx([107.5, 15, 4.5])


@pytest.mark.parametrize("spacing", SPACINGS)
def test_planes_have_their_area_in_every_direction(spacing):
    """Where counts of voxel pairs are off by -7 to +2 % (isotropic) and -20 to +10 % (1:1:4)."""
    r = 10 * max(spacing)
    axes = [np.arange(-1.6 * r, 1.6 * r, s) for s in spacing]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    for normal in [*np.eye(3), *np.random.default_rng(0).normal(size=(5, 3)), (1, 1, 1), (1, 0.3, 0.1)]:
        mesh = of_mask(grid @ (normal / np.linalg.norm(normal)) < 0.13, spacing, closed=False, origin_nm=tuple(a[0] for a in axes))
        corners = mesh.vertices[mesh.triangles]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
        disc = area[np.linalg.norm(corners.mean(axis=1), axis=1) < r].sum()
        assert disc == pytest.approx(np.pi * r * r, rel=0.035), normal


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("smooth", [0, 1.75])
def test_any_mask_gives_a_closed_mesh(share, smooth):
    """Noise has every way in which voxels can touch: over edges, corners, and tunnels one voxel thin."""
    mask = np.random.default_rng(3).random((13, 14, 15)) < share
    mesh = of_mask(mask, (4.0, 1.0, 1.0), smooth=smooth)
    assert set(mesh.edge_counts()) == {2}
    ends = mesh.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    assert len(np.unique(ends, axis=0)) == len(ends), "each edge is used once in each direction"
    assert mesh.volume_nm3 == pytest.approx(4 * mask.sum(), rel=1e-9 if smooth == 0 else 0.01)


def test_voxels_that_touch_over_an_edge_stay_apart():
    mask = np.zeros((3, 4, 4), bool)
    mask[1, 1, 1] = mask[1, 2, 2] = True
    mesh = of_mask(mask)
    assert len(mesh.vertices) == 16 and mesh.volume_nm3 == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_one_voxel_and_threads_survive(spacing):
    for shape in ((1, 1, 1), (1, 1, 30), (2, 2, 30), (1, 20, 20), (2, 20, 20)):
        mesh = of_mask(np.ones(shape, bool), spacing)
        assert mesh.volume_nm3 == pytest.approx(np.prod(shape) * np.prod(spacing), rel=0.01), shape
        assert np.isfinite(mesh.vertices).all()


def test_the_mesh_does_not_depend_on_blocks_or_order():
    rng = np.random.default_rng(5)
    labels = np.kron(rng.integers(0, 3, (4, 4, 4)), np.ones((5, 6, 7), np.int64)).astype(np.uint64)
    whole = exposed_faces(labels)
    grid = Grid(labels.shape, (7, 9, 11))
    parts: dict[int, list] = {1: [], 2: []}
    for i in rng.permutation(len(grid)):
        box = grid.write_box(int(i))
        read = box.grow((1, 1, 1)).clip(labels.shape)
        for label, f in exposed_faces(labels[read.slices], read.start).items():
            own = ((f[:, :3] >= box.start) & (f[:, :3] < box.stop)).all(axis=1)
            parts[label].append(f[own])
    for label, faces in whole.items():
        blocks = np.concatenate(parts[label])
        assert np.array_equal(ordered(blocks), ordered(faces))
        a, b = (mesh_of(f, Spacing(4, 1, 1)) for f in (faces, blocks))
        assert np.array_equal(a.vertices, b.vertices) and np.array_equal(a.triangles, b.triangles)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_border_is_closed_from_the_faces_alone(share):
    for seed in range(4):
        mask = np.random.default_rng(seed).random((6, 7, 8)) < share
        mask = mask.repeat(2, axis=seed % 3)
        faces = exposed_faces(mask)[1]
        closed = np.concatenate([faces, border_faces(faces, mask.shape)])
        assert np.array_equal(ordered(closed), ordered(exposed_faces(mask, closed=True)[1]))


def test_prisms_through_the_volume_are_closed():
    mask = np.zeros((9, 10, 11), bool)
    mask[:, 2:5, 3:9] = True
    for _ in range(3):
        faces = exposed_faces(mask)[1]
        both = np.concatenate([faces, border_faces(faces, mask.shape)])
        assert np.array_equal(ordered(both), ordered(exposed_faces(mask, closed=True)[1]))
        mask = np.moveaxis(mask, 0, 1).copy()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_an_open_mesh_ends_in_the_border(spacing):
    """An eighth of a ball, cut by three borders, has an eighth of its area, no volume, and its rim in the borders' planes."""
    r = 12 * max(spacing)
    z, y, x = ((np.arange(int(r / s) + 3) + 0.5) * s for s in spacing)
    eighth = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < r * r
    mesh = of_mask(eighth, spacing, closed=False)
    assert not mesh.closed and np.isnan(mesh.volume_nm3)
    assert set(mesh.edge_counts()) == {1, 2}
    assert mesh.vertices.min(axis=0) == pytest.approx(-np.array(spacing) / 2)
    assert mesh.area_nm2 == pytest.approx(np.pi * r * r / 2, rel=0.02)


def test_nothing_gives_an_empty_mesh():
    mesh = mesh_of(np.empty((0, 4), np.int32), Spacing(1, 1, 1))
    assert mesh.area_nm2 == 0 and mesh.volume_nm3 == 0 and len(mesh.triangles) == 0
    assert exposed_faces(np.zeros((3, 3, 3), np.uint64)) == {}


def test_memory_is_what_is_declared():
    z, y, x = np.mgrid[:80, :80, :80]
    faces = exposed_faces((z - 40) ** 2 + (y - 40) ** 2 + (x - 40) ** 2 < 38**2)[1]
    mesh_of(faces[:600], Spacing(1, 1, 1))  # compiled
    tracemalloc.start()
    mesh_of(faces, Spacing(1, 1, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= BYTES_PER_FACE * len(faces)


def test_labels_beyond_63_bits():
    labels = np.zeros((3, 3, 3), np.uint64)
    labels[1, 1, 1] = 2**63 + 5
    assert list(exposed_faces(labels)) == [2**63 + 5]


def test_a_share_out_of_range_is_refused():
    with pytest.raises(InputError, match="share of triangles"):
        decimate(of_mask(np.ones((3, 3, 3), bool)), 1.5)
