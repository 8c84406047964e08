"""MONAI's networks as native models: what they see is measured right, those that see all of a tile say so, and a file can name nothing else."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from test_infer import blockwise  # noqa: E402

from vemray.errors import MissingExtra, ModelError, RecipeError  # noqa: E402
from vemray.geometry import Spacing  # noqa: E402
from vemray.models.files import Facts, Normalisation, load, load_facts, save_native  # noqa: E402
from vemray.models.infer import InferTiles  # noqa: E402
from vemray.models.networks import network  # noqa: E402
from vemray.ops.base import ArraySpec, Site  # noqa: E402

UNET = {"channels": [4, 8, 8], "strides": [2, 2], "norm": "batch"}
DYN = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8], "norm_name": "batch"}
#: of which tiles can be joined exactly
LOCAL = {
    "unet": ("monai.UNet", UNET),
    "residual": ("monai.UNet", {**UNET, "num_res_units": 2, "act": ["leakyrelu", {"negative_slope": 0.2}]}),
    "basic": ("monai.BasicUNet", {"features": [4, 4, 4, 4, 4, 4], "norm": "batch"}),
    "dyn": ("monai.DynUNet", DYN),
    "segres": ("monai.SegResNet", {"init_filters": 4, "blocks_down": [1, 1, 1], "blocks_up": [1, 1], "norm": ["batch", {"momentum": 0.2}]}),
}
#: of which they cannot
GLOBAL = {
    "instance": ("monai.UNet", {**UNET, "norm": "instance"}),
    "usual": ("monai.BasicUNet", {"features": [4, 4, 4, 4, 4, 4]}),
    "group": ("monai.SegResNet", {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}),
    "attention": ("monai.AttentionUnet", {"channels": [4, 8, 8], "strides": [2, 2]}),
    "fitted to the ends of the tile": ("monai.BasicUNet", {"features": [4, 4, 4, 4, 4, 4], "norm": "batch", "upsample": "nontrainable"}),
}
BOTH = {**LOCAL, **GLOBAL}


def made(which, dims=2, classes=3):
    name, parameters = BOTH[which] if isinstance(which, str) else which
    torch.manual_seed(0)
    net = network(name, classes=classes, dims=dims, parameters=parameters)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.2, 0.5)
    return net.eval()


def saved(path, net):
    facts = Facts(
        classes=["background", "a", "b"][: net.config["classes"]], dims=net.config["dims"], voxel_nm=(8, 8, 8), stride=net.stride, halo=net.halo,
        normalisation=Normalisation(method="fixed", low=0, high=255),
    )  # fmt: skip
    save_native(path, net, facts)
    return str(path)


def grey(*shape):
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("which", BOTH)
def test_there_and_back(tmp_path, which, dims):
    net = made(which, dims)
    path = saved(tmp_path / "m.vemray", net)
    again, facts = load(path), load_facts(path)
    assert (facts.halo is None) == (which in GLOBAL)
    assert json.loads(json.dumps(facts.network)) == {"name": net.name, **net.config}
    x = torch.randn((2, 1, *[2 * net.stride] * dims))
    with torch.inference_mode():
        want = net(x).softmax(1).numpy()
    assert want.std() > 0.005
    np.testing.assert_allclose(again.predict(x.numpy()), want, atol=1e-5)
    before = (tmp_path / "m.vemray").read_bytes()
    save_native(tmp_path / "m.vemray", net, facts)
    assert (tmp_path / "m.vemray").read_bytes() == before


@pytest.mark.parametrize("which", LOCAL)
def test_the_halo_is_what_gradients_show(which):
    """Nothing beyond it reaches a voxel; a stride less would not do."""
    net = made(which)
    n = 2 * net.halo + 8 * net.stride
    felt = 0
    for p in range(n // 2, n // 2 + net.stride):
        x = torch.randn(1, 1, n, n, requires_grad=True)
        net(x)[0, :, p, p].sum().backward()
        at = np.nonzero(x.grad[0, 0].numpy())
        felt = max(felt, *(p - a.min() for a in at), *(a.max() - p for a in at))
    assert net.halo - net.stride < felt <= net.halo


def test_halo_and_stride_of_each_axis():
    net = network(
        "monai.DynUNet", classes=2, dims=3,
        parameters={**DYN, "kernel_size": [[1, 3, 3], 3, 3], "strides": [1, [1, 2, 2], 2], "upsample_kernel_size": [[1, 2, 2], 2]},
    )  # fmt: skip
    assert net.stride == [2, 4, 4]
    assert net.halo[0] < net.halo[1] == net.halo[2]


@pytest.mark.parametrize("which", LOCAL)
def test_exact_tiles_equal_the_plane_and_blocks_the_whole(tmp_path, which):
    net = made(which)
    path, shape = saved(tmp_path / "m.vemray", net), (2, 6 * net.stride + 5, 5 * net.stride - 3)
    image = grey(*shape)
    spec = ArraySpec(shape, "uint8", Spacing(8, 8, 8))
    padded = np.pad(image, [(0, 0), *[(0, -n % net.stride) for n in shape[1:]]], mode="reflect")
    with torch.inference_mode():
        plane = net(torch.from_numpy(padded[:, None].astype(np.float32) / 255)).softmax(1)[:, 1, : shape[1], : shape[2]].numpy()
    op = InferTiles(path, tile=2 * net.stride)
    op.check(spec)
    tiled = op(image, None, site=Site.whole(spec))["a"]
    assert np.abs(tiled - plane * 255).max() <= 0.51
    np.testing.assert_array_equal(blockwise(op, image, spec, (1, 3 * net.stride, 2 * net.stride + 1))["a"], tiled)


@pytest.mark.parametrize("which", GLOBAL)
def test_what_sees_all_of_its_tile_is_blended(tmp_path, which):
    path, spec = saved(tmp_path / "m.vemray", made(which)), ArraySpec((2, 83, 70), "uint8", Spacing(8, 8, 8))
    with pytest.raises(RecipeError, match="m.vemray sees all of its tile.*blend"):
        InferTiles(path, mode="exact").check(spec)
    op, image = InferTiles(path, tile=48, overlap=16), grey(*spec.shape)
    op.check(spec)
    whole = op(image, None, site=Site.whole(spec))["a"]
    np.testing.assert_array_equal(blockwise(op, image, spec, (1, 64, 32))["a"], whole)


def rewritten(path, change):
    with zipfile.ZipFile(path) as z:
        parts = {n: z.read(n) for n in z.namelist()}
    facts = json.loads(parts["model.json"])
    change(facts)
    parts["model.json"] = json.dumps(facts).encode()
    with zipfile.ZipFile(path, "w") as z:
        for n, data in parts.items():
            z.writestr(n, data)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda f: f["network"].update(name="monai.UNETR"), "no network 'monai.UNETR'.*monai.UNet"),
        (lambda f: f["network"].update(name="os.system"), "no network 'os.system'"),
        (lambda f: f["network"]["parameters"].update(norm=["localresponse", {}]), "norm is one of batch, instance, group"),
        (lambda f: f["network"]["parameters"].update(act="softmax"), "act is one of"),
        (lambda f: f["network"]["parameters"].update(chanels=[4]), "no parameter 'chanels'.*channels"),
        (lambda f: f["network"]["parameters"].update(channels=[4, 10**6, 8]), "channels cannot be"),
        (lambda f: f["network"]["parameters"].update(channels=[4] * 99), "channels cannot be"),
        (lambda f: f["network"]["parameters"].update(strides=[2]), "cannot be built"),
        (lambda f: f["network"]["parameters"].update(channels=[4, 8, 16]), "weights and network do not fit"),
        (lambda f: f["network"]["parameters"].update(norm="instance"), "halo .* do not fit the network"),
        (lambda f: f.update(stride=8, halo=16), "stride 8 and halo"),
    ],
)
def test_files_that_ask_for_something_else_are_refused(tmp_path, change, said):
    path = saved(tmp_path / "m.vemray", made("unet"))
    rewritten(path, change)
    with pytest.raises(ModelError, match=said):
        load(path)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("dims, which", [(2, "basic"), (3, "dyn"), (2, "group")])
def test_memory_that_is_declared_is_enough(tmp_path, dims, which):
    name, parameters = BOTH[which]
    wide = {"features": [32, 32, 64, 64, 64, 32], "filters": [32, 64, 64], "init_filters": 32}
    net = made((name, {k: wide.get(k, v) for k, v in parameters.items()}), dims)
    path = saved(tmp_path / "m.vemray", net)
    edge = {2: 1024, 3: 96}[dims]
    code = f"""
import numpy as np
from vemray.models.files import load
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
m = load({path!r})
x = np.zeros((1, 1, *[{edge}] * {dims}), np.float32)
m.predict(x[:, :, :32, :32, :32] if {dims} == 3 else x[:, :, :64, :64])
open("/proc/self/clear_refs", "w").write("5")
before = peak()
m.predict(x)
print((peak() - before) / x.size)
"""
    took = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.3 * net.memory < took <= net.memory


def test_without_monai(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    with pytest.raises(MissingExtra, match=r"monai.*vemray\[train\]"):
        network("monai.UNet", classes=2, parameters=UNET)
