"""Writes what the docs print from the code: docs/operators.md and the phantom's picture. `make docs`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vemray.cli import register_operators
from vemray.geometry import Box
from vemray.ops.describe import markdown
from vemray.phantom import Scene, render

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


if __name__ == "__main__":
    operators()
    phantom()
