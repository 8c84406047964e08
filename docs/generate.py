"""Writes what the docs print from the code: docs/operators.md and the phantom's pictures. `make docs`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vemray.cli import register_operators
from vemray.geometry import Box
from vemray.ops.describe import markdown
from vemray.phantom import Scene, render, truth_table

HERE = Path(__file__).parent


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


if __name__ == "__main__":
    operators()
    phantom()
    pores()
