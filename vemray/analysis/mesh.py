"""Triangle meshes of labelled objects, from the exposed faces of their voxels.

    faces -> weld -> smooth -> decimate

Faces (m, 4) int32: (z, y, x, d), global voxel coordinates of the voxel inside and d = 2 * axis + (1 on its upper side). Corners of voxels
are integers that mean the same in every block, so a mesh has no seams whatever the blocks were, and it is the same in any order of faces.

The mesh is closed and every edge joins two triangles: voxels of one object that touch only over an edge or a corner are kept apart (the
inside is 6-connected). Where the object meets the volume's border the mesh is open, unless the border was closed.

Smoothing is diffusion along the edges in nm, low-pass of third order (what diffusion takes away is smoothed and given back, twice), no vertex
farther than half the coarsest voxel from its corner; then each closed sheet is moved along its normals until it encloses what its voxels do.
Of the same kind as Taubin 1995 (SIGGRAPH 351) and Gibson 1998 (MICCAI 888, constrained elastic surface nets)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vemray.analysis import mesh_kernels as kernels
from vemray.errors import InputError, MissingExtra
from vemray.geometry import Int3, Spacing

#: standard deviation of the smoothing in units of the coarsest voxel, and how often it is applied to what is left
SMOOTH, PASSES = 1.75, 3
#: longest explicit step of diffusion that is stable with the 6 edges that a vertex can have; and steps of many stages that the diffusion is cut
#: into, so that what oscillates from stage to stage is damped
_STABLE, _STEPS = 1 / 6, 4
#: bytes that a mesh takes while it is made, for each face
BYTES_PER_FACE = 400
#: a sheet may lose or win this share of its volume by smoothing alone: beyond, it is smoothed less
_LOSS = 0.3


@dataclass
class Mesh:
    """`vertices` float64 (n, 3) in nm, ZYX; `triangles` int32 (t, 3), anticlockwise seen from outside in a right-handed XYZ frame."""

    vertices: np.ndarray
    triangles: np.ndarray
    closed: bool = True

    @property
    def area_nm2(self) -> float:
        return float(self._integrals()[0])

    @property
    def volume_nm3(self) -> float:
        """Enclosed volume by the divergence theorem; NaN of an open mesh."""
        return float(self._integrals()[1]) if self.closed else float("nan")

    def _integrals(self) -> tuple[float, float]:
        area, volume = _integrals(self.vertices, self.triangles, np.zeros(len(self.vertices), np.int32), 1)
        return area[0], volume[0]

    def edge_counts(self) -> np.ndarray:
        """Number of triangles at each edge: all 2 in a closed mesh."""
        t = self.triangles.astype(np.int64)
        ends = np.concatenate([t[:, [0, 1]], t[:, [1, 2]], t[:, [2, 0]]])
        ends.sort(axis=1)
        return np.unique(ends[:, 0] * (len(self.vertices) + 1) + ends[:, 1], return_counts=True)[1]


def exposed_faces(labels: np.ndarray, start: Int3 = (0, 0, 0), closed: bool = False) -> dict[int, np.ndarray]:
    """label -> faces (m, 4) of a whole array whose first voxel is `start`. `closed`: also where objects meet the array's border."""
    labels = np.ascontiguousarray(labels.view(np.uint8) if labels.dtype == bool else labels)
    n = kernels.faces_of(labels, closed, np.empty(0, labels.dtype), np.empty((0, 4), np.int32))
    label, face = np.empty(n, labels.dtype), np.empty((n, 4), np.int32)
    kernels.faces_of(labels, closed, label, face)
    face[:, :3] += np.array(start, np.int32)
    order = np.argsort(label, kind="stable")
    label, face = label[order], face[order]
    at = np.flatnonzero(np.concatenate([[True], label[1:] != label[:-1]])) if n else np.empty(0, np.int64)
    return {int(label[a]): face[a:b] for a, b in zip(at, [*at[1:], n])}


def border_faces(faces: np.ndarray, shape: Int3) -> np.ndarray:
    """Faces on the volume's border that close one object's faces. What of the border is inside follows from the faces alone: the first face
    met along a line from the border says whether the line began inside; lines without faces are like their neighbours."""
    out = []
    for axis in range(3):
        b, c = (a for a in range(3) if a != axis)
        across = faces[faces[:, 3] >> 1 == axis]
        for up in (0, 1):
            level = shape[axis] - 1 if up else 0
            plane = faces[faces[:, axis] == level]
            if not len(plane) and not len(across):
                continue
            state, known = np.zeros((shape[b], shape[c]), bool), np.zeros((shape[b], shape[c]), bool)
            plane_of = across[:, axis] + (across[:, 3] & 1)
            nearest = across[np.argsort(plane_of if up else -plane_of, kind="stable")]  # the nearest is written last
            state[nearest[:, b], nearest[:, c]] = (nearest[:, 3] & 1) != up
            known[nearest[:, b], nearest[:, c]] = True
            steps = []
            for a in (b, c):
                step = np.zeros(state.shape, bool)
                side = plane[plane[:, 3] >> 1 == a]
                at = side[:, [b, c]].copy()
                at[:, 0 if a == b else 1] -= 1 - (side[:, 3] & 1)
                step[at[:, 0], at[:, 1]] = True
                steps.append(step)
            if not known.any():  # a prism through the whole volume: its sides say where it is
                side = plane[0]
                state[side[b], side[c]] = known[side[b], side[c]] = True
            kernels.spread_plane(state, known, *steps)
            inside = np.argwhere(state)
            face = np.empty((len(inside), 4), np.int32)
            face[:, b], face[:, c], face[:, axis], face[:, 3] = inside[:, 0], inside[:, 1], level, 2 * axis + up
            out.append(face)
    return np.concatenate(out) if out else np.empty((0, 4), np.int32)


@dataclass
class _Welded:
    """`corner` int64 (n, 3): voxel corners; `quads` int32 (m, 4); `edges` int32 (e, 2) with their `axis`; `held` bool (n, 3): coordinates in the
    plane of the border; `seams` (e, 2): the face-edges (4 * face + number) that each edge joins, -1 for none."""

    corner: np.ndarray
    quads: np.ndarray
    edges: np.ndarray
    axis: np.ndarray
    held: np.ndarray
    closed: bool
    seams: np.ndarray


def _weld(faces: np.ndarray) -> _Welded:
    faces = np.asarray(faces, np.int32)
    low = faces[:, :3].min(axis=0).astype(np.int64)
    dims = faces[:, :3].max(axis=0) - low + 2
    if np.prod(dims.astype(float)) > 2.0**58:
        raise InputError(f"an object of {' x '.join(map(str, dims - 1))} voxels is too large for one mesh. Make it from a coarser level.")
    at = np.ravel_multi_index(tuple((faces[:, :3] - low).T), dims) * 6 + faces[:, 3]
    if (at[1:] < at[:-1]).any():  # blocks come in any order, the mesh is the same
        faces = faces[np.argsort(at, kind="stable")]
    del at
    corner, key = np.empty((len(faces), 4), np.int64), np.empty((len(faces), 4), np.int64)
    kernels.corners_and_edges(faces, low, dims, corner, key)
    corner, key = corner.reshape(-1), key.reshape(-1)
    order = np.argsort(key, kind="stable").astype(np.int32)
    parent, seams = np.arange(len(key), dtype=np.int32), np.empty((len(key), 2), np.int32)
    seams = seams[: kernels.sew(key, order, corner, parent, seams)].copy()
    vertex, first = np.empty(len(key), np.int32), np.empty(len(key), np.int32)
    n = kernels.number(parent, vertex, first)
    where = np.stack(np.unravel_index(corner[first[:n]], dims), axis=1) + low
    s = seams[:, 0]
    edges = np.stack([vertex[s], vertex[(s >> 2 << 2) | ((s + 1) & 3)]], axis=1)
    axis = ((key[s] >> 2) % 3).astype(np.int8)
    held, open_ = np.zeros((n, 3), bool), seams[:, 1] < 0
    if open_.any():
        normal = 3 - axis[open_] - (faces[s[open_] >> 2, 3] >> 1)  # the border's
        for end in (0, 1):
            held[edges[open_, end], normal] = True
    return _Welded(where, vertex.reshape(-1, 4), edges, axis, held, not open_.any(), seams)


def mesh_of(faces: np.ndarray, spacing: Spacing, origin_nm=(0.0, 0.0, 0.0), smooth: float = SMOOTH) -> Mesh:
    """The mesh of one object's faces. `origin_nm`: where the centre of voxel (0, 0, 0) lies. `smooth`: standard deviation of the smoothing in
    units of the coarsest voxel, 0 for none. Takes BYTES_PER_FACE for each face."""
    if not len(faces):
        return Mesh(np.empty((0, 3)), np.empty((0, 3), np.int32))
    size = np.array(spacing.zyx)
    welded = _weld(faces)
    place = welded.corner * size
    v = _smoothed(place, welded, size, smooth) if smooth > 0 else place
    triangles = _triangulated(v, welded.quads)
    if smooth > 0:
        v = _volumes_kept(v, place, triangles, welded, size)
    code = np.sort(welded.edges.min(axis=1) * np.int64(len(v)) + welded.edges.max(axis=1))
    if (code[1:] == code[:-1]).any():
        v, triangles = _two_at_each_edge(v, triangles)
    return Mesh(v + (np.array(origin_nm) - size / 2), triangles, welded.closed)


def _smoothed(place: np.ndarray, welded: _Welded, size: np.ndarray, smooth: float) -> np.ndarray:
    finest, reach = size.min(), size.max()
    weight = (finest / size) ** 2
    time = (smooth * reach / finest) ** 2 / 2 / _STEPS  # a Gaussian of variance s^2 is the time s^2 / 2
    stages = int(np.ceil((np.sqrt(1 + 8 * time / _STABLE) - 1) / 2))
    v, before, change = np.zeros_like(place), np.empty_like(place), np.empty_like(place)
    for _ in range(PASSES):
        left = place - v
        for _ in range(_STEPS):
            kernels.diffuse(left, welded.edges, weight, welded.axis, time, stages, welded.held, before, change)
        v += left
    np.clip(v, place - reach / 2, place + reach / 2, out=v)
    return np.where(welded.held, place, v)


def _triangulated(v: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Each quad cut along its shorter diagonal."""
    p = v[quads]
    one, other = ((p[:, 0] - p[:, 2]) ** 2).sum(axis=1), ((p[:, 1] - p[:, 3]) ** 2).sum(axis=1)
    turned = np.where((other < one * (1 - 1e-9))[:, None], np.roll(quads, -1, axis=1), quads)
    return turned[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)


def _sheets(welded: _Welded) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of connected sheets, the sheet of each vertex, and whether each sheet is closed."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(welded.corner)
    graph = coo_matrix((np.ones(len(welded.edges), bool), (welded.edges[:, 0], welded.edges[:, 1])), shape=(n, n))
    count, sheet = connected_components(graph, directed=False)
    closed = np.ones(count, bool)
    closed[sheet[welded.edges[welded.seams[:, 1] < 0, 0]]] = False
    return count, sheet.astype(np.int32), closed


def _integrals(v: np.ndarray, triangles: np.ndarray, sheet: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    area, volume, centre = np.zeros(count), np.zeros(count), np.zeros((count, 3))
    if len(v):
        members = np.bincount(sheet, minlength=count)
        for d in range(3):
            centre[:, d] = np.bincount(sheet, v[:, d], minlength=count) / np.maximum(members, 1)
        kernels.integrals(v, triangles, sheet, centre, area, volume)
    return area, volume


def _volumes_kept(v: np.ndarray, place: np.ndarray, triangles: np.ndarray, welded: _Welded, size: np.ndarray) -> np.ndarray:
    """Every closed sheet encloses again what its voxels do. A sheet that smoothing would nearly make vanish is smoothed less."""
    count, sheet, closed = _sheets(welded)
    wanted = _integrals(place, triangles, sheet, count)[1]
    share = np.ones(count)
    mixed = v
    for _ in range(4):
        _, volume = _integrals(mixed, triangles, sheet, count)
        lost = closed & (np.abs(volume - wanted) > _LOSS * np.abs(wanted))
        if not lost.any():
            break
        share[lost] /= 2
        mixed = place + share[sheet][:, None] * (v - place)
    v = mixed.copy()
    for _ in range(15):
        area, volume = _integrals(v, triangles, sheet, count)
        by = np.where(closed, (wanted - volume) / np.maximum(area, 1e-300), 0.0)
        if (np.abs(wanted - volume)[closed] <= 1e-6 * np.abs(wanted)[closed]).all():
            break
        normal = np.zeros_like(v)
        kernels.add_normals(v, triangles, normal)
        length = np.linalg.norm(normal, axis=1)
        v += normal * (np.clip(by, -size.min() / 4, size.min() / 4)[sheet] / np.maximum(length, 1e-300))[:, None]
    return v


def _two_at_each_edge(v: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a surface meets itself in an edge (a tunnel one voxel thin, a decimation that pinched it), each two triangles that go on in each
    other get a vertex of their own in the edge's middle, so that every edge joins two."""
    ends = triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64)
    code = ends.min(axis=1) * len(v) + ends.max(axis=1)
    found, counts = np.unique(code, return_counts=True)
    crowded = found[counts > 2]
    if not len(crowded):
        return v, triangles
    uses: dict[tuple[int, int], list[int]] = {}
    for h in np.flatnonzero(np.isin(code, crowded)):
        uses.setdefault((int(ends[h, 0]), int(ends[h, 1])), []).append(int(h) // 3)
    middles: list[np.ndarray] = []
    pieces: dict[int, list[tuple[int, int, int]]] = {}
    for (a, b), one in uses.items():
        for t, u in zip(one, uses.get((b, a), [])) if a < b else ():
            m = len(v) + len(middles)
            middles.append((v[a] + v[b]) / 2)
            for face in (t, u):
                parts = pieces.setdefault(face, [tuple(int(i) for i in triangles[face])])
                at = next(i for i, p in enumerate(parts) if a in p and b in p)
                old = parts.pop(at)
                parts += [tuple(m if i == b else i for i in old), tuple(m if i == a else i for i in old)]
    keep = np.ones(len(triangles), bool)
    keep[list(pieces)] = False
    new = np.array([p for face in sorted(pieces) for p in pieces[face]], np.int32)
    return np.concatenate([v, middles]), np.concatenate([triangles[keep], new])


def _without_folds(triangles: np.ndarray) -> np.ndarray:
    """Without pairs of triangles on the same three vertices that face each other: collapses leave them, they enclose nothing."""
    _, which, counts = np.unique(np.sort(triangles, axis=1), axis=0, return_inverse=True, return_counts=True)
    return triangles[counts[which] != 2]


def decimate(mesh: Mesh, keep: float) -> Mesh:
    """The mesh with about `keep` (0..1) of its triangles, by quadric error (Garland and Heckbert 1997), scaled back to the volume
    that it enclosed; a closed mesh stays closed, with two triangles at every edge (else it comes back as it was)."""
    if not 0 < keep <= 1:
        raise InputError(f"keep={keep:g}: give the share of triangles that stays, above 0 and at most 1.")
    if keep == 1 or len(mesh.triangles) * keep < 16:
        return mesh
    try:
        from fast_simplification import simplify
    except ImportError:
        raise MissingExtra("fast-simplification", "pictures", "decimating a mesh") from None
    centre = mesh.vertices.mean(axis=0)
    v, t = np.ascontiguousarray(mesh.vertices - centre), np.ascontiguousarray(mesh.triangles)
    reduced = simplify(v, t, target_reduction=1 - keep)
    v, t = _two_at_each_edge(np.asarray(reduced[0], np.float64), _without_folds(np.asarray(reduced[1], np.int32)))
    out = Mesh(v, t, mesh.closed)
    if mesh.closed and (out.edge_counts() != 2).any():
        return mesh
    if mesh.closed and out.volume_nm3 * mesh.volume_nm3 > 0:
        out.vertices *= (mesh.volume_nm3 / out.volume_nm3) ** (1 / 3)
    out.vertices += centre
    return out
