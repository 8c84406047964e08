"""A network over a volume in blocks gives, bit for bit, what it gives over the whole; and bad models are refused by name."""

import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vemray.errors import ModelError, RecipeError  # noqa: E402
from vemray.geometry import Grid, Spacing  # noqa: E402
from vemray.models.files import load  # noqa: E402
from vemray.models.infer import InferTiles  # noqa: E402
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


def blockwise(op, image, spec, block):
    grid = Grid(image.shape, block)
    out = {}
    for i in np.random.default_rng(0).permutation(len(grid)):
        write = grid.write_box(int(i))
        read = op.read_box(write, image.shape, spec.spacing)
        made = op(image[read.slices], None, site=Site(image.shape, spec.spacing, read, write, (spec,)))
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
