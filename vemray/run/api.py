"""`vemray.run(recipe, ...)`: from a recipe and volumes to Results. The command line calls this and nothing else."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import vemray.phantom.operators  # noqa: F401  registers `phantom`
from vemray.errors import InputError, InterruptedRun, VemrayError, VolumeError
from vemray.ops.base import ArraySpec, ArtefactSpec
from vemray.plan import Options, Plan, Recipe, Source, TableSource, fuse, load_recipe, resolve
from vemray.plan.graph import digest, file_hash
from vemray.plan.recipe import InputSpec
from vemray.run.engine import Engine
from vemray.run.events import Events, JsonLines, Lines, Status
from vemray.run.results import Results
from vemray.store import access
from vemray.store.facts import TreeFacts, tree_facts
from vemray.store.given_table import read_given_table
from vemray.store.ledger import LEASE_SECONDS, Lease
from vemray.store.table import read_json, write_json
from vemray.store.volume import Volume, at_level, levels_of
from vemray.store.volume import open as open_volume

#: folders of an output that a run writes to
WRITTEN = ("volumes", "tables", "surfaces", "meshes", "scratch", "ledger", "report")


def source(name: str, url: str, kind: str | None = None, spacing=None) -> Source:
    """An input volume opened read-only, with the digest of what it consists of. `kind` is for volumes that do not say what they hold; one
    that does keeps its own, and the plan refuses it where another is wanted."""
    url = absolute(url)
    volume = open_volume(url, spacing=spacing)
    if kind and kind != volume.kind and volume.kind == "image" and "kind" not in volume.attributes:
        volume = open_volume(url, kind=kind, spacing=spacing)
    facts = tree_facts(volume.url)
    return Source(name, volume, _identity(volume, facts), facts)


def _identity(volume: Volume, facts: TreeFacts) -> str:
    return digest(volume.path, volume.shape, volume.dtype, volume.spacing.zyx, volume.origin_nm, volume.kind, volume.dims, facts.digest)


def level_source(name: str, base: Source, spec: InputSpec) -> Source:
    """The level of `base` that the recipe's input `name` asks for. VolumeError names the levels that there are."""
    levels = levels_of(base.volume)
    fine = [i for i, lv in enumerate(levels) if min(lv.spacing.zyx) >= (spec.min_voxel_nm or 0) * (1 - 1e-6)]
    level = spec.level if spec.level is not None else next(iter(fine), len(levels))
    if level >= len(levels):
        wanted = f"level {spec.level}" if spec.level is not None else f"voxels of at least {spec.min_voxel_nm:g} nm along every axis"
        listed = "; ".join(f"{i} of {lv.spacing}, {' x '.join(map(str, lv.shape))} voxels" for i, lv in enumerate(levels))
        if len(levels) > 1:
            raise VolumeError(f"the input '{name}' is to be {wanted} of '{base.name}', but {base.url} has none such. Its levels: {listed}.")
        raise VolumeError(
            f"the input '{name}' is to be {wanted} of '{base.name}', but {base.url} has no pyramid, only level {listed}. "
            f"Import it with one: vemray import {base.url} NEW.zarr; or make a coarse volume by a step 'downsample'."
        )
    volume = at_level(base.volume, level, levels[level])
    return Source(name, volume, _identity(volume, base.facts), base.facts, base.name)


def table_source(name: str, url: str) -> TableSource:
    """An input table, read whole; what it holds is what it is known by."""
    given = read_given_table(absolute(url))
    return TableSource(name, given, digest("table", given.digest))


def absolute(url: str) -> str:
    """A local path from the root on, links resolved, so that it means the same in every process and can be compared; others as they are."""
    return os.path.realpath(os.path.expanduser(access.local_path(url))) if access.scheme(url) == "file" else url


def make_plan(
    recipe: Recipe | dict | str | Path, volumes: Mapping[str, Any] | str, options: Options | None = None, sets: list[str] | tuple[str, ...] = ()
) -> Plan:
    """Resolve `recipe` against `volumes` (name -> URL of a volume or table, or one URL for a recipe with one input) and cut it into stages."""
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, sets)
    given = recipe.given_inputs
    if isinstance(volumes, str | Path):
        if len(given) != 1:
            raise InputError(f"the recipe '{recipe.name}' has {len(given)} inputs ({', '.join(given)}): name each, --volume NAME=URL.")
        volumes = {given[0]: volumes}
    sources = {}
    for n, v in volumes.items():
        spec = recipe.inputs.get(n)
        if spec and spec.of:
            raise InputError(f"the input '{n}' is a level of '{spec.of}', from which it is taken: it is not given itself.")
        if isinstance(v, Source | TableSource):
            sources[n] = v
        else:
            sources[n] = table_source(n, str(v)) if spec and spec.kind == "table" else source(n, str(v), spec.kind if spec else None)
    for n, spec in recipe.inputs.items():
        if spec.of in sources and isinstance(sources[spec.of], Source):
            sources[n] = level_source(n, sources[spec.of], spec)
    return fuse(resolve(recipe, sources), options)


def run(
    recipe: Recipe | dict | str | Path,
    volumes: Mapping[str, Any] | str,
    out: str | Path,
    *,
    runner: Any = None,
    workers: int | None = None,
    address: str | None = None,
    options: Options | None = None,
    sets: list[str] | tuple[str, ...] = (),
    dataset: str | None = None,
    listeners: tuple = (),
    report: bool = True,
    keep_intermediates: bool = False,
) -> Results:
    """Run `recipe` on `volumes` (and tables, by the names of its inputs) into the folder or bucket `out` and return its Results.

    runner: None or 'ray' (local Ray with `workers` CPUs, or the cluster at `address`), 'serial', or a Runner. A run that was
    interrupted, or whose parameters changed, does only what is missing; `keep_intermediates` leaves in `out/scratch` what the recipe does
    not keep, so that a changed parameter runs only what follows from it. Raises VemrayError; the folder then says how far it came.
    """
    out = absolute(str(out).rstrip("/"))
    plan = make_plan(recipe, volumes, options, sets)
    _refuse_overlap(plan, out)
    access.probe(out, write=True)
    lease = Lease(out)
    lease.take()
    run_id = time.strftime("%Y%m%dT%H%M%S-") + uuid.uuid4().hex[:6]
    dataset = dataset or default_dataset(plan)
    record = provenance(plan, dataset, run_id)
    owned = runner is None or isinstance(runner, str)
    status = Status(out, {"run": run_id, "state": "running", "recipe": plan.graph.recipe.name})
    events = Events(*(listeners or (Lines(),)), JsonLines(out, run_id), status)
    pulse = Pulse(LEASE_SECONDS / 6, lease.renew, status.beat)
    engine = None
    t0 = time.time()
    try:
        with stop_signals() as stop:

            def heartbeat() -> None:
                if stop.asked:
                    raise InterruptedRun(f"stopped by the user. The same command resumes {out} where it was.")
                pulse.check()

            engine = Engine(plan, out, None if owned else runner, events, dataset, heartbeat, keep_intermediates)
            need = engine.needed()
            record.update(_of_before(out, record, nothing_new=not need))
            if owned and need:  # Ray takes seconds to start: not when there is nothing to run
                engine.runner = open_runner(runner, workers, address)
                stop.install()  # Ray puts handlers of its own in place
            if need:
                record.update(runner=engine.runner.name, workers=engine.runner.workers)
            write_json(access.join(out, "run.json"), {**record, "state": "running"})
            events("plan", stages=[{"name": s.name, "title": s.title, "blocks": len(s.grid) if s.grid else 1} for s in engine.plan.stages])
            stages = engine.run()
        state, message = "done", ""
    except BaseException as e:
        state = "interrupted" if isinstance(e, InterruptedRun | KeyboardInterrupt) else "failed"
        message = str(e) or type(e).__name__
        stages = engine.records if engine else []
        raise
    finally:
        record.update(state=state, message=message, stages=stages)
        if engine is None or any(not s["skipped"] for s in stages) or state != "done":
            record.update(seconds=round(time.time() - t0, 3), finished=now())
        with contextlib.suppress(VemrayError, OSError):
            write_json(access.join(out, "run.json"), record)
            if state == "done" and report:
                events("note", text=_report(out))
            events("end", state=state, message=message)
        for last in (pulse.close, events.close, lease.release):  # each by itself: a full disk takes no more events, but the lease must go
            with contextlib.suppress(Exception):
                last()
        if owned and engine and engine.runner:
            engine.runner.close()
    return Results(out)


def _report(out: str) -> str:
    """Write the report; results that are whole are not called failed because a page about them could not be made."""
    try:
        from vemray.report import write_report

        return f"report: {write_report(out)}"
    except Exception as e:
        return f"the results are complete, but the report could not be written: {type(e).__name__}: {e}. `vemray report {out}` tries again."


def _refuse_overlap(plan: Plan, out: str) -> None:
    """InputError where an output would lie in an input, or an input where this run writes."""

    def inside(url: str, folder: str) -> bool:
        return access.join(url).rstrip("/") == folder.rstrip("/") or url.startswith(folder.rstrip("/") + "/")

    for s in plan.graph.sources.values():
        if inside(out, s.url) or any(inside(s.url, access.join(out, f)) for f in WRITTEN):
            raise InputError(f"the output {out} and the input {s.url} lie inside each other. Inputs are never written to: choose another --out.")


def _of_before(out: str, record: dict, nothing_new: bool) -> dict:
    """What the record of the run before still says truly: evaluations of outputs that are made from the same, and, where nothing is to be
    done, how and when it was done."""
    try:
        old = read_json(access.join(out, "run.json"))
    except (FileNotFoundError, ValueError):
        return {}
    same = {n for n, s in record["steps"].items() if old.get("steps", {}).get(n, {}).get("key") == s["key"]}
    kept = {k: {n: e for n, e in old[k].items() if n in same} for k in ("evaluation", "baseline") if k in old}
    if nothing_new:
        kept |= {k: old[k] for k in ("runner", "workers", "versions", "vemray", "started", "finished", "seconds") if k in old}
    return kept


def default_dataset(plan: Plan) -> str:
    """The first volume's name; without volumes the recipe's."""
    return next((dataset_name(s.url) for s in plan.graph.sources.values() if isinstance(s, Source)), plan.graph.recipe.name)


def dataset_name(url: str) -> str:
    """'hela.1' of '/data/hela.1.ome.zarr'."""
    return url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zarr").removesuffix(".ome")


def against(plan: Plan, out: str, dataset: str | None = None) -> tuple[Plan, set[str]]:
    """The plan as it would run into `out`, and the names of the stages that need not."""
    access.reach(out)
    name = dataset or default_dataset(plan)
    engine = Engine(plan, absolute(out), None, None, name)
    return engine.plan, {s.name for s in engine.plan.stages} - engine.needed()


def open_runner(name: str | None, workers: int | None, address: str | None):
    if name == "serial":
        from vemray.run.serial import SerialRunner

        return SerialRunner()
    if name in (None, "ray"):
        from vemray.run.cluster import RayRunner

        return RayRunner(workers, address)
    raise InputError(f"there is no runner '{name}': choose 'ray' or 'serial'.")


class Stop:
    """Notes SIGINT and SIGTERM instead of dying in the middle of a write; a second one ends at once."""

    def __init__(self):
        self.asked = False
        self.before: dict[int, Any] = {}

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGINT, signal.SIGTERM):
                self.before.setdefault(s, signal.getsignal(s))
                signal.signal(s, self._note)

    def _note(self, number, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextlib.contextmanager
def stop_signals():
    stop = Stop()
    stop.install()
    try:
        yield stop
    finally:
        for s, handler in stop.before.items():
            signal.signal(s, handler)


class Pulse:
    """Calls `beats` every few seconds from a thread, whatever the main one waits for; an error of one is raised by `check`."""

    def __init__(self, seconds: float, *beats):
        self.seconds, self.beats, self.error = seconds, beats, None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="vemray-pulse", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.over.wait(self.seconds):
            try:
                for beat in self.beats:
                    beat()
            except VemrayError as e:
                self.error = e

    def check(self) -> None:
        if self.error:
            error, self.error = self.error, None
            raise error

    def close(self) -> None:
        self.over.set()
        self.thread.join()


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def provenance(plan: Plan, dataset: str, run_id: str) -> dict:
    """What a reviewer needs to repeat the run: the recipe as resolved, inputs, models, versions."""
    graph = plan.graph
    files = sorted({f for n in graph.nodes.values() for f in n.op.files()})
    return {
        "vemray": version(), "run": run_id, "dataset": dataset, "started": now(),
        "recipe": graph.recipe.model_dump(mode="json"),
        "inputs": {n: s.record for n, s in graph.sources.items()},
        "models": {f: file_hash(f) for f in files},
        "steps": {n.name: {"op": n.op.name, "key": n.key, "outputs": {o: s if isinstance(s, str) else _spec(s) for o, s in n.outputs.items()}} for n in graph.nodes.values()},
        "keep": list(plan.keep),
        "options": asdict(plan.options),
        "versions": {"python": platform.python_version(), "platform": platform.platform(), **{p: version(p) for p in ("numpy", "scipy", "ray", "zarr", "torch", "connected-components-3d", "edt")}},
    }  # fmt: skip


def _spec(s: ArraySpec | ArtefactSpec) -> dict:
    if isinstance(s, ArtefactSpec):
        return {"shape": s.shape, "kind": s.kind, "spacing_nm": s.spacing.zyx}
    return {"shape": s.shape, "dtype": s.dtype, "kind": s.kind, "spacing_nm": s.spacing.zyx}


def version(package: str = "vemray") -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
