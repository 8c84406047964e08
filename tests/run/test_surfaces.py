"""Surfaces as stages: the same faces and distances for three grids and both runners, kept or in scratch, interrupted and resumed."""

import json
import shutil

import cc3d
import numpy as np
import pandas as pd
import pytest
from conftest import SHAPE, blobs, store

import vemray
from vemray.errors import InterruptedRun, VolumeError
from vemray.plan import Options
from vemray.plan.cost import explain
from vemray.run.api import make_plan
from vemray.store.artefact import ArtefactFiles, read_arrays

GRIDS = [(32, 64, 32), (64, 32, 96), (96, 64, 64)]
RECIPE = {
    "vemray": 1,
    "name": "surfaces",
    "inputs": {"objects": {"kind": "labels"}, "cell": {"kind": "mask"}},
    "steps": {
        "table": {"op": "measure", "labels": "objects"},
        "objects_surface": {"op": "surface", "labels": "objects"},
        "cell_surface": {"op": "surface", "labels": "cell"},
        "centres": {"op": "distance_to_surface", "objects": "table", "targets": {"cell": "cell_surface", "objects": "objects_surface"}},
        "gaps": {"op": "surface_distance", "surface": "objects_surface", "targets": {"cell": "cell_surface"}},
        "neighbours": {"op": "nearest_surface", "surface": "objects_surface"},
        "sites": {"op": "contacts", "a": "objects_surface", "b": "cell_surface", "radius_nm": 24},
        "density": {"op": "surface_density", "objects": "table", "surface": "cell_surface", "radius_nm": 120},
        "curved": {"op": "curvature", "objects": "table", "surface": "cell_surface", "radius_nm": 64},
        "areas": {"op": "surface_area", "surface": "objects_surface", "objects": "table"},
        "chance": {"op": "random_placement", "objects": "table", "surface": "cell_surface", "simulations": 19},
    },
}
TABLES = ["centres", "gaps", "neighbours", "sites", "density", "curved", "areas", "chance"]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    labels = cc3d.connected_components(blobs(level=0.045)).astype(np.uint64) * 3
    z, y, x = (np.arange(n) - n / 2 for n in SHAPE)
    store(folder / "objects.zarr", labels, "labels")
    store(folder / "cell.zarr", z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < 38**2, "mask")
    return {n: str(folder / f"{n}.zarr") for n in ("objects", "cell")}


def run(volumes, out, *, runner="serial", block=GRIDS[0], recipe=RECIPE, listen=lambda e: None, **more):
    options = Options(block, (32, 32, 32))
    return vemray.run(recipe, volumes, out, runner=runner, options=options, dataset="x", report=False, listeners=(listen,), **more)


def stopped(volumes, out, stage: str, blocks: int, **more):
    seen = 0

    def listen(e: dict) -> None:
        nonlocal seen
        seen += e["event"] == "blocks" and e["stage"] == stage
        if seen >= blocks:
            raise InterruptedRun("test")

    with pytest.raises(InterruptedRun):
        run(volumes, out, listen=listen, **more)


def kept(**outputs) -> dict:
    return {**RECIPE, "outputs": ["objects_surface", *TABLES], **outputs}


def blocks_run(results) -> dict[str, int]:
    return {s["name"]: s["blocks_run"] for s in results.run["stages"]}


@pytest.fixture(scope="module")
def reference(volumes, tmp_path_factory):
    return run(volumes, tmp_path_factory.mktemp("reference") / "out", recipe=kept())


def assert_same(a, b) -> None:
    for name in TABLES:
        pd.testing.assert_frame_equal(a.tables[name], b.tables[name], check_exact=True)
    one, other = (r.surfaces["objects_surface"] for r in (a, b))
    for label in a.tables["gaps"].label:
        np.testing.assert_array_equal(one.faces_of(label), other.faces_of(label))


@pytest.mark.parametrize("runner", ["serial", "ray"])
@pytest.mark.parametrize("block", GRIDS)
def test_three_grids_and_both_runners(volumes, reference, ray_runner, tmp_path, runner, block):
    assert len(reference.tables["gaps"]) > 20 and reference.tables["gaps"].to_cell_nm.gt(0).any() and len(reference.tables["sites"]) > 5
    r = run(volumes, tmp_path / "out", runner=ray_runner if runner == "ray" else runner, block=block, recipe=kept())
    assert_same(r, reference)
    assert not (tmp_path / "out" / "scratch").exists() and sorted(r.surfaces) == ["objects_surface"]


def test_what_is_kept_where_the_recipe_does_not_say(volumes, tmp_path):
    r = run(volumes, tmp_path / "out")
    assert not r.surfaces and not (tmp_path / "out" / "surfaces").exists() and not (tmp_path / "out" / "scratch").exists()
    alone = {**RECIPE, "steps": {"s": RECIPE["steps"]["cell_surface"]}}
    assert list(run(volumes, tmp_path / "alone", recipe=alone).surfaces) == ["s"]


@pytest.mark.parametrize("keep", [True, False])
def test_interrupted_and_resumed(volumes, reference, tmp_path, keep):
    recipe = kept() if keep else {**RECIPE, "outputs": TABLES}
    stopped(volumes, tmp_path / "out", "objects_surface", 19, recipe=recipe)
    place = tmp_path / "out" / ("surfaces" if keep else "scratch") / "objects_surface"
    assert ArtefactFiles(str(place)).mark() and not (place / "index.npz.zst").exists()
    with pytest.raises(VolumeError, match="no finished surface"):
        ArtefactFiles(str(place)).spec()
    r = run(volumes, tmp_path / "out", recipe=recipe)
    assert 0 < blocks_run(r)["objects_surface"] < 24, "finished groups were not done again"
    for name in TABLES:
        pd.testing.assert_frame_equal(r.tables[name], reference.tables[name], check_exact=True)
    if keep:
        assert_same(r, reference)
        again = run(volumes, tmp_path / "out", recipe=recipe)
        assert not any(blocks_run(again).values())


def test_files_lost_after_an_interruption_are_made_again(volumes, reference, tmp_path):
    stopped(volumes, tmp_path / "out", "objects_surface", 19, recipe=kept())
    shutil.rmtree(tmp_path / "out" / "surfaces")
    assert_same(run(volumes, tmp_path / "out", recipe=kept()), reference)


def test_another_grid_after_an_interruption(volumes, reference, tmp_path):
    stopped(volumes, tmp_path / "out", "objects_surface", 19, recipe=kept())
    assert_same(run(volumes, tmp_path / "out", recipe=kept(), block=GRIDS[2]), reference)


def test_a_kept_surface_is_read_by_a_later_run_in_another_grid(volumes, reference, tmp_path):
    run(volumes, tmp_path / "out", recipe={**RECIPE, "outputs": ["objects_surface", "gaps"]})
    r = run(volumes, tmp_path / "out", recipe=kept(), block=GRIDS[1])
    assert blocks_run(r)["objects_surface"] == 0 and blocks_run(r)["neighbours"] > 0
    assert_same(r, reference)


def test_changed_parameters_make_it_anew(volumes, reference, tmp_path):
    changed = kept(steps={**RECIPE["steps"], "objects_surface": {**RECIPE["steps"]["objects_surface"], "towards": "background"}})
    r = run(volumes, tmp_path / "out", recipe=kept())
    assert blocks_run(r)["objects_surface"] > 0
    r = run(volumes, tmp_path / "out", recipe=changed)
    assert blocks_run(r)["objects_surface"] > 0
    assert_same(run(volumes, tmp_path / "out", recipe=kept()), reference)


def test_what_the_folder_holds(volumes, reference, tmp_path):
    files = ArtefactFiles(reference.surfaces.urls["objects_surface"])
    with open(f"{files.url}/artefact.json") as f:
        facts = json.load(f)
    assert facts["kind"] == "surface" and tuple(facts["shape"]) == SHAPE and facts["spacing"] == {"z": 8.0, "y": 8.0, "x": 8.0}
    index = read_arrays(f"{files.url}/index.npz.zst")
    assert facts["files"] == len(index["block"]) and sorted(index["block"]) == list(index["block"])
    shutil.copytree(files.url, tmp_path / "s")
    broken = tmp_path / "s" / "blocks" / f"{index['block'][0]}.npz.zst"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(VolumeError, match="truncated or corrupt"):
        ArtefactFiles(str(tmp_path / "s")).read(int(index["block"][0]))


def test_the_plan_is_explained(volumes):
    text = explain(make_plan(RECIPE, volumes, Options((64, 64, 64), (32, 32, 32))), workers=2)
    assert "surface_distance" in text and "objects_surface" in text
