"""BioImage.IO packages of small random networks, for tests."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
import yaml
from onnx import helper, numpy_helper


def kernel(out: int, dims: int = 2) -> np.ndarray:
    """Weights of a convolution 3 wide that add up to 0: noise moves it, its mean does not."""
    w = np.random.default_rng(0).normal(0, 1, (out, 1, *[3] * dims)).astype(np.float32)
    return w - w.mean(axis=tuple(range(1, w.ndim)), keepdims=True)


def as_onnx(out: int = 1, dims: int = 2, size: int | None = None, batch: int | None = None) -> bytes:
    edges = [size or f"n{i}" for i in range(dims)]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["in", "w"], ["out"], pads=[1] * (2 * dims))], "net",
        [helper.make_tensor_value_info("in", 1, [batch or "b", 1, *edges])], [helper.make_tensor_value_info("out", 1, [batch or "b", out, *edges])],
        [numpy_helper.from_array(kernel(out, dims), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def conv(out: int = 1, dims: int = 2) -> torch.nn.Module:
    layer = (torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d)(1, out, 3, padding=1, bias=False)
    layer.weight.data = torch.from_numpy(kernel(out, dims))
    return torch.nn.Sequential(layer).eval()  # its part is called "0", which takes a getattr in TorchScript


def as_script(out: int = 1, dims: int = 2) -> bytes:
    data = io.BytesIO()
    torch.jit.save(torch.jit.script(conv(out, dims)), data)
    return data.getvalue()


def about(out: int = 1, size=None, before=(), after=({"id": "sigmoid"},), weights="onnx", halo: int | None = 4, **more) -> dict:
    """The description in version 0.5. size: of y and x."""
    space = {"type": "space", "size": {"min": 16, "step": 8} if size is None else size, "unit": "nanometer", "scale": 8.0}
    same = [{**space, "id": a, "size": {"tensor_id": "em", "axis_id": a}, **({"halo": halo} if halo else {})} for a in "yx"]
    names = {"channel_names": [f"class {i}" for i in range(out)]}
    source = {"onnx": {"source": "weights.onnx", "opset_version": 18}, "torchscript": {"source": "weights.pt", "pytorch_version": "2.6.0"}}
    return {
        "format_version": "0.5.4", "type": "model", "name": "small net",
        "inputs": [
            {
                "id": "em", "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["em"]}, *({**space, "id": a} for a in "yx")],
                "preprocessing": list(before), "test_tensor": {"source": "in.npy"},
            }
        ],
        "outputs": [{"id": "out", "axes": [{"type": "batch"}, {"type": "channel", **names}, *same], "postprocessing": list(after), "test_tensor": {"source": "out.npy"}}],
        "weights": {weights: source[weights]}, **more,
    }  # fmt: skip


def about_04(out: int = 1, before=(), after=({"name": "sigmoid"},), weights="onnx") -> dict:
    """The same in version 0.4, which has no voxel size and no names of channels."""
    return {
        "format_version": "0.4.10", "type": "model", "name": "small net",
        "inputs": [
            {"name": "em", "axes": "bcyx", "data_type": "float32", "shape": {"min": [1, 1, 16, 16], "step": [0, 0, 8, 8]}, "preprocessing": list(before)}
        ],
        "outputs": [
            {
                "name": "out", "axes": "bcyx", "data_type": "float32", "halo": [0, 0, 4, 4], "postprocessing": list(after),
                "shape": {"reference_tensor": "em", "scale": [1, 0, 1, 1], "offset": [0, out / 2, 0, 0]},
            }
        ],
        "test_inputs": ["in.npy"], "test_outputs": ["out.npy"], "weights": {weights: {"source": "weights.onnx" if weights == "onnx" else "weights.pt"}},
    }  # fmt: skip


def packed(path: Path, description: dict | str, files: dict[str, bytes] | None = None, out: int = 1, **net) -> str:
    """A .zip, a .yaml beside its files, or a folder; with the weights that it names."""
    files = dict(files or {})
    kinds = description.get("weights", {}) if isinstance(description, dict) else {}
    if "onnx" in kinds:
        files.setdefault("weights.onnx", as_onnx(out, **net))
    if "torchscript" in kinds:
        files.setdefault("weights.pt", as_script(out))
    text = description if isinstance(description, str) else yaml.safe_dump(description)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for name, data in {"rdf.yaml": text, **files}.items():
                z.writestr(name, data)
        return str(path)
    folder = path.parent if path.suffix == ".yaml" else path
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (path if path.suffix == ".yaml" else path / "rdf.yaml").write_text(text)
    return str(path)


def npy(array: np.ndarray, **how) -> bytes:
    data = io.BytesIO()
    np.save(data, array, **how)
    return data.getvalue()


def checked(model: bytes) -> None:
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
