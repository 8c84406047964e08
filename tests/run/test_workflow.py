"""The published workflow, configs/hela.yaml with every step of it kept, gives the same values for three grids and both runners: on a part of the
phantom where the nucleus has its furrow, with networks trained on it in seconds."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import store

import vemray
from vemray.geometry import Box
from vemray.phantom import CLASSES, Scene, render
from vemray.plan import Options
from vemray.plan.recipe import load_recipe
from vemray.report.walkthrough import everything
from vemray.store.volume import open as open_volume

torch = pytest.importorskip("torch")

RECIPE = Path(__file__).parents[2] / "configs" / "hela.yaml"
#: of cell 2: ends of both lobes with their pores, mitochondria that are whole, cut, touching, and some resin
PART = Box((158, 238, 174), (276, 376, 324))
GRIDS = [(64, 96, 64), (96, 64, 96), (32, 64, 128)]
#: whose objects are counted
VOLUMES = ["nucleus", "mitochondria", "cell", "cytoplasm", "pockets", "pores", "network_pores"]


def network(path: Path, volume, truth: np.ndarray, classes, every: int, **settings) -> str:
    """A small network that has seen every `every`-th plane of `volume`."""
    from vemray.models.files import Normalisation
    from vemray.training.source import painted
    from vemray.training.targets import Target
    from vemray.training.train import Settings, train

    planes = {z: truth[z] for z in range(1, len(truth), every)}
    source = painted(volume, planes, normalisation=Normalisation(method="fixed", low=60, high=200))
    plain = {
        "turns": {"rotate": 0, "elastic": 0},
        "grey": dict.fromkeys(("contrast", "noise", "blur", "defocus", "patches"), 0),
    }  # few steps are enough then
    train([source], Target("classes", tuple(classes)), path, Settings(steps=200, base=8, validation=0.0, **plain, **settings))
    return str(path)


def whole(volume) -> np.ndarray:
    return volume.read(Box.of(volume.shape))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The recipe with its networks, its inputs, a folder."""
    from vemray.training.annotation import annotate

    folder = tmp_path_factory.mktemp("workflow")
    truth = render(Scene.make("pores", 2), PART)
    store(folder / "em.zarr", truth["em"], "image", (16, 16, 16))
    fine, coarse = (open_volume(str(folder / "em.zarr"), level=n) for n in (0, 1))
    cell, nucleus, mitochondria, lysosomes = (truth[n][::2, ::2, ::2] > 0 for n in ("cell", "nucleus", "mitochondria", "lysosomes"))
    painted = np.select([lysosomes, mitochondria, nucleus, cell], [5, 4, 3, 2], 1).astype(np.uint8)
    pore = np.where(truth["pores"], 2, 1).astype(np.uint8)
    models = {
        "probability": network(folder / "organelles.vemray", coarse, painted, CLASSES, 2, batch=4, crop=56, depth=3),
        "pore_probability": network(folder / "pores.vemray", fine, pore, ["elsewhere", "pore"], 3, batch=8, crop=48, depth=2),
    }
    rng = np.random.default_rng(11)
    points = np.concatenate([rng.permutation(np.argwhere(side))[:60] for side in (~cell, cell)])
    (folder / "painted.csv").write_text("\n".join(["z,y,x,class", *(f"{z},{y},{x},{1 + cell[z, y, x]}" for z, y, x in points)]))
    annotate(str(folder / "painted.csv"), str(folder / "painted.zarr"), coarse, ("resin", "cell"))
    recipe = everything(load_recipe(RECIPE, [f"steps.{step}.model={path}" for step, path in models.items()]))
    return recipe, {"em": fine.url, "cell_painted": str(folder / "painted.zarr")}, folder


def outcome(recipe, inputs, out, runner, block) -> tuple[dict[str, str], dict[str, pd.DataFrame], dict[str, int]]:
    """Checksums of the decoded volumes, the tables, the number of objects of some volumes."""
    r = vemray.run(
        recipe, inputs, out, runner=runner, options=Options(block, (32, 32, 32)), dataset="x", report=False, listeners=(lambda e: None,)
    )  # fmt: skip
    volumes = {n: hashlib.sha256(np.ascontiguousarray(whole(v))).hexdigest() for n, v in r.volumes.items()}
    return volumes, dict(r.tables), {n: len(np.unique(whole(r.volumes[n]))) - 1 for n in VOLUMES}


@pytest.mark.slow
def test_the_workflow_on_three_grids_serial_and_on_ray(case, ray_runner):
    recipe, inputs, folder = case
    volumes, tables, objects = outcome(recipe, inputs, folder / "0", "serial", GRIDS[0])
    assert min(objects.values()) > 0 and objects["mitochondria"] > 4 and objects["pockets"] > 20 and objects["network_pores"] > 20, objects
    assert all(len(tables[n]) for n in tables) and len(tables["sections_density"]) == 2, {n: len(t) for n, t in tables.items()}
    for i, runner in ((1, ray_runner), (2, "serial")):
        other, others, _ = outcome(recipe, inputs, folder / str(i), runner, GRIDS[i])
        assert [n for n in volumes if other.get(n) != volumes[n]] == [] and len(other) == len(volumes), (runner, GRIDS[i])
        assert list(others) == list(tables)
        for n in tables:
            pd.testing.assert_frame_equal(others[n], tables[n], check_exact=True, obj=n)
