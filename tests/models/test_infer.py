"""A network over a volume in blocks gives, bit for bit, what it gives over the whole; and bad models are refused by name."""

import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vemray.errors import ModelError, RecipeError  # noqa: E402
from vemray.geometry import Grid, Spacing  # noqa: E402
from vemray.models.files import load  # noqa: E402
from vemray.models.infer import Infer, InferMerge, InferTiles  # noqa: E402
from vemray.models.networks import UNet  # noqa: E402
from vemray.ops.base import ArraySpec, Site  # noqa: E402
from vemray.training.train import Facts, Normalisation, save_native  # noqa: E402

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
    real = InferTiles._predict
    monkeypatch.setattr(
        InferTiles, "_predict", lambda self, m, i, c, tiles, site: computed.extend(t for t in tiles if t) or real(self, m, i, c, tiles, site)
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
