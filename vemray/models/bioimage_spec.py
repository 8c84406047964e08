"""What the YAML of a BioImage.IO model says (spec 0.4 and 0.5), and what vemray cannot keep of it, refused by its key."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vemray.errors import ModelError
from vemray.models.bioimage_steps import after, before
from vemray.models.package import At, Package
from vemray.models.process import Step, Steps

#: lengths that the spec names, in nm
UNITS = {
    "angstrom": 0.1, "attometer": 1e-9, "centimeter": 1e7, "decimeter": 1e8, "femtometer": 1e-6, "hectometer": 1e11, "inch": 2.54e7,
    "kilometer": 1e12, "meter": 1e9, "micrometer": 1e3, "millimeter": 1e6, "nanometer": 1.0, "picometer": 1e-3,
}  # fmt: skip
#: weights that are run, the first is preferred
RUNS = ("onnx", "torchscript")


@dataclass
class Axis:
    """`kind`: one of bczyx. `size`: the only one, or None where `least` + any number of `step`."""

    kind: str
    at: At
    size: int | None = None
    least: int = 1
    step: int = 1
    nm: float | None = None
    halo: int | None = None
    names: list[str] = field(default_factory=list)


@dataclass
class Tensor:
    id: str
    at: At
    axes: list[Axis]
    steps: list[At]
    test: At  # {source, sha256}
    range: list[float] | None

    @property
    def order(self) -> str:
        return "".join(a.kind for a in self.axes)

    @property
    def space(self) -> list[Axis]:
        """In the order z, y, x."""
        return [a for k in "zyx" for a in self.axes if a.kind == k]

    def axis(self, kind: str) -> Axis | None:
        return next((a for a in self.axes if a.kind == kind), None)

    def usual(self, array: np.ndarray) -> np.ndarray:
        """An array of this tensor as (batch, channel, [z,] y, x)."""
        if array.ndim != len(self.axes):
            raise self.at.error(f"an array of {array.shape} does not have the axes {self.order}.")
        array = array.transpose([self.order.index(k) for k in "bczyx" if k in self.order])
        if "b" not in self.order:
            array = array[None]
        return array if "c" in self.order else array[:, None]

    def own(self, array: np.ndarray) -> np.ndarray:
        """The inverse. Where there is no batch axis, of the only sample."""
        kinds = "bc" + "".join(a.kind for a in self.space)
        if "c" not in self.order:
            array, kinds = array[:, 0], kinds.replace("c", "")
        if "b" not in self.order:
            array, kinds = array[0], kinds.replace("b", "")
        return np.ascontiguousarray(array.transpose([kinds.index(k) for k in self.order]))


@dataclass
class Description:
    """What the YAML says, in whichever version."""

    package: Package
    root: At
    version: tuple[int, int]
    input: Tensor
    output: Tensor
    weights: dict[str, At]  # those that can be run and lie in the package, in order of preference
    before: Steps
    jointly: bool  # statistics are of all samples of a batch
    after: list[str | list[Step]]  # 'softmax', or a step for each channel (one for all)
    own: At  # config.vemray

    @property
    def names(self) -> list[str]:
        """Of the output's channels."""
        c = self.output.axis("c")
        n = c.size if c else 1
        given = c.names if c else []
        if not given:
            given = [self.output.id] if n == 1 else [f"output{i}" for i in range(n)]
        out: list[str] = []
        for i, name in enumerate(given):  # a class is also the name of a volume
            clean = "".join(ch if ch.isascii() and ch.isalnum() else "_" for ch in name).strip("_") or f"output{i}"
            out.append(clean if clean not in out else f"{clean}_{i}")
        return out

    @property
    def likely(self) -> bool:
        """Whether the output is known to lie in 0..1."""
        last = next((s for s in reversed(self.after)), None)
        if last is None:
            r = self.output.range
            return r is not None and 0 <= r[0] and r[1] <= 1
        return last == "softmax" or all(
            s.op in ("sigmoid", "binarize") or (s.op == "clip" and s.low is not None and s.low >= 0 and s.high is not None and s.high <= 1)
            for s in last
        )


def describe(path: str | Path) -> Description:
    """ModelError names the file, the key and what is wrong with it."""
    package, root, new, inputs, outputs, weights = _opened(path)
    for what, tensors in (("inputs", inputs), ("outputs", outputs)):
        if len(tensors) != 1:
            raise root[what].error(
                f"{len(tensors)} tensors; vemray runs networks of one image in and one out. `vemray check-model` shows whether this one gives here "
                "what its authors got."
            )
    read = _tensor_05 if new else _tensor_04
    image, scores = read(root, "inputs", inputs), read(root, "outputs", outputs)
    _same_size(image, scores, new)
    channel = image.axis("c")
    if channel and channel.size != 1:
        raise channel.at.error(f"{channel.size} channels; a volume has one, so vemray runs networks of one channel.")
    steps, jointly = before(image, new)
    own = root.get("config").get("vemray") if isinstance(root.get("config").value, dict) else At(package, "config.vemray", None)
    if own and not isinstance(own.value, dict):
        raise own.error("must be a mapping.")
    return Description(package, root, (0, 5 if new else 4), image, scores, weights, steps, jointly, after(scores, new), own)


@dataclass
class Tensors:
    """Of a network of several images, whose test tensors can be compared: each input with its steps and whether statistics are of all samples, each
    output with its steps."""

    root: At
    inputs: list[tuple[Tensor, Steps, bool]]
    outputs: list[tuple[Tensor, list[str | list[Step]]]]
    weights: dict[str, At]


def describe_several(path: str | Path) -> Tensors | None:
    """None for a network of one image in and one out: `describe` knows more of that."""
    _, root, new, inputs, outputs, weights = _opened(path)
    if len(inputs) == len(outputs) == 1:
        return None
    read = _tensor_05 if new else _tensor_04
    images = [read(root, "inputs", inputs, i) for i in range(len(inputs))]
    scores = [read(root, "outputs", outputs, i) for i in range(len(outputs))]
    return Tensors(root, [(t, *before(t, new)) for t in images], [(t, after(t, new)) for t in scores], weights)


def _opened(path: str | Path) -> tuple[Package, At, bool, list[str], list[str], dict[str, At]]:
    """The package, its description, whether that is 0.5, names of inputs and outputs, and weights that can be run."""
    package = Package(Path(path))
    root = package.tree()
    if root["type"].text() != "model":
        raise root["type"].error(f"'{root['type'].text()}' is no model.")
    version = root["format_version"].text() if isinstance(root["format_version"].value, str) else str(root["format_version"].value)
    new = version == "0.5" or version.startswith("0.5.")
    if not new and version != "0.4" and not version.startswith("0.4."):
        raise root["format_version"].error(f"{version} is not read; 0.4 and 0.5 are. bioimageio.spec brings older ones up to date.")
    tensors = [*root["inputs"].items(), *root["outputs"].items()]
    ids = [(t.get("id").text() if t.get("id") else t.key.partition("s.")[0]) if new else t["name"].text() for t in tensors]  # inputs.0: input
    if len(set(ids)) != len(ids):
        raise root["outputs"].error(f"the tensors ({', '.join(ids)}) must have different names.")
    weights = _weights(root["weights"])
    n = len(root["inputs"].items())
    for what, names in (("inputs", ids[:n]), ("outputs", ids[n:])):
        if not names:
            raise root[what].error("names no tensor.")
    return package, root, new, ids[:n], ids[n:], weights


# weights ----------------------------------------------------------------------------------------------------------------


def _weights(at: At) -> dict[str, At]:
    """Entries that can be run here; refused with the reason where none can."""
    why, usable = [], {}
    for kind in RUNS:
        entry = at.get(kind)
        if not entry:
            continue
        if entry.get("external_data"):
            why.append(entry.get("external_data").error("weights in two files are not read. Put them into one: onnx.save(onnx.load(FILE), OUT)."))
            continue
        try:
            name = entry["source"].source()
            if name not in at.package:
                raise entry["source"].error(f"there is no '{name}' in the package.")
            usable[kind] = entry
        except ModelError as e:
            if "leaves the package" in str(e):
                raise
            why.append(e)
    if usable:
        return usable
    if why:
        raise why[0]
    others = [k for k in at.value or {}] if isinstance(at.value, dict) else []
    if "pytorch_state_dict" in others:
        raise _state_dict(at["pytorch_state_dict"])
    raise at.error(f"vemray runs ONNX and TorchScript; the package has {', '.join(map(str, others)) or 'none'}. Add weights of one of the two.")


def _state_dict(at: At) -> ModelError:
    a = at.get("architecture")
    if isinstance(a.value, dict):
        file, name = a.get("source").value, str(a.get("callable").value)
        library = a.get("import_from").value
    else:
        file, _, name = str(a.value or "").rpartition(":")
        library = None
    to = f"Convert {name or 'it'} with its weights to ONNX or TorchScript (bioimageio.core does) and add that."
    if library:
        return a.error(f"the weights need the code of {library}.{name}; vemray runs no Python code of a model. {to}")
    if file and isinstance(file, str) and file in at.package:
        return a.error(f"the weights need the code in '{file}'; vemray runs no Python code of a model. {to}")
    return a.error(
        f"the weights need the architecture file '{file or '?'}', which the package does not hold. vemray runs ONNX and TorchScript only. {to}"
    )


# tensors ----------------------------------------------------------------------------------------------------------------


def _tensor_05(root: At, what: str, names: list[str], i: int = 0) -> Tensor:
    at, name = root[what].items()[i], names[i]
    axes = []
    for a in at["axes"].items():
        kind = a["type"].text()
        if kind == "batch":
            axes.append(Axis("b", a, a.get("size").whole(1) if a.get("size") else None))
        elif kind == "channel":
            names = [n.text() for n in a["channel_names"].items()]
            if not names:
                raise a["channel_names"].error("names no channel.")
            # placeholders, as converted packages have them, say nothing
            axes.append(Axis("c", a, len(names), names=[] if all(n == f"channel{i}" for i, n in enumerate(names)) else names))
        elif kind == "space":
            axes.append(_space(a))
        else:
            raise a["type"].error(f"axes of type '{kind}' are not read: batch, channel and space are.")
    _fitting(at, axes)
    r = at.get("data").get("range") if isinstance(at.get("data").value, dict) else None
    ends = [v.number() if v else s * math.inf for s, v in zip((-1, 1), r.items())] if r else None
    steps = at.get("preprocessing" if what == "inputs" else "postprocessing")
    return Tensor(name, at, axes, steps.items() if steps else [], at["test_tensor"], ends)


def _space(a: At) -> Axis:
    kind = a.get("id").text() if a.get("id") else "x"
    if kind not in ("z", "y", "x"):
        raise a.get("id").error(f"'{kind}' is not read: space axes are z, y and x.")
    axis, size = Axis(kind, a), a["size"]
    if not isinstance(size.value, dict):
        axis.size = size.whole(1)
    elif size.get("min"):
        axis.least, axis.step = size["min"].whole(1), size["step"].whole(1)
    elif not size.get("axis_id"):
        raise size.error("must be a number, {min, step} or a reference to another axis.")
    scale = a.get("scale").number() if a.get("scale") else 1.0
    if not scale > 0 or math.isinf(scale):
        raise a["scale"].error("must be above 0.")
    unit = a.get("unit")
    axis.nm = scale * UNITS[unit.value] if isinstance(unit.value, str) and unit.value in UNITS else None
    axis.halo = a.get("halo").whole() if a.get("halo") else None
    return axis


def _tensor_04(root: At, what: str, names: list[str], number: int = 0) -> Tensor:
    at, name = root[what].items()[number], names[number]
    order, shape, axes = at["axes"].text(), at["shape"], []
    if bad := [k for k in order if k not in "bczyx"]:
        raise at["axes"].error(f"the axis '{bad[0]}' is not read: b, c, z, y and x are.")
    least, step = (shape, None) if isinstance(shape.value, list) else (shape.get("min"), shape.get("step"))
    if what == "inputs" and not least:
        raise shape.error("must be a list of sizes, or min and step.")
    for rows in (r for r in (least, step, at.get("halo"), shape.get("scale") if not isinstance(shape.value, list) else None) if r):
        if len(rows.items()) != len(order):
            raise rows.error(f"must have a number for each of the axes {order}.")
    halo = at.get("halo").items() if at.get("halo") else None
    for i, kind in enumerate(order):
        axis = Axis(kind, at)
        if least:
            n, grows = least.items()[i].whole(1), step.items()[i].whole() if step else 0
            if grows:
                axis.least, axis.step = n, grows
            elif kind != "b" or not step:  # a minimum of 1 that does not grow is how a free batch is written
                axis.size = n
        if halo and kind in "zyx":
            axis.halo = halo[i].whole()
        axes.append(axis)
    if not least:
        scale, offset = shape["scale"].items(), shape["offset"].items()
        for axis, s, o in zip(axes, scale, offset):
            if axis.kind == "c" and (s.value is None or s.number() == 0):
                axis.size = round(2 * o.number())
            elif axis.kind in "zyx" and (s.value is None or s.number() != 1 or o.number() != 0):
                raise s.error(f"the network changes the size along {axis.kind}; vemray runs networks whose output has the input's size.")
            elif axis.kind == "c":
                axis.size = 1
    if not any(a.halo for a in axes):  # zeros are what 0.4 writes where nothing is known
        for a in axes:
            a.halo = None
    _fitting(at, axes)
    r = at.get("data_range")
    tests = root["test_inputs" if what == "inputs" else "test_outputs"].items()
    if len(tests) <= number:
        raise root["test_inputs" if what == "inputs" else "test_outputs"].error("names no file.")
    test = At(at.package, tests[number].key, {"source": tests[number].value})
    steps = at.get("preprocessing" if what == "inputs" else "postprocessing")
    ends = [v.number() if v else s * math.inf for s, v in zip((-1, 1), r.items())] if r else None
    return Tensor(name, at, axes, steps.items() if steps else [], test, ends)


def _fitting(at: At, axes: list[Axis]) -> None:
    order = "".join(a.kind for a in axes)
    if len(set(order)) != len(order) or "y" not in order or "x" not in order:
        raise at["axes"].error(f"the axes are {order}; vemray runs networks over y, x or z, y, x, each once, with or without batch and channel.")


def _same_size(image: Tensor, scores: Tensor, new: bool) -> None:
    """The output lies voxel by voxel on the input."""
    by_id = {a.at.get("id").value or "x": a for a in image.axes if a.kind in "zyx"} if new else {}
    for a in image.space if new else ():  # x: as long as y
        ref = a.at["size"].get("axis_id") if isinstance(a.at["size"].value, dict) and a.at["size"].get("axis_id") else None
        if ref:
            other = by_id.get(ref.value)
            if other is None or other is a or a.at["size"].get("offset").value:
                raise a.at["size"].error("only a reference to another axis of the same image, without an offset, is read here.")
            a.size, a.least, a.step = other.size, other.least, other.step
    if [a.kind for a in image.space] != [a.kind for a in scores.space]:
        raise scores.at["axes"].error(
            f"the output has the axes {scores.order}, the input {image.order}; vemray runs networks whose output has the input's size."
        )
    refused = "vemray runs networks whose output has the input's size."
    for a, b in zip(image.space, scores.space):
        if not new:
            if b.size is not None and b.size != a.size:
                raise b.at["shape"].error(f"{b.size} along {b.kind} for {a.size or 'any size'} of the input; {refused}")
            continue
        size, scale = b.at["size"], [float(t.at.get("scale").value or 1) for t in (a, b)]
        if isinstance(size.value, dict):
            same = str(size.get("tensor_id").value) == image.id and size.get("axis_id").value == a.kind and not size.get("offset").value
            if not same or scale[0] != scale[1]:
                raise size.error(f"the network changes the size along {b.kind}; {refused}")
        elif b.size != a.size:
            raise size.error(f"{b.size} along {b.kind} for {a.size or 'any size'} of the input; {refused}")
