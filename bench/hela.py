"""The whole workflow on synthetic cells: train on some, profile another by configs/hela.yaml, hold it against the truth.

python -m bench.hela OUT --seed 4            (--school 1 2: the cells that the networks learn from)

OUT/cell-N holds cell N and its truth, OUT/model the networks, OUT/profile-N the profile, OUT/score-N.json the figures. What is there
already is not made again."""

from __future__ import annotations

import argparse
import json
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


def cell(out: Path, seed: int, runner) -> Results:
    """Cell `seed` at 16 nm with its truth, and what a network at 32 nm learns from."""
    steps = {
        "phantom": {"op": "phantom", "preset": "pores", "seed": seed},
        "objects": {"op": "phantom_objects", "preset": "pores", "seed": seed},
        "em_32": {"op": "downsample", "image": "phantom.em", "factor": [2, 2, 2]},
        **{f"{n}_32": {"op": "downsample", "image": f"phantom.{n}", "factor": [2, 2, 2]} for n in TRUTH},
        "pores_table": {"op": "measure", "labels": "phantom.pores"},
        "pockets_table": {"op": "measure", "labels": "phantom.pockets"},
        "mitochondria_table": {"op": "measure", "labels": "phantom.mitochondria"},
    }
    recipe = {"vemray": 1, "name": f"cell-{seed}", "inputs": {}, "steps": steps, "outputs": list(steps)}
    return run(recipe, {}, out / f"cell-{seed}", runner=runner, listeners=(Lines(seconds=10),), report=False)


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
    settings = {"steps": ORGANELLE_STEPS, "batch": 6, "crop": 128, "depth": 3, "validation": 0.0, "seed": 1, "threads": 2}
    return _trained(model, {"classes": list(CLASSES), "volumes": volumes, "settings": settings})


def pore_network(out: Path, school: list[Results], seeds: list[int]) -> Path:
    """Pores, at 16 nm, from every fifth plane of the pores of other cells."""
    model = out / "model" / "pores.vemray"
    volumes = []
    for seed, r in zip(seeds, school):
        planes = _planes(out / "model" / f"pores-{seed}", object_planes(whole(r, "phantom.pores"), every=5))
        volumes.append({"volume": r.volumes["phantom.em"].url, "planes": str(planes)})
    settings = {"steps": PORE_STEPS, "batch": 8, "crop": 96, "depth": 3, "validation": 0.0, "seed": 1, "threads": 2}
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
        sys.stderr.write(str(train(load(path), lambda e: sys.stderr.write(" ".join(f"{k} {v}" for k, v in e.items()) + "\n"))) + "\n")
    return model


def painted(out: Path, seed: int, r: Results) -> Path:
    """Some points of resin and of the cell, as a person would set them: far and wide, then along the outline, where the first forest errs."""
    target = out / f"painted-{seed}.zarr"
    if not target.exists():
        rng = np.random.default_rng([seed, 11])
        inside = whole(r, "cell_32")
        from scipy.ndimage import distance_transform_edt

        depth = np.where(inside, distance_transform_edt(inside), distance_transform_edt(~inside))
        rows = ["z,y,x,class"]
        for name, side in (("resin", ~inside), ("cell", inside)):
            for where in (depth > 3, (depth > 1) & (depth <= 3)):
                at = np.argwhere(side & where)
                rows += [",".join(map(str, p)) + f",{name}" for p in at[rng.choice(len(at), POINTS, replace=False)]]
        table = out / f"painted-{seed}.csv"
        table.write_text("\n".join(rows) + "\n")
        annotate(str(table), str(target), open_volume(r.volumes["phantom.em"].url, level=1), ("resin", "cell"))
    return target


def profile(out: Path, seed: int, r: Results, models: dict[str, Path], runner, keep_all: bool = False) -> Results:
    from vemray.plan.recipe import load_recipe
    from vemray.report.walkthrough import everything

    recipe = load_recipe(RECIPE, [f"steps.{step}.model={path}" for step, path in models.items()])
    volumes = {"em": r.volumes["phantom.em"].url, "cell_painted": str(painted(out, seed, r))}
    return run(
        everything(recipe) if keep_all else recipe, volumes, out / f"profile-{seed}", runner=runner, listeners=(Lines(seconds=10),),
        dataset=f"cell-{seed}", options=Options(),
    )  # fmt: skip


def score(p: Results, r: Results, runner) -> dict:
    """The figures that the workflow is judged by."""
    out: dict = {}
    for name, within in (("pockets", 60.0), ("pores", 60.0), ("network_pores", 60.0)):
        if name in p.volumes:
            truth = "phantom.pockets" if name == "pockets" else "phantom.pores"
            out[name] = evaluate(p.volumes[name].url, r.volumes[truth].url, runner=runner, within_nm=within)["centroids"]
    for name in ("mitochondria", "nucleus", "cell"):
        got = evaluate(p.volumes[name].url, r.volumes[f"phantom.{name}"].url, runner=runner)
        v = got["voxels"]
        out[name] = {"f1": got["objects"][0]["f1"], "dice": v["dice"], "volume_ratio": v["predicted_voxels"] / v["true_voxels"]}
        out[name]["matched"], out[name]["predicted"], out[name]["true"] = (got["objects"][0][k] for k in ("matched", "predicted", "true"))
    return out


def main(argv: list[str] | None = None) -> int:
    a = argparse.ArgumentParser(prog="python -m bench.hela", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", type=Path)
    a.add_argument("--seed", type=int, default=4)
    a.add_argument("--school", type=int, nargs="+", default=[1, 2])
    a.add_argument("--keep-all", action="store_true", help="keep every step's output, for `vemray walkthrough`")
    o = a.parse_args(argv)
    out = o.out.resolve()
    runner = RayRunner()
    t0 = time.time()
    school = [cell(out, s, runner) for s in o.school]
    mine = cell(out, o.seed, runner)
    models = {"probability": organelle_network(out, school, o.school), "pore_probability": pore_network(out, school, o.school)}
    t1 = time.time()
    p = profile(out, o.seed, mine, models, runner, o.keep_all)
    figures = {"seed": o.seed, "seconds": round(time.time() - t1, 1), "prepared_in": round(t1 - t0, 1), **score(p, mine, runner)}
    figures["stages"] = [{k: s.get(k) for k in ("name", "seconds", "peak_bytes", "memory_bytes")} for s in p.run["stages"]]
    (out / f"score-{o.seed}.json").write_text(json.dumps(figures, indent=1))
    sys.stdout.write(json.dumps({k: v for k, v in figures.items() if k != "stages"}, indent=1) + "\n")
    runner.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
