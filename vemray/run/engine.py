"""Runs a plan: stage after stage, block after block, each finished group into the ledger, so that any crash resumes.

Runner: .name .workers .window
        .pool(work, memory_bytes, actors) -> pool with .submit(index), .wait() -> [(index, stats, handle)], .in_flight, .close()
        .call(fn, *args) -> handle (args may be handles)       .get(handle) -> value       .close()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vemray.errors import VolumeError
from vemray.geometry import Grid, Int3
from vemray.ops.base import ArraySpec, Labeller
from vemray.plan.graph import arguments
from vemray.plan.stages import Options, Plan, Stage
from vemray.run.reduce import Tree, merge_cube
from vemray.run.work import WORKS, LabelWork, ModelWork, PyramidWork, Stats, Work, finish_labels, finish_measures, run_analysis
from vemray.store import access
from vemray.store.ledger import PassLedger, StageLedger
from vemray.store.volume import Volume, create
from vemray.store.volume import open as open_volume

#: blocks of one ledger group are the cube of SIDE^3 neighbours
SIDE = 2


@dataclass
class Tally:
    """What the blocks of a stage cost together."""

    blocks: int = 0
    cpu_seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_rss: int = 0

    def add(self, s: Stats) -> None:
        self.blocks += 1
        self.cpu_seconds += s.cpu_seconds
        self.bytes_read += s.bytes_read
        self.bytes_written += s.bytes_written
        self.peak_rss = max(self.peak_rss, s.peak_rss)


def save_group(ledger: PassLedger, coords: Int3, blocks: list[Int3], *partials: Any) -> Any:
    """Merge a group's partials and record the group as done. Runs as a task."""
    merged = merge_cube(blocks, *partials)
    ledger.save(coords, merged)
    return merged


class Engine:
    """Executes `plan` into the folder `out` (a URL). `heartbeat` is called often and may raise to stop."""

    def __init__(self, plan: Plan, out: str, runner, events, dataset: str, heartbeat: Callable[[], None] = lambda: None):
        self.plan, self.out, self.runner, self.events, self.dataset, self.heartbeat = plan, out, runner, events, dataset, heartbeat
        self.options: Options = plan.options
        self.records: list[dict] = []

    # where things lie -------------------------------------------------------------------------------------------------

    def url(self, ref: str) -> str:
        spec = self.plan.graph.spec(ref)
        if spec == "table":
            return access.join(self.out, "tables", f"{ref}.parquet")
        if spec == "scalars":
            return access.join(self.out, "tables", f"{ref}.json")
        return access.join(self.out, "volumes" if ref in self.plan.keep else "scratch", f"{ref}.zarr")

    def ledger(self, stage: Stage) -> StageLedger:
        return StageLedger(self.out, stage.name, stage.key)

    def present(self, stage: Stage, refs: Iterable[str]) -> bool:
        """Whether the stage is complete and these outputs of it still lie where they belong."""
        record = self.ledger(stage).complete()
        if record is None:
            return False
        return all(record["outputs"].get(r) == self.relative(r) and self._exists(r) for r in refs)

    def relative(self, ref: str) -> str:
        return self.url(ref)[len(self.out.rstrip("/")) :].lstrip("/")

    def _exists(self, ref: str) -> bool:
        url = self.url(ref)
        return access.exists(access.join(url, "zarr.json") if url.endswith(".zarr") else url)

    def needed(self) -> set[str]:
        """Names of the stages that must run: those whose wanted or still needed outputs are not there."""
        wanted = set(self.plan.keep)
        run: set[str] = set()
        for stage in reversed(self.plan.stages):
            refs = [r for r in stage.outputs if r in wanted]
            if refs and not self.present(stage, refs):
                run.add(stage.name)
                wanted.update(stage.reads)
        return run

    # running ----------------------------------------------------------------------------------------------------------

    def run(self) -> list[dict]:
        need = self.needed()
        for stage in self.plan.stages:
            self.heartbeat()
            if stage.name not in need:
                record = self.ledger(stage).complete() or {}
                self.records.append({**record, "name": stage.name, "title": stage.title, "kind": stage.kind, "skipped": True, "blocks_run": 0})
                self.events("stage_done", stage=stage.name, skipped=True)
                continue
            t0 = time.time()
            tally = Tally()
            self._forget_other_versions(stage)
            ledger = self.ledger(stage)
            if ledger.complete():
                ledger.forget()  # complete, but what it wrote is gone
            extra = self._run_stage(stage, ledger, tally)
            record = {
                "name": stage.name, "title": stage.title, "kind": stage.kind, "key": stage.key, "seconds": round(time.time() - t0, 3),
                "blocks": len(stage.grid) if stage.grid else 1, "blocks_run": tally.blocks, "cpu_seconds": round(tally.cpu_seconds, 3),
                "memory_bytes": stage.memory_bytes, "peak_bytes": tally.peak_rss, "bytes_read": tally.bytes_read, "bytes_written": tally.bytes_written,
                "outputs": {r: self.relative(r) for r in stage.outputs}, **extra,
            }  # fmt: skip
            ledger.finish(record)
            ledger.forget_passes()
            self.records.append({**record, "skipped": False})
            self.events("stage_done", stage=stage.name, seconds=record["seconds"], blocks_run=tally.blocks)
        access.remove(access.join(self.out, "scratch"))
        return self.records

    def _forget_other_versions(self, stage: Stage) -> None:
        """A stage of the same name with other parameters wrote to the same place: it is no longer complete."""
        root = access.join(self.out, "ledger")
        mine = self.ledger(stage).url.rsplit("/", 1)[1]
        for name in access.list_names(root):
            if name.rpartition("-")[0] == stage.name and name != mine:
                access.remove(access.join(root, name))

    def _run_stage(self, stage: Stage, ledger: StageLedger, tally: Tally) -> dict:
        if stage.kind == "analysis":
            self.events("stage", stage=stage.name, title=stage.title, pass_name="", blocks=1, done=0)
            args = arguments(stage.target.op, stage.target.inputs, self.url)
            rows = self.runner.get(self.runner.call(run_analysis, stage.target.op, args, self.url(stage.name), self.dataset))
            return {"rows": {stage.name: rows}}
        volumes = {r: self._volume(r) for r in stage.reads if isinstance(stage.specs[r], ArraySpec)}
        fresh = not ledger.passed("made", stage.grid).done()
        if fresh:
            ledger.forget()  # begun over another grid, or not begun
        for ref, spec in stage.target.outputs.items():
            if isinstance(spec, ArraySpec):
                volumes[ref] = self._create(ref, spec, stage, fresh)
        ledger.passed("made", stage.grid).save((0, 0, 0), None)
        tables = {r: self.url(r) for r in stage.reads if not isinstance(stage.specs[r], ArraySpec)}
        cls = ModelWork if stage.holds_model else WORKS[stage.kind]
        work = cls(stage.name, stage.grid, stage.target, stage.inline, stage.specs, volumes, tables, stage.riders, self.dataset)
        extra: dict[str, Any] = {}
        if isinstance(work, LabelWork):
            extra.update(self._pass_one(stage, work, ledger, tally, fresh))
            work.second = True
        root = self._pass(stage, work, ledger, "pass 2" if stage.kind == "label" else "", tally)
        measures = [stage.target] if stage.kind == "measure" else list(stage.riders)
        if measures:
            jobs = [(n.op, n.name, self.url(n.name), work.site(n, stage.grid.write_box(0)).inputs, self.dataset) for n in measures]
            extra["rows"] = self.runner.get(self.runner.call(finish_measures, jobs, root))
        else:
            self.runner.get(root)
        for ref in stage.target.outputs:
            if ref in self.plan.keep and isinstance(stage.specs[ref], ArraySpec):
                self._pyramid(ref, volumes[ref], stage, ledger, tally)
        if isinstance(work, LabelWork) and work.local is not None:
            access.remove(work.local.url)
        return extra

    def _pass_one(self, stage: Stage, work: LabelWork, ledger: StageLedger, tally: Tally, fresh: bool) -> dict:
        """Label every block and resolve the evidence into a numbering. Kept for pass 2, also of a resumed run."""
        op = stage.target.op
        work.numbering = access.join(ledger.url, f"numbering-{'x'.join(map(str, stage.grid.block_shape))}")
        if isinstance(op, Labeller) and not op.cheap:
            spec = stage.specs[stage.name].like("uint32", "labels")
            scratch = access.join(self.out, "scratch", f"{stage.name}.blocks.zarr")
            work.local = self._create_at(scratch, spec, stage, fresh, levels=1)
        if access.exists(access.join(work.numbering, "stamp")):
            return {}
        root = self._pass(stage, work, ledger, "pass 1", tally)
        return self.runner.get(self.runner.call(finish_labels, work.numbering, len(stage.grid), root))

    def _pass(self, stage: Stage, work: Work | PyramidWork, ledger: StageLedger, name: str, tally: Tally) -> Any:
        """Every block of the grid once, groups in Morton order, partials merged in a tree. Returns the root's handle."""
        grid: Grid = work.grid
        groups = ledger.passed(name.replace(" ", "") or "blocks", grid)
        done = groups.done()
        before = sum(len(grid.group(c, SIDE)) for c in done)
        self.events("stage", stage=stage.name, title=stage.title, pass_name=name, blocks=len(grid), done=before)
        counts = tuple(-(-n // SIDE) for n in grid.counts)
        tree = Tree(counts, self.runner.call)
        pool = self.runner.pool(work, stage.memory_bytes, actors=stage.holds_model and isinstance(work, ModelWork))
        open_groups: dict[Int3, dict[int, Any]] = {}
        group_of: dict[int, tuple[Int3, list[int]]] = {}
        t0, finished = time.time(), before
        voxels = grid.shape[0] * grid.shape[1] * grid.shape[2] / max(1, len(grid))

        interval = max(SIDE**3, self.runner.window)

        def unsaved() -> int:
            """Blocks that are done but whose group is not: what a crash now would lose beside those in flight."""
            return sum(map(len, open_groups.values()))

        def collect() -> None:
            nonlocal finished
            for index, stats, handle in pool.wait():
                tally.add(stats)
                finished += 1
                coords, indices = group_of.pop(index)
                open_groups[coords][index] = handle
                if len(open_groups[coords]) == len(indices):
                    parts = open_groups.pop(coords)
                    cells = [grid.coords(i) for i in indices]
                    tree.add(coords, self.runner.call(save_group, groups, coords, cells, *[parts[i] for i in indices]))
                rate = (finished - before) / max(1e-6, time.time() - t0)
                self.events(
                    "blocks", stage=stage.name, done=finished, blocks=len(grid), rate=round(rate * voxels / 1e6, 3),
                    remaining=round((len(grid) - finished) / max(rate, 1e-9), 1), block=index, seconds=round(stats.seconds, 3), pid=stats.pid,
                )  # fmt: skip
            self.heartbeat()

        try:
            for coords, indices in grid.groups(SIDE):
                if coords in done:
                    tree.add(coords, self.runner.call(groups.load, coords))
                    continue
                open_groups[coords] = {}
                for i in indices:
                    group_of[i] = (coords, indices)
                    while pool.in_flight >= self.runner.window or (pool.in_flight and unsaved() >= interval):
                        collect()
                    pool.submit(i)
            while pool.in_flight:
                collect()
        except BaseException:
            pool.close(cancel=True)
            raise
        pool.close()
        return tree.root

    def _pyramid(self, ref: str, volume: Volume, stage: Stage, ledger: StageLedger, tally: Tally) -> None:
        """Coarser levels that the blocks themselves could not write."""
        for level, grid in volume.later_levels:
            work = PyramidWork(volume, level, grid, stage.name)
            self.runner.get(self._pass(stage, work, ledger, f"{ref} level {level}", tally))

    # volumes ----------------------------------------------------------------------------------------------------------

    def _volume(self, ref: str) -> Volume:
        if ref in self.plan.graph.sources:
            return self.plan.graph.sources[ref].volume
        return open_volume(self.url(ref))

    def _create(self, ref: str, spec: ArraySpec, stage: Stage, fresh: bool) -> Volume:
        return self._create_at(self.url(ref), spec, stage, fresh, levels=None if ref in self.plan.keep else 1)

    def _create_at(self, url: str, spec: ArraySpec, stage: Stage, fresh: bool, levels: int | None) -> Volume:
        """The stage's output volume; when blocks of it are done already, the one that is there."""
        if not fresh and access.exists(access.join(url, "zarr.json")):
            volume = open_volume(url, writable=True)
            if volume.shape != spec.shape:
                raise VolumeError(f"{url} holds {volume.shape} voxels where the resumed run expects {spec.shape}. Remove it and run again.")
            return volume
        name = url.rsplit("/", 1)[1].removesuffix(".zarr")
        return create(
            url, spec.shape, spec.dtype, spec.spacing, kind=spec.kind, shard=stage.grid.block_shape, chunk=self.options.chunk,
            levels=levels, name=name, attributes={"content_key": stage.key}, overwrite=True,
        )  # fmt: skip
