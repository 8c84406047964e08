"""Networks of installed packages, by the name that the package gave them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.models.test_infer import blockwise
from vemray.errors import ModelError
from vemray.geometry import Box, Spacing
from vemray.models.files import load, load_facts, stamp
from vemray.models.infer import InferTiles
from vemray.ops.base import ArraySpec, Site
from vemray.plan.graph import parameters_for_key
from vemray.store.volume import create, open

SHAPE, SPACING = (4, 64, 71), Spacing(8, 8, 8)
SPEC = ArraySpec(SHAPE, "uint8", SPACING)
CODE = """
import numpy as np
from vemray.models.files import Facts, Normalisation

def edges(device):
    facts = Facts(
        classes=["edge"], voxel_nm=(8, 8, 8), stride=1, halo=1, activation="none", background=False,
        normalisation=Normalisation(method="fixed", low=0, high=255),
    )

    def predict(batch):
        padded = np.pad(batch, [(0, 0), (0, 0), (1, 1), (1, 1)], mode="edge")
        return np.abs(padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1])

    return facts, predict

def failing(device):
    raise OSError("no weights")

def wrong(device):
    return {}, print

def shrinking(device):
    return edges(device)[0], lambda batch: batch[..., 1:]

def raising(device):
    return edges(device)[0], lambda batch: batch.nothing
"""
NAMES = ("edges", "failing", "wrong", "shrinking", "raising")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder that pip might have filled: a package and what is known of it. Returns the folder and the package's name, another for each test."""
    name = f"tiny_networks_{tmp_path.name.strip('_')}".lower()
    site = tmp_path / "site"
    install(site, name)
    monkeypatch.syspath_prepend(str(site))
    return site, name


def install(site, name, version="1.2.3", points=NAMES, module=None):
    about = site / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "entry_points.txt").write_text("[vemray.models]\n" + "".join(f"{p} = {module or name}:{p}\n" for p in points))
    (site / f"{name}.py").write_text(CODE)


def em(shape=SHAPE):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def reference(image):
    padded = np.pad(image.astype(np.float64), [(0, 0), (1, 1), (0, 0)], mode="edge") / 255
    return np.rint(np.abs(padded[:, 2:] - padded[:, :-2]) * 255)


@pytest.mark.parametrize("how", [{"tile": 64}, {"mode": "blend", "tile": 24, "overlap": 8}])
def test_blocks_equal_the_whole(installed, how):
    op = InferTiles("entry:edges", **how)
    op.check(SPEC)
    want = op(em(), None, site=Site.whole(SPEC))["edge"]
    for block in [(2, 64, 64), (3, 29, 50), (1, 64, 13)]:
        np.testing.assert_array_equal(blockwise(op, em(), SPEC, block)["edge"], want)
    if "mode" not in how:
        assert np.abs(want - reference(em())).max() <= 1 and want.std() > 20


def test_what_it_is_known_by(installed):
    site, name = installed
    op = InferTiles("entry:edges")
    assert op.files() == (str(site / f"{name}.py"),) and op.facts()[name] == "1.2.3"
    assert parameters_for_key(op)["model"] == "entry:edges", "its name belongs to it, as a file's path does not"
    before = stamp("entry:edges")
    (site / f"{name}.py").write_text(CODE + "\n# changed\n")
    assert stamp("entry:edges") != before


def test_what_is_not_there_or_does_not_work(installed):
    site, name = installed
    for model, says in (
        ("entry:edgez", "no installed package declares the model 'edgez'.*Did you mean 'edges'"), ("entry:", "no installed package"),
        ("entry:../../etc/passwd", "no installed package"), ("entry:failing", f"failing of {name} failed: OSError: no weights"),
        ("entry:wrong", r"must return \(Facts, function\)"),
    ):  # fmt: skip
        for call in (load, load_facts):
            with pytest.raises(ModelError, match=says):
                call(model)
    with pytest.raises(ModelError, match="entry:shrinking: the network turns"):
        load("entry:shrinking").predict(np.zeros((1, 1, 8, 8), np.float32))
    with pytest.raises(ModelError, match="entry:raising.*AttributeError"):
        load("entry:raising").predict(np.zeros((1, 1, 8, 8), np.float32))
    with pytest.raises(ModelError, match="1 channel"):
        load("entry:edges").predict(np.zeros((1, 2, 8, 8), np.float32))


def test_a_name_of_two_packages_and_a_module_that_is_gone(installed, tmp_path, monkeypatch):
    other = tmp_path / "other"
    install(other, "another_package", points=("edges",))
    install(other, "broken_package", points=("gone", "half"), module="no_such_module")
    monkeypatch.syspath_prepend(str(other))
    with pytest.raises(ModelError, match=f"declared by another_package and {installed[1]}"):
        load("entry:edges")
    with pytest.raises(ModelError, match="broken_package has no file for its module 'no_such_module'"):
        stamp("entry:gone")


def test_a_recipe_runs_it_in_workers_of_ray(installed, tmp_path):
    site, name = installed
    v = create(str(tmp_path / "em.zarr"), (8, 64, 64), "uint8", SPACING, shard=(4, 64, 64), chunk=(4, 32, 32))
    v.write(Box((0, 0, 0), (4, 64, 64)), em((8, 64, 64))[:4])
    v.write(Box((4, 0, 0), (8, 64, 64)), em((8, 64, 64))[4:])
    (tmp_path / "r.yaml").write_text("vemray: 1\ninputs: {em: {kind: image}}\nsteps: {p: {op: infer, image: em, model: 'entry:edges'}}\n")
    command = [sys.executable, "-m", "vemray.cli", "run", tmp_path / "r.yaml", "--volume", tmp_path / "em.zarr", "--out", tmp_path / "out", "--runner", "ray",
               "--workers", "2", "--no-report"]  # fmt: skip
    path = os.pathsep.join([str(site), *(p for p in (os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])) if p)])
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    got = open(str(tmp_path / "out" / "volumes" / "p.edge.zarr")).read(Box.of((8, 64, 64)))
    assert np.abs(got - reference(em((8, 64, 64)))).max() <= 1
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert list(record["models"]) == [str(site / f"{name}.py")] and record["recipe"]["steps"]["p"]["model"] == "entry:edges"
