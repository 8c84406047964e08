"""`vemray evaluate`: two labellings compared blockwise, through a plan like any run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np

from vemray.analysis.agreement import agreement, centroids
from vemray.errors import InputError
from vemray.plan import Options
from vemray.run.api import run, source
from vemray.run.results import Results
from vemray.store import access
from vemray.store.table import read_json, write_json


def evaluate(
    predicted: str, truth: str, *, runner="ray", workers: int | None = None, block=(256, 256, 256), thresholds=None, within_nm: float | None = None,
    region: Sequence[tuple[int, int | None] | None] | None = None,
) -> dict:  # fmt: skip
    """Voxel, object and partition agreement of two label (or mask) volumes of one shape. With `within_nm` also of objects matched by their
    centroids, for objects too small for overlaps to say much. With `region`, [from, up to) along z, y and x in voxels or None, only that part is
    looked at: what was kept from a training, say. Objects are cut at its border. Returns a dict of plain numbers."""
    sources = {"predicted": source("predicted", predicted), "truth": source("truth", truth)}
    for s in sources.values():
        if s.spec.kind not in ("labels", "mask"):
            raise InputError(
                f"{s.volume.url} is of the kind {s.spec.kind}: labels or masks are compared. If it holds labels, import it again with --kind labels."
            )
    recipe = {
        "vemray": 1, "name": "evaluate",
        "inputs": {n: {"kind": s.spec.kind} for n, s in sources.items()},
        "steps": {"pairs": {"op": "contingency", "a": "predicted", "b": "truth"}},
    }  # fmt: skip
    names = {n: n for n in sources}
    if region is not None:
        names = {n: f"{n}_part" for n in sources}
        spans = {a: list(s) for a, s in zip("zyx", region) if s is not None}
        parts = {names[n]: {"op": "crop", "image": n, **spans} for n in sources}
        recipe["steps"] = parts | {"pairs": {"op": "contingency", "a": names["predicted"], "b": names["truth"]}}
    if within_nm is not None:
        for n, s in sources.items():
            if s.spec.kind != "labels":
                raise InputError(f"{s.volume.url} is a mask, which has no objects whose centroids could be matched. Make labels of it first.")
            recipe["steps"][f"{n}_objects"] = {"op": "measure", "labels": names[n]}
    with tempfile.TemporaryDirectory(prefix="vemray-evaluate-") as out:
        results = run(recipe, sources, out, runner=runner, workers=workers, options=Options(tuple(block)), report=False, listeners=(_silent,))
        out_of = agreement(results.arrow["pairs"], **({"thresholds": thresholds} if thresholds else {}))
        if within_nm is not None:
            points = [_points(results.arrow[f"{n}_objects"]) for n in ("predicted", "truth")]
            out_of["centroids"] = centroids(*points, within_nm)
    return out_of


def _points(table) -> np.ndarray:
    return np.stack([table.column(f"centroid_{a}_nm").to_numpy() for a in "zyx"], 1)


def check_run(run_url: str) -> None:
    """InputError unless `run_url` is the folder of a run that `record` can write to."""
    Results(run_url)


def record(run_url: str, name: str, result: dict) -> None:
    """Keep an evaluation with the run it judges; the report shows it."""
    check_run(run_url)
    url = access.join(run_url, "run.json")
    facts = read_json(url)
    facts.setdefault("evaluation", {})[name] = result
    write_json(url, facts)


def lines(result: dict) -> str:
    """The figures as text, one a line."""
    out = []
    for key, value in result.items():
        if isinstance(value, dict):
            out += [f"{key}.{k:<24} {_show(v)}" for k, v in value.items() if not isinstance(v, list | dict)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            heads = list(value[0])
            out += ["  ".join(h.rjust(14) for h in heads), *("  ".join(_show(r[h]).rjust(14) for h in heads) for r in value)]
        elif not isinstance(value, list):
            out.append(f"{key:<32} {_show(value)}")
    return "\n".join(out)


def _show(v) -> str:
    return f"{v:.4f}" if isinstance(v, float) else str(v)


def _silent(event: dict) -> None:
    pass
