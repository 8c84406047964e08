"""ONNX files, run by ONNX Runtime. What the graph does not say (classes, voxel size, normalisation, stride, halo) is read from the file's
metadata or from a sidecar FILE.onnx.json; what it does say (channels, fixed sizes) is taken from the graph."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vemray.errors import MissingExtra, ModelError
from vemray.models.facts import Facts, contents, parse
from vemray.models.model import Model, activated
from vemray.store import access

MAX_BYTES = 2 << 30  # protobuf's own limit
#: of what is written
OPSET = 18


def session(data: bytes, device: str, path: str | Path):
    """An ONNX Runtime session that gives the same bits for the same batch: one thread, no choice of kernels by speed."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise MissingExtra("onnxruntime", "torch", "Running an ONNX model") from None
    if device == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ModelError(f"{path}: this ONNX Runtime cannot use a GPU. Install onnxruntime-gpu, or use device: cpu.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.use_deterministic_compute = True
    options.enable_mem_pattern = False  # a second pool beside the first from the second batch on, for no speed
    try:
        providers = ["CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"]
        return ort.InferenceSession(data, options, providers=providers, enable_fallback=0)  # else it would go on without the GPU
    except Exception as e:
        raise ModelError(f"{path}: ONNX Runtime cannot load it: {str(e).splitlines()[0]}") from None


class OnnxModel(Model):
    def __init__(self, facts: Facts, data: bytes, device: str = "cpu", path: str | Path = "model"):
        self.session = session(data, device, path)
        self.facts, self.path, self.input = facts, str(path), self.session.get_inputs()[0].name

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.check_input(batch)
        try:
            y = self._run(np.ascontiguousarray(batch, np.float32))
        except Exception as e:
            raise ModelError(f"{self.path}: the network cannot take a batch of {batch.shape}: {str(e).splitlines()[0]}") from None
        if y.ndim != batch.ndim or y.shape[2:] != batch.shape[2:]:
            raise ModelError(f"{self.path}: the network turns {batch.shape} into {y.shape}; its output must have the input's size.")
        if y.dtype.kind not in "fb":
            raise ModelError(f"{self.path}: the network gives whole numbers ({y.dtype}), not a score for each class.")
        self.check_output(y, self.path)
        return activated(y, self.facts.activation)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.input: batch})[0]


def _proto(path: Path):
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path} is larger than {MAX_BYTES >> 30} GB, which no ONNX file in one piece can be.")
    return graph(path.read_bytes(), path)


def graph(data: bytes, path: str | Path):
    """The parsed file. ModelError for what is truncated, or names other files."""
    try:
        import onnx
    except ImportError:
        raise MissingExtra("onnx", "torch", "Reading an ONNX model") from None
    try:
        proto = onnx.load_from_string(data)
    except Exception as e:
        raise ModelError(f"{path} cannot be read as ONNX: {str(e).splitlines()[0]}. The file may be truncated.") from None
    if not (proto.graph.node and proto.graph.input and proto.graph.output):
        raise ModelError(f"{path} cannot be read as ONNX: it holds no graph. The file may be truncated.")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in _tensors(proto)):
        raise ModelError(f"{path} keeps its weights in another file. Put them inside: onnx.save(onnx.load(FILE), OUT).")
    return proto


def _tensors(part) -> Iterator:
    """Every tensor of a model, a graph or a function, those within its loops and branches too."""
    if hasattr(part, "graph"):
        for inner in (part.graph, *part.functions):
            yield from _tensors(inner)
        return
    yield from getattr(part, "initializer", ())
    yield from (t for s in getattr(part, "sparse_initializer", ()) for t in (s.values, s.indices))
    for a in (a for n in part.node for a in n.attribute):
        yield from (a.t, *a.tensors)
        for inner in (a.g, *a.graphs):
            yield from _tensors(inner)


def read_facts(path: Path) -> Facts:
    proto = _proto(path)
    sidecar = path.with_name(path.name + ".json")
    stored = next((p.value.encode() for p in proto.metadata_props if p.key == "vemray"), None)
    if sidecar.exists():
        facts = parse(contents(sidecar), sidecar)
    elif stored is not None:
        facts = parse(stored, path)
    else:
        example = {"classes": ["background", "mitochondria"], "voxel_nm": [8, 8, 8], "stride": 16, "halo": 96, "activation": "softmax"}
        raise ModelError(
            f"{path} does not say what vemray must know: classes, voxel size, normalisation, stride, halo, and whether softmax or sigmoid is "
            f"still to be applied. Write it into {sidecar.name}, for example {json.dumps(example)}."
        )
    return _with_graph(facts, proto, path)


def _with_graph(facts: Facts, proto, path: Path) -> Facts:
    """The facts, checked against the graph and filled from it: it is the graph that runs."""
    shape = shape_of(the_input(proto, path))
    shown = shown_as(shape)
    if len(shape) != facts.dims + 2:
        axes = "(batch, channel, z, y, x)" if facts.dims == 3 else "(batch, channel, y, x)"
        raise ModelError(f"{path}: the graph's input is {shown}; a {facts.dims}D network takes {axes}.")
    if shape[1] is not None and shape[1] != facts.channels:
        raise ModelError(f"{path}: the graph's input {shown} has {shape[1]} channels, its facts say {facts.channels}.")
    given = proto.graph.output[0].type.tensor_type.shape.dim
    if len(given) > 1 and given[1].dim_value and given[1].dim_value != len(facts.classes):
        raise ModelError(f"{path}: the graph gives {given[1].dim_value} channels for {len(facts.classes)} classes ({', '.join(facts.classes)}).")
    update: dict = {}
    if any(shape[2:]):
        if not all(shape[2:]):
            raise ModelError(f"{path}: the graph fixes some edges of its input {shown} and not others. Export it with all of them free or all fixed.")
        update["window"] = shape[2:]
    if shape[0] is not None:
        update["batch"] = shape[0]
    if not update:
        return facts
    return parse(json.dumps({**facts.model_dump(mode="json"), **update}).encode(), path)


def the_input(proto, path: Path):
    weights = {t.name for t in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in weights]
    if len(inputs) != 1:
        raise ModelError(f"{path} takes {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); a segmentation network takes one image.")
    return inputs[0]


def shape_of(value) -> list[int | None]:
    """Of an input or output of a graph; None where it is free."""
    return [d.dim_value or None for d in value.type.tensor_type.shape.dim]


def shown_as(shape: list[int | None]) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"


def read(path: Path, device: str) -> OnnxModel:
    return OnnxModel(read_facts(path), path.read_bytes(), device, path)


def save(path: str | Path, model) -> None:
    """Export a torch model with its facts in the metadata; the activation stays outside, as the facts say."""
    native_only(model)
    import copy

    import torch

    facts = model.facts
    x = torch.zeros((2, facts.channels, *[max(2 * s, 32) for s in facts.strides[-facts.dims :]]))
    axes = {0: "batch", **{i + 2: a for i, a in enumerate("zyx"[-facts.dims :])}}
    module = copy.deepcopy(model.module).cpu().to(memory_format=torch.contiguous_format)
    access.write_bytes(str(path), exported(module, x, "scores", axes, facts))


def native_only(model) -> None:
    if not hasattr(model, "module"):
        raise ModelError(f"{getattr(model, 'path', 'this')} is not a native model: only .vemray is exported.")


def exported(module, x, output: str, axes: dict[int, str], facts: Facts) -> bytes:
    """`module`, which takes `x`, as ONNX with the facts in its metadata; the `axes` are free."""
    try:
        import onnx
    except ImportError:
        raise MissingExtra("onnx", "torch", "Writing an ONNX model") from None
    import torch

    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript is the old one, which says so
        names = {"input_names": ["image"], "output_names": [output], "dynamic_axes": {"image": axes, output: axes}}
        torch.onnx.export(module, (x,), data, dynamo=False, opset_version=OPSET, **names)
    proto = onnx.load_from_string(data.getvalue())
    entry = proto.metadata_props.add()
    entry.key, entry.value = "vemray", facts.model_copy(update={"network": None}).model_dump_json()
    return proto.SerializeToString()
