"""The walk-through of a run: every step in order, its reasons, a picture of each volume, rows of each table."""

import io

import numpy as np
import pytest
from PIL import Image

from vemray.analysis.correlation import correlate
from vemray.errors import InputError, RecipeError
from vemray.geometry import Grid, Spacing
from vemray.plan.recipe import load_recipe
from vemray.report.walkthrough import everything, markdown, reworded, stops, write, write_page
from vemray.run.api import run
from vemray.run.results import Results
from vemray.store.volume import create

RECIPE = {
    "vemray": 1,
    "name": "walk",
    "about": "Bright bodies.",
    "inputs": {"em": {"kind": "image"}},
    "steps": {
        "smooth": {"op": "gaussian", "image": "em", "sigma_nm": 8, "why": {"op": "quiets the noise", "sigma_nm": "one voxel | no more"}},
        "bright": {"op": "threshold", "image": "smooth", "value": 128},
        "bodies": {"op": "connected_components", "mask": "bright", "why": "one label a body"},
        "table": {"op": "measure", "labels": "bodies"},
    },
    "outputs": ["table"],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    url = str(folder / "em.zarr")
    v = create(url, (24, 60, 70), "uint8", Spacing(16, 8, 8), shard=(64, 64, 64), chunk=(32, 32, 32))
    em = np.full(v.shape, 40, np.uint8)
    em[5:15, 10:30, 10:30] = 220
    em[8:20, 40:55, 40:60] = 200
    for i in range(len(g := Grid(v.shape, v.shard))):
        v.write(g.write_box(i), em[g.write_box(i).slices])
    return run(everything(load_recipe(RECIPE)), url, str(folder / "out"), runner="serial", report=False, listeners=(lambda e: None,))


def test_every_step_is_shown(results, tmp_path):
    found = stops(results, side_nm=300)
    assert [s.name for s in found] == ["smooth", "bright", "bodies", "table"]
    assert [[o for o, _ in s.pictures] for s in found] == [["smooth"], ["bright"], ["bodies"], []]
    assert found[0].why == "quiets the noise" and found[0].parameters == [("sigma_nm", 8, "one voxel | no more")]
    assert found[2].inputs == {"mask": "bright"} and found[3].tables[0][3] == 2
    page = write(found, str(tmp_path), "walk", "Bright bodies.")
    text = open(page).read()
    assert "one voxel \\| no more" in text and "2 rows:" in text and "![bodies](pictures/bodies.jpg)" in text
    assert (tmp_path / "pictures" / "bodies.jpg").exists()


def test_the_picture_shows_the_labels(results):
    bodies = dict(found[0] for s in stops(results, side_nm=300) if (found := s.pictures))
    grey, coloured = (np.asarray(Image.open(io.BytesIO(bodies[n]))).astype(int) for n in ("smooth", "bodies"))
    colourful = lambda p: (np.ptp(p, axis=-1) > 40).mean()  # noqa: E731
    assert colourful(grey) < 0.001 < 0.1 < colourful(coloured)


def test_without_an_image_it_says_so(results, tmp_path):
    blind = type(results)(results.url)
    blind.run = {**results.run, "inputs": {}}
    with pytest.raises(InputError, match="needs an image"):
        stops(blind)


YAML = """vemray: 1
name: walk
inputs: {em: {kind: image}}
steps:
  # ---- what is bright: a threshold ------------
  # Noise goes first.
  # Then the rest.
  smooth: {op: gaussian, image: em, sigma_nm: 8, why: "quiets the noise"}
  # a remark, and no chapter ---
  bright: {op: threshold, image: smooth, value: 128}

  # ------------ bodies ------------
  bodies: {op: connected_components, mask: bright}
  table: {op: measure, labels: bodies}
  pair: {op: correlate, table: table, x: volume_nm3, y: sphericity}
outputs: [table]
"""


def test_chapters_are_the_comments_of_the_recipe(tmp_path):
    (tmp_path / "walk.yaml").write_text(YAML)
    found = load_recipe(tmp_path / "walk.yaml").chapters
    assert found == {"smooth": "what is bright: a threshold\nNoise goes first. Then the rest.", "bodies": "bodies"}
    assert load_recipe(RECIPE).chapters == {}
    with pytest.raises(RecipeError, match="chapters names 'bodis', which is not a step. Did you mean 'bodies'"):
        load_recipe({**RECIPE, "chapters": {"bodis": "x"}})


def test_the_page_in_chapters(results, tmp_path):
    (tmp_path / "walk.yaml").write_text(YAML)
    told = Results(results.url)
    reworded(told, load_recipe(tmp_path / "walk.yaml"))
    page = write_page(told, str(tmp_path), "walk.md", "img/walk", side_nm=300)
    text = open(page).read()
    assert "- [What is bright: a threshold](#what-is-bright-a-threshold)" in text and "## Bodies" in text and "### bright" in text
    assert "Noise goes first. Then the rest." in text and "| `sigma_nm` | 8 nm |" in text and "(image: [smooth](#smooth))" in text
    assert "24 × 60 × 70 voxels of 16 × 8 × 8 nm" in text and "Pictures in 3D" not in text
    shown = {line.partition("(")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert shown == {f"img/walk/{n}.jpg" for n in ("input", "smooth", "bright", "bodies")} and all((tmp_path / s).exists() for s in shown)


def test_statistics_have_their_sentence_and_plot_and_models_no_folder(results, monkeypatch):
    told = Results(results.url)
    rows = correlate(results.arrow["table"], "volume_nm3", "sphericity", permutations=0)
    told.arrow = {**dict(results.arrow.items()), "pair": rows}
    told.run["keep"].append("pair")
    told.run["models"] = {"/somewhere/net.vemray": "ab"}
    told.run["recipe"]["steps"]["pair"] = {"op": "correlate", "table": "table", "x": "volume_nm3", "y": "sphericity"}
    told.run["recipe"]["steps"]["bodies"] = {"op": "infer", "image": "em", "model": "/somewhere/net.vemray"}
    found = {s.name: s for s in stops(told, side_nm=300)}
    assert found["pair"].sentences[0].startswith("Among 2 objects") and [n for n, _ in found["pair"].plots] == ["pair"]
    assert found["bodies"].parameters == [("model", "net.vemray", "")]
    assert '<img src="pictures/pair.png"' in markdown(list(found.values()), "t", "a", "pictures")
