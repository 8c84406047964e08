"""The bench of 3D-aware training: what it counts, and that it runs from end to end."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from bench.aware import main, matched, shares, table
from vemray.geometry import Spacing


def results(**tables):
    em = SimpleNamespace(shape=(100, 10, 10), spacing=Spacing(16, 16, 16))
    return SimpleNamespace(tables={k: pd.DataFrame(v) for k, v in tables.items()}, volumes={"phantom.em": em})


def test_found_one_to_one_and_by_direction():
    true = results(
        objects={
            "class": ["nucleus", "pore", "pore", "pore", "pore"],  # the last lies in a part of the cell that the volume does not hold
            "centre_z_nm": [50, 100, 500, 900, 1700], "centre_y_nm": [50] * 5, "centre_x_nm": [50] * 5,
            "normal_z": [0, -0.9, 0.1, 0.2, 1], "normal_y": [0, 0.1, 0.9, 0.1, 0], "normal_x": [0, 0.1, 0.1, -0.9, 0],
        }
    )  # fmt: skip
    got = results(
        objects={
            "volume_voxels": [100, 100, 100, 100, 3],  # the last is a speck
            "centroid_z_nm": [110, 130, 560, 1100, 900], "centroid_y_nm": [50] * 5, "centroid_x_nm": [50] * 5,
        }
    )  # fmt: skip
    counts = matched(got, true)
    assert counts["z"] == {"true": 1, "found": 1, "finds": 2, "right": 1}  # two finds at one pore: one is too many
    assert counts["y"] == {"true": 1, "found": 1, "finds": 1, "right": 1}
    assert counts["x"] == {"true": 1, "found": 0, "finds": 1, "right": 0}
    both = shares([{"matched": counts}, {"matched": counts}])
    assert both["all"] == {"recall": pytest.approx(2 / 3), "precision": pytest.approx(2 / 4)}


@pytest.mark.slow
def test_from_end_to_end(tmp_path, capsys):
    """On parts of cells, with networks that have hardly learned: they look through another cell and have their rows."""
    args = [
        "--seeds",
        "1",
        "--cells",
        "2",
        "--shape",
        "60",
        "300",
        "300",
        "--painted",
        "24",
        "--steps",
        "30",
        "--set",
        '{"batch": 2, "crop": 32, "base": 4}',
    ]
    assert main([str(tmp_path), *args, "--ways", "2D", "2.5D, 3D-aware"]) == 0
    rows = json.loads((tmp_path / "aware.json").read_text())
    assert [(r["way"], r["axes"], r["cell"]) for r in rows] == [("2D", "z", 2), ("2.5D, 3D-aware", "z", 2)]
    assert all(r["matched"]["y"]["true"] > 5 for r in rows)
    assert (tmp_path / "aware.png").stat().st_size > 10_000
    assert table(rows) in capsys.readouterr().out
