"""Writing BioImage.IO packages (spec 0.5): a native model as ONNX and TorchScript, with a test input, its output, and what other programs must know.

Softmax goes into the network, so that its output is probabilities whatever a program knows of postprocessing. What the spec has no place for is in
config.vemray. Who made the model and under which licence it may be used is said where it is given, and is never made up."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vemray.errors import MissingExtra, ModelError
from vemray.models import onnx_file
from vemray.models.bioimage import OWN
from vemray.models.facts import Facts, Normalisation
from vemray.models.process import Step, Steps, histogram_of
from vemray.store import access

FORMAT_VERSION = "0.5.14"
#: eps of what divides by a spread: nothing against any that occurs
EPS = 1e-9
#: the test image: at least so long, where the halo does not ask for more
EDGE = {2: 128, 3: 48}


def save(
    path: str | Path, model, *, grey: tuple[float, float] | None = None, bits: int = 8, name: str | None = None, description: str | None = None,
    authors: tuple[str, ...] = (), license: str | None = None, cite: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Export a native model as a zip.

    grey: two grey values that are 0 and 1 to the network, instead of those of each volume's histogram; needed only where such a network gives an image.
    bits: of the images, where the network takes integers by the largest of their type. license: an SPDX identifier. cite: 'DOI-or-URL text' each."""
    onnx_file.native_only(model)
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "torch", "Writing a BioImage.IO package") from None
    path, facts = Path(path), model.facts
    if facts.channels != 1:
        raise ModelError(f"{model.path} takes {facts.channels} channels; only networks of one are exported to BioImage.IO.")
    before, after = _processing(facts, grey, bits, model.path)
    about = _about(facts, name or path.stem, description, authors, license, cite)
    given, expected = _test(model, before, after, bits)

    network = _network(model)
    finished = facts.model_copy(update={"activation": "none", "normalisation": _kept(facts, grey)})
    x = torch.zeros((2, 1, *[max(2 * s, 32) for s in facts.strides[-facts.dims :]]))
    axes = {0: "batch", **{i + 2: a for i, a in enumerate("zyx"[-facts.dims :])}}
    files = {
        "README.md": _readme(about, facts).encode(),
        "weights.onnx": onnx_file.exported(network, x, "output", axes, finished),
        "weights_torchscript.pt": _traced(network, x),
        "test_input.npy": _npy(given),
        "test_output.npy": _npy(expected),
    }

    def file(member: str) -> dict[str, Any]:
        return {"source": member, "sha256": hashlib.sha256(files[member]).hexdigest()}

    inputs, outputs = _axes(facts)
    about["documentation"] = file("README.md")
    about["inputs"] = [
        {
            "id": "image",
            "description": "grey values",
            "axes": inputs,
            "data": {"type": "float32"},
            "preprocessing": [_named(s) for s in before],
            "test_tensor": file("test_input.npy"),
        }
    ]
    about["outputs"] = [
        {
            "id": "output", "description": "grey values" if facts.gives == "image" else "probability of each class", "axes": outputs,
            "data": {"type": "float32"} if facts.gives == "image" else {"type": "float32", "range": [0.0, 1.0]},
            **({"postprocessing": [_named(s) for s in after]} if after else {}), "test_tensor": file("test_output.npy"),
        }
    ]  # fmt: skip
    # the ONNX exporter traces the network as TorchScript, and converts that
    about["weights"] = {
        "torchscript": {**file("weights_torchscript.pt"), "pytorch_version": torch.__version__.split("+")[0]},
        "onnx": {**file("weights.onnx"), "opset_version": onnx_file.OPSET, "parent": "torchscript"},
    }
    about["config"] = {"vemray": {k: v for k, v in facts.model_dump(mode="json").items() if k in OWN}}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        described = yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120).encode()
        for member, content in {"rdf.yaml": described, **files}.items():
            z.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    access.write_bytes(str(path), packed.getvalue())


# what is done to grey values ----------------------------------------------------------------------------------------------


def _kept(facts: Facts, grey: tuple[float, float] | None) -> Normalisation | Steps:
    return facts.normalisation if grey is None else Normalisation(method="fixed", low=grey[0], high=grey[1])


def _processing(facts: Facts, grey: tuple[float, float] | None, bits: int, path: str) -> tuple[list[Step], list[Step]]:
    """What is done before the network and after it."""
    if grey is not None and not grey[1] > grey[0]:
        raise ModelError(f"grey values {grey[0]:g} and {grey[1]:g}: the second must be above the first.")
    n = _kept(facts, grey)
    if facts.gives == "image" and (n.needs_histogram or isinstance(n, Steps)):
        raise ModelError(
            f"{path} gives an image on the scale of each volume's histogram, which a BioImage.IO package has no postprocessing for. Give the two grey "
            "values of a volume like those that it is meant for: --grey LOW,HIGH."
        )
    if n.method == "percentile" and not n.high > 1:
        raise ModelError(f"{path}: the upper percentile {n.high:g} must be above 1 in a BioImage.IO package. Give two grey values: --grey LOW,HIGH.")
    top = float((1 << bits) - 1)
    if isinstance(n, Steps):
        before = n.steps
    elif n.method == "percentile":
        before = [Step(op="range", low=n.low, high=n.high, eps=EPS)]
    elif n.method == "standard":
        before = [Step(op="standard", eps=EPS)]
    elif n.method == "dtype":
        before = [Step(op="linear", gain=1 / top)]
    else:
        before = [Step(op="linear", gain=1 / (n.high - n.low), shift=n.low)]
    after = []
    if facts.gives == "image":
        after = [Step(op="linear", gain=top) if n.method == "dtype" else Step(op="linear", gain=n.high - n.low, offset=n.low)]
    return before, after


def _named(s: Step) -> dict[str, Any]:
    """The inverse of vemray.models.bioimage_steps."""
    if s.op == "linear" and s.shift:
        return {"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": s.shift, "std": 1 / s.gain}}
    if s.op == "linear":
        return {"id": "scale_linear", "kwargs": {"gain": s.gain, "offset": s.offset}}
    if s.op == "standard":
        return {"id": "zero_mean_unit_variance", "kwargs": {"eps": s.eps}}
    if s.op == "range":
        return {"id": "scale_range", "kwargs": {"min_percentile": s.low, "max_percentile": s.high, "eps": s.eps}}
    if s.op == "clip":
        ends = {"min": (s.low, s.low_percentile), "max": (s.high, s.high_percentile)}
        return {"id": "clip", "kwargs": {f"{k}_percentile" if of else k: v for k, (v, of) in ends.items() if v is not None}}
    return {"id": "binarize", "kwargs": {"threshold": s.threshold}} if s.op == "binarize" else {"id": "sigmoid"}


def _test(model, before: list[Step], after: list[Step], bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random image of grey values, and what the native model makes of it."""
    from scipy.ndimage import gaussian_filter

    facts = model.facts
    shape = facts.window or [max(n, -(-EDGE[facts.dims] // s) * s) for n, s in zip(_least(facts), facts.strides[-facts.dims :])]
    field = gaussian_filter(np.random.default_rng(0).standard_normal((1, 1, *shape)), [0, 0, *[2] * facts.dims])
    top, n = float((1 << bits) - 1), facts.normalisation
    low, high = (n.low, n.high) if n.method == "fixed" else (0.0, top)
    given = (low + (high - low) * (field - field.min()) / np.ptp(field)).astype(np.float32)
    x = np.empty_like(given)
    Steps(steps=before).constants(histogram_of(given))(given, x)
    y = model.predict(x)
    Steps(steps=after).constants(None)(y.copy(), y)
    return given, y


# what the network is ------------------------------------------------------------------------------------------------------


def _least(facts: Facts) -> list[int]:
    """Edges of the smallest tile of which the halo leaves something."""
    return [-(-(2 * h + 1) // s) * s for h, s in zip(facts.halos[-facts.dims :], facts.strides[-facts.dims :])]


def _axes(facts: Facts) -> tuple[list[dict], list[dict]]:
    inputs: list[dict] = [{"type": "batch"}, {"type": "channel", "channel_names": ["grey"]}]
    outputs: list[dict] = [{"type": "batch"}, {"type": "channel", "channel_names": list(facts.classes)}]
    sizes = facts.window or [{"min": n, "step": s} for n, s in zip(_least(facts), facts.strides[-facts.dims :])]
    voxel = facts.voxel_nm[-facts.dims :] if facts.voxel_nm else [None] * facts.dims
    for a, size, halo, nm in zip("zyx"[-facts.dims :], sizes, facts.halos[-facts.dims :], voxel):
        physical = {"unit": "nanometer", "scale": nm} if nm else {}
        inputs.append({"type": "space", "id": a, "size": size, **physical})
        outputs.append({"type": "space", "id": a, "size": {"tensor_id": "image", "axis_id": a}, **physical, **({"halo": halo} if halo else {})})
    return inputs, outputs


def _network(model):
    import copy

    import torch

    class Finished(torch.nn.Module):
        """The network with its activation."""

        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(model.module).cpu().to(memory_format=torch.contiguous_format)

        def forward(self, x):
            y = self.network(x)
            return y.softmax(1) if model.facts.activation == "softmax" else y.sigmoid() if model.facts.activation == "sigmoid" else y

    return Finished().eval()


def _traced(network, x) -> bytes:
    """TorchScript without the paths of this machine's sources, which torch keeps for its error messages."""
    import torch

    data, out = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is called deprecated
        torch.jit.save(torch.jit.trace(network, x, check_trace=False), data)
    with zipfile.ZipFile(data) as made, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as z:
        for entry in made.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                z.writestr(zipfile.ZipInfo(entry.filename, (2020, 1, 1, 0, 0, 0)), made.read(entry))
    return out.getvalue()


# what it is called --------------------------------------------------------------------------------------------------------


def _about(facts: Facts, name: str, description: str | None, authors: tuple[str, ...], license: str | None, cite: tuple[str, ...]) -> dict[str, Any]:
    """The first part of the description."""
    name = re.sub(r"[^A-Za-z0-9_+\- ()]+", "_", name)[:128]
    if bad := [a for a in authors if "/" in a or not a.strip()]:
        raise ModelError(f"author '{bad[0]}': a name without '/'.")
    if license is not None and not re.fullmatch(r"[A-Za-z0-9.+-]+", license):
        raise ModelError(f"license '{license}': an SPDX identifier, such as CC-BY-4.0 or MIT (spdx.org/licenses).")
    what = ", ".join(facts.classes)
    does = f"gives an image ({what})" if facts.gives == "image" else f"gives a probability for each of {what}"
    voxels = f" Trained on voxels of {' x '.join(f'{v:g}' for v in facts.voxel_nm)} nm (z, y, x)." if facts.voxel_nm else ""
    text = (
        description if description is not None else f"A {facts.dims}D network for volume electron microscopy that {does}.{voxels} Exported by vemray."
    )
    if len(text) > 1024:
        raise ModelError(f"the description has {len(text)} characters; a BioImage.IO package takes 1024.")
    return {
        "format_version": FORMAT_VERSION, "type": "model", "name": name if len(name) >= 5 else f"vemray {name}", "description": text,
        **({"authors": [{"name": a.strip()} for a in authors]} if authors else {}), **({"license": license} if license else {}),
        **({"cite": [_citation(c) for c in cite]} if cite else {}),
        "tags": ["electron-microscopy", f"{facts.dims}d", "pytorch", "denoising" if facts.gives == "image" else "semantic-segmentation"],
    }  # fmt: skip


def _citation(entry: str) -> dict[str, str]:
    where, _, text = entry.strip().partition(" ")
    doi = re.sub(r"^(https?://(dx\.)?doi\.org/|doi:)", "", where)
    if re.fullmatch(r"10\.\d{4,9}/\S+", doi):
        return {"text": text.strip() or doi, "doi": doi}
    if re.match(r"https?://[^\s/]+\.\S", where):
        return {"text": text.strip() or where, "url": where}
    raise ModelError(f"citation '{entry}': begin with a DOI (10.1000/xyz) or a URL; text may follow.")


def _readme(about: dict[str, Any], facts: Facts) -> str:
    dice = facts.training.get("validation_dice")
    known = f"Planes held out in training gave a Dice coefficient of {dice:.3f}." if isinstance(dice, float) else "Nothing is known of its accuracy."
    return (
        f"# {about['name']}\n\n{about['description']}\n\n"
        f"Normalisation over a volume takes its statistics from the whole volume, not from a tile.\n\n"
        f"# Validation\n\n{known} Compare its output with annotated parts of your own volumes before you rely on it.\n"
    )


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()
