"""Several models as one, and mirrored tiles: the means are taken in floats, and blocks still equal the whole bit for bit."""

import functools

import numpy as np
import pytest
import yaml
from networks_for_tests import small_model
from scipy.ndimage import gaussian_filter
from test_infer import blockwise

from vemray.errors import ModelError, RecipeError
from vemray.geometry import Spacing
from vemray.models.files import load
from vemray.models.infer import Infer, InferTiles
from vemray.ops.base import ArraySpec, Site

SPACING = Spacing(8, 8, 8)
sharp = functools.partial(small_model, gain=3)  # probabilities from 0 to 1


def grey(*shape):
    """Structure of several voxels, which a network of random weights answers to more than to noise."""
    smooth = gaussian_filter(np.random.default_rng(0).standard_normal(shape), 1.5)
    return np.clip(smooth / smooth.std() * 60 + 128, 0, 255).astype(np.uint8)


def whole(op, image):
    spec = ArraySpec(image.shape, "uint8", SPACING)
    op.check(spec)
    return op(image, None, site=Site.whole(spec))


def bare(path, image):
    """(classes, Z, Y, X) of whole planes."""
    return load(path).predict(image[:, None].astype(np.float32) / 255).swapaxes(0, 1)


def rounded_once(got, want):
    """A mean of values that were rounded before would be off by up to one."""
    assert want.std() > 0.01
    assert np.abs(got - want * 255).max() <= 0.51


# ensembles ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
def test_an_ensemble_is_the_mean_of_its_models(tmp_path, n):
    paths = [sharp(tmp_path / f"{i}.vemray", seed=i, base=4 + i) for i in range(n)]
    image = grey(3, 40, 48)
    each = [bare(p, image) for p in paths]
    assert np.abs(each[0] - each[1]).max() > 0.1
    mean = np.mean(each, axis=0)
    got = whole(InferTiles(paths, groups={"both": ["a", "b"]}), image)
    assert list(got) == ["a", "b", "both"]
    rounded_once(got["a"], mean[1])
    rounded_once(got["both"], mean[1] + mean[2])
    classes = whole(InferTiles(paths, show="classes"), image)["classes"]
    top = np.sort(mean, axis=0)
    clear = top[-1] - top[-2] > 1e-4
    np.testing.assert_array_equal(classes[clear], mean.argmax(0)[clear])


@pytest.mark.parametrize("how", [{"tile": 32}, {"mode": "blend", "tile": 32, "overlap": 8}, {"tta": "flips", "tile": 32}, {"show": "classes"}])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_unlike_models_equal_the_whole(tmp_path, how, masked):
    """Each on its own grid: other strides and halos, one that sees neighbouring planes, one in 3D."""
    paths = [
        sharp(tmp_path / "flat.vemray"), sharp(tmp_path / "deep.vemray", depth=3, seed=1),
        sharp(tmp_path / "planes.vemray", channels=3, context=1, seed=2), sharp(tmp_path / "d3.vemray", dims=3, depth=1, seed=3),
    ]  # fmt: skip
    shape = (13, 61, 50)
    image, spec = grey(*shape), ArraySpec(shape, "uint8", SPACING)
    mask = None
    if masked:
        mask = np.zeros(shape, bool)
        mask[3:9, 30:35, :9] = mask[12, 60, 49] = True
    op = InferTiles(paths, **how)
    want = whole(op, image)
    for block in [(8, 32, 32), (5, 61, 17)]:
        for name, array in blockwise(op, image, spec, block, mask).items():
            np.testing.assert_array_equal(array, want[name] * (1 if mask is None else mask))


def test_an_ensemble_along_several_axes(tmp_path):
    paths = [sharp(tmp_path / f"{i}.vemray", seed=i) for i in range(2)]
    steps = Infer(paths, axes=["z", "y"], rule="max", device="cpu", tta="flips").expand({"image": "em"})
    assert [s.name for s in steps] == [".along_z", ".along_y", ""]
    assert all(s.op.model == paths and s.op.tta == "flips" for s in steps[:2]) and steps[2].op.rule == "max"


def test_models_that_do_not_fit_each_other_are_named(tmp_path):
    spec = ArraySpec((4, 40, 40), "uint8", SPACING)
    first = sharp(tmp_path / "first.vemray")
    for name, how, said in (
        ("classes", {"classes": ("background", "b", "a")}, "first.vemray knows background, a, b, but .*classes.vemray background, b, a"),
        ("voxels", {"voxel_nm": (8.0, 8.0, 8.2)}, "first.vemray was on 8 x 8 x 8 nm, but .*voxels.vemray on 8 x 8 x 8.2 nm"),
        ("image", {"gives": "image", "activation": "none"}, "image.vemray gives an image"),
    ):
        other = sharp(tmp_path / f"{name}.vemray", **how)
        with pytest.raises((ModelError, RecipeError), match=said):
            InferTiles([first, other]).check(spec)
    with pytest.raises(ModelError, match="no model"):
        InferTiles([first, str(tmp_path / "none.vemray")]).check(spec)
    with pytest.raises(RecipeError, match="needs a model"):
        Infer([]).expand({"image": "em"})


def test_a_recipe_names_files_beside_it_and_knows_them_by_content(tmp_path):
    from vemray.plan.graph import resolve
    from vemray.plan.recipe import load_recipe

    def key(folder, *models):
        (folder / "recipe.yaml").write_text(
            yaml.safe_dump(
                {"vemray": 1, "inputs": {"em": {}}, "steps": {"p": {"op": "infer", "image": "em", "model": list(models), "device": "cpu"}}}
            )
        )
        graph = resolve(load_recipe(folder / "recipe.yaml"), {"em": source})
        return next(n.key for n in graph.nodes.values() if n.op.name == "infer_tiles")

    from vemray.run.api import source as of
    from vemray.store.volume import create

    volume = create(str(tmp_path / "em.zarr"), (4, 40, 40), "uint8", SPACING, kind="image", shard=(32, 64, 64), chunk=(32, 32, 32))
    source = of("em", volume.url)
    keys = []
    for place in ("here", "there"):
        folder = tmp_path / place
        for i in range(3):
            sharp(folder / f"{i}.vemray", seed=i)
        keys.append(key(folder, "0.vemray", "1.vemray"))
    assert keys[0] == keys[1], "a moved model is the same model"
    assert key(tmp_path / "here", "0.vemray", "2.vemray") != keys[0]


# test-time augmentation --------------------------------------------------------------------------------------------------------

FLIPS = [lambda x: x, lambda x: x[..., ::-1], lambda x: x[..., ::-1, :], lambda x: x[..., ::-1, ::-1]]


@pytest.mark.parametrize("tta", ["flips", "turns"])
def test_what_the_views_are(tmp_path, tta):
    path, image = sharp(tmp_path / "m.vemray"), grey(3, 40, 48)
    seen = [f(bare(path, f(image))) for f in FLIPS]
    if tta == "turns":  # there: flip and exchange y and x; back: exchange and flip
        seen += [f(bare(path, f(image).swapaxes(1, 2)).swapaxes(2, 3)) for f in FLIPS]
    assert np.abs(seen[0] - seen[-1]).max() > 0.1
    got = whole(InferTiles(path, tta=tta), image)
    rounded_once(got["a"], np.mean(seen, axis=0)[1])
    if tta == "flips":
        assert np.abs(got["a"].astype(int) - whole(InferTiles(path, tta="turns"), image)["a"]).max() > 1


def test_views_of_a_3d_tile(tmp_path):
    path, image = sharp(tmp_path / "m.vemray", dims=3, depth=1), grey(16, 24, 20)
    seen = [
        g(f(load(path).predict(f(g(image))[None, None].astype(np.float32) / 255))) for f in FLIPS for g in (lambda x: x, lambda x: x[..., ::-1, :, :])
    ]
    assert len(seen) == 8
    rounded_once(whole(InferTiles(path, tta="flips"), image)["a"], np.mean(seen, axis=0)[0, 1])


@pytest.mark.parametrize("tta, how", [("flips", {"tile": 32}), ("turns", {"tile": 32}), ("turns", {"mode": "blend", "tile": 32, "overlap": 8})])
@pytest.mark.parametrize("context", [0, 1])
def test_mirrored_tiles_in_blocks_equal_the_whole(tmp_path, tta, how, context):
    """Tiles at the far ends are not square."""
    path, shape = sharp(tmp_path / "m.vemray", channels=2 * context + 1, context=context), (5, 61, 50)
    image, op = grey(*shape), InferTiles(path, tta=tta, **how)
    want = whole(op, image)
    for block in [(2, 32, 32), (5, 61, 17)]:
        for name, array in blockwise(op, image, ArraySpec(shape, "uint8", SPACING), block).items():
            np.testing.assert_array_equal(array, want[name])


def test_mirrored_3d_tiles_in_blocks_equal_the_whole(tmp_path):
    path, shape = sharp(tmp_path / "m.vemray", dims=3, depth=1), (37, 45, 40)
    image, op = grey(*shape), InferTiles(path, tta="flips", tile=24, overlap=8)
    want = whole(op, image)["a"]
    np.testing.assert_array_equal(blockwise(op, image, ArraySpec(shape, "uint8", SPACING), (16, 45, 24))["a"], want)


def test_a_mirrored_image_gives_the_mirrored_result(tmp_path):
    path, image = sharp(tmp_path / "m.vemray"), grey(2, 48, 40)
    plain, many = InferTiles(path, tile=32), InferTiles(path, tile=32, tta="turns")
    for turn in (lambda x: np.ascontiguousarray(x[:, ::-1]), lambda x: np.ascontiguousarray(x.swapaxes(1, 2))):
        assert np.abs(turn(whole(many, image)["a"]).astype(int) - whole(many, turn(image))["a"]).max() <= 1
        assert np.abs(turn(whole(plain, image)["a"]).astype(int) - whole(plain, turn(image))["a"]).max() > 1


def test_turns_that_cannot_be_are_refused_by_name(tmp_path):
    spec = ArraySpec((40, 40, 40), "uint8", SPACING)
    with pytest.raises(RecipeError, match="d3.vemray is 3D.*flips"):
        InferTiles(sharp(tmp_path / "d3.vemray", dims=3), tta="turns").check(spec)
    narrow = sharp(tmp_path / "narrow.vemray", window=[96, 64])
    with pytest.raises(RecipeError, match="narrow.vemray has a window of 96 x 64.*flips"):
        InferTiles(narrow, tta="turns").check(spec)
    InferTiles(narrow, tta="flips").check(spec)
    long = sharp(tmp_path / "long.vemray", voxel_nm=(8.0, 8.0, 16.0))
    wide = ArraySpec((40, 40, 40), "uint8", Spacing(8, 8, 16))
    with pytest.raises(RecipeError, match="8 x 16 nm.*flips"):
        InferTiles(long, tta="turns").check(wide)
    InferTiles(long, tta="turns", ignore_voxel_size=True).check(wide)
