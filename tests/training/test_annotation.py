"""Points, strokes and painted planes become sparse labels on the grid of any level, and a recipe classifies by them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

import vemray
from tests.ops.test_forest import points, textures
from vemray import cli
from vemray.errors import InputError
from vemray.geometry import Box, Spacing
from vemray.plan import Options
from vemray.store import volume
from vemray.training.annotation import annotate


@pytest.fixture
def em(tmp_path):
    """Noise, anisotropic, with a pyramid."""
    grey = np.random.default_rng(0).integers(0, 255, (20, 70, 66)).astype(np.uint8)
    v = volume.create(str(tmp_path / "em.zarr"), grey.shape, "uint8", Spacing(16, 8, 8), shard=(64,) * 3, chunk=(16,) * 3, origin_nm=(100, 0, 0))
    for y, x in np.ndindex(2, 2):
        box = Box((0, 64 * y, 64 * x), (20, min(70, 64 * y + 64), min(66, 64 * x + 64)))
        v.write(box, grey[box.slices])
    return tmp_path / "em.zarr"


def csv_of(tmp_path, text: str) -> str:
    (tmp_path / "points.csv").write_text(text)
    return str(tmp_path / "points.csv")


def labels(v) -> dict[tuple, int]:
    a = v.read(v.box)
    return {tuple(int(i) for i in at): int(a[tuple(at)]) for at in np.argwhere(a)}


@pytest.mark.parametrize("level", [0, 1])
def test_points_in_nm_and_in_voxels(tmp_path, em, level):
    like = volume.open(str(em), level)
    at = [(3, 20, 5), (9, 31, 32), (0, 0, 0)]
    nm = np.array(at) * like.spacing.zyx + like.origin_nm + [3, -2, 1]  # off the voxels' centres
    text = "z_nm,y_nm,x_nm,class\n" + "".join(f"{z},{y},{x},{c}\n" for (z, y, x), c in zip(nm, (1, 2, 2)))
    a = annotate(csv_of(tmp_path, text), str(tmp_path / "a.zarr"), like)
    assert (a.shape, a.spacing, a.origin_nm, a.dtype, a.kind, a.levels) == (like.shape, like.spacing, like.origin_nm, "uint8", "labels", 1)
    assert labels(a) == dict(zip(at, (1, 2, 2)))
    text = "class,x,y,z\n" + "".join(f"{c},{x},{y},{z}\n" for (z, y, x), c in zip(at, ("resin", "cell", "2")))
    b = annotate(csv_of(tmp_path, text), str(tmp_path / "b.zarr"), like, ["resin", "cell", "other"])
    assert labels(b) == labels(a)
    assert b.attributes["annotations"]["voxels"] == {"resin": 1, "cell": 2, "other": 0} and b.attributes["annotations"]["level"] == level


def test_balls_and_strokes(tmp_path, em):
    like = volume.open(str(em))
    text = "z,y,x,class,radius_nm,stroke\n10,30,62,1,25,\n2,5,5,2,,s\n2,5,45,2,,s\n6,25,45,2,,s\n15,60,10,3,10,t\n0,0,0,1,20,\n"
    got = annotate(csv_of(tmp_path, text), str(tmp_path / "a.zarr"), like)
    a = got.read(got.box)
    z, y, x = np.ogrid[:20, :70, :66]
    for cz, cy, cx, r in ((10, 30, 62, 25), (0, 0, 0, 20)):  # one across the border of two shards, one cut by the volume's corner
        ball = (16 * (z - cz)) ** 2 + (8 * (y - cy)) ** 2 + (8 * (x - cx)) ** 2 <= r**2
        assert (a[ball] == 1).all()
        a[ball] = 0
    assert (a[2, 5, 5:46] == 2).all() and a[6, 25, 45] == 2
    stroke = np.argwhere(a == 2)
    assert (np.abs(np.diff(stroke[stroke[:, 2] == 45], axis=0)).max(1) == 1).all(), "no gap along the slanting part"
    assert np.count_nonzero(a == 1) == 0 and np.count_nonzero(a == 3) == 5


def test_painted_planes(tmp_path, em):
    like = volume.open(str(em))
    folder = tmp_path / "planes"
    folder.mkdir()
    painted = np.zeros((70, 66), np.uint8)
    painted[60:68, 62:66], painted[:3, :4] = 1, 2
    tifffile.imwrite(folder / "plane_0003.tif", painted)
    Image.fromarray(painted[::-1].copy()).save(folder / "z19.png")
    a = annotate(str(folder), str(tmp_path / "a.zarr"), like)
    got = a.read(a.box)
    assert np.array_equal(got[3], painted) and np.array_equal(got[19], painted[::-1]) and np.count_nonzero(got) == 2 * np.count_nonzero(painted)
    assert a.attributes["annotations"]["voxels"] == {"1": 64, "2": 24}
    with pytest.raises(InputError, match="plane 3 .* is 70 x 66, those of .*1 are 35 x 33 .*paint on that level"):
        annotate(str(folder), str(tmp_path / "b.zarr"), volume.open(str(em), 1))
    with pytest.raises(InputError, match="holds the value 2, but there are 1 classes"):
        annotate(str(folder), str(tmp_path / "b.zarr"), like, ["resin"])
    tifffile.imwrite(folder / "plane_0020.tif", painted)
    with pytest.raises(InputError, match="plane 20 .* beyond .* 0 to 19"):
        annotate(str(folder), str(tmp_path / "b.zarr"), like)
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize(
    "text,says",
    [
        ("z,y,x\n1,2,3\n", "first line must name the columns .* it says: z, y, x"),
        ("z,y,x,class,radius\n1,2,3,1,4\n", "no column 'radius'. Did you mean 'radius_nm'"),
        ("z,y,x,class\n1,2,3,1\n1,two,3,1\n", "line 3: y must be a number, got 'two'"),
        ("z,y,x,class\n1,2,3,cel\n", "line 2: class must be one of resin, cell, or 1 to 2; it is 'cel'. Did you mean 'cell'"),
        ("z,y,x,class\n1,2,3,0\n", "it is '0'"),
        ("z,y,x,class\n1,2,70,1\n", r"line 2: the point lies outside .*, at voxel \(1, 2, 70\)"),
        ("z,y,x,class,radius_nm\n1,2,3,1,-4\n", "cannot be negative"),
        ("z,y,x,class,radius_nm\n1,2,3,1,30\n1,30,30,1,\n1,2,5,2,\n", r"lines 2 and 4 give the voxel \(1, 2, 5\) \(z, y, x\) to two classes"),
        ("z,y,x,class,stroke\n1,2,3,1,a\n1,2,5,2,a\n", "line 3: the stroke 'a' changes its class"),
        ("z,y,x,class\n", "has no points"),
    ],
)
def test_points_that_cannot_be_used(tmp_path, em, text, says):
    with pytest.raises(InputError, match=says):
        annotate(csv_of(tmp_path, text), str(tmp_path / "a.zarr"), volume.open(str(em)), ["resin", "cell"])
    assert not (tmp_path / "a.zarr").exists()


def test_from_a_csv_to_a_classified_volume(tmp_path, monkeypatch, capsys):
    """The command line, then a recipe that classifies a coarser level and brings the result back to the full one, in blocks."""
    image, region = textures(64)
    v = volume.create(str(tmp_path / "em.zarr"), image.shape, "uint8", Spacing(8, 8, 8), shard=(32,) * 3, chunk=(16,) * 3)
    for z, y, x in np.ndindex(2, 2, 2):
        box = Box((32 * z, 32 * y, 32 * x), (32 * z + 32, 32 * y + 32, 32 * x + 32))
        v.write(box, image[box.slices])
    coarse = region[::2, ::2, ::2]
    at = np.argwhere(points(coarse, 60))
    rows = "".join(f"{z},{y},{x},{'grainy' if coarse[z, y, x] else 'fine'}\n" for z, y, x in at)

    def vemray_(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vemray", *map(str, args)])
        with pytest.raises(SystemExit) as e:
            cli.main()
        return (e.value.code or 0, *capsys.readouterr())

    source = csv_of(tmp_path, "z,y,x,class\n" + rows)
    like = ("--like", tmp_path / "em.zarr", "--level", 1)
    code, said, err = vemray_("annotate", source, tmp_path / "a.zarr", *like, "--classes", "fine,grainy")
    assert code == 0 and said.endswith("annotated: 30 fine, 30 grainy\n"), err
    code, _, err = vemray_("annotate", source, tmp_path / "a.zarr", *like, "--classes", "fine,grainy")
    assert code == 2 and "exists already" in err and err.count("\n") == 1
    assert vemray_("annotate", source, tmp_path / "a.zarr", *like, "--classes", "fine,grainy", "--overwrite")[0] == 0
    code, _, err = vemray_("annotate", source, tmp_path / "b.zarr", *like)
    assert code == 2 and "a name that --classes gives" in err

    recipe = {
        "vemray": 1, "name": "textures",
        "inputs": {"em": {"kind": "image"}, "half": {"of": "em", "level": 1}, "painted": {"kind": "labels"}},
        "steps": {
            "texture": {
                "op": "pixel_classifier", "image": "half", "annotations": "painted", "classes": ["fine", "grainy"], "sigmas_nm": [16, 32],
                "wanted": ["grainy"],
            },
            "whole": {"op": "upsample", "image": "texture.grainy", "like": "em"},
            "region": {"op": "threshold", "image": "whole", "value": 0.5},
        },
        "outputs": ["texture", "region"],
    }  # fmt: skip
    sources = {"em": str(tmp_path / "em.zarr"), "painted": str(tmp_path / "a.zarr")}
    got = []
    for n in (16, 64):
        options = Options((n,) * 3, (16,) * 3)
        r = vemray.run(recipe, sources, str(tmp_path / f"out{n}"), runner="serial", options=options, listeners=(lambda e: None,), report=False)
        got.append([r.volumes[k].read(r.volumes[k].box) for k in ("texture.grainy", "region")])
    for a, b in zip(*got):
        assert np.array_equal(a, b)
    assert got[0][1].shape == region.shape and (got[0][1] == region).mean() > 0.9
