"""The report's figures: plots of the statistics, histograms, pictures in 3D as the recipe asks for them, and what is said where one cannot be made."""

import io
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.report import scene
from vemray.analysis.correlation import correlate
from vemray.analysis.groups import compare_groups
from vemray.errors import RecipeError
from vemray.plan.recipe import ReportSpec, load_recipe
from vemray.plan.scenes import VIEWS, SceneSpec, clipped, measured
from vemray.report import scenes3d, write_report
from vemray.report.figures import distributions, scenes, statistics
from vemray.run.results import Results
from vemray.store import access
from vemray.store.table import write_json, write_table

RELATION = {"op": "correlate", "table": "mitochondria_table", "x": "volume_nm3", "y": "sphericity", "names": ["size", "roundness"]}
GROUPS = {"op": "compare_groups", "table": "mitochondria_table", "value": "volume_nm3", "group": "centroid_z_nm > 320", "names": ["deep", "shallow"]}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run with two statistics more than the drawn cell has."""
    folder = str(tmp_path_factory.mktemp("run") / "out")
    record = scene.results(folder, evaluation=False)
    table = Results(folder).arrow["mitochondria_table"]
    made = {
        "relation": correlate(table, "volume_nm3", "sphericity", permutations=0, bootstraps=50, names=RELATION["names"]),
        "groups": compare_groups(table, "volume_nm3", GROUPS["group"], permutations=0, names=GROUPS["names"]),
    }
    for name, t in made.items():
        write_table(access.join(folder, "tables", f"{name}.parquet"), scene.with_dataset(t, "phantom 7"))
        record["steps"][name] = {"op": "x", "key": "0" * 64, "outputs": {name: "table"}}
        record["keep"].append(name)
    record["recipe"]["steps"] |= {"relation": RELATION, "groups": GROUPS}
    write_json(access.join(folder, "run.json"), record)
    return Results(folder)


def test_every_statistic_has_its_plot(results):
    found = {f.name: f for f in statistics(results, list(results.arrow), 100)}
    assert list(found) == ["relation", "groups"]
    svg = {n: f.files[f"plots/{n}.svg"].decode() for n, f in found.items()}
    n = results.arrow["mitochondria_table"].num_rows
    for word in ("size (µm³)", "roundness", "Spearman", f"n = {n}"):
        assert word in svg["relation"]
    assert "deep" in svg["groups"] and "shallow" in svg["groups"] and "Welch t" in svg["groups"]
    assert found["relation"].lines[0].startswith(f"Among {n} objects") and "not independent" not in found["relation"].lines[0]
    assert "not independent replicates" in found["relation"].notes[0]


def test_a_statistic_of_what_was_not_kept_says_so(results):
    lost = Results(results.url)
    lost.run["recipe"]["steps"]["relation"] = {**RELATION, "table": "lost_table"}
    relation = statistics(lost, ["relation"], 100)[0]
    assert not relation.files and "'lost_table' were not kept" in relation.notes[-1] and relation.lines


def test_by_gives_a_plot_for_each_value(results, tmp_path):
    table = results.arrow["mitochondria_table"]
    half = table.append_column("half", pa.array(np.arange(table.num_rows) % 2))
    several = Results(results.url)
    made = {"relation": correlate(half, "volume_nm3", "sphericity", by="half", permutations=0, bootstraps=0), "mitochondria_table": half}
    several.arrow = made
    several.run["recipe"]["steps"]["relation"] = {**RELATION, "by": "half"}
    found = statistics(several, ["relation"], 100)
    assert [next(iter(f.files)) for f in found] == ["plots/relation_1.png", "plots/relation_2.png"] and "half = 1" in found[1].files[
        "plots/relation_2.svg"
    ].decode()


def test_histograms_and_their_mistakes(results):
    good, bad, lost = distributions(results, ["mitochondria_table.volume_nm3", "mitochondria_table.volume_nm", "lost.x"], 5)
    assert list(good.files) == ["plots/mitochondria_table_volume_nm3.png", "plots/mitochondria_table_volume_nm3.svg"] and "sample" in good.notes[0]
    assert "Did you mean 'volume_nm3'?" in bad.notes[0] and not bad.files and "no table 'lost'" in lost.notes[0]


def test_the_page_and_its_files(results, tmp_path):
    spec = ReportSpec(image="em", distributions=["mitochondria_table.sphericity"])
    page = open(write_report(results.url, str(tmp_path / "r"), spec)).read()
    files = {str(p.relative_to(tmp_path / "r")) for p in (tmp_path / "r").rglob("*.*")}
    plots = ("relation", "groups", "composition", "mitochondria_table_sphericity")
    assert files == {"index.html", *(f"plots/{n}.{form}" for n in plots for form in ("png", "svg"))}
    assert page.count("data:image/png") == 3 and "<h2>Distributions</h2>" in page and "Pictures in 3D" not in page
    assert f"{results.url}/tables/relation.parquet" in page and "../tables" not in page


ASKED = {
    "form": {
        "show": ["cell:0.3", "mitochondria"], "points": ["nucleus_table:90"], "colour": "mitochondria_table.volume_nm3", "clip": ["cell:y=0.5"],
        "size": [300, 240],
    },
    "wrong": {"show": ["nucleus"], "points": ["mitochondria_table"], "colour": "mitochondria_table.volume_nm"},
}  # fmt: skip


def test_pictures_are_drawn_as_asked(results, tmp_path):
    for package in ("pyvista", "fast_simplification"):
        pytest.importorskip(package)
    good, bad = scenes(results, ASKED)
    assert np.asarray(Image.open(io.BytesIO(good.png)).convert("RGB")).std() > 10 and "cell: 1 objects" in good.lines[0]
    assert "--clip cell:y=0.5 --size 300,240 --out form.png" in good.command
    assert not bad.files and "Did you mean 'volume_nm3'?" in bad.notes[0] and "--" not in bad.notes[0]
    page = open(write_report(results.url, str(tmp_path / "r"), ReportSpec(scenes=ASKED))).read()
    assert (tmp_path / "r/scenes/form.png").read_bytes() == good.png and 'href="scenes/form.png"' in page and "could not be drawn" in page


def test_a_cut_of_one_volume_leaves_the_others_whole():
    pytest.importorskip("pyvista")
    from vemray.analysis.mesh import exposed_faces, mesh_of
    from vemray.geometry import Spacing

    cube = np.zeros((24, 24, 24), np.uint64)
    cube[4:20, 4:20, 4:20] = 1
    meshes = {n: mesh_of(f, Spacing(8, 8, 8)) for n, f in exposed_faces(cube).items()}
    layers = [scenes3d.Layer(n, meshes, colour=c) for n, c in (("red", (255, 0, 0)), ("blue", (0, 0, 255)))]

    def blue(*cuts):
        p = scenes3d.draw(layers[1:], None, cuts, "xy", (120, 120)).pixels.astype(int)
        return int((p[..., 2] > p[..., 0] + 50).sum())

    whole, cut, other = blue(), blue(scenes3d.Cut("z", 100.0, layer="blue")), blue(scenes3d.Cut("z", 1e6, layer="red"))
    assert whole == other and cut > 0
    with pytest.raises(Exception, match="nothing to draw"):
        blue(scenes3d.Cut("z", 1e6, layer="blue"))


def test_without_the_extra_one_line_says_what_to_install(results, monkeypatch, tmp_path):
    for package in ("pyvista", "fast_simplification"):
        monkeypatch.setitem(sys.modules, package, None)
    page = open(write_report(results.url, str(tmp_path / "r"), ReportSpec(scenes=ASKED))).read()
    assert page.count("vemray[pictures]") == 1 and "form, wrong" in page and not (tmp_path / "r/scenes").exists()
    assert (tmp_path / "r/plots/relation.png").exists()


# ------------------------------------------------------------------------------------------------------------------ the recipe

STEPS = {
    "mask": {"op": "threshold", "image": "em", "value": 100}, "cells": {"op": "connected_components", "mask": "mask"},
    "cells_table": {"op": "measure", "labels": "cells"}, "density": {"op": "kernel_density", "table": "cells_table"},
    "profile": {"op": "join", "tables": {"objects": "cells_table", "density": "density"}},
}  # fmt: skip


def recipe(**report):
    return load_recipe(
        {"vemray": 1, "name": "r", "inputs": {"em": {}}, "steps": STEPS, "outputs": ["cells", "cells_table", "profile"], "report": report}
    )


@pytest.mark.parametrize(
    "scene_, said",
    [
        ({"shw": ["cells"]}, "unknown key 'report.scenes.s.shw'. Did you mean 'show'"),
        ({}, "nothing to show"),
        ({"show": ["cels"]}, "report.scenes.s names 'cels', which is neither a step nor an input. Did you mean 'cells'"),
        ({"show": ["mask"]}, "report.scenes.s names 'mask', which is not kept"),
        ({"show": ["cells:2"]}, "show cells:2: give NAME or NAME:NUMBER"),
        ({"show": ["cells"], "clip": ["cels:x=0.5"]}, "clip cuts 'cels', which is not shown. Did you mean 'cells'"),
        ({"show": ["cells"], "clip": ["x=5"]}, "clip x=5: give an axis"),
        ({"show": ["cells"], "view": "obliqe"}, "Did you mean 'oblique'"),
        ({"show": ["cells"], "map": "virids"}, "no colour map 'virids'. Did you mean 'viridis'"),
        ({"show": ["cells"], "colour": "cells_table"}, "colour cells_table: give TABLE.COLUMN"),
        ({"show": ["cells"], "colour": "cells_tabel.volume_nm3"}, "names 'cells_tabel', which is not a step. Did you mean 'cells_table'"),
        ({"points": ["density"]}, "names 'density', which is not kept"),
        ({"show": ["cells"], "range": [2, 1]}, "the lower end"),
        ({"show": ["cells"], "size": [9, 9]}, "64 to 8192"),
    ],
)
def test_mistakes_in_a_scene_are_said_while_the_recipe_is_read(scene_, said):
    with pytest.raises(RecipeError) as e:
        recipe(scenes={"s": scene_})
    assert said in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "report, said",
    [
        ({"scenes": {"s": {"show": ["cells"], "colour": "cells_table.volume_nm"}}}, "no column 'volume_nm'. Did you mean 'volume_nm3'"),
        ({"distributions": ["cells_table.sphericty"]}, "no column 'sphericty'. Did you mean 'sphericity'"),
        ({"scenes": {"s": {"show": ["em"]}}}, "names 'em', which is image, not labels or mask"),
        ({"scenes": {"s": {"points": ["cells"]}}}, "names 'cells', which is labels, not table"),
    ],
)
def test_mistakes_in_a_scene_are_said_while_it_is_planned(report, said, tmp_path):
    from vemray.run.api import make_plan

    em = scene.save(str(tmp_path / "em.zarr"), np.zeros((8, 8, 8), np.uint8), (8, 8, 8), "image")
    with pytest.raises(RecipeError, match=said):
        make_plan(recipe(**report), em.url)
    make_plan(recipe(scenes={"s": {"show": ["cells"], "points": ["profile"], "colour": "profile.number_density_per_um3"}}), em.url)


def test_colours_of_what_is_not_shown_are_refused():
    steps = {**STEPS, "other": {"op": "connected_components", "mask": "mask"}, "other_table": {"op": "measure", "labels": "other"}}
    data = {"vemray": 1, "name": "r", "inputs": {"em": {}}, "steps": steps}
    with pytest.raises(RecipeError, match="colour other_table.volume_nm3 is about 'other', which is not shown"):
        load_recipe({**data, "report": {"scenes": {"s": {"show": ["cells"], "colour": "other_table.volume_nm3"}}}})
    with pytest.raises(RecipeError, match="cannot be the name of a picture's file"):
        load_recipe({**data, "report": {"scenes": {"../s": {"show": ["cells"]}}}})
    with pytest.raises(RecipeError, match="give TABLE.COLUMN"):
        load_recipe({**data, "report": {"distributions": ["other_table"]}})


def test_what_a_table_is_about():
    sampled = {
        "outline": {"op": "surface", "labels": "a"},
        "spots": {"op": "sample_surface", "surface": "outline"},
        "both": {"op": "join", "tables": {"s": "spots"}},
    }
    assert measured(sampled, "both") == measured(sampled, "spots") == "spots" and measured(sampled, "outline") == "a"
    assert [measured(STEPS, t) for t in ("cells_table", "density", "profile", "points_table")] == ["cells", "cells", "cells", "points"]
    assert clipped("a:x=3200nm") == ("a", "x", 3200.0, True) and set(VIEWS) == set(scenes3d.VIEWS)
    words = SceneSpec(show=["a"], range=(0, 2), level=1, title="a b").command("run", "o.png")
    assert words == "vemray picture run --show a --range 0.0,2.0 --level 1 --title 'a b' --out o.png"
