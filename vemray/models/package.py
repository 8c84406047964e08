"""A BioImage.IO package as a bag of files: a folder, its YAML file, or a zip, which is read in memory. No path leaves it, nothing is fetched."""

from __future__ import annotations

import functools
import hashlib
import math
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from vemray.errors import ModelError, nearest
from vemray.models.native import BOMB_BYTES, BOMB_RATIO, BROKEN, unpacked

#: no member may be larger, unpacked; a YAML file that is, is none, nor one of more values once its aliases are followed
MAX_BYTES, MAX_YAML, MAX_VALUES = 2 << 30, 1 << 20, 1 << 20
#: names of the description, the first that is there counts
NAMES = ("bioimageio.yaml", "rdf.yaml", "model.yaml")
SUFFIXES = (".yaml", ".yml", ".zip")


class Package:
    """The files by name. `path` is what errors call it."""

    def __init__(self, path: Path):
        if not path.exists():
            raise ModelError(f"there is no model '{path}'.")
        if not path.is_dir() and path.suffix not in SUFFIXES:
            raise ModelError(f"{path} is no BioImage.IO package: that is a folder, its .yaml or a .zip.")
        self.path, self.zip = path, not path.is_dir() and path.suffix == ".zip"
        if self.zip:
            self._sizes = self._listed()
            names = list(self._sizes)
        elif path.is_dir():
            names, self.folder = sorted(p.name for p in path.iterdir() if p.is_file()), path
        else:
            names, self.folder = [path.name], path.parent
        self.description = self._found(names)

    def _listed(self) -> dict[str, int]:
        try:
            with zipfile.ZipFile(self.path) as z:
                entries = [i for i in z.infolist() if not i.is_dir()]
        except BROKEN as e:
            raise ModelError(f"{self.path} cannot be read as a zip: {e}. The file may be truncated.") from None
        names = [i.filename for i in entries]
        if bad := [n for n in names if not _stays_inside(n)]:
            raise ModelError(f"{self.path} holds '{bad[0]}', a path that leaves the package: refused.")
        if len(set(names)) != len(names):
            raise ModelError(f"{self.path} holds '{next(n for n in names if names.count(n) > 1)}' twice: refused.")
        if bomb := next((i.filename for i in entries if i.file_size > max(BOMB_BYTES, BOMB_RATIO * i.compress_size)), None):
            raise ModelError(f"{self.path}: '{bomb}' would unpack to more than {BOMB_RATIO} times its size, which no weights do: refused.")
        return {i.filename: i.file_size for i in entries}

    def _found(self, names: list[str]) -> str:
        if not self.zip and not self.path.is_dir():
            return names[0]
        found = next((n for n in NAMES if n in names), None)
        others = [n for n in names if n.endswith(".bioimageio.yaml") and "/" not in n]
        if found is None and len(others) == 1:
            found = others[0]
        if found is None:
            several = f" It holds several descriptions ({', '.join(others)}): give the path of one." if others else ""
            raise ModelError(f"{self.path} is no BioImage.IO package: it has no {' or '.join(NAMES)}.{several}")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._sizes if self.zip else (self.folder / name).is_file()

    @property
    def where(self) -> Path:
        """The description's path, for errors."""
        return self.path if not self.zip and not self.path.is_dir() else self.path / self.description

    def files(self, names: list[str]) -> tuple[str, ...]:
        """Paths on disk of what these members are made from."""
        return (str(self.path),) if self.zip else tuple(str(self.folder / n) for n in names)

    def read(self, name: str, most: int = MAX_BYTES) -> bytes:
        """A member. It is read up to its declared size, so a bomb is refused before it is unpacked."""
        try:
            if self.zip:
                size = self._sizes[name]
            else:
                file = (self.folder / name).resolve()
                if not file.is_relative_to(self.folder.resolve()):
                    raise ModelError(f"{self.where}: '{name}' is a link that leaves the package: refused.")
                size = file.stat().st_size
            if size > most:
                raise ModelError(f"{self.where}: '{name}' holds {size:,} bytes, more than the {most:,} that are read: refused.")
            if not self.zip:
                return file.read_bytes()
            with zipfile.ZipFile(self.path) as z:
                return unpacked(z, z.getinfo(name), self.where)
        except (*BROKEN, KeyError) as e:
            raise ModelError(f"{self.where}: '{name}' cannot be read: {e}. The file may be truncated.") from None

    def tree(self) -> At:
        """The description, parsed as plain data: no tag makes an object."""
        try:
            value = yaml.load(self.read(self.description, MAX_YAML), _loader())
            count = _values(value, {})
        except (yaml.YAMLError, ValueError, RecursionError) as e:
            raise ModelError(f"{self.where} cannot be read as YAML: {' '.join(str(e).split())[:300]}") from None
        if count > MAX_VALUES:
            raise ModelError(f"{self.where} refers to its own parts more than {MAX_VALUES:,} times, or in a circle: refused.")
        return At(self, "", value)


def _values(value: Any, known: dict[int, int]) -> int:
    """How many there are with every alias followed, up to MAX_VALUES + 1. A few lines of aliases can stand for more than fit into memory."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = MAX_VALUES + 1  # until it is counted: whoever meets it in itself
        n = 1 + sum(_values(v, known) for v in (value.values() if isinstance(value, dict) else value))
        known[id(value)] = min(n, MAX_VALUES + 1)
    return known[id(value)]


@functools.cache
def _loader():
    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        pass

    Loader.yaml_implicit_resolvers = {  # timestamps stay text: a bad one is no reason to refuse a network
        k: [(tag, r) for tag, r in v if tag != "tag:yaml.org,2002:timestamp"] for k, v in Loader.yaml_implicit_resolvers.items()
    }
    return Loader


def _stays_inside(name: str) -> bool:
    return (
        bool(name)
        and "\\" not in name
        and ":" not in name
        and "\0" not in name
        and not name.startswith("/")
        and ".." not in PurePosixPath(name).parts
    )


class At:
    """A place in the description: a value, and the file and key that an error names."""

    def __init__(self, package: Package, key: str, value: Any):
        self.package, self.key, self.value = package, key, value

    def error(self, why: str) -> ModelError:
        return ModelError(f"{self.package.where}: {self.key or 'the whole'}: {why}")

    def get(self, key: str) -> At:
        """What lies under a key; a value of None where there is nothing."""
        if self.value is not None and not isinstance(self.value, dict):
            raise self.error(f"must be a mapping, not {_shown(self.value)}.")
        return At(self.package, f"{self.key}.{key}".lstrip("."), (self.value or {}).get(key))

    def __getitem__(self, key: str) -> At:
        found = self.get(key)
        if found.value is None:
            raise self.error(f"'{key}' is missing.{nearest(key, [k for k in self.value or {} if isinstance(k, str)])}")
        return found

    def __bool__(self) -> bool:
        return self.value is not None

    def items(self) -> list[At]:
        """Of a list."""
        if not isinstance(self.value, list):
            raise self.error(f"must be a list, not {_shown(self.value)}.")
        return [At(self.package, f"{self.key}.{i}", v) for i, v in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.error(f"must be a text, not {_shown(self.value)}.")
        return self.value

    def number(self) -> float:
        try:
            if isinstance(self.value, bool):
                raise ValueError
            n = float(self.value)  # YAML 1.1 reads 1e-3 as a text
            if math.isnan(n):
                raise ValueError
            return n
        except (TypeError, ValueError):
            raise self.error(f"must be a number, not {_shown(self.value)}.") from None

    def whole(self, least: int = 0) -> int:
        n = self.number()
        if n != int(n) if math.isfinite(n) else True:
            raise self.error(f"must be a whole number, not {_shown(self.value)}.")
        if not least <= n < 1 << 31:
            raise self.error(f"must be at least {least}, not {int(n)}.")
        return int(n)

    def source(self) -> str:
        """The name of a file in the package. ModelError where it leaves the package or lies elsewhere."""
        name = self.text()
        if "://" in name:
            raise self.error(f"'{name}' lies elsewhere, and vemray fetches nothing: put the file into the package and name it here.")
        if not _stays_inside(name):
            raise self.error(f"'{name}' is a path that leaves the package: refused.")
        return str(PurePosixPath(name))

    def file(self) -> bytes:
        """The contents of the file that {source, sha256} names, checked."""
        name = self["source"].source()
        if name not in self.package:
            raise self["source"].error(f"there is no '{name}' in the package.")
        data, want = self.package.read(name), self.get("sha256")
        if want:
            found = hashlib.sha256(data).hexdigest()
            if found != want.text().lower():
                raise want.error(f"'{name}' has another hash, {found[:12]}... for {want.text()[:12]}...: the file was changed or is truncated.")
        return data


def _shown(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, str | int | float | bool) else "nothing" if value is None else f"a {type(value).__name__}"
