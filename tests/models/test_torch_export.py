"""Archives of torch.export: the same bits as torch's own run of them, and nothing of a file that is evaluated."""

import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.models.packages import conv  # noqa: E402
from tests.models.test_infer import blockwise  # noqa: E402
from vemray.errors import ModelError  # noqa: E402
from vemray.geometry import Spacing  # noqa: E402
from vemray.models.files import engine, load, load_facts, parts  # noqa: E402
from vemray.models.infer import InferTiles  # noqa: E402
from vemray.models.networks import network  # noqa: E402
from vemray.models.torch_export import Archive, Exported, _value  # noqa: E402
from vemray.ops.base import ArraySpec, Site  # noqa: E402

SPACING = Spacing(8, 8, 8)
FACTS = {
    "classes": ["background", "a"], "voxel_nm": [8, 8, 8], "stride": 8, "halo": 8, "activation": "softmax",
    "normalisation": {"method": "fixed", "low": 0, "high": 255},
}  # fmt: skip


def archive(module, *xs, dynamic: int = 0) -> bytes:
    """`dynamic`: what every edge is a multiple of; 0: only this size. The batch is free where the edges are."""
    dim = torch.export.Dim
    free = (
        [{0: dim("n", min=1, max=64)} | {i: dynamic * dim(f"d{i}_{k}", min=1, max=99) for i in range(2, x.ndim)} for k, x in enumerate(xs)]
        if dynamic
        else None
    )
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module.eval(), xs, dynamic_shapes=tuple(free) if free else None), out)
    return out.getvalue()


def written(path: Path, data: bytes, facts=FACTS) -> str:
    path.write_bytes(data)
    if facts is not None:
        Path(f"{path}.json").write_text(json.dumps(facts))
    return str(path)


def rewritten(data: bytes, change=lambda name, content: content) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as z, zipfile.ZipFile(out, "w") as new:
        for name in z.namelist():
            if (content := change(name.partition("/")[2], z.read(name))) is not None:
                new.writestr(name, content)
    return out.getvalue()


def graph_of(data: bytes, change) -> bytes:
    """With another graph: `change` is given model.json as a tree."""

    def one(name, content):
        if not name.startswith("models/"):
            return content
        tree = json.loads(content)
        change(tree)
        return json.dumps(tree).encode()

    return rewritten(data, one)


class Sizes(torch.nn.Module):
    """What networks do with sizes: padding, views, parts, interpolation to the size of another."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Conv2d(4, 2, 3, padding=1)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x):
        n, _, y, w = x.shape
        a, b = torch.cat([x, x * self.scale, x.clamp(0, 0.5), x.mean((2, 3), keepdim=True).expand(-1, -1, y, w)], 1).split(2, 1)
        small = torch.nn.functional.avg_pool2d(torch.cat([b, a], 1), 2)
        small = small.reshape(n, 4, (y // 2) * (w // 2)).view(n, 4, y // 2, w // 2)
        big = torch.nn.functional.interpolate(small, size=(y, w), mode="bilinear", align_corners=False)
        return self.inner(torch.nn.functional.pad(big, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1])


def monai(name: str, dims: int):
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(1)
    if name == "SegResNet":
        return nets.SegResNet(dims, 8, 1, 2)
    return nets.BasicUNet(dims, 1, 2, features=(8, 8, 16, 16, 16, 8))


@pytest.mark.parametrize(
    "make, shapes, dynamic",
    [
        (lambda: network("unet", classes=2, in_channels=1, dims=2, base=4, depth=2), [(2, 1, 32, 48), (3, 1, 16, 20), (1, 1, 64, 4)], 4),
        (lambda: network("unet", classes=2, in_channels=1, dims=3, base=4, depth=2), [(2, 1, 16, 24, 16), (1, 1, 8, 8, 12)], 4),
        (Sizes, [(2, 1, 32, 48), (1, 1, 10, 12)], 2),
        (lambda: monai("BasicUNet", 2), [(1, 1, 64, 64)], 0),
        (lambda: monai("SegResNet", 2), [(2, 1, 32, 32)], 0),
        (lambda: monai("SegResNet", 3), [(1, 1, 16, 16, 16)], 0),
    ],
)
def test_as_torch_runs_it(make, shapes, dynamic):
    torch.manual_seed(0)
    module = make().eval()
    run = Exported(Archive(archive(module, torch.zeros(shapes[0]), dynamic=dynamic), "m.pt2"), "cpu")
    torch.set_num_threads(1)
    for shape in shapes:
        x = np.random.default_rng(1).random(shape, np.float32)
        with torch.inference_mode():
            want = module(torch.from_numpy(x)).numpy()
        np.testing.assert_array_equal(run(x), want)
        assert want.std() > 1e-4


@pytest.mark.parametrize("how", [{}, {"mode": "blend", "tile": 24, "overlap": 8}])
def test_blocks_equal_the_whole(tmp_path, how):
    spec = ArraySpec((4, 83, 71), "uint8", SPACING)
    path = written(tmp_path / "m.pt2", archive(conv(2), torch.zeros(2, 1, 16, 16), dynamic=8))
    em = np.random.default_rng(0).integers(0, 256, spec.shape).astype(np.uint8)
    op = InferTiles(path, **how)
    op.check(spec)
    want = op(em, None, site=Site.whole(spec))["a"]
    for block in [(2, 64, 64), (3, 29, 50), (1, 83, 13)]:
        np.testing.assert_array_equal(blockwise(op, em, spec, block)["a"], want)
    assert want.std() > 5 and parts(path) == (path, path + ".json") and engine(path) == "torch"


def test_a_fixed_size_is_the_window(tmp_path):
    path = written(tmp_path / "m.pt2", archive(conv(2), torch.zeros(1, 1, 64, 48)))
    facts = load_facts(path)
    assert facts.window == [64, 48] and facts.batch == 1
    assert load(path).predict(np.zeros((1, 1, 64, 48), np.float32)).shape == (1, 2, 64, 48)
    with pytest.raises(ModelError, match="exported for 1 x 1 x 64 x 48 alone; dynamic_shapes"):
        Exported(Archive(Path(path).read_bytes(), path), "cpu")(np.zeros((1, 1, 32, 48), np.float32))
    Path(path + ".json").unlink()
    with pytest.raises(ModelError, match=r"m\.pt2 does not say.*m\.pt2\.json"):
        load_facts(path)


def target(name):
    def change(tree):
        tree["graph_module"]["graph"]["nodes"][0]["target"] = name

    return change


@pytest.mark.parametrize(
    "name",
    [
        "torch.ops.aten.from_file.default", "torch.ops.load_library", "torch.load", "torch.hub.load", "_operator.methodcaller", "os.system", "builtins.eval",
        "torch.ops.aten.__class__.mro", "torch.ops.higher_order.cond", "torch.ops.aten._cuda_init.default", "math.__loader__", "#extension", "", "torch.ops.aten.conv2d.__call__",
    ],
)  # fmt: skip
def test_only_operators_on_tensors_are_called(tmp_path, name):
    path = written(tmp_path / "m.pt2", graph_of(archive(conv(2), torch.zeros(1, 1, 32, 32)), target(name)))
    with pytest.raises(ModelError, match=r"m\.pt2: it calls '.*', which is none of the operators on tensors.*refused"):
        load(path)


class Evil:
    def __reduce__(self):
        return print, ("loaded",)


def test_nothing_is_unpickled_or_evaluated(tmp_path, capfd):
    """Where torch's own loader would: sample inputs, weights, expressions of sizes, names in the graph."""
    good = archive(network("unet", classes=2, in_channels=1, dims=2, base=4, depth=2), torch.zeros(2, 1, 16, 16), dynamic=4)
    evil = pickle.dumps(Evil())

    def code(tree):
        text = json.dumps(tree).replace('"expr_str": "', '"expr_str": "print(\\"loaded\\") + ')
        tree.clear()
        tree.update(json.loads(text))
        tree["range_constraints"] = {"print('loaded')": {"min_val": 1, "max_val": 2}}
        tree["guards_code"] = ["print('loaded')"]

    changed = rewritten(graph_of(good, code), lambda n, c: evil if "sample_inputs" in n else c)
    assert b"print" in changed
    path = written(tmp_path / "m.pt2", changed)
    x = np.random.default_rng(0).random((1, 1, 16, 16), np.float32)
    np.testing.assert_array_equal(load(path).predict(x), load(written(tmp_path / "good.pt2", good)).predict(x))

    def pickled(name, content):
        return (
            content.replace(b'"use_pickle": false', b'"use_pickle": true')
            if "weights_config" in name
            else evil
            if "weights/weight" in name
            else content
        )

    huge = rewritten(
        good, lambda n, c: c.replace(b'{"as_int": 3}, {"as_int": 3}]', b'{"as_int": 900000}, {"as_int": 900000}]') if "weights_config" in n else c
    )
    with pytest.raises(ModelError, match=r"m\.pt2: its weight '.*' cannot be read: .*more values than there are"):
        load(written(tmp_path / "m.pt2", huge))
    with pytest.raises(ModelError, match=r"m\.pt2: its weight '.*' is pickled, which is code and is not opened"):
        load(written(tmp_path / "m.pt2", rewritten(good, pickled)))
    assert "loaded" not in capfd.readouterr().out


class Normed(torch.nn.Module):
    """What networks have that others do not: another precision, a flag, results of no tensor, memory that is filled later, an input written into."""

    def __init__(self):
        super().__init__()
        self.low = torch.nn.Conv2d(1, 2, 3, padding=1).bfloat16()
        self.normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(2, 2, 1))
        self.norm, self.pool = torch.nn.InstanceNorm2d(2, affine=True), torch.nn.AdaptiveAvgPool2d(3)

    def forward(self, x, flag: bool = False):
        size = x.shape[2:]
        h = self.norm(self.normed(self.low(x.mul_(2).to(torch.bfloat16)).float()))
        h = h + torch.nn.functional.interpolate(self.pool(h), size, mode="bicubic", antialias=True)
        swapped = torch.empty_like(h)
        swapped[:, 0] = h[:, 1]
        swapped[:, 1] = h[:, 0]
        return None, swapped, size[0]


@pytest.mark.parametrize("change", [lambda e: e, lambda e: e.run_decompositions()])
def test_kinds_of_networks(change):
    torch.manual_seed(0)
    module, out, x = Normed().eval(), io.BytesIO(), np.random.default_rng(0).random((1, 1, 16, 24), np.float32)
    exported = change(torch.export.export(module, (torch.zeros(1, 1, 16, 24), False)))
    torch.export.save(exported, out)
    run, given = Exported(Archive(out.getvalue(), "m.pt2"), "cpu"), x.copy()
    for _ in range(2):
        with torch.inference_mode():
            want = exported.module()(torch.from_numpy(x.copy()), False)[1].numpy()
        np.testing.assert_array_equal(run(given), want)
    np.testing.assert_array_equal(given, x)
    assert want.std() > 0.1


def first(name, inputs, sym=None):
    """The first node is another call."""

    def change(tree):
        node = tree["graph_module"]["graph"]["nodes"][0]
        node["target"] = name
        node["inputs"] = [{"name": n, "arg": a, "kind": 1} for n, a in inputs]
        node["outputs"] = [{"as_sym_int": {"as_name": sym}}] if sym else node["outputs"]

    return change


X, INTS = {"as_tensor": {"name": "x"}}, {"as_ints": [1, 2, 32, 32]}


@pytest.mark.parametrize(
    "name, inputs, says",
    [
        ("save.default", [("t", X), ("filename", {"as_string": "written"})], "none of the operators on tensors"),
        ("mul.left_t", [("l", INTS), ("n", {"as_int": 1 << 40})], "none of the operators on tensors"),
        ("resize_.default", [("self", X), ("size", INTS)], "none of the operators on tensors"),
        ("set_.source_Tensor", [("self", X), ("source", X)], "none of the operators on tensors"),
        ("sparse_csr_tensor.crow_col_value_size", [("a", X)], "none of the operators on tensors"),
        ("max_pool2d_with_indices_backward.default", [("a", X)], "none of the operators on tensors"),
        ("embedding_bag.default", [("a", X)], "none of the operators on tensors"),
        ("lstm.data", [("a", X)], "none of the operators on tensors"),
        ("randn_like.default", [("self", X)], "draws random numbers"),
        ("dropout.default", [("input", X), ("p", {"as_float": 0.5}), ("another", {"as_bool": True})], "a network in training"),
        (
            "scaled_dot_product_attention.default",
            [(n, X) for n in "qkv"] + [("m", {"as_none": True}), ("p", {"as_float": 0.5})],
            "a network in training",
        ),
    ],
)
def test_operators_that_are_refused(tmp_path, monkeypatch, name, inputs, says):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "m.pt2", graph_of(archive(conv(2), torch.zeros(1, 1, 32, 32)), first(f"torch.ops.aten.{name}", inputs)))
    with pytest.raises(ModelError, match=rf"m\.pt2: it calls .*{says}|m\.pt2: it is {says}"):
        load(path).predict(np.zeros((1, 1, 32, 32), np.float32))
    assert not Path("written").exists()


@pytest.mark.parametrize("name, args", [("mul", [{"as_string": "a"}, {"as_int": 1 << 40}]), ("mul", [{"as_ints": [1]}, {"as_int": 1 << 40}]), ("pow", [{"as_int": 10}, {"as_int": 1 << 40}]), ("mod", [{"as_string": "%999999999999d"}, {"as_int": 1}])])  # fmt: skip
def test_numbers_do_not_fill_memory(name, args):
    data = graph_of(archive(conv(2), torch.zeros(1, 1, 32, 32)), first(f"_operator.{name}", [("a", a) for a in args], "s"))
    with pytest.raises(ModelError, match=r"m\.pt2.*numbers of 64 bits"):
        Exported(Archive(data, "m.pt2"), "cpu")(np.zeros((1, 1, 32, 32), np.float32))


def test_a_weight_stays_as_it_is():
    """Written into in place, by way of a view that torch does not know as one."""

    def grows(tree):
        graph = tree["graph_module"]["graph"]
        w = next(s["parameter"]["arg"]["name"] for s in tree["graph_module"]["signature"]["input_specs"] if "weight" in str(s.get("parameter")))
        call = {"metadata": {}, "is_hop_single_tensor_return": None}
        tensor = lambda n: {"as_tensor": {"name": n}}  # noqa: E731
        graph["nodes"] = [
            call | {"target": f"torch.ops.aten.{t}", "inputs": [{"name": "a", "arg": a, "kind": 1} for a in args], "outputs": [tensor(to)]}
            for t, args, to in (
                ("_unsafe_view.default", [tensor(w), {"as_ints": [-1]}], "v"),
                ("add_.Scalar", [tensor("v"), {"as_float": 1.0}], "v2"),
            )
        ] + graph["nodes"]

    run, x = Exported(Archive(graph_of(archive(conv(2), torch.zeros(1, 1, 32, 32)), grows), "m.pt2"), "cpu"), np.ones((1, 1, 32, 32), np.float32)
    np.testing.assert_array_equal(run(x), run(x))


def test_weights_many_times_and_names_that_are_none(tmp_path):
    good = archive(conv(2), torch.zeros(1, 1, 32, 32))

    def many(tree):
        specs = tree["graph_module"]["signature"]["input_specs"]
        one = json.dumps(next(s for s in specs if s.get("parameter")))
        name = json.loads(one)["parameter"]["arg"]["name"]
        specs += [json.loads(one.replace(f'"name": "{name}"', f'"name": "w{i}"')) for i in range(9999)]

    def unmade(tree):
        tree["graph_module"]["signature"]["output_specs"][0]["user_output"]["arg"]["as_tensor"]["name"] = "never"

    def listed(tree):
        tree["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_tensor": {"name": ["x"]}}

    for change, says in (
        (many, "its weights are more than"),
        (unmade, "'never' is used before it is made"),
        (listed, "cannot be read as an archive"),
    ):
        with pytest.raises(ModelError, match=rf"m\.pt2.*{says}"):
            load(written(tmp_path / "m.pt2", graph_of(good, change))).predict(np.zeros((1, 1, 32, 32), np.float32))


def test_what_is_not_run_says_why(tmp_path):
    good = archive(conv(2), torch.zeros(1, 1, 32, 32))
    training = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.BatchNorm2d(1).train(), (torch.zeros(2, 1, 32, 32),)), training)
    old = io.BytesIO()
    with zipfile.ZipFile(old, "w") as z:
        z.writestr("version", "1")
        z.writestr("serialized_exported_program.json", "{}")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("m/models/model.json", "{}")
        z.writestr("m/data/weights/weight_0", bytes(80 << 20))
    script = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(conv(2)), script)
    for data, says in (
        (training.getvalue(), r"a network in training.*module\.eval"),
        (old.getvalue(), "older torch: save it again"),
        (bomb.getvalue(), "100 times its size"),
        (script.getvalue(), "no archive of torch.export"),
        (good[: len(good) // 2], "truncated"),
        (b"noise" * 99, "truncated"),
        (rewritten(good, lambda n, c: b"[1, 2" if n.startswith("models/") else c), "cannot be read as an archive of torch.export"),
        (graph_of(good, lambda t: t["schema_version"].update(major=99)), "version 99 of torch.export's format"),
        (rewritten(good, lambda n, c: None if "weights/weight" in n else c), "its weight '.*' cannot be read"),
        (rewritten(good, lambda n, c: c[:8] if "weights/weight" in n else c), "its weight '.*' cannot be read"),
    ):
        with pytest.raises(ModelError, match=rf"m\.pt2.*{says}"):
            load(written(tmp_path / "m.pt2", data))


def test_a_damaged_graph_is_an_error_or_runs(tmp_path):
    """Every value of the graph in turn is another: what comes is a result of the right size or one clear error."""
    good = archive(network("unet", classes=2, in_channels=1, dims=2, base=2, depth=1), torch.zeros(2, 1, 8, 8), dynamic=2)
    rng, x = np.random.default_rng(0), np.zeros((1, 1, 8, 8), np.float32)

    def paths(tree, at=()):
        if isinstance(tree, dict | list):
            for k, v in tree.items() if isinstance(tree, dict) else enumerate(tree):
                yield from paths(v, (*at, k))
        else:
            yield at

    with zipfile.ZipFile(io.BytesIO(good)) as z:
        tree = json.loads(z.read(next(n for n in z.namelist() if "/models/" in n)))
    found = [p for p in paths(tree) if p[:2] in (("graph_module", "graph"), ("graph_module", "signature")) and "metadata" not in p]
    outcomes = set()
    for p in [found[i] for i in rng.choice(len(found), 120, replace=False)]:

        def change(t, p=p):
            for k in p[:-1]:
                t = t[k]
            t[p[-1]] = (
                rng.choice([0, -1, 3]).item() if isinstance(t[p[-1]], str) else rng.choice(["x", "conv2d", ""]).item() if rng.random() < 0.5 else None
            )

        try:
            load(written(tmp_path / "m.pt2", graph_of(good, change))).predict(x)
            outcomes.add("runs")
        except ModelError as e:
            assert "m.pt2" in str(e)
            outcomes.add("refused")
    assert outcomes == {"runs", "refused"}


def test_kinds_of_values():
    assert _value({"as_float": "Infinity"}) == float("inf") and _value({"as_sym_ints": [{"as_int": 3}]}) == [3]
    with pytest.raises(ModelError, match="it uses a 'graph'.*run_decompositions"):
        _value({"as_graph": {}})


def test_no_network_is_that_large(tmp_path):
    path = written(tmp_path / "m.pt2", archive(conv(2), torch.zeros(1, 1, 32, 32)), FACTS | {"stride": 1 << 40, "halo": 1 << 40})
    with pytest.raises(ModelError, match=r"m\.pt2\.json.*must be at most 16,384 voxels"):
        load_facts(path)
