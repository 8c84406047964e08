"""Recipes are strict: every mistake is one clear error before anything runs."""

import numpy as np
import pytest

from vemray.errors import InputError, PlanError, RecipeError, VolumeError
from vemray.geometry import Grid, Spacing
from vemray.plan import Options, load_recipe
from vemray.run.api import make_plan
from vemray.store.volume import create

GOOD = {
    "vemray": 1,
    "name": "good",
    "inputs": {"mask": {"kind": "mask"}},
    "steps": {"objects": {"op": "connected_components", "mask": "mask", "connectivity": 26}, "table": {"op": "measure", "labels": "objects"}},
}


@pytest.fixture
def mask_url(tmp_path):
    url = str(tmp_path / "mask.zarr")
    v = create(url, (40, 50, 60), "bool", Spacing(8, 8, 8), kind="mask", shard=(64, 64, 64), chunk=(32, 32, 32))
    v.write(Grid(v.shape, v.shard).write_box(0), np.zeros(v.shape, bool))
    return url


def changed(**parts):
    return {**GOOD, **parts}


def step(**body):
    return changed(steps={"objects": body})


@pytest.mark.parametrize(
    "recipe, says",
    [
        (step(op="connected_components", mask="mask", why={"conectivity": "bodies"}), "'why' of step 'objects' explains 'conectivity'"),
        (step(op="connected_components", mask="mask", connectivity=6, why=["bodies"]), "must be text, or a mapping"),
        (changed(step={}), "unknown key 'step'. Did you mean 'steps'"),
        (changed(inputs={"mask": {"knd": "mask"}}), "unknown key 'inputs.mask.knd'. Did you mean 'kind'"),
        (step(op="conected_components", mask="mask"), "no operator 'conected_components'. Did you mean 'connected_components'"),
        (step(op="connected_components", mask="mask", conectivity=6), "no parameter or input 'conectivity'. Did you mean 'connectivity'"),
        (step(op="connected_components", mask="mask", connectivity=7), "connectivity"),
        (step(op="connected_components"), "needs the input 'mask'"),
        (step(op="connected_components", mask="msk"), "names 'msk', which is neither a step nor an input. Did you mean 'mask'"),
        (step(op="measure", labels="mask"), "takes labels at 'labels', but 'mask' is mask"),
        (step(op="connected_components", mask="objects"), "takes itself"),
        (changed(outputs=["objcts"]), "no step 'objcts'. Did you mean 'objects'"),
        (changed(steps={"mask": {"op": "not", "mask": "mask"}}), "name of an input and of a step"),
        (changed(vemray=2), "vemray"),
        ({"vemray": 1}, "name"),
        (changed(vemray=None), "Write 'vemray: 1'"),
        ({k: v for k, v in GOOD.items() if k != "vemray"}, "must be 'vemray: 1'"),
        (changed(steps={}), "no steps"),
        (changed(outputs=[]), "keeps nothing"),
        (changed(folder="x"), "unknown key 'folder'"),
        ({**GOOD, 1: 2}, "the key 1 is not text"),
        (changed(steps={True: {"op": "not", "mask": "mask"}}), "the key True under steps is not text"),
        (changed(report={"image": "emm"}), "report.image names 'emm', which is neither a step nor an input"),
        (changed(report={"overlays": {"cells": "objcts"}}), "names 'objcts', which is neither a step nor an input. Did you mean 'objects'"),
        (changed(report={"tables": ["tabel", "table"]}), "names 'tabel', which is not a step. Did you mean 'table'"),
        (changed(outputs=["table"], report={"overlays": {"cells": "objects"}}), "which is not kept: add it to 'outputs'"),
        (step(op="connected_components", mask="mask", connectivity=object()), "'steps.objects.connectivity' holds something of type object"),
    ],
)
def test_mistakes_are_named(recipe, says, mask_url):
    with pytest.raises(RecipeError) as e:
        make_plan(recipe, {"mask": mask_url})
    assert says in str(e.value)


def test_python_values_become_plain(tmp_path, mask_url):
    recipe = changed(
        steps={
            "objects": {"op": "connected_components", "mask": "mask", "connectivity": np.int64(6)},
            "big": {"op": "filter_objects", "labels": "objects", "largest": np.float32(2)},
        }
    )
    assert make_plan(recipe, mask_url).graph.nodes["objects"].op.connectivity == 6
    assert load_recipe(changed(about=tmp_path)).about == str(tmp_path)


def test_files_that_are_no_recipes(tmp_path):
    good = "vemray: 1\ninputs: {em: {}}\nsteps: {t: {op: threshold, image: em, value: 1}}\n"

    def says(text, name="r.yaml"):
        (tmp_path / name).write_text(text)
        with pytest.raises(RecipeError) as e:
            load_recipe(tmp_path / name)
        assert "\n" not in str(e.value)
        return str(e.value)

    (tmp_path / "good.yaml").write_text(good)
    assert load_recipe(tmp_path / "good.yaml").name == "good"
    with pytest.raises(RecipeError, match="is a directory. Name a YAML file"):
        load_recipe(tmp_path)
    assert "r.yaml, line 4, column 1 is not valid YAML: the key 'vemray' stands twice" in says(good + "vemray: 1\n")
    assert "the key 't' stands twice" in says(good.replace("value: 1}", "value: 1}, t: {op: not}"))
    assert "line 1" in says("a: [1,")
    assert "no mapping" in says("just text")
    assert "looks like a recipe for training. Run it with: vemray train" in says("vemray: 1\nclasses: [a]\nvolumes: []\n")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file in UTF-8"):
        load_recipe(tmp_path / "x.yaml")
    with pytest.raises(RecipeError, match="--set steps.t.value=.: the value, line 1.* not valid YAML"):
        load_recipe(tmp_path / "good.yaml", ["steps.t.value=["])


def test_sets_override(mask_url):
    p = make_plan(GOOD, mask_url, sets=["steps.objects.connectivity=6"])
    assert p.graph.nodes["objects"].op.connectivity == 6
    with pytest.raises(RecipeError, match="Did you mean 'objects'"):
        load_recipe(GOOD, ["steps.objcts.connectivity=6"])
    with pytest.raises(RecipeError, match="steps.NAME"):
        load_recipe(GOOD, ["connectivity"])


def test_measure_rides_on_the_labels_and_keys_follow_content(mask_url):
    p = make_plan(GOOD, mask_url)
    (stage,) = p.stages
    assert [n.name for n in stage.riders] == ["table"]
    q = make_plan(GOOD, mask_url, Options((64, 64, 64), (32, 32, 32)))
    assert [s.key for s in q.stages] == [s.key for s in p.stages], "the grid is not part of the content"
    r = make_plan(GOOD, mask_url, sets=["steps.objects.connectivity=6"])
    assert r.stages[0].key != p.stages[0].key


def test_what_is_kept_where_the_recipe_does_not_say(mask_url):
    """Labels that were only measured stay, and so do the tables of tables; what became another volume goes."""
    steps = {
        "open": {"op": "open", "mask": "mask", "radius_nm": 16},
        "parts": {"op": "connected_components", "mask": "open"},
        "objects": {"op": "filter_objects", "labels": "parts", "where": "volume_voxels > 3"},
        "table": {"op": "measure", "labels": "objects"},
        "shares": {"op": "composition", "tables": {"objects": "table"}, "whole": "objects"},
    }
    assert set(make_plan(changed(steps=steps), mask_url).keep) == {"objects", "table", "shares"}
    assert set(make_plan({**changed(steps=steps), "outputs": ["parts"]}, mask_url).keep) == {"parts"}


def test_what_cannot_fit_is_refused_with_numbers(mask_url):
    with pytest.raises(PlanError, match=r"needs \d+ MB a task .* may use \d+ MB\. Use smaller blocks"):
        make_plan(GOOD, mask_url, Options((256, 256, 256), (64, 64, 64), memory_bytes=1_000_000))
    with pytest.raises(PlanError, match="not a multiple of the chunk"):
        Options((100, 64, 64), (64, 64, 64))


def test_missing_inputs(mask_url, tmp_path):
    with pytest.raises(VolumeError):
        make_plan(GOOD, str(tmp_path / "nothing.zarr"))
    with pytest.raises(RecipeError, match="has no input 'msk'. Did you mean 'mask'"):
        make_plan(GOOD, {"mask": mask_url, "msk": mask_url})
    with pytest.raises(RecipeError, match="needs the input 'mask'"):
        make_plan(GOOD, {})
    with pytest.raises(InputError, match="no recipe"):
        make_plan(tmp_path / "none.yaml", mask_url)


def test_reasons_change_no_key(mask_url):
    plain = make_plan(step(op="connected_components", mask="mask", connectivity=6), mask_url)
    told = make_plan(step(op="connected_components", mask="mask", connectivity=6, why={"connectivity": "bodies"}), mask_url)
    assert [s.key for s in plain.stages] == [s.key for s in told.stages]
    assert told.graph.recipe.steps["objects"]["why"] == {"connectivity": "bodies"}
