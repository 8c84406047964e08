"""BioImage.IO packages: what they say, blocks of their results, their processing against numpy, files made to do harm, the way there and back."""

import hashlib
import io
import os
import pickle
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

import vemray  # noqa: E402
from tests.models import packages  # noqa: E402
from tests.models.networks_for_tests import small_model  # noqa: E402
from tests.models.packages import about, about_04, as_onnx, npy, packed  # noqa: E402
from tests.models.test_infer import blockwise  # noqa: E402
from vemray.errors import ModelError, RecipeError  # noqa: E402
from vemray.geometry import Box, Spacing  # noqa: E402
from vemray.models.bioimage_check import check, must_pass  # noqa: E402
from vemray.models.facts import Normalisation, normalised  # noqa: E402
from vemray.models.files import load, load_facts, save_bioimage  # noqa: E402
from vemray.models.infer import InferTiles  # noqa: E402
from vemray.models.process import Step, Steps, histogram_of  # noqa: E402
from vemray.ops.base import ArraySpec, Site  # noqa: E402
from vemray.ops.histogram import Histogram  # noqa: E402
from vemray.store.volume import create  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")
SHAPE, SPACING = (4, 83, 71), Spacing(8, 8, 8)
SPEC = ArraySpec(SHAPE, "uint8", SPACING)
BLOCKS = [(2, 64, 64), (3, 29, 50), (1, 83, 13)]
STATISTICS = [
    {"id": "scale_range", "kwargs": {"min_percentile": 2.0, "max_percentile": 98.0}},
    {"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}},
    {"id": "zero_mean_unit_variance", "kwargs": {}},
]


def image(dtype="uint8", shape=SHAPE, seed=3):
    rng = np.random.default_rng(seed)
    return rng.random(shape, np.float32) if dtype == "float32" else rng.integers(0, 200, shape).astype(dtype)


def histogram(em) -> dict:
    spec, op = ArraySpec(em.shape, str(em.dtype), SPACING), Histogram()
    return op.finish(op.measure(em, site=Site.whole(spec)), (spec,))


def whole(path, em, **how):
    spec = ArraySpec(em.shape, str(em.dtype), SPACING)
    op = InferTiles(path, **how)
    op.check(spec)
    return op(em, histogram(em), site=Site.whole(spec))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# reading and running -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["onnx", "torchscript"])
@pytest.mark.parametrize("how", [{}, {"tile": 24}, {"mode": "blend", "tile": 24, "overlap": 8}])
def test_blocks_equal_the_whole_bit_for_bit(tmp_path, weights, how):
    path, em = packed(tmp_path / "m.zip", about(2, before=STATISTICS, weights=weights), out=2), image()
    want = whole(path, em, **how)
    assert sorted(want) == ["class_0", "class_1"] and all(a.std() > 5 for a in want.values())
    for block in BLOCKS:
        for name, array in blockwise(InferTiles(path, **how), em, SPEC, block, histogram=histogram(em)).items():
            np.testing.assert_array_equal(array, want[name], err_msg=f"{name} {block}")


@pytest.mark.parametrize("halo", [4, None])
def test_blocks_of_windows_equal_the_whole(tmp_path, halo):
    """A network of one size only, with a halo and without one, whose tiles are then blended."""
    path, em = packed(tmp_path / "m.zip", about(size=32, halo=halo), size=32, batch=1), image()
    facts = load_facts(path)
    assert (facts.window, facts.mode) == ([32, 32], None if halo else "blend")
    want = whole(path, em)["class_0"]
    assert want.std() > 5
    for block in BLOCKS:
        np.testing.assert_array_equal(blockwise(InferTiles(path), em, SPEC, block)["class_0"], want)
    if not halo:
        with pytest.raises(RecipeError, match="halo"):
            InferTiles(path, mode="exact").check(SPEC)


@pytest.mark.parametrize("weights", ["onnx", "torchscript"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_volume_gets_what_numpy_and_the_network_give(tmp_path, weights, dtype):
    path, em = packed(tmp_path / "m.zip", about(2, before=STATISTICS, after=[{"id": "softmax"}], weights=weights), out=2), image(dtype)
    x = em.astype(np.float64)
    a, b = np.percentile(x, [2, 98])
    x = np.clip((x - a) / (b - a + 1e-6), 0, 1)
    x = (x - x.mean()) / x.std()
    pad = [(0, 0), *[(0, -n % 8) for n in SHAPE[1:]]]
    with torch.inference_mode():
        y = packages.conv(2)(torch.from_numpy(np.pad(x, pad, mode="reflect")[:, None].astype(np.float32))).softmax(1).numpy()
    y = y[:, :, : SHAPE[1], : SHAPE[2]]
    got = whole(path, em)
    for i in range(2):
        off = np.abs(got[f"class_{i}"] - np.rint(y[:, i] * 255))
        assert off.max() <= (2 if dtype == "float32" else 1), "a float's percentile is known to 0.2 per cent"


def test_a_recipe_takes_statistics_from_the_whole_volume(tmp_path):
    em = image(shape=(20, 64, 64))
    em[10:] //= 4  # halves of a different contrast
    path = packed(tmp_path / "m.zip", about(before=STATISTICS))
    v = create(str(tmp_path / "em.zarr"), em.shape, "uint8", SPACING, shard=(32, 32, 32), chunk=(16,) * 3)
    v.write(Box.of(em.shape), em)
    recipe = {"vemray": 1, "name": "r", "inputs": {"em": {"kind": "image"}}, "steps": {"p": {"op": "infer", "image": "em", "model": path}}}
    results = vemray.run(recipe, str(tmp_path / "em.zarr"), tmp_path / "out", runner="serial", listeners=(lambda e: None,), report=False)
    np.testing.assert_array_equal(results.volumes["p.class_0"].read(Box.of(em.shape)), whole(path, em)["class_0"])


def test_three_dimensions_and_other_orders_of_axes(tmp_path):
    d = about(1, halo=4)
    for tensor, extra in (("inputs", {"size": {"min": 16, "step": 8}}), ("outputs", {"size": {"tensor_id": "em", "axis_id": "z"}, "halo": 4})):
        d[tensor][0]["axes"].insert(2, {"type": "space", "id": "z", "unit": "micrometer", "scale": 0.03, **extra})
    path = packed(tmp_path / "d3.zip", d, {"weights.onnx": as_onnx(dims=3)})
    facts = load_facts(path)
    assert (facts.dims, facts.voxel_nm, facts.stride, facts.halo) == (3, (30.0, 8.0, 8.0), [8] * 3, [8] * 3)
    x = image("float32", (2, 1, 24, 16, 32))
    want = load(path).predict(x)
    # the same network behind transposes: x, y, z without a batch and without a channel
    model = onnx.load_from_string(as_onnx(dims=3))
    for value, name in ((model.graph.input[0], "in"), (model.graph.output[0], "out")):
        value.CopyFrom(onnx.helper.make_tensor_value_info(f"turned_{name}", 1, ["a", "b", "c"]))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    axes = onnx.numpy_helper.from_array(np.array([0, 1]), "axes")
    model.graph.initializer.append(axes)
    there = [onnx.helper.make_node("Transpose", ["turned_in"], ["t"], perm=[2, 1, 0]), onnx.helper.make_node("Unsqueeze", ["t", "axes"], ["in"])]
    back = [onnx.helper.make_node("Squeeze", ["out", "axes"], ["u"]), onnx.helper.make_node("Transpose", ["u"], ["turned_out"], perm=[2, 1, 0])]
    model.graph.node.extend([*there, *nodes, *back])
    for tensor in ("inputs", "outputs"):
        d[tensor][0]["axes"] = [a for a in d[tensor][0]["axes"][::-1] if a["type"] == "space"]
    turned = packed(tmp_path / "turned.zip", d, {"weights.onnx": model.SerializeToString()})
    np.testing.assert_allclose(load(turned).predict(x), want, atol=1e-6)
    assert want.std() > 0.05 and load_facts(turned).classes == ["out"]


# what is done to grey values ---------------------------------------------------------------------------------------------

REFERENCES = {
    "scale_linear": ({"gain": 0.25, "offset": -3.0}, lambda x: x * 0.25 - 3),
    "clip": ({"min": 20.0, "max": 90.0}, lambda x: np.clip(x, 20, 90)),
    "clip percentiles": ({"min_percentile": 5.0, "max_percentile": 80.0}, lambda x: np.clip(x, *np.percentile(x, [5, 80]))),
    "clip one end": ({"max_percentile": 80.0}, lambda x: np.minimum(x, np.percentile(x, 80))),
    "binarize": ({"threshold": 70.0}, lambda x: (x > 70) * 1.0),
    "sigmoid": ({}, sigmoid),
    "fixed_zero_mean_unit_variance": ({"mean": 60.0, "std": 25.0}, lambda x: (x - 60) / 25),
    "zero_mean_unit_variance": ({"eps": 1e-3}, lambda x: (x - x.mean()) / (x.std() + 1e-3)),
    "scale_range": ({}, lambda x: (x - x.min()) / (x.max() - x.min() + 1e-6)),
    "scale_range percentiles": (
        {"min_percentile": 0.5, "max_percentile": 99.8, "eps": 1e-3},
        lambda x: (x - np.percentile(x, 0.5)) / (np.percentile(x, 99.8) - np.percentile(x, 0.5) + 1e-3),
    ),
}
ORDERS = [
    *[[name] for name in REFERENCES],
    ["clip percentiles", "zero_mean_unit_variance"], ["scale_range percentiles", "clip one end", "scale_linear"], ["scale_linear", "sigmoid", "scale_range"],
    ["zero_mean_unit_variance", "scale_linear", "scale_range percentiles", "sigmoid"],
]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS, ids="+".join)
@pytest.mark.parametrize("version", [about, about_04])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_steps_are_what_numpy_gives(tmp_path, order, version, dtype):
    old = version is about_04
    steps = []
    for name in order:
        kind, kwargs = name.partition(" ")[0], dict(REFERENCES[name][0])
        if old and kind == "fixed_zero_mean_unit_variance":  # as 0.4 has it
            kind, kwargs = "zero_mean_unit_variance", {**kwargs, "mode": "fixed"}
        elif old and kind in ("zero_mean_unit_variance", "scale_range"):
            kwargs = {**kwargs, "mode": "per_sample", "axes": "yx"}
        steps.append({"name" if old else "id": kind, "kwargs": kwargs})
    path = packed(tmp_path / "m.zip", version(before=steps))
    em = image(dtype, (7, 19, 23)) - (40 if dtype == "int16" else 0)
    x = em.astype(np.float64)
    for name in order:
        x = REFERENCES[name][1](x)
    n = load_facts(path).normalisation
    out = np.empty(em.shape, np.float32)
    normalised(em, n.constants(histogram(em) if n.needs_histogram else None, em.dtype), out)
    np.testing.assert_allclose(out, x, rtol=2e-5, atol=2e-5 * max(1, np.abs(x).max()))
    assert x.std() > 0.01


def test_large_grey_values_keep_their_differences():
    """30,000 and 30,001 of 16 bits, where a factor and an offset would lose 3 digits."""
    em = np.array([30000, 30001, 30100], np.uint16)
    out = np.empty(3, np.float32)
    Steps(steps=[Step(op="linear", gain=0.01, shift=30000)]).constants(None)(em, out)
    np.testing.assert_allclose(out, [0, 0.01, 1], rtol=1e-6)


def test_values_for_each_channel_after_the_network(tmp_path):
    kwargs = {"gain": [2.0, -1.0], "offset": [0.5, 0.25], "axis": "channel"}
    path = packed(tmp_path / "m.zip", about(2, after=[{"id": "scale_linear", "kwargs": kwargs}, {"id": "sigmoid"}]), out=2)
    x = image("float32", (2, 1, 24, 24))
    bare = ort.InferenceSession(as_onnx(2)).run(None, {"in": x})[0]
    want = sigmoid(bare * np.array([2, -1.0])[:, None, None] + np.array([0.5, 0.25])[:, None, None])
    np.testing.assert_allclose(load(path).predict(x), want, atol=1e-6)


# what the description says and does not say --------------------------------------------------------------------------------


def test_both_versions_say_the_same(tmp_path):
    new, old = (load_facts(packed(tmp_path / f"{i}.zip", d, out=2)) for i, d in enumerate((about(2), about_04(2))))
    assert (new.classes, old.classes) == (["class_0", "class_1"], ["output0", "output1"])
    assert (new.voxel_nm, old.voxel_nm) == ((8.0, 8.0, 8.0), None)
    for name in ("dims", "channels", "stride", "halo", "window", "normalisation", "activation", "mode", "batch"):
        assert getattr(new, name) == getattr(old, name), name
    assert (new.stride, new.halo) == ([8, 8], [8, 8])


def test_a_folder_its_yaml_and_a_zip_are_one_model(tmp_path):
    d = about()
    folder = packed(tmp_path / "folder", d)
    paths = [folder, packed(tmp_path / "own" / "any.yaml", d), packed(tmp_path / "m.zip", d)]
    x = image("float32", (1, 1, 24, 24))
    got = [load(p).predict(x) for p in paths]
    assert all(np.array_equal(g, got[0]) for g in got)
    assert InferTiles(folder).files() == (f"{folder}/rdf.yaml", f"{folder}/weights.onnx") and InferTiles(paths[2]).files() == (paths[2],)
    before = load_facts(folder)
    Path(folder + ".json").write_text('{"voxel_nm": [4, 4, 4]}')
    assert load_facts(folder).voxel_nm == (4, 4, 4) != before.voxel_nm and InferTiles(folder).files()[-1] == folder + ".json"


def test_what_is_not_said_is_the_user_s_decision(tmp_path):
    path = packed(tmp_path / "m.zip", about_04())
    with pytest.raises(ModelError, match=r"m\.zip\.json.*ignore_voxel_size"):
        InferTiles(path).check(SPEC)
    Path(path + ".json").write_text('{"voxel_nm": [8, 8, 8]}')
    InferTiles(path).check(SPEC)
    bare = packed(tmp_path / "bare.zip", about(after=[]))
    with pytest.raises(ModelError, match=r"0\.\.1.*bare\.zip\.json"):
        load_facts(bare)
    Path(bare + ".json").write_text('{"activation": "sigmoid"}')
    x = image("float32", (1, 1, 24, 24))
    np.testing.assert_allclose(load(bare).predict(x), load(path).predict(x), atol=1e-6)
    Path(bare + ".json").write_text('{"gives": "image"}')
    em = image()
    assert whole(bare, em)["class_0"].dtype == np.uint8 and load_facts(bare).gives == "image"


def changed(*path, to, **how):
    d = about(**how)
    at = d
    for key in path[:-1]:
        at = at[key]
    if to is None:
        del at[path[-1]]
    else:
        at[path[-1]] = to
    return d


Y = ("inputs", 0, "axes", 2)
PRE, POST = ("inputs", 0, "preprocessing"), ("outputs", 0, "postprocessing")


@pytest.mark.parametrize(
    "description, says",
    [
        (changed("type", to="dataset"), "type: 'dataset' is no model"),
        (changed("format_version", to="0.3.6"), "format_version: 0.3.6 is not read"),
        (changed("format_version", to=0.6), "format_version: 0.6 is not read"),
        (changed("weights", to=None), "'weights' is missing"),
        (changed("weights", to={"keras_hdf5": {"source": "w.h5"}}), "weights: vemray runs ONNX and TorchScript; the package has keras_hdf5"),
        (changed("weights", "onnx", "source", to="other.onnx"), "weights.onnx.source: there is no 'other.onnx'"),
        (changed("weights", "onnx", "source", to="https://example.com/w.onnx"), "weights.onnx.source: 'https://example.com/w.onnx' lies elsewhere"),
        (changed("weights", "onnx", "source", to="../weights.onnx"), "weights.onnx.source: '../weights.onnx' is a path that leaves the package"),
        (changed("weights", "onnx", "source", to="/etc/passwd"), "leaves the package"),
        (changed("weights", "onnx", "sha256", to="0" * 64), "weights.onnx.sha256: 'weights.onnx' has another hash"),
        (changed("weights", "onnx", "external_data", to={"source": "w.bin"}), "weights.onnx.external_data: weights in two files"),
        (changed("inputs", to=about()["inputs"] * 2), "must have different names"),
        (changed("outputs", 0, "id", to="em"), "must have different names"),
        (changed("inputs", 0, "axes", 1, "channel_names", to=["r", "g", "b"]), "3 channels; a volume has one"),
        (changed(*Y, "id", to="t"), "'t' is not read"),
        (changed(*Y, "type", to="time"), "axes of type 'time' are not read"),
        (changed(*Y, "scale", to=-1), "inputs.0.axes.2.scale: must be above 0"),
        (changed(*Y, "size", to={"min": 8}), "'step' is missing"),
        (changed("outputs", 0, "axes", 2, "size", to={"tensor_id": "em", "axis_id": "y", "offset": -4}), "changes the size along y"),
        (changed("outputs", 0, "axes", 2, "scale", to=4.0), "changes the size along y"),
        (changed(*PRE, to=[{"id": "custom", "kwargs": {}}]), "inputs.0.preprocessing.0: 'custom' is not read"),
        (changed(*PRE, to=[{"id": "clip", "kwargs": {"least": 1}}]), "'least' is no parameter of clip"),
        (changed(*PRE, to=[{"id": "scale_range", "kwargs": {"axes": ["x"]}}]), "statistics for each y by itself"),
        (changed(*PRE, to=[{"id": "scale_range", "kwargs": {"reference_tensor": "other"}}]), "percentiles of another tensor"),
        (changed(*PRE, to=[{"id": "ensure_dtype", "kwargs": {"dtype": "uint8"}}]), "'uint8' is not kept"),
        (changed(*PRE, to=[{"id": "scale_linear", "kwargs": {"gain": "much"}}]), "gain: must be a number, not 'much'"),
        (changed(*POST, to=[{"id": "stardist_postprocessing", "kwargs": {}}]), "outputs.0.postprocessing.0: 'stardist_postprocessing' is not run"),
        (changed(*POST, to=[{"id": "scale_range", "kwargs": {}}]), "needs statistics of the whole output"),
        (changed("config", to={"vemray": {"normalisation": {}}}), "config.vemray: 'normalisation' is not read there"),
        (changed("config", to={"vemray": {"format": 99}}), "config.vemray was written by a newer vemray"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_by_its_key(tmp_path, description, says):
    path = packed(tmp_path / "m.zip", description, {"weights.onnx": as_onnx()})
    with pytest.raises(ModelError) as e:
        load(path)
    assert says in str(e.value) and "m.zip/rdf.yaml" in str(e.value)


def test_the_network_must_be_what_the_description_says(tmp_path):
    path = packed(tmp_path / "m.zip", about(3), {"weights.onnx": as_onnx(2)})
    with pytest.raises(ModelError, match="2 channels for 3 classes"):
        load(path).predict(np.zeros((1, 1, 16, 16), np.float32))
    with pytest.raises(ModelError, match="at least 16"):
        load(packed(tmp_path / "m.zip", about())).predict(np.zeros((1, 1, 8, 16), np.float32))
    with pytest.raises(RecipeError, match="8-bit|8 or 16 bit|float64"):
        InferTiles(path).check(ArraySpec(SHAPE, "float64", SPACING))


# files made to do harm -----------------------------------------------------------------------------------------------------


class Harm:
    """Whoever unpickles it makes a folder."""

    def __init__(self, where):
        self.where = str(where)

    def __reduce__(self):
        return os.mkdir, (self.where,)


def refused(path, says, *calls):
    for call in calls or (load_facts, load):
        with pytest.raises(ModelError) as e:
            call(path)
        assert says in str(e.value) and Path(path).name in str(e.value), str(e.value)


def zipped(path, members, text=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in [("rdf.yaml", text or yaml.safe_dump(about())), *members]:
            z.writestr(name, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    model = as_onnx()
    path = inside / "m.zip"
    for name in ("../weights.onnx", "/weights.onnx", "a/../../weights.onnx", "C:\\weights.onnx", "..\\weights.onnx"):
        refused(zipped(path, [("weights.onnx", model), (name, model)]), "leaves the package: refused")
    refused(zipped(path, [("weights.onnx", model), ("weights.onnx", b"other")]), "'weights.onnx' twice")
    refused(zipped(path, [("weights.onnx", bytes(80 << 20))]), "100 times its size")
    refused(zipped(path, [("weights.onnx", model)], " " * (2 << 20)), "more than the")
    link = zipfile.ZipInfo("weights.onnx")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    refused(zipped(path, [(link, "/etc/hostname")]), "cannot be read as ONNX", load)
    external = onnx.load_from_string(model)
    tensor = external.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", str(tmp_path / "secret")
    refused(zipped(path, [("weights.onnx", external.SerializeToString())]), "another file", load)
    (tmp_path / "secret").write_bytes(model)
    folder = Path(packed(inside / "folder", about()))
    (folder / "weights.onnx").unlink()
    (folder / "weights.onnx").symlink_to(tmp_path / "secret")
    refused(folder, "'weights.onnx' is a link that leaves the package")
    (inside / "folder" / "deep").symlink_to(tmp_path)
    description = about()
    description["weights"]["onnx"]["source"] = "deep/secret"
    (folder / "rdf.yaml").write_text(yaml.safe_dump(description))
    refused(folder, "'deep/secret' is a link that leaves the package")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inside", "secret"] and not Path("weights.onnx").exists()


def test_hostile_descriptions(tmp_path):
    text = yaml.safe_dump(about())
    made = tmp_path / "made"
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    for extra, says in (
        (f"x: !!python/object/apply:os.mkdir ['{made}']\n", "cannot be read as YAML"),
        (f"x: !!python/object/new:os.mkdir ['{made}']\n", "cannot be read as YAML"),
        ("x: !anything 1\n", "cannot be read as YAML"),
        (bomb, "refers to its own parts"), ("x: &x [*x]\n", "refers to its own parts"),
        ("x: " + "[" * 200_000, "cannot be read as YAML"), ("x: \x00\n", "cannot be read as YAML"), ("\t- x", "cannot be read as YAML"),
    ):  # fmt: skip
        refused(zipped(tmp_path / "m.zip", [("weights.onnx", as_onnx())], text + extra), says)
    for whole_text in ("", "[]", "5", "a: b"):
        refused(zipped(tmp_path / "m.zip", [], whole_text or " "), "rdf.yaml")
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as z:
        z.writestr("readme.txt", "x")
    refused(tmp_path / "m.zip", "is no BioImage.IO package")
    assert not made.exists()


def test_weights_in_a_folder_of_the_package_are_watched_too(tmp_path):
    """A process that lives on must not keep a network whose file has changed."""
    from vemray.models.files import stamp

    description = about()
    description["weights"]["onnx"]["source"] = "deep/weights.onnx"
    (tmp_path / "p" / "deep").mkdir(parents=True)
    (tmp_path / "p" / "rdf.yaml").write_text(yaml.safe_dump(description))
    weights = tmp_path / "p" / "deep" / "weights.onnx"
    weights.write_bytes(as_onnx())
    before = [stamp(tmp_path / "p"), stamp(tmp_path / "p" / "rdf.yaml")]
    assert before == [stamp(tmp_path / "p"), stamp(tmp_path / "p" / "rdf.yaml")]
    weights.write_bytes(as_onnx() + b"\x00")
    after = [stamp(tmp_path / "p"), stamp(tmp_path / "p" / "rdf.yaml")]
    assert all(a != b for a, b in zip(before, after))
    weights.unlink()
    assert stamp(tmp_path / "p") not in (before[0], after[0])


def test_nothing_is_unpickled(tmp_path):
    made = tmp_path / "made"
    harm = pickle.dumps(Harm(made))
    objects = np.empty(1, object)
    objects[0] = Harm(made)
    state = io.BytesIO()
    torch.save({"weight": Harm(made)}, state)
    old = io.BytesIO()
    torch.save({"weight": Harm(made)}, old, _use_new_zipfile_serialization=False)
    for data in (harm, state.getvalue(), old.getvalue()):
        refused(packed(tmp_path / "m.zip", about(weights="torchscript"), {"weights.pt": data}), "pickled PyTorch file", load)
    for data in (npy(objects, allow_pickle=True), harm, b"\x93NUMPY", npy(np.zeros(0, np.float32)), npy(np.array(["x"]))):
        path = packed(tmp_path / "m.zip", about(), {"in.npy": data, "out.npy": npy(np.zeros((1, 1, 24, 24), np.float32))})
        refused(path, "inputs.0.test_tensor.source", check)
    huge = npy(np.zeros((1, 1, 24, 24), np.float32)).replace(b"(1, 1, 24, 24), ", b"(1, 1, 24, 9**9)")
    refused(packed(tmp_path / "m.zip", about(), {"in.npy": huge, "out.npy": huge}), "cannot be read as a .npy", check)
    pickle.loads(harm)
    assert made.exists(), "the files above would have done it"


def test_damaged_archives(tmp_path):
    data = Path(packed(tmp_path / "m.zip", about())).read_bytes()
    path = tmp_path / "cut.zip"
    for n in (0, 10, len(data) // 2, len(data) - 5):
        path.write_bytes(data[:n])
        refused(path, "truncated")
    rng = np.random.default_rng(0)
    for _ in range(100):  # a bit here and there: read as it was, or refused
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            load(path)
        except ModelError as e:
            assert "cut.zip" in str(e)


# test tensors ----------------------------------------------------------------------------------------------------------------


def with_tests(path, x, y, before=(), **more):
    return packed(path, about(before=before, **more), {"in.npy": npy(x), "out.npy": npy(y)})


def test_test_tensors_are_compared(tmp_path):
    x = image("float32", (2, 1, 24, 24)) * 100
    z = (x - x.mean(axis=(1, 2, 3), keepdims=True)) / x.std(axis=(1, 2, 3), keepdims=True)
    y = sigmoid(ort.InferenceSession(as_onnx()).run(None, {"in": z.astype(np.float32)})[0])
    each = [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", "y", "x"]}}]
    (result,) = check(with_tests(tmp_path / "m.zip", x, y, each))
    assert result.passed and result.largest < 1e-5 and result.values == y.size and "onnx: reproduced" in str(result)
    off = y.copy()
    off[0, 0, 3, 3] += 0.01
    (result,) = check(with_tests(tmp_path / "m.zip", x, off, each))
    assert not result.passed and result.mismatched == 1 and 0.009 < result.largest < 0.011
    with pytest.raises(ModelError, match="onnx weights do not reproduce"):
        must_pass("m.zip", [result])
    wide = {"config": {"bioimageio": {"reproducibility_tolerance": [{"absolute_tolerance": 0.05, "weights_formats": ["onnx"]}]}}}
    assert check(with_tests(tmp_path / "m.zip", x, off, each, **wide))[0].passed
    nothing = off.copy()
    nothing[0, 0, 0, 0] = np.nan
    assert not check(with_tests(tmp_path / "m.zip", x, nothing, each, **wide))[0].passed
    with pytest.raises(ModelError, match=r"outputs\.0\.test_tensor: the test output is \(2, 1, 24, 16\)"):
        check(with_tests(tmp_path / "m.zip", x, y[..., :16], each))


# writing -------------------------------------------------------------------------------------------------------------------


def rdf(path) -> dict:
    with zipfile.ZipFile(path) as z:
        return yaml.safe_load(z.read("rdf.yaml"))


def valid(path) -> dict:
    """The description, held against what the spec says of each key."""
    with zipfile.ZipFile(path) as z:
        files = {n: z.read(n) for n in z.namelist()}
    d = yaml.safe_load(files["rdf.yaml"])
    assert sorted(files) == ["README.md", "rdf.yaml", "test_input.npy", "test_output.npy", "weights.onnx", "weights_torchscript.pt"]
    packages.checked(files["weights.onnx"])
    sources = [d["documentation"], *[t["test_tensor"] for t in (*d["inputs"], *d["outputs"])], *d["weights"].values()]
    assert sorted(s["source"] for s in sources) == sorted(set(files) - {"rdf.yaml"})
    assert all(s["sha256"] == hashlib.sha256(files[s["source"]]).hexdigest() for s in sources)
    assert d["format_version"].startswith("0.5.") and d["type"] == "model" and 5 <= len(d["name"]) <= 128
    assert set("".join(d["name"])) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+- ()")
    assert b"# Validation" in files["README.md"]
    assert [k for k, w in d["weights"].items() if "parent" not in w] == ["torchscript"], "one is what all others were made from"
    (given,), (gives,) = d["inputs"], d["outputs"]
    arrays = [np.load(io.BytesIO(files[t["test_tensor"]["source"]])) for t in (given, gives)]
    assert [a.dtype.name for a in arrays] == ["float32"] * 2 == [t["data"]["type"] for t in (given, gives)]
    for tensor, array in zip((given, gives), arrays):
        assert [a["type"] for a in tensor["axes"]] == ["batch", "channel", *["space"] * (array.ndim - 2)]
        assert array.shape[1] == len(tensor["axes"][1]["channel_names"])
    for n, a, b in zip(arrays[0].shape[2:], given["axes"][2:], gives["axes"][2:]):
        least, step = a["size"]["min"], a["size"]["step"]
        assert n >= least and (n - least) % step == 0 and least > 2 * b["halo"] and b["size"] == {"tensor_id": "image", "axis_id": a["id"]}
        assert (a["unit"], a["scale"]) == (b["unit"], b["scale"])
    for name, data in files.items():
        text = data.decode("latin-1")
        assert str(Path(vemray.__file__).parents[1]) not in text and str(Path(path).parent) not in text, f"{name} names this machine's folders"
    return d


NORMALISATIONS = {
    "percentile": (Normalisation(low=2, high=97), "scale_range"),
    "standard": (Normalisation(method="standard"), "zero_mean_unit_variance"),
    "fixed": (Normalisation(method="fixed", low=100, high=115), "fixed_zero_mean_unit_variance"),
    "fixed from 0": (Normalisation(method="fixed", low=0, high=30), "scale_linear"),
    "dtype": (Normalisation(method="dtype"), "scale_linear"),
}


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_there_and_back(tmp_path, name, activation):
    """Probabilities within 1e-5 of the native model's; on a volume, whose values have 255 steps, within one of them."""
    n, step = NORMALISATIONS[name]
    model = small_model(tmp_path / "m.vemray", normalisation=n, activation=activation, voxel_nm=(30.0, 5.0, 4.0))
    path = str(tmp_path / "m.zip")
    save_bioimage(path, load(model))
    d = valid(path)
    assert [p["id"] for p in d["inputs"][0]["preprocessing"]] == [step] and "postprocessing" not in d["outputs"][0]
    assert [a["scale"] for a in d["inputs"][0]["axes"][2:]] == [5.0, 4.0] and d["outputs"][0]["axes"][1]["channel_names"] == ["background", "a", "b"]
    results = check(path)
    assert [r.weights for r in results] == ["onnx", "torchscript"] and all(r.passed and r.largest < 1e-5 for r in results)
    before, after = load_facts(model), load_facts(path)
    for key in ("classes", "dims", "voxel_nm", "halos", "strides", "training", "memory", "background", "mode", "window", "gives"):
        assert getattr(after, key) == getattr(before, key), key
    spec, how = ArraySpec(SHAPE, "uint8", Spacing(30, 5, 4)), {"tile": 40}
    for em in (image(), (image(seed=5) // 3 + 90).astype(np.uint8), np.full(SHAPE, 7, np.uint8)):  # of other contrasts
        one, other = (InferTiles(p, **how)(em, histogram(em), site=Site.whole(spec)) for p in (model, path))
        assert one.keys() == other.keys() == {"a", "b"}
        for c in one:
            assert np.abs(one[c].astype(int) - other[c]).max() <= 1
            assert len(np.unique(one[c])) > (3 if name == "dtype" else 15) or em.std() == 0


def test_a_3d_network_there_and_back(tmp_path):
    model = small_model(tmp_path / "m.vemray", dims=3, depth=1, normalisation=Normalisation())
    path = str(tmp_path / "m.zip")
    save_bioimage(path, load(model))
    valid(path)
    assert all(r.passed for r in check(path))
    x = image("float32", (1, 1, 16, 24, 20))
    np.testing.assert_allclose(load(path).predict(x), load(model).predict(x), atol=1e-5)
    em, spec = image(shape=(20, 33, 27)), ArraySpec((20, 33, 27), "uint8", SPACING)
    one, other = (InferTiles(p)(em, histogram(em), site=Site.whole(spec)) for p in (model, path))
    assert all(np.abs(one[c].astype(int) - other[c]).max() <= 1 and one[c].std() > 1 for c in one)


@pytest.mark.parametrize(
    "n, how", [(Normalisation(), {"grey": (20, 220)}), (Normalisation(method="fixed", low=20, high=220), {}), (Normalisation(method="dtype"), {})]
)
def test_an_image_there_and_back(tmp_path, n, how):
    model = small_model(tmp_path / "m.vemray", classes=["clean"], activation="none", gives="image", normalisation=n)
    path = str(tmp_path / "m.zip")
    if how:
        with pytest.raises(ModelError, match="--grey"):
            save_bioimage(path, load(model))
    save_bioimage(path, load(model), **how)
    d = valid(path)
    assert d["outputs"][0]["postprocessing"][0]["id"] == "scale_linear" and "range" not in d["outputs"][0]["data"]
    assert all(r.passed for r in check(path)) and load_facts(path).gives == "image"
    em = image()
    low, high = (0, 255) if n.method == "dtype" else (20, 220)
    got = whole(path, em, tile=40)["clean"]
    want = whole(
        small_model(
            tmp_path / "f.vemray",
            classes=["clean"],
            activation="none",
            gives="image",
            normalisation=Normalisation(method="fixed", low=low, high=high),
        ),
        em,
        tile=40,
    )["clean"]
    assert got.dtype == np.uint8 and want.std() > 1 and np.abs(got.astype(int) - want).max() <= 1


def test_what_is_said_of_a_model_is_what_was_given(tmp_path):
    model, path = load(small_model(tmp_path / "m.vemray")), tmp_path / "m.zip"
    save_bioimage(path, model)
    d = rdf(path)
    assert not {"authors", "license", "cite", "covers", "git_repo"} & set(d), "nothing is made up"
    assert d["name"] == "vemray m" and "background, a, b" in d["description"]
    save_bioimage(
        path, model, name="Mitochondria: HeLa/2", authors=("A. Person", "B. Person"), license="CC-BY-4.0", description="For tests.",
        cite=("https://doi.org/10.1234/abc.5 Person et al. 2025", "https://example.org/x"),
    )  # fmt: skip
    d = rdf(path)
    assert (d["name"], d["license"], d["description"]) == ("Mitochondria_ HeLa_2", "CC-BY-4.0", "For tests.")
    assert d["authors"] == [{"name": "A. Person"}, {"name": "B. Person"}]
    assert d["cite"] == [{"text": "Person et al. 2025", "doi": "10.1234/abc.5"}, {"text": "https://example.org/x", "url": "https://example.org/x"}]
    for how, says in (
        ({"license": "my own"}, "SPDX"), ({"cite": ("Person 2025",)}, "DOI"), ({"authors": ("a/b",)}, "without '/'"), ({"description": "x" * 2000}, "1024"),
        ({"grey": (9, 9)}, "above"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=says):
            save_bioimage(tmp_path / "no.zip", model, **how)
    with pytest.raises(ModelError, match="native"):
        save_bioimage(tmp_path / "no.zip", load(path))
    colour = load(small_model(tmp_path / "rgb.vemray", channels=3))
    with pytest.raises(ModelError, match="3 channels"):
        save_bioimage(tmp_path / "no.zip", colour)
    assert not (tmp_path / "no.zip").exists()


def test_the_spec_s_own_library_finds_it_valid(tmp_path):
    spec = pytest.importorskip("bioimageio.spec", reason="bioimageio.spec is not installed: what is written is held against the structure only")
    for i, (n, _) in enumerate(NORMALISATIONS.values()):
        path = tmp_path / f"m{i}.zip"
        save_bioimage(
            path, load(small_model(tmp_path / f"m{i}.vemray", normalisation=n, dims=2 + i % 2, depth=1)),
            **({"authors": ("A. Person",), "license": "CC-BY-4.0", "cite": ("10.1234/abc.5",)} if i % 2 else {}),
        )  # fmt: skip
        summary = spec.load_description_and_validate_format_only(path)
        assert summary.status != "failed", summary.display()
    path = tmp_path / "image.zip"
    save_bioimage(path, load(small_model(tmp_path / "i.vemray", classes=["clean"], activation="none", gives="image")))
    assert spec.load_description_and_validate_format_only(path).status != "failed"
    broken = rdf(path)
    broken["outputs"][0]["axes"][2]["size"]["axis_id"] = "q"
    with zipfile.ZipFile(path) as z:
        files = {n: z.read(n) for n in z.namelist() if n != "rdf.yaml"}
    assert spec.load_description_and_validate_format_only(packed(tmp_path / "broken.zip", broken, files)).status == "failed", "it does look"


# packages of others ------------------------------------------------------------------------------------------------------------

GIVEN = Path(os.environ.get("VEMRAY_TEST_DATA", "nowhere")) / "models_compat" / "bioimageio"
given = pytest.mark.skipif(not GIVEN.exists(), reason="VEMRAY_TEST_DATA names no folder with models_compat/bioimageio")
RUN = ["bioimageio.yaml", "v0_4_0.bioimageio.yaml", "v0_4_9.bioimageio.yaml"]
REFUSED = {
    "unet2d_nuclei_broad/expand_output_shape.bioimageio.yaml": "unet2d_expand_output_shape.py",
    "unet2d_nuclei_broad/expand_output_shape_v0_4.bioimageio.yaml": "unet2d_expand_output_shape.py",
    "unet2d_nuclei_broad/invalid_v0_4_0_duplicate_tensor_names.bioimageio.yaml": r"data, data\) must have different names",
    "unet2d_diff_output_shape/bioimageio.yaml": "resize_unet.py",
    "unet2d_fixed_shape/v0_4.bioimageio.yaml": "'unet.py'",
    "unet2d_multi_tensor/bioimageio.yaml": "inputs: 2 tensors",
    "upsample_test_model/v0_4.bioimageio.yaml": "upsample_model.py",
}


@given
def test_a_network_of_several_images_reproduces_its_test_outputs(tmp_path):
    """It is compared, though `infer` has one image to give it; and a wrong result shows."""
    there = GIVEN / "unet2d_multi_tensor"
    results = check(there / "bioimageio.yaml")
    assert [r.weights for r in results] == ["torchscript, output0", "torchscript, output1"]
    assert all(r.passed and r.largest < 1e-4 and r.values == 256 * 256 for r in results), list(map(str, results))
    description = yaml.safe_load((there / "bioimageio.yaml").read_text())
    for t, other in zip(description["inputs"], (1, 0)):  # the images exchanged
        t["test_tensor"] = {"source": f"test_input_{other}.npy"}
    for file in there.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "rdf.yaml").write_text(yaml.safe_dump(description))
    with pytest.raises(ModelError, match="output0.*output1.*do not reproduce"):
        must_pass(tmp_path / "rdf.yaml", check(tmp_path / "rdf.yaml"))


@given
def test_every_given_package_is_here():
    found = {str(p.relative_to(GIVEN)) for p in GIVEN.glob("*/*bioimageio.yaml")}
    assert found == {*REFUSED, *(f"unet2d_nuclei_broad/{n}" for n in RUN)}


@given
@pytest.mark.parametrize("name", RUN)
def test_given_packages_reproduce_their_test_outputs(name):
    path = GIVEN / "unet2d_nuclei_broad" / name
    results = check(path)
    assert [r.weights for r in results] == ["onnx", "torchscript"]
    assert all(r.passed and r.largest < 1e-4 for r in results), [str(r) for r in results]
    x = np.load(path.parent / "test_input.npy")
    y = np.empty(x.shape, np.float32)
    normalised(x, load_facts(path).normalisation.constants(histogram_of(x)), y)
    np.testing.assert_allclose(load(path).predict(y), np.load(path.parent / "test_output.npy"), atol=1e-4)


@given
@pytest.mark.parametrize("name", REFUSED)
def test_given_packages_that_cannot_run_say_why(name):
    with pytest.raises(ModelError, match=REFUSED[name]) as e:
        load(GIVEN / name)
    assert name in str(e.value)


@given
def test_blocks_of_a_given_network_equal_the_whole():
    path = str(GIVEN / "unet2d_nuclei_broad" / "bioimageio.yaml")
    facts = load_facts(path)
    assert (facts.window, facts.halo, facts.batch, facts.classes, facts.voxel_nm) == ([512, 512], [32, 32], 1, ["probability"], None)
    em = np.tile(np.load(GIVEN / "unet2d_nuclei_broad" / "test_input.npy")[0, 0], (1, 1, 2))[:, :500, :560].astype(np.float32)
    spec, h = ArraySpec(em.shape, "float32", SPACING), histogram(em)
    op = InferTiles(path, ignore_voxel_size=True)
    op.check(spec)
    want = op(em, h, site=Site.whole(spec))["probability"]
    assert want.std() > 20
    np.testing.assert_array_equal(blockwise(op, em, spec, (1, 333, 410), histogram=h)["probability"], want)
