"""What is planted in label-only phantoms, recovered; and what is not planted, not found. The segmentation is the truth: no grey value is read.

python -m bench.planted OUT                  (--null 101 120, --planted 1 6: first and last seed; --truth 4: cell measured at 16 nm, 0: none)

**Relations.** Cells of the preset `pores`, their labels drawn at 32 nm by the operator `phantom`; the steps are those of configs/hela.yaml.
Mitochondria are measured on these labels: surface-to-volume ratio, distance of the centre to the nearest membrane. The nucleus is cut into its two
sections on its label. Pores are too small for voxels of 32 nm: their centres are those of the exact table of objects. Each cell with nothing
planted gives a p of: `correlate` (form against distance, permutation respecting spatial dependence); `compare_groups` (kernel density of the
pores between the sections, the same); `random_placement` (pores per area of both sections against points placed at random as far apart
as pores keep, and as configs/hela.yaml lets them come). Each cell with everything planted gives estimates with intervals of 95 %.

**Truth.** A cell at 16 nm with all its labels, measured, against the exact table of objects: volumes, distances."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from vemray.phantom import Scene, planted, truth_table
from vemray.phantom.pores import HARD_CORE
from vemray.run.api import run

ALPHA = 0.05
COARSE = (32.0, 32.0, 32.0)
#: placements; the least distance of pores in configs/hela.yaml
SIMULATIONS, LEAST_NM = 999, 120.0
#: rank correlation of form and distance that the phantom plants, and the ratio of densities: over seeds 1 to 20, docs/phantom.md
FORM, RATIO = -0.58, 1.6
#: name of each class's labels, and in the exact table
CLASSES = {"cell": "cell", "nucleus": "nucleus", "mitochondria": "mitochondrion", "lysosomes": "lysosome", "pockets": "pocket", "pores": "pore"}
#: what distances are measured between
BETWEEN = ("faces", "voxels")
#: relative error that a volume is allowed
VOLUME = 0.02


def relations_recipe(seed: int, nothing: bool) -> dict:
    sections = {"objects": "pores", "surface": "sections_surface", "simulations": SIMULATIONS}
    steps = {
        "phantom": {"op": "phantom", "preset": "pores", "seed": seed, "voxel_nm": COARSE, **({"relations": []} if nothing else {})},
        "nucleus": {"op": "connected_components", "mask": "phantom.nucleus"},
        "nucleus_surface": {"op": "surface", "labels": "nucleus"},
        "cell_surface": {"op": "surface", "labels": "phantom.cell"},
        "mitochondria_table": {"op": "measure", "labels": "phantom.mitochondria"},
        "mitochondria_distance": {
            "op": "distance_to_surface",
            "objects": "mitochondria_table",
            "targets": {"nucleus": "nucleus_surface", "plasma_membrane": "cell_surface"},
        },
        "mitochondria_profile": {"op": "join", "tables": {"objects": "mitochondria_table", "distance": "mitochondria_distance"}},
        "form": {
            "op": "correlate",
            "table": "mitochondria_profile",
            "x": "nearest_nm",
            "y": "surface_to_volume_per_nm",
            "where": "not touches_border",
        },
        "neck": {"op": "neck", "labels": "nucleus"},
        "sections": {"op": "sections_at_neck", "labels": "nucleus", "neck": "neck"},
        "sections_surface": {"op": "surface", "labels": "sections", "towards": "background"},
        "section": {"op": "distance_to_surface", "objects": "pores", "targets": {"section": "sections_surface"}},
        "area": {"op": "surface_area", "surface": "sections_surface", "objects": "section", "label_column": "to_section_label"},
        "density": {"op": "kernel_density", "table": "pores", "bandwidth_nm": 100},
        "pores_profile": {"op": "join", "tables": {"objects": "pores", "density": "density", "section": "section"}},
        "scores": {"op": "compare_groups", "table": "pores_profile", "value": "number_density_per_um3", "group": "to_section_label == 1"},
        "chance": {"op": "random_placement", "minimum_nm": HARD_CORE, **sections},
        "chance_near": {"op": "random_placement", "minimum_nm": LEAST_NM, **sections},
    }
    outputs = ["form", "scores", "chance", "chance_near", "area", "pores_profile", "mitochondria_profile"]
    return {"vemray": 1, "name": f"relations-{seed}", "inputs": {"pores": {"kind": "table"}}, "steps": steps, "outputs": outputs}


def exact_pores(scene: Scene, coarse: Scene, table) -> pa.Table:
    """Centres of the pores where they lie in the coarse volume: its first voxel is elsewhere."""
    pores = table.filter(pa.compute.equal(table.column("class"), "pore"))
    moved = {f"centroid_{a}_nm": pores[f"centre_{a}_nm"].to_numpy() + coarse.centre[i] - scene.centre[i] for i, a in enumerate("zyx")}
    return pa.table({"label": pores["label"].cast(pa.uint64()), **moved, "lobe": pores["lobe"]})


def relations(out: Path, seed: int, nothing: bool) -> dict:
    """Of one cell: p of each test, estimates with intervals, what was planted."""
    kept = out / f"{'nothing' if nothing else 'planted'}-{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    scene = Scene.make("pores", seed, relations=() if nothing else None)
    table = truth_table(scene)
    folder = kept.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    pores = folder / "pores.parquet"
    pq.write_table(exact_pores(scene, Scene.make("pores", seed, COARSE, relations=() if nothing else None), table), pores)
    r = run(relations_recipe(seed, nothing), {"pores": pores}, folder / "run", runner="serial", listeners=(lambda e: None,), report=False)
    form, scores = r.tables["form"].iloc[0], r.tables["scores"].iloc[0]
    facts, area, profile = planted(scene, table), r.tables["area"].set_index("label"), r.tables["pores_profile"]
    cut = len(area) == 2  # a nucleus without a neck has one section
    turned = cut  # the larger section is the first: the ratio is turned so that it is the smaller lobe's over the larger's
    nothing_there = {"observed": np.nan, "interval_low": np.nan, "interval_high": np.nan, "p": np.nan}
    chance, near = (r.tables[name].set_index("statistic").loc["density_ratio"] if cut else nothing_there for name in ("chance", "chance_near"))
    ratio = [chance["observed"], chance["interval_low"], chance["interval_high"]]
    ratio = [1 / ratio[0], 1 / ratio[2], 1 / ratio[1]] if turned else ratio
    found = {
        "seed": seed, "mitochondria": int(form.n), "form_p": form.spearman_p_spatial, "form_plain_p": form.spearman_p,
        "rho": form.spearman_rho, "rho_low": form.spearman_low, "rho_high": form.spearman_high, "rho_exact": facts["mitochondria_rank_correlation"],
        "pores": len(profile), "misplaced": int((profile.to_section_label != np.where(profile.lobe == (1 if turned else 2), 1, 2)).sum()) if cut else 0,
        "scores_p": scores.p_spatial, "scores_plain_p": scores.welch_p, "chance_p": chance["p"], "chance_near_p": near["p"],
        "ratio": ratio[0], "ratio_low": ratio[1], "ratio_high": ratio[2], "ratio_exact": facts["pore_density_ratio"],
    }  # fmt: skip
    kept.write_text(json.dumps({k: v if isinstance(v, int) else math.nan if v is None else float(v) for k, v in found.items()}, indent=1))
    return json.loads(kept.read_text())


def truth_recipe(seed: int) -> dict:
    targets = {"nucleus": "nucleus_surface", "plasma_membrane": "cell_surface"}
    steps: dict = {
        "phantom": {"op": "phantom", "preset": "pores", "seed": seed},
        "objects": {"op": "phantom_objects", "preset": "pores", "seed": seed},
    }
    for name in ("nucleus", "cell"):
        steps[name] = {"op": "connected_components", "mask": f"phantom.{name}"}
        steps |= {f"{name}_table": {"op": "measure", "labels": name}, f"{name}_surface": {"op": "surface", "labels": name}}
    for name in ("mitochondria", "lysosomes", "pores", "pockets"):
        steps[f"{name}_table"] = {"op": "measure", "labels": f"phantom.{name}"}
    for name in ("mitochondria", "lysosomes"):
        steps[f"{name}_surface"] = {"op": "surface", "labels": f"phantom.{name}"}
        for between in BETWEEN:
            steps[f"{name}_centre_{between}"] = {"op": "distance_to_surface", "objects": f"{name}_table", "targets": targets, "between": between}
            steps[f"{name}_gap_{between}"] = {"op": "surface_distance", "surface": f"{name}_surface", "targets": targets, "between": between}
    outputs = [name for name in steps if name.endswith(("_table", *BETWEEN))] + ["objects"]
    return {"vemray": 1, "name": f"truth-{seed}", "inputs": {}, "steps": steps, "outputs": outputs}


def truth(out: Path, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of the cell at 16 nm: (volumes and surfaces by class, distances by kind), relative errors and errors in voxels."""
    r = run(truth_recipe(seed), {}, out / f"truth-{seed}", runner="serial", listeners=(lambda e: None,), report=False)
    exact = r.tables["objects"]
    voxel = Scene.make("pores", seed).spacing.z
    volumes, distances = [], []
    for name, kind in CLASSES.items():
        true, got = exact[exact["class"] == kind].set_index("label"), r.tables[f"{name}_table"].set_index("label")
        got = got.reindex(true.index).fillna({"volume_nm3": 0.0, "surface_area_nm2": 0.0})  # one that was not drawn is all lost
        error = got.volume_nm3 / true.volume_nm3 - 1
        area = got.surface_area_nm2 / true.area_nm2 - 1
        volumes.append({
            "class": name, "objects": len(true), "voxels": float(true.volume_nm3.median() / voxel**3),
            "sum": float(got.volume_nm3.sum() / true.volume_nm3.sum() - 1), "median": float(error.abs().median()), "largest": float(error.abs().max()),
            "within": int((error.abs() <= VOLUME).sum()), "area_sum": float(got.surface_area_nm2.sum() / true.area_nm2.sum() - 1),
            "area_largest": float(area.abs().max()),
        })  # fmt: skip
    for name in ("mitochondria", "lysosomes"):
        true = exact[exact["class"] == CLASSES[name]].set_index("label")
        for of, prefix in (("centre", "to"), ("gap", "surface_to")):
            for membrane in ("nucleus", "plasma_membrane"):
                row: dict = {"of": name, "from": "centre" if of == "centre" else "surface", "to": membrane.replace("_", " "), "objects": len(true)}
                for between in BETWEEN:
                    got = r.tables[f"{name}_{of}_{between}"].set_index("label").reindex(true.index)
                    error = (got[f"to_{membrane}_nm"] - true[f"{prefix}_{membrane}_nm"]) / voxel
                    row[between] = (float(error.mean()), float(error.abs().median()), float(error.abs().max()))
                distances.append(row)
    return pd.DataFrame(volumes), pd.DataFrame(distances)


def markdown(columns: dict[str, list]) -> str:
    rows = [list(columns), ["---"] * len(columns), *zip(*columns.values())]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows) + "\n"


def interval(value, low, high) -> list[str]:
    return ["one section" if math.isnan(v) else f"{v:.2f} ({a:.2f} to {b:.2f})" for v, a, b in zip(value, low, high)]


def figures(values, digits: int = 3) -> list[str]:
    return ["" if math.isnan(v) else f"{v:.{digits}f}" for v in values]


def page_nothing(t: pd.DataFrame) -> str:
    """p of each test, cell by cell, and how many are at most 0.05."""
    names = {"form_p": "form and distance", "scores_p": "pores' scores", "chance_p": "placement, 200 nm", "chance_near_p": "placement, 120 nm"}
    columns = {
        "cell": [*t.seed, f"**p at most {ALPHA}**"],
        "mitochondria": [*t.mitochondria, ""],
        "rho": [*figures(t.rho, 2), ""],
        **{title: [*figures(t[name]), f"**{(t[name] <= ALPHA).sum()} of {len(t)}**"] for name, title in names.items()},
        "pores": [*t.pores, ""],
        "ratio (95 %)": [
            *interval(t.ratio, t.ratio_low, t.ratio_high),
            f"**{((t.ratio_low > 1) | (t.ratio_high < 1)).sum()} of {len(t)} without 1**",
        ],
    }
    return markdown(columns)


def page_planted(t: pd.DataFrame) -> str:
    """Estimates with intervals beside what was planted: in the mean of cells, and what the cell came to."""

    def holds(of, planted):
        return (t[f"{of}_low"] <= planted) & (planted <= t[f"{of}_high"])

    n = len(t)
    columns = {
        "cell": [*t.seed, "**interval holds it**"],
        "rho (95 %)": [*interval(t.rho, t.rho_low, t.rho_high), f"**planted {FORM}: {holds('rho', FORM).sum()} of {n}**"],
        "exact rho": [*figures(t.rho_exact, 2), f"**{holds('rho', t.rho_exact).sum()} of {n}**"],
        "p": [*figures(t.form_p), f"**{(t.form_p <= ALPHA).sum()} of {n} at most {ALPHA}**"],
        "ratio (95 %)": [*interval(t.ratio, t.ratio_low, t.ratio_high), f"**planted {RATIO}: {holds('ratio', RATIO).sum()} of {n}**"],
        "exact ratio": [*figures(t.ratio_exact, 2), f"**{holds('ratio', t.ratio_exact).sum()} of {n}**"],
        "p, placement": [*figures(t.chance_p), f"**{(t.chance_p <= ALPHA).sum()} of {n} at most {ALPHA}**"],
        "p, scores": [*figures(t.scores_p), f"**{(t.scores_p <= ALPHA).sum()} of {n} at most {ALPHA}**"],
    }
    return markdown(columns)


def page_truth(volumes: pd.DataFrame, distances: pd.DataFrame) -> str:
    def per_cent(v):
        return [f"{100 * x:.2f} %" for x in v]

    first = {
        "class": volumes["class"], "objects": volumes.objects, "voxels, median": [f"{v:.0f}" for v in volumes.voxels],
        "volume of all": [f"{100 * v:+.2f} %" for v in volumes["sum"]], "of one, median": per_cent(volumes["median"]),
        "of one, largest": per_cent(volumes.largest), "within 2 %": volumes.within,
        "area of all": [f"{100 * v:+.2f} %" for v in volumes.area_sum], "area of one, largest": per_cent(volumes.area_largest),
    }  # fmt: skip
    second = {
        "of": distances["of"], "from its": distances["from"], "to": distances["to"], "objects": distances.objects,
        **{f"`between: {b}`: mean, median of the size, largest": [f"{m:+.2f}, **{v:.2f}**, {w:.2f}" for m, v, w in distances[b]] for b in BETWEEN},
    }  # fmt: skip
    return markdown(first) + "\n" + markdown(second)


def main(argv: list[str] | None = None) -> int:
    a = argparse.ArgumentParser(prog="python -m bench.planted", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", type=Path)
    a.add_argument("--null", type=int, nargs=2, default=[101, 120], metavar=("FIRST", "LAST"))
    a.add_argument("--planted", type=int, nargs=2, default=[1, 6], metavar=("FIRST", "LAST"))
    a.add_argument("--truth", type=int, default=4, help="cell that is measured at 16 nm; 0: none")
    o = a.parse_args(argv)
    out = o.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    cells = {nothing: range(first, last + 1) for nothing, (first, last) in ((True, o.null), (False, o.planted))}
    for nothing, page in ((True, page_nothing), (False, page_planted)):
        if cells[nothing]:
            sys.stdout.write(page(pd.DataFrame([relations(out, seed, nothing) for seed in cells[nothing]])) + "\n")
    if o.truth:
        sys.stdout.write(page_truth(*truth(out, o.truth)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
