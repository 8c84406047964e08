"""TorchScript files: blocks of their results, what their sidecar says, and archives made to do harm."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from tests.models.packages import as_script, conv  # noqa: E402
from tests.models.test_infer import blockwise  # noqa: E402
from vemray.errors import ModelError  # noqa: E402
from vemray.geometry import Spacing  # noqa: E402
from vemray.models.files import load, load_facts  # noqa: E402
from vemray.models.infer import InferTiles  # noqa: E402
from vemray.models.torchscript import Script  # noqa: E402
from vemray.ops.base import ArraySpec, Site  # noqa: E402

SHAPE, SPACING = (4, 83, 71), Spacing(8, 8, 8)
SPEC = ArraySpec(SHAPE, "uint8", SPACING)
FACTS = {
    "classes": ["background", "a"], "voxel_nm": [8, 8, 8], "stride": 8, "halo": 8, "activation": "softmax",
    "normalisation": {"method": "fixed", "low": 0, "high": 255},
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


def written(path, data: bytes, facts=FACTS) -> str:
    path.write_bytes(data)
    if facts is not None:
        Path(f"{path}.json").write_text(json.dumps(facts))
    return str(path)


@pytest.mark.parametrize("name", ["m.pt", "m.torchscript"])
@pytest.mark.parametrize("how", [{}, {"mode": "blend", "tile": 24, "overlap": 8}])
def test_blocks_equal_the_whole_and_that_equals_torch(tmp_path, name, how):
    path, em = written(tmp_path / name, as_script(2)), np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    op = InferTiles(path, **how)
    op.check(SPEC)
    want = op(em, None, site=Site.whole(SPEC))["a"]
    for block in [(2, 64, 64), (3, 29, 50), (1, 83, 13)]:
        np.testing.assert_array_equal(blockwise(op, em, SPEC, block)["a"], want)
    padded = np.pad(em, [(0, 0), (0, 5), (0, 1)], mode="reflect")[:, None].astype(np.float32) / 255
    with torch.inference_mode():
        plain = conv(2)(torch.from_numpy(padded)).softmax(1)[:, 1, :83, :71].numpy()
    if not how:
        assert np.abs(want - np.rint(plain * 255)).max() <= 1
    assert want.std() > 5 and op.files() == (path, path + ".json")


def test_the_sidecar_says_what_the_file_does_not(tmp_path):
    path = written(tmp_path / "m.pt", as_script(2), None)
    with pytest.raises(ModelError, match=r"classes, voxel size.*m\.pt\.json"):
        load_facts(path)
    written(tmp_path / "m.pt", as_script(2), {**FACTS, "class": 1})
    with pytest.raises(ModelError, match=r"m\.pt\.json.*class"):
        load_facts(path)
    written(tmp_path / "m.pt", as_script(3))
    with pytest.raises(ModelError, match="3 channels for 2 classes"):
        load(path).predict(np.zeros((1, 1, 16, 16), np.float32))
    with pytest.raises(ModelError, match="1 channel, not"):
        load(path).predict(np.zeros((1, 2, 16, 16), np.float32))


def test_it_gives_the_same_bits_whatever_the_threads(tmp_path):
    model, x = load(written(tmp_path / "m.pt", as_script(2))), np.random.default_rng(0).random((4, 1, 96, 96), np.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = [model.predict(x) for _ in range(4)]  # an optimising interpreter would change its code after some
        torch.set_num_threads(2)
        np.testing.assert_array_equal(model.predict(x), want[0])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(w, want[0]) for w in want)


# files made to do harm ---------------------------------------------------------------------------------------------------


def scripted(module) -> bytes:
    data = io.BytesIO()
    torch.jit.save(torch.jit.script(module), data)
    return data.getvalue()


def rewritten(data: bytes, change, extra=()) -> bytes:
    """The archive with `change(name, content)` for every member."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as z, zipfile.ZipFile(out, "w") as w:
        for i in z.infolist():
            w.writestr(i.filename, change(i.filename, z.read(i)))
        for name, content in extra:
            w.writestr(name, content)
    return out.getvalue()


class Saves(torch.nn.Module):
    def forward(self, x):
        torch.save(x, "SOMEWHERE")
        return x


class Reads(torch.nn.Module):
    def forward(self, x):
        return x + torch.from_file("SOMEWHERE", False, 4, dtype=torch.float32).sum()


class ReadsInALoop(torch.nn.Module):
    def forward(self, x):
        for i in range(3):
            if i == 2:
                x = x + torch.from_file("SOMEWHERE", False, 4, dtype=torch.float32).sum()
        return x


class Adds(torch.nn.Module):
    def forward(self, x):
        return torch.add(x, 1.0)


class Restores(torch.nn.Module):
    """Runs its code while it is loaded."""

    def __init__(self):
        super().__init__()
        self.training = False

    @torch.jit.export
    def __getstate__(self):
        return (torch.zeros(1), self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        print("loaded")  # noqa: T201
        self.training = state[1]

    def forward(self, x):
        return x


@pytest.mark.parametrize("harm, says", [(Saves, "'save'"), (Reads, "'from_file'"), (ReadsInALoop, "'from_file'"), (Restores, "'__setstate__'")])
def test_code_that_reaches_beyond_tensors_is_refused(tmp_path, monkeypatch, capfd, harm, says):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "m.pt", scripted(harm()))
    with pytest.raises(ModelError, match=rf"m\.pt.*uses {says}.*refused"):
        load(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pt", "m.pt.json"] and "loaded" not in capfd.readouterr().out


@pytest.mark.parametrize("spelled", ['getattr(torch, "from" "_file")', 'getattr(torch, "from\\137file")', 'getattr(torch, "sa" "ve")'])
def test_names_that_hide_are_found_in_what_was_compiled(tmp_path, spelled):
    """The text does not hold the name, torch puts it together: refused by the operators of the compiled code, before any of it runs."""

    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(4, np.float32).tobytes())
    saves = spelled.endswith('"ve")')
    call = f'{spelled}(x, "{tmp_path}/made")' if saves else f'x + torch.sum({spelled}("{secret}", False, 4))'

    def change(name, content):
        return content.replace(b"return torch.add(x, 1.)", f"y = {call}\n    return {'x' if saves else 'y'}".encode())

    path = written(tmp_path / "m.pt", rewritten(scripted(Adds()), change))
    assert b"getattr" in b"".join(zipfile.ZipFile(path).read(n) for n in zipfile.ZipFile(path).namelist())
    with pytest.raises(ModelError, match=r"m\.pt: its code uses 'aten::(from_file|save)'.*refused"):
        load(path)
    torch.jit.load(path)(torch.zeros(2))
    assert (tmp_path / "made").exists() == saves, "it would have done so"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_and_broken_archives(tmp_path):
    good = as_script(2)

    def refused(data, says, name="m.pt"):
        for call in (load, lambda p: Script(Path(p).read_bytes(), "cpu", p)):
            with pytest.raises(ModelError, match=says):
                call(written(tmp_path / name, data))

    state = io.BytesIO()
    torch.save(conv(2).state_dict(), state)
    whole = io.BytesIO()
    torch.save(conv(2), whole)
    old = io.BytesIO()
    torch.save(conv(2).state_dict(), old, _use_new_zipfile_serialization=False)
    for data in (state.getvalue(), whole.getvalue(), old.getvalue(), pickle.dumps({"a": 1})):
        refused(data, "pickled PyTorch file, which is code and is not opened")
    first = zipfile.ZipFile(io.BytesIO(good)).namelist()[0]
    refused(rewritten(good, lambda n, c: c, [(first, b"other")]), "holds a name twice")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as z:
        for name in ("m/constants.pkl", "m/code/a.py"):
            z.writestr(name, "")
        z.writestr("m/data/0", bytes(80 << 20))
    refused(bomb.getvalue(), "100 times its size")
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    for data, says in ((b"", "no zip"), (b"noise" * 99, "no zip"), (good[: len(good) // 2], "no zip"), (empty.getvalue(), "no TorchScript archive")):
        refused(data, says)
    refused(rewritten(good, lambda n, c: b"def (" if n.endswith(".py") else c), "torch cannot load it")
    refused(rewritten(good, lambda n, c: pickle.dumps(print) if n.endswith("/data.pkl") else c), "torch cannot load it")
    assert load(written(tmp_path / "m.pt", rewritten(good, lambda n, c: c))).predict(np.zeros((1, 1, 8, 8), np.float32)).shape == (1, 2, 8, 8)


def test_damaged_archives_are_read_as_they_were_or_refused(tmp_path):
    data, rng = as_script(2), np.random.default_rng(0)
    for _ in range(100):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            load(written(tmp_path / "m.pt", bytes(broken)))
        except ModelError as e:
            assert "m.pt" in str(e)
