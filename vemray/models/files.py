"""Model files: what a network needs to know travels with it, and nothing in a file is ever executed.

    .vemray  the native one: a zip of model.json and weights.npz
    .onnx    ONNX with the same facts in its metadata ('vemray') or in a sidecar FILE.onnx.json

A reader is one function in READERS; other formats are one more."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from vemray.errors import MissingExtra, ModelError

FORMAT = 1
#: no model file may unpack to more
MAX_BYTES = 4 << 30


class Normalisation(pydantic.BaseModel):
    """How grey values become the network's input: (value - low) / (high - low), low and high percentiles of the whole volume, or given."""

    model_config = pydantic.ConfigDict(extra="forbid")
    method: Literal["percentile", "fixed"] = "percentile"
    low: float = 1.0
    high: float = 99.0


class Facts(pydantic.BaseModel):
    """What is known of a model. `voxel_nm`: ZYX of the volume it was trained at. `halo`, `stride` in voxels of each network axis."""

    model_config = pydantic.ConfigDict(extra="forbid")
    format: int = FORMAT
    classes: list[str]
    dims: Literal[2, 3] = 2
    channels: int = 1
    voxel_nm: tuple[float, float, float]
    normalisation: Normalisation = Normalisation()
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    stride: int
    halo: int
    network: dict[str, Any] | None = None
    training: dict[str, Any] = {}


class Model:
    """A network that predicts. `predict(batch)`: float32 (B, channels, [Z,] Y, X) -> float32 probabilities (B, classes, [Z,] Y, X).
    One thread, one device; the same batch gives the same bits."""

    facts: Facts

    def predict(self, batch: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class TorchModel(Model):
    def __init__(self, facts: Facts, module, device: str = "cpu"):
        import torch

        self.facts, self.device = facts, device
        if device == "cuda":
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
        self.module = module.eval().to(device)
        self.format = torch.channels_last if facts.dims == 2 else torch.channels_last_3d
        self.module = self.module.to(memory_format=self.format)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            if self.device == "cpu":
                torch.set_num_threads(1)
            x = torch.from_numpy(batch).to(self.device).contiguous(memory_format=self.format)
            return _activate(self.module(x), self.facts.activation).cpu().numpy()


def _activate(y, activation: str):
    return y.softmax(1) if activation == "softmax" else y.sigmoid() if activation == "sigmoid" else y


class OnnxModel(Model):
    def __init__(self, facts: Facts, data: bytes, device: str = "cpu"):
        try:
            import onnxruntime as ort
        except ImportError:
            raise MissingExtra("onnxruntime", "torch", "Running an ONNX model") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CUDAExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
        try:
            self.session = ort.InferenceSession(data, options, providers=providers)
        except Exception as e:
            raise ModelError(f"onnxruntime cannot load the model: {str(e).splitlines()[0]}") from None
        self.facts, self.input = facts, self.session.get_inputs()[0]
        rank = len(self.input.shape)
        if rank != facts.dims + 2:
            raise ModelError(f"the ONNX model's input has {rank} axes {self.input.shape}; a {facts.dims}D network takes (batch, channel, {'z, ' if facts.dims == 3 else ''}y, x).")
        channels = self.input.shape[1]
        if isinstance(channels, int) and channels != facts.channels:
            raise ModelError(f"the ONNX model takes {channels} channels, its facts say {facts.channels}.")

    def predict(self, batch: np.ndarray) -> np.ndarray:
        y = self.session.run(None, {self.input.name: batch})[0]
        if y.shape[1] != len(self.facts.classes):
            raise ModelError(f"the ONNX model gives {y.shape[1]} channels for the {len(self.facts.classes)} classes {', '.join(self.facts.classes)}.")
        if self.facts.activation == "softmax":
            y = np.exp(y - y.max(axis=1, keepdims=True))
            y /= y.sum(axis=1, keepdims=True)
        elif self.facts.activation == "sigmoid":
            y = 1 / (1 + np.exp(-y))
        return y


# native ---------------------------------------------------------------------------------------------------------------


def save_native(path: str | Path, module, facts: Facts) -> None:
    """Write `module` (a network of NETWORKS) with its facts, atomically."""
    from vemray.models.networks import NETWORKS

    name = next(n for n, c in NETWORKS.items() if type(module) is c)
    facts = facts.model_copy(update={"network": {"name": name, **module.config}})
    weights = io.BytesIO()
    np.savez(weights, **{k: v.detach().cpu().numpy() for k, v in module.state_dict().items()})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as z:
        # a fixed time, so that the same weights are the same bytes
        for member, data in (("model.json", facts.model_dump_json(indent=1).encode()), ("weights.npz", weights.getvalue())):
            z.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    partial.replace(path)


def _members(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The wanted members of a zip, read in memory: nothing is unpacked to disk, so no path can escape."""
    try:
        with zipfile.ZipFile(path) as z:
            sizes = {i.filename: i.file_size for i in z.infolist()}
            missing = [w for w in wanted if w not in sizes]
            if missing:
                raise ModelError(f"{path} is not a vemray model: it has no {missing[0]}.")
            if sum(sizes[w] for w in wanted) > MAX_BYTES:
                raise ModelError(f"{path} would unpack to more than {MAX_BYTES >> 30} GB; refused.")
            return {w: z.read(w) for w in wanted}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, RuntimeError) as e:
        raise ModelError(f"{path} cannot be read as a model: {e}. The file may be truncated.") from None


def read_native_facts(path: Path) -> Facts:
    return _facts(_members(path, ("model.json",))["model.json"], path)


def read_native(path: Path, device: str) -> Model:
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "torch", "Running a model") from None
    from vemray.models.networks import NETWORKS

    parts = _members(path, ("model.json", "weights.npz"))
    facts = _facts(parts["model.json"], path)
    config = dict(facts.network or {})
    name = config.pop("name", None)
    if name not in NETWORKS:
        raise ModelError(f"{path} names the network '{name}', which this vemray does not have ({', '.join(NETWORKS)}).")
    try:
        module = NETWORKS[name](**config)
        with np.load(io.BytesIO(parts["weights.npz"]), allow_pickle=False) as w:
            module.load_state_dict({k: torch.from_numpy(np.array(w[k])) for k in w.files})
    except (TypeError, ValueError, RuntimeError, KeyError) as e:
        raise ModelError(f"{path}: weights and network do not fit: {str(e).splitlines()[0]}") from None
    if module.config["classes"] != len(facts.classes):
        raise ModelError(f"{path}: the network gives {module.config['classes']} channels for the {len(facts.classes)} classes {', '.join(facts.classes)}.")
    return TorchModel(facts, module, device)


def _facts(data: bytes, path: Path) -> Facts:
    try:
        facts = Facts.model_validate_json(data)
    except pydantic.ValidationError as e:
        p = e.errors()[0]
        raise ModelError(f"{path}: its facts cannot be used: {'.'.join(map(str, p['loc']))}: {p['msg']}.") from None
    if facts.format > FORMAT:
        raise ModelError(f"{path} was written by a newer vemray (format {facts.format}; this one reads {FORMAT}).")
    return facts


# ONNX -----------------------------------------------------------------------------------------------------------------


def save_onnx(path: str | Path, model: TorchModel) -> None:
    """Export with the facts in the file's metadata; the activation stays outside, as the facts say."""
    try:
        import onnx
    except ImportError:
        raise MissingExtra("onnx", "torch", "Writing an ONNX model") from None
    import torch

    facts = model.facts
    edge = [max(2 * facts.stride, 32)] * facts.dims
    x = torch.zeros((2, facts.channels, *edge))
    axes = {0: "batch", **{i + 2: a for i, a in enumerate("zyx"[-facts.dims :])}}
    data = io.BytesIO()
    module = model.module.cpu().to(memory_format=torch.contiguous_format)
    torch.onnx.export(module, (x,), data, dynamo=False, input_names=["image"], output_names=["scores"], dynamic_axes={"image": axes, "scores": axes}, opset_version=18)
    proto = onnx.load_from_string(data.getvalue())
    entry = proto.metadata_props.add()
    entry.key, entry.value = "vemray", facts.model_copy(update={"network": None}).model_dump_json()
    Path(path).write_bytes(proto.SerializeToString())


def read_onnx_facts(path: Path) -> Facts:
    sidecar = path.with_name(path.name + ".json")
    if sidecar.exists():
        return _facts(sidecar.read_bytes(), sidecar)
    try:
        import onnx
    except ImportError:
        raise MissingExtra("onnx", "torch", "Reading an ONNX model") from None
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as e:
        raise ModelError(f"{path} cannot be read as ONNX: {str(e).splitlines()[0]}. The file may be truncated.") from None
    for p in proto.metadata_props:
        if p.key == "vemray":
            return _facts(p.value.encode(), path)
    raise ModelError(
        f"{path} does not say what vemray must know: classes, voxel size, normalisation, stride, halo. Put them into {sidecar.name}, for example "
        '{"classes": ["background", "mitochondria"], "voxel_nm": [8, 8, 8], "stride": 16, "halo": 96, "activation": "softmax"}.'
    )


def read_onnx(path: Path, device: str) -> Model:
    return OnnxModel(read_onnx_facts(path), path.read_bytes(), device)


#: suffix -> (reader of facts, reader of the model)
READERS = {".vemray": (read_native_facts, read_native), ".onnx": (read_onnx_facts, read_onnx)}


def _reader(path: str | Path, which: int):
    p = Path(path)
    if p.suffix not in READERS:
        raise ModelError(f"'{path}': models of type '{p.suffix}' are not read. Known: {', '.join(READERS)}.")
    if not p.is_file():
        raise ModelError(f"there is no model '{path}'. A path in a recipe starts from the recipe's folder.")
    return READERS[p.suffix][which], p


def load_facts(path: str | Path) -> Facts:
    """The facts alone, without the weights. ModelError."""
    read, p = _reader(path, 0)
    return read(p)


def load(path: str | Path, device: str = "cpu") -> Model:
    """The model, ready to predict on `device` ('cpu' or 'cuda'). ModelError."""
    read, p = _reader(path, 1)
    return read(p, device)
