"""Model files: what a network needs to know travels with it, and nothing in a file is ever executed.

    .vemray  the native one: a zip of model.json and weights.npz
    .onnx    ONNX with the same facts in its metadata ('vemray') or in a sidecar FILE.onnx.json
    .czann   ZEISS: a zip of model.json and an ONNX with channels last; what it does not say may be in a sidecar FILE.czann.json

A format is a module with `read_facts(path) -> Facts` and `read(path, device) -> Model`, and a line in READERS."""

from __future__ import annotations

import importlib
from pathlib import Path

from vemray.errors import ModelError
from vemray.models.facts import Facts, Normalisation
from vemray.models.model import Model

__all__ = ["READERS", "Facts", "Model", "Normalisation", "load", "load_facts", "save_czann", "save_native", "save_onnx"]

#: suffix -> module that reads it
READERS = {".vemray": "vemray.models.native", ".onnx": "vemray.models.onnx_file", ".czann": "vemray.models.czann"}


def _reader(path: str | Path):
    p = Path(path)
    if p.suffix not in READERS:
        raise ModelError(f"'{path}': models of type '{p.suffix}' are not read. Known: {', '.join(READERS)}.")
    if not p.is_file():
        raise ModelError(f"there is no model '{path}'. A path in a recipe starts from the recipe's folder.")
    return importlib.import_module(READERS[p.suffix]), p


def load_facts(path: str | Path) -> Facts:
    """The facts alone, without the weights. ModelError."""
    module, p = _reader(path)
    return module.read_facts(p)


def load(path: str | Path, device: str = "cpu") -> Model:
    """The model, ready to predict on `device` ('cpu' or 'cuda'). ModelError."""
    module, p = _reader(path)
    return module.read(p, device)


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
