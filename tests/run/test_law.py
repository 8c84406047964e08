"""The law end to end: a recipe of every kind of stage, a trained network among them, gives the same decoded values and the same tables for
three grids that divide no axis, in both runners."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from conftest import SHAPE, store

import vemray
from vemray.plan import Options

torch = pytest.importorskip("torch")

GRIDS = [(32, 64, 32), (64, 32, 96), (96, 64, 64)]
RECIPE = {
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


def checksum(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    from scipy.ndimage import gaussian_filter

    from vemray.models.files import Facts, Normalisation, save_native
    from vemray.models.networks import UNet

    folder = tmp_path_factory.mktemp("law")
    torch.manual_seed(3)
    net = UNet(2, base=4, depth=2)
    save_native(
        folder / "m.vemray", net,
        Facts(classes=["background", "a"], dims=2, voxel_nm=(8, 8, 8), stride=net.stride, halo=net.halo, normalisation=Normalisation()),
    )  # fmt: skip
    field = gaussian_filter(np.random.default_rng(5).standard_normal(SHAPE), 2.5)
    grey = ((field - field.min()) / np.ptp(field) * 255).astype(np.uint8)
    store(folder / "em.zarr", grey, "image")
    RECIPE["steps"]["probability"]["model"] = str(folder / "m.vemray")
    return folder


def outcome(scene, runner, block) -> tuple[dict, dict]:
    out = scene / f"{getattr(runner, 'name', runner)}-{'x'.join(map(str, block))}"
    r = vemray.run(RECIPE, str(scene / "em.zarr"), out, runner=runner, options=Options(block, (32, 32, 32)), report=False, listeners=(lambda e: None,))
    volumes = {n: checksum(r.volumes[n].read(r.volumes[n].box)) for n in r.volumes}
    return volumes, {n: r.tables[n] for n in ("objects_table", "components_table")}


def test_three_grids_and_two_runners_agree(scene, ray_runner):
    volumes, tables = outcome(scene, "serial", GRIDS[0])
    assert len(tables["objects_table"]) > 5 and len(tables["components_table"]) > 1, "there is something to disagree about"
    for runner in ("serial", ray_runner):
        for block in GRIDS:
            v, t = outcome(scene, runner, block)
            assert v == volumes, (runner, block)
            for n in tables:
                pd.testing.assert_frame_equal(t[n], tables[n], check_exact=True)
