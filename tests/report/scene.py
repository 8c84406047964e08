"""A small results folder as a run leaves it: a drawn cell with a nucleus and mitochondria, label volumes, tables, run.json."""

from __future__ import annotations

import numpy as np

from vemray.analysis.agreement import agreement
from vemray.analysis.composition import compose
from vemray.geometry import Box, Spacing
from vemray.ops.base import ArraySpec, Site
from vemray.ops.measure import MeasureObjects
from vemray.store import access
from vemray.store.table import write_json, write_table
from vemray.store.volume import create, fill_level


def draw(shape=(40, 72, 88), spacing=(16.0, 8.0, 8.0), count: int = 24, seed: int = 1) -> dict[str, np.ndarray]:
    """{'em': uint8, 'cell', 'nucleus', 'mitochondria': uint64}: ellipsoids with noise."""
    rng = np.random.default_rng(seed)
    zyx = [(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing)]
    extent = np.array([n * s for n, s in zip(shape, spacing)])

    def ellipsoid(centre, radii, turn=None):
        offset = np.stack(np.meshgrid(*[z - c for z, c in zip(zyx, centre)], indexing="ij"), -1)
        if turn is not None:
            offset = offset @ turn
        return ((offset / radii) ** 2).sum(-1)

    cell = ellipsoid(extent / 2, extent * np.array([0.62, 0.46, 0.46]))
    nucleus = ellipsoid(extent * np.array([0.5, 0.45, 0.42]), extent * np.array([0.3, 0.2, 0.2]))
    em = np.where(cell < 1, 150.0, 205.0)
    em[(cell < 1) & (cell > 0.94)] = 85
    em[nucleus < 1] = 165
    em[(nucleus < 1) & (nucleus > 0.86)] = 90
    mitochondria = np.zeros(shape, np.uint64)
    made, tries = 0, 0
    while made < count and tries < 40 * count:
        tries += 1
        centre = extent * rng.uniform(0.05, 0.95, 3)
        size = extent.min() * rng.uniform(0.03, 0.07)
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        d = ellipsoid(centre, np.array([size * rng.uniform(1.2, 3.0), size, size]), turn)
        inside = d < 1
        if not inside.any() or (mitochondria[inside] > 0).any() or (cell[inside] > 0.93).any() or (nucleus[inside] < 1.15).any():
            continue
        made += 1
        mitochondria[inside] = made
        em[inside] = 105 + 18 * np.sin(centre.sum() + d[inside] * 14)
        em[inside & (d > 0.75)] = 70
    # ids in raster order of the first voxel, as a run gives them
    present, first = np.unique(mitochondria, return_index=True)
    rank = np.zeros(len(present), np.uint64)
    rank[np.argsort(np.where(present > 0, first, -1))] = np.arange(len(present))
    mitochondria = rank[mitochondria.astype(int)]
    em = np.clip(em + rng.normal(0, 9, shape), 0, 255).astype(np.uint8)
    return {"em": em, "cell": (cell < 1).astype(np.uint64), "nucleus": (nucleus < 1).astype(np.uint64), "mitochondria": mitochondria}


def save(url: str, array: np.ndarray, spacing, kind: str):
    volume = create(url, array.shape, array.dtype, Spacing(*spacing), kind=kind, shard=(64, 64, 64), chunk=(32, 32, 32), overwrite=True)
    volume.write(Box.of(array.shape), array)
    for level, grid in volume.later_levels:
        for i in range(len(grid)):
            fill_level(volume, level, grid.write_box(i))
    return volume


def measure(labels: np.ndarray, image: np.ndarray | None, spacing):
    specs = [ArraySpec(labels.shape, "uint64", Spacing(*spacing), "labels")]
    specs += [ArraySpec(image.shape, image.dtype.name, Spacing(*spacing), "image")] if image is not None else []
    op = MeasureObjects()
    return op.finish(op.measure(labels, image, site=Site.whole(*specs)), tuple(specs))


def with_dataset(table, dataset: str):
    import pyarrow as pa

    return table.add_column(0, "dataset", pa.array([dataset] * table.num_rows, pa.string()))


def results(
    out: str, dataset: str = "phantom 7", spacing=(16.0, 8.0, 8.0), evaluation: bool = True, names: dict[str, str] | None = None, **scene
) -> dict:
    """Write the folder `out` (with the input beside it, in out + '-input') and return its record. `names`: titles of the overlays by volume."""
    arrays = draw(spacing=spacing, **scene)
    em = save(f"{out}-input/em.zarr", arrays["em"], spacing, "image")
    tables = {}
    for name in ("cell", "nucleus", "mitochondria"):
        save(access.join(out, "volumes", f"{name}.zarr"), arrays[name], spacing, "labels")
        tables[f"{name}_table"] = measure(arrays[name], arrays["em"], spacing)
    classes = {n: tables[f"{n}_table"] for n in ("cell", "nucleus", "mitochondria")}
    tables["composition"] = compose(classes, "cell", {"cytoplasm": ["cell", "nucleus"]})
    for name, table in tables.items():
        write_table(access.join(out, "tables", f"{name}.parquet"), with_dataset(table, dataset))
    record = run_record(out, em, tables, dataset, names)
    if evaluation:
        record["evaluation"], record["baseline"] = judged(arrays)
    write_json(access.join(out, "run.json"), record)
    return record


def pairs(a: np.ndarray, b: np.ndarray) -> dict:
    both, voxels = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_counts=True)
    return {"a": both[0], "b": both[1], "voxels": voxels}


def judged(arrays: dict) -> tuple[dict, dict]:
    from scipy import ndimage

    truth = arrays["mitochondria"]
    predicted = np.where(np.roll(truth, 1, axis=2) % 11 == 5, 0, np.roll(truth, 1, axis=2))
    crude = ndimage.label(ndimage.gaussian_filter(arrays["em"].astype(float), 1) < 118)[0].astype(np.uint64)
    good = {"mitochondria": agreement(pairs(predicted, truth)), "nucleus": agreement(pairs(np.roll(arrays["nucleus"], 1, 1), arrays["nucleus"]))}
    return good, {"mitochondria": agreement(pairs(crude, truth))}


def run_record(out: str, em, tables: dict, dataset: str, names: dict[str, str] | None = None) -> dict:
    names = names or {"cell": "cell", "nucleus": "nucleus", "mitochondria": "mitochondria"}
    spec = {"shape": list(em.shape), "spacing_nm": list(em.spacing.zyx)}
    labels = {**spec, "dtype": "uint64", "kind": "labels"}
    steps: dict = {
        "probability": {"op": "infer", "image": "em", "model": "demo.vemray", "seed": 11},
        **{n: {"op": "connected_components", "mask": f"{n}_mask", "connectivity": 26} for n in ("cell", "nucleus", "mitochondria")},
        **{f"{n}_table": {"op": "measure", "labels": n, "image": "em"} for n in ("cell", "nucleus", "mitochondria")},
        "composition": {"op": "composition", "tables": {n: f"{n}_table" for n in ("cell", "nucleus", "mitochondria")}, "whole": "cell"},
    }
    stages = [
        {"name": "probability", "title": "infer", "kind": "filter", "blocks": 512, "blocks_run": 512, "seconds": 93.4, "memory_bytes": 800 << 20,
         "peak_bytes": 700 << 20, "bytes_read": 3 << 30, "bytes_written": 1 << 30, "skipped": False, "cpu_seconds": 170.2},
        {"name": "mitochondria", "title": "threshold > connected_components > measure", "kind": "label", "blocks": 64, "blocks_run": 0, "seconds": 4.2,
         "memory_bytes": 120 << 20, "peak_bytes": 300 << 20, "bytes_read": 1 << 30, "bytes_written": 5 << 20, "skipped": True, "cpu_seconds": 7.9},
    ]  # fmt: skip
    return {
        "vemray": "0.1.0", "run": "20260101T120000-abc123", "state": "done", "message": "", "dataset": dataset,
        "recipe": {
            "vemray": 1, "name": "hela", "about": "Profile of a drawn cell.", "inputs": {"em": {"kind": "image", "about": "FIB-SEM"}},
            "steps": steps, "outputs": [*names, *tables],
            "report": {"image": "em", "overlays": {title: volume for volume, title in names.items()}, "tables": None, "about": "A cell, **drawn**."},
        },
        "inputs": {"em": {"url": em.url, **spec, "dtype": em.dtype, "kind": "image", "objects": 12, "bytes": 3456789, "digest": "d6b9edade7767622" * 4}},
        "models": {"models/demo.vemray": "ab12" * 16},
        "steps": {n: {"op": s["op"], "key": "0" * 64, "outputs": {n: "table" if n in tables else labels}} for n, s in steps.items()},
        "keep": [*names, *tables],
        "options": {"block": [64, 64, 64], "chunk": [32, 32, 32], "memory_bytes": 1 << 31},
        "versions": {"python": "3.11.7", "platform": "Linux", "numpy": "2.4.6"},
        "runner": "ray", "workers": 2, "started": "2026-01-01T12:00:00+0000", "finished": "2026-01-01T12:01:40+0000", "seconds": 100.5, "stages": stages,
    }  # fmt: skip
