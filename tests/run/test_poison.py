"""Blocks that cannot be done do not take the others with them: these are finished and recorded, the run ends with one error that names the blocks,
and the same run again does only what is left. With a network: what a block costs, and how long it stood idle, is on record."""

import collections
import threading
import time

import cc3d
import numpy as np
import pytest
import slow_ops  # noqa: F401
from conftest import SHAPE, store
from networks_for_tests import small_model

import vemray
from vemray.errors import BlockError
from vemray.plan import Options
from vemray.run import cluster, engine, work
from vemray.run.events import read_events
from vemray.run.serial import SerialRunner

SMALL = Options((32, 64, 32), (32, 32, 32))
QUIET = dict(report=False, listeners=(lambda e: None,))


class Poison:
    """`at(...)`: where blocks begin along z that fail from now on; `runs()`: boxes that were begun since, and how often."""

    def __init__(self, folder):
        self.file, self.log = folder / "poison", folder / "poison.log"

    def at(self, *zs):
        self.file.write_text(" ".join(map(str, zs)))
        self.log.write_text("")

    def runs(self) -> dict[str, int]:
        return collections.Counter(self.log.read_text().splitlines())


@pytest.fixture
def poison(tmp_path):
    return Poison(tmp_path)


@pytest.fixture
def em(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    store(tmp_path / "em.zarr", grey, "image")
    return str(tmp_path / "em.zarr")


def recipe(tmp_path, op, **more):
    small_model(tmp_path / "m.vemray", base=2, depth=1)
    step = {"op": op, "image": "em", "model": str(tmp_path / "m.vemray"), "tile": 64, "batch": 8, "device": "cpu", "classes": ["a"], **more}
    if op == "poisoned_infer":
        step["poison"] = str(tmp_path / "poison")
    return {"vemray": 1, "name": "net", "inputs": {"em": {}}, "steps": {"p": step}}


def same(a, b):
    x, y = (r.volumes["p.a"] for r in (a, b))
    np.testing.assert_array_equal(x.read(x.box), y.read(y.box))
    assert x.read(x.box).std() > 0


def test_the_others_are_finished_and_only_the_rest_is_done_again(tmp_path, em, poison):
    """Serial, with a network: blocks are 32 planes thick, 3 along z, so that groups of 2 are left incomplete."""
    r, out = recipe(tmp_path, "poisoned_infer"), tmp_path / "out"
    poison.at(32)
    with pytest.raises(BlockError) as e:
        vemray.run(r, em, out, runner="serial", options=SMALL, **QUIET)
    said = str(e.value)
    first = poison.runs()
    bad = [box for box in first if box.startswith("[32:")]
    assert 1 < len(bad) < len(first) and set(first.values()) == {1}
    assert "step 'p' (poisoned_infer), block" in said and "NaN in the weights" in said and em in said and "\n" not in said
    assert all(box in said for box in bad) and not any(box in said for box in set(first) - set(bad))
    assert f"{len(first) - len(bad)} of the {len(first)} blocks of 'p' are done" in said and "run the same again" in said
    notes = [n["text"] for n in read_events(str(out)) if n["event"] == "note"]
    assert len([n for n in notes if "failed; the others go on" in n]) == len(bad)
    poison.at(32, 64)
    with pytest.raises(BlockError):
        vemray.run(r, em, out, runner="serial", options=SMALL, **QUIET)
    assert set(poison.runs()) == set(bad), "what was done is not done again, and would have failed now"
    poison.at()
    done = vemray.run(r, em, out, runner="serial", options=SMALL, **QUIET)
    assert set(poison.runs()) == set(bad)
    same(done, vemray.run(recipe(tmp_path, "infer"), em, tmp_path / "calm", runner="serial", options=SMALL, **QUIET))


def test_in_actors(tmp_path, em, poison, ray_runner):
    r, out = recipe(tmp_path, "poisoned_infer"), tmp_path / "out"
    poison.at(0)
    with pytest.raises(BlockError, match="blocks of 'p' are done and recorded"):
        vemray.run(r, em, out, runner=ray_runner, options=SMALL, **QUIET)
    first = poison.runs()
    bad = {box for box in first if box.startswith("[0:")}
    assert len(first) > len(bad) > 0
    poison.at()
    done = vemray.run(r, em, out, runner=ray_runner, options=SMALL, **QUIET)
    assert set(poison.runs()) == bad
    (stage,) = (s for s in done.run["stages"] if s["name"] == "p")
    assert 1 <= stage["holders"] <= 2 and 0 <= stage["idle"] < 1
    same(done, vemray.run(recipe(tmp_path, "infer"), em, tmp_path / "calm", runner="serial", options=SMALL, **QUIET))


def test_a_block_that_kills_its_actor(tmp_path, em, poison, ray_runner):
    """As a fault in the library does, or memory that is not there. The blocks that the actor held too are done elsewhere."""
    r, out = recipe(tmp_path, "poisoned_infer"), tmp_path / "out"
    poison.at("32,0,0", "deadly")
    with pytest.raises(BlockError, match="workers died of it") as e:
        vemray.run(r, em, out, runner=ray_runner, options=SMALL, **QUIET)
    first = poison.runs()
    (bad,) = (box for box in first if box.startswith("[32:") and box.count(" 0:") == 2)
    assert cluster.DEATHS - 1 <= first[bad] <= cluster.DEATHS  # at first it may only have waited while another was computed
    assert all(n <= 2 for box, n in first.items() if box != bad)
    assert f"{len(first) - 1} of the {len(first)} blocks of 'p' are done" in str(e.value), str(e.value)
    assert any("died and was replaced" in n.get("text", "") for n in read_events(str(out)))
    poison.at()
    done = vemray.run(r, em, out, runner=ray_runner, options=SMALL, **QUIET)
    assert set(poison.runs()) == {bad}
    same(done, vemray.run(recipe(tmp_path, "infer"), em, tmp_path / "calm", runner="serial", options=SMALL, **QUIET))


@pytest.mark.parametrize("where", ["serial", "actors"])
def test_a_model_that_changes_during_the_run(tmp_path, em, poison, where, request, monkeypatch):
    """No block of another network is kept: the run ends, and the same again is all of the new one."""
    runner = "serial" if where == "serial" else request.getfixturevalue("ray_runner")
    r, out = recipe(tmp_path, "infer"), tmp_path / "out"
    real, changed = engine.Engine._pass, []

    def swap(self, stage, *args):
        if stage.holds_model and not changed:
            changed.append(small_model(tmp_path / "m.vemray", base=2, depth=1, seed=9))
        return real(self, stage, *args)

    monkeypatch.setattr(engine.Engine, "_pass", swap)
    with pytest.raises(BlockError, match="m.vemray was changed while the run used it"):
        vemray.run(r, em, out, runner=runner, options=SMALL, **QUIET)
    done = vemray.run(r, em, out, runner=runner, options=SMALL, **QUIET)
    fresh = vemray.run(r, em, tmp_path / "fresh", runner="serial", options=SMALL, **QUIET)
    same(done, fresh)
    small_model(tmp_path / "m.vemray", base=2, depth=1, seed=4)  # and after a run that was finished
    again = vemray.run(r, em, out, runner=runner, options=SMALL, **QUIET)
    same(again, vemray.run(r, em, tmp_path / "other", runner="serial", options=SMALL, **QUIET))
    assert [s["skipped"] for s in again.run["stages"]] == [False]
    assert [s["skipped"] for s in vemray.run(r, em, out, runner=runner, options=SMALL, **QUIET).run["stages"]] == [True]


def test_labels_resume_too(tmp_path, monkeypatch, ray_runner):
    """A pass whose partials are merged: those of blocks that were saved by themselves must come back."""
    mask = np.random.default_rng(1).random(SHAPE) < 0.3
    store(tmp_path / "mask.zarr", mask, "mask")
    r = {
        "vemray": 1,
        "name": "label",
        "inputs": {"mask": {"kind": "mask"}},
        "steps": {"objects": {"op": "connected_components", "mask": "mask", "connectivity": 26}},
    }
    real = work.LabelWork._block

    def failing(self, index, write, stats):
        if index in (1, 7) and not self.second:
            raise ValueError("not this one")
        return real(self, index, write, stats)

    monkeypatch.setattr(work.LabelWork, "_block", failing)
    with pytest.raises(BlockError, match="not this one.*So did block 7"):
        vemray.run(r, str(tmp_path / "mask.zarr"), tmp_path / "out", runner="serial", options=SMALL, **QUIET)
    monkeypatch.setattr(work.LabelWork, "_block", real)
    again = vemray.run(r, str(tmp_path / "mask.zarr"), tmp_path / "out", runner=ray_runner, options=SMALL, **QUIET)
    np.testing.assert_array_equal(again.labels["objects"].values, cc3d.connected_components(mask, connectivity=26))


def test_where_nothing_works_the_run_stops_early(tmp_path, em, poison, monkeypatch):
    monkeypatch.setattr(engine, "MOST_FAILED", 3)
    poison.at(0, 32, 64)
    with pytest.raises(BlockError, match=r"were not tried, since too many failed\. 0 of the"):
        vemray.run(recipe(tmp_path, "poisoned_infer"), em, tmp_path / "out", runner="serial", options=Options((32, 32, 32), (32, 32, 32)), **QUIET)
    assert 3 <= len(poison.runs()) < 12


def test_the_serial_runner_reads_and_writes_while_the_network_runs(tmp_path, em, poison, monkeypatch):
    """Never two networks at once; reading and writing beside it."""
    from vemray.models.infer import InferTiles
    from vemray.store.volume import Volume

    now, seen, lock = collections.Counter(), collections.Counter(), threading.Lock()

    def watched(cls, name, what):
        real = getattr(cls, name)

        def call(self, *a, **k):
            with lock:
                now[what] += 1
                seen[what, "two"] += now[what] > 1
                seen["beside"] += what != "net" and now["net"] > 0
            try:
                time.sleep(0.05)
                return real(self, *a, **k)
            finally:
                with lock:
                    now[what] -= 1

        monkeypatch.setattr(cls, name, call)

    watched(InferTiles, "__call__", "net")
    watched(Volume, "read", "read")
    watched(Volume, "write", "write")
    done = vemray.run(recipe(tmp_path, "infer"), em, tmp_path / "out", runner=SerialRunner(), options=SMALL, **QUIET)
    assert seen["net", "two"] == 0 and seen["beside"] > 3
    (stage,) = (s for s in done.run["stages"] if s["name"] == "p")
    assert stage["holders"] == 1 and 0 <= stage["idle"] < 0.9
    assert stage["compute_seconds"] >= 0.05 * stage["blocks"] and stage["read_seconds"] > 0 and stage["write_seconds"] > 0
