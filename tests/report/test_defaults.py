"""A report needs no `report:` in the recipe, says what it could not show, and tells objects that touch apart."""

import shutil

import numpy as np
import pytest

import vemray
from tests.report import scene
from vemray.errors import InputError
from vemray.geometry import Spacing
from vemray.plan import Options
from vemray.report import write_report
from vemray.report.page import _class
from vemray.report.pictures import Source, crowded, label_colours, slice_figure
from vemray.run.results import Results

STEPS = {
    "bright": {"op": "threshold", "image": "em", "method": "otsu"},
    "parts": {"op": "connected_components", "mask": "bright"},
    "objects": {"op": "filter_objects", "labels": "parts", "where": "volume_voxels > 5"},
    "objects_table": {"op": "measure", "labels": "objects"},
}


@pytest.fixture
def out(tmp_path):
    arrays = scene.draw()
    em = scene.save(str(tmp_path / "em.zarr"), arrays["em"], (16.0, 8.0, 8.0), "image")
    recipe = {"vemray": 1, "name": "plain", "inputs": {"em": {}}, "steps": STEPS, "outputs": ["bright", "objects", "objects_table"]}
    options = Options((64,) * 3, (32,) * 3)
    vemray.run(recipe, em.url, str(tmp_path / "out"), runner="serial", options=options, listeners=(lambda e: None,), report=False)
    return tmp_path / "out"


def test_without_a_word_in_the_recipe(out):
    page = open(write_report(str(out))).read()
    assert page.count("data:image/jpeg") == 2 and "Image with objects" in page and "was not found" not in page
    assert "lower quartile" in page and "upper quartile" in page


def test_an_input_that_has_moved_is_said(out, tmp_path):
    shutil.move(tmp_path / "em.zarr", tmp_path / "elsewhere.zarr")
    page = open(write_report(str(out))).read()
    assert "The input &#39;em&#39; was not found at" in page and "em.zarr" in page and page.count("data:image/jpeg") == 1


def test_results_list_what_the_user_made(out):
    r = Results(out)
    assert "bright" in r.images and "objects" in r.labels and None not in r.volumes and "objects" not in r.images
    assert list(r.tables) == ["objects_table"], "parts of composites are not the user's tables"
    assert "labels: objects; masks: bright; tables: objects_table" in repr(r)
    (out / "tables" / "objects_table.parquet").unlink()
    with pytest.raises(InputError, match="the table 'objects_table' is not at"):
        r.tables["objects_table"]


def test_touching_objects_have_colours_of_their_own():
    cells = np.kron(np.arange(1, 65, dtype=np.uint64).reshape(4, 4, 4), np.ones((8, 8, 8), np.uint64))
    dense = Source.of_array(cells, Spacing(8, 8, 8))
    alone = np.zeros((20, 20, 20), np.uint64)
    alone[4:9, 4:9, 4:9], alone[4:12, 12:16, 12:16] = 1, 2
    assert crowded(dense) and not crowded(Source.of_array(alone, Spacing(8, 8, 8))) and not crowded(Source.of_array(alone > 0, Spacing(8, 8, 8)))

    def hues(**how):
        return len(np.unique(slice_figure(None, {"cells": dense}, pixels=200, **how).reshape(-1, 3), axis=0))

    assert hues(each=["cells"]) > hues() + 10
    assert (label_colours(np.array([7])) == label_colours(np.array([3, 7]))[1]).all()


def test_cut_objects_are_left_out_of_the_statistics():
    import pyarrow as pa

    volumes, cut = [1e9, 2e9, 3e9, 100e9], [False, False, False, True]
    table = pa.table({"label": [1, 2, 3, 4], "volume_nm3": volumes, "touches_border": cut})
    c = _class("t", table, "#777")
    assert c["n"] == 4 and c["border"] == 1 and c["whole"] == 3 and c["stats"][0]["max"] == pytest.approx(3.0) and len(c["rows"]) == 4
    c = _class("t", table.filter(pa.array(cut)), "#777")
    assert c["whole"] == 1 and c["border"] == 1 and c["stats"][0]["max"] == pytest.approx(100.0)
