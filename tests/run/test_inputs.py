"""Inputs beside whole volumes: levels of a pyramid, arrays on several grids in one recipe, tables. The law holds across grids."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import blobs, store
from scipy import ndimage

import vemray
from vemray.errors import BlockError, InputError, RecipeError, VolumeError
from vemray.geometry import Box, Spacing
from vemray.plan import Options
from vemray.plan.cost import explain
from vemray.run.api import make_plan
from vemray.store import access
from vemray.store.volume import create, fill_level, levels_of, open

SHAPE, VOXEL = (90, 100, 110), (10.0, 8.0, 8.0)
QUIET = dict(report=False, listeners=(lambda e: None,))
GRIDS = [(32, 64, 32), (64, 32, 96), (96, 64, 64)]
INPUTS = {"em": {}, "coarse": {"of": "em", "level": 1}, "classes": {"kind": "table"}}
STEPS = {
    "smooth": {"op": "gaussian", "image": "coarse", "sigma_nm": 20},
    "cell": {"op": "threshold", "image": "smooth", "value": 170},
    "cells": {"op": "connected_components", "mask": "cell"},
    "groups": {"op": "relabel", "labels": "cells", "table": "classes", "new_column": "group"},
    "fine_smooth": {"op": "upsample", "image": "smooth", "like": "em"},
    "fine_cell": {"op": "upsample", "image": "cell", "like": "em", "method": "linear"},
    "fine_groups": {"op": "upsample", "image": "groups", "like": "em"},
    "inner": {"op": "erode", "mask": "fine_cell", "radius_nm": 16},
    "parts": {"op": "connected_components", "mask": "inner"},
    "half": {"op": "downsample", "image": "fine_smooth", "factor": [1, 3, 2]},
    "table": {"op": "measure", "labels": "fine_groups", "image": "em"},
    "coarse_table": {"op": "measure", "labels": "cells", "image": "coarse"},
}
RECIPE = {
    "vemray": 1, "name": "grids", "inputs": INPUTS, "steps": STEPS,
    "outputs": ["cells", "fine_smooth", "fine_groups", "parts", "half", "table", "coarse_table"],
}  # fmt: skip


def filled(url, array, kind, **how):
    """Stored with every level of its pyramid."""
    v = store(url, array, kind, **how)
    for level, grid in v.later_levels:
        for i in range(len(grid)):
            fill_level(v, level, grid.write_box(i))
    return v


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """(URLs by input, grey values, folder)."""
    folder = tmp_path_factory.mktemp("grids")
    field = ndimage.gaussian_filter(np.random.default_rng(5).standard_normal(SHAPE), 4)
    grey = np.clip(128 + field / field.std() * 50, 0, 255).astype(np.uint8)
    filled(folder / "em.zarr", grey, "image", spacing=VOXEL)
    lines = [f"{i},{i % 3},{'ab'[i % 2]}" for i in range(1, 400)]
    (folder / "classes.csv").write_text("\n".join(["label,group,class", *lines]) + "\n")
    return {"em": str(folder / "em.zarr"), "classes": str(folder / "classes.csv")}, grey, folder


def outcome(volumes, out, runner, block):
    r = vemray.run(RECIPE, volumes, out, runner=runner, options=Options(block, (32, 32, 32)), dataset="x", **QUIET)
    arrays = {n: r.volumes[n].read(r.volumes[n].box) for n in r.volumes}
    return {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in arrays.items()} | {n: r.arrow[n].to_pylist() for n in r.arrow}, r, arrays


@pytest.fixture(scope="module")
def reference(scene):
    return outcome(scene[0], scene[2] / "reference", "serial", GRIDS[0])


def test_the_law_across_grids(scene, reference, ray_runner):
    for runner in ("serial", ray_runner):
        for block in GRIDS[runner == "serial" :]:
            out = scene[2] / f"out-{getattr(runner, 'name', runner)}-{block[0]}"
            assert outcome(scene[0], out, runner, block)[0] == reference[0], (runner, block)


def test_values_are_those_of_whole_arrays(scene, reference):
    _, r, made = reference
    coarse = open(scene[0]["em"], level=1)
    assert coarse.shape == (45, 50, 55) and coarse.origin_nm == (5.0, 4.0, 4.0)
    smooth = ndimage.gaussian_filter(coarse.read(coarse.box).astype(float), [20 / s for s in coarse.spacing.zyx], mode="reflect", truncate=4)
    axes = [(np.arange(n) * s - o) / c for n, s, o, c in zip(SHAPE, VOXEL, coarse.origin_nm, coarse.spacing.zyx)]
    at = np.stack(np.meshgrid(*axes, indexing="ij"))
    fine = ndimage.map_coordinates(smooth, at, order=1, mode="nearest")
    np.testing.assert_allclose(made["fine_smooth"], fine, atol=2e-3)
    cells = ndimage.label(smooth >= 170)[0]
    assert cells.max() > 5
    decided = abs(smooth - 170) > 1e-3
    np.testing.assert_array_equal(made["cells"][decided] > 0, (smooth >= 170)[decided])
    groups = np.where(made["cells"] > 0, made["cells"] % 3, 0)
    np.testing.assert_array_equal(made["fine_groups"], groups.repeat(2, 0).repeat(2, 1).repeat(2, 2)[:90, :100, :110])
    means = [made["fine_smooth"][:, y : y + 3, x : x + 2].mean((1, 2), dtype=float) for y in range(0, 100, 3) for x in range(0, 110, 2)]
    np.testing.assert_allclose(made["half"], np.stack(means, 1).reshape(90, 34, 55), atol=1e-3)
    half = r.volumes["half"]
    assert half.spacing == Spacing(10, 24, 16) and half.origin_nm == (0.0, 8.0, 4.0) and r.volumes["fine_groups"].spacing == Spacing(*VOXEL)
    assert r.volumes["cells"].spacing == Spacing(20, 16, 16) and r.volumes["cells"].origin_nm == (5.0, 4.0, 4.0)
    inside = made["cells"] > 0
    assert sum(row["volume_voxels"] for row in r.arrow["coarse_table"].to_pylist()) == np.count_nonzero(inside)


def test_inputs_are_recorded_and_shown(scene, reference):
    inputs = reference[1].run["inputs"]
    assert list(inputs) == ["em", "classes", "coarse"]
    assert inputs["coarse"]["of"] == "em" and inputs["coarse"]["level"] == 1 and inputs["coarse"]["spacing_nm"] == [20, 16, 16]
    assert inputs["coarse"]["origin_nm"] == [5, 4, 4] and inputs["coarse"]["digest"] == inputs["em"]["digest"]
    file = scene[2] / "classes.csv"
    assert inputs["classes"] == {
        "url": str(file), "kind": "table", "rows": 399, "columns": {"label": "int64", "group": "int64", "class": "string"}, "objects": 1,
        "bytes": file.stat().st_size, "digest": hashlib.sha256(file.read_bytes()).hexdigest(),
    }  # fmt: skip
    text = explain(make_plan(RECIPE, scene[0], Options((64,) * 3, (32,) * 3)), 2)
    assert f"coarse: {scene[0]['em']} level 1, 45 x 50 x 55 voxels of 20 x 16 x 16 nm" in text
    assert f"classes: {file}, 399 rows of label (int64), group (int64), class (string)" in text


def test_the_report_takes_the_whole_image(scene):
    steps = {k: STEPS[k] for k in ("smooth", "cell", "cells")} | {"fine": {"op": "upsample", "image": "cells", "like": "em"}}
    for name, overlays in {"fine": {"cells": "fine"}, "coarse": {"cells": "cells"}, "both": None}.items():
        recipe = {**RECIPE, "inputs": {k: INPUTS[k] for k in ("em", "coarse")}, "steps": steps, "outputs": ["fine", "cells"]}
        recipe["report"] = {"overlays": overlays} if overlays else {"image": "coarse"}
        notes = []
        vemray.run(recipe, scene[0]["em"], scene[2] / f"report-{name}", runner="serial", listeners=(notes.append,))
        page = (scene[2] / f"report-{name}" / "report" / "index.html").read_text()
        assert "level 1 of em" in page and "was not found" not in page, notes


def test_how_grids_are_cut_into_stages(scene):
    """What lies on another grid is written first; a filter that upsamples runs within what follows it; a fine array is named, not read."""
    steps = {
        "smooth": {"op": "gaussian", "image": "coarse", "sigma_nm": 20},
        "grey": {"op": "invert", "image": "em"},
        "fine": {"op": "upsample", "image": "smooth", "like": "grey"},
        "cell": {"op": "threshold", "image": "fine", "value": 128},
        "cells": {"op": "connected_components", "mask": "cell"},
        "small": {"op": "downsample", "image": "grey", "factor": [4, 4, 4]},
        "dark": {"op": "threshold", "image": "small", "value": 100},
    }
    recipe = {**RECIPE, "inputs": {k: INPUTS[k] for k in ("em", "coarse")}, "steps": steps, "outputs": ["cells", "dark"]}
    plan = make_plan(recipe, scene[0]["em"], Options((64, 64, 64), (32, 32, 32)))
    stages = {s.name: s for s in plan.stages}
    assert list(stages["cells"].inline) == ["fine", "cell"] and stages["cells"].reads == ("smooth",)
    assert stages["cells"].grid.shape == SHAPE and stages["smooth"].grid.shape == (45, 50, 55)
    assert not stages["dark"].inline, "it reads 64 times what it writes"
    assert stages["small"].grid.shape == (23, 25, 28) and stages["small"].grid.block_shape == (32, 32, 32)
    small = stages["small"]
    assert small.memory_bytes >= 2 * 90 * 100 * 110, "the block and the volume it comes from"


def test_like_counts_by_its_grid_only(scene):
    """Another image on the same voxels changes nothing; another grid does."""

    def key(like):
        recipe = {**RECIPE, "inputs": {k: INPUTS[k] for k in ("em", "coarse")}, "steps": {"grey": {"op": "invert", "image": "em"}, **like}}
        return make_plan({**recipe, "outputs": ["u"]}, scene[0]["em"]).graph.nodes["u"].key

    up = {"op": "upsample", "image": "coarse"}
    assert key({"u": {**up, "like": "em"}}) == key({"u": {**up, "like": "grey"}}) != key({"u": {**up, "like": "coarse"}})


# -- levels ------------------------------------------------------------------------------------------------------------------------


def level_recipe(**of):
    return {
        "vemray": 1, "name": "level", "inputs": {"em": {}, "coarse": {"of": "em", **of}},
        "steps": {"a": {"op": "invert", "image": "coarse"}},
    }  # fmt: skip


def test_a_level_by_its_voxel_size(scene):
    def level(nm):
        return make_plan(level_recipe(min_voxel_nm=nm), scene[0]["em"]).graph.sources["coarse"].volume

    assert [level(nm).level for nm in (1, 8, 8.1, 16, 17, 32)] == [0, 0, 1, 1, 2, 2]
    volume = level(17)
    assert (volume.shape, volume.origin_nm) == ((23, 25, 28), (15.0, 12.0, 12.0))
    other = open(scene[0]["em"], level=2)
    np.testing.assert_array_equal(volume.read(volume.box), other.read(other.box))


@pytest.mark.parametrize(
    "of, says",
    [
        ({"level": 7}, r"is to be level 7 of 'em', but .* has none such. Its levels: 0 of 10 x 8 x 8 nm .*; 1 of 20 x 16 x 16 nm .*; 2 of 40"),
        ({"min_voxel_nm": 500}, "voxels of at least 500 nm along every axis of 'em', but .* has none such. Its levels: 0 of 10"),
    ],
)
def test_a_level_that_is_not_there(scene, of, says):
    with pytest.raises(VolumeError, match=says):
        make_plan(level_recipe(**of), scene[0]["em"])


def test_a_volume_without_a_pyramid(tmp_path):
    v = create(str(tmp_path / "flat.zarr"), (20, 30, 40), "uint8", Spacing(8, 8, 8), shard=(64,) * 3, chunk=(32,) * 3, levels=1)
    v.write(v.box, np.zeros(v.shape, np.uint8))
    for of in ({"level": 1}, {"min_voxel_nm": 16}):
        with pytest.raises(VolumeError, match="has no pyramid, only level 0 of 8 x 8 x 8 nm .* Import it with one: vemray import"):
            make_plan(level_recipe(**of), v.url)
    assert make_plan(level_recipe(min_voxel_nm=8), v.url).graph.sources["coarse"].volume.level == 0


@pytest.mark.parametrize(
    "inputs, says",
    [
        ({"em": {}, "c": {"of": "em"}}, "say which level of 'em' it is: level: 2, or min_voxel_nm: 32"),
        ({"em": {}, "c": {"of": "em", "level": 1, "min_voxel_nm": 32}}, "one of the two"),
        ({"em": {}, "c": {"level": 1}}, "name it, of: INPUT"),
        ({"em": {}, "c": {"of": "emm", "level": 1}}, "inputs.c.of names 'emm', which is not an input. Did you mean 'em'"),
        ({"em": {}, "c": {"of": "em", "level": -1}}, "inputs.c.level"),
        ({"em": {}, "c": {"of": "em", "level": 1}, "d": {"of": "c", "level": 1}}, "names 'c', which is a level itself"),
        ({"em": {}, "t": {"kind": "table"}, "d": {"of": "t", "level": 1}}, "names 't', which is a table"),
        ({"em": {}, "c": {"of": "em", "level": 1, "kind": "labels"}}, "inputs.c is labels, but it is a level of 'em', which is image"),
        ({"em": {}, "c": {"off": "em"}}, "unknown key 'inputs.c.off'. Did you mean 'of'"),
    ],
)
def test_mistakes_about_levels(scene, inputs, says):
    with pytest.raises(RecipeError) as e:
        make_plan({**level_recipe(level=1), "inputs": inputs, "steps": {"a": {"op": "invert", "image": "em"}}}, scene[0]["em"])
    assert says in str(e.value)


def test_a_level_is_not_given_and_follows_its_volume(scene, tmp_path):
    with pytest.raises(InputError, match="'coarse' is a level of 'em', from which it is taken"):
        make_plan(level_recipe(level=1), {"em": scene[0]["em"], "coarse": scene[0]["em"]})
    with pytest.raises(RecipeError, match="needs the input 'em'"):
        make_plan({**level_recipe(level=1), "inputs": {"coarse": {"of": "em", "level": 1}, "em": {}}}, {})
    filled(tmp_path / "labels.zarr", blobs(SHAPE).astype(np.uint64), "labels")
    recipe = {**level_recipe(level=1), "steps": {"a": {"op": "measure", "labels": "coarse"}}}
    recipe["inputs"] = {"em": {"kind": "labels"}, "coarse": {"of": "em", "level": 1}}
    assert make_plan(recipe, str(tmp_path / "labels.zarr")).graph.sources["coarse"].spec.kind == "labels"
    with pytest.raises(RecipeError, match="do not lie on the same voxels: .* 'upsample' brings a coarse array"):
        steps = {"a": {"op": "measure", "labels": "em", "image": "coarse"}}
        make_plan({**recipe, "steps": {"m": {"op": "and", "a": "em", "b": "coarse"}, **steps}}, str(tmp_path / "labels.zarr"))


def test_levels_of_a_channel_in_micrometres_and_with_a_voxel_size_of_the_users(tmp_path):
    import zarr

    from vemray.plan.recipe import InputSpec
    from vemray.run.api import level_source, source

    g = zarr.open_group(str(tmp_path / "v.zarr"), mode="w", zarr_format=2)
    data = np.random.default_rng(0).integers(0, 255, (2, 8, 10, 12)).astype(np.uint8)
    for path, array in (("full", data), ("half", data[:, ::2, ::2, ::2])):
        g.create_array(path, shape=array.shape, dtype="uint8", chunks=(1, 8, 8, 8))[:] = array
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "zyx")]

    def at(path, scale, shift):
        return {"path": path, "coordinateTransformations": [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]}

    datasets = [at("full", [1, 0.04, 0.0046, 0.0046], [0, 1, 0, 0]), at("half", [1, 0.08, 0.0092, 0.0092], [0, 1.02, 0.0023, 0.0023])]
    g.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    url = f"{tmp_path / 'v.zarr'}#c=1"
    level = level_source("c", source("em", url), InputSpec(of="em", level=1)).volume
    same = open(url, level=1)
    assert (level.spacing, level.origin_nm, level.shape) == (same.spacing, same.origin_nm, same.shape)
    np.testing.assert_array_equal(level.read(Box.of(level.shape)), data[1, ::2, ::2, ::2])
    mine = levels_of(open(url, spacing=Spacing(80, 5, 5)))[1]
    assert mine.spacing == Spacing(160, 10, 10) and mine.origin_nm == pytest.approx((40.0, 2.5, 2.5))


# -- tables ------------------------------------------------------------------------------------------------------------------------

TABLE = {
    "vemray": 1, "name": "table", "inputs": {"labels": {"kind": "labels"}, "classes": {"kind": "table"}},
    "steps": {
        "groups": {"op": "relabel", "labels": "labels", "table": "classes", "new_column": "group"},
        "sizes": {"op": "measure", "labels": "groups"},
    },
}  # fmt: skip


@pytest.fixture
def labelled(tmp_path):
    labels = ndimage.label(blobs((40, 50, 60)))[0].astype(np.uint64)
    store(tmp_path / "labels.zarr", labels, "labels")
    return str(tmp_path / "labels.zarr"), labels


def regroup(labelled, file, out, **more):
    volumes = {"labels": labelled[0], "classes": file}
    return vemray.run(TABLE, volumes, out, runner="serial", options=Options((32,) * 3, (32,) * 3), **QUIET, **more)


def blocks_run(results):
    return sum(s["blocks_run"] for s in results.run["stages"])


def test_a_table_regroups_and_only_what_it_says_counts(labelled, tmp_path):
    n = int(labelled[1].max())
    file, out = tmp_path / "classes.csv", tmp_path / "out"
    file.write_text("label,group\n" + "".join(f"{i},{i % 2 + 1}\n" for i in range(1, n + 1)))
    before = file.read_bytes()
    first = regroup(labelled, file, out)
    want = np.where(labelled[1] > 0, labelled[1] % 2 + 1, 0)
    np.testing.assert_array_equal(first.labels["groups"].values, want)
    assert first.run["dataset"] == "labels" and not (out / "scratch").exists() and file.read_bytes() == before

    moved = tmp_path / "moved.csv"
    moved.write_bytes(before)
    assert blocks_run(regroup(labelled, moved, out)) == 0, "a table of the same content is the same table, wherever and whenever it was written"
    file.write_text("label,group\n" + "".join(f"{i},{i % 3 + 1}\n" for i in range(1, n + 1)))
    changed = regroup(labelled, file, out)
    assert blocks_run(changed) > 0
    np.testing.assert_array_equal(changed.labels["groups"].values, np.where(labelled[1] > 0, labelled[1] % 3 + 1, 0))
    pq.write_table(pa.table({"label": np.arange(1, n + 1), "group": np.arange(1, n + 1) % 3 + 1}), tmp_path / "classes.parquet")
    np.testing.assert_array_equal(regroup(labelled, tmp_path / "classes.parquet", out).labels["groups"].values, changed.labels["groups"].values)


def test_an_interrupted_run_takes_the_table_it_began_with(labelled, tmp_path):
    """What was read and keyed is what the blocks get; a table changed in between is another run."""
    from vemray.errors import InterruptedRun

    n = int(labelled[1].max())
    file, out = tmp_path / "classes.csv", tmp_path / "out"
    file.write_text("label,group\n" + "".join(f"{i},1\n" for i in range(1, n + 1)))

    def stop(event):
        if event["event"] == "blocks":
            file.write_text("label,group\n" + "".join(f"{i},2\n" for i in range(1, n + 1)))
            if event["done"] >= 3:
                raise InterruptedRun("test")

    volumes, options = {"labels": labelled[0], "classes": file}, Options((32,) * 3, (32,) * 3)
    with pytest.raises(InterruptedRun):
        vemray.run(TABLE, volumes, out, runner="serial", options=options, report=False, listeners=(stop,))
    resumed = regroup(labelled, file, out)
    np.testing.assert_array_equal(resumed.labels["groups"].values, np.where(labelled[1] > 0, 2, 0))


def test_mistakes_about_tables(labelled, tmp_path):
    file = tmp_path / "classes.csv"
    file.write_text("label,group\n1,2\n2,two\n")
    with pytest.raises(InputError, match="line 3, column 'group': 'two' is not a number"):
        regroup(labelled, file, tmp_path / "out")
    with pytest.raises(RecipeError, match="needs the input 'classes'. Give it with --volume classes=FILE.csv"):
        make_plan(TABLE, {"labels": labelled[0]})
    with pytest.raises(InputError, match="is no table that can be read"):
        make_plan(TABLE, {"labels": labelled[0], "classes": labelled[0]})
    file.write_text("label,grp\n1,2\n")
    with pytest.raises(RecipeError, match="takes labels at 'labels', but 'classes' is table"):
        steps = {"sizes": {"op": "measure", "labels": "classes"}}
        make_plan({**TABLE, "steps": steps}, {"labels": labelled[0], "classes": file})
    with pytest.raises(RecipeError, match="report.image names 'classes', which is a table"):
        make_plan({**TABLE, "report": {"image": "classes"}}, {"labels": labelled[0], "classes": file})
    with pytest.raises(BlockError, match="the table has no column 'group'. Did you mean 'grp'"):
        regroup(labelled, file, tmp_path / "out")
    inside = tmp_path / "out2" / "tables" / "classes.csv"
    inside.parent.mkdir(parents=True)
    inside.write_text("label,group\n1,2\n")
    with pytest.raises(InputError, match="lie inside each other"):
        regroup(labelled, inside, tmp_path / "out2")
    assert inside.read_text() == "label,group\n1,2\n"


def test_a_table_goes_into_an_analysis(tmp_path):
    table = pa.table({"label": [1, 2], "volume_nm3": [1e9, 3e9], "touches_border": [False, True]})
    pq.write_table(table, tmp_path / "cell.parquet")
    (tmp_path / "mito.csv").write_text("label,volume_nm3,touches_border\n1,4e8,false\n")
    recipe = {
        "vemray": 1, "name": "shares", "inputs": {"cell": {"kind": "table"}, "mito": {"kind": "table"}},
        "steps": {"shares": {"op": "composition", "tables": {"cell": "cell", "mito": "mito"}}},
    }  # fmt: skip
    volumes = {"cell": tmp_path / "cell.parquet", "mito": tmp_path / "mito.csv"}
    r = vemray.run(recipe, volumes, tmp_path / "out", runner="serial", **QUIET)
    assert r.run["dataset"] == "shares"
    assert r.tables["shares"].set_index("name").percent_of_cell["mito"] == pytest.approx(10)


@pytest.mark.s3
def test_levels_and_tables_on_s3(scene, reference, s3_url):
    em = open(scene[0]["em"])
    there = access.join(s3_url, "grids")
    filled(access.join(there, "em.zarr"), em.read(em.box), "image", spacing=VOXEL)
    access.write_bytes(access.join(there, "classes.csv"), (scene[2] / "classes.csv").read_bytes())
    volumes = {"em": access.join(there, "em.zarr"), "classes": access.join(there, "classes.csv")}
    assert outcome(volumes, access.join(there, "out"), "serial", GRIDS[1])[0] == reference[0]
