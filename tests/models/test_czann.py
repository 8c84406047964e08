"""ZEISS' model files: what they say and do not say, blocks of their results, files made to do harm, and the way there and back."""

import json
import os
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import vemray  # noqa: E402
from tests.models.networks_for_tests import small_model  # noqa: E402
from tests.models.test_infer import blockwise  # noqa: E402
from vemray.errors import ModelError, RecipeError  # noqa: E402
from vemray.geometry import Box, Spacing  # noqa: E402
from vemray.models import czann, native  # noqa: E402
from vemray.models.facts import Normalisation, restored  # noqa: E402
from vemray.models.files import load, load_facts, save_czann  # noqa: E402
from vemray.models.infer import Infer, InferTiles  # noqa: E402
from vemray.ops.base import ArraySpec, Site  # noqa: E402
from vemray.store.volume import create  # noqa: E402

SHAPE, SPACING, SIZE = (4, 83, 71), Spacing(8, 8, 8), 48
SPEC = ArraySpec(SHAPE, "uint8", SPACING)
BLOCKS = [(2, 64, 64), (3, 29, 50), (1, 83, 13)]


def net(*, out=2, dims=2, batch="b", size=SIZE, channels=1, end="Softmax", scale=6.0, elem=TensorProto.FLOAT):
    """A convolution with random weights between two transposes, as czmodel wraps PyTorch's networks, and what comes after it."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, scale, (out, channels, *[3] * dims)).astype(np.float32)
    kernel -= kernel.mean(axis=tuple(range(1, kernel.ndim)), keepdims=True)  # noise moves it, its mean does not
    if end is None:  # an image: a blur
        kernel = np.full_like(kernel, 1 / kernel[0].size)
    there, back = [0, dims + 1, *range(1, dims + 1)], [0, *range(2, dims + 2), 1]
    nodes = [
        helper.make_node("Transpose", ["in"], ["a"], perm=there),
        helper.make_node("Conv", ["a", "w", "c"], ["scores"], pads=[1] * (2 * dims)),
        helper.make_node("Transpose", ["scores"], ["last"], perm=back),
    ]
    if end == "Softmax":
        nodes.append(helper.make_node("Softmax", ["last"], ["out"], axis=dims + 1))
    elif end == "byhand":  # probabilities, but no node that says so
        nodes += [
            helper.make_node("Exp", ["last"], ["e"]),
            helper.make_node("ReduceSum", ["e", "axis"], ["s"], keepdims=1),
            helper.make_node("Div", ["e", "s"], ["out"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["last"], ["out"]))
    edge = [size or f"n{i}" for i in range(dims)]
    weights = {"w": kernel, "c": np.zeros(out, np.float32), **({"axis": np.array([dims + 1])} if end == "byhand" else {})}
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("in", elem, [batch, *edge, channels])],
        [helper.make_tensor_value_info("out", elem, [batch, *edge, out])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def about(kind="SingleClassSemanticSegmentation", out=2, dims=2, channels=1, size=SIZE, overlap=8, **changed):
    names = {"Classes": ["Background", "My Class", "c"][:out]} if "Segmentation" in kind else {}
    made = {
        "Id": "6eeb6202-6157-424e-abd4-c8fba4046b92", "Type": kind, "InputShape": [size] * dims + [channels], "OutputShape": [size] * dims + [out],
        "MinOverlap": [overlap] * dims, **names, "ModelName": "test", "Scaling": [8e-9] * dims, **changed,
    }  # fmt: skip
    return {k: v for k, v in made.items() if v is not None}


def packed(path, model=None, description=None, members=None):
    model = net() if model is None else model
    content = {"model.json": json.dumps(description or about()), "model.model": model if isinstance(model, bytes) else model.SerializeToString()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in (content if members is None else members(content)).items():
            z.writestr(name, data)
    return str(path)


def segmentation(path, **how):
    return packed(path, net(**how))


def regression(path, description=None, **how):
    return packed(path, net(out=1, end=None, **how), about("Regression", 1, **(description or {})))


def image(dtype="uint8", shape=SHAPE):
    rng = np.random.default_rng(3)
    return rng.random(shape, np.float32) if dtype == "float32" else rng.integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def whole(path, em, **how):
    spec = ArraySpec(em.shape, str(em.dtype), SPACING)
    op = InferTiles(path, **how)
    op.check(spec)
    return op(em, None, site=Site.whole(spec))


def plain(data: bytes, em: np.ndarray, window, halo, tops: float) -> np.ndarray:
    """ONNX Runtime and nothing of vemray's: windows with a border, planes reflected beyond their ends. (Z, Y, X, channel)"""
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    core, parts = [w - 2 * h for w, h in zip(window, halo)], []
    for plane in em:
        n = [-(-s // c) for s, c in zip(plane.shape, core)]
        wide = np.pad(plane, [(h, k * c + h - s) for h, k, c, s in zip(halo, n, core, plane.shape)], mode="reflect") / np.float64(tops)
        rows = []
        for i in range(n[0]):
            tiles = [wide[i * core[0] : i * core[0] + window[0], j * core[1] : j * core[1] + window[1]] for j in range(n[1])]
            scores = [session.run(None, {name: t[None, ..., None].astype(np.float32)})[0][0] for t in tiles]
            rows.append(np.concatenate([s[halo[0] : window[0] - halo[0], halo[1] : window[1] - halo[1]] for s in scores], axis=1))
        parts.append(np.concatenate(rows)[: plane.shape[0], : plane.shape[1]])
    return np.stack(parts)


def member(path) -> bytes:
    with zipfile.ZipFile(path) as z:
        return z.read("model.model")


# reading and running -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [segmentation, regression])
@pytest.mark.parametrize("how", [{}, {"mode": "blend", "overlap": 12}])
@pytest.mark.parametrize("batch", ["b", 1, 3])
def test_blocks_equal_the_whole_bit_for_bit(tmp_path, make, how, batch):
    path, em = make(tmp_path / "m.czann", batch=batch), image()
    op = InferTiles(path, **how)
    want = whole(path, em, **how)
    assert want and all(a.std() > 1 for a in want.values())
    for block in BLOCKS:
        for name, array in blockwise(op, em, SPEC, block).items():
            np.testing.assert_array_equal(array, want[name], err_msg=f"{name} {block}")


@pytest.mark.parametrize("make", [segmentation, regression])
@pytest.mark.parametrize("size", [SIZE, None])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiles_are_what_onnxruntime_gives(tmp_path, make, size, dtype):
    path, em = make(tmp_path / "m.czann", size=size), image(dtype)
    facts, top = load_facts(path), np.iinfo(dtype).max
    assert (facts.window, facts.halo, facts.stride, facts.voxel_nm) == ([SIZE] * 2, [4, 4], 1, (8, 8, 8)), "a free edge takes the tile of model.json"
    want, got = plain(member(path), em, facts.window, facts.halo, top), whole(path, em)
    if make is segmentation:
        assert list(got) == ["My_Class"] and got["My_Class"].dtype == np.uint8
        assert np.abs(got["My_Class"] - np.rint(want[..., 1] * 255)).max() <= 1
        assert np.abs(whole(path, em, classes=["Background"])["Background"] - np.rint(want[..., 0] * 255)).max() <= 1
    else:
        assert list(got) == ["output"] and got["output"].dtype == dtype
        assert np.abs(got["output"] - np.rint(want[..., 0] * top)).max() <= 1
        np.testing.assert_allclose(
            whole(path, image("float32"))["output"], plain(member(path), image("float32"), facts.window, facts.halo, 1)[..., 0], atol=1e-6
        )


def test_a_volume_smaller_than_the_tile_and_a_3d_network(tmp_path):
    path = regression(tmp_path / "m.czann")
    small = image(shape=(2, 5, 9))
    assert whole(path, small)["output"].shape == small.shape
    path = packed(tmp_path / "d3.czann", net(out=2, dims=3, size=24), about(dims=3, size=24, Scaling=[4e-9, 5e-9, 6e-9]))
    assert load_facts(path).voxel_nm == (6, 5, 4), "Scaling is x, y, z"
    em, spec = image(shape=(20, 33, 27)), ArraySpec((20, 33, 27), "uint8", Spacing(6, 5, 4))
    for how in ({}, {"mode": "exact"}):
        op = InferTiles(path, **how)
        op.check(spec)
        want = op(em, None, site=Site.whole(spec))["My_Class"]
        for block in [(8, 16, 27), (20, 7, 9), (13, 33, 10)]:
            np.testing.assert_array_equal(blockwise(op, em, spec, block)["My_Class"], want)


def test_a_denoiser_in_a_recipe(tmp_path):
    path, em = regression(tmp_path / "m.czann"), image("uint16", (20, 64, 64))
    v = create(str(tmp_path / "em.zarr"), em.shape, "uint16", SPACING, shard=(64,) * 3, chunk=(32,) * 3)
    v.write(Box.of(em.shape), em)
    recipe = {
        "vemray": 1, "name": "r", "inputs": {"em": {"kind": "image"}}, "outputs": ["clean.output", "mask"],
        "steps": {"clean": {"op": "infer", "image": "em", "model": path}, "mask": {"op": "threshold", "image": "clean.output", "method": "otsu"}},
    }  # fmt: skip
    results = vemray.run(recipe, str(tmp_path / "em.zarr"), tmp_path / "out", runner="serial", listeners=(lambda e: None,), report=False)
    got = results.volumes["clean.output"]
    assert (got.kind, got.dtype) == ("image", "uint16")
    np.testing.assert_array_equal(got.read(Box.of(em.shape)), whole(path, em)["output"])


def test_masks_leave_zeros_in_an_image(tmp_path):
    path, em = regression(tmp_path / "m.czann"), image()
    mask = np.zeros(SHAPE, bool)
    mask[1:3, 40:60, 5:30] = True
    got = InferTiles(path)(em, None, mask, site=Site.whole(SPEC))["output"]
    np.testing.assert_array_equal(got, whole(path, em)["output"] * mask)


@pytest.mark.parametrize("mode", ["exact", "blend"])
def test_an_image_comes_back_on_the_scale_of_the_volume(tmp_path, mode):
    """Of a network with a normalisation of its own: the inverse of it."""
    low, high = 40, 140
    how = {"classes": ["clean", "noise"], "activation": "none", "gives": "image", "normalisation": Normalisation(method="fixed", low=low, high=high)}
    path, em = small_model(tmp_path / "m.vemray", **how), image("uint16", (2, 96, 64)) // 300
    got = whole(path, em, mode=mode, tile=96)  # one tile
    scores = load(path).predict(((em[:, None] - np.float32(low)) / (high - low)).astype(np.float32))
    for i, name in enumerate(how["classes"]):
        want = np.clip(np.rint(scores[:, i] * (high - low) + low), 0, 65535)
        assert np.abs(got[name] - want).max() <= 1 and got[name].dtype == np.uint16 and want.std() > 1


def test_values_outside_the_type_are_clipped():
    values = np.array([-0.2, 0.0, 0.25, 1.0, 1.3], np.float32)
    np.testing.assert_array_equal(restored(values, (np.float32(0), np.float32(1 / 255)), np.uint8), [0, 0, 64, 255, 255])
    np.testing.assert_array_equal(restored(values, (np.float32(0), np.float32(1 / 65535)), np.uint16), [0, 0, 16384, 65535, 65535])
    np.testing.assert_array_equal(restored(values, (np.float32(0), np.float32(1)), np.float32), values)


# what the file says and does not say -----------------------------------------------------------------------------------


def remarks_of(path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_facts(path)
    return [str(w.message) for w in caught]


def test_the_graph_is_right_where_the_json_differs(tmp_path):
    path = packed(tmp_path / "m.czann", net(out=1, end=None), about("Regression", 5, channels=5, size=512))
    facts = load_facts(path)
    assert (facts.channels, facts.classes, facts.window) == (1, ["output"], [SIZE, SIZE])
    said = remarks_of(path)
    assert len(said) == 2 and all("the graph is right" in s and "m.czann" in s for s in said)
    assert remarks_of(segmentation(tmp_path / "fits.czann")) == []


def test_versions_of_the_format(tmp_path):
    assert "FormatVersion" not in about()
    for version in ("1.0.0", "2.1.0"):
        assert load_facts(packed(tmp_path / "m.czann", description=about(FormatVersion=version))).classes
    with pytest.raises(ModelError, match="format version 3.0.0"):
        load_facts(packed(tmp_path / "m.czann", description=about(FormatVersion="3.0.0")))


@pytest.mark.parametrize("scaling", [None, [1.0, 1.0], [8.0, 8.0], [0.0, 8e-9], [8e-9]])
def test_an_unknown_voxel_size_is_the_user_s_decision(tmp_path, scaling):
    path = packed(tmp_path / "m.czann", description=about(Scaling=scaling))
    assert load_facts(path).voxel_nm is None
    assert bool(remarks_of(path)) == (scaling not in (None, [1.0, 1.0]))
    with pytest.raises(ModelError, match=r"m\.czann\.json.*ignore_voxel_size"):
        InferTiles(path).check(SPEC)
    InferTiles(path, ignore_voxel_size=True).check(SPEC)
    (tmp_path / "m.czann.json").write_text('{"voxel_nm": [8, 8, 8], "halo": 6}')
    InferTiles(path).check(SPEC)
    assert load_facts(path).halo == 6 and InferTiles(path).files() == (path, path + ".json")
    (tmp_path / "m.czann.json").write_text('{"voxel_nm": [8, 16, 16]}')
    with pytest.raises(ModelError, match="8 x 16 x 16"):
        InferTiles(path).check(SPEC)
    for text, said in (
        ('{"voxels": 8}', "voxels"),
        ("[8]", "facts"),
        ("{", "JSON"),
        ('{"window": [30, 30]}', "window"),
        ('{"channels": 2}', "channels"),
    ):
        (tmp_path / "m.czann.json").write_text(text)
        with pytest.raises(ModelError, match=said):
            load_facts(path)


def test_softmax_is_never_applied_twice(tmp_path):
    em = image()
    inside = whole(segmentation(tmp_path / "a.czann"), em)["My_Class"]
    assert load_facts(tmp_path / "a.czann").activation == "none"
    hand = segmentation(tmp_path / "b.czann", end="byhand", scale=1.0)
    assert load_facts(hand).activation == "none", "what adds up to 1 has it inside"
    scores = segmentation(tmp_path / "c.czann", end="scores")
    assert load_facts(scores).activation == "softmax" and "softmax is applied" in remarks_of(scores)[0]
    assert np.abs(whole(scores, em)["My_Class"].astype(int) - inside).max() <= 1
    (tmp_path / "c.czann.json").write_text('{"activation": "sigmoid"}')
    assert load_facts(scores).activation == "sigmoid" and not remarks_of(scores)


def test_borders(tmp_path):
    assert load_facts(packed(tmp_path / "m.czann", description=about(overlap=7))).halo == [4, 4], "rounded up"
    path = packed(tmp_path / "m.czann", description=about(MinOverlap=None))
    assert load_facts(path).halo == [0, 0] and "MinOverlap" in remarks_of(path)[0]
    for overlap, said in (([8, 8, 8], "2 axes"), ([96, 96], "halo"), ([-2, 8], "MinOverlap")):
        with pytest.raises(ModelError, match=said):
            load_facts(packed(tmp_path / "m.czann", description=about(MinOverlap=overlap)))


@pytest.mark.parametrize("kind", ["SingleClassInstanceSegmentation", "MultiClassClassification", "ObjectDetection", "Style"])
def test_other_types_are_refused_by_name(tmp_path, kind):
    with pytest.raises(ModelError, match=f"{kind}.*Regression"):
        load_facts(packed(tmp_path / "m.czann", description=about(Type=kind)))


def test_what_does_not_fit_the_volume_is_refused(tmp_path):
    colour = packed(tmp_path / "rgb.czann", net(channels=3), about(channels=3))
    with pytest.raises(ModelError, match=r"3 channels, as colour.*grey"):
        InferTiles(colour).check(SPEC)
    path = regression(tmp_path / "m.czann")
    with pytest.raises(RecipeError, match="int32"):
        InferTiles(path).check(ArraySpec(SHAPE, "int32", SPACING))
    with pytest.raises(RecipeError, match="48 x 48"):
        InferTiles(path, tile=64).check(SPEC)
    for how, said in (({"show": "classes"}, "show"), ({"groups": {"all": ["output"]}}, "groups")):
        with pytest.raises(RecipeError, match=f"gives an image.*{said}"):
            InferTiles(path, **how).check(SPEC)
    with pytest.raises(RecipeError, match="axes"):
        Infer(path, axes=["z", "y"], device="cpu").expand({"image": "em"})
    with pytest.raises(ModelError, match="3 classes.*2 channels"):
        load_facts(packed(tmp_path / "n.czann", description=about(Classes=["a", "b", "c"])))
    with pytest.raises(ModelError, match="32-bit"):
        load_facts(packed(tmp_path / "half.czann", net(elem=TensorProto.FLOAT16)))
    with pytest.raises(ModelError, match="InputShape"):
        load_facts(packed(tmp_path / "free.czann", net(size=None), about(InputShape=None)))


# files made to do harm ---------------------------------------------------------------------------------------------------


def test_hostile_and_broken_files(tmp_path, monkeypatch):
    def refused(name, said, **how):
        path = packed(tmp_path / name, **how)
        for call in (load_facts, load):
            with pytest.raises(ModelError, match=said):
                call(path)

    refused("escape.czann", "no model.json", members=lambda c: {f"../{k}": v for k, v in c.items()})
    refused("absolute.czann", "no model.model", members=lambda c: {"model.json": c["model.json"], f"{tmp_path}/out/model.model": c["model.model"]})
    assert not (tmp_path / "out").exists() and not (tmp_path.parent / "model.json").exists()
    refused("bomb.czann", "100 times", model=bytes(80 << 20))
    refused("bombjson.czann", "MB", members=lambda c: {**c, "model.json": " " * (2 << 20)})
    refused("saved.czann", "TensorFlow SavedModel", model=b"PK\x03\x04" + bytes(100))
    refused("noise.czann", "ONNX", model=b"\x00\xffnoise" * 9)
    refused("empty.czann", "no graph", model=b"")
    blind = net()
    blind.graph.ClearField("output")
    refused("blind.czann", "no graph", model=blind)
    refused("cut.czann", "ONNX", model=net().SerializeToString()[:120])
    for text in ("", "{", "[]", '"x"', "{}", json.dumps(about(InputShape=[1])), json.dumps(about(InputShape="8")), "[" * 5000):
        refused("json.czann", "model.json", members=lambda c, text=text: {**c, "model.json": text})
    monkeypatch.setattr(czann.onnx_file, "MAX_BYTES", 100)
    refused("large.czann", "MB", model=net())


def test_archives_that_are_damaged(tmp_path):
    data = Path(packed(tmp_path / "m.czann")).read_bytes()
    path = tmp_path / "cut.czann"
    for n in (0, 10, len(data) // 2, len(data) - 5):
        path.write_bytes(data[:n])
        with pytest.raises(ModelError, match=r"cut\.czann"):
            load_facts(path)
    rng = np.random.default_rng(0)
    for _ in range(150):  # a bit here and there: read as it was, or refused
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            load(path)
        except ModelError as e:
            assert "cut.czann" in str(e)
    at = data.index(b"PK\x01\x02")  # the directory says 10 bytes where there are more: no more than it says is read
    lies = bytearray(data)
    struct.pack_into("<I", lies, at + 24, 10)
    path.write_bytes(lies)
    with pytest.raises(ModelError):
        load_facts(path)


def test_weights_outside_the_file_are_refused_wherever_they_are_named(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4 * 18))

    def outside(tensor):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", str(secret)

    model = net()
    outside(model.graph.initializer[0])
    inner = net()
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.zeros(18, np.float32)))
    outside(constant.attribute[0].t)
    body = helper.make_graph([constant, helper.make_node("Identity", ["last"], ["o"])], "body", [], [helper.make_tensor_value_info("o", 1, None)])
    inner.graph.node.insert(0, helper.make_node("If", ["yes"], ["never"], then_branch=body, else_branch=body))
    for m in (model, inner):
        with pytest.raises(ModelError, match="another file"):
            load_facts(packed(tmp_path / "m.czann", m))
    (tmp_path / "m.onnx").write_bytes(inner.SerializeToString())
    with pytest.raises(ModelError, match="another file"):
        load_facts(tmp_path / "m.onnx")


def lying(path, member: str, data: bytes, method=zipfile.ZIP_DEFLATED) -> None:
    """Replace a member by `data`, of which the directory says that it unpacks to 1000 bytes."""
    with zipfile.ZipFile(path) as z:
        parts = {**{n: z.read(n) for n in z.namelist()}, member: data}
    with zipfile.ZipFile(path, "w", method) as z:
        for n, d in parts.items():
            z.writestr(n, d)
        at = z.start_dir
    bent = bytearray(path.read_bytes())
    while bent[at : at + 4] == b"PK\x01\x02":
        name, extra, comment = struct.unpack_from("<HHH", bent, at + 28)
        if bent[at + 46 : at + 46 + name] == member.encode():
            struct.pack_into("<I", bent, at + 24, 1000)
        at += 46 + name + extra + comment
    path.write_bytes(bent)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_directory_that_lies_about_a_bomb(tmp_path, method):
    """zipfile itself unpacks up to 2 GB of what is said to be small."""
    import tracemalloc

    from packages import about as package_about
    from packages import as_script
    from packages import packed as package

    files = {
        Path(small_model(tmp_path / "m.vemray")): "weights.npz",
        Path(packed(tmp_path / "m.czann")): "model.model",
        Path(package(tmp_path / "m.zip", package_about())): "weights.onnx",
        tmp_path / "m.pt": "m/code/bomb",
    }
    (tmp_path / "m.pt").write_bytes(as_script())
    for path, member in files.items():
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as z:
                member = f"{z.namelist()[0].partition('/')[0]}/code/bomb"
        lying(path, member, bytes(60 << 20), method)
        (tmp_path / "m.pt.json").write_text(json.dumps({"classes": ["a"], "voxel_nm": [8, 8, 8], "stride": 1, "halo": 1}))
        tracemalloc.start()
        with pytest.raises(ModelError, match=path.name):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20, path
        tracemalloc.stop()


def test_sidecars_that_are_none(tmp_path):
    path, sidecar = packed(tmp_path / "m.czann"), tmp_path / "m.czann.json"
    for bad in (b"[" * 100_000, b'{"classes": ["\xe4"]}', b"[1]", b""):
        sidecar.write_bytes(bad)
        with pytest.raises(ModelError, match=r"m\.czann\.json"):
            load_facts(path)
    sidecar.unlink()
    sidecar.mkdir()
    with pytest.raises(ModelError, match=r"m\.czann\.json cannot be read: Is a directory"):
        load_facts(path)


def test_a_tile_too_large_to_be_tried(tmp_path):
    """What a graph gives is seen by running it; not with 29 GB."""
    path = packed(tmp_path / "m.czann", net(size=None, end=None, out=2), about(InputShape=[60000, 60000, 1], OutputShape=[60000, 60000, 2]))
    with pytest.raises(ModelError, match="60000 x 60000 is too large to be tried.*'window'"):
        load_facts(path)
    (tmp_path / "m.czann.json").write_text('{"window": [48, 48]}')
    with pytest.warns(UserWarning, match="softmax"):
        assert load_facts(path).window == [48, 48]


def test_native_files_have_the_same_bounds(tmp_path, monkeypatch):
    path = Path(small_model(tmp_path / "m.vemray"))
    monkeypatch.setattr(native, "BOMB_BYTES", 1000)
    load(path)
    with zipfile.ZipFile(tmp_path / "b.vemray", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("model.json", zipfile.ZipFile(path).read("model.json"))
        z.writestr("weights.npz", bytes(1 << 20))
    with pytest.raises(ModelError, match="100 times"):
        load(tmp_path / "b.vemray")


# writing -----------------------------------------------------------------------------------------------------------------

KEYS = {"FormatVersion", "Id", "Type", "InputShape", "OutputShape", "MinOverlap", "Classes", "ModelName", "Scaling"}


def valid(path) -> dict:
    """model.json, held against what the format says of each key; by czmodel itself where that is installed."""
    with zipfile.ZipFile(path) as z:
        assert sorted(z.namelist()) == ["model.json", "model.model"]
        told = json.loads(z.read("model.json"))
        model = onnx.load_from_string(z.read("model.model"))
    onnx.checker.check_model(model, full_check=True)
    assert set(told) <= KEYS and told["FormatVersion"] == "2.1.0" and len(told["Id"]) == 36
    sizes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (model.graph.input[0], model.graph.output[0])]
    assert sizes == [[0, *told["InputShape"]], [0, *told["OutputShape"]]], "the batch is free, all else is fixed"
    assert len(told["MinOverlap"]) == len(told["InputShape"]) - 1 and all(n % 2 == 0 for n in told["MinOverlap"])
    if told["Type"] != "Regression":
        assert len(told["Classes"]) == told["OutputShape"][-1] >= 2
    try:
        from czmodel.core.model_metadata import ModelMetadata
        from czmodel.core.util.common import validate_metadata
    except ImportError:
        return told
    validate_metadata(ModelMetadata.from_json(told), *[s[1:] for s in sizes])
    return told


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("classes", [("background", "a"), ("background", "a", "b")])
def test_there_and_back(tmp_path, dims, classes):
    model = small_model(
        tmp_path / "m.vemray", classes=classes, dims=dims, voxel_nm=(30.0, 5.0, 4.0), normalisation=Normalisation(method="fixed", low=30, high=190)
    )
    path = tmp_path / "m.czann"
    tile = {2: 96, 3: 64}[dims]
    save_czann(path, load(model), tile=tile)
    told = valid(path)
    assert told["Type"] == ("SingleClass" if len(classes) == 2 else "MultiClass") + "SemanticSegmentation" and told["Classes"] == list(classes)
    assert told["Scaling"] == ([4e-9, 5e-9] if dims == 2 else [4e-9, 5e-9, 30e-9])
    before, after = load_facts(model), load_facts(path)
    for name in ("classes", "dims", "voxel_nm", "stride", "halo", "training"):
        assert getattr(after, name) == getattr(before, name), name
    assert told["MinOverlap"] == [2 * h for h in after.halos[-dims:]] and remarks_of(path) == []
    grey = np.random.default_rng(0).integers(0, 256, (1, 1, *[tile] * dims)).astype(np.uint8)
    low, scale = before.normalisation.constants(None)
    want = load(model).predict((grey - low) * scale)
    tops = (grey / 255).astype(np.float32)
    session = ort.InferenceSession(member(path), providers=["CPUExecutionProvider"])
    bare = np.moveaxis(session.run(None, {session.get_inputs()[0].name: np.moveaxis(tops, 1, -1)})[0], -1, 1)
    assert want.std() > 0.02
    np.testing.assert_allclose(load(path).predict(tops), want, atol=1e-5)
    np.testing.assert_allclose(bare, want, atol=1e-5)
    save_czann(tmp_path / "again.czann", load(model), tile=tile, name="m")
    assert (tmp_path / "again.czann").read_bytes() == path.read_bytes()


def test_a_recipe_gets_the_same_from_both(tmp_path):
    model = small_model(tmp_path / "m.vemray", normalisation=Normalisation(method="fixed", low=100, high=110))
    save_czann(tmp_path / "m.czann", load(model), tile=96)
    em = image(shape=(3, 120, 101))
    one, other = whole(model, em), whole(str(tmp_path / "m.czann"), em)
    assert one.keys() == other.keys()
    halo = load_facts(model).halos[1]
    for name in one:  # at the plane's ends a fixed window sees the reflected image where the network's own padding acted
        a, b = (x[name][:, halo:-halo, halo:-halo].astype(int) for x in (one, other))
        assert a.std() > 5 and np.abs(a - b).max() <= 1


def test_an_image_there_and_back(tmp_path):
    model = small_model(
        tmp_path / "m.vemray", classes=["output"], activation="none", gives="image", normalisation=Normalisation(method="percentile", low=1, high=99)
    )
    with pytest.raises(ModelError, match="percentiles 1 and 99.*--grey"):
        save_czann(tmp_path / "m.czann", load(model))
    save_czann(tmp_path / "m.czann", load(model), grey=(20, 220), tile=96, bits=16)
    assert valid(tmp_path / "m.czann")["Type"] == "Regression"
    grey = np.random.default_rng(0).integers(0, 256, (2, 1, 96, 96)).astype(np.float32)
    want = load(model).predict((grey - 20) / 200) * 200 + 20
    np.testing.assert_allclose(load(tmp_path / "m.czann").predict(grey / 65535) * 65535, want, atol=0.02)


def test_what_cannot_be_written(tmp_path):
    path = tmp_path / "m.czann"
    one = load(small_model(tmp_path / "one.vemray", classes=["a"], activation="sigmoid"))
    two = load(small_model(tmp_path / "two.vemray"))
    for model, how, said in (
        (one, {}, "two at least"),
        (two, {"tile": 4}, "halo"),
        (two, {"grey": (9, 9)}, "above"),
        (load(segmentation(tmp_path / "s.czann")), {}, "native"),
    ):
        with pytest.raises(ModelError, match=said):
            save_czann(path, model, **how)
    assert not path.exists()


# files of others -----------------------------------------------------------------------------------------------------------

GIVEN = Path(os.environ.get("VEMRAY_TEST_DATA", "nowhere")) / "models_compat" / "czann"
FILES = [
    "N2V_tobacco_leaf", "N2V_tobacco_leaf_Whitened", "OAD_LiveDenoise_DAPI", "OAD_simple_pytorch_nuclei_segmodel_pytorch", "simple_nuclei_segmodel",
    "simple_regmodel", "simple_regmodel_out5",
]  # fmt: skip


@pytest.mark.skipif(not GIVEN.exists(), reason="VEMRAY_TEST_DATA names no folder with models_compat/czann")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore:.*the graph is right")
def test_given_files_run_and_agree_with_onnxruntime(name):
    """To 1 of 255: integers divided in another order, and another number of threads."""
    path = str(GIVEN / f"{name}.czann")
    facts = load_facts(path)
    assert facts.voxel_nm is None
    with pytest.raises(ModelError, match="ignore_voxel_size"):
        InferTiles(path).check(SPEC)
    from PIL import Image

    em = np.array(Image.open(GIVEN / "LowSNR_s001.png"))
    em = (em if em.ndim == 2 else em[..., 0])[None, :140, : facts.window[1] + 100 if "simple" in name else 190].astype(np.uint8)
    if facts.gives == "probabilities":
        em = em // 16  # both know two classes in the darkest greys only
    spec = ArraySpec(em.shape, "uint8", SPACING)
    op = InferTiles(path, ignore_voxel_size=True)
    op.check(spec)
    got = op(em, None, site=Site.whole(spec))
    want = plain(member(path), em, facts.window, facts.halos[1:], 255)
    if facts.gives == "image":
        assert list(got) == ["output"]
        want = np.clip(want[..., 0], 0, 1)
    else:
        assert list(got) == ["Nucleus"] and facts.activation == "none"
        want = want[..., 1]
    (array,) = got.values()
    assert np.abs(array - np.rint(want * 255)).max() <= 1 and array.std() > 0.5
