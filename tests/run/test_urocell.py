"""configs/urocell.yaml on mitochondria that people labelled and judged: docs/real-data.md has the figures."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import store

import vemray

DATA = Path(os.environ.get("VEMRAY_TEST_DATA", "nowhere")) / "urocell_labels"
RECIPE = Path(__file__).parents[2] / "configs" / "urocell.yaml"


@pytest.mark.skipif(not DATA.exists(), reason="VEMRAY_TEST_DATA names no folder with urocell_labels")
def test_branched_and_contacting_mitochondria_of_urocell(tmp_path):
    found = []
    for path in sorted(DATA.glob("fib1-*.npz")):
        with np.load(path) as data:
            if "mito_branched" not in data:
                continue
            for name, kind in (("instance", "labels"), ("branched", "image"), ("contacting", "image")):
                store(tmp_path / path.stem / f"{name}.zarr", data[f"mito_{name}"], kind, (15, 16, 16), shard=(256,) * 3, chunk=(64,) * 3)
        inputs = {
            n: str(tmp_path / path.stem / f"{f}.zarr")
            for n, f in (("mitochondria", "instance"), ("branched", "branched"), ("contacting", "contacting"))
        }
        r = vemray.run(RECIPE, inputs, tmp_path / path.stem / "out", runner="serial", dataset=path.stem, report=False, listeners=(lambda e: None,))
        profile, parts, pairs = r.tables["profile"], r.tables["parts_of"], r.tables["contacts"]
        assert set(pairs.label_a) | set(pairs.label_b) == set(profile.label[profile.near_another]), "who has a contact is near another"
        assert (pairs.gap_nm <= 30).all() and (pairs.sites >= 1).all() and (pairs[["sites_a", "sites_b"]].min(axis=1) == pairs.sites).all()
        parted = parts[(parts.a > 0) & (parts.b > 0)].groupby("a").size()
        assert len(r.tables["parts_touching"]) >= (parted - 1).sum(), "parts of one label hang together"
        found.append(profile.assign(parts=parted.reindex(profile.label).to_numpy()))
    table = pd.concat(found)
    assert len(table) == 287
    branched, contacting, parted = table.said_branched, table.said_contacting, table.parts > 1
    assert (
        (branched == table.found_branched).sum() >= 270
        and table.found_branched[branched].mean() > 0.5
        and table.found_branched[~branched].mean() < 0.03
    )
    assert (contacting == parted).mean() > 0.85 and parted[contacting].mean() > 0.8
