"""3D-aware training beside training on the planes as they are: nuclear pores of synthetic cells, and whether it matters which way they face.

python -m bench.aware OUT --seeds 1 2 3

All networks learn for as many steps from the same voxels: the pores of cell 1 in 40 planes along z through the middle of its nucleus, where most face
sideways. They look through other cells, on which nothing was chosen, in planes along z: `infer`, the threshold of the validation region, components, none
under 25 voxels. A pore is found where the middle of an object lies within 60 nm of its own, one to one; a find counts for the direction of the pore next
to it. Then all seeds' networks together, by the mean of their probabilities. OUT/aware.json holds the counts, OUT/aware.png what they say, OUT/NAME-SEED.vemray the networks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from vemray.geometry import Box
from vemray.models.files import load
from vemray.run.api import run
from vemray.run.cluster import RayRunner
from vemray.run.events import Lines
from vemray.run.results import Results
from vemray.training.recipe import TrainRecipe
from vemray.training.recipe import run as train

SCHOOL, CELLS = 1, (3, 4)
PAINTED, STEPS, LEAST, WITHIN_NM = 40, 2000, 25, 60.0
#: name -> (neighbours to each side as channels, share of sections)
WAYS = {"2D": (0, 0.0), "2D, 3D-aware": (0, 0.85), "2.5D": (2, 0.0), "2.5D, 3D-aware": (2, 0.85)}


def cell(out: Path, seed: int, runner, shape: tuple[int, int, int] | None = None) -> Results:
    """Cell `seed` at 16 nm: its pores, where they face, and all that lies near its nucleus."""
    scene = {"preset": "pores", "seed": seed} | ({"shape": list(shape)} if shape else {})
    steps = {
        "phantom": {"op": "phantom", **scene},
        "objects": {"op": "phantom_objects", **scene},
        "near": {"op": "dilate", "mask": "phantom.nucleus", "radius_nm": 320},
    }
    recipe = {"vemray": 1, "name": f"cell-{seed}", "inputs": {}, "steps": steps, "outputs": list(steps)}
    return run(recipe, {}, out / f"cell-{seed}", runner=runner, listeners=(Lines(seconds=10),), report=False)


def middle(r: Results, planes: int) -> tuple[int, int]:
    """The planes of the cell in which most of its nucleus lies, from and up to."""
    nucleus = r.volumes["phantom.nucleus"]
    size = [np.count_nonzero(_plane(nucleus, z)) for z in range(nucleus.shape[0])]
    start = int(np.convolve(size, np.ones(planes), "valid").argmax())
    return start, start + planes


def network(out: Path, way: str, seed: int, r: Results, painted: int, settings: dict) -> Path:
    context, sections = WAYS[way]
    em, pores = r.volumes["phantom.em"], r.volumes["phantom.pores"]
    path = out / f"{way.replace(', ', '-')}-{seed}.vemray"
    region = (middle(r, painted), *((0, n) for n in em.shape[1:]))
    recipe = TrainRecipe(
        vemray=1, out=str(path), classes=["elsewhere", "pore"], volumes=[{"volume": em.url, "level": 0, "labels": pores.url, "values": "objects", "region": region}],
        settings={"batch": 8, "crop": 96, "base": 8, "seed": seed, "context": context, "turns": {"sections": sections}} | settings,
    )  # fmt: skip
    if not path.exists():
        train(recipe, lambda e: sys.stderr.write("  ".join(f"{k} {v}" for k, v in e.items()) + "\n"))
    return path


def found(out: Path, models: list[Path], axes: str, r: Results, runner) -> Results:
    """By one network, or by the mean of several, at the mean of their thresholds."""
    threshold = float(np.mean([load(m).facts.training["thresholds"]["pore"] for m in models]))
    model = [str(m) for m in models] if len(models) > 1 else str(models[0])
    steps = {
        "probability": {"op": "infer", "image": "em", "mask": "near", "model": model, "classes": ["pore"], "axes": list(axes)},
        "pore": {"op": "threshold", "image": "probability.pore", "value": threshold},
        "labels": {"op": "connected_components", "mask": "pore"},
        "objects": {"op": "measure", "labels": "labels"},
    }
    recipe = {
        "vemray": 1,
        "name": "aware",
        "inputs": {"em": {"kind": "image"}, "near": {"kind": "mask"}},
        "steps": steps,
        "outputs": ["pore", "objects"],
    }
    volumes = {"em": r.volumes["phantom.em"].url, "near": r.volumes["near"].url}
    name = f"{Path(r.url).name}-{axes}-{models[0].stem}" + "-and-others" * (len(models) > 1)
    return run(recipe, volumes, out / name, runner=runner, listeners=(Lines(seconds=10),), report=False)


def pores(r: Results):
    """Those that lie in the volume, which may be a part of the cell."""
    em, t = r.volumes["phantom.em"], r.tables["objects"]
    ends = np.array([n * s for n, s in zip(em.shape, em.spacing.zyx)])
    centres = t[[f"centre_{a}_nm" for a in "zyx"]].to_numpy()
    return t[(t["class"] == "pore") & ((centres > 0) & (centres < ends)).all(1)]


def pairs(p: Results, r: Results) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of the pores: their normals (n, 3), and which are found. Of the finds: the pore next to each, and which are right."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    true, got = pores(r), p.tables["objects"]
    got = got[got["volume_voxels"] >= LEAST]
    apart = cdist(true[[f"centre_{a}_nm" for a in "zyx"]], got[[f"centroid_{a}_nm" for a in "zyx"]])
    a, b = linear_sum_assignment(np.minimum(apart, 2 * WITHIN_NM))
    near = apart[a, b] <= WITHIN_NM
    hit, right = np.zeros(len(true), bool), np.zeros(len(got), bool)
    hit[a[near]], right[b[near]] = True, True
    return true[[f"normal_{a}" for a in "zyx"]].to_numpy(), hit, apart.argmin(0), right


def matched(p: Results, r: Results) -> dict[str, dict[str, int]]:
    """By the axis that pores face most: how many there are and are found, and how many finds there are and are right."""
    normals, hit, beside, right = pairs(p, r)
    facing = np.abs(normals).argmax(1)
    return {
        axis: {"true": int((facing == i).sum()), "found": int(hit[facing == i].sum()), "finds": int((facing[beside] == i).sum()), "right": int(right[facing[beside] == i].sum())}
        for i, axis in enumerate("zyx")
    }  # fmt: skip


def shares(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Recall and precision of pores that face each axis, and of all, over rows of `matched`."""
    out = {}
    for name, axes in (("all", "zyx"), *((a, a) for a in "zyx")):
        n = {k: sum(r["matched"][a][k] for r in rows for a in axes) for k in ("true", "found", "finds", "right")}
        out[name] = {"recall": n["found"] / max(1, n["true"]), "precision": n["right"] / max(1, n["finds"])}
    return out


def table(rows: list[dict]) -> str:
    """Markdown: recall / precision, over all cells and seeds."""
    lines = ["| trained on | looks along | all pores | that face z | y | x | F1, by seed |", "|---|---|---|---|---|---|---|"]
    for way, axes in dict.fromkeys((r["way"], r["axes"]) for r in rows):
        mine = [r for r in rows if (r["way"], r["axes"]) == (way, axes)]
        cells = [f"{v['recall']:.2f} / {v['precision']:.2f}" for v in shares(mine).values()]
        seeds = [shares([r for r in mine if r["seed"] == s])["all"] for s in dict.fromkeys(r["seed"] for r in mine)]
        f1 = [2 * v["recall"] * v["precision"] / max(1e-9, v["recall"] + v["precision"]) for v in seeds]
        lines.append(f"| {way} | {', '.join(axes)} | {' | '.join(cells)} | {np.mean(f1):.2f} ({', '.join(f'{v:.2f}' for v in f1)}) |")
    return "\n".join(lines)


def picture(path: Path, profiles: dict[str, list[tuple[Results, Results]]]) -> None:
    """Recall by the angle between where a pore faces and z; and the same plane through the top of a nucleus as every way sees it. way -> (profile, cell)s."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    left, *others = figure.subplots(1, 1 + len(profiles), gridspec_kw={"width_ratios": [1.5, *(1 for _ in profiles)]})
    edges = np.array([0, 25, 45, 65, 90])
    for way, found_in in profiles.items():
        seen = [pairs(*f)[:2] for f in found_in]
        angle = np.degrees(np.arccos(np.minimum(1, np.abs(np.concatenate([n[:, 0] for n, _ in seen])))))
        hit, part = np.concatenate([h for _, h in seen]), np.digitize(angle, edges[1:-1])
        left.plot((edges[1:] + edges[:-1]) / 2, [hit[part == i].mean() if (part == i).any() else np.nan for i in range(4)], marker=".", label=way)
    left.set(xlabel="degrees between where a pore faces and z", ylabel="share found", xlim=(0, 90), ylim=(0, 1.02))
    left.legend(frameon=False, fontsize="small")
    r = next(iter(profiles.values()))[0][1]
    nucleus, labels, true = r.volumes["phantom.nucleus"], r.volumes["phantom.pores"], pores(r)
    flat = true[true["normal_z"].abs() > np.cos(np.radians(35))]["centre_z_nm"] / labels.spacing.z
    planes = sorted(set(flat.astype(int))) or [nucleus.shape[0] // 2]
    z = max(planes, key=lambda z: np.count_nonzero(np.abs(flat - z) <= 2))  # where most of them lie flat in the plane
    rows, columns = (np.flatnonzero(_plane(nucleus, z).any(i)) for i in (1, 0))
    at = (slice(max(0, rows[0] - 8), rows[-1] + 9), slice(max(0, columns[0] - 8), columns[-1] + 9))
    for axes, (way, found_in) in zip(others, profiles.items()):
        axes.imshow(_plane(r.volumes["phantom.em"], z)[at], cmap="gray", interpolation="nearest")
        axes.contour(_plane(labels, z)[at] > 0, [0.5], colors="#2ca25f", linewidths=1)
        axes.contour(_plane(found_in[0][0].volumes["pore"], z)[at] > 0, [0.5], colors="#e6550d", linewidths=1)
        axes.set_title(way, fontsize="small")
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def _plane(volume, z: int) -> np.ndarray:
    return volume.read(Box((z, 0, 0), (z + 1, *volume.shape[1:])))[0]


def main(argv: list[str] | None = None) -> int:
    a = argparse.ArgumentParser(prog="python -m bench.aware", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", type=Path)
    a.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the trainings")
    a.add_argument("--cells", type=int, nargs="+", default=list(CELLS), help="to look through")
    a.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    a.add_argument("--axes", nargs="+", default=["z"], help="that planes are looked at along: z, zyx")
    a.add_argument("--painted", type=int, default=PAINTED, help="planes")
    a.add_argument("--steps", type=int, default=STEPS)
    a.add_argument("--set", default="{}", help="settings of the trainings, as JSON")
    a.add_argument("--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="voxels of the cells; default: whole ones")
    o = a.parse_args(argv)
    out, shape, runner = o.out.resolve(), tuple(o.shape) if o.shape else None, RayRunner()
    rows, profiles = [], {}
    cells = {s: cell(out, s, runner, shape) for s in dict.fromkeys((SCHOOL, *o.cells))}
    models = {way: [] for way in o.ways}
    for seed in (*o.seeds, "mean") if len(o.seeds) > 1 else o.seeds:
        for way in o.ways:
            if seed != "mean":
                models[way].append(network(out, way, seed, cells[SCHOOL], o.painted, {"steps": o.steps} | json.loads(o.set)))
            label, by = (f"{way}, mean of {len(o.seeds)}", models[way]) if seed == "mean" else (way, models[way][-1:])
            for axes in o.axes:
                for c in o.cells:
                    p = found(out, by, axes, cells[c], runner)
                    rows.append({"way": label, "seed": seed, "axes": axes, "cell": c, "matched": matched(p, cells[c])})
                    if axes == o.axes[0] and seed != "mean":
                        profiles.setdefault(way, []).append((p, cells[c]))
                    sys.stderr.write(json.dumps(rows[-1]) + "\n")
            (out / "aware.json").write_text(json.dumps(rows, indent=1))
    picture(out / "aware.png", profiles)
    sys.stdout.write(table(rows) + "\n")
    runner.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
