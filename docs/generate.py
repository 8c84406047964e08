"""Writes what the docs print from the code: docs/operators.md and the phantom's pictures, `make docs`; with --accuracy the table of surface
areas in docs/accuracy.md instead, which takes most of a minute."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from vemray.cli import register_operators
from vemray.geometry import Box, Spacing
from vemray.ops.describe import markdown
from vemray.phantom import Scene, render, truth_table

HERE = Path(__file__).parent
#: of the table of areas: poses of a body, radius in coarsest voxels, voxel sizes ZYX
POSES, RADIUS, SPACINGS = 20, 5, ((1.0, 1.0, 1.0), (4.0, 1.0, 1.0))


def operators() -> None:
    register_operators()
    head = "# Operators\n\nWritten by `make docs` from the registry; `vemray ops NAME` prints the same. Lengths are in nm; every one is exact: *blockwise equals whole*.\n\n"
    (HERE / "operators.md").write_text(head + markdown() + "\n")


def phantom() -> None:
    """A slice of the demo's cell at 16 nm, the same with its truth, and a part of it at 8 nm."""
    from PIL import Image

    def slice_of(voxel: float, half_nm: float, at=(0.0, 0.0)):
        scene = Scene.make("demo", 1, (voxel,) * 3)
        z, y, x = ((n - 1) / 2 for n in scene.shape)
        h = round(half_nm / voxel)
        y0, x0 = round(y + at[0] / voxel) - h, round(x + at[1] / voxel) - h
        box = Box((round(z), y0, x0), (round(z) + 1, y0 + 2 * h, x0 + 2 * h))
        return {k: v[0] for k, v in render(scene, box).items()}

    wide, near = slice_of(16, 3520), slice_of(8, 880, (-1500.0, 1500.0))
    grey = np.repeat(wide["em"][..., None], 3, 2).astype(float)
    for mask, colour in ((wide["nucleus"], (80, 140, 255)), (wide["mitochondria"] > 0, (255, 120, 40))):
        grey[mask] = 0.62 * grey[mask] + 0.38 * np.array(colour)
    zoom = np.repeat(np.kron(near["em"], np.ones((2, 2), np.uint8))[:440, :440, None], 3, 2)
    sheet = np.concatenate([np.repeat(wide["em"][..., None], 3, 2), grey.astype(np.uint8), zoom], axis=1)
    Image.fromarray(sheet).save(HERE / "img" / "phantom.png", optimize=True)


def pores() -> None:
    """A part of the envelope at 16 nm, the same with its truth, and single pores at 8 nm."""
    from PIL import Image

    def twice(grey, by):
        return np.repeat(np.kron(grey, np.ones((by, by), np.uint8))[..., None], 3, 2)

    scene = Scene.make("pores", 1, shape=(9, 220, 220), around="envelope")
    part = {k: v[4] for k, v in render(scene, Box((0, 0, 0), scene.shape)).items()}
    plain, truth = twice(part["em"], 2), twice(part["em"], 2).astype(float)
    for name, colour in (("pores", (255, 60, 60)), ("pockets", (60, 220, 90))):
        mask = np.kron(part[name] > 0, np.ones((2, 2), bool))
        truth[mask] = 0.55 * truth[mask] + 0.45 * np.array(colour)
    fine = Scene.make("pores", 1, (8.0, 8.0, 8.0))
    table = truth_table(fine).to_pandas()
    # pores whose axis lies about in the slice
    chosen = table[(table["class"] == "pore") & (table.normal_z.abs() < 0.25)].iloc[:6]
    tiles = []
    for z, y, x in np.rint(chosen[["centre_z_nm", "centre_y_nm", "centre_x_nm"]].to_numpy() / 8).astype(int):
        tiles.append(twice(render(fine, Box((z, y - 36, x - 36), (z + 1, y + 36, x + 36)))["em"][0], 2))
    near = np.concatenate([np.concatenate(tiles[i : i + 2], axis=1) for i in (0, 2, 4)])
    near = np.pad(near, ((0, 440 - len(near)), (0, 0), (0, 0)), constant_values=255)
    Image.fromarray(np.concatenate([plain, truth.astype(np.uint8), near], axis=1)).save(HERE / "img" / "pores.png", optimize=True)


def areas(body: str, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Relative errors of the area of a body in POSES poses: measured on voxels, and of the mesh. The bodies are those of the tests."""
    sys.path.insert(0, str(HERE.parent))
    from tests.ops.test_surface import drawn, measured, shapes
    from vemray.analysis.mesh import exposed_faces, mesh_of

    rng = np.random.default_rng(1)
    inside, reach, area, *_ = shapes(RADIUS * max(spacing))[body]
    masks = [drawn(inside, reach, spacing, rng) for _ in range(POSES)]
    voxels = np.array([measured(mask, spacing)["surface_area_nm2"] for mask in masks])
    meshes = np.array([mesh_of(exposed_faces(mask, closed=True)[1], Spacing(*spacing)).area_nm2 for mask in masks])
    return voxels / area - 1, meshes / area - 1


def mesh_planes(spacing: tuple[float, float, float]) -> tuple[float, float]:
    """Least and largest relative error of the mesh of a plane over 60 orientations and the axes: its area over that of its projection."""
    from vemray.analysis.mesh import exposed_faces, mesh_of

    r = 10 * max(spacing)
    axes = [np.arange(-1.6 * r, 1.6 * r, s) for s in spacing]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    i = np.arange(60) + 0.5
    z, angle = i / len(i), np.pi * (1 + 5**0.5) * i
    normals = np.concatenate([np.eye(3), np.stack([z, np.sqrt(1 - z * z) * np.sin(angle), np.sqrt(1 - z * z) * np.cos(angle)], 1)])
    out = []
    for normal in normals:
        mesh = mesh_of(exposed_faces(grid @ normal < 0.13)[1], Spacing(*spacing), origin_nm=tuple(a[0] for a in axes))
        corners = mesh.vertices[mesh.triangles]
        corners = corners[np.linalg.norm(corners.mean(axis=1), axis=1) < r]
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        out.append(np.linalg.norm(across, axis=1).sum() / np.abs((across @ normal).sum()) - 1)
    return min(out), max(out)


def mean_and_spread(errors: np.ndarray) -> str:
    return f"{100 * errors.mean():+.1f} ({100 * errors.std():.1f})"


def from_to(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def accuracy() -> None:
    """The table between the two marks of docs/accuracy.md."""
    from vemray.ops.surface import plane_bias

    names = [f"{'isotropic' if len(set(s)) == 1 else '1:1:4'}, {how}" for s in SPACINGS for how in ("voxels", "mesh")]
    rows = [["body", *names], ["---"] * (1 + len(names))]
    for body in ("sphere", "ellipsoid", "torus", "cylinder"):
        rows.append([body, *(mean_and_spread(e) for s in SPACINGS for e in areas(body, s))])
    rows.append(["plane, all orientations", *(from_to(*of(s)) for s in SPACINGS for of in (plane_bias, mesh_planes))])
    between("accuracy.md", "areas", table_of(rows))


def table_of(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def between(page: str, mark: str, text: str) -> None:
    """Put the text between <!-- mark --> and the next <!-- end --> of a page."""
    path = HERE / page
    path.write_text(re.sub(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", lambda m: m[1] + text + "\n" + m[2], path.read_text(), count=1, flags=re.S))


def training() -> None:
    """The tables of docs/training.md."""
    from vemray.training.recipe import TargetSpec, TrainRecipe, TurnedSpec, Volume
    from vemray.training.train import Grey, Settings, Turns

    def rows(prefix: str, fields) -> list[list[str]]:
        shown = lambda v: f"`{v}`" if isinstance(v, str | int | float | bool | tuple | list) else ""  # noqa: E731
        return [[f"`{prefix}{n}`", shown(f.default), (f.description or "").replace("|", "\\|")] for n, f in fields.items() if f.description]

    head = [["key", "default", "what it is"], ["---"] * 3]
    between(
        "training.md", "recipe", table_of([*head, *rows("", TrainRecipe.model_fields), *rows("volumes.", Volume.model_fields), *rows("volumes.turned.", TurnedSpec.model_fields), *rows("target.", TargetSpec.model_fields)])
    )  # fmt: skip
    fields = {name: of.__pydantic_fields__ for name, of in (("", Settings), ("turns.", Turns), ("grey.", Grey))}
    between("training.md", "settings", table_of([*head, *(r for prefix, f in fields.items() for r in rows(prefix, f))]))


if __name__ == "__main__":
    if "--accuracy" in sys.argv:
        accuracy()
    else:
        operators()
        training()
        phantom()
        pores()
