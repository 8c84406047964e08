"""The report of a real, small run: complete, safe, and opened in a real browser."""

import shutil
import subprocess

import numpy as np
import pytest

import vemray
from vemray.geometry import Grid, Spacing
from vemray.plan import Options
from vemray.report import write_report
from vemray.run.evaluate import evaluate, record
from vemray.store.volume import create

NAME = "<script>alert(1)</script> & co"


def put(url, array, kind):
    v = create(str(url), array.shape, array.dtype.name, Spacing(24, 8, 8), kind=kind, shard=(64, 64, 64), chunk=(32, 32, 32))
    grid = Grid(array.shape, v.shard)
    for i in range(len(grid)):
        v.write(grid.write_box(i), array[grid.write_box(i).slices])
    return str(url)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from scipy.ndimage import gaussian_filter, label

    folder = tmp_path_factory.mktemp("report")
    field = gaussian_filter(np.random.default_rng(0).standard_normal((40, 90, 100)), 3)
    grey = ((field - field.min()) / np.ptp(field) * 255).astype(np.uint8)
    em = put(folder / "em.zarr", grey, "image")
    truth = put(folder / "truth.zarr", label(field > 0.05)[0].astype(np.uint64), "labels")
    recipe = {
        "vemray": 1, "name": NAME, "about": "a test", "inputs": {"em": {}},
        "steps": {
            "bright": {"op": "threshold", "image": "em", "method": "otsu"}, "objects": {"op": "connected_components", "mask": "bright"},
            "objects_table": {"op": "measure", "labels": "objects", "image": "em"},
            "none": {"op": "filter_objects", "labels": "objects", "where": "volume_voxels > 1e9"}, "none_table": {"op": "measure", "labels": "none"},
            "relation": {"op": "correlate", "table": "objects_table", "x": "volume_nm3", "y": "sphericity", "permutations": 19, "bootstraps": 50},
            "composition": {"op": "composition", "tables": {"objects": "objects_table", "none": "none_table"}, "whole": "objects"},
        },
        "outputs": ["objects", "objects_table", "none_table", "composition", "relation"], "report": {"image": "em", "overlays": {"objects": "objects"}},
    }  # fmt: skip
    out = str(folder / "out")
    results = vemray.run(recipe, em, out, runner="serial", options=Options((64,) * 3, (32,) * 3), report=False, listeners=(lambda e: None,))
    record(out, "objects", evaluate(results.volumes["objects"].url, truth, runner="serial"))
    return out


def test_it_holds_what_a_reviewer_asks_for(finished):
    page = open(write_report(finished)).read()
    for text in ("Against the truth", "Composition", "SHA-256" if "model" in page else "digest", "objects_table", "The recipe, as resolved", "numpy"):
        assert text in page
    assert "<script>alert(1)</script>" not in page and "&lt;script&gt;alert(1)" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", ""), (
        "no network"
    )
    assert page.count("data:image/jpeg") == 2
    assert "<h2>Statistics</h2>" in page and "Spearman" in page and "not independent replicates" in page


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed; .ci/run installs it")
def test_a_browser_opens_it(finished, tmp_path):
    url = write_report(finished)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    shot = tmp_path / "shot.png"
    run = [shutil.which("chromium"), *flags, f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run([*run, "--window-size=1100,2400", f"--screenshot={shot}", f"file://{url}"], check=True, capture_output=True, timeout=120)
    from PIL import Image

    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.std() > 10, "the page is not blank"
    dom = subprocess.run([*run, "--dump-dom", f"file://{url}"], check=True, capture_output=True, text=True, timeout=120).stdout
    assert "Held against the truth" in dom and dom.count("<svg") >= 2 and "objects_table" in dom
