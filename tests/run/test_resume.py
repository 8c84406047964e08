"""What lies in an output folder is used only where it is what this run would make: runs that stopped, other recipes, other inputs, other names."""

import json
import os
import shutil
import time

import cc3d
import numpy as np
import pytest
from conftest import blobs, store

import vemray
from vemray.errors import BlockError, BusyError, InputError, InterruptedRun, RecipeError
from vemray.plan import Options
from vemray.run.api import make_plan
from vemray.store.ledger import Lease, StageLedger

SMALL = Options((32, 32, 32), (32, 32, 32))
COPY = {"a": {"op": "slow_copy", "image": "mask", "seconds": 0.0}}
#: "a" is read by two that need a halo of it, so it is a stage of its own; it lies in scratch unless it is kept
GROWN = {
    "a": {"op": "dilate", "mask": "mask", "radius_nm": 16},
    "b": {"op": "connected_components", "mask": "a", "connectivity": 26},
    "c": {"op": "not", "mask": "a"},
}
OBJECTS = {**COPY, "b": {"op": "connected_components", "mask": "a", "connectivity": 26}}


def recipe(steps: dict, outputs: list[str] | None = None, kind: str = "mask") -> dict:
    return {"vemray": 1, "name": "resume", "inputs": {"mask": {"kind": kind}}, "steps": steps, "outputs": outputs}


def run(r: dict, volume, out, stop_after: int | None = None, stage: str = "", **more):
    """A serial run; `stop_after`: blocks of a stage after which it is interrupted."""
    seen = 0

    def listen(e: dict) -> None:
        nonlocal seen
        seen += e["event"] == "blocks" and e["stage"] == stage
        if stop_after is not None and seen >= stop_after:
            raise InterruptedRun("test")

    if stop_after is None:
        return vemray.run(r, str(volume), out, runner="serial", options=SMALL, report=False, listeners=(listen,), **more)
    with pytest.raises(InterruptedRun):
        vemray.run(r, str(volume), out, runner="serial", options=SMALL, report=False, listeners=(listen,), **more)


def blocks_run(results) -> dict[str, int]:
    return {s["name"]: s["blocks_run"] for s in results.run["stages"]}


def voxels(results, name):
    volume = results.volumes[name]
    return volume.read(volume.box)


def test_interrupted_in_scratch_and_resumed_as_kept(mask_url, tmp_path):
    whole = voxels(run(recipe(GROWN, ["a"]), mask_url, tmp_path / "whole"), "a")
    run(recipe(GROWN, ["b", "c"]), mask_url, tmp_path / "out", stop_after=30, stage="a")
    r = run(recipe(GROWN, ["a", "b", "c"]), mask_url, tmp_path / "out")
    np.testing.assert_array_equal(voxels(r, "a"), whole)
    np.testing.assert_array_equal(voxels(r, "c"), ~whole)


def test_another_recipe_finishes_in_between(mask_url, tmp_path):
    whole = voxels(run(recipe(GROWN, ["b"]), mask_url, tmp_path / "whole"), "b")
    run(recipe(GROWN, ["b", "c"]), mask_url, tmp_path / "out", stop_after=30, stage="a")
    run(recipe({"d": {"op": "not", "mask": "mask"}}), mask_url, tmp_path / "out")
    r = run(recipe(GROWN, ["b", "c"]), mask_url, tmp_path / "out")
    np.testing.assert_array_equal(voxels(r, "b"), whole)


def test_an_old_volume_of_the_name_is_not_mixed_in(mask, mask_url, tmp_path):
    run(recipe({"a": {"op": "not", "mask": "mask"}}), mask_url, tmp_path / "out")
    run(recipe(COPY), mask_url, tmp_path / "out", stop_after=20, stage="a")
    run(recipe({"a": {"op": "not", "mask": "mask"}}), mask_url, tmp_path / "out", stop_after=20, stage="a")
    np.testing.assert_array_equal(voxels(run(recipe(COPY), mask_url, tmp_path / "out"), "a"), mask)


@pytest.mark.parametrize("passed", ["in pass 1", "in pass 2"])
def test_the_scratch_of_a_dear_labeller_is_lost(tmp_path, passed):
    """Labels of pass 1 that are gone are made again, not taken to be background."""
    field = np.random.default_rng(0).random((96, 64, 64)).astype(np.float32)
    store(tmp_path / "v.zarr", field, "image")
    r = recipe({"w": {"op": "gaussian", "image": "mask", "sigma_nm": 16}, "l": {"op": "watershed", "image": "w", "height": 0.01}}, ["l"], "image")
    whole = voxels(run(r, tmp_path / "v.zarr", tmp_path / "whole"), "l")
    run(r, tmp_path / "v.zarr", tmp_path / "out", stop_after={"in pass 1": 9, "in pass 2": 20}[passed], stage="l")
    assert (tmp_path / "out" / "scratch").exists()
    shutil.rmtree(tmp_path / "out" / "scratch")
    np.testing.assert_array_equal(voxels(run(r, tmp_path / "v.zarr", tmp_path / "out"), "l"), whole)


def test_a_table_of_the_same_name_from_another_recipe(mask, mask_url, tmp_path):
    first = {**OBJECTS, "t": {"op": "measure", "labels": "b"}}
    one = {
        "full": {"op": "dilate", "mask": "mask", "radius_nm": 60},
        "c": {"op": "connected_components", "mask": "full"},
        "t": {"op": "measure", "labels": "c"},
    }
    many = run(recipe(first), mask_url, tmp_path / "out").tables["t"]
    few = run(recipe(one), mask_url, tmp_path / "out").tables["t"]
    assert len(few) < len(many)
    again = run(recipe(first), mask_url, tmp_path / "out")
    assert len(again.tables["t"]) == len(many)
    assert blocks_run(again)["b"] == 0, "the labels were not touched, only the table"


def test_a_new_measure_does_not_label_again(mask, mask_url, tmp_path):
    run(recipe({**OBJECTS, "t": {"op": "measure", "labels": "b"}}), mask_url, tmp_path / "out")
    more = {**OBJECTS, "t": {"op": "measure", "labels": "b"}, "h": {"op": "contingency", "a": "b", "b": "mask"}}
    r = run(recipe(more), mask_url, tmp_path / "out")
    assert blocks_run(r)["b"] == 0 and blocks_run(r)["h"] > 0
    assert r.tables["h"].voxels.sum() == mask.size


def test_intermediates_are_kept_on_request(mask_url, tmp_path):
    def again(connectivity, **more):
        steps = {**GROWN, "b": {**GROWN["b"], "connectivity": connectivity}}
        return blocks_run(run(recipe(steps, ["b", "c"]), mask_url, tmp_path / "out", **more))

    assert again(26)["a"] > 0 and not (tmp_path / "out" / "scratch").exists()
    assert again(6, keep_intermediates=True)["a"] > 0
    assert again(18, keep_intermediates=True)["a"] == 0


def test_the_data_set_is_renamed(mask_url, tmp_path):
    steps = {**OBJECTS, "t": {"op": "measure", "labels": "b"}}
    assert set(run(recipe(steps), mask_url, tmp_path / "out", dataset="x").tables["t"].dataset) == {"x"}
    r = run(recipe(steps), mask_url, tmp_path / "out", dataset="y")
    assert set(r.tables["t"].dataset) == {"y"} and r.run["dataset"] == "y"
    assert blocks_run(r)["b"] == 0


def test_the_channel_is_part_of_an_inputs_identity(tmp_path):
    import zarr

    two = np.stack([blobs(seed=1), blobs(seed=2)]).astype(np.uint8)
    g = zarr.open_group(str(tmp_path / "two.zarr"), mode="w", zarr_format=3)
    g.create_array("0", shape=two.shape, dtype="uint8", chunks=(1, 64, 64, 64))[:] = two
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "nanometer"} for a in "zyx")]
    scale = [{"type": "scale", "scale": [1, 8, 8, 8]}]
    g.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]}
    steps = {"a": {"op": "threshold", "image": "mask", "value": 1}}
    for c in (0, 1):
        r = run(recipe(steps, kind="image"), f"{tmp_path / 'two.zarr'}#c={c}", tmp_path / "out")
        np.testing.assert_array_equal(voxels(r, "a"), two[c] > 0)


def test_links_in_an_input_are_followed(tmp_path, mask):
    store(tmp_path / "real.zarr", mask, "mask")
    (tmp_path / "v.zarr").mkdir()
    for name in os.listdir(tmp_path / "real.zarr"):
        os.symlink(tmp_path / "real.zarr" / name, tmp_path / "v.zarr" / name)
    run(recipe(COPY), tmp_path / "v.zarr", tmp_path / "out")
    shutil.rmtree(tmp_path / "real.zarr")
    store(tmp_path / "real.zarr", ~mask, "mask")
    np.testing.assert_array_equal(voxels(run(recipe(COPY), tmp_path / "v.zarr", tmp_path / "out"), "a"), ~mask)


def test_inputs_and_outputs_inside_each_other(mask, mask_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(recipe(COPY), mask_url, tmp_path / "one")
    inner = tmp_path / "one" / "volumes" / "a.zarr"
    before = {p: p.read_bytes() for p in inner.rglob("*") if p.is_file()}
    for volume, out in (
        ("mask.zarr", "mask.zarr"),
        ("mask.zarr", f"{tmp_path}/mask.zarr/inside"),
        ("one/volumes/a.zarr", "one"),
        (f"file://{inner}", str(tmp_path / "one")),
    ):
        with pytest.raises(InputError, match="inside each other"):
            run(recipe({"a": {"op": "not", "mask": "mask"}}), volume, out)
    assert {p: p.read_bytes() for p in inner.rglob("*") if p.is_file()} == before
    run(recipe(COPY), mask_url, tmp_path / "mask.zarr_out")  # a name that begins alike is another place
    r = run(recipe(COPY), "mask.zarr", tmp_path)  # a folder may hold its input beside what the run makes
    assert os.path.isabs(r.run["inputs"]["mask"]["url"])


def test_a_volume_of_another_kind_is_refused(tmp_path, mask):
    store(tmp_path / "grey.zarr", (mask * 200).astype(np.uint8), "image")
    store(tmp_path / "labels.zarr", cc3d.connected_components(mask).astype(np.uint64), "labels")
    measure = {"t": {"op": "measure", "labels": "mask"}}
    with pytest.raises(RecipeError, match="is labels, but .*grey.zarr holds image"):
        make_plan(recipe(measure, kind="labels"), str(tmp_path / "grey.zarr"))
    with pytest.raises(RecipeError, match="is image, but .*labels.zarr holds labels"):
        make_plan(recipe({"a": {"op": "threshold", "image": "mask", "value": 1}}, kind="image"), str(tmp_path / "labels.zarr"))


def test_the_origin_is_carried(tmp_path, mask):
    from vemray.geometry import Grid, Spacing
    from vemray.store.volume import create

    v = create(
        str(tmp_path / "v.zarr"), mask.shape, "bool", Spacing(8, 8, 8), kind="mask", shard=(128,) * 3, chunk=(32,) * 3, origin_nm=(800.0, 0.0, 40.0)
    )
    v.write(Grid(v.shape, v.shard).write_box(0), mask)
    r = run(recipe({**OBJECTS, "t": {"op": "measure", "labels": "b"}}), tmp_path / "v.zarr", tmp_path / "out")
    assert r.volumes["b"].origin_nm == (800.0, 0.0, 40.0)
    labels = r.labels["b"]
    one = r.tables["t"].iloc[0]
    at = np.argwhere(labels.values == 1).mean(0) * 8
    assert one.centroid_z_nm == pytest.approx(at[0] + 800) and one.centroid_x_nm == pytest.approx(at[2] + 40)
    assert float(labels.z[0]) == 800.0


def test_a_lease_is_its_process_and_no_other(tmp_path):
    lease = Lease(str(tmp_path))
    lease.take()
    body = json.loads((tmp_path / "ledger" / "lease.json").read_text())
    silent = {**body, "beat": time.time() - 3600}
    (tmp_path / "ledger" / "lease.json").write_text(json.dumps(silent))
    with pytest.raises(BusyError):  # alive, though silent for an hour
        Lease(str(tmp_path)).take()
    (tmp_path / "ledger" / "lease.json").write_text(json.dumps({**body, "began": "1"}))
    other = Lease(str(tmp_path))
    other.take()  # the number is another process's by now
    with pytest.raises(BusyError, match="has taken over"):
        lease.check()
    elsewhere = {**body, "where": "another machine", "beat": time.time() - 30}
    (tmp_path / "ledger" / "lease.json").write_text(json.dumps(elsewhere))
    with pytest.raises(BusyError):
        Lease(str(tmp_path)).take()
    (tmp_path / "ledger" / "lease.json").write_text(json.dumps({**elsewhere, "beat": time.time() - 61}))
    Lease(str(tmp_path)).take()


def test_a_run_that_lost_its_lease_completes_nothing(mask_url, tmp_path, monkeypatch):
    from vemray.run import api

    monkeypatch.setattr(api, "LEASE_SECONDS", 0.3)

    def listen(e: dict) -> None:
        if e["event"] == "blocks":
            (tmp_path / "out" / "ledger" / "lease.json").write_text(
                json.dumps({"id": "other", "pid": 1, "host": "h", "where": "", "began": "", "beat": time.time()})
            )
            time.sleep(0.01)

    with pytest.raises(BusyError, match="has taken over"):
        vemray.run(recipe(OBJECTS), mask_url, tmp_path / "out", runner="serial", options=SMALL, report=False, listeners=(listen,))
    assert all(led.complete() is None for led in StageLedger.all(str(tmp_path / "out")))


def test_an_evaluation_stays_while_what_it_judged_does(mask_url, tmp_path):
    from vemray.run.evaluate import record

    run(recipe(OBJECTS), mask_url, tmp_path / "out")
    record(str(tmp_path / "out"), "b", {"f1": 1.0})
    r = run(recipe(OBJECTS), mask_url, tmp_path / "out")
    assert r.run["evaluation"] == {"b": {"f1": 1.0}} and r.run["runner"] == "serial" and r.run["workers"] == 1
    r = run(recipe({**OBJECTS, "b": {**OBJECTS["b"], "connectivity": 6}}), mask_url, tmp_path / "out")
    assert r.run.get("evaluation", {}) == {}


@pytest.mark.parametrize("runner", ["serial", "ray"])
def test_a_merge_that_fails_names_its_step(mask_url, tmp_path, ray_runner, runner):
    steps = {"m": {"op": "bad_merge", "image": "mask"}}
    with pytest.raises(BlockError, match="step 'm', save group: ValueError: this cannot be merged"):
        vemray.run(
            recipe(steps), mask_url, tmp_path / "out", runner=ray_runner if runner == "ray" else runner, options=SMALL, report=False,
            listeners=(lambda e: None,),
        )  # fmt: skip


def test_more_actors_than_fit_do_not_hold_up_a_run(tmp_path, ray_runner):
    """Ray offers memory for one and a half: one runs, and the run ends."""
    import ray
    from networks_for_tests import small_model

    store(tmp_path / "em.zarr", np.random.default_rng(0).integers(0, 256, (128, 64, 64)).astype(np.uint8), "image")
    r = {
        "vemray": 1,
        "name": "net",
        "inputs": {"em": {}},
        "steps": {"p": {"op": "infer", "image": "em", "model": small_model(tmp_path / "m.vemray")}},
    }
    room = max(n["Resources"]["memory"] for n in ray.nodes())
    plan = make_plan(r, str(tmp_path / "em.zarr"), SMALL)
    stage = next(s for s in plan.stages if s.holds_model)
    from vemray.run import engine

    declared = int(room / 1.5)
    original = engine.Engine._pass

    def large(self, stage, *args):
        from dataclasses import replace

        return original(self, replace(stage, memory_bytes=declared) if stage.holds_model else stage, *args)

    engine.Engine._pass = large
    try:
        result = vemray.run(
            r, str(tmp_path / "em.zarr"), tmp_path / "out", runner=ray_runner, options=SMALL, report=False, listeners=(lambda e: None,)
        )
    finally:
        engine.Engine._pass = original
    assert result.state == "done" and stage.memory_bytes < declared
