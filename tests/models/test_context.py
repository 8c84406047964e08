"""2.5D: a 2D network that sees the planes beside each as channels gives, in blocks and along any axis, what it gives over the whole."""

import numpy as np
import pytest
from networks_for_tests import small_model
from scipy.ndimage import gaussian_filter
from test_infer import blockwise

from vemray.errors import ModelError, RecipeError
from vemray.geometry import Box, Spacing
from vemray.models.files import load, load_facts
from vemray.models.infer import InferTiles
from vemray.ops.base import ArraySpec, Site

SPACING = Spacing(8, 8, 8)
HOW = [{"tile": 32}, {"mode": "blend", "tile": 32, "overlap": 8}]


def grey(*shape):
    """Structure of several voxels, which a network of random weights answers to more than to noise."""
    smooth = gaussian_filter(np.random.default_rng(0).standard_normal(shape), 1.5)
    return np.clip(smooth / smooth.std() * 60 + 128, 0, 255).astype(np.uint8)


def model(folder, context, **more):
    return small_model(folder / f"m{context}.vemray", channels=2 * context + 1, context=context, gain=3, **more)


def whole(op, image):
    return op(image, None, site=Site.whole(ArraySpec(image.shape, "uint8", SPACING)))


def reflected(z, n):
    """The plane that is seen at z, by bouncing off the ends."""
    if n == 1:
        return 0
    while not 0 <= z < n:
        z = -z if z < 0 else 2 * (n - 1) - z
    return z


@pytest.mark.parametrize("planes, context", [(1, 1), (2, 1), (2, 3), (6, 2)])
def test_channels_are_the_planes_from_before_to_after(tmp_path, planes, context):
    path = model(tmp_path, context)
    image = grey(planes, 40, 48)
    seen = np.stack([[image[reflected(z + i, planes)] for i in range(-context, context + 1)] for z in range(planes)])
    want = load(path).predict(seen.astype(np.float32) / 255)
    got = whole(InferTiles(path), image)
    assert want.std() > 0.02
    for i, name in enumerate(("a", "b"), 1):
        assert np.abs(got[name] - want[:, i] * 255).max() <= 0.51, name
    if planes > 2:
        backwards = load(path).predict(seen[:, ::-1].astype(np.float32) / 255)
        assert np.abs(backwards - want).max() > 0.1, "the order of the planes matters to this network, so a wrong one would show"


@pytest.mark.parametrize("axis", "zyx")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_equal_the_whole_along_any_axis(tmp_path, axis, how, masked):
    path, shape = model(tmp_path, 2), (21, 43, 38)
    image = grey(*shape)
    mask = None
    if masked:
        mask = np.zeros(shape, bool)
        mask[3:9, 30:35, :9] = mask[20, 40, 37] = True
    order = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 1, 0)}[axis]
    want = whole(InferTiles(path, **how), np.ascontiguousarray(image.transpose(order)))["a"].transpose(order) * (1 if mask is None else mask)
    spec, op = ArraySpec(shape, "uint8", SPACING), InferTiles(path, axis=axis, **how)
    for block in [(20, 32, 32), (7, 25, 38), (1, 43, 5)]:
        np.testing.assert_array_equal(blockwise(op, image, spec, block, mask)["a"], want)


def test_what_a_block_reads(tmp_path):
    op = InferTiles(model(tmp_path, 2), tile=32)
    shape, halo = (50, 96, 96), op.about.halos[1]
    read = op.read_box(Box((10, 32, 32), (14, 64, 64)), shape, SPACING)
    assert read == Box((8, 32 - halo, 32 - halo), (16, 64 + halo, 64 + halo)).clip(shape)
    assert op.read_box(Box((0, 0, 0), (1, 96, 96)), shape, SPACING) == Box((0, 0, 0), (3, 96, 96))
    assert op.read_box(Box((49, 0, 0), (50, 96, 96)), shape, SPACING) == Box((47, 0, 0), (50, 96, 96))


def test_what_does_not_fit_is_refused(tmp_path):
    for wrong in ({"channels": 3, "context": 2}, {"channels": 1, "context": 1}, {"channels": 3, "context": 1, "dims": 3}):
        with pytest.raises(ValueError, match="context"):
            small_model(tmp_path / "m.vemray", **wrong)
    spec = ArraySpec((9, 40, 40), "uint8", SPACING)
    colour = small_model(tmp_path / "colour.vemray", channels=3)
    with pytest.raises(ModelError, match="3 channels.*context: 1"):
        InferTiles(colour).check(spec)
    path = model(tmp_path, 1)
    InferTiles(path).check(spec)
    assert load_facts(path).context == 1
    with pytest.raises(ModelError, match="8 x 8 x 8"):  # how far its planes lie apart counts, unlike for single planes
        InferTiles(path).check(ArraySpec((9, 40, 40), "uint8", Spacing(24, 8, 8)))
    InferTiles(small_model(tmp_path / "single.vemray")).check(ArraySpec((9, 40, 40), "uint8", Spacing(24, 8, 8)))
    import json
    import zipfile

    with zipfile.ZipFile(path) as z:
        parts = {n: z.read(n) for n in z.namelist()}
    parts["model.json"] = json.dumps({**json.loads(parts["model.json"]), "context": 2}).encode()
    with zipfile.ZipFile(tmp_path / "bent.vemray", "w") as z:
        for n, data in parts.items():
            z.writestr(n, data)
    with pytest.raises((ModelError, RecipeError), match="bent.vemray.*context 2 makes 5 planes.*channels is 3"):
        load(tmp_path / "bent.vemray")
