"""The whole workflow on synthetic cells: train on some, profile another by configs/hela.yaml, hold it against the truth.

python -m bench.hela OUT --seed 4            (--school 1 2: the cells that the networks learn from)
python -m bench.hela OUT --seed 3 --shape 512 512 512        (the cell in a volume of that shape, with resin around it)

OUT/cell-N holds cell N and its truth, OUT/model the networks, OUT/profile-N the profile, OUT/score-N.json the figures; of a shape,
N is 3-512x512x512. What is there already is not made again; with networks in OUT/model the school is not either. Prints the scores, and time and memory of
the steps that took longest."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from vemray.geometry import Box
from vemray.phantom import CLASSES, Scene, object_planes, sparse_annotation
from vemray.plan import Options
from vemray.run.api import run
from vemray.run.cluster import RayRunner
from vemray.run.evaluate import evaluate
from vemray.run.events import Lines
from vemray.run.results import Results
from vemray.store.volume import open as open_volume
from vemray.training.annotation import annotate
from vemray.training.recipe import load
from vemray.training.recipe import run as train

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "hela.yaml"
TRUTH = ("cell", "nucleus", "mitochondria", "lysosomes")
#: painted points of a class, for the forest: what a person sets in a few minutes; as many more along the outline
POINTS = 60
#: training steps of the two networks
ORGANELLE_STEPS, PORE_STEPS = 900, 1500


#: of `cell`: None is the scene's own
Shape = tuple[int, int, int] | None


def named(seed: int, shape: Shape) -> str:
    return f"{seed}-{'x'.join(map(str, shape))}" if shape else str(seed)


def cell(out: Path, seed: int, runner, shape: Shape = None) -> Results:
    """Cell `seed` at 16 nm with its truth, and what a network at 32 nm learns from."""
    scene = {"preset": "pores", "seed": seed}
    if shape:  # what does not hold the whole cell is cut where there is nucleus, cytoplasm and resin
        cut = any(n < m for n, m in zip(shape, Scene.make("pores", seed).shape))
        scene |= {"shape": list(shape), "around": "envelope" if cut else "cell"}
    steps = {
        "phantom": {"op": "phantom", **scene},
        "objects": {"op": "phantom_objects", **scene},
        "em_32": {"op": "downsample", "image": "phantom.em", "factor": [2, 2, 2]},
        **{f"{n}_32": {"op": "downsample", "image": f"phantom.{n}", "factor": [2, 2, 2]} for n in TRUTH},
        "pores_table": {"op": "measure", "labels": "phantom.pores"},
        "pockets_table": {"op": "measure", "labels": "phantom.pockets"},
        "mitochondria_table": {"op": "measure", "labels": "phantom.mitochondria"},
    }
    name = f"cell-{named(seed, shape)}"
    recipe = {"vemray": 1, "name": name, "inputs": {}, "steps": steps, "outputs": list(steps)}
    return run(recipe, {}, out / name, runner=runner, listeners=(Lines(seconds=10),), report=False)


def whole(results: Results, name: str) -> np.ndarray:
    v = results.volumes[name]
    return v.read(Box.of(v.shape))


def organelle_network(out: Path, school: list[Results], seeds: list[int]) -> Path:
    """Nucleus and mitochondria, at 32 nm, from sparsely painted planes."""
    model = out / "model" / "hela.vemray"
    volumes = []
    for seed, r in zip(seeds, school):
        truth = {n: whole(r, f"{n}_32") for n in TRUTH}
        planes = _planes(out / "model" / f"painted-{seed}", sparse_annotation(Scene.make("pores", seed), truth, every=6, fraction=0.6))
        volumes.append({"volume": r.volumes["em_32"].url, "planes": str(planes)})
    settings = {"steps": ORGANELLE_STEPS, "batch": 6, "crop": 128, "base": 8, "depth": 3, "validation": 0.0, "seed": 1, "threads": 2}
    return _trained(model, {"classes": list(CLASSES), "volumes": volumes, "settings": settings})


def pore_network(out: Path, school: list[Results], seeds: list[int]) -> Path:
    """Pores, at 16 nm, from every fifth plane of the pores of other cells."""
    model = out / "model" / "pores.vemray"
    volumes = []
    for seed, r in zip(seeds, school):
        planes = _planes(out / "model" / f"pores-{seed}", object_planes(whole(r, "phantom.pores"), every=5))
        volumes.append({"volume": r.volumes["phantom.em"].url, "planes": str(planes)})
    settings = {"steps": PORE_STEPS, "batch": 8, "crop": 96, "base": 8, "depth": 3, "validation": 0.0, "seed": 1, "threads": 2}
    return _trained(model, {"classes": ["elsewhere", "pore"], "volumes": volumes, "settings": settings})


def _planes(folder: Path, planes: dict[int, np.ndarray]) -> Path:
    import tifffile

    folder.mkdir(parents=True, exist_ok=True)
    for z, plane in planes.items():
        tifffile.imwrite(folder / f"plane_{z:04d}.tif", plane, compression="zlib")
    return folder


def _trained(model: Path, recipe: dict) -> Path:
    if not model.exists():
        path = model.with_suffix(".yaml")
        path.write_text(json.dumps({"vemray": 1, "out": str(model), **recipe}))
        for trained in train(load(path), lambda e: sys.stderr.write("  ".join(f"{k} {v}" for k, v in e.items()) + "\n")):
            sys.stderr.write(f"{trained}\n")
    return model


def painted(out: Path, seed: int, r: Results, shape: Shape = None) -> Path:
    """Some points of resin and of the cell, as a person would set them: far and wide, then along the outline, where the first forest errs."""
    target = out / f"painted-{named(seed, shape)}.zarr"
    if not target.exists():
        rng = np.random.default_rng([seed, 11])
        inside = whole(r, "cell_32")
        from scipy.ndimage import distance_transform_edt

        depth = np.where(inside, distance_transform_edt(inside), distance_transform_edt(~inside))
        rows = ["z,y,x,class"]
        for name, side in (("resin", ~inside), ("cell", inside)):
            for where in (depth > 3, (depth > 1) & (depth <= 3)):
                at = np.argwhere(side & where)
                rows += [",".join(map(str, p)) + f",{name}" for p in at[rng.choice(len(at), min(POINTS, len(at)), replace=False)]]
        table = out / f"painted-{named(seed, shape)}.csv"
        table.write_text("\n".join(rows) + "\n")
        annotate(str(table), str(target), open_volume(r.volumes["phantom.em"].url, level=1), ("resin", "cell"))
    return target


def profile(out: Path, seed: int, r: Results, models: dict[str, Path], runner, keep_all: bool = False, shape: Shape = None) -> Results:
    from vemray.plan.recipe import load_recipe
    from vemray.report.walkthrough import everything

    recipe = load_recipe(RECIPE, [f"steps.{step}.model={path}" for step, path in models.items()])
    volumes = {"em": r.volumes["phantom.em"].url, "cell_painted": str(painted(out, seed, r, shape))}
    return run(
        everything(recipe) if keep_all else recipe, volumes, out / f"profile-{named(seed, shape)}", runner=runner, listeners=(Lines(seconds=10),),
        dataset=f"cell-{named(seed, shape)}", options=Options(),
    )  # fmt: skip


def score(p: Results, r: Results, runner) -> dict:
    """The figures that the workflow is judged by."""
    out: dict = {}
    truth_of: dict[str, tuple[int, int]] = {}
    for name, within in (("pockets", 60.0), ("pores", 60.0), ("network_pores", 60.0)):
        if name in p.volumes:
            truth = "phantom.pockets" if name == "pockets" else "phantom.pores"
            out[name] = evaluate(p.volumes[name].url, r.volumes[truth].url, runner=runner, within_nm=within)["centroids"]
    for name in ("mitochondria", "nucleus", "cell"):
        got = evaluate(p.volumes[name].url, r.volumes[f"phantom.{name}"].url, runner=runner)
        v = got["voxels"]
        out[name] = {"f1": got["objects"][0]["f1"], "dice": v["dice"], "volume_ratio": v["predicted_voxels"] / v["true_voxels"]}
        truth_of[name] = v["true_voxels"], v["predicted_voxels"]
        out[name]["matched"], out[name]["predicted"], out[name]["true"] = (got["objects"][0][k] for k in ("matched", "predicted", "true"))
    for name in ("mitochondria", "nucleus"):
        true, got = (100 * a / b for a, b in zip(truth_of[name], truth_of["cell"]))
        out[name] |= {"per_cent_of_cell": got, "true_per_cent_of_cell": true}
    return out


def costs(p: Results, most: int = 15) -> str:
    """Time and memory by step, longest first, the parts of a composite together, as Markdown. Resident memory is the most that a process that ran
    blocks of the step had held so far: Python and what earlier steps left are in it. Declared is what blocks of the step may add."""
    stages = {s["key"]: s for s in p.run["stages"] if "key" in s}.values()  # a resumed run lists a stage again under what it was measured with
    steps: dict[str, np.ndarray] = {}
    for s in stages:
        name, now = s["name"].split(".")[0], np.array([s["seconds"], s["peak_bytes"] / 1e9, s["memory_bytes"] / 1e9])
        was = steps.get(name, np.zeros(3))
        steps[name] = np.array([was[0] + now[0], *np.maximum(was[1:], now[1:])])
    rows = sorted(steps.items(), key=lambda row: -row[1][0])
    total, voxels = sum(v[0] for v in steps.values()), math.prod(p.volumes["nucleus"].shape)

    def line(name: str, values) -> str:
        seconds = sum(v[0] for v in values)
        return f"| {name} | {seconds:.1f} | {seconds / total:.0%} | {max(v[1] for v in values):.2f} | {max(v[2] for v in values):.2f} |"

    lines = ["| step | seconds | of all | resident GB, at most | declared GB |", "|---|---|---|---|---|"]
    lines += [line(n, [v]) for n, v in rows[:most]] + ([line(f"{len(rows) - most} others", [v for _, v in rows[most:]])] if len(rows) > most else [])
    lines += [
        line(f"all {len(rows)}", list(steps.values())),
        "",
        f"{voxels:,} voxels, {voxels / total / 1e6:.2f} Mvoxel/s, {p.run['workers']} workers",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    a = argparse.ArgumentParser(prog="python -m bench.hela", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", type=Path)
    a.add_argument("--seed", type=int, default=4)
    a.add_argument("--school", type=int, nargs="+", default=[1, 2])
    a.add_argument("--keep-all", action="store_true", help="keep every step's output, for `vemray walkthrough`")
    a.add_argument("--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="voxels of 16 nm; default: those of the scene")
    o = a.parse_args(argv)
    out, shape = o.out.resolve(), tuple(o.shape) if o.shape else None
    runner = RayRunner()
    t0 = time.time()
    trained = all((out / "model" / f"{n}.vemray").exists() for n in ("hela", "pores"))
    school = [] if trained else [cell(out, s, runner) for s in o.school]
    mine = cell(out, o.seed, runner, shape)
    models = {"probability": organelle_network(out, school, o.school), "pore_probability": pore_network(out, school, o.school)}
    t1 = time.time()
    p = profile(out, o.seed, mine, models, runner, o.keep_all, shape)
    figures = {
        "seed": o.seed,
        "shape": p.volumes["nucleus"].shape,
        "seconds": round(time.time() - t1, 1),
        "prepared_in": round(t1 - t0, 1),
        **score(p, mine, runner),
    }
    figures["stages"] = [{k: s.get(k) for k in ("name", "seconds", "peak_bytes", "memory_bytes")} for s in p.run["stages"]]
    (out / f"score-{named(o.seed, shape)}.json").write_text(json.dumps(figures, indent=1))
    sys.stdout.write(json.dumps({k: v for k, v in figures.items() if k != "stages"}, indent=1) + "\n\n" + costs(p) + "\n")
    runner.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
