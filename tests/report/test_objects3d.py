"""Pictures and meshes of a finished run, as the commands make them."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from tests.report import scene
from vemray import cli
from vemray.analysis.mesh import BYTES_PER_FACE
from vemray.errors import InputError
from vemray.report import objects3d
from vemray.report.objects3d import meshes_of, picture
from vemray.run.results import Results

for package in ("pyvista", "fast_simplification", "DracoPy"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("run") / "out")
    scene.results(folder, evaluation=False)
    return Results(folder)


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["vemray", *map(str, args)])
        with pytest.raises(SystemExit) as e:
            cli.main()
        return (e.value.code or 0, *capsys.readouterr())

    return run


def test_meshes_agree_with_the_table(results):
    meshes, at = meshes_of(results.volumes["mitochondria"])
    table = results.tables["mitochondria_table"].set_index("label")
    assert at.level == 0 and sorted(meshes) == sorted(table.index)
    for label, mesh in meshes.items():
        assert mesh.volume_nm3 == pytest.approx(table.volume_nm3[label], rel=1e-5)
        centre = mesh.vertices.mean(axis=0)
        assert centre == pytest.approx(table.loc[label, [f"centroid_{a}_nm" for a in "zyx"]].to_numpy(float), abs=25)


def test_the_level_follows_from_what_fits(results, monkeypatch):
    volume = results.volumes["cell"]
    fine, first = meshes_of(volume)
    coarse, second = meshes_of(volume, voxels=int(np.prod(volume.shape)) - 1)
    assert (first.level, second.level) == (0, 1) and coarse[1].volume_nm3 == pytest.approx(fine[1].volume_nm3, rel=0.1)
    assert np.abs(coarse[1].vertices.mean(axis=0) - fine[1].vertices.mean(axis=0)).max() < 20, "the levels lie in the same frame"
    with pytest.raises(InputError, match="million voxels"):
        meshes_of(volume, voxels=10)
    with pytest.raises(InputError, match="levels 0 to"):
        meshes_of(volume, level=9)
    faces = sum(len(m.vertices) for m in fine.values())
    monkeypatch.setattr(objects3d, "BYTES", faces * BYTES_PER_FACE // 2)
    assert meshes_of(volume)[1].level == 1
    with pytest.raises(InputError, match="exposed voxel faces at level 0: its mesh would need"):
        meshes_of(volume, level=0)


def test_the_picture_command(call, results, tmp_path):
    out = tmp_path / "figure.png"
    code, said, err = call(
        "picture", results.url, "--show", "cell:0.15", "--show", "nucleus", "--show", "mitochondria", "--colour",
        "mitochondria_table.surface_to_volume_per_nm", "--clip", "z=0.5", "--size", "500,400", "--title", "A cell", "--out", out,
    )  # fmt: skip
    assert code == 0 and said.strip() == str(out), err
    assert "nucleus: 1 objects" in err and "16 x 8 x 8 nm" in err
    picture = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert picture.shape[1] > 550 and (np.ptp(picture, axis=2) > 60).sum() > 5000


def test_points_take_the_colour_of_their_table(results):
    both = [picture(results, ["nucleus:0.3"], c, ["mitochondria_table:100"], size=(300, 240))[0] for c in ("mitochondria_table.volume_nm3", None)]
    wide, narrow = (Image.open(io.BytesIO(b)).size[0] for b in both)
    assert wide > narrow, "a colour bar"


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "nothing to show"),
        (("--show", "nuclues"), "no label or mask volume 'nuclues'. Did you mean 'nucleus'?"),
        (("--show", "cell:3"), "--show cell:3: give NAME or NAME:NUMBER"),
        (("--show", "cell", "--clip", "x"), "--clip x: give an axis"),
        (("--show", "cell", "--clip", "x=7"), "--clip x=7: give an axis"),
        (("--show", "cell", "--view", "obliqe"), "Did you mean 'oblique'?"),
        (("--show", "cell", "--colour", "mitochondria_table.volume_nm3"), "Show it: --show mitochondria"),
        (("--show", "cell", "--colour", "cell_table.volume_nm"), "Did you mean 'volume_nm3'?"),
        (("--show", "cell", "--colour", "cel_table.volume_nm3"), "Did you mean 'cell_table'?"),
        (("--show", "cell", "--size", "9"), "--size 9: give two numbers"),
        (("--points", "composition"), "no column 'centroid_z_nm'"),
        (("--show", "cell", "--clip", "z=99999nm"), "nothing to draw"),
    ],
)
def test_mistakes_of_the_picture_command_are_one_line(call, results, tmp_path, arguments, said):
    code, out, err = call("picture", results.url, *arguments, "--out", tmp_path / "p.png")
    lines = [line for line in err.splitlines() if line]
    assert code == 2 and len(lines) == 1 and said in lines[0], err
    assert not (tmp_path / "p.png").exists()


@pytest.mark.parametrize("form, files", [("ply", ["3.ply"]), ("stl", ["3.stl"]), ("neuroglancer", ["3", "3.index", "info", "segment_properties"])])
def test_the_mesh_command(call, results, tmp_path, form, files):
    code, said, err = call(
        "mesh", results.url, "mitochondria", "--format", form, "--labels", 3, "--table", "mitochondria_table", "--out", tmp_path / "m"
    )
    assert code == 0 and "1 meshes" in said, err
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == files
    if form == "neuroglancer":
        inline = json.loads((tmp_path / "m" / "segment_properties" / "info").read_text())["inline"]
        volume = next(p for p in inline["properties"] if p["id"] == "volume_nm3")
        assert volume["values"] == [pytest.approx(results.tables["mitochondria_table"].set_index("label").volume_nm3[3], rel=1e-6)]


def test_mistakes_of_the_mesh_command(call, results, tmp_path):
    for arguments, said in (
        (("--labels", "a"), "whole numbers"), (("--labels", "999"), "none of these objects"), (("--format", "obj"), "no format 'obj'"),
        (("--keep", "2"), "share of triangles"), (("--table", "nothing"), "no table 'nothing'"),
    ):  # fmt: skip
        code, _, err = call("mesh", results.url, "mitochondria", *arguments, "--out", tmp_path / "m")
        assert code == 2 and said in err and len(err.strip().splitlines()) == 1


def test_meshes_go_to_a_bucket(results, s3_url):
    from vemray.report.objects3d import write_meshes
    from vemray.store import access

    write_meshes(results, "nucleus", f"{s3_url}/meshes", "neuroglancer")
    assert access.list_names(f"{s3_url}/meshes") == ["1", "1.index", "info", "segment_properties"]


@pytest.mark.parametrize(
    "package, arguments",
    [
        ("pyvista", ("picture", "--show", "cell", "--out", "p.png")), ("fast_simplification", ("mesh", "cell", "--out", "m")),
        ("DracoPy", ("mesh", "cell", "--format", "neuroglancer", "--keep", "1", "--out", "m")),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(call, results, monkeypatch, tmp_path, package, arguments):
    monkeypatch.setitem(sys.modules, package, None)  # import then fails as if it were not there
    monkeypatch.chdir(tmp_path)
    code, _, err = call(arguments[0], results.url, *arguments[1:])
    assert code == 2 and "vemray[pictures]" in err and package.replace("_", "-") in err and len(err.strip().splitlines()) == 1


def test_plain_meshes_need_no_extra(call, results, monkeypatch, tmp_path):
    for package in ("pyvista", "fast_simplification", "DracoPy"):
        monkeypatch.setitem(sys.modules, package, None)
    code, _, err = call("mesh", results.url, "nucleus", "--keep", 1, "--out", tmp_path / "m")
    assert code == 0 and (tmp_path / "m" / "1.ply").exists(), err
