"""The engine end to end on small volumes: same values for every grid and runner, resume, content keys, truthful ends."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import cc3d
import numpy as np
import pytest
from conftest import store

import vemray
from vemray.errors import BlockError, BusyError, InputError
from vemray.plan import Options
from vemray.plan.stages import ACTOR_BLOCKS
from vemray.run.events import read_events
from vemray.run.status import read_status
from vemray.store.ledger import Lease
from vemray.store.volume import Volume

HERE = Path(__file__).parent
LABEL = {
    "vemray": 1,
    "name": "label",
    "inputs": {"mask": {"kind": "mask"}},
    "steps": {
        "copy": {"op": "slow_copy", "image": "mask", "seconds": 0.0},
        "objects": {"op": "connected_components", "mask": "copy", "connectivity": 26},
    },
}
SMALL = Options((32, 64, 32), (32, 32, 32))
QUIET = dict(report=False, listeners=(lambda e: None,))


def recipe(**sets):
    r = json.loads(json.dumps(LABEL))
    for k, v in sets.items():
        step, _, p = k.partition("__")
        r["steps"][step][p] = v
    return r


@pytest.mark.parametrize("block", [(32, 32, 32), (64, 32, 96), (32, 128, 64)])
def test_same_values_for_every_grid_and_runner(mask, mask_url, tmp_path, ray_runner, block):
    truth = cc3d.connected_components(mask, connectivity=26)
    for runner in ("serial", ray_runner):
        name = getattr(runner, "name", runner)
        r = vemray.run(LABEL, mask_url, tmp_path / f"out-{name}", runner=runner, options=Options(block, (32, 32, 32)), **QUIET)
        assert r.state == "done"
        labels = r.labels["objects"]
        assert labels.dims == ("z", "y", "x") and float(labels.z[1] - labels.z[0]) == 8.0
        assert labels.dtype == np.uint64
        np.testing.assert_array_equal(labels.values, truth)


def test_nothing_runs_twice_and_a_change_reruns_what_follows(mask_url, tmp_path):
    out = tmp_path / "out"
    keep = {**LABEL, "outputs": ["copy", "objects"]}

    def blocks_run(**sets):
        r = vemray.run({**recipe(**sets), "outputs": keep["outputs"]}, mask_url, out, runner="serial", options=SMALL, **QUIET)
        return {s["name"]: s["blocks_run"] for s in r.run["stages"]}

    first = blocks_run()
    assert first["copy"] > 0 and first["objects"] > 0
    assert blocks_run() == {"copy": 0, "objects": 0}
    changed = blocks_run(objects__connectivity=6)
    assert changed["copy"] == 0 and changed["objects"] > 0
    changed = blocks_run(copy__bias=1, objects__connectivity=6)
    assert changed["copy"] > 0 and changed["objects"] > 0


def test_a_changed_input_is_noticed(mask, mask_url, tmp_path):
    vemray.run(LABEL, mask_url, tmp_path / "out", runner="serial", options=SMALL, **QUIET)
    import shutil

    shutil.rmtree(mask_url)
    store(mask_url, ~mask, "mask")
    r = vemray.run(LABEL, mask_url, tmp_path / "out", runner="serial", options=SMALL, **QUIET)
    assert sum(s["blocks_run"] for s in r.run["stages"]) > 0
    np.testing.assert_array_equal(r.labels["objects"].values, cc3d.connected_components(~mask, connectivity=26))


def test_inputs_are_left_alone(mask_url, tmp_path):
    def facts():
        return {p: (p.read_bytes() if p.is_file() else None, p.stat().st_mtime_ns) for p in Path(mask_url).rglob("*")}

    before = facts()
    vemray.run(LABEL, mask_url, tmp_path / "out", runner="serial", options=SMALL, **QUIET)
    assert facts() == before
    for bad in (mask_url, mask_url + "/inside"):
        with pytest.raises(InputError, match="inside each other"):
            vemray.run(LABEL, mask_url, bad, runner="serial", options=SMALL, **QUIET)
    assert facts() == before


@pytest.mark.parametrize("runner", ["serial", "ray"])
def test_an_operators_error_stops_the_run_and_names_the_block(mask_url, tmp_path, ray_runner, runner):
    r = {**LABEL, "steps": {"bad": {"op": "failing", "image": "mask", "z": 64}}}
    with pytest.raises(BlockError) as e:
        vemray.run(r, mask_url, tmp_path / "out", runner=ray_runner if runner == "ray" else runner, options=SMALL, **QUIET)
    assert "step 'bad' (failing)" in str(e.value) and "[64:90" in str(e.value) and mask_url in str(e.value) and "poisoned" in str(e.value)
    assert read_status(str(tmp_path / "out"))["state"] == "failed"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "failed"


def test_a_second_run_is_refused_while_the_first_lives(mask_url, tmp_path):
    lease = Lease(str(tmp_path / "out"))
    lease.take()
    with pytest.raises(BusyError, match="another run"):
        vemray.run(LABEL, mask_url, tmp_path / "out", runner="serial", options=SMALL, **QUIET)
    lease.release()
    assert vemray.run(LABEL, mask_url, tmp_path / "out", runner="serial", options=SMALL, **QUIET).state == "done"


def command(mask_url, out, recipe_file, *more):
    return [
        sys.executable,
        "-m",
        "vemray.cli",
        "run",
        str(recipe_file),
        "--volume",
        mask_url,
        "--out",
        str(out),
        "--block",
        "32",
        "--no-report",
        "--chunk",
        "32",
        *more,
    ]


def slow_environment(tmp_path):
    count = tmp_path / "count.txt"
    env = {**os.environ, "VEMRAY_PLUGINS": "slow_ops", "PYTHONPATH": str(HERE), "VEMRAY_TEST_COUNT": str(count)}
    return env, count


def wait_for_groups(out, n, process, seconds=90):
    deadline = time.time() + seconds
    while time.time() < deadline:
        assert process.poll() is None, process.stderr.read().decode()
        groups = [g for g in Path(out).glob("ledger/copy-*/blocks-*/g-*") if g.suffix != ".partial"]
        if len(groups) >= n:
            return
        time.sleep(0.05)
    raise AssertionError("no group finished in time")


def slow_recipe(tmp_path):
    import yaml

    f = tmp_path / "recipe.yaml"
    f.write_text(yaml.safe_dump({**recipe(copy__seconds=0.1), "outputs": ["copy", "objects"]}))
    return f


@pytest.mark.parametrize("runner", ["serial", "ray"])
def test_kill_nine_of_the_driver_resumes_to_the_same_values(mask, mask_url, tmp_path, runner):
    out, f = tmp_path / "out", slow_recipe(tmp_path)
    env, count = slow_environment(tmp_path)
    p = subprocess.Popen(
        command(mask_url, out, f, "--runner", runner, "--workers", "2"),
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for_groups(out, 2, p)
    os.kill(p.pid, signal.SIGKILL)  # Ray's own processes notice by themselves; what they still write are the same values
    p.wait()
    time.sleep(0.5)
    done = len(count.read_text().splitlines())
    again = subprocess.run(command(mask_url, out, f, "--runner", runner, "--workers", "2"), env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    ran = len(count.read_text().splitlines())
    blocks, in_flight, interval = 4 * 4 * 3, {"serial": 8, "ray": 2 * 2 + 2}[runner], 8
    assert done < blocks, "killed too late to prove anything"
    assert blocks <= ran <= blocks + in_flight + interval
    result = vemray.Results(out)
    assert result.state == "done"
    np.testing.assert_array_equal(result.labels["objects"].values, cc3d.connected_components(mask, connectivity=26))


def test_kill_nine_of_a_worker_is_carried_through(mask, mask_url, tmp_path):
    out, f = tmp_path / "out", slow_recipe(tmp_path)
    env, count = slow_environment(tmp_path)
    p = subprocess.Popen(command(mask_url, out, f, "--runner", "ray", "--workers", "2"), env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_for_groups(out, 1, p)
    worker = int(count.read_text().splitlines()[-1].split()[-1])
    os.kill(worker, signal.SIGKILL)
    _, err = p.communicate(timeout=180)
    assert p.returncode == 0, err.decode()
    np.testing.assert_array_equal(vemray.Results(out).labels["objects"].values, cc3d.connected_components(mask, connectivity=26))
    assert any(int(line.split()[-1]) != worker for line in count.read_text().splitlines())


@pytest.mark.parametrize("victim", ["actor", "driver"])
def test_kill_nine_where_a_model_runs(tmp_path, victim):
    """An actor is replaced, the blocks it held are done again and no others; of a driver, what its actors finished is not done again. The
    values are those of an undisturbed run."""
    import yaml
    from networks_for_tests import small_model

    rng = np.random.default_rng(0)
    store(tmp_path / "em.zarr", rng.integers(0, 256, (960, 64, 64)).astype(np.uint8), "image")
    model = small_model(tmp_path / "m.vemray", base=16, depth=3)

    def recipe_file(op):
        f = tmp_path / f"{op}.yaml"
        f.write_text(yaml.safe_dump({"vemray": 1, "name": "net", "inputs": {"em": {}}, "steps": {"copy": {"op": op, "image": "em", "model": model}}}))
        return f

    env, count = slow_environment(tmp_path)
    more = ("--runner", "ray", "--workers", "2")
    p = subprocess.Popen(
        command(str(tmp_path / "em.zarr"), tmp_path / "out", recipe_file("counted_infer"), *more),
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    deadline = time.time() + 90
    while time.time() < deadline and (not count.exists() or len(count.read_text().splitlines()) < 4):
        assert p.poll() is None, p.stderr.read().decode()
        time.sleep(0.02)
    actor = int(count.read_text().splitlines()[-1].split()[-1])
    if victim == "actor":
        os.kill(actor, signal.SIGKILL)
        _, err = p.communicate(timeout=180)
        assert p.returncode == 0, err.decode()
    else:
        wait_for_groups(tmp_path / "out", 2, p)
        p.kill()
        p.wait()
        first = {line.split()[-1] for line in count.read_text().splitlines()}
        again = subprocess.run(p.args, env=env, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        # Actors live a little longer than their driver, so what counts is who did a block, not when its line was written.
        resumed = [line for line in count.read_text().splitlines() if line.split()[-1] not in first]
        assert resumed, "killed too late to prove anything"
        assert len(resumed) <= 11, "two groups of two blocks were in the ledger"
    boxes = [line.rsplit(" ", 1)[0] for line in count.read_text().splitlines()]
    assert len(set(boxes)) == 15
    assert {int(line.split()[-1]) for line in count.read_text().splitlines()} - {actor}
    if victim == "actor":
        assert len(boxes) > 15, "killed too late to prove anything"
        assert len(boxes) <= 15 + ACTOR_BLOCKS, "no more ran twice than the actor held"
    r = vemray.run(recipe_file("infer"), str(tmp_path / "em.zarr"), tmp_path / "calm", runner="serial", options=SMALL, **QUIET)
    again = vemray.Results(tmp_path / "out")
    for name in ("copy.a", "copy.b"):
        np.testing.assert_array_equal(again.volumes[name].read(again.volumes[name].box), r.volumes[name].read(r.volumes[name].box))


def test_ctrl_c_stops_cleanly_and_resumes(mask, mask_url, tmp_path):
    out, f = tmp_path / "out", slow_recipe(tmp_path)
    env, _ = slow_environment(tmp_path)
    p = subprocess.Popen(command(mask_url, out, f, "--runner", "serial"), env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_for_groups(out, 1, p)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and b"resumes" in err and b"Traceback" not in err
    assert read_status(str(out))["state"] == "interrupted"
    assert not (out / "ledger" / "lease.json").exists()
    again = subprocess.run(command(mask_url, out, f, "--runner", "serial"), env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    np.testing.assert_array_equal(vemray.Results(out).labels["objects"].values, cc3d.connected_components(mask, connectivity=26))
    assert {e["event"] for e in read_events(str(out))} >= {"plan", "stage", "blocks", "stage_done", "end"}


def test_no_array_outlives_its_block(mask_url, tmp_path, monkeypatch):
    """A block's arrays go as it ends, not with some later collection of circular references, or a worker holds several blocks' worth."""
    steps = {
        "objects": {"op": "connected_components", "mask": "mask"},
        "large": {"op": "filter_objects", "labels": "objects", "where": "volume_voxels > 9"},
        "depth": {"op": "distance_map", "mask": "mask"},
        "parts": {"op": "watershed", "image": "depth", "mask": "mask", "markers": "large", "invert": True},
    }
    read, living, most = Volume.read, [], []

    def watched(self, box):
        array = read(self, box)
        living[:] = [a for a in living if a() is not None]
        living.append(weakref.ref(array))
        most.append(len(living))
        return array

    # compiling a kernel keeps its arguments until a collection: done before
    vemray.run({**LABEL, "steps": steps}, mask_url, tmp_path / "first", runner="serial", **QUIET)
    monkeypatch.setattr(Volume, "read", watched)
    gc.disable()
    try:
        vemray.run({**LABEL, "steps": steps}, mask_url, tmp_path / "out", runner="serial", options=SMALL, **QUIET)
        assert len(most) > 50 and max(most) <= 3, "an operator reads three volumes at most"
        assert not [a for a in living if a() is not None]
    finally:
        gc.enable()


@pytest.mark.slow
def test_the_driver_does_not_grow_with_the_volume(tmp_path):
    """On Ray, at most 20 MB between 4,096 and 32,768 blocks. `driver_memory.py ... label ...` is the same for both passes of a labelling."""
    done = subprocess.run(
        [sys.executable, str(HERE / "driver_memory.py"), str(tmp_path), "ray", "measure", "4096", "32768"],
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout.splitlines()[-1]).values()
    assert many - few <= 20, done.stderr
