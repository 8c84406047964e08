"""Runs a plan: stage after stage, block after block, each finished group into the ledger, so that any crash resumes.

Runner: .name .workers .window
        .pool(work, memory_bytes, actors) -> pool with .submit(index), .wait() -> [(index, stats or BlockError, handle)], .in_flight, .notice, .close()
        .call(fn, *args, returns=1, cpus=1) -> handle, or a tuple of them (args may be handles)
        .ready(handle, seconds) -> bool       .get(handle) -> value       .close()
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vemray.errors import BlockError, VemrayError
from vemray.geometry import Grid, Int3
from vemray.ops.base import ArraySpec, ArtefactSpec, Labeller
from vemray.plan.graph import arguments
from vemray.plan.sources import TableSource
from vemray.plan.stages import Options, Plan, Stage, fuse
from vemray.run.reduce import Tree, merge_cube
from vemray.run.work import (
    WORKS,
    LabelWork,
    ModelWork,
    ObjectWork,
    PyramidWork,
    Stats,
    Work,
    finish_artefact,
    finish_labels,
    finish_measures,
    run_analysis,
)
from vemray.store import access, table
from vemray.store.artefact import ArtefactFiles
from vemray.store.ledger import PassLedger, StageLedger
from vemray.store.volume import Volume, create
from vemray.store.volume import open as open_volume

#: blocks of one ledger group are the cube of SIDE^3 neighbours
SIDE = 2
#: a block that fails leaves the others to be finished, unless this many have and they are more than this share of those that are done
MOST_FAILED, SHARE_FAILED = 16, 0.1


@dataclass
class Tally:
    """What the blocks of a stage cost together."""

    blocks: int = 0
    cpu_seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_rss: int = 0
    #: of blocks with a model: seconds of reading, computing, writing
    read_seconds: float = 0.0
    compute_seconds: float = 0.0
    write_seconds: float = 0.0
    #: from a worker's first block to the end of its last, by where it is
    spans: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)

    def add(self, s: Stats) -> None:
        self.blocks += 1
        self.cpu_seconds += s.cpu_seconds
        self.bytes_read += s.bytes_read
        self.bytes_written += s.bytes_written
        self.peak_rss = max(self.peak_rss, s.peak_rss)
        if s.compute_seconds:
            self.read_seconds += s.read_seconds
            self.compute_seconds += s.compute_seconds
            self.write_seconds += s.write_seconds
            first, last = self.spans.get((s.node, s.pid), (s.began, s.began))
            self.spans[s.node, s.pid] = min(first, s.began), max(last, s.began + s.seconds)

    def model_facts(self) -> dict[str, Any]:
        """Of a stage with a model: how many held it, and the share of their time, each from its first block to its last, in which the network did
        not run."""
        held = sum(b - a for a, b in self.spans.values())
        if not held:
            return {}
        parts = {f"{k}_seconds": round(getattr(self, f"{k}_seconds"), 3) for k in ("read", "compute", "write")}
        return {"holders": len(self.spans), "idle": round(max(0.0, 1 - self.compute_seconds / held), 4), **parts}


def save_group(ledger: PassLedger, coords: Int3, blocks: list[Int3], *partials: Any) -> tuple[None, Any]:
    """Merge a group's partials and record the group as done. Runs as a task; the first value only says that it has."""
    merged = merge_cube(blocks, *partials)
    ledger.save(coords, merged)
    return None, merged


def save_block(ledger: PassLedger, index: int, partial: Any) -> None:
    """Record one block of a group that cannot be finished. Runs as a task."""
    ledger.save_block(index, partial)


def named(step: str, fn: Callable, *args: Any) -> Any:
    """`fn(*args)`; what is not one of vemray's errors gets the step's name. Runs as a task."""
    try:
        return fn(*args)
    except VemrayError:
        raise
    except Exception as e:
        raise BlockError(f"step '{step}', {fn.__name__.replace('_', ' ')}: {type(e).__name__}: {e}") from e


class Engine:
    """Executes `plan` into the folder `out` (a URL), with what lies there already. `heartbeat` is called often and may raise to stop.

    What an output was made from is known by the content key that the stage which made it recorded: `claims`, path -> (key, record)."""

    def __init__(self, plan: Plan, out: str, runner, events, dataset: str, heartbeat: Callable[[], None] = lambda: None, keep_scratch: bool = False):
        self.keep_scratch = keep_scratch
        self.out, self.runner, self.events, self.dataset, self.heartbeat = out.rstrip("/"), runner, events, dataset, heartbeat
        self.options: Options = plan.options
        self.plan = plan
        self.records: list[dict] = []
        self.ledgers = {led: (led.complete(), led.begun()) for led in StageLedger.all(self.out)}
        self.claims = {path: (key, done) for done, _ in self.ledgers.values() if done for path, key in done["outputs"].items()}
        # measures do not ride on what need not be made again: they read it
        self.plan = fuse(plan.graph, plan.options, frozenset(r for s in plan.stages for r in s.outputs if self.present(r)))

    # where things lie -------------------------------------------------------------------------------------------------

    def relative(self, ref: str) -> str:
        spec = self.plan.graph.spec(ref)
        if spec == "table":
            return f"tables/{ref}.parquet"
        if spec == "scalars":
            return f"tables/{ref}.json"
        if isinstance(spec, ArtefactSpec):
            return f"{'surfaces' if ref in self.plan.keep else 'scratch'}/{ref}"
        return f"{'volumes' if ref in self.plan.keep else 'scratch'}/{ref}.zarr"

    def url(self, ref: str) -> str:
        return access.join(self.out, f"scratch/{ref}.parquet" if ref in self.plan.graph.sources else self.relative(ref))

    def ledger(self, stage: Stage) -> StageLedger:
        return StageLedger.of(self.out, stage.name, stage.key)

    def key(self, ref: str) -> str:
        """What an output is made from: its node's content key; a table also holds the name of the data set."""
        key = self.plan.graph.producer(ref).key
        return f"{key} {self.dataset}" if self.plan.graph.spec(ref) == "table" else key

    def present(self, ref: str) -> bool:
        """Whether this output lies where it belongs, whole and as this plan would make it."""
        path = self.relative(ref)
        if self.claims.get(path, ("",))[0] != self.key(ref):
            return False
        url = self.url(ref)
        facts = "artefact.json" if isinstance(self.plan.graph.spec(ref), ArtefactSpec) else "zarr.json" if url.endswith(".zarr") else ""
        return access.exists(access.join(url, facts) if facts else url)

    def needed(self) -> set[str]:
        """Names of the stages that must run: those whose wanted or still needed outputs are not there."""
        wanted = set(self.plan.keep)
        run: set[str] = set()
        for stage in reversed(self.plan.stages):
            if any(r in wanted and not self.present(r) for r in stage.outputs):
                run.add(stage.name)
                wanted.update(stage.reads)
        return run

    def _release_claims(self, stage: Stage) -> None:
        """What this stage is about to write is no longer what other stages, of this recipe or another, made there."""
        mine = {self.relative(r) for r in stage.outputs} | {self._blocks_path(stage)}
        me = self.ledger(stage)
        for led, (done, begun) in list(self.ledgers.items()):
            if led == me:
                continue
            if done and (taken := mine & set(done["outputs"])):
                left = {p: k for p, k in done["outputs"].items() if p not in taken}
                done = {**done, "outputs": left}
                led.finish(done) if left else led.forget()
                self.ledgers[led] = (done, begun)
            elif not done and begun and mine & set(begun["volumes"]):
                led.forget()
                del self.ledgers[led]
        for path in mine:
            self.claims.pop(path, None)

    # running ----------------------------------------------------------------------------------------------------------

    def run(self) -> list[dict]:
        need = self.needed()
        for stage in self.plan.stages:
            self.heartbeat()
            if stage.name not in need:
                done = next((d for r in stage.outputs if (d := self.claims.get(self.relative(r), (None, None))[1])), {})
                self.records.append({**done, "name": stage.name, "title": stage.title, "kind": stage.kind, "skipped": True, "blocks_run": 0})
                self.events("stage_done", stage=stage.name, skipped=True)
                continue
            t0, tally = time.time(), Tally()
            self._release_claims(stage)
            ledger = self.ledger(stage)
            if ledger.complete():
                ledger.forget()  # complete, but what it wrote is gone
            extra = self._run_stage(stage, ledger, tally)
            record = {
                "name": stage.name, "title": stage.title, "kind": stage.kind, "key": stage.key, "seconds": round(time.time() - t0, 3),
                "blocks": len(stage.grid) if stage.grid else 1, "blocks_run": tally.blocks, "cpu_seconds": round(tally.cpu_seconds, 3),
                "memory_bytes": stage.memory_bytes, "peak_bytes": tally.peak_rss, "bytes_read": tally.bytes_read, "bytes_written": tally.bytes_written,
                "outputs": {self.relative(r): self.key(r) for r in stage.outputs}, **tally.model_facts(), **extra,
            }  # fmt: skip
            self.heartbeat()  # no longer ours: then it is not ours to call complete either
            ledger.finish(record)
            ledger.forget_passes()
            access.remove(access.join(self.out, self._blocks_path(stage)))
            self.ledgers[ledger] = (record, None)
            self.claims.update({path: (key, record) for path, key in record["outputs"].items()})
            self.records.append({**record, "skipped": False})
            self.events("stage_done", stage=stage.name, seconds=record["seconds"], blocks_run=tally.blocks, **tally.model_facts())
        if not self.keep_scratch:
            access.remove(access.join(self.out, "scratch"))
        return self.records

    def _call(self, stage: Stage, fn: Callable, *args: Any, **how: Any) -> Any:
        return self.runner.call(named, stage.target.step, fn, *args, **how)

    def _get(self, handle: Any) -> Any:
        while not self.runner.ready(handle, 1.0):
            self.heartbeat()
        return self.runner.get(handle)

    def _run_stage(self, stage: Stage, ledger: StageLedger, tally: Tally) -> dict:
        for ref in stage.reads:
            if isinstance(given := self.plan.graph.sources.get(ref), TableSource):  # as it was read and keyed, whatever becomes of the file
                table.write_table(self.url(ref), given.given.table)
        if stage.kind == "analysis":
            self.events("stage", stage=stage.name, title=stage.title, pass_name="", blocks=1, done=0)
            args = arguments(stage.target.op, stage.target.inputs, lambda r: self._artefacts([r]).get(r, self.url(r)))
            rows = self._get(self._call(stage, run_analysis, stage.target.op, args, self.url(stage.name), self.dataset))
            return {"rows": {stage.name: rows}}
        volumes, local = self._volumes(stage, ledger)
        tables = {r: self.url(r) for r in stage.reads if isinstance(stage.specs[r], str)}
        artefacts = self._artefacts([*stage.reads, *stage.outputs])
        cls = ModelWork if stage.holds_model else WORKS[stage.kind]
        work = cls(stage.name, stage.grid, stage.target, stage.inline, stage.specs, volumes, tables, artefacts, stage.riders, self.dataset)
        extra: dict[str, Any] = {}
        if isinstance(work, ObjectWork):
            work.limit = stage.memory_bytes
        if isinstance(work, LabelWork):
            work.local = local
            work.numbering = access.join(ledger.url, f"numbering-{'x'.join(map(str, stage.grid.block_shape))}")
            if not access.exists(access.join(work.numbering, "stamp")):  # else a resumed run: pass 1 is behind it
                root = self._pass(stage, work, ledger, "pass 1", tally)
                extra = self._get(self._call(stage, finish_labels, work.numbering, len(stage.grid), root))
            work.second = True
        root = self._pass(stage, work, ledger, "pass 2" if stage.kind == "label" else "", tally)
        measures = [stage.target] if stage.kind in ("measure", "object") else list(stage.riders)
        if measures:
            jobs = [(n.op, n.name, self.url(n.name), work.site(n, stage.grid.write_box(0)).inputs, self.dataset) for n in measures]
            extra["rows"] = self._get(self._call(stage, finish_measures, jobs, root))
        elif stage.kind == "artefact":
            self._get(self._call(stage, finish_artefact, artefacts[stage.name], stage.name, root))
        else:
            self._get(root)
        for ref in stage.target.outputs:
            if ref in self.plan.keep and isinstance(stage.specs[ref], ArraySpec):
                self._pyramid(ref, volumes[ref], stage, ledger, tally)
        return extra

    # blocks -----------------------------------------------------------------------------------------------------------

    def _pass(self, stage: Stage, work: Work | PyramidWork, ledger: StageLedger, name: str, tally: Tally) -> Any:
        """Every block of the grid once, groups in Morton order, partials merged in a tree. Returns the root's handle.

        A block that fails is left out: the others are finished and recorded, and then one BlockError names those that failed."""
        grid: Grid = work.grid
        groups = ledger.passed(name.replace(" ", "") or "blocks", grid)
        done = groups.done()
        kept = {i for i in groups.blocks() if tuple(c // SIDE for c in grid.coords(i)) not in done}
        before = sum(len(grid.group(c, SIDE)) for c in done) + len(kept)
        self.events("stage", stage=stage.name, title=stage.title, pass_name=name, blocks=len(grid), done=before)
        counts = tuple(-(-n // SIDE) for n in grid.counts)
        tree = Tree(counts, lambda fn, *args: self._call(stage, fn, *args))
        actors = stage.holds_model and isinstance(work, ModelWork)
        pool = self.runner.pool(work, stage.memory_bytes, actors)
        save = {"returns": 2, "cpus": 0 if actors else 1}  # actors hold all the workers until the last block
        open_groups: dict[Int3, dict[int, Any]] = {}
        group_of: dict[int, tuple[Int3, list[int]]] = {}
        saving: list[tuple[Any, int]] = []
        failed: dict[int, BlockError] = {}
        t0, finished = time.time(), before
        voxels = grid.shape[0] * grid.shape[1] * grid.shape[2] / max(1, len(grid))
        interval = max(SIDE**3, self.runner.window)

        def unsaved() -> int:
            """Blocks that are done but not in the ledger: what a crash now would lose beside those in flight."""
            return sum(map(len, open_groups.values())) + sum(n for _, n in saving)

        def record(coords: Int3, whole: bool) -> None:
            """A group of which nothing is in flight any more; where blocks have failed, the others one by one."""
            parts = open_groups.pop(coords)
            if whole:
                indices = grid.group(coords, SIDE)
                cells = [grid.coords(i) for i in indices]
                done, merged = self._call(stage, save_group, groups, coords, cells, *[parts[i] for i in indices], **save)
                saving.append((done, len(indices)))
                tree.add(coords, merged)
                return
            for i, handle in parts.items():
                if i not in kept:
                    saving.append((self._call(stage, save_block, groups, i, handle, cpus=save["cpus"]), 1))

        def settle(seconds: float = 0.0) -> None:
            """Forget the saves that are through; an error of one is raised here."""
            for pair in list(saving):
                if self.runner.ready(pair[0], seconds):
                    self.runner.get(pair[0])
                    saving.remove(pair)

        def collect() -> None:
            nonlocal finished
            for index, stats, handle in pool.wait():
                coords, indices = group_of.pop(index)
                if isinstance(stats, BlockError):
                    failed[index] = stats
                    self.events("note", text=f"{stage.name}: block {index} failed; the others go on. {stats}")
                else:
                    tally.add(stats)
                    finished += 1
                    open_groups[coords][index] = handle
                if len(open_groups[coords]) + sum(i in failed for i in indices) == len(indices):
                    record(coords, whole=len(open_groups[coords]) == len(indices))
                if index in failed:
                    continue
                rate = (finished - before) / max(1e-6, time.time() - t0)
                self.events(
                    "blocks", stage=stage.name, done=finished, blocks=len(grid), rate=round(rate * voxels / 1e6, 3),
                    remaining=round((len(grid) - finished) / max(rate, 1e-9), 1), block=index, seconds=round(stats.seconds, 3), pid=stats.pid,
                )  # fmt: skip
            if len(failed) >= MOST_FAILED and len(failed) > SHARE_FAILED * (finished - before):
                raise _Hopeless
            if notice := pool.notice:
                pool.notice = ""
                self.events("note", text=f"{stage.name}: {notice}")
            settle()
            self.heartbeat()

        try:
            for coords, indices in grid.groups(SIDE):
                if coords in done:
                    tree.add(coords, self._call(stage, groups.load, coords))
                    continue
                open_groups[coords] = {i: self._call(stage, groups.load_block, i) for i in indices if i in kept}
                for i in indices:
                    if i in kept:
                        continue
                    group_of[i] = (coords, indices)
                    while pool.in_flight >= self.runner.window or (pool.in_flight and unsaved() >= interval):
                        collect()
                    pool.submit(i)
            while pool.in_flight:
                collect()
        except _Hopeless:
            pool.close(cancel=True)
            for coords in list(open_groups):
                record(coords, whole=False)
        except BaseException:
            pool.close(cancel=True)
            raise
        else:
            pool.close()
        while saving:
            settle(1.0)
            self.heartbeat()
        if failed:
            raise _failure(stage, failed, finished, grid)
        return tree.root

    def _pyramid(self, ref: str, volume: Volume, stage: Stage, ledger: StageLedger, tally: Tally) -> None:
        """Coarser levels that the blocks themselves could not write."""
        for level, grid in volume.later_levels:
            work = PyramidWork(volume, level, grid, stage.name)
            self._get(self._pass(stage, work, ledger, f"{ref} level {level}", tally))

    # volumes ----------------------------------------------------------------------------------------------------------

    def _volumes(self, stage: Stage, ledger: StageLedger) -> tuple[dict[str, Volume], Volume | None]:
        """Handles on the volumes that the stage reads and writes, and on the scratch for the labels of pass 1 if it needs one. What it writes
        is made anew, files of an artefact too, unless a run that stopped left it, over the same grid, and each volume still carries the mark
        that was recorded then."""
        targets = {r: (self.url(r), s, None if r in self.plan.keep else 1) for r, s in stage.target.outputs.items() if not isinstance(s, str)}
        op = stage.target.op
        if isinstance(op, Labeller) and not op.cheap:
            spec = stage.specs[stage.name].like("uint32", "labels")
            targets[""] = (access.join(self.out, self._blocks_path(stage)), spec, 1)
        record = {"grid": list(stage.grid.block_shape), "volumes": sorted(url[len(self.out) + 1 :] for url, _, _ in targets.values())}
        begun = ledger.begun() or {}
        made: dict[str, Volume | ArtefactFiles | None] = {}
        if record.items() <= begun.items():
            made = {r: _marked(url, spec, begun["mark"]) for r, (url, spec, _) in targets.items()}
        if not record.items() <= begun.items() or None in made.values():
            ledger.forget()
            begun = {**record, "mark": uuid.uuid4().hex}
            made = {r: self._create(url, spec, stage, levels, begun["mark"]) for r, (url, spec, levels) in targets.items()}
            ledger.begin(begun)
        self.ledgers[ledger] = (None, begun)
        local = made.pop("", None)
        made = {r: v for r, v in made.items() if isinstance(v, Volume)}
        read = {r: self._volume(r) for r in stage.reads if isinstance(stage.specs[r], ArraySpec)}
        return {**read, **made}, local

    @staticmethod
    def _blocks_path(stage: Stage) -> str:
        return f"scratch/{stage.name}.blocks.zarr"

    def _volume(self, ref: str) -> Volume:
        if ref in self.plan.graph.sources:
            return self.plan.graph.sources[ref].volume
        return open_volume(self.url(ref))

    def _artefacts(self, refs: Iterable[str]) -> dict[str, ArtefactFiles]:
        """The files of those among `refs` that are artefacts."""
        return {r: ArtefactFiles(self.url(r)) for r in refs if isinstance(self.plan.graph.spec(r), ArtefactSpec)}

    def _create(self, url: str, spec: ArraySpec | ArtefactSpec, stage: Stage, levels: int | None, mark: str) -> Volume | ArtefactFiles:
        if isinstance(spec, ArtefactSpec):
            files = ArtefactFiles(url)
            files.begin(spec, stage.grid.block_shape, mark)
            return files
        name = url.rsplit("/", 1)[1].removesuffix(".zarr")
        return create(
            url, spec.shape, spec.dtype, spec.spacing, kind=spec.kind, shard=stage.grid.block_shape, chunk=self.options.chunk, levels=levels,
            origin_nm=spec.origin_nm, name=name, attributes={"content_key": stage.target.key, "mark": mark}, overwrite=True,
        )  # fmt: skip


class _Hopeless(Exception):
    """So many blocks fail that the others are not tried."""


def _failure(stage: Stage, failed: dict[int, BlockError], finished: int, grid: Grid) -> BlockError:
    first = min(failed)
    said = str(failed[first]).rstrip(".") + "."
    left = len(grid) - finished - len(failed)
    others = [f"{i} {grid.write_box(i)}" for i in sorted(failed) if i != first]
    named = (
        f" So did {'block' if len(others) == 1 else 'blocks'} {', '.join(others[:20])}{f' and {len(others) - 20} more' if len(others) > 20 else ''}."
        if others
        else ""
    )
    untried = f" {left} were not tried, since too many failed." if left else ""
    return BlockError(
        f"{said}{named}{untried} {finished} of the {len(grid)} blocks of '{stage.name}' are done and recorded: put right what was wrong and run the same "
        "again into the same output; only the rest is done."
    )


def _marked(url: str, spec: ArraySpec | ArtefactSpec, mark: str) -> Volume | ArtefactFiles | None:
    """The volume at `url` if it carries this mark, writable; or the artefact."""
    if isinstance(spec, ArtefactSpec):
        files = ArtefactFiles(url)
        return files if files.mark() == mark else None
    if not access.exists(access.join(url, "zarr.json")):
        return None
    volume = open_volume(url, writable=True)
    return volume if volume.attributes.get("mark") == mark else None
