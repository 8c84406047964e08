"""CZANN, ZEISS' model files: a zip of model.json and model.model, an ONNX graph with channels last that takes grey values in 0..1.

What the two say of the same thing is taken from the graph, since it is the graph that runs. What neither says (voxels of a file without Scaling) or what
is to be otherwise is in a sidecar FILE.czann.json, some of the facts of vemray.models.facts. Files that vemray wrote carry all of them in the graph."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import uuid
import warnings
import zipfile
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic

from vemray.errors import MissingExtra, ModelError
from vemray.models import onnx_file
from vemray.models.facts import Facts, Normalisation, beside, parse
from vemray.models.native import members
from vemray.models.onnx_file import OnnxModel, shape_of, shown_as
from vemray.store import access

FORMAT_VERSION = "2.1.0"
SEGMENTATION = ("SingleClassSemanticSegmentation", "MultiClassSemanticSegmentation")
REGRESSION = "Regression"
#: no model.json is larger
JSON_BYTES = 1 << 20
#: metres; a pixel of 1 stands for one that is not known, and no microscope's is as large as this
LARGEST_PIXEL = 1e-3
#: values of the largest tile that is shown to a network to see what it gives
LARGEST_TRIED = 1 << 26
#: edge of the tile that is written: at least this, and large against the halo
EDGE = {2: 1024, 3: 128}

Shape = Annotated[list[pydantic.PositiveInt], pydantic.Field(min_length=3, max_length=4)]


class Description(pydantic.BaseModel):
    """model.json. Shapes are (y, x, channel) or (z, y, x, channel); Scaling is x, y(, z) in metres; MinOverlap is the halo of both sides together.
    FormatVersion came with 2.1.0; files before it have none."""

    FormatVersion: str | None = None
    Id: str | None = None
    Type: str
    InputShape: Shape | None = None
    OutputShape: Shape | None = None
    MinOverlap: list[pydantic.NonNegativeInt] | None = None
    Classes: list[str] | None = None
    ModelName: str | None = None
    Scaling: list[float] | None = None


class CzannModel(OnnxModel):
    def _run(self, batch: np.ndarray) -> np.ndarray:
        y = super()._run(np.ascontiguousarray(np.moveaxis(batch, 1, -1)))
        return np.ascontiguousarray(np.moveaxis(y, -1, 1))


def engine(path: Path) -> str:
    return "onnxruntime"


def read_facts(path: Path) -> Facts:
    facts, _, remarks = _opened(path)
    for remark in remarks:
        warnings.warn(f"{path}: {remark}", stacklevel=2)
    return facts


def read(path: Path, device: str) -> CzannModel:
    facts, data, _ = _opened(path)
    return CzannModel(facts, data, device, path)


def _opened(path: Path) -> tuple[Facts, bytes, list[str]]:
    """Facts, the ONNX file, and what the user should know of how one was made of the other."""
    about = _description(members(path, ("model.json",), JSON_BYTES)["model.json"], path)
    data = members(path, ("model.model",), onnx_file.MAX_BYTES)["model.model"]
    if data[:4] == b"PK\x03\x04":
        raise ModelError(f"{path} holds a TensorFlow SavedModel, as old files do, which is not run. Convert it to ONNX (tf2onnx) and pack that anew.")
    proto = onnx_file.graph(data, path)
    remarks: list[str] = []
    stored = next((p.value.encode() for p in proto.metadata_props if p.key == "vemray"), None)
    known = parse(stored, path).model_dump(mode="json") if stored is not None else _told(about, proto, path, remarks)
    sidecar = path.with_name(path.name + ".json")
    given = beside(sidecar) if sidecar.exists() else {}
    merged, where = {**known, **given}, sidecar if given else path
    if "activation" not in merged:
        merged["activation"] = _activation(data, parse(json.dumps({**merged, "activation": "none"}).encode(), where), proto, path, remarks)
    return _with_graph(parse(json.dumps(merged).encode(), where), proto, path), data, remarks


def _description(data: bytes, path: Path) -> Description:
    try:
        about = Description.model_validate_json(data)
    except pydantic.ValidationError as e:
        p = e.errors()[0]
        raise ModelError(f"{path}: its model.json cannot be used: {'.'.join(map(str, p['loc'])) or 'all'}: {p['msg']}.") from None
    major = (about.FormatVersion or "1").partition(".")[0]
    if not major.isdecimal() or int(major) > int(FORMAT_VERSION.partition(".")[0]):
        raise ModelError(f"{path} has the format version {about.FormatVersion}; this vemray reads up to {FORMAT_VERSION}.")
    if about.Type not in (*SEGMENTATION, REGRESSION):
        raise ModelError(f"{path} is a model of the type {about.Type}, which is not run. Those that are: {', '.join((*SEGMENTATION, REGRESSION))}.")
    return about


def _told(about: Description, proto, path: Path, remarks: list[str]) -> dict:
    """Facts, without the activation of a segmentation, from the graph and what model.json adds to it."""
    shape, out = shape_of(onnx_file.the_input(proto, path)), shape_of(proto.graph.output[0])
    dims = len(shape) - 2
    if dims not in (2, 3):
        raise ModelError(f"{path}: the graph's input is {shown_as(shape)}; this format's is (batch, y, x, channel) or (batch, z, y, x, channel).")
    for name, claimed, found in (("InputShape", about.InputShape, shape), ("OutputShape", about.OutputShape, out)):
        if claimed and found and (len(claimed) != len(found) - 1 or any(n not in (None, c) for c, n in zip(claimed, found[1:]))):
            remarks.append(f"model.json says {name} {claimed}, the graph has {shown_as(found[1:])}: the graph is right.")
    claimed = about.InputShape if about.InputShape and len(about.InputShape) == dims + 1 else None
    if not all(shape[1:-1]) and not claimed:
        raise ModelError(f"{path}: the graph leaves the size of its input {shown_as(shape)} free, and model.json has no InputShape that fits it.")
    channels = out[-1] if out and out[-1] else about.OutputShape[-1] if about.OutputShape else None
    return {
        "classes": _classes(about, channels, path),
        "dims": dims,
        "channels": shape[-1] or (claimed[-1] if claimed else 1),
        "voxel_nm": _voxel_nm(about, dims, remarks),
        "normalisation": {"method": "dtype"},
        "stride": 1,  # every tile is a whole window that lies where the grid puts it: the network's own stride plays no part
        "halo": _halo(about, dims, path, remarks),
        "window": [n or c for n, c in zip(shape[1:-1], claimed or shape[1:-1])],
        **({"gives": "image", "activation": "none"} if about.Type == REGRESSION else {}),
    }


def _classes(about: Description, channels: int | None, path: Path) -> list[str]:
    """Names that can be outputs, as many as the graph gives channels."""
    if about.Type == REGRESSION:
        return ["output"] if channels in (None, 1) else [f"output_{i + 1}" for i in range(channels)]
    names = about.Classes or [f"class_{i}" for i in range(channels or 0)]
    if not names or len(names) != (channels or len(names)):
        raise ModelError(f"{path}: model.json names {len(names)} classes ({', '.join(names)}), the graph gives {channels or '?'} channels.")
    return [re.sub(r"\W+", "_", name).strip("_") or f"class_{i}" for i, name in enumerate(names)]


def _voxel_nm(about: Description, dims: int, remarks: list[str]) -> list[float] | None:
    pixel = about.Scaling or []
    if len(pixel) < dims or not all(0 < p < LARGEST_PIXEL for p in pixel):
        if any(p != 1 for p in pixel):
            remarks.append(f"model.json says Scaling {pixel}, which are no {dims} sizes of a pixel in metres: its voxel size counts as unknown.")
        return None
    x, y, z = (*pixel[:2], pixel[1]) if dims == 2 else pixel[:3]  # how far planes lie apart is nothing to a 2D network, and never looked at
    return [float(f"{p * 1e9:.9g}") for p in (z, y, x)]


def _halo(about: Description, dims: int, path: Path, remarks: list[str]) -> list[int]:
    if about.MinOverlap is None:
        remarks.append("model.json has no MinOverlap, so tiles meet without a halo and may show. Give a 'halo' in the sidecar, or use mode: blend.")
        return [0] * dims
    if len(about.MinOverlap) != dims:
        raise ModelError(f"{path}: model.json has the MinOverlap {about.MinOverlap} for {dims} axes.")
    return [-(-n // 2) for n in about.MinOverlap]


def _activation(data: bytes, facts: Facts, proto, path: Path, remarks: list[str]) -> str:
    """'none' if the graph ends in what makes probabilities, or gives what adds up to 1; else 'softmax'."""
    makers = {o: node for node in proto.graph.node for o in node.output}
    name, last = proto.graph.output[0].name, ""
    while name in makers:
        node = makers.pop(name)
        last = node.op_type
        if last not in ("Transpose", "Identity", "Reshape", "Cast", "Squeeze", "Unsqueeze"):
            break
        name = next(iter(node.input), "")
    if last in ("Softmax", "Sigmoid", "HardSigmoid"):
        return "none"
    shape = (shape_of(onnx_file.the_input(proto, path))[0] or 1, facts.channels, *facts.window)
    if math.prod(shape) > LARGEST_TRIED:
        size = " x ".join(map(str, facts.window))
        raise ModelError(
            f"{path}: a tile of {size} is too large to be tried. Say in the sidecar what comes out of the network, 'activation', or give a smaller 'window'."
        )
    scores = CzannModel(facts, data, path=path).predict(np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape))
    if scores.min() > -1e-3 and np.abs(scores.sum(axis=1) - 1).max() < 1e-3:
        return "none"
    remarks.append("what the graph gives are no probabilities: softmax is applied to it. Say otherwise with 'activation' in the sidecar.")
    return "softmax"


def _with_graph(facts: Facts, proto, path: Path) -> Facts:
    """The facts, checked against the graph and filled from it."""
    entry = onnx_file.the_input(proto, path)
    shape, out = shape_of(entry), shape_of(proto.graph.output[0])
    if entry.type.tensor_type.elem_type != 1:
        raise ModelError(f"{path}: the graph's input is not of 32-bit floats, as this format demands.")
    if len(shape) != facts.dims + 2 or shape[-1] not in (None, facts.channels):
        raise ModelError(
            f"{path}: the graph's input is {shown_as(shape)}, which is not {facts.dims}D with {facts.channels} channels as its facts say."
        )
    if out and out[-1] not in (None, len(facts.classes)):
        raise ModelError(f"{path}: the graph gives {out[-1]} channels for {len(facts.classes)} classes ({', '.join(facts.classes)}).")
    if any(n not in (None, w) for n, w in zip(shape[1:-1], facts.window or [])):
        raise ModelError(f"{path}: the window {facts.window} does not fit the graph's input {shown_as(shape)}.")
    update = {"batch": shape[0]} if shape[0] else {}
    if all(shape[1:-1]):
        update["window"] = shape[1:-1]
    return parse(json.dumps({**facts.model_dump(mode="json"), **update}).encode(), path) if update else facts


def save(
    path: str | Path, model, *, grey: tuple[float, float] | None = None, bits: int = 8, tile: int | None = None, name: str | None = None
) -> None:
    """Export a native model. Normalisation and softmax go into the graph, which then takes grey values of `bits` bits scaled to 0..1.

    grey: the two grey values that are 0 and 1 to the network. Needed where the model takes them from each volume's histogram, which this format has no
    place for: the file then holds those of one volume, and is right for volumes of the same grey values. tile: edge of the window, the only one that
    the file takes."""
    onnx_file.native_only(model)
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "torch", "Writing a CZANN model") from None
    facts = model.facts
    if facts.gives == "probabilities" and len(facts.classes) < 2:
        raise ModelError(f"{model.path} has the one class {facts.classes[0]}; a .czann has two at least, the first the background.")
    window, constants = _window(facts, tile, model.path), _constants(facts, grey, model.path)
    data = onnx_file.exported(
        _channels_last(model, constants, float((1 << bits) - 1)),
        torch.zeros((1, *window, facts.channels)),
        "output",
        {0: "batch"},
        facts.model_copy(update={"normalisation": Normalisation(method="dtype"), "activation": "none", "window": window}),
    )
    path = Path(path)
    classes = facts.classes if facts.gives == "probabilities" else None
    about = Description(
        FormatVersion=FORMAT_VERSION,
        Id=str(uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(data).hexdigest())),
        Type=REGRESSION if classes is None else SEGMENTATION[len(classes) > 2],
        InputShape=[*window, facts.channels],
        OutputShape=[*window, len(facts.classes)],
        MinOverlap=[2 * h for h in facts.halos[-facts.dims :]],
        Classes=classes,
        ModelName=name or path.stem,
        Scaling=[float(f"{v * 1e-9:.12g}") for v in facts.voxel_nm[-facts.dims :][::-1]] if facts.voxel_nm else None,
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        for member, content in (("model.json", about.model_dump_json(exclude_none=True).encode()), ("model.model", data)):
            z.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)  # a fixed time: same weights, same bytes
    access.write_bytes(str(path), packed.getvalue())


def _constants(facts: Facts, grey: tuple[float, float] | None, path: str) -> tuple[np.float32, np.float32] | None:
    """Offset and scale to put into the graph; None where the network takes 0..1 as it is."""
    n = facts.normalisation
    if n.method == "dtype":
        return None
    if grey is not None:
        if not grey[1] > grey[0]:
            raise ModelError(f"grey values {grey[0]:g} and {grey[1]:g}: the second must be above the first.")
        n = Normalisation(method="fixed", low=grey[0], high=grey[1])
    if n.needs_histogram:
        which = "its mean, and its mean and a standard deviation" if n.method == "standard" else f"its percentiles {n.low:g} and {n.high:g}"
        raise ModelError(
            f"{path} is normalised by each volume's histogram, which a .czann has no place for. Give the two grey values of a volume like those that "
            f"it is meant for ({which}): --grey LOW,HIGH."
        )
    return n.constants(None)


def _window(facts: Facts, tile: int | None, path: str) -> list[int]:
    window = []
    for stride, halo in zip(facts.strides[-facts.dims :], facts.halos[-facts.dims :]):
        edge = -(-(tile or max(EDGE[facts.dims], 4 * halo)) // stride) * stride
        if edge <= 2 * halo:
            raise ModelError(f"{path}: a halo of {halo} on both sides leaves nothing of a tile of {edge}. Give {4 * halo} or more.")
        window.append(edge)
    return window


def _channels_last(model, constants, largest: float):
    """The network with everything that this format wants inside: (batch, [z,] y, x, channel) in 0..1 to the same with probabilities, or an image."""
    import copy

    import torch

    class ChannelsLast(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(model.module).cpu().to(memory_format=torch.contiguous_format)

        def forward(self, x):
            axes = list(range(1, x.ndim - 1))
            x = x.permute(0, x.ndim - 1, *axes)
            if constants is not None:
                offset, scale = map(float, constants)
                x = (x * largest - offset) * scale
            y = self.network(x)
            if model.facts.activation != "none":
                y = y.softmax(1) if model.facts.activation == "softmax" else y.sigmoid()
            if model.facts.gives == "image" and constants is not None:
                y = (y / scale + offset) / largest
            return y.permute(0, *[a + 1 for a in axes], 1)

    return ChannelsLast().eval()
