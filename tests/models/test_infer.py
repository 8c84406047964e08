"""A network over a volume in blocks gives, bit for bit, what it gives over the whole; and bad models are refused by name."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from networks_for_tests import small_model  # noqa: E402

from vemray.errors import ModelError, RecipeError  # noqa: E402
from vemray.geometry import Grid, Spacing  # noqa: E402
from vemray.models import member  # noqa: E402
from vemray.models.files import Facts, Normalisation, load, save_native  # noqa: E402
from vemray.models.infer import Infer, InferMerge, InferTiles  # noqa: E402
from vemray.models.member import BATCH_BYTES, Member  # noqa: E402
from vemray.models.native import TorchModel  # noqa: E402
from vemray.models.networks import UNet  # noqa: E402
from vemray.models.tiles import exact_tiles  # noqa: E402
from vemray.ops.base import ArraySpec, Site  # noqa: E402

SHAPE, SPACING = (5, 203, 157), Spacing(8, 8, 8)


def make(path, dims=2, classes=3, voxel=(8.0, 8.0, 8.0)):
    torch.manual_seed(0)
    net = UNet(classes, base=4, depth=2, dims=dims)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    names = ["background", "a", "b", "c"][:classes]
    facts = Facts(
        classes=names, dims=dims, voxel_nm=voxel, stride=net.stride, halo=net.halo, normalisation=Normalisation(method="fixed", low=0, high=255)
    )
    save_native(path, net, facts)
    return net.eval()


def blockwise(op, image, spec, block, mask=None, histogram=None):
    grid = Grid(image.shape, block)
    out = {}
    for i in np.random.default_rng(0).permutation(len(grid)):
        write = grid.write_box(int(i))
        read = op.read_box(write, image.shape, spec.spacing)
        part = None if mask is None else mask[read.slices]
        made = op(image[read.slices], histogram, part, site=Site(image.shape, spec.spacing, read, write, (spec,)))
        for name, array in made.items():
            out.setdefault(name, np.full(image.shape, 77, array.dtype))[write.slices] = array
    return out


@pytest.mark.parametrize("how", [{}, {"tile": 64}, {"mode": "blend", "tile": 64, "overlap": 16}])
@pytest.mark.parametrize("block", [(2, 64, 64), (3, 50, 71), (1, 203, 30)])
def test_blocks_equal_the_whole_bit_for_bit(tmp_path, how, block):
    make(tmp_path / "m.vemray")
    image = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    spec = ArraySpec(SHAPE, "uint8", SPACING)
    op = InferTiles(str(tmp_path / "m.vemray"), **how)
    whole = op(image, None, site=Site.whole(spec))
    for name, array in blockwise(op, image, spec, block).items():
        np.testing.assert_array_equal(array, whole[name], err_msg=name)


@pytest.mark.parametrize("axis", "zyx")
@pytest.mark.parametrize("how", [{"tile": 64}, {"mode": "blend", "tile": 64, "overlap": 16}])
@pytest.mark.parametrize("masked", [False, True])
def test_planes_along_any_axis_are_the_turned_volume_s(tmp_path, axis, how, masked):
    make(tmp_path / "m.vemray")
    shape = (45, 83, 70)
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    mask = None
    if masked:
        mask = np.zeros(shape, bool)
        mask[10:20, 30:35, :9] = mask[44, 80, 69] = True
    order = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 1, 0)}[axis]
    turned = np.ascontiguousarray(image.transpose(order))
    want = InferTiles(str(tmp_path / "m.vemray"), **how)(turned, None, site=Site.whole(ArraySpec(turned.shape, "uint8", SPACING)))["a"]
    want = want.transpose(order) * (1 if mask is None else mask)
    spec = ArraySpec(shape, "uint8", SPACING)
    op = InferTiles(str(tmp_path / "m.vemray"), axis=axis, **how)
    np.testing.assert_array_equal(op(image, None, mask, site=Site.whole(spec))["a"], want)
    for block in [(20, 64, 64), (13, 50, 70)]:
        np.testing.assert_array_equal(blockwise(op, image, spec, block, mask)["a"], want)
    upright = InferTiles(str(tmp_path / "m.vemray"), **how).block_shape(turned.shape, (32, 32, 32), (16, 16, 16))
    assert op.block_shape(shape, (32, 32, 32), (16, 16, 16)) == tuple(upright[i] for i in order)


def test_tiles_outside_the_mask_are_not_computed(tmp_path, monkeypatch):
    make(tmp_path / "m.vemray")
    image, mask = np.ones((64, 128, 128), np.uint8), np.zeros((64, 128, 128), bool)
    mask[3, 5, 5] = True
    computed = []
    real = Member._begin
    monkeypatch.setattr(
        Member, "_begin", lambda self, m, i, c, tiles, site: computed.extend(t for t in tiles if t) or real(self, m, i, c, tiles, site)
    )
    InferTiles(str(tmp_path / "m.vemray"), tile=64)(image, None, mask, site=Site.whole(ArraySpec(image.shape, "uint8", SPACING)))
    assert [(z.core, y.core, x.core) for z, y, x in computed] == [((3, 4), (0, 64), (0, 64))]


def test_directions_are_merged(tmp_path):
    make(tmp_path / "m.vemray")
    steps = Infer(str(tmp_path / "m.vemray"), axes=["z", "y", "x"], classes=["a", "b"], device="cpu").expand({"image": "em", "mask": "where"})
    assert [s.name for s in steps] == [".along_z", ".along_y", ".along_x", ""]
    assert all(s.inputs == {"image": "em", "mask": "where"} for s in steps[:3])
    assert [s.op.axis for s in steps[:3]] == ["z", "y", "x"]
    assert steps[3].inputs["images.b.x"] == ".along_x.b"
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (4, 5, 6), dtype=np.uint8) for _ in range(3)]
    stack = np.stack(arrays).astype(float)
    site = Site.whole(ArraySpec((4, 5, 6), "uint8", SPACING, "probability"))
    for rule, of in (("mean", np.mean), ("median", np.median), ("min", np.min), ("max", np.max)):
        got = InferMerge(rule)({f"a.{k}": a for k, a in zip("zyx", arrays)}, site=site)["a"]
        np.testing.assert_array_equal(got, np.rint(of(stack, axis=0)).astype(np.uint8))
    with pytest.raises(RecipeError, match="axes"):
        Infer(str(tmp_path / "m.vemray"), axes=["z", "y"], show="classes", device="cpu").expand({"image": "em"})
    make(tmp_path / "d3.vemray", dims=3)
    with pytest.raises(RecipeError, match="3D"):
        InferTiles(str(tmp_path / "d3.vemray"), axis="y").check(ArraySpec(SHAPE, "uint8", SPACING))
    with pytest.raises(ModelError, match="along y"):  # planes of 8 nm pixels have 40 x 8 nm pixels along y
        InferTiles(str(tmp_path / "m.vemray"), axis="y").check(ArraySpec(SHAPE, "uint8", Spacing(40, 8, 8)))


def test_exact_tiles_equal_the_plane(tmp_path):
    net = make(tmp_path / "m.vemray")
    image = np.random.default_rng(1).integers(0, 255, SHAPE).astype(np.uint8)
    padded = np.pad(image, [(0, 0), (0, -SHAPE[1] % net.stride), (0, -SHAPE[2] % net.stride)], mode="reflect").astype(np.float32) / 255
    with torch.inference_mode():
        plane = net(torch.from_numpy(padded[:, None])).softmax(1)[:, 1, : SHAPE[1], : SHAPE[2]].numpy()
    tiled = InferTiles(str(tmp_path / "m.vemray"), tile=64)(image, None, site=Site.whole(ArraySpec(SHAPE, "uint8", SPACING)))["a"]
    assert np.abs(tiled.astype(int) - np.rint(plane * 255)).max() <= 1


@pytest.mark.parametrize("n", [1, 7, 64, 97, 203])
@pytest.mark.parametrize("edge, halo, stride, window", [(32, 24, 8, None), (64, 8, 4, None), (16, 16, 1, 48), (40, 0, 4, 40)])
def test_every_voxel_is_in_one_core_with_all_of_its_halo(n, edge, halo, stride, window):
    """What a halo adds at its far end is often less than a step of 1/255, so values alone would not show a short one."""
    tiles, end = exact_tiles(n, edge, halo, stride, window), -(-n // stride) * stride
    assert [v for t in tiles for v in range(*t.core)] == list(range(n))
    for t in tiles:
        (a, b), (start, stop) = t.window, t.core
        assert (b - a) % stride == 0 and (window is None or b - a == window)
        assert (a == 0 and window is None) or start - a >= halo
        assert (b == end and window is None) or b - stop >= halo


def test_exact_3d_tiles_equal_the_volume_and_blocks_the_whole(tmp_path):
    path = small_model(tmp_path / "m.vemray", dims=3, depth=1, gain=3)
    shape = (27, 41, 38)
    image = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    padded = np.pad(image, [(0, n % 2) for n in shape], mode="reflect").astype(np.float32) / 255
    volume = load(path).predict(padded[None, None])[0, 1, : shape[0], : shape[1], : shape[2]]
    spec = ArraySpec(shape, "uint8", SPACING)
    for how in ({"mode": "exact", "tile": 12}, {"tile": 16, "overlap": 6}):
        op = InferTiles(path, **how)
        got = op(image, None, site=Site.whole(spec))["a"]
        if "mode" in how:
            assert got.std() > 5 and np.abs(got.astype(int) - np.rint(volume * 255)).max() <= 1
        for block in [(12, 24, 38), (7, 41, 20), (27, 13, 11)]:
            np.testing.assert_array_equal(blockwise(op, image, spec, block)["a"], got)


@pytest.mark.parametrize("dims", [2, 3])
def test_blended_tiles_are_a_weighted_mean(tmp_path, dims):
    """Held against the plain sum over all windows: one that is left out, or counted twice, would show. Weights rise over the overlap from each edge that
    has a neighbour."""
    path, tile, overlap = small_model(tmp_path / "m.vemray", dims=dims, depth=1, gain=3), 16, 6
    shape = (3, 43, 37) if dims == 2 else (18, 31, 22)
    image = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    padded = np.pad(image, [(0, n % 2 * (dims == 3 or i > 0)) for i, n in enumerate(shape)], mode="reflect").astype(np.float32) / 255
    starts = [[*range(0, n + n % 2 - tile, tile - overlap), n + n % 2 - tile] for n in shape]
    network = load(path)
    sums, weights = np.zeros(shape), np.zeros(shape)

    def weight(a, n):
        x = np.arange(a, min(a + tile, n)) + 0.5
        rising = (x - a) / overlap if a else np.ones_like(x)
        falling = (min(a + tile, n) - x) / overlap if a + tile < n else np.ones_like(x)
        return np.minimum(1, np.minimum(rising, falling))

    for z in starts[0] if dims == 3 else range(shape[0]):
        for y in starts[1]:
            for x in starts[2]:
                window = (slice(z, z + (tile if dims == 3 else 1)), slice(y, y + tile), slice(x, x + tile))
                p = network.predict(padded[window][(None,) * 2 if dims == 3 else slice(None)].reshape(1, 1, *[tile] * dims))[0, 1]
                w = weight(y, shape[1])[:, None] * weight(x, shape[2])
                w = weight(z, shape[0])[:, None, None] * w if dims == 3 else w[None]
                at = tuple(slice(s.start, s.start + n) for s, n in zip(window, w.shape))
                sums[at] += w * p.reshape((-1, tile, tile))[tuple(slice(n) for n in w.shape)]
                weights[at] += w
    assert weights.min() > 0
    got = InferTiles(path, mode="blend", tile=tile, overlap=overlap)(image, None, site=Site.whole(ArraySpec(shape, "uint8", SPACING)))["a"]
    assert got.std() > 5 and np.abs(got - sums / weights * 255).max() <= 0.51


def test_a_finer_volume_is_brought_to_the_model_s_voxels_and_back(tmp_path):
    """4 nm data and a model of 8 nm: refused with the way out, which then gives what the model gives at 8 nm."""
    import vemray
    from vemray.store.volume import create

    path, shape = small_model(tmp_path / "m.vemray", depth=1, gain=3), (20, 48, 36)
    image = np.random.default_rng(2).integers(0, 255, shape).astype(np.uint8)
    fine = create(str(tmp_path / "em.zarr"), shape, "uint8", Spacing(4, 4, 4), kind="image", shard=(32, 64, 64), chunk=(32, 32, 32))
    fine.write(fine.box, image)
    how = {"op": "infer", "model": path, "device": "cpu", "classes": ["a"]}
    recipe = {"vemray": 1, "name": "n", "inputs": {"em": {}}, "steps": {"p": {**how, "image": "em"}}}
    quiet = {"runner": "serial", "report": False, "listeners": (lambda e: None,)}
    with pytest.raises(ModelError, match=r"voxels of 8 x 8 x 8 nm.*volume has 4 x 4 x 4 nm.*'downsample'.*'upsample'"):
        vemray.run(recipe, str(tmp_path / "em.zarr"), tmp_path / "no", **quiet)
    steps = {
        "half": {"op": "downsample", "image": "em", "factor": [2, 2, 2]},
        "coarse": {**how, "image": "half"},
        "p": {"op": "upsample", "image": "coarse.a", "like": "em"},
    }
    r = vemray.run({**recipe, "steps": steps, "outputs": ["half", "coarse", "p"]}, str(tmp_path / "em.zarr"), tmp_path / "out", **quiet)
    half, coarse, p = (r.volumes[n].read(r.volumes[n].box) for n in ("half", "coarse.a", "p"))
    assert r.volumes["p"].spacing.zyx == (4, 4, 4) and p.shape == shape and coarse.std() > 5
    direct = InferTiles(path)(half, None, site=Site.whole(ArraySpec(half.shape, "uint8", SPACING)))["a"]
    np.testing.assert_array_equal(coarse, direct)
    means = p.reshape(10, 2, 24, 2, 18, 2).mean((1, 3, 5))
    assert np.corrcoef(means.ravel(), coarse.ravel())[0, 1] > 0.8


def test_nothing_reaches_beyond_the_halo():
    torch.manual_seed(1)
    net = UNet(2, base=8, depth=3).eval()
    for p in range(100, 108):
        x = torch.randn(1, 1, 208, 208, requires_grad=True)
        net(x)[0, :, p, p].sum().backward()
        at = np.nonzero(x.grad[0, 0].numpy())
        assert max(p - at[0].min(), at[0].max() - p) <= net.halo


def test_what_does_not_fit_is_refused(tmp_path):
    path = str(tmp_path / "m.vemray")
    make(path)
    with pytest.raises((ModelError, RecipeError), match="8 x 8 x 8|8, 8, 8"):
        InferTiles(path).check(ArraySpec(SHAPE, "uint8", Spacing(32, 32, 32)))
    with pytest.raises(RecipeError, match="Did you mean"):
        InferTiles(path, classes=["aa"]).check(ArraySpec(SHAPE, "uint8", SPACING))
    with pytest.raises(ModelError, match="no model"):
        load(tmp_path / "none.vemray")
    (tmp_path / "other.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="bin"):
        load(tmp_path / "other.bin")
    (tmp_path / "cut.vemray").write_bytes((tmp_path / "m.vemray").read_bytes()[:200])
    with pytest.raises(ModelError, match="truncated|cannot be read"):
        load(tmp_path / "cut.vemray")
    with zipfile.ZipFile(tmp_path / "empty.vemray", "w") as z:
        z.writestr("../escape", "x")
    with pytest.raises(ModelError):
        load(tmp_path / "empty.vemray")
    assert not (tmp_path.parent / "escape").exists()


@pytest.mark.parametrize("how", [{}, {"mode": "blend", "overlap": 8}, {"show": "classes"}, {"tta": "flips"}, {"axis": "y"}])
def test_what_is_no_number_is_an_error_and_never_a_zero(tmp_path, how):
    path, image = small_model(tmp_path / "m.vemray"), np.full((60, 48, 56), 9, np.float32)
    spec, mask = ArraySpec(image.shape, "float32", SPACING), np.ones(image.shape, bool)
    op = InferTiles(path, tile=32, **how)
    want = op(image, None, mask, site=Site.whole(spec))
    image[3, 5, 7] = np.nan
    with pytest.raises(ModelError, match="m.vemray.*NaN or infinity: the image"):
        op(image, None, site=Site.whole(spec))
    # only what is asked for counts: NaN spoils the volume beyond the specimen, as far as the network sees
    mask[:45, :45, :45] = False
    got = op(image, None, mask, site=Site.whole(spec))
    for name, array in got.items():
        np.testing.assert_array_equal(array, want[name] * mask)
    broken = make(tmp_path / "nan.vemray")
    broken.head.weight.data[1, 0] = np.nan
    save_native(tmp_path / "nan.vemray", broken, load(tmp_path / "nan.vemray").facts)
    with pytest.raises(ModelError, match="nan.vemray.*NaN or infinity: look at its weights"):
        InferTiles(str(tmp_path / "nan.vemray"), **how)(
            np.ones((8, 40, 40), np.uint8), None, site=Site.whole(ArraySpec((8, 40, 40), "uint8", SPACING))
        )


def test_what_is_no_probability_is_refused(tmp_path):
    """Scores whose softmax was forgotten, or the number of the likeliest class."""
    path = make(tmp_path / "m.vemray") and str(tmp_path / "m.vemray")
    native = load(path)
    native.module.head.weight.data *= 20
    native.facts = native.facts.model_copy(update={"activation": "none"})
    from vemray.models.files import save_onnx

    save_onnx(tmp_path / "scores.onnx", native)
    image = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    with pytest.raises(ModelError, match="scores.onnx.*values from -.* no probabilities.*softmax or sigmoid"):
        InferTiles(str(tmp_path / "scores.onnx"))(image, None, site=Site.whole(ArraySpec(SHAPE, "uint8", SPACING)))
    import onnx

    whole = onnx.load(tmp_path / "scores.onnx")
    whole.graph.node.append(onnx.helper.make_node("ArgMax", [whole.graph.output[0].name], ["likeliest"], axis=1, keepdims=1))
    whole.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("likeliest", onnx.TensorProto.INT64, None))
    (tmp_path / "numbers.onnx").write_bytes(whole.SerializeToString())
    with pytest.raises(ModelError, match=r"numbers.onnx.*whole numbers \(int64\)"):
        load(tmp_path / "numbers.onnx").predict(np.zeros((1, 1, 32, 32), np.float32))


def test_the_likeliest_class_is_of_all(tmp_path):
    make(tmp_path / "m.vemray")
    for more in ({"classes": ["a"]}, {"groups": {"ab": ["a", "b"]}}):
        with pytest.raises(RecipeError, match=f"leave '{next(iter(more))}' out"):
            InferTiles(str(tmp_path / "m.vemray"), show="classes", **more).check(ArraySpec(SHAPE, "uint8", SPACING))


@pytest.mark.parametrize("precision, most", [("bf16", 0.05), ("fp16", 0.01)])
def test_lower_precision_stays_near_and_blocks_equal_the_whole(tmp_path, precision, most):
    path, image = small_model(tmp_path / "m.vemray", gain=3), np.random.default_rng(0).integers(0, 255, (3, 61, 50)).astype(np.uint8)
    spec = ArraySpec(image.shape, "uint8", SPACING)
    op, full = InferTiles(path, tile=32, precision=precision), InferTiles(path, tile=32)
    op.check(spec)
    got, want = (o(image, None, site=Site.whole(spec))["a"] for o in (op, full))
    assert 0 < np.abs(got.astype(int) - want).max() <= 255 * most
    np.testing.assert_array_equal(blockwise(op, image, spec, (2, 32, 32))["a"], got)
    assert op.facts()["precision"] == precision and full.facts()["precision"] == "float32"


def test_precision_that_cannot_be(tmp_path):
    from vemray.models.files import save_onnx

    path = small_model(tmp_path / "m.vemray")
    save_onnx(tmp_path / "m.onnx", load(path))
    with pytest.raises(RecipeError, match="m.onnx runs in float32 only"):
        InferTiles(str(tmp_path / "m.onnx"), precision="bf16").check(ArraySpec(SHAPE, "uint8", SPACING))
    with pytest.raises(ModelError, match="m.onnx runs in float32 only"):
        load(tmp_path / "m.onnx", precision="fp16")
    loud = small_model(tmp_path / "loud.vemray", gain=100)
    with pytest.raises(ModelError, match="loud.vemray.*too large for fp16.*bf16"):
        load(loud, precision="fp16").predict(np.ones((1, 1, 32, 32), np.float32))


def test_the_batch_follows_from_the_model_and_the_tile(tmp_path):
    """Never from what memory is free: the same recipe gives the same bits on any machine of a kind."""
    small, wide = (InferTiles(small_model(tmp_path / f"{b}.vemray", base=b), tile=128).members[0] for b in (4, 64))
    shape = (64, 128, 128)
    for m in (small, wide):
        assert m.places(shape) * m.window_voxels(shape) * m.about.memory <= BATCH_BYTES["cpu"]
    assert small.places(shape) > 4 * wide.places(shape) >= 4


def test_a_model_that_computes_while_the_next_batch_is_cut_gives_the_same(tmp_path, monkeypatch):
    """As on a GPU: results are taken one batch later than begun, in order."""
    path, image = small_model(tmp_path / "m.vemray", gain=3), np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    spec = ArraySpec(SHAPE, "uint8", SPACING)
    want = InferTiles(path, tile=64)(image, None, site=Site.whole(spec))
    order, real = [], TorchModel.begin

    def begin(self, batch):
        order.append("begin")
        end = real(self, batch)
        return lambda: (order.append("end"), end())[1]

    monkeypatch.setattr(TorchModel, "begin", begin)
    monkeypatch.setitem(member.AHEAD, "cpu", 1)
    for name, array in InferTiles(path, tile=64)(image, None, site=Site.whole(spec)).items():
        np.testing.assert_array_equal(array, want[name])
    assert order[:3] == ["begin", "begin", "end"] and order.count("begin") == order.count("end")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(
    "bases, edge, how", [([16], 512, {}), ([48], 512, {}), ([16], 256, {"tta": "turns"}), ([8, 16, 24], 256, {}), ([16], 512, {"precision": "bf16"})]
)
def test_the_declared_memory_is_enough(tmp_path, bases, edge, how):
    """Loading the networks and computing a block, from the moment that torch is there."""
    paths = [small_model(tmp_path / f"{b}.vemray", base=b, depth=3) for b in bases]
    code = f"""
import numpy as np, torch
from vemray.geometry import Spacing
from vemray.models.infer import InferTiles
from vemray.ops.base import ArraySpec, Site
from vemray.run.threads import keep_freed_memory
keep_freed_memory()
now = lambda of: int(next(line for line in open("/proc/self/status") if line.startswith(of)).split()[1]) * 1024
spec = ArraySpec((8, {edge}, {edge}), "uint8", Spacing(8, 8, 8))
image = np.random.default_rng(0).integers(0, 255, spec.shape).astype(np.uint8)
op = InferTiles({paths!r}, **{how!r})
op.check(spec)
before = now("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
op(image, None, site=Site.whole(spec))
print(now("VmHWM") - before, op.memory(spec) * image.size + op.fixed_memory())
"""
    took, declared = map(float, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert 0.25 * declared < took <= declared
