"""The law for networks, through the engine: exact and blended tiles, planes along every axis, 3D, an ensemble shown mirrored, a mask by intensity. Blocks
of three shapes, in the serial runner and in actors, give what one call of the operator over the whole volume gives, bit for bit."""

import numpy as np
import pytest
from conftest import store
from networks_for_tests import small_model
from scipy.ndimage import gaussian_filter

import vemray
from vemray.geometry import Spacing
from vemray.models.infer import InferMerge, InferTiles
from vemray.ops.base import ArraySpec, Site
from vemray.plan import Options

SHAPE = (38, 50, 90)
SPEC = ArraySpec(SHAPE, "uint8", Spacing(8, 8, 8))
#: blocks and chunks of the outputs, which the blocks of a network follow
GRIDS = [((64, 64, 64), (32, 32, 32)), ((32, 48, 64), (16, 48, 16)), ((32, 32, 80), (32, 16, 80))]


def steps(folder) -> dict[str, dict]:
    flat = small_model(folder / "flat.vemray", classes=("background", "a"), gain=3, base=2)
    other = small_model(folder / "other.vemray", classes=("background", "a"), gain=3, base=2, depth=1, seed=1)
    deep = small_model(folder / "deep.vemray", classes=("background", "a"), gain=3, dims=3, base=2, depth=1, seed=2)
    planes = small_model(folder / "planes.vemray", classes=("background", "a"), gain=3, channels=3, context=1, base=2, seed=3)
    return {
        "exact": {"model": flat, "tile": 32},
        "blend": {"model": flat, "mode": "blend", "tile": 32, "overlap": 8},
        "volume": {"model": deep, "tile": 16, "overlap": 6},
        "volume_exact": {"model": deep, "mode": "exact", "tile": 16},
        "around": {"model": planes, "tile": 64, "axes": ["z", "y", "x"]},
        "many": {"model": [flat, other], "tile": 64, "tta": "flips"},
        "masked": {"model": flat, "tile": 32},
    }


def directly(how: dict, image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    how, site = dict(how), Site.whole(SPEC)
    axes = how.pop("axes", ["z"])
    each = {f"a.{axis}": InferTiles(**how, axis=axis)(image, None, mask, site=site)["a"] for axis in axes}
    return InferMerge()(each, site=site)["a"] if len(axes) > 1 else each["a.z"]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("law")
    smooth = gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 1.5)
    image = np.clip(smooth / smooth.std() * 60 + 128, 0, 255).astype(np.uint8)
    image[:, :, 60:] = 0  # the empty resin, which the mask leaves out
    store(folder / "em.zarr", image, "image")
    how = steps(folder)
    bright = {"bright": {"op": "threshold", "image": "em", "value": 20}}
    network = {n: {"op": "infer", "image": "em", "device": "cpu", **({"mask": "bright"} if n == "masked" else {}), **h} for n, h in how.items()}
    recipe = {"vemray": 1, "name": "law", "inputs": {"em": {}}, "steps": {**bright, **network}, "outputs": list(network)}
    want = {n: directly(h, image, image >= 20 if n == "masked" else None) for n, h in how.items()}
    assert all(0 < a[..., :60].std() for a in want.values()) and not want["masked"][..., 60:].any() and want["exact"][..., 60:].any()
    return recipe, str(folder / "em.zarr"), want, folder


@pytest.mark.slow
@pytest.mark.parametrize("where", ["serial", "actors"])
def test_blocks_in_the_engine_equal_the_whole(case, where, request):
    recipe, em, want, folder = case
    if where == "actors":  # which take seconds to start, for each step anew
        want = {n: want[n] for n in ("exact", "blend", "volume", "masked")}
        recipe = {**recipe, "steps": {n: s for n, s in recipe["steps"].items() if n in want or n == "bright"}, "outputs": list(want)}
    runner = "serial" if where == "serial" else request.getfixturevalue("ray_runner")
    grids = set()
    for block, chunk in GRIDS:
        out = folder / f"{where}-{chunk[1]}"
        r = vemray.run(recipe, em, out, runner=runner, options=Options(block, chunk), report=False, listeners=(lambda e: None,))
        counts = {s["name"]: s["blocks"] for s in r.run["stages"]}
        assert counts["exact"] > 1 and counts["volume"] > 1, counts
        grids.add(tuple(counts.values()))
        for name, array in want.items():
            v = r.volumes[f"{name}.a"]
            np.testing.assert_array_equal(v.read(v.box), array, err_msg=f"{name}, chunks of {chunk}")
    assert len(grids) == len(GRIDS), "blocks of other shapes"
