"""TorchScript archives. They hold code, which runs in torch's own interpreter and not in Python: it computes with tensors. What of it reaches files,
or would run while it is loaded, is refused before that; and what it was compiled to is looked at before it runs. Pickled modules and state dicts, which would run Python code or need some, are never opened."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vemray.errors import MissingExtra, ModelError
from vemray.models.facts import Facts, contents, parse
from vemray.models.model import Model, activated
from vemray.models.native import BROKEN, checked, unpacked

#: what TorchScript has to reach files, other processes and libraries, and what runs while an archive is loaded
_REACHES = re.compile(rb"\b(save|from_file|load_tensor|rpc_\w+|__setstate__|torch\s*\.\s*classes|ops\s*\.\s*(?!prim\b|aten\b)\w+)\b")
#: of the compiled network: operators on tensors and the language's own, without those that name files, or calls that are decided when it runs
_COMPUTES = re.compile(r"(aten|prim)::(?!\w*(save|load|file|rpc|CallMethod|CallFunction|fork|awaitable|Python))\w+")


def archive(data: bytes, path: str | Path) -> bytes:
    """The archive, written anew from what was looked at: torch and Python then cannot read two things in one file. ModelError for what is none."""
    pickled = f"{path} is a pickled PyTorch file, which is code and is not opened. Save the network as TorchScript (torch.jit.script(module).save(...)) or ONNX."
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            entries = z.infolist()
            names = [i.filename for i in entries]
            root = names[0].partition("/")[0] if names else ""
            if f"{root}/constants.pkl" not in names or not any(n.startswith(f"{root}/code/") for n in names):
                if f"{root}/data.pkl" in names:
                    raise ModelError(pickled)
                raise ModelError(f"{path} is no TorchScript archive: it has no constants.pkl and no code.")
            checked(z, path)
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as clean:
                for entry in entries:
                    member = unpacked(z, entry, path)
                    if entry.filename.endswith((".py", ".pkl")) and (found := _REACHES.search(member)):
                        raise ModelError(f"{path}: its code ({entry.filename}) uses '{found[1].decode()}', which can reach beyond tensors: refused.")
                    clean.writestr(zipfile.ZipInfo(entry.filename, (2020, 1, 1, 0, 0, 0)), member)
            return out.getvalue()
    except zipfile.BadZipFile:
        if data[:1] == b"\x80":  # a pickle's first byte
            raise ModelError(pickled) from None
        raise ModelError(f"{path} cannot be read as TorchScript: it is no zip. The file may be truncated.") from None
    except BROKEN as e:
        raise ModelError(f"{path} cannot be read as TorchScript: {e}. The file may be truncated.") from None


def _kinds(graph) -> Iterator[str]:
    """Names of the operators of a compiled graph, those within its loops and branches too."""
    for node in graph.nodes():
        yield node.kind()
        for block in node.blocks():
            yield from _kinds(block)


class Engine(ABC):
    """What runs a file: an array in, the first result out. In one thread: the same batch gives the same bits. `forward` is the file's."""

    def __init__(self, device: str, path: str | Path):
        try:
            import torch
        except ImportError:
            raise MissingExtra("torch", "torch", "Running this model") from None
        if device == "cuda":
            if not torch.cuda.is_available():
                raise ModelError(f"{path}: device cuda was asked for, but torch finds no GPU on this machine.")
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.device, self.path = device, str(path)

    @abstractmethod
    def forward(self, *xs):
        """Tensors from tensors. RuntimeError."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.all(x)[0]

    def all(self, *xs: np.ndarray) -> list[np.ndarray]:
        """Every result, in order, for one image or several."""
        import torch

        threads = torch.get_num_threads()
        try:
            if threads != 1:
                torch.set_num_threads(1)
            with torch.inference_mode():
                # copies: a network may write into its input
                y = self.forward(*[torch.from_numpy(np.array(x, np.float32, order="C")).to(self.device) for x in xs])
                return [self._array(one) for one in (y if isinstance(y, tuple | list) and len(y) else [y])]
        except RuntimeError as e:
            last = next((line for line in reversed(str(e).splitlines()) if line.strip()), type(e).__name__)
            raise ModelError(f"{self.path}: the network cannot take a batch of {', '.join(str(x.shape) for x in xs)}: {last}") from e
        finally:
            if threads != 1:
                torch.set_num_threads(threads)

    def _array(self, y) -> np.ndarray:
        import torch

        if not isinstance(y, torch.Tensor):
            raise ModelError(f"{self.path}: the network gives a {type(y).__name__}, not a tensor.")
        if not (y.is_floating_point() or y.dtype == torch.bool):
            raise ModelError(f"{self.path}: the network gives whole numbers ({str(y.dtype).removeprefix('torch.')}), not a score for each class.")
        return y.float().cpu().numpy()


class Script(Engine):
    """A TorchScript archive, without the optimising interpreter, which changes its code after some calls."""

    def __init__(self, data: bytes, device: str, path: str | Path):
        super().__init__(device, path)
        import torch

        data = archive(data, path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.module = torch.jit.load(io.BytesIO(data), map_location=device).eval()
        except Exception as e:
            raise ModelError(f"{path}: torch cannot load it: {(str(e).splitlines() or [type(e).__name__])[0]}") from None
        if odd := next((k for k in _kinds(self.module.inlined_graph) if not _COMPUTES.fullmatch(k)), None):
            raise ModelError(f"{path}: its code uses '{odd}', which can reach beyond tensors: refused.")

    def forward(self, *xs):
        import torch

        with torch.jit.optimized_execution(False):
            return self.module.forward(*xs)


class TorchScriptModel(Model):
    """Any file that torch runs, with the facts of its sidecar."""

    def __init__(self, facts: Facts, script: Engine, path: str | Path = "model"):
        self.facts, self.path, self.script = facts, str(path), script

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.check_input(batch)
        y = self.script(batch)
        if y.ndim != batch.ndim or y.shape[2:] != batch.shape[2:]:
            raise ModelError(f"{self.path}: the network turns {batch.shape} into {y.shape}; its output must have the input's size.")
        self.check_output(y, self.path)
        return activated(y, self.facts.activation)


def sidecar_facts(path: Path) -> Facts:
    """All that a file of torch's does not say. ModelError where there is no sidecar."""
    sidecar = path.with_name(path.name + ".json")
    if not sidecar.exists():
        raise ModelError(
            f"{path} does not say what vemray must know: classes, voxel size, normalisation, stride, halo, activation. Write it into {sidecar.name}, "
            'for example {"classes": ["background", "mitochondria"], "voxel_nm": [8, 8, 8], "stride": 16, "halo": 96, "activation": "softmax"}.'
        )
    return parse(contents(sidecar), sidecar)


def read_facts(path: Path) -> Facts:
    if not path.with_name(path.name + ".json").exists():
        archive(path.read_bytes(), path)  # what is no TorchScript is refused for that, not for its facts
    return sidecar_facts(path)


def read(path: Path, device: str) -> TorchScriptModel:
    return TorchScriptModel(read_facts(path), Script(path.read_bytes(), device, path), path)
