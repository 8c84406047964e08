"""python -m bench [--size 512] [--repeats 3] [--only NAME] [--dir FOLDER]: the workloads of docs/performance.md, as a table of ratios."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from bench.measure import ROOT, interleaved, run

PY = sys.executable


def prepare(folder: Path, n: int) -> Path:
    """The pinned volume of n^3 voxels, made once."""
    root = folder / f"n{n}_v3_c64.zarr"
    if not (folder / f"n{n}.json").exists():
        subprocess.run([PY, str(ROOT / "bench" / "reference" / "volume.py"), str(n), str(folder)], check=True)
    return root


def side(name: str, *args) -> list[str]:
    return [PY, "-m", "bench.sides", name, *map(str, args)]


def components(folder: Path, n: int, repeats: int):
    v, block = prepare(folder, n), 256
    r = interleaved(
        {
            "floor": [PY, str(ROOT / "bench/reference/components_floor.py"), str(v), str(folder / "floor"), "2", str(block)],
            "vemray": side("components", v, folder / "components", "ray", 2, block),
        },
        repeats,
    )
    one = run(side("components", v, folder / "components", "ray", 1, block))
    assert r["vemray"].said["objects"] == r["floor"].said["objects"], "the two count different objects"
    yield "components + measure + labels", n, "CPU / CPU of the floor (labels only)", r["vemray"].cpu / r["floor"].cpu, "<= 2", r["vemray"]
    yield "the same", n, "peak GB of a task", r["vemray"]["task_peak_gb"], "<= 1", r["vemray"]
    yield "two workers", n, "speed / one worker's", one.wall / r["vemray"].wall, ">= 1.4", r["vemray"]


def measure(folder: Path, n: int, repeats: int):
    v = prepare(folder, n)
    r = interleaved({"vemray": side("measure", v)}, repeats)["vemray"]
    yield "measure alone, every feature", n, "Mvoxel / CPU s", r.said["voxels"] / 1e6 / r.cpu, ">= 40", r


def distance(folder: Path, n: int, repeats: int):
    v = prepare(folder, n)
    r = interleaved({"edt": side("edt", v), "vemray": side("distance", v, folder / "distance")}, repeats)
    yield "full distance map", n, "CPU / CPU of edt in memory", r["vemray"].cpu / r["edt"].cpu, "<= 2", r["vemray"]


def watershed(folder: Path, n: int, repeats: int):
    v = prepare(folder, n)
    run(side("landscape", v))
    r = interleaved(
        {"skimage": side("skimage_watershed", v), "vemray": side("watershed_markers", v, folder / "watershed")}, 1 if n > 256 else repeats
    )
    yield "watershed from markers", n, "voxels per CPU s / scikit-image's", r["skimage"].cpu / r["vemray"].cpu, ">= 5", r["vemray"]


def watershed_h(folder: Path, n: int, repeats: int):
    v = prepare(folder, n)
    run(side("landscape", v))
    r = run(side("watershed_h", v, folder / "watershed_h"))
    yield "watershed by h, blockwise", n, "peak GB of a task", r["task_peak_gb"], "<= 2", r


def distances(folder: Path, n: int, repeats: int):
    for cells, what, stages in (
        (47, "centres to two surfaces", ["centres"]),
        (22, "surfaces to two surfaces and each other", ["gaps", "neighbours"]),
    ):
        v = folder / f"balls-{n}-{cells}"
        run(side("balls", v, n, cells, f"{v}-surfaces"))
        r = interleaved({"vemray": side("distances", v, f"{v}-surfaces", *stages)}, repeats)["vemray"]
        yield f"{what}, {r.said['rows']:,} objects", n, "seconds with two workers", r.wall, "< 60", r
        yield "the same", n, "peak GB of a task", r["task_peak_gb"], "<= 2", r


def inference(folder: Path, n: int, repeats: int):
    """Networks of 16 and 64 base channels, from and to a folder and, where AWS_ENDPOINT_URL names a server (deploy/local/with-s3.sh), S3. VEMRAY_BENCH_DEVICE
    and VEMRAY_BENCH_PRECISION choose the device and the precision of both sides."""
    n = min(n, 512)
    v = prepare(folder, n)
    how = (os.environ.get("VEMRAY_BENCH_DEVICE", "cpu"), os.environ.get("VEMRAY_BENCH_PRECISION", "float32"))
    places = {"a folder": (folder / "infer", ">= 0.9"), "S3": ("s3://vemray-demo/bench-infer", ">= 0.85")}
    if not os.environ.get("AWS_ENDPOINT_URL"):
        del places["S3"]
    for base in (16, 64):
        sides = {p: side("infer", v, where, base, *how) for p, (where, _) in places.items()}
        r = interleaved({"forward": side("forward", v, base, *how), **sides}, repeats)
        bare = r["forward"]
        for place, (_, wanted) in places.items():
            ours = r[place]
            what = f"inference from {place}, {base} channels, {' '.join(how)}"
            speed = (ours.said["voxels"] / ours.wall) / (bare.said["voxels"] / bare.wall)
            yield what, n, "output voxels per s / bare forward's", speed, wanted, ours
            yield "the same", n, "output voxels per CPU s / bare forward's", speed * (ours.wall / ours.cpu) / (bare.wall / bare.cpu), "", ours
            split = ", ".join(f"{k} {s:.1f}" for k, s in ours.said["split"].items())
            declared = f"GB of a process; {ours['declared_gb']:.2f} declared beside Python and torch"
            yield f"the same: {split} s; network idle {100 * ours['idle']:.0f} %", n, declared, ours["task_peak_gb"], "", ours


def kernel_density(folder: Path, n: int, repeats: int):
    """100,000 points whatever the size; scikit-learn asked for 1,000 of them, and its time for all taken as 100 times that."""
    r = interleaved({"scikit-learn": side("sklearn_density"), "vemray": side("kernel_density")}, repeats)
    a, b = r["scikit-learn"], r["vemray"]
    assert all(abs(x - y) <= 1e-10 for x, y in zip(a.said["log_density"], b.said["log_density"])), "the two give different densities"
    ratio = (a.cpu / a.said["points"]) / (b.cpu / b.said["points"])
    yield "kernel density of 100,000 points", n, "points per CPU s / scikit-learn's (on 1,000 of them)", ratio, ">= 10", b


def forest(folder: Path, n: int, repeats: int):
    v = prepare(folder, n)
    r = interleaved({"sklearn": side("forest_sklearn", v), "vemray": side("forest", v)}, repeats)
    ours, voxels = r["vemray"], r["vemray"].said["voxels"]
    trees = ours.cpu - ours["features_cpu_s"]
    yield "pixel classification, 3 scales, 100 trees", 128, "Mvoxel / CPU s", voxels / 1e6 / ours.cpu, ">= 1", ours
    yield "its features alone", 128, "Mvoxel / CPU s", voxels / 1e6 / ours["features_cpu_s"], ">= 2", ours
    yield (
        "its trees alone",
        128,
        "voxels per CPU s / predict_proba's",
        (voxels / trees) / (r["sklearn"].said["voxels"] / r["sklearn"].cpu),
        ">= 1.5",
        ours,
    )


def tophat(folder: Path, n: int, repeats: int):
    v = prepare(folder, n)
    r = interleaved({"scipy": side("scipy_tophat", v), "vemray": side("tophat", v)}, repeats)
    a, b = r["scipy"], r["vemray"]
    assert a.said["middle"] == b.said["middle"], "the two give different values"
    yield "white top-hat, ball of 12 voxels", 192, "voxels per CPU s / scipy's", (b.said["voxels"] / b.cpu) / (a.said["voxels"] / a.cpu), ">= 20", b


WORKLOADS = {f.__name__: f for f in (components, measure, distance, watershed, watershed_h, distances, inference, kernel_density, forest, tophat)}


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    p.add_argument("--size", type=int, nargs="+", default=[512], help="edge of the volume in voxels; several to see the cost per voxel")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    p.add_argument("--dir", type=Path, default=Path("out/bench"))
    a = p.parse_args()
    a.dir.mkdir(parents=True, exist_ok=True)
    say = sys.stdout.write
    say("| workload | size | ratio of | is | wanted | wall s | CPU s | peak GB |\n|---|---|---|---|---|---|---|---|\n")
    for name in a.only:
        for n in a.size:
            for what, size, of, value, wanted, r in WORKLOADS[name](a.dir, n, a.repeats):
                say(f"| {what} | {size}^3 | {of} | {value:.2f} | {wanted} | {r.wall:.1f} | {r.cpu:.1f} | {r.peak_gb:.2f} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
