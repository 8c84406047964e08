"""`make demo`: a phantom cell to train on and another to profile; train, infer, segment, measure, compare with the truth, report.

python -m vemray.demo OUT [--work FOLDER] [--train-seed 1] [--seed 4]      OUT is a folder or s3://bucket/prefix"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

from vemray.errors import VemrayError
from vemray.geometry import Box
from vemray.phantom import CLASSES, Scene, sparse_annotation
from vemray.run.api import run
from vemray.run.evaluate import evaluate, record
from vemray.run.events import Lines
from vemray.run.results import Results
from vemray.store import access
from vemray.store.table import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
TRAIN = """# written by the demo; `vemray train` reads the same
vemray: 1
out: demo.vemray
classes: [{classes}]
volumes:
  - {{volume: "{volume}", planes: annotation}}
settings: {{steps: {steps}, batch: 6, crop: 128, base: 8, depth: 3, validation: 0.0, seed: 1, threads: 2, turns: {{rotate: 0, elastic: 0}}}}
"""


def phantom(out: str, seed: int, runner, listeners) -> Results:
    steps = {"phantom": {"op": "phantom", "seed": seed}, "objects": {"op": "phantom_objects", "seed": seed}}
    return run({"vemray": 1, "name": f"phantom-{seed}", "inputs": {}, "steps": steps}, {}, out, runner=runner, listeners=listeners, report=False)


def whole(results: Results, name: str) -> np.ndarray:
    v = results.volumes[name]
    return v.read(Box.of(v.shape))


def annotate(results: Results, seed: int, folder: Path) -> None:
    """Paint planes of the phantom as a person would, as TIFF files."""
    import tifffile

    folder.mkdir(parents=True, exist_ok=True)
    truth = {n: whole(results, f"phantom.{n}") for n in ("cell", "nucleus", "mitochondria", "lysosomes")}
    for z, plane in sparse_annotation(Scene.make("demo", seed), truth, every=6, fraction=0.6).items():
        tifffile.imwrite(folder / f"plane_{z:04d}.tif", plane, compression="zlib")


def baseline(em: str, truth: str, out: str, runner) -> dict:
    """The best that a global threshold and components can do: dark voxels below each of ten percentiles, largest F1 at IoU 0.5."""
    from vemray.analysis.agreement import agreement

    steps: dict = {}
    levels = [2, 4, 6, 8, 10, 13, 17, 22, 28, 35]
    for p in levels:
        steps[f"dark{p}"] = {"op": "threshold", "image": "em", "method": "percentile", "percent": p, "above": False}
        steps[f"parts{p}"] = {"op": "connected_components", "mask": f"dark{p}", "connectivity": 6}
        steps[f"objects{p}"] = {"op": "filter_objects", "labels": f"parts{p}", "where": "volume_nm3 > 1.5e7"}
        steps[f"pairs{p}"] = {"op": "contingency", "a": f"objects{p}", "b": "truth"}
    recipe = {
        "vemray": 1,
        "name": "baseline",
        "inputs": {"em": {}, "truth": {"kind": "labels"}},
        "steps": steps,
        "outputs": [f"pairs{p}" for p in levels],
    }
    results = run(recipe, {"em": em, "truth": truth}, out, runner=runner, report=False, listeners=(lambda e: None,))
    best = max(levels, key=lambda p: agreement(results.arrow[f"pairs{p}"], (0.5,))["objects"][0]["f1"])
    return {"method": f"global threshold (darkest {best} %) and components", **agreement(results.arrow[f"pairs{best}"])}


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m vemray.demo", description=__doc__)
    p.add_argument("out", help="folder or s3://bucket/prefix")
    p.add_argument("--work", type=Path, default=None, help="local folder for annotation and model (default: OUT, or demo-out when OUT is on S3)")
    p.add_argument("--train-seed", type=int, default=1)
    p.add_argument("--seed", type=int, default=4)
    p.add_argument("--steps", type=int, default=1300, help="training steps")
    p.add_argument("--workers", type=int, default=None)
    a = p.parse_args(argv)
    out = a.out if "://" in a.out else os.path.abspath(a.out)
    work = (a.work or Path("demo-out" if "://" in out else out)).resolve() / "model"
    say = sys.stderr.write
    start = time.time()

    def head(text: str) -> None:
        say(f"\n[{time.time() - start:3.0f} s] {text}\n")

    try:
        from vemray.run.cluster import RayRunner
        from vemray.training.recipe import load
        from vemray.training.recipe import run as train

        access.probe(out, write=True)
        runner, lines = RayRunner(a.workers), (Lines(seconds=5),)
        head(f"1. two synthetic HeLa cells: seed {a.train_seed} to learn from, seed {a.seed} to profile")
        school = phantom(access.join(out, f"phantom-{a.train_seed}"), a.train_seed, runner, lines)
        cell = phantom(access.join(out, f"phantom-{a.seed}"), a.seed, runner, lines)
        head("2. painting: about two thirds of every sixth plane")
        annotate(school, a.train_seed, work / "annotation")
        (work / "train.yaml").write_text(TRAIN.format(classes=", ".join(CLASSES), volume=school.volumes["phantom.em"].url, steps=a.steps))
        head("3. training a small U-Net on the painted planes alone")
        model = work / "demo.vemray"
        if not model.exists():
            for trained in train(load(work / "train.yaml"), lambda e: say("         " + "  ".join(f"{k} {v}" for k, v in e.items()) + "\n")):
                say(f"{trained}\n")
        head("4. the profile: infer, segment, measure")
        em, profile = cell.volumes["phantom.em"].url, access.join(out, "profile")
        results = run(
            ROOT / "configs" / "demo.yaml",
            em,
            profile,
            runner=runner,
            sets=[f"steps.probability.model={model}"],
            dataset=f"phantom-{a.seed}",
            listeners=lines,
            report=False,
        )
        head("5. held against the truth, beside the best of global thresholds")
        scores = {}
        for name in ("nucleus", "mitochondria"):
            scores[name] = evaluate(results.volumes[name].url, cell.volumes[f"phantom.{name}"].url, runner=runner)
            record(profile, name, scores[name])
        url = access.join(profile, "run.json")
        base = baseline(em, cell.volumes["phantom.mitochondria"].url, access.join(out, "baseline"), runner)
        write_json(url, {**read_json(url), "baseline": {"mitochondria": base}})
        runner.close()
        from vemray.report import write_report

        page = write_report(profile)
        if "://" in page:  # a browser opens files
            local = work.parent / "report.html"
            local.write_bytes(access.read_bytes(page))
            page = f"{local} (a copy of {page})"
    except VemrayError as e:
        say(f"vemray: {e}\n")
        return e.exit_code
    mito, nucleus = scores["mitochondria"]["objects"][0], scores["nucleus"]["voxels"]
    head("done")
    sys.stdout.write(
        f"mitochondria: object F1 at IoU 0.5 {mito['f1']:.3f} ({mito['matched']} of {mito['true']} found, {mito['predicted'] - mito['matched']} too many); "
        f"global threshold and components: {base['objects'][0]['f1']:.3f}\n"
        f"nucleus: Dice {nucleus['dice']:.3f}\n"
        f"{results.tables['composition'].to_string(index=False)}\n"
        f"open the report: {page}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
