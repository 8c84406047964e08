"""The law end to end: recipes of every kind of stage, a trained network among them, give the same decoded values and the same tables for three
grids that divide no axis, in the serial runner and on Ray with one worker and two, in a folder and on S3."""

import functools
import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import SHAPE, store

import vemray
from vemray.geometry import Box
from vemray.plan import Options
from vemray.store import access

torch = pytest.importorskip("torch")

CONFIGS = Path(__file__).parents[2] / "configs"
GRIDS = [(32, 64, 32), (64, 32, 96), (96, 64, 64)]
EVERY_KIND = {
    "vemray": 1,
    "name": "law",
    "inputs": {"em": {}},
    "steps": {
        "probability": {"op": "infer", "image": "em", "model": "MODEL", "classes": ["a"]},
        "mask": {"op": "threshold", "image": "em", "method": "percentile", "percent": 62},
        "open": {"op": "open", "mask": "mask", "radius_nm": 16},
        "full": {"op": "fill_holes", "mask": "open"},
        "distance": {"op": "distance_map", "mask": "full"},
        "smooth": {"op": "gaussian", "image": "distance", "sigma_nm": 8},
        "parts": {"op": "watershed", "image": "smooth", "mask": "full", "invert": True, "height": 8},
        "objects": {"op": "filter_objects", "labels": "parts", "where": "volume_voxels > 30"},
        "components": {"op": "connected_components", "mask": "full", "connectivity": 26},
        "objects_table": {"op": "measure", "labels": "objects", "image": "em"},
        "components_table": {"op": "measure", "labels": "components", "image": "probability.a"},
    },
    "outputs": ["probability", "distance", "objects", "components", "objects_table", "components_table"],
}

OBJECTS = {
    "vemray": 1,
    "name": "objects",
    "inputs": {"em": {}},
    "steps": {
        "mask": {"op": "threshold", "image": "em", "method": "percentile", "percent": 62},
        "parts": {"op": "connected_components", "mask": "mask"},
        "split": {"op": "split_objects", "labels": "parts", "height_nm": 4, "sigma_nm": 6, "where": "volume_voxels > 400"},
        "opened": {"op": "open_objects", "labels": "split", "radius_nm": 17, "parts": "largest"},
        "eroded": {"op": "erode_objects", "labels": "split", "radius_nm": 10, "parts": "relabel"},
        "filled": {"op": "fill_objects", "labels": "opened"},
        "closed": {"op": "close_objects", "labels": "filled", "radius_nm": 17},
        "near": {"op": "region_grow", "labels": "eroded", "image": "em", "low": 120, "max_distance_nm": 30},
        "all": {"op": "region_grow", "labels": "eroded", "image": "em", "low": 140},
        "expanded": {"op": "expand_labels", "labels": "near", "mask": "mask", "distance_nm": 25},
        "inner": {"op": "shell", "mask": "mask", "from_nm": -30, "to_nm": -8},
        "both": {"op": "combine_labels", "a": "expanded", "b": "closed"},
        "where": {"op": "parents", "labels": "both", "compartments": {"inner": "inner", "first": "eroded"}},
        "chosen": {"op": "select_labels", "labels": "both", "table": "where", "where": "in_inner > 0.2 and volume_voxels > 20"},
        "chosen_table": {"op": "measure", "labels": "chosen"},
        "contacts": {"op": "touching", "labels": "closed"},
        "cut": {"op": "watershed", "image": "em", "within": "filled", "invert": True, "height": 2, "regions": 40},
    },
    "outputs": ["split", "filled", "closed", "near", "all", "both", "where", "chosen", "chosen_table", "contacts", "cut"],
}


def every_kind(folder: Path) -> tuple[dict, np.ndarray, float]:
    from networks_for_tests import small_model
    from scipy.ndimage import gaussian_filter

    from vemray.models.files import Normalisation

    model = small_model(folder / "m.vemray", classes=("background", "a"), base=4, seed=3, normalisation=Normalisation())
    field = gaussian_filter(np.random.default_rng(5).standard_normal(SHAPE), 2.5)
    recipe = {**EVERY_KIND, "steps": {**EVERY_KIND["steps"], "probability": {**EVERY_KIND["steps"]["probability"], "model": model}}}
    return recipe, ((field - field.min()) / np.ptp(field) * 255).astype(np.uint8), 8.0


def objects(folder: Path) -> tuple[dict, np.ndarray, float]:
    """Everything that is done to labelled objects."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(6).standard_normal(SHAPE), 2.5)
    return OBJECTS, ((field - field.min()) / np.ptp(field) * 255).astype(np.uint8), 8.0


def demo(folder: Path) -> tuple[dict, np.ndarray, float]:
    """configs/demo.yaml on the demo's cell at 64 nm, with a network trained for it on a few planes."""
    from vemray.geometry import Spacing
    from vemray.phantom import CLASSES, Scene, render, sparse_annotation
    from vemray.training.source import painted
    from vemray.training.targets import Target
    from vemray.training.train import Settings, train

    scene = Scene.make("demo", 1, (64.0, 64.0, 64.0))
    truth = render(scene, Box.of(scene.shape))
    from vemray.models.files import Normalisation

    planes = sparse_annotation(scene, truth, every=9, fraction=0.6)
    source = painted(truth["em"], planes, Spacing(64, 64, 64), Normalisation(method="fixed", low=60, high=200))
    settings = Settings(steps=120, batch=4, crop=64, depth=2, base=8, validation=0.0)
    train([source], Target("classes", tuple(CLASSES)), folder / "demo.vemray", settings)
    recipe = yaml.safe_load((CONFIGS / "demo.yaml").read_text())
    recipe["steps"]["probability"]["model"] = str(folder / "demo.vemray")
    return recipe, truth["em"], 64.0


def fib25(folder: Path) -> tuple[dict, np.ndarray, float]:
    """configs/fib25.yaml on a part of the real volume where it is at hand, else on the phantom, whose membranes part little: more of it, coarser."""
    recipe = yaml.safe_load((CONFIGS / "fib25.yaml").read_text())
    data = os.environ.get("VEMRAY_TEST_DATA")
    if data and (file := Path(data) / "fib25" / "fib25_training_sample2.npz").exists():
        return recipe, np.load(file)["image"][70:160, 20:130, 100:200], 10.0
    from vemray.phantom import Scene, render

    scene = Scene.make("demo", 1, (32.0, 32.0, 32.0), (90, 110, 100))
    return recipe, render(scene, Box.of(scene.shape))["em"], 32.0


CASES = {f.__name__: f for f in (every_kind, objects, demo, fib25)}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """case(name) -> (recipe, URL of the volume, outcome of the first grid in the serial runner, folder), made once."""

    @functools.cache
    def made(name: str):
        folder = tmp_path_factory.mktemp(name)
        recipe, em, voxel_nm = CASES[name](folder)
        store(folder / "em.zarr", em, "image", spacing=(voxel_nm,) * 3)
        url = str(folder / "em.zarr")
        return recipe, url, outcome(recipe, url, folder / "reference", "serial", GRIDS[0]), folder

    return made


def outcome(recipe: dict, url: str, out, runner, block) -> tuple[dict[str, str], dict[str, pd.DataFrame]]:
    """Checksums of the decoded volumes, and the tables."""
    r = vemray.run(recipe, url, out, runner=runner, options=Options(block, (32, 32, 32)), dataset="x", report=False, listeners=(lambda e: None,))
    volumes = {n: hashlib.sha256(np.ascontiguousarray(r.volumes[n].read(r.volumes[n].box))).hexdigest() for n in r.volumes}
    return volumes, {n: r.tables[n] for n in r.tables if "." not in n}


def assert_same(a, b, where) -> None:
    assert a[0] == b[0], where
    assert list(a[1]) == list(b[1])
    for n in a[1]:
        pd.testing.assert_frame_equal(a[1][n], b[1][n], check_exact=True)


@pytest.mark.parametrize("name", CASES)
def test_three_grids_serial_and_on_ray_with_one_worker_and_two(case, ray_runner, name):
    from vemray.run.cluster import RayRunner

    recipe, url, reference, folder = case(name)
    table = reference[1][{"every_kind": "objects_table", "objects": "chosen_table", "demo": "mitochondria_table", "fib25": "neurites_table"}[name]]
    assert len(table) > 5 and len(reference[0]) >= 1, "there is something to disagree about"
    runners = {"serial": "serial", "one worker": RayRunner(workers=1), "two workers": ray_runner}
    for title, runner in runners.items():
        for block in GRIDS[title == "serial" :]:
            out = folder / f"{title}-{'x'.join(map(str, block))}"
            assert_same(outcome(recipe, url, out, runner, block), reference, (title, block))


@pytest.mark.s3
@pytest.mark.parametrize("name", CASES)
def test_on_s3_as_in_a_folder(case, ray_runner, s3_url, name):
    recipe, url, reference, _ = case(name)
    there = access.join(s3_url, f"law-{name}")
    volume = vemray.store.volume.open(url)
    store(access.join(there, "em.zarr"), volume.read(volume.box), "image", spacing=volume.spacing.zyx)
    for runner, block in (("serial", GRIDS[1]), (ray_runner, GRIDS[0]), (ray_runner, GRIDS[2])):
        out = access.join(there, f"out-{getattr(runner, 'name', runner)}-{block[0]}")
        assert_same(outcome(recipe, access.join(there, "em.zarr"), out, runner, block), reference, (runner, block))
