"""Model files: what a network needs to know travels with it, and nothing in a file is ever run by Python.

    .vemray  the native one: a zip of model.json and weights.npz
    .onnx    ONNX with the same facts in its metadata ('vemray') or in a sidecar FILE.onnx.json
    .czann   ZEISS: a zip of model.json and an ONNX with channels last; what it does not say may be in a sidecar FILE.czann.json
    .pt      TorchScript, with the facts in a sidecar FILE.pt.json
    .pt2     torch.export, likewise
    folder, .yaml, .zip    a BioImage.IO package
    entry:NAME    no file but a function of an installed package

A format is a module with `read_facts(path) -> Facts` and `read(path, device) -> Model`, and a line in READERS. One whose models are several files, or
are run by several engines, also has `parts(path)` and `engine(path)`."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path

from vemray.errors import ModelError
from vemray.models import entry
from vemray.models.facts import Facts, Normalisation
from vemray.models.model import Model

__all__ = [
    "READERS", "Facts", "Model", "Normalisation", "engine", "load", "load_facts", "parts", "save_bioimage", "save_czann", "save_native", "save_onnx", "stamp",
]  # fmt: skip

#: suffix -> module that reads it
READERS = {
    ".vemray": "vemray.models.native", ".onnx": "vemray.models.onnx_file", ".czann": "vemray.models.czann",
    **dict.fromkeys((".pt", ".pth", ".torchscript"), "vemray.models.torchscript"), ".pt2": "vemray.models.torch_export",
    **dict.fromkeys((".zip", ".yaml", ".yml"), "vemray.models.bioimage"),
}  # fmt: skip


def _reader(path: str | Path):
    if str(path).startswith(entry.PREFIX):
        return entry, str(path)
    p = Path(path)
    if p.is_dir():
        return importlib.import_module(READERS[".yaml"]), p
    if p.suffix not in READERS:
        raise ModelError(f"'{path}': models of type '{p.suffix}' are not read. Known: {', '.join(READERS)}.")
    if not p.is_file():
        raise ModelError(f"there is no model '{path}'. A path in a recipe starts from the recipe's folder.")
    return importlib.import_module(READERS[p.suffix]), p


def load_facts(path: str | Path) -> Facts:
    """The facts alone, without the weights. ModelError."""
    module, p = _reader(path)
    return module.read_facts(p)


def load(path: str | Path, device: str = "cpu", precision: str = "float32") -> Model:
    """The model, ready to predict on `device` ('cpu' or 'cuda') in float32, bf16 or fp16. ModelError."""
    module, p = _reader(path)
    model = module.read(p, device)
    return model if precision == "float32" else model.in_precision(precision)


def parts(path: str | Path) -> tuple[str, ...]:
    """The files whose contents make the model: itself, its sidecar, what else a package names. ModelError."""
    module, p = _reader(path)
    if hasattr(module, "parts"):
        return module.parts(p)
    sidecar = f"{path}.json"
    return (str(path), sidecar) if p.suffix != ".vemray" and os.path.exists(sidecar) else (str(path),)


def engine(path: str | Path) -> str:
    """The package that runs the model. ModelError."""
    module, p = _reader(path)
    return module.engine(p) if hasattr(module, "engine") else "onnxruntime" if p.suffix in (".onnx", ".czann") else "torch"


def stamp(path: str | Path) -> tuple:
    """Changes when a file of the model does. ModelError where there is none."""
    if str(path).startswith(entry.PREFIX):
        return entry.stamp(str(path))
    package = os.path.isdir(path) or str(path).endswith((".yaml", ".yml"))
    try:
        found = [str(path)]
        if package:
            folder = str(path) if os.path.isdir(path) else os.path.dirname(path) or "."
            found += [e.path for e in os.scandir(folder) if e.is_file()]
        stats = [os.stat(p) for p in [*found, *[s for s in (f"{path}.json",) if os.path.exists(s)]]]
    except OSError:
        raise ModelError(f"there is no model '{path}'. A path in a recipe starts from the recipe's folder.") from None
    top = tuple(sorted((s.st_size, s.st_mtime_ns) for s in stats))
    return (*top, *[(s.st_size, s.st_mtime_ns) for s in map(os.stat, filter(os.path.isfile, _named(str(path), top)))]) if package else top


@functools.lru_cache(maxsize=16)
def _named(path: str, top: tuple) -> tuple[str, ...]:
    """Files that a package names, which may lie in folders of it; none where it cannot be read, or they are not there."""
    try:
        return tuple(p for p in parts(path) if os.path.isfile(p))
    except ModelError:
        return ()


def save_native(path: str | Path, module, facts: Facts) -> None:
    """Write `module` (a network of vemray.models.networks) with its facts as .vemray, atomically; the same weights give the same bytes."""
    from vemray.models import native

    native.save(path, module, facts)


def save_onnx(path: str | Path, model: Model) -> None:
    """Export a native model as .onnx, its facts in the file's metadata."""
    from vemray.models import onnx_file

    onnx_file.save(path, model)


def save_czann(path: str | Path, model: Model, **how) -> None:
    """Export a native model as .czann: see vemray.models.czann.save."""
    from vemray.models import czann

    czann.save(path, model, **how)


def save_bioimage(path: str | Path, model: Model, **how) -> None:
    """Export a native model as a BioImage.IO package: see vemray.models.bioimage_save.save."""
    from vemray.models import bioimage_save

    bioimage_save.save(path, model, **how)
