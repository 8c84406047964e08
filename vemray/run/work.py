"""What a worker does with one block of a stage. A `Work` is small and picklable: it holds handles, never voxels."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import threading
import time
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vemray.errors import BlockError, ModelError, StorageError, VemrayError, VolumeError
from vemray.geometry import Box, Grid
from vemray.ops.base import Measure, Site
from vemray.ops.faces import Surface
from vemray.plan.graph import Node, _call_specs, arguments, file_hash
from vemray.plan.grids import grid_spec, other_boxes, read_inputs
from vemray.run.numbering import NumberingFile
from vemray.run.threads import keep_freed_memory
from vemray.store import access, table
from vemray.store.artefact import ArtefactFiles
from vemray.store.volume import Volume


@dataclass
class Stats:
    """What a block cost; small, goes to the driver."""

    index: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_rss: int = 0
    pid: int = 0
    node: str = ""
    began: float = 0.0  # seconds since the epoch
    #: of a block with a model: reading its inputs, running the network (without waiting for it), writing
    read_seconds: float = 0.0
    compute_seconds: float = 0.0
    write_seconds: float = 0.0


@dataclass
class Bundle:
    """Partials of one pass by name, merged together."""

    parts: dict[str, Any]

    def merge(self, upper: Bundle, axis: int) -> Bundle:
        for name in self.parts:
            self.parts[name] = self.parts[name].merge(upper.parts[name], axis)
        return self


@dataclass
class Checksums:
    """CRC of each block's own labels in pass 1, to be met again in pass 2."""

    index: np.ndarray
    crc: np.ndarray

    def merge(self, upper: Checksums, axis: int) -> Checksums:
        return Checksums(np.concatenate([self.index, upper.index]), np.concatenate([self.crc, upper.crc]))


@dataclass
class Entries:
    """Entries of the blocks that have a file, for the index of an artefact."""

    block: np.ndarray  # int64 (n,)
    arrays: dict[str, np.ndarray]  # each (n, ...)

    def merge(self, upper: Entries, axis: int) -> Entries:
        names = {**self.arrays, **upper.arrays}
        both = {k: [e.arrays[k] for e in (self, upper) if k in e.arrays] for k in names}
        return Entries(np.concatenate([self.block, upper.block]), {k: np.concatenate(v) for k, v in both.items()})


@dataclass
class Work:
    """Base: `step` and `nodes` for messages, `inline` the fused filters, `volumes`, `tables` and `artefacts` where refs live."""

    stage: str
    grid: Grid
    target: Node
    inline: dict[str, Node]
    specs: dict[str, Any]
    volumes: dict[str, Volume]
    tables: dict[str, str]
    artefacts: dict[str, ArtefactFiles]
    riders: tuple[Node, ...] = ()
    dataset: str = ""
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self):
        return {**self.__dict__, "_loaded": {}}

    @property
    def urls(self) -> list[str]:
        """Every place that the work reads or writes."""
        return [*(v.url for v in (*self.volumes.values(), *self.artefacts.values())), *self.tables.values()]

    def run(self, index: int) -> tuple[Bundle | None, Stats]:
        """Do block `index`. An error that is the operator's becomes a BlockError that names step, block and urls."""
        keep_freed_memory()
        t0, c0 = time.perf_counter(), time.process_time()
        stats = Stats(index, pid=os.getpid(), node=platform.node(), began=time.time())
        write = self.grid.write_box(index)
        with self.naming(index, write):
            bundle = self._block(index, write, stats)
        stats.seconds, stats.cpu_seconds, stats.peak_rss = time.perf_counter() - t0, time.process_time() - c0, peak_rss()
        return bundle, stats

    @contextlib.contextmanager
    def naming(self, index: int, write: Box):
        try:
            yield
        except (BlockError, StorageError):
            raise
        except Exception as e:
            urls = ", ".join(v.url for r, v in {**self.volumes, **self.artefacts}.items() if r not in self.target.outputs)
            said = str(e) if isinstance(e, VemrayError) else f"{type(e).__name__}: {e}"
            raise BlockError(f"step '{self.target.step}' ({self.target.op.name}), block {index} {write}, reading {urls}: {said}") from e

    def _block(self, index: int, write: Box, stats: Stats) -> Bundle | None:
        raise NotImplementedError

    def evaluate(self, ref: str, box: Box, stats: Stats) -> Any:
        """Value of `ref` over `box`: read from storage, or computed by the fused filter that makes it; tables come whole,
        surfaces unread."""
        if ref in self.tables:
            if ref not in self._loaded:
                url = self.tables[ref]
                self._loaded[ref] = table.read_json(url) if url.endswith(".json") else table.read_table(url)
            return self._loaded[ref]
        if ref in self.artefacts:
            return open_surface(self.artefacts[ref])
        if ref in self.inline:
            node = self.inline[ref]
            return self.apply(node, box, stats)
        array = self.volumes[ref].read(box)
        stats.bytes_read += array.nbytes
        return array

    def site(self, node: Node, write: Box) -> Site:
        array_specs = [s for s in _call_specs(node.op, node.inputs, self.specs)]
        grid = grid_spec(node, self.specs)
        read = node.op.read_box(write, grid.shape, grid.spacing)
        return Site(grid.shape, grid.spacing, read, write, tuple(array_specs), other_boxes(node, write, self.specs))

    def call_arguments(self, node: Node, site: Site, stats: Stats) -> list[Any]:
        """Values of the operator's inputs at `site`; of a table that `Operator.rows` names, the rows of the labels in it only."""
        rows = {port: which for port, which in node.op.rows().items() if node.inputs[port] in self.tables}
        values: dict[str, Any] = dict.fromkeys(node.inputs)  # of an input used for its grid only: None
        read: dict[tuple[str, Box], Any] = {}
        for key, ref in sorted(read_inputs(node).items(), key=lambda one: one[0] in rows):
            if key in rows:
                labels, column = rows[key]
                values[key] = table.read_rows(self.tables[ref], column, distinct(values[labels]))
                continue
            at = (ref, site.boxes.get(key, site.read))
            if at not in read:
                read[at] = self.evaluate(*at, stats)
            values[key] = read[at]
        return arguments(node.op, {key: key for key in node.inputs}, values.__getitem__)

    def apply(self, node: Node, write: Box, stats: Stats) -> Any:
        """Filter `node` over `write`, cropped."""
        site = self.site(node, write)
        out = node.op(*self.call_arguments(node, site, stats), site=site)
        return {k: cropped(v, site) for k, v in out.items()} if isinstance(out, dict) else cropped(out, site)

    def measure(self, write: Box, made: dict[str, np.ndarray], stats: Stats) -> dict[str, Any]:
        """Partials of the riders over `write`, given what the stage just made."""
        parts = {}
        for node in self.riders:
            args = arguments(node.op, node.inputs, lambda r: made[r] if r in made else self.evaluate(r, write, stats))
            parts[node.name] = node.op.measure(*args, site=self.site(node, write))
        return parts

    def put(self, ref: str, write: Box, array: np.ndarray, stats: Stats) -> None:
        volume = self.volumes[ref]
        want = volume.spec.dtype
        if array.dtype != np.dtype(want) or array.shape != write.shape:
            raise VolumeError(f"the operator gave {array.dtype} {array.shape}, but declared {want} {write.shape}")
        stats.bytes_written += volume.write(write, array) or 0


def distinct(labels: np.ndarray) -> np.ndarray:
    """The labels that occur, sorted; from the starts of their runs, since a block holds few labels in long runs."""
    flat = labels.reshape(-1)
    return np.unique(np.concatenate([flat[:1], flat[1:][flat[1:] != flat[:-1]]]))


def cropped(array: np.ndarray, site: Site) -> np.ndarray:
    if array.shape == site.write.shape:
        return array
    if array.shape == site.read.shape:
        return array[site.crop]
    raise VolumeError(
        f"the operator gave an array of {array.shape}; it must cover the read box {site.read.shape} or the write box {site.write.shape}"
    )


class MapWork(Work):
    """A filter (with the filters fused before it) writes its block; riders measure it."""

    def _block(self, index, write, stats):
        out = self.apply(self.target, write, stats)
        made = {f"{self.target.name}.{k}": v for k, v in out.items()} if isinstance(out, dict) else {self.target.name: out}
        for ref, array in made.items():
            self.put(ref, write, array, stats)
        return Bundle(self.measure(write, made, stats)) if self.riders else None


@dataclass
class InHand:
    """A block of a stage with a model, between being read and being written."""

    write: Box
    site: Site
    stats: Stats
    began: float
    args: list[Any] | None = None
    out: dict[str, np.ndarray] | None = None


class ModelWork(MapWork):
    """A filter that holds a model, in three parts, so that blocks are read and written beside the one that is computed. An actor calls `run` in
    several threads, of which one at a time computes; the serial runner computes in its main thread."""

    def run(self, index):
        lock = self._loaded.setdefault("lock", threading.Lock())
        block = self.fetch(index)
        with lock:
            self.compute(block)
        return self.store(block)

    def fetch(self, index: int) -> InHand:
        keep_freed_memory()
        write = self.grid.write_box(index)
        block = InHand(
            write, self.site(self.target, write), Stats(index, pid=os.getpid(), node=platform.node(), began=time.time()), time.perf_counter()
        )
        with self._timed(block, "read"):
            block.args = self.call_arguments(self.target, block.site, block.stats)
        return block

    def compute(self, block: InHand) -> None:
        with self._timed(block, "compute"):
            out = self.target.op(*block.args, site=block.site)
            self._as_planned()
            out = out if isinstance(out, dict) else {"": out}
            block.out = {f"{self.target.name}.{k}" if k else self.target.name: cropped(v, block.site) for k, v in out.items()}
            block.args = None

    def _as_planned(self) -> None:
        """BlockError where a file of the model is another than the run was planned with: looked at after each block, read again where it was
        touched, so that no block of another network is kept."""
        files = self.target.op.files()
        stamp = [(s.st_size, s.st_mtime_ns, s.st_ino) for s in map(os.stat, files)]
        if self._loaded.get("stamp") == stamp:
            return
        hashes = tuple(map(file_hash, files))
        if hashes != self.target.files:  # or there is a sidecar more
            changed = next((f for f, h in zip(files, hashes) if h not in self.target.files), files[0])
            raise ModelError(f"{changed} was changed while the run used it. Run the same again: this step is then done with the file as it is.")
        self._loaded["stamp"] = stamp

    def store(self, block: InHand) -> tuple[Bundle | None, Stats]:
        with self._timed(block, "write"):
            for ref, array in block.out.items():
                self.put(ref, block.write, array, block.stats)
        with self.naming(block.stats.index, block.write):
            bundle = Bundle(self.measure(block.write, block.out, block.stats)) if self.riders else None
        block.stats.seconds, block.stats.peak_rss = time.perf_counter() - block.began, peak_rss()
        return bundle, block.stats

    @contextlib.contextmanager
    def _timed(self, block: InHand, what: str):
        t0, c0 = time.perf_counter(), time.thread_time()  # of this thread: others work on other blocks
        with self.naming(block.stats.index, block.write):
            yield
        setattr(block.stats, f"{what}_seconds", time.perf_counter() - t0)
        block.stats.cpu_seconds += time.thread_time() - c0


class MeasureWork(Work):
    def _block(self, index, write, stats):
        site = self.site(self.target, write)
        args = self.call_arguments(self.target, site, stats)
        return Bundle({self.target.name: self.target.op.measure(*args, site=site)})


class ArtefactWork(Work):
    """Each block writes its own file and returns its entry in the index."""

    def _block(self, index, write, stats):
        site = self.site(self.target, write)
        piece = self.target.op(*self.call_arguments(self.target, site, stats), site=site)
        if not piece.arrays:
            return Bundle({self.target.name: Entries(np.zeros(0, np.int64), {k: v[None][:0] for k, v in piece.entry.items()})})
        stats.bytes_written += self.artefacts[self.target.name].write(index, piece.arrays)
        return Bundle({self.target.name: Entries(np.array([index]), {k: v[None] for k, v in piece.entry.items()})})


@dataclass
class ObjectWork(Work):
    """Does the objects whose box begins in the block, each read whole and by itself."""

    limit: int = 0  # bytes that one may take

    def _block(self, index, write, stats):
        node = self.target
        table = self.evaluate(node.inputs["table"], write, stats)
        rows = node.op.objects(table, lambda box: self.evaluate(node.inputs["labels"], box, stats), self.site(node, write), self.limit)
        return Bundle({node.name: rows})


@dataclass
class LabelWork(Work):
    """Both passes of a labelling stage. Pass 1 labels each block and returns the evidence; pass 2 writes final ids."""

    numbering: str = ""  # URL of the numbering that the evidence resolved to
    local: Volume | None = None  # scratch for pass 1's labels, when they are too dear to compute twice
    second: bool = False

    def _block(self, index, write, stats):
        return self._write_final(index, write, stats) if self.second else self._label(index, write, stats)

    def _local(self, write: Box, stats: Stats):
        op = self.target.op
        site = self.site(self.target, write)
        return op.label(*self.call_arguments(self.target, site, stats), site=site)

    def _label(self, index, write, stats):
        found = self._local(write, stats)
        parts = {"evidence": found.evidence}
        if self.local is None:
            crc = checksum(found.labels, found.keys)
            parts["checksums"] = Checksums(np.array([index], np.int64), np.array([crc], np.uint32))
        else:
            stats.bytes_written += self.local.write(write, found.labels) or 0
            access.write_bytes(self._keys_url(index), np.ascontiguousarray(found.keys, np.uint64).tobytes())
        return Bundle(parts)

    def _keys_url(self, index: int) -> str:
        return access.join(self.numbering, "keys", str(index))

    def _write_final(self, index, write, stats):
        final = NumberingFile.open(self.numbering)
        if self.local is None:
            found = self._local(write, stats)
            labels, keys = found.labels, found.keys
            if final.checksum(index) != checksum(labels, keys):
                raise BlockError(
                    f"step '{self.target.step}' ({self.target.op.name}), block {index} {write}: its labels differ between the two passes. "
                    "The input changed during the run, or two machines compute differently; nothing is trusted. Run again."
                )
        else:
            labels = self.local.read(write)
            stats.bytes_read += labels.nbytes
            keys = np.frombuffer(access.read_bytes(self._keys_url(index)), np.uint64)
        lut = np.zeros(len(keys) + 1, np.uint64)
        lut[1:] = final.ids(keys)
        out = lut[labels]
        self.put(self.target.name, write, out, stats)
        if not self.riders:
            return None
        return Bundle(self.measure(write, {self.target.name: out}, stats))


@dataclass
class PyramidWork:
    """Fills a coarser level of a volume from the one below."""

    volume: Volume
    level: int
    grid: Grid
    stage: str

    @property
    def urls(self) -> list[str]:
        return [self.volume.url]

    def run(self, index: int) -> tuple[None, Stats]:
        from vemray.store.volume import fill_level

        t0, c0 = time.perf_counter(), time.process_time()
        written = fill_level(self.volume, self.level, self.grid.write_box(index))
        return None, Stats(index, time.perf_counter() - t0, time.process_time() - c0, bytes_written=written, peak_rss=peak_rss(), pid=os.getpid())


def checksum(labels: np.ndarray, keys: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(keys), zlib.crc32(np.ascontiguousarray(labels)))


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes."""
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def finish_labels(url: str, n_blocks: int, bundle: Bundle) -> dict:
    """Resolve the evidence of a whole volume into the numbering that pass 2 reads. Runs as a task."""
    numbering = bundle.parts["evidence"].resolve()
    sums = bundle.parts.get("checksums")
    crc = np.zeros(n_blocks, np.uint32)
    if sums is not None:
        crc[sums.index] = sums.crc
    NumberingFile.write(url, numbering, crc)
    return {"objects": int(numbering.count)}


def finish_measures(jobs: list[tuple[Measure, str, str, tuple, str]], bundle: Bundle) -> dict:
    """Turn merged partials into tables: jobs are (operator, its name in the bundle, url, array specs, data set). Runs as a task."""
    rows = {}
    for op, name, url, specs, dataset in jobs:
        value = op.finish(bundle.parts[name], specs)
        if op.gives == "scalars":
            table.write_json(url, value)
        else:
            table.write_table(url, with_dataset(value, dataset))
            rows[name] = value.num_rows
    return rows


def finish_artefact(files: ArtefactFiles, name: str, bundle: Bundle) -> None:
    """Write the index, in the order of the blocks. Runs as a task."""
    entries: Entries = bundle.parts[name]
    order = np.argsort(entries.block)
    files.finish({"block": entries.block[order], **{k: v[order] for k, v in entries.arrays.items()}})


def open_surface(files: ArtefactFiles) -> Surface:
    """Cached in the process by the mark it carries: a surface made anew is opened anew."""
    return _opened(files, files.mark())


@functools.lru_cache(maxsize=8)
def _opened(files: ArtefactFiles, mark: str) -> Surface:
    return Surface(files.spec(), files.index(), files.read)


def run_analysis(op, args: list[Any], url: str, dataset: str) -> int:
    """An Analysis over whole tables. `args` are urls of tables, files of surfaces, dicts of them, or None. Runs as a task."""

    def load(a):
        if isinstance(a, dict):
            return {k: load(v) for k, v in a.items()}
        if a is None:
            return None
        if isinstance(a, ArtefactFiles):
            return open_surface(a)
        if a.endswith(".json"):
            return table.read_json(a)
        t = table.read_table(a)
        return t.drop_columns(["dataset"]) if "dataset" in t.column_names else t

    value = op(*[load(a) for a in args])
    if op.gives == "scalars":
        table.write_json(url, value)
        return 0
    table.write_table(url, with_dataset(value, dataset))
    return value.num_rows


def with_dataset(t, dataset: str):
    """The data set is a key in every table."""
    import pyarrow as pa

    if "dataset" in t.column_names:
        return t
    column = pa.DictionaryArray.from_arrays(np.zeros(t.num_rows, np.int32), pa.array([dataset]))
    return t.add_column(0, "dataset", column)


WORKS = {"map": MapWork, "label": LabelWork, "measure": MeasureWork, "artefact": ArtefactWork, "object": ObjectWork}
