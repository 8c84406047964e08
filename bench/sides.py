"""One side of each comparison, run in a process of its own: python -m bench.sides NAME ARGS. Prints one JSON line. Imports,
compilation and Ray's start are left out of the times; reading and writing are in."""

from __future__ import annotations

import json
import shutil
import sys
import time

import numpy as np


class Clock:
    """Wall and CPU seconds of this process and all below it."""

    def __init__(self):
        self.t, self.c = time.perf_counter(), self._cpu()

    @staticmethod
    def _cpu() -> float:
        import psutil

        me = psutil.Process()
        total = 0.0
        for p in [me, *me.children(recursive=True)]:
            try:
                t = p.cpu_times()
                total += t.user + t.system + t.children_user + t.children_system  # of those that have ended, too
            except psutil.Error:
                pass
        return total

    def read(self) -> dict:
        return {"wall_s": round(time.perf_counter() - self.t, 3), "cpu_s": round(self._cpu() - self.c, 3)}


def _options(block: int):
    from vemray.plan import Options

    return Options((block,) * 3, (64,) * 3)


def _volume(root: str, name: str):
    from vemray.geometry import Spacing
    from vemray.store.volume import open

    return open(f"{root}/{name}/s0", spacing=Spacing(8, 8, 8))


def _recipe(kind: str, steps: dict, outputs: list[str]) -> dict:
    return {"vemray": 1, "name": "bench", "inputs": {"v": {"kind": kind}}, "steps": steps, "outputs": outputs}


def _run(volume: str, array: str, kind: str, steps: dict, outputs: list[str], out: str, runner, block: int, warm: bool = True) -> dict:
    """A recipe on the pinned volume; a run on a small crop first, so that compilation is not measured."""
    from vemray.geometry import Spacing
    from vemray.run.api import run, source

    src = {"v": source("v", f"{volume}/{array}/s0", kind, Spacing(8, 8, 8))}
    shutil.rmtree(out, ignore_errors=True)
    clock = Clock()
    r = run(_recipe(kind, steps, outputs), src, out, runner=runner, options=_options(block), report=False, listeners=(lambda e: None,))
    facts = clock.read()
    size = int(np.prod(src["v"].volume.shape))
    return {**facts, "voxels": size, **_memory(r), "results": r}


def _memory(r) -> dict:
    """Of a task: the most that a worker was seen to hold, Python and its libraries included, and the most that was declared."""
    stages = r.run["stages"]
    return {key + "_gb": round(max(s[of] for s in stages) / 1e9, 3) for key, of in (("task_peak", "peak_bytes"), ("declared", "memory_bytes"))}


def _runner(name: str, workers: int):
    if name == "serial":
        from vemray.run.serial import SerialRunner

        return SerialRunner()
    from vemray.run.cluster import RayRunner

    return RayRunner(workers)


LABEL = {
    "mask": {"op": "threshold", "image": "v", "value": 128},
    "labels": {"op": "connected_components", "mask": "mask", "connectivity": 6},
    "table": {"op": "measure", "labels": "labels", "image": "v"},
}


def components(volume: str, out: str, runner: str, workers: str, block: str) -> dict:
    r = _runner(runner, int(workers))
    for i in range(2 if runner == "ray" else 1):  # workers import and compile on a first, small run
        if i == 0 and runner == "ray":
            _warm(r, out)
    result = _run(volume, "prob", "image", LABEL, ["labels", "table"], out, r, int(block))
    result["objects"] = result.pop("results").arrow["table"].num_rows
    r.close()
    return result


def _warm(runner, out: str) -> None:
    """A small volume through the same stages, on every worker."""
    from vemray.geometry import Grid, Spacing
    from vemray.run.api import run
    from vemray.store.volume import create

    rng = np.random.default_rng(0)
    url = f"{out}-warm/v.zarr"
    v = create(url, (128, 256, 256), "uint8", Spacing(8, 8, 8), shard=(64,) * 3, chunk=(64,) * 3, overwrite=True)
    grid = Grid(v.shape, v.shard)
    for i in range(len(grid)):
        v.write(grid.write_box(i), rng.integers(100, 200, grid.write_box(i).shape).astype(np.uint8))
    run(
        _recipe("image", LABEL, ["labels", "table"]),
        url,
        f"{out}-warm/out",
        runner=runner,
        options=_options(64),
        report=False,
        listeners=(lambda e: None,),
    )
    shutil.rmtree(f"{out}-warm")


def measure(volume: str) -> dict:
    """Every feature with intensity and surface, over 256^3 blocks in memory order, merged; reading left out."""
    from vemray.geometry import Box, Grid
    from vemray.ops import build
    from vemray.ops.base import Site
    from vemray.run.reduce import Tree

    labels, image = _volume(volume, "labels"), _volume(volume, "prob")
    op = build("measure", {})
    specs = (labels.spec, image.spec)

    def part(box: Box):
        a, b = labels.read(box), image.read(box)
        clock = Clock()
        p = op.measure(a, b, site=Site(labels.shape, labels.spacing, box, box, specs))
        return p, clock.read()["cpu_s"]

    part(Box((0, 0, 0), (64, 64, 64)))
    grid, cpu = Grid(labels.shape, (256,) * 3), 0.0
    tree = Tree(grid.counts, lambda fn, *a: fn(*a))
    merge = 0.0
    for i in range(len(grid)):
        p, c = part(grid.write_box(i))
        cpu += c
        clock = Clock()
        tree.add(grid.coords(i), p)
        merge += clock.read()["cpu_s"]
    clock = Clock()
    rows = op.finish(tree.root, specs).num_rows
    cpu += merge + clock.read()["cpu_s"]
    return {"wall_s": round(cpu, 3), "cpu_s": round(cpu, 3), "voxels": int(np.prod(labels.shape)), "objects": rows}


def edt(volume: str) -> dict:
    import edt

    mask = np.asarray(_volume(volume, "mask").read(_volume(volume, "mask").box)) > 0
    clock = Clock()
    edt.edt(mask, anisotropy=(8, 8, 8), parallel=1)
    return clock.read()


def distance(volume: str, out: str) -> dict:
    steps = {"m": {"op": "threshold", "image": "v", "value": 1}, "d": {"op": "distance_map", "mask": "m"}}
    _compile_distance(out)
    r = _run(volume, "mask", "image", steps, ["d"], out, _runner("serial", 1), 256)
    r.pop("results")
    return r


def _compile_distance(out: str) -> None:
    from vemray.geometry import Grid, Spacing
    from vemray.run.api import run
    from vemray.store.volume import create

    url = f"{out}-warm/v.zarr"
    v = create(url, (70, 70, 70), "uint8", Spacing(8, 8, 8), shard=(128,) * 3, chunk=(64,) * 3, overwrite=True)
    v.write(Grid(v.shape, v.shard).write_box(0), (np.random.default_rng(0).random(v.shape) > 0.1).astype(np.uint8))
    steps = {
        "m": {"op": "threshold", "image": "v", "value": 1},
        "d": {"op": "distance_map", "mask": "m"},
        "w": {"op": "watershed", "image": "d", "mask": "m", "invert": True},
    }
    run(_recipe("image", steps, ["w"]), url, f"{out}-warm/out", runner="serial", options=_options(64), report=False, listeners=(lambda e: None,))
    shutil.rmtree(f"{out}-warm")


def landscape(volume: str) -> dict:
    """Made once and stored: the distance map of the mask, the mask, and markers (up to 512^3, which scikit-image can still do)."""
    from vemray.geometry import Grid, Spacing
    from vemray.store import access
    from vemray.store.volume import create

    out = f"{volume}-landscape"
    if access.exists(f"{out}/done"):
        return {}
    shutil.rmtree(out, ignore_errors=True)
    steps = {"m": {"op": "threshold", "image": "v", "value": 1}, "d": {"op": "distance_map", "mask": "m"}}
    r = _run(volume, "mask", "image", steps, ["m", "d"], out, _runner("serial", 1), 256)["results"]
    if r.volumes["d"].shape[0] <= 512:
        import cc3d

        tops = cc3d.connected_components(r.volumes["d"].read(r.volumes["d"].box) > 24, connectivity=26)
        v = create(f"{out}/volumes/markers.zarr", tops.shape, "uint64", Spacing(8, 8, 8), kind="labels", levels=1)
        grid = Grid(v.shape, v.shard)
        for i in range(len(grid)):
            box = grid.write_box(i)
            v.write(box, tops[box.slices].astype(np.uint64))
    access.write_bytes(f"{out}/done", b"")
    return {}


def skimage_watershed(volume: str) -> dict:
    from skimage.segmentation import watershed

    from vemray.store.volume import open

    d, m, markers = (v.read(v.box) for v in (open(f"{volume}-landscape/volumes/{n}.zarr") for n in ("d", "m", "markers")))
    clock = Clock()
    watershed(-d, markers.astype(np.int32), mask=m)
    return clock.read()


def _watershed(volume: str, out: str, with_markers: bool, parameters: dict, runner: str = "serial") -> dict:
    from vemray.run.api import run, source

    src = {n: source(n, f"{volume}-landscape/volumes/{n}.zarr") for n in ("d", "m", *(["markers"] if with_markers else []))}
    _compile_distance(out)
    runner = _runner(runner, 2)
    recipe = {"vemray": 1, "name": "bench", "inputs": {n: {"kind": s.spec.kind} for n, s in src.items()}, "outputs": ["w"]}
    step = {"op": "watershed", "image": "d", "mask": "m", "invert": True, **({"markers": "markers"} if with_markers else {}), **parameters}
    shutil.rmtree(out, ignore_errors=True)
    clock = Clock()
    options = _options(256)
    r = run({**recipe, "steps": {"w": step}}, src, out, runner=runner, options=options, report=False, listeners=(lambda e: None,))
    facts = {**clock.read(), **_memory(r)}
    runner.close()
    return facts


def watershed_markers(volume: str, out: str) -> dict:
    return _watershed(volume, out, True, {})


def watershed_h(volume: str, out: str) -> dict:
    return _watershed(volume, out, False, {"height": 8.0}, "ray")


def balls(folder: str, n: int, cells: int, out: str) -> dict:
    """Made once and stored: a ball of labels in each of `cells`^3 cells of a volume of n^3 voxels, at random within its cell; the plasma membrane
    and the nucleus, two balls around the middle; and the surfaces of all three with the table of objects, as a first run leaves them in `out`."""
    from vemray.geometry import Grid, Spacing
    from vemray.run.api import run, source
    from vemray.store import access
    from vemray.store.volume import create

    n, cells = int(n), int(cells)
    if access.exists(f"{out}/done"):
        return {}
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    rng = np.random.default_rng(0)
    edge = n / cells
    radius = edge * rng.uniform(0.18, 0.4, (cells,) * 3)
    middle = np.stack(np.indices((cells,) * 3), -1) * edge + edge / 2 + rng.uniform(-0.1, 0.1, (cells, cells, cells, 3)) * edge
    volumes = {k: create(f"{folder}/{k}.zarr", (n,) * 3, d, Spacing(8, 8, 8), kind=kind, shard=(256,) * 3, chunk=(64,) * 3, levels=1)
               for k, d, kind in (("objects", "uint64", "labels"), ("cell", "bool", "mask"), ("nucleus", "bool", "mask"))}  # fmt: skip
    grid = Grid((n,) * 3, (256,) * 3)
    for i in range(len(grid)):
        box = grid.write_box(i)
        at = np.meshgrid(*[np.arange(a, b) for a, b in zip(box.start, box.stop)], indexing="ij", sparse=True)
        cell = tuple((a / edge).astype(int) for a in at)
        d2 = sum((a - middle[(*cell, k)]) ** 2 for k, a in enumerate(at))
        label = (cell[0] * cells + cell[1]) * cells + cell[2] + 1
        volumes["objects"].write(box, np.where(d2 <= radius[cell] ** 2, label, 0).astype(np.uint64))
        r2 = sum((a - n / 2) ** 2 for a in at)
        volumes["cell"].write(box, r2 <= (0.45 * n) ** 2)
        volumes["nucleus"].write(box, r2 <= (0.2 * n) ** 2)
    src = {k: source(k, f"{folder}/{k}.zarr") for k in volumes}
    run(_distances(src, {}), src, out, runner="serial", options=_options(256), report=False, listeners=(lambda e: None,))
    access.write_bytes(f"{out}/done", b"")
    return {}


SURFACES = {
    "table": {"op": "measure", "labels": "objects"},
    **{f"{n}_surface": {"op": "surface", "labels": n} for n in ("objects", "cell", "nucleus")},
}
DISTANCES = {
    "centres": {"op": "distance_to_surface", "objects": "table", "targets": {"cell": "cell_surface", "nucleus": "nucleus_surface"}},
    "gaps": {"op": "surface_distance", "surface": "objects_surface", "targets": {"cell": "cell_surface", "nucleus": "nucleus_surface"}},
    "neighbours": {"op": "nearest_surface", "surface": "objects_surface"},
}


def _distances(src: dict, steps: dict) -> dict:
    inputs = {n: {"kind": s.spec.kind} for n, s in src.items()}
    return {"vemray": 1, "name": "bench", "inputs": inputs, "steps": {**SURFACES, **steps}, "outputs": [*SURFACES, *steps]}


def distances(folder: str, out: str, *names: str) -> dict:
    """The stages `names` alone, with two workers: what they read lies there."""
    from vemray.run.api import run, source

    src = {k: source(k, f"{folder}/{k}.zarr") for k in ("objects", "cell", "nucleus")}
    runner = _runner("ray", 2)
    options = _options(256)
    facts = {}
    for _ in range(2):  # workers import and compile on the first
        shutil.rmtree(f"{out}-copy", ignore_errors=True)
        shutil.copytree(out, f"{out}-copy")
        clock = Clock()
        steps = {n: DISTANCES[n] for n in names}
        r = run(_distances(src, steps), src, f"{out}-copy", runner=runner, options=options, report=False, listeners=(lambda e: None,))
        ran = [s for s in r.run["stages"] if not s["skipped"]]
        facts = {**clock.read(), "rows": r.arrow[names[0]].num_rows, "task_peak_gb": round(max(s["peak_bytes"] for s in ran) / 1e9, 3)}
        facts["seconds"] = {s["name"]: s["seconds"] for s in ran}
    runner.close()
    shutil.rmtree(f"{out}-copy")
    return facts


#: planes of the pinned volume that a network of so many base channels goes over, so that a CPU is done in a minute
PLANES = {16: 128, 64: 16}


def _network(folder: str, base: int) -> str:
    """The file of the pinned network: a 2D U-Net of no training."""
    import torch

    from vemray.models.files import Facts, Normalisation, save_native
    from vemray.models.networks import UNet

    torch.manual_seed(0)
    net = UNet(2, base=base, depth=3)
    path = f"{folder}-{base}.vemray"
    fixed = Normalisation(method="fixed", low=0, high=255)
    save_native(path, net, Facts(classes=["background", "a"], dims=2, voxel_nm=(8, 8, 8), stride=net.stride, halo=net.halo, normalisation=fixed))
    return path


def _planes(volume: str, n: int, url: str) -> None:
    """`n` planes of the pinned volume, evenly, as a volume of their own at `url`."""
    from vemray.geometry import Box, Spacing
    from vemray.store.volume import create

    v = _volume(volume, "prob")
    w = create(url, (n, *v.shape[1:]), "uint8", Spacing(8, 8, 8), shard=(32, 512, 512), chunk=(32, 64, 64), overwrite=True)
    some = np.concatenate([v.read(Box((z, 0, 0), (z + 1, *v.shape[1:]))) for z in range(0, v.shape[0], v.shape[0] // n)][:n])
    for z in range(0, n, 32):
        for y in range(0, v.shape[1], 512):
            for x in range(0, v.shape[2], 512):
                box = Box((z, y, x), (min(z + 32, n), min(y + 512, v.shape[1]), min(x + 512, v.shape[2])))
                w.write(box, some[box.slices])


def _member(volume: str, base: int, device: str, precision: str):
    """The network as `infer` runs it over those planes, and their shape."""
    from vemray.models.member import Member

    shape = (PLANES[base], *_volume(volume, "prob").shape[1:])
    return Member(_network(f"{volume}-forward", base), device=device, precision=precision), shape


def forward(volume: str, base: str, device: str = "cpu", precision: str = "float32") -> dict:
    """The bare forward pass on tiles that lie in memory (a GPU's own, on a GPU): the same tiles, batches and precision as `infer` uses, batch
    normalisation folded and memory kept, so that the ratio shows nothing but what surrounds it. Voxels are those of the result: a halo is not counted."""
    import torch

    from vemray.geometry import Box
    from vemray.run.threads import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    member, shape = _member(volume, int(base), device, precision)
    model, (zs, ys, xs) = member.model(), member.meeting(shape, Box.of(shape))
    n = member.places(shape)
    batches = [(min(n, shape[0] - z), y, x) for z in range(0, len(zs), n) for y in ys for x in xs]
    sizes = {(k, y.window[1] - y.window[0], x.window[1] - x.window[0]) for k, y, x in batches}
    with torch.inference_mode():
        resident = {(k, h, w): torch.rand((k, 1, h, w)).to(device).to(model.dtype).contiguous(memory_format=torch.channels_last) for k, h, w in sizes}
        for x in resident.values():
            model.module(x).float().softmax(1)
        if device == "cuda":
            torch.cuda.synchronize()
        clock = Clock()
        for k, y, x in batches:
            model.module(resident[k, y.window[1] - y.window[0], x.window[1] - x.window[0]]).float().softmax(1)
        if device == "cuda":
            torch.cuda.synchronize()
    return {**clock.read(), "voxels": int(np.prod(shape)), "batch": n}


def infer(volume: str, out: str, base: str, device: str = "cpu", precision: str = "float32") -> dict:
    """From the volume at OUT/planes.zarr to OUT/result, both in a folder or on S3. `split`: seconds of reading and decoding, of the network, of cutting,
    normalising and rounding (copy), of encoding and writing; they overlap, so they may add up to more than the wall time."""
    import torch  # noqa: F401  imports are not timed

    from vemray.models.native import TorchModel
    from vemray.run.api import run, source
    from vemray.store import access

    member, shape = _member(volume, int(base), device, precision)
    network = [0.0]
    begin = TorchModel.begin

    def timed(self, batch):
        """The network's own seconds: on a GPU, those in which it is waited for."""
        t0 = time.perf_counter()
        end = begin(self, batch)
        network[0] += time.perf_counter() - t0

        def wait():
            t0 = time.perf_counter()
            scores = end()
            network[0] += time.perf_counter() - t0
            return scores

        return wait

    TorchModel.begin = timed
    access.remove(out)
    _planes(volume, PLANES[int(base)], f"{out}/planes.zarr")
    src = {"v": source("v", f"{out}/planes.zarr")}
    steps = {"p": {"op": "infer", "image": "v", "model": member.path, "device": device, "precision": precision}}
    from vemray.plan import Options

    member.model()  # neither is loading the network: a run does it once, whatever its size
    clock = Clock()
    done = run(
        _recipe("image", steps, ["p"]), src, f"{out}/result", runner="serial", options=Options((256,) * 3, (32, 64, 64)), report=False,
        listeners=(lambda e: None,),
    )  # fmt: skip
    facts = clock.read()
    (stage,) = (s for s in done.run["stages"] if s["name"] == "p")
    split = {"read": stage["read_seconds"], "copy": stage["compute_seconds"] - network[0], "network": network[0], "write": stage["write_seconds"]}
    return {**facts, "voxels": int(np.prod(shape)), "split": {k: round(v, 2) for k, v in split.items()}, "idle": stage["idle"], **_memory(done)}


#: of the kernel density: about as many pores to the um3 as a layer of 200 nm with 15 to the um2 has
BANDWIDTH_NM = 100.0


def _points() -> np.ndarray:
    """100,000 points in a cube of 11 um."""
    return np.random.default_rng(0).random((100_000, 3)) * 11_000


def sklearn_density() -> dict:
    from sklearn.neighbors import KernelDensity

    zyx = _points()
    clock = Clock()
    density = KernelDensity(kernel="gaussian", bandwidth=BANDWIDTH_NM).fit(zyx).score_samples(zyx[:1000])
    return {**clock.read(), "points": len(density), "log_density": density.tolist()}


def kernel_density() -> dict:
    import pyarrow as pa

    from vemray.ops import build

    op, zyx = build("kernel_density", {"bandwidth_nm": BANDWIDTH_NM}), _points()
    table = pa.table({"label": np.arange(1, len(zyx) + 1, dtype=np.uint64), **{f"centroid_{a}_nm": zyx[:, i] for i, a in enumerate("zyx")}})
    op(table.slice(0, 100))
    clock = Clock()
    density = op(table)["log_density_per_nm3"].to_pylist()
    return {**clock.read(), "points": len(density), "log_density": density[:1000]}


def _forest(volume: str, edge: int = 128):
    """A block of the pinned volume, the operator, and what trains 100 trees at three scales on 1,000 voxels, half of them inside objects."""
    from vemray.geometry import Box
    from vemray.ops.base import Site
    from vemray.ops.forest import ClassifyPixels, TrainForest

    image, mask = _volume(volume, "prob"), _volume(volume, "mask")
    scales = (8, 16, 32)
    op, train = ClassifyPixels(scales), TrainForest(scales, max_voxels=500)
    write = Box(tuple(n // 2 - edge // 2 for n in image.shape), tuple(n // 2 + edge // 2 for n in image.shape))
    read = op.read_box(write, image.shape, image.spacing)
    pixels, annotations = image.read(read), (mask.read(read) > 0).astype(np.uint8) + np.uint8(1)
    specs = (image.spec, image.spec.like("uint8", "labels"))
    samples = train.measure(pixels, annotations, site=Site(image.shape, image.spacing, read, write, specs))
    return op, train, samples, pixels, Site(image.shape, image.spacing, read, write, (image.spec, None))


def forest(volume: str) -> dict:
    """Features and trees of one block in memory; then the features alone."""
    op, train, samples, pixels, site = _forest(volume)
    forest = train.finish(samples, site.inputs)
    op(pixels, forest, site=site)
    clock = Clock()
    op(pixels, forest, site=site)
    total = clock.read()
    clock = Clock()
    for _ in op.stream(pixels, site):
        pass
    nodes = sum(len(t["feature"]) for t in forest["trees"])
    return {**total, "features_cpu_s": clock.read()["cpu_s"], "voxels": site.write.size, "nodes": nodes, "json_bytes": len(json.dumps(forest))}


def forest_sklearn(volume: str) -> dict:
    """scikit-learn's predict_proba of the same forest on the same features, of the first planes of the block."""
    op, train, samples, pixels, site = _forest(volume)
    trees, _ = train.fit(samples)
    _, slab = next(op.stream(pixels, site))
    x = slab.reshape(len(slab), -1).T.copy()
    clock = Clock()
    trees.predict_proba(x)
    return {**clock.read(), "voxels": len(x)}


def _block(volume: str, edge: int):
    """A cube out of the middle of the pinned volume's probability, and its voxel size."""
    from vemray.geometry import Box

    image = _volume(volume, "prob")
    box = Box(tuple(n // 2 - edge // 2 for n in image.shape), tuple(n // 2 + edge // 2 for n in image.shape))
    return image.read(box), image.spec


#: radius of the ball of the top-hat, voxels
BALL = 12


def tophat(volume: str, edge: int = 192) -> dict:
    from vemray.ops import build
    from vemray.ops.base import ArraySpec, Site

    pixels, spec = _block(volume, edge)
    op = build("white_tophat", {"radius_nm": BALL * spec.spacing.zyx[0]})
    site = Site.whole(ArraySpec(pixels.shape, pixels.dtype.name, spec.spacing, spec.kind))
    small = Site.whole(ArraySpec((32, 32, 32), pixels.dtype.name, spec.spacing, spec.kind))
    op(np.ascontiguousarray(pixels[:32, :32, :32]), site=small)
    clock = Clock()
    out = op(pixels, site=site)
    return {**clock.read(), "voxels": out.size, "middle": out[80:112, 80:112, 80:112].ravel().tolist()}


def scipy_tophat(volume: str, edge: int = 192) -> dict:
    """scipy's, with the ball as a footprint, of the middle of the same cube and what it needs around."""
    from scipy import ndimage

    pixels, _ = _block(volume, edge)
    part = np.ascontiguousarray(pixels[80 - 2 * BALL : 112 + 2 * BALL, 80 - 2 * BALL : 112 + 2 * BALL, 80 - 2 * BALL : 112 + 2 * BALL])
    z, y, x = np.ogrid[-BALL : BALL + 1, -BALL : BALL + 1, -BALL : BALL + 1]
    clock = Clock()
    out = ndimage.white_tophat(part, footprint=z * z + y * y + x * x <= BALL * BALL)
    c = 2 * BALL
    return {**clock.read(), "voxels": out.size, "middle": out[c : c + 32, c : c + 32, c : c + 32].ravel().tolist()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])) + "\n")
