"""Run as a program: how large this process, the driver, is after a run of few blocks and after one of many. Prints one JSON line.

usage: driver_memory.py FOLDER RUNNER RECIPE BLOCKS ...      RECIPE: measure (one pass) or label (two, and their evidence)"""

import gc
import json
import sys

import psutil

import vemray
from vemray.geometry import Spacing
from vemray.plan import Options
from vemray.run.api import open_runner
from vemray.store.volume import create

EDGE = 16
RECIPES = {
    "measure": {"counts": {"op": "contingency", "a": "mask", "b": "mask"}},
    "label": {"objects": {"op": "connected_components", "mask": "mask"}, "table": {"op": "measure", "labels": "objects"}},
}


def main() -> None:
    folder, name, steps, *counts = sys.argv[1:]
    runner = open_runner(name, 2, None)
    recipe = {"vemray": 1, "name": "blocks", "inputs": {"mask": {"kind": "mask"}}, "steps": RECIPES[steps]}
    sizes = {}
    for n in map(int, counts):
        side = round(n ** (1 / 3))
        assert side**3 == n
        shape = (side * EDGE,) * 3
        url = f"{folder}/mask-{n}.zarr"
        create(url, shape, "bool", Spacing(8, 8, 8), kind="mask", shard=(EDGE,) * 3, chunk=(EDGE,) * 3)  # never written: all background
        out = f"{folder}/out-{n}"
        r = vemray.run(
            recipe, url, out, runner=runner, options=Options((EDGE,) * 3, (EDGE,) * 3), report=False, listeners=(lambda e: None,)
        )  # fmt: skip
        assert r.run["stages"][0]["blocks"] == n
        gc.collect()
        sizes[n] = psutil.Process().memory_info().rss / 1e6
        sys.stderr.write(f"{n} blocks: {sizes[n]:.1f} MB, {r.run['seconds']:.1f} s\n")
    runner.close()
    sys.stdout.write(json.dumps(sizes) + "\n")


if __name__ == "__main__":
    main()
