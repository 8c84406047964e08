"""The command line as a user meets it: it works in a fresh process, and every mistake is one line that says what, where and what to do."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from vemray import cli
from vemray.geometry import Box, Spacing
from vemray.store.volume import create

RECIPE = """
vemray: 1
inputs: {em: {kind: image}}
steps:
  bright: {op: threshold, image: em, value: 128}
  objects: {op: connected_components, mask: bright}
  objects_table: {op: measure, labels: objects, image: em}
"""


def fresh(*args, **environment) -> subprocess.CompletedProcess:
    import os

    command = [sys.executable, "-m", "vemray.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "100", **environment})


@pytest.fixture
def call(monkeypatch, capsys):
    """call(*arguments) -> (exit code, stdout, stderr), in this process."""

    def run(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vemray", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            cli.main()
        return (e.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def em(tmp_path):
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(0).standard_normal((20, 40, 50)), 2)
    grey = ((field - field.min()) / np.ptp(field) * 255).astype(np.uint8)
    v = create(str(tmp_path / "em.zarr"), grey.shape, "uint8", Spacing(8, 8, 8), shard=(64,) * 3, chunk=(32,) * 3)
    v.write(Box.of(grey.shape), grey)
    return tmp_path / "em.zarr"


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "cells.yaml").write_text(RECIPE)
    return tmp_path / "cells.yaml"


def one_line(err: str) -> str:
    lines = [x for x in err.splitlines() if x]
    assert len(lines) == 1 and lines[0].startswith("vemray: ") and "Traceback" not in err and "internal error" not in err, err
    return lines[0]


def test_phantom_in_a_fresh_process(tmp_path):
    done = fresh("phantom", "--out", tmp_path / "p", "--shape", "12,40,40", "--runner", "serial")
    assert done.returncode == 0, done.stderr
    url = done.stdout.strip().splitlines()[-1].removeprefix("the EM volume: ")
    assert json.loads((tmp_path / "p" / "run.json").read_text())["state"] == "done"
    import vemray

    assert vemray.open_volume(url).shape == (12, 40, 40)


def test_ops_in_a_fresh_process():
    done = fresh("ops")
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 100
    names = {line.split()[0] for line in done.stdout.splitlines() if line and line[0] != " "}
    assert {"gaussian", "infer", "phantom", "phantom_objects", "watershed"} <= names
    one = fresh("ops", "infer")
    assert one.returncode == 0 and "model file" in one.stdout and max(map(len, one.stdout.splitlines())) <= 100
    assert fresh("ops", "infre").returncode == 2


def test_version(call):
    code, out, _ = call("--version")
    assert code == 0 and out.startswith("vemray ")


def test_run_status_evaluate_report(call, em, recipe, tmp_path):
    out = tmp_path / "out"
    code, said, err = call("run", recipe, "--volume", em, "--out", out, "--runner", "serial")
    assert code == 0 and "labels: objects; tables: objects_table" in said, err
    assert "'cells'" in said, "a recipe is called as its file"
    assert call("status", out)[0] == 0
    labels = out / "volumes" / "objects.zarr"
    code, _, err = call("evaluate", labels, labels, "--run", tmp_path, "--runner", "serial")
    assert code == 2 and "no run.json" in one_line(err)
    before = (out / "report" / "index.html").read_text()
    code, said, _ = call("evaluate", labels, labels, "--run", out, "--runner", "serial", "--name", "objects")
    assert code == 0 and "adapted_rand.error" in said
    assert "Against the truth: objects" in (out / "report" / "index.html").read_text() and "Against the truth" not in before
    code, said, _ = call("evaluate", labels, labels, "--region", "0:8,:,4:", "--runner", "serial")
    assert code == 0 and "adapted_rand.error" in said
    code, _, err = call("evaluate", labels, labels, "--region", "0:8,4:", "--runner", "serial")
    assert code == 2 and "from:up to along Z,Y,X" in one_line(err)
    code, _, err = call("evaluate", em, labels, "--runner", "serial")
    assert code == 2 and "import it again with --kind labels" in one_line(err)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "state": "interrupted"}))
    code, _, err = call("report", out)
    assert code == 2 and "is interrupted, not done" in one_line(err)


@pytest.mark.parametrize("state, code", [("done", 0), ("failed", 1), ("interrupted", 130)])
def test_status_exits_as_the_run_ended(call, tmp_path, state, code):
    (tmp_path / "ledger").mkdir()
    stages = {
        "a": {"title": "", "blocks": 64, "all": 64, "done": 0, "state": "kept"},
        "b": {"title": "", "blocks": 64, "all": 64, "done": 52, "state": "running", "rate_mvoxel_s": 3.0, "remaining_s": 2.9, "pass_name": "pass 1"},
        "c": {"title": "", "blocks": 64, "all": 64, "done": 0, "state": "waiting"},
    }
    (tmp_path / "ledger" / "status.json").write_text(json.dumps({"recipe": "r", "state": state, "beat": 0, "stages": stages}))
    got, said, _ = call("status", tmp_path)
    assert got == code
    a, b, c = said.splitlines()[1:]
    assert "kept" in a and "64/64 blocks" in a and "left" not in b and "running" not in b and "not run" in c
    assert state == "done" or ("52/64" in b and state in b)


def test_status_forgets_the_rate_of_the_pass_before(tmp_path):
    from vemray.run.events import Events, Status
    from vemray.run.status import describe

    events = Events(Status(str(tmp_path), {"recipe": "r", "state": "running"}, seconds=0))
    events("plan", stages=[{"name": "s", "title": "t", "blocks": 8}])
    events("stage", stage="s", title="t", pass_name="pass 1", blocks=8, done=0)
    events("blocks", stage="s", done=4, blocks=8, rate=2.0, remaining=2.0)
    assert "4/8 blocks of pass 1  2.0 Mvoxel/s, 2.0 s left" in describe(str(tmp_path))[0]
    events("stage", stage="s", title="t", pass_name="pass 2", blocks=8, done=0)
    assert "left" not in describe(str(tmp_path))[0]
    events("end", state="interrupted")
    assert "interrupted       0/8" in describe(str(tmp_path))[0]


def test_bars_end_full():
    from vemray.run.events import Bars

    bars = Bars()
    bars({"event": "stage", "stage": "a.select", "pass_name": "", "blocks": 1, "done": 0})
    bars({"event": "stage_done", "stage": "a.select", "seconds": 0.1})
    bars({"event": "end"})
    assert [t.completed for t in bars.progress.tasks] == [1]


@pytest.mark.parametrize(
    "extra, says",
    [
        (["--memory", "nan"], "--memory nan"),
        (["--memory", "-1"], "--memory -1"),
        (["--workers", "0"], "--workers"),
        (["--workers", "-2"], "--workers"),
        (["--block", "nan"], "--block"),
        (["--set", "steps.bright.value=["], "--set steps.bright.value=["),
        (["--set", "a.b=1"], "has no 'a'"),
        (["--runner", "none"], "no runner 'none'"),
    ],
)
def test_options_that_cannot_be(call, em, recipe, tmp_path, extra, says):
    code, _, err = call("run", recipe, "--volume", em, "--out", tmp_path / "out", *extra)
    assert code == 2 and says in one_line(err)


def test_what_fits_in_python_fits_on_the_command_line(call, em, recipe, tmp_path):
    from dataclasses import asdict

    from vemray.plan import Options

    assert call("run", recipe, "--volume", em, "--out", tmp_path / "out", "--runner", "serial")[0] == 0
    given = json.loads((tmp_path / "out" / "run.json").read_text())["options"]
    assert given == {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(Options()).items()}


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-8", "8nm", "8,8", "0.008", "5000"])
def test_voxel_sizes_that_cannot_be(call, tmp_path, size):
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 4), np.uint8))
    code, _, err = call("import", tmp_path / "a.npy", tmp_path / "a.zarr", f"--voxel-size={size}")
    assert code == 2 and "--voxel-size" in one_line(err) and not (tmp_path / "a.zarr").exists()
    assert ("Did you mean 8,8,8 nm?" in err) == (size == "0.008")


def test_places_that_cannot_be_written(call, em, recipe, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 4), np.uint8))
    code, _, err = call("run", recipe, "--volume", em, "--out", "/proc/foo")
    assert code == 4 and "/proc/foo" in one_line(err)
    code, _, err = call("import", tmp_path / "a.npy", "/proc/x.zarr", "--voxel-size", "8")
    assert code == 4 and "/proc/x.zarr" in one_line(err)


def test_labels_stay_labels(call, em, recipe, tmp_path):
    call("run", recipe, "--volume", em, "--out", tmp_path / "out", "--runner", "serial", "--no-report")
    code, said, _ = call("import", tmp_path / "out" / "volumes" / "objects.zarr", tmp_path / "copy.zarr")
    assert code == 0 and "copy.zarr: labels," in said
    code, _, err = call("import", em, tmp_path / "x.zarr", "--block", "100")
    assert code == 2 and "100 voxels is not whole chunks of 64" in one_line(err)


def test_warnings_are_one_line(tmp_path):
    import tifffile

    (tmp_path / "s").mkdir()
    for i in (0, 1, 3):
        tifffile.imwrite(tmp_path / "s" / f"s_{i}.tif", np.zeros((8, 8), np.uint8))
    done = fresh("import", tmp_path / "s", tmp_path / "s.zarr", "--voxel-size", "8")
    assert done.returncode == 0 and one_line(done.stderr).startswith("vemray: warning: ") and "no plane between s_1.tif and s_3.tif" in done.stderr


def test_a_mistake_of_ours_is_one_line_and_a_file(call, monkeypatch, tmp_path):
    import vemray.ops.describe

    monkeypatch.setattr(vemray.ops.describe, "table", lambda width: 1 / 0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code, _, err = call("ops")
    (file,) = tmp_path.glob("vemray-error-*.txt")
    assert code == 70 and str(file) in err and "ZeroDivisionError" in err and err.count("\n") == 1 and "Traceback" in file.read_text()
    monkeypatch.setenv("VEMRAY_DEBUG", "1")
    assert "Traceback" in call("ops")[2]


def test_export(call, tmp_path):
    pytest.importorskip("onnxruntime")
    from tests.models.networks_for_tests import small_model
    from vemray.models.facts import Normalisation
    from vemray.models.files import load_facts

    model = small_model(tmp_path / "m.vemray", normalisation=Normalisation())
    code, _, err = call("export", model, tmp_path / "m.czann", "--tile", 96)
    assert code == 2 and "percentiles 1 and 99" in one_line(err) and not (tmp_path / "m.czann").exists()
    code, out, _ = call("export", model, tmp_path / "m.czann", "--tile", 96, "--grey", "20,230")
    assert code == 0 and "background, a, b" in out and load_facts(tmp_path / "m.czann").window == [96, 96]
    code, out, _ = call("export", model, tmp_path / "m.onnx")
    assert code == 0 and load_facts(tmp_path / "m.onnx").classes == ["background", "a", "b"]
    for args, says in (
        ((model, tmp_path / "m.onnx"), "exists already"), ((model, tmp_path / "m.tf"), "'.tf' are not written"), ((model, tmp_path / "n.onnx", "--bits", 16), "--grey"),
        ((model, tmp_path / "n.czann", "--bits", 12), "8 or 16"), ((model, tmp_path / "n.czann", "--grey", "x"), "two numbers"),
        ((tmp_path / "m.czann", tmp_path / "n.czann"), "only .vemray"), ((tmp_path / "m.czann", tmp_path / "n.onnx"), "only .vemray"),
        ((tmp_path / "none.vemray", tmp_path / "n.onnx"), "no model"),
    ):  # fmt: skip
        code, _, err = call("export", *args)
        assert code == 2 and says in one_line(err), args
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.czann", "m.onnx", "m.vemray"]


def test_export_and_check_a_bioimage_package(call, tmp_path):
    pytest.importorskip("onnxruntime")
    import zipfile

    from tests.models.networks_for_tests import small_model
    from vemray.models.facts import Normalisation
    from vemray.models.files import load_facts

    model, path = small_model(tmp_path / "m.vemray", depth=1, normalisation=Normalisation()), tmp_path / "m.zip"
    code, out, _ = call("export", model, path)
    assert code == 0 and "does not say: --author, --license, --cite" in out and load_facts(path).classes == ["background", "a", "b"]
    args = ("--author", "A. Person", "--author", "B. Person", "--license", "MIT", "--cite", "10.1234/abc Person 2025", "--overwrite")
    code, out, _ = call("export", model, path, *args)
    assert code == 0 and "does not say" not in out
    with zipfile.ZipFile(path) as z:
        assert b"B. Person" in z.read("rdf.yaml")
        files = {n: z.read(n) for n in z.namelist()}
    code, out, _ = call("check-model", path)
    assert code == 0 and out.count(" reproduced: largest difference") == 2 and "torchscript" in out
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as z:
        for name, data in files.items():
            z.writestr(name, data.replace(b"max_percentile: 99.0", b"max_percentile: 80.0") if name == "rdf.yaml" else data)
    code, out, err = call("check-model", other)
    assert code == 2 and "NOT reproduced" in out and "do not reproduce its test output" in one_line(err)
    for args, says in (
        ((model, tmp_path / "n.zip", "--tile", 96), "--tile is for .czann"), ((model, tmp_path / "n.czann", "--license", "MIT"), "are for .zip"),
        ((model, tmp_path / "n.zip", "--license", "mine alone"), "SPDX"), ((path, tmp_path / "n.zip"), "only .vemray"),
    ):  # fmt: skip
        code, _, err = call("export", *args)
        assert code == 2 and says in one_line(err), args
    assert not (tmp_path / "n.zip").exists() and "no BioImage.IO package" in call("check-model", tmp_path)[2]


def test_train_does_not_overwrite(call, tmp_path):
    (tmp_path / "m.vemray").write_text("precious")
    (tmp_path / "t.yaml").write_text("vemray: 1\nout: m.vemray\nclasses: [a]\nvolumes: [{volume: x.zarr, planes: p}]\n")
    code, _, err = call("train", tmp_path / "t.yaml")
    assert code == 2 and "m.vemray exists already" in one_line(err) and (tmp_path / "m.vemray").read_text() == "precious"
    assert "nothing at" in call("train", tmp_path / "t.yaml", "--overwrite")[2]
    for sets, says in (("settings.stepz=1", "Did you mean 'steps'"), ("settings.steps=[", "not valid YAML"), ("x=1", "unknown key 'x'")):
        code, _, err = call("train", tmp_path / "t.yaml", "--set", sets)
        assert code == 2 and says in one_line(err)
    code, _, err = call("run", tmp_path / "t.yaml", "--volume", "x", "--out", tmp_path / "o")
    assert code == 2 and "vemray train" in one_line(err)
