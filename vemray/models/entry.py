"""Networks of installed packages: `entry:NAME`, where a package declares NAME in the entry-point group `vemray.models`,

    [project.entry-points."vemray.models"]
    mitos = "my_package.networks:mitos"

    def mitos(device: str) -> tuple[Facts, Callable]: ...

The function gets 'cpu' or 'cuda' and returns the Facts and a function of a float32 batch (B, 1, [Z,] Y, X), already normalised as the facts say, that
gives (B, classes, [Z,] Y, X). Both must do the same for the same input. Only what is installed is run, under the name that its package gave it: no file
and no recipe can bring code along."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable

import numpy as np

from vemray.errors import ModelError, nearest
from vemray.models.facts import Facts
from vemray.models.model import Model, activated

GROUP, PREFIX = "vemray.models", "entry:"


def _point(path: str) -> importlib.metadata.EntryPoint:
    return _found(path.removeprefix(PREFIX), tuple(sys.path))


@functools.lru_cache(maxsize=64)
def _found(name: str, places: tuple[str, ...]) -> importlib.metadata.EntryPoint:
    known = importlib.metadata.entry_points(group=GROUP)
    found = {(p.dist.name, p.value): p for p in known if p.name == name}
    if not found:
        names = sorted({p.name for p in known})
        has = f" There are: {', '.join(names)}." if names else ""
        raise ModelError(f"no installed package declares the model '{name}' in the entry-point group {GROUP}.{nearest(name, names)}{has}")
    if len(found) > 1:
        raise ModelError(f"{PREFIX}{name} is declared by {' and '.join(sorted({d for d, _ in found}))}: uninstall all but one.")
    return next(iter(found.values()))


def _file(path: str) -> str:
    """The module's file: with the package's name and version, what the network is known by."""
    point = _point(path)
    try:
        spec = importlib.util.find_spec(point.module)
    except Exception as e:  # it imports the packages around the module, whose code may raise anything
        raise ModelError(f"{path}: '{point.module}' of {point.dist.name} cannot be imported: {type(e).__name__}: {e}") from e
    if spec is None or not spec.origin or not os.path.isfile(spec.origin):
        raise ModelError(f"{path}: {point.dist.name} has no file for its module '{point.module}'. Install it again.")
    return spec.origin


def parts(path: str) -> tuple[str, ...]:
    return (_file(path),)


def engine(path: str) -> str:
    return _point(path).dist.name


def stamp(path: str) -> tuple:
    s = os.stat(_file(path))
    return (_point(path).dist.version, s.st_size, s.st_mtime_ns)


class EntryModel(Model):
    def __init__(self, facts: Facts, run: Callable[[np.ndarray], np.ndarray], path: str):
        self.facts, self.run, self.path = facts, run, path

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.check_input(batch)
        torch = sys.modules.get("torch")  # as for vemray's own networks: one thread and two differ in the last bit
        threads = torch.get_num_threads() if torch else 1
        try:
            if threads != 1:
                torch.set_num_threads(1)
            y = np.asarray(self.run(np.ascontiguousarray(batch, np.float32)))
        except Exception as e:
            raise ModelError(f"{self.path}: the network cannot take a batch of {batch.shape}: {type(e).__name__}: {e}") from e
        finally:
            if threads != 1:
                torch.set_num_threads(threads)
        if y.ndim != batch.ndim or y.shape[0] != batch.shape[0] or y.shape[2:] != batch.shape[2:] or y.dtype.kind != "f":
            raise ModelError(f"{self.path}: the network turns {batch.shape} into {y.dtype} {y.shape}; it must give floats of the input's size.")
        self.check_output(y, self.path)
        return activated(y, self.facts.activation)


def read(path: str, device: str) -> EntryModel:
    point = _point(path)
    try:
        made = point.load()(device)
    except Exception as e:
        raise ModelError(f"{path}: {point.value} of {point.dist.name} failed: {type(e).__name__}: {e}") from e
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Facts) and callable(made[1])):
        raise ModelError(f"{path}: {point.value} of {point.dist.name} must return (Facts, function), Facts being vemray.models.files.Facts.")
    return EntryModel(*made, path)


def read_facts(path: str) -> Facts:
    return read(path, "cpu").facts
