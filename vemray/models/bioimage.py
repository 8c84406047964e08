"""BioImage.IO models (spec 0.4 and 0.5): a folder, its YAML file or a zip, with ONNX or TorchScript weights. Nothing of a package runs in Python.

Packages that vemray wrote say in config.vemray what the spec has no place for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pydantic

from vemray.errors import ModelError
from vemray.models.bioimage_spec import Axis, Description, describe
from vemray.models.facts import Facts, beside, parse
from vemray.models.model import Model, activated
from vemray.models.process import Step, applied, numbers

#: facts that config.vemray may hold
OWN = ("format", "classes", "voxel_nm", "stride", "gives", "mode", "background", "memory", "training")
#: windows of networks whose sizes leave no stride, about
EDGE = {2: 256, 3: 64}


def facts_of(d: Description) -> Facts:
    """Facts of the description alone. What it does not say is None (voxel size) or assumed on the safe side (halo: tiles are blended)."""
    space = d.input.space
    dims, halos = len(space), [a.halo for a in d.output.space]
    halo = [0 if h is None else h for h in halos]
    fixed = [a.size for a in space]
    if any(fixed) or any(a.least % a.step for a in space):
        window = [n or _window(a, max(EDGE[dims], 4 * h)) for n, a, h in zip(fixed, space, halo)]
        stride = [1 if n else math.gcd(w, a.step) for n, w, a in zip(fixed, window, space)]
    else:
        window, stride = None, [a.step for a in space]
    nm = [a.nm for a in space]
    batch, names = d.input.axis("b"), d.names
    return Facts(
        classes=names, dims=dims, channels=1, activation="none", stride=stride, halo=[-(-h // s) * s for h, s in zip(halo, stride)], window=window,
        voxel_nm=None if None in nm else (nm[0], *nm) if dims == 2 else nm,  # a 2D network never sees how far planes lie apart
        normalisation=d.before, batch=1 if batch is None else batch.size, mode="blend" if not any(halo) else None,
        background=len(names) > 1 and names[0].lower() in ("background", "bg"),
    )  # fmt: skip


def _window(a: Axis, about: int) -> int:
    return a.least + -(-max(0, about - a.least) // a.step) * a.step


def read_facts(path: Path) -> Facts:
    return _known(describe(path), path)[0]


def _known(d: Description, path: Path) -> tuple[Facts, str, bytes]:
    """The facts with what a sidecar adds, and the weights that are run, checked."""
    try:
        facts = facts_of(d)
    except pydantic.ValidationError as e:
        raise ModelError(f"{d.package.where}: cannot be run: {e.errors()[0]['msg']}.") from None
    if d.own:
        if odd := [str(k) for k in d.own.value if k not in OWN]:
            raise d.own.error(f"'{odd[0]}' is not read there. Known: {', '.join(OWN)}.")
        facts = parse(json.dumps({**facts.model_dump(mode="json"), **d.own.value}, default=str).encode(), f"{d.package.where}: config.vemray")
    sidecar = sidecar_of(path)
    if sidecar.exists():
        given = beside(sidecar)
        if "halo" in given:  # then tiles are joined as they are elsewhere
            given = {"mode": None, **given}
        facts = parse(json.dumps({**facts.model_dump(mode="json"), **given}).encode(), sidecar)
    if not d.likely and facts.activation == "none" and facts.gives == "probabilities":
        raise d.output.at.error(
            "nothing says that the output lies in 0..1, as probabilities do: the last postprocessing is no sigmoid, softmax, binarize or clip, and the "
            f'range of the data is open. Say in {sidecar.name} what it is: {{"activation": "sigmoid"}} to be applied, or {{"gives": "image"}}.'
        )
    kind = next(iter(d.weights))
    return facts, kind, d.weights[kind].file()


def sidecar_of(path: str | Path) -> Path:
    """Where the user may say what the package does not: rdf.yaml.json, model.zip.json, folder.json."""
    p = Path(path)
    return p.with_name(p.name + ".json")


def parts(path: Path) -> tuple[str, ...]:
    """The files that make the model."""
    d = describe(path)
    entry = d.weights[next(iter(d.weights))]
    sidecar = sidecar_of(path)
    return (*d.package.files([d.package.description, entry["source"].source()]), *([str(sidecar)] if sidecar.exists() else []))


def engine(path: Path) -> str:
    return "onnxruntime" if next(iter(describe(path).weights)) == "onnx" else "torch"


class BioImageModel(Model):
    """The network between its pre- and postprocessing, whatever the order of its axes. Preprocessing is the caller's."""

    def __init__(self, d: Description, facts: Facts, kind: str, data: bytes, device: str = "cpu"):
        self.facts, self.d, self.path = facts, d, str(d.package.where)
        # with a halo the spec wants more than two of it, whatever the network takes
        self.least = facts.strides[-facts.dims :] if d.own else [a.least for a in d.input.space]
        where = f"{self.path}: weights.{kind}"
        self.run, sizes = _onnx(data, device, where) if kind == "onnx" else (_script(data, device, where), [])
        at = d.input.order.find("b")
        # descriptions, those of 0.4 above all, call a batch free that the graph has fixed to 1
        self.singly = at < 0 or (at < len(sizes) and sizes[at] == 1)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.check_input(batch)
        for n, axis, least in zip(batch.shape[2:], self.d.input.space, self.least):
            if axis.size is None and n < least:
                raise ModelError(
                    f"{self.path}: a tile of {n} along {axis.kind}, but the package says at least {least}: the volume or 'tile' is too small."
                )
        image, scores = self.d.input, self.d.output
        each = [batch[i : i + 1] for i in range(len(batch))] if self.singly else [batch]
        y = np.concatenate([scores.usual(self.run(image.own(x))) for x in each])
        if y.shape[0] != batch.shape[0] or y.shape[2:] != batch.shape[2:]:
            raise ModelError(f"{self.path}: the network turns {batch.shape} into {y.shape}; its output must have the input's size.")
        self.check_output(y, self.path)
        return activated(finished(y, self.d.after), self.facts.activation)


def finished(y: np.ndarray, after: list[str | list[Step]]) -> np.ndarray:
    """(batch, channel, [z,] y, x) after postprocessing."""
    y = np.array(y, np.float32)
    for step in after:
        if step == "softmax":
            y = activated(y, "softmax")
        else:
            for c in range(y.shape[1]):
                applied(*numbers(step[c if len(step) > 1 else 0], None), y[:, c])
    return y


def read(path: Path, device: str) -> BioImageModel:
    d = describe(path)
    return BioImageModel(d, *_known(d, path), device)


def onnx_session(data: bytes, device: str, where: str):
    from vemray.models.onnx_file import graph, session

    graph(data, where)  # refuses what names other files
    return session(data, device, where)


def _onnx(data: bytes, device: str, where: str):
    s = onnx_session(data, device, where)
    if len(s.get_inputs()) != 1:
        raise ModelError(f"{where}: the graph takes {len(s.get_inputs())} inputs; a segmentation network takes one image.")
    types = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
    name, kind = s.get_inputs()[0].name, s.get_inputs()[0].type
    if kind not in types:
        raise ModelError(f"{where}: the graph takes {kind}; networks get float32 here.")

    def run(x: np.ndarray) -> np.ndarray:
        try:
            return s.run(None, {name: x.astype(types[kind], copy=False)})[0]
        except Exception as e:
            raise ModelError(f"{where}: the network cannot take a batch of {x.shape}: {str(e).splitlines()[0]}") from None

    return run, s.get_inputs()[0].shape


def _script(data: bytes, device: str, where: str):
    from vemray.models.torchscript import Script

    return Script(data, device, where)
