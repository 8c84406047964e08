"""The native model file: a zip of model.json (the facts) and weights.npz (plain arrays, no pickle). And networks run by torch."""

from __future__ import annotations

import functools
import io
import lzma
import zipfile
import zlib
from pathlib import Path

import numpy as np

from vemray.errors import MissingExtra, ModelError
from vemray.models.facts import Facts, parse
from vemray.models.model import Model
from vemray.store import access

#: no model file may unpack to more
MAX_BYTES = 4 << 30
#: nor, above some size, to so many times what is stored: weights hardly shrink, and a bomb of zeros does nothing else
BOMB_BYTES, BOMB_RATIO = 64 << 20, 100
#: what reading a broken zip raises
BROKEN = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, NotImplementedError, ValueError)


class TorchModel(Model):
    """`module` run by torch in inference mode, with batch normalisation folded away, in float32 unless asked otherwise. On the CPU always in one
    thread, since the last bit differs between one thread and two."""

    def __init__(self, facts: Facts, module, device: str = "cpu", path: str | Path = "model"):
        import torch

        from vemray.models.networks import folded

        self.facts, self.device, self.path = facts, device, str(path)
        if device == "cuda":
            if not torch.cuda.is_available():
                raise ModelError(f"{path}: device cuda was asked for, but torch finds no GPU on this machine.")
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.format = torch.channels_last if facts.dims == 2 else torch.channels_last_3d
        self.module = folded(module.eval()).to(device).to(memory_format=self.format)
        self.dtype = torch.float32

    def in_precision(self, precision: str) -> TorchModel:
        """Weights and activations in bf16 or fp16; scores become probabilities in float32."""
        import torch

        self.dtype = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.module.to(self.dtype)
        return self

    def predict(self, batch: np.ndarray) -> np.ndarray:
        return self.begin(batch)()

    def begin(self, batch: np.ndarray):
        import torch

        self.check_input(batch)
        threads = torch.get_num_threads()
        try:
            if threads != 1:  # a setting of the calling thread, so it is looked at for each call
                torch.set_num_threads(1)
            with torch.inference_mode():
                x = torch.from_numpy(np.ascontiguousarray(batch, np.float32))
                x = (x.pin_memory() if self.device == "cuda" else x).to(self.device, non_blocking=True)
                y = self.module(x.to(self.dtype).contiguous(memory_format=self.format))
                self.check_output(y, self.path)
                y = y.float()
                if self.dtype == torch.float16 and not bool(y.isfinite().all()):
                    raise ModelError(f"{self.path}: the network's numbers are too large for fp16. Say precision: bf16 or float32.")
                y = y.softmax(1) if self.facts.activation == "softmax" else y.sigmoid() if self.facts.activation == "sigmoid" else y
                if self.device != "cuda":
                    scores = y.numpy()
                    return lambda: scores
                out = torch.empty(y.shape, dtype=y.dtype, pin_memory=True)
                out.copy_(y, non_blocking=True)
                done = torch.cuda.Event()
                done.record()
                return functools.partial(_waited, done, out)
        except RuntimeError as e:
            raise ModelError(f"{self.path}: the network cannot take a batch of {batch.shape}: {str(e).splitlines()[0]}") from e
        finally:
            if threads != 1:
                torch.set_num_threads(threads)


def _waited(done, out) -> np.ndarray:
    """The array in `out` once the GPU has come to `done`."""
    done.synchronize()
    return out.numpy()


def save(path: str | Path, module, facts: Facts) -> None:
    from vemray.models.networks import NETWORKS

    if getattr(module, "name", None) not in NETWORKS:
        raise ModelError(f"{type(module).__name__} is none of vemray's networks ({', '.join(NETWORKS)}): save it as ONNX.")
    facts = facts.model_copy(update={"network": {"name": module.name, **module.config}, "memory": module.memory})
    weights = io.BytesIO()
    np.savez(weights, **{k: v.detach().cpu().numpy() for k, v in state_of(module).items()})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        for member, data in (("model.json", facts.model_dump_json(indent=1).encode()), ("weights.npz", weights.getvalue())):
            z.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)  # a fixed time: same weights, same bytes
    access.write_bytes(str(path), packed.getvalue())


def state_of(module) -> dict:
    """Weights and running statistics by name, what a network holds under two names once."""
    names = {k for k, _ in (*module.named_parameters(), *module.named_buffers())}
    return {k: v for k, v in module.state_dict().items() if k in names}


def read_facts(path: Path) -> Facts:
    return parse(members(path, ("model.json",))["model.json"], path)


def read(path: Path, device: str) -> TorchModel:
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "torch", "Running a model") from None
    from vemray.models.networks import network

    parts = members(path, ("model.json", "weights.npz"))
    facts = parse(parts["model.json"], path)
    config = dict(facts.network or {})
    name = config.pop("name", None)
    try:
        with torch.device("meta"):  # no memory yet: the file's numbers are not trusted before the weights fit them
            module = network(str(name), **config)
    except (TypeError, ModelError) as e:
        raise ModelError(f"{path}: its network cannot be built: {e}") from None
    if config.get("classes") != len(facts.classes) or module.config["in_channels"] != facts.channels or module.config["dims"] != facts.dims:
        raise ModelError(
            f"{path}: the network ({module.config['dims']}D, {module.config['in_channels']} channels in, {module.config['classes']} out) does not fit "
            f"its facts ({facts.channels} channels, classes {', '.join(facts.classes)}, {facts.dims}D)."
        )
    seen = facts.halo if name != "unet" else module.halo  # MONAI's was measured when the file was written
    if (
        facts.strides != facts.zyx(module.stride, 1)
        or (module.sees_all and seen is not None)
        or any(a < b for a, b in zip(facts.halos, facts.zyx(seen or 0, 0)))
    ):
        raise ModelError(
            f"{path}: stride {facts.stride} and halo {facts.halo} do not fit the network, which has {module.stride} and {None if module.sees_all else module.halo}."
        )
    state = state_of(module)
    arrays = weights(parts["weights.npz"], {k: tuple(v.shape) for k, v in state.items()}, path)
    module.load_state_dict({k: torch.from_numpy(a).to(state[k].dtype) for k, a in arrays.items()}, assign=True, strict=False)
    return TorchModel(facts, module, device, path)


def members(path: Path, wanted: tuple[str, ...], most: int = MAX_BYTES) -> dict[str, bytes]:
    """The wanted members of a zip, read in memory: nothing is unpacked to disk, so no path can escape. Together they hold at most `most` bytes."""
    try:
        with zipfile.ZipFile(path) as z:
            found = {i.filename: i for i in z.infolist()}
            missing = [w for w in wanted if w not in found]
            if missing:
                raise ModelError(f"{path} is not a {path.suffix[1:]} model: it has no {missing[0]}.")
            if sum(found[w].file_size for w in wanted) > most:
                raise ModelError(f"{path}: {' and '.join(wanted)} would unpack to more than {most / 1e6:,.0f} MB: refused.")
            if any(i.file_size > max(BOMB_BYTES, BOMB_RATIO * i.compress_size) for i in map(found.get, wanted)):
                raise ModelError(f"{path} would unpack to more than {BOMB_RATIO} times its size, which no weights do: refused.")
            return {w: unpacked(z, found[w], path) for w in wanted}
    except BROKEN as e:
        raise ModelError(f"{path} cannot be read as a model: {e}. The file may be truncated.") from None


def unpacked(z: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str | Path) -> bytes:
    """A member, no further than its declared size: a directory may lie about it, and zipfile then unpacks all there is. Methods that it cannot stop
    within are refused."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelError(
            f"{path}: '{entry.filename}' is packed with method {entry.compress_type}; only deflate is unpacked. Pack it again with that."
        )
    with z.open(entry) as f:
        return f.read(entry.file_size)


def checked(z: zipfile.ZipFile, path: str | Path) -> list[zipfile.ZipInfo]:
    """The members of an archive of torch's. ModelError for bombs and for names that are there twice."""
    entries = z.infolist()
    names = [i.filename for i in entries]
    if bomb := next((i.filename for i in entries if i.file_size > max(BOMB_BYTES, BOMB_RATIO * i.compress_size)), None):
        raise ModelError(f"{path}: '{bomb}' would unpack to more than {BOMB_RATIO} times its size, which no weights do: refused.")
    if len(set(names)) != len(names) or sum(i.file_size for i in entries) > MAX_BYTES:
        raise ModelError(f"{path} holds a name twice, or would unpack to more than {MAX_BYTES / 1e9:.0f} GB: refused.")
    return entries


def weights(data: bytes, shapes: dict[str, tuple[int, ...]], path: Path) -> dict[str, np.ndarray]:
    """Arrays of an npz by name. Each header must name the shape the network wants before anything of that size is made."""
    out = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            names = {n.removesuffix(".npy") for n in z.namelist()}
            if any(i.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for i in z.infolist()):
                raise ModelError(f"{path}: its weights are packed in a way that is not unpacked; numpy.savez and savez_compressed are.")
            if names != set(shapes):
                odd = min(names ^ set(shapes))
                raise ModelError(f"{path}: weights and network do not fit: '{odd}' is not in the {'file' if odd in shapes else 'network'}.")
            for key, shape in shapes.items():
                with z.open(key + ".npy") as f:
                    version = np.lib.format.read_magic(f)
                    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    found, fortran, dtype = header(f)
                    if found != shape or fortran or dtype.kind not in "fi":
                        raise ModelError(f"{path}: weights and network do not fit: '{key}' is {dtype} {found} where the network has {shape}.")
                    n = int(np.prod(shape)) * dtype.itemsize
                    raw = f.read(n)
                    if len(raw) != n:
                        raise ModelError(f"{path}: the weights '{key}' are truncated.")
                    out[key] = np.frombuffer(bytearray(raw), dtype).reshape(shape)
    except BROKEN as e:
        raise ModelError(f"{path}: its weights cannot be read: {e}. The file may be truncated.") from None
    return out
