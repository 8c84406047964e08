"""TRAIN.yaml: planes and label volumes of files, folds, every mistake by its name, the page at the end."""

import numpy as np
import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("monai")
import tifffile
from PIL import Image

from vemray.errors import InputError, RecipeError
from vemray.geometry import Spacing
from vemray.models.files import load, load_facts
from vemray.store.volume import create
from vemray.training.annotation import coarser
from vemray.training.recipe import load as load_recipe
from vemray.training.recipe import run, sources_of

SETTINGS = {"steps": 24, "batch": 2, "crop": 32, "base": 4, "depth": 2, "checks": 2}


def volume(path, array, kind="image", spacing=(8, 8, 8)):
    made = create(str(path), array.shape, str(array.dtype), Spacing(*spacing), kind, levels=1)
    made.write(made.box, array)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """em.zarr, its objects, planes of the first 8 painted in two folders."""
    where = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    z, y, x = np.indices((16, 64, 64))
    ids = np.zeros((16, 64, 64), np.uint16)
    for i, c in enumerate(rng.uniform(0, 64, (30, 3))):
        ids[((z - c[0] / 4) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2) < 40] = i + 1
    image = np.clip(rng.normal(90, 15, ids.shape) + 90 * (ids > 0), 0, 255).astype(np.uint8)
    volume(where / "em.zarr", image)
    volume(where / "other.zarr", image, spacing=(16, 16, 16))
    volume(where / "objects.zarr", ids, "labels")
    volume(where / "part.zarr", ids[:4], "labels")
    for name in ("z", "y", "objects", "double", "colour"):
        (where / name).mkdir()
    for i in range(0, 8, 2):
        painted = np.where(ids[i] > 0, 2, 1).astype(np.uint8)
        painted[:, 40:] = 0
        tifffile.imwrite(where / "z" / f"plane_{i:03d}.tif", painted)
        tifffile.imwrite(where / "objects" / f"{i}.tif", ids[i])
    Image.fromarray(np.where(ids[:, 9] > 0, 2, 1).astype(np.uint8)).save(where / "y" / "9.png")
    for n in ("a_3.tif", "b_3.tif"):
        tifffile.imwrite(where / "double" / n, painted)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(where / "colour" / "0.png")
    return where


def recipe(folder, name="r", **changes):
    what = {
        "vemray": 1, "out": f"{name}.vemray", "classes": ["background", "ball"], "volumes": [{"volume": "em.zarr", "planes": "z"}],
        "settings": SETTINGS, **changes,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({k: v for k, v in what.items() if v is not None}))
    return load_recipe(folder / f"{name}.yaml")


def test_planes_and_objects_give_the_same_labels(folder):
    painted = sources_of(recipe(folder, volumes=[{"volume": "em.zarr", "planes": {"z": "z", "y": "y"}}]))[0]
    objects = sources_of(recipe(folder, volumes=[{"volume": "em.zarr", "planes": "objects", "values": "objects"}]))[0]
    dense = sources_of(
        recipe(folder, volumes=[{"volume": "em.zarr", "labels": "objects.zarr", "values": "objects", "region": [[0, 8], [0, 64], [0, 40]]}])
    )[0]
    from vemray.geometry import Box

    whole = Box.of(painted.shape)
    a, b, c = (np.minimum(s.labels(whole), 2) for s in (painted, objects, dense))
    np.testing.assert_array_equal(a[0:8:2, :9, :40], b[0:8:2, :9, :40])
    np.testing.assert_array_equal(b[0:8:2, :, :40], c[0:8:2, :, :40])
    assert (c[8:] == 0).all() and (c[:, :, 40:] == 0).all() and (a[:, 9] > 0).all() and (a[1, :9] == 0).all()


def test_folds(folder):
    events = []
    done = run(recipe(folder, "folded", folds=2), events.append)
    assert [t.path.rpartition("/")[2] for t in done] == ["folded-1.vemray", "folded-2.vemray"]
    held = [load_facts(t.path).training["held_back"] for t in done]
    assert held[0] != held[1] and all(held)
    (folder / "folded-2.vemray").unlink()
    first = (folder / "folded-1.vemray").read_bytes()
    assert len(run(recipe(folder, "folded", folds=2), events.append)) == 1 and first == (folder / "folded-1.vemray").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        run(recipe(folder, "folded", folds=2))


def test_a_boundary_network_from_a_label_volume(folder):
    r = recipe(
        folder, "walls", classes=None, target={"kind": "boundary"}, settings={**SETTINGS, "turns": {"sections": 0.5}},
        volumes=[{"volume": "em.zarr", "labels": "objects.zarr", "values": "objects", "axes": ["z", "y"], "region": [[0, 16], [0, 64], [0, 40]]}],
    )  # fmt: skip
    result = run(r)[0]
    facts = load(result.path).facts
    assert facts.classes == ["background", "inside", "boundary"] and facts.training["target"] == "boundary"
    assert facts.voxel_nm == (8, 8, 8) and set(result.thresholds) == set(facts.classes)


WRONG = [
    ({"classes": ["background", "ball", "ghost"]}, "nothing is painted as 'ghost'"),
    ({"volumes": [{"volume": "em.zarr"}]}, "'planes' or 'labels'"),
    ({"volumes": [{"volume": "em.zarr", "planes": "z", "labels": "objects.zarr"}]}, "one of the two"),
    ({"volumes": [{"volume": "em.zarr", "planes": "nowhere"}]}, "no folder of annotated planes"),
    ({"volumes": [{"volume": "em.zarr", "planes": "double"}]}, "another file of plane 3"),
    ({"volumes": [{"volume": "em.zarr", "planes": "colour"}]}, "8 or 16 bit grey"),
    ({"volumes": [{"volume": "em.zarr", "planes": {"x": "z"}}]}, "planes 0 to 63 along x"),
    ({"volumes": [{"volume": "em.zarr", "labels": "part.zarr"}]}, "on the voxels of the volume"),
    ({"volumes": [{"volume": "em.zarr", "labels": "objects.zarr", "region": [[20, 30], [0, 9], [0, 9]]}]}, "holds no voxel"),
    ({"volumes": [{"volume": "em.zarr", "planes": "z"}, {"volume": "other.zarr", "planes": "z"}]}, "one size of pixels"),
    ({"volumes": [{"volume": "em.zarr", "planes": "z", "valuess": 1}]}, "valuess.*Did you mean 'values'"),
    ({"target": {"kind": "affinities"}}, "values: objects"),
    ({"target": {"kind": "boundaries"}}, "target.kind"),
    ({"settings": {"turns": {"section": 1}}}, "section"),
    ({"settings": {"batches": 1}}, "Did you mean 'batch'"),
    ({"settings": {"validation": 1.5}}, "settings.validation"),
]


@pytest.mark.parametrize("change, says", WRONG, ids=[s for _, s in WRONG])
def test_mistakes(folder, change, says):
    with pytest.raises((InputError, RecipeError), match=says):
        run(recipe(folder, "wrong", **change))
    assert not (folder / "wrong.vemray").exists()


def test_the_page(folder):
    from vemray.report.training_page import write_training_page

    result = run(recipe(folder, "paged"))[0]
    page = open(write_training_page(result)).read()
    for text in ("ball", "Curves", "The worst places", "What to annotate next", "Kept for validation", "em.zarr"):
        assert text in page
    assert page.count("data:image/jpeg") == len(result.examples) > 0
    assert all(u["plane"] not in (0, 2, 4, 6) for u in result.unsure) and result.unsure


@pytest.mark.parametrize(
    "spacing, target, level",
    [((50, 4, 4), "classes", 1), ((8, 8, 8), "classes", 0), ((3, 3, 3), "classes", 1), ((4, 4, 4), "boundary", 0), ((30, 2, 2), "classes", 2)],
)
def test_classes_are_learned_from_pixels_of_about_8_nm(folder, spacing, target, level):
    name = "x".join(map(str, spacing))
    if not (folder / f"{name}.zarr").exists():
        made = create(str(folder / f"{name}.zarr"), (16, 64, 64), "uint8", Spacing(*spacing), "image", levels=3, chunk=(8, 16, 16))
        made.write(made.box, np.zeros((16, 64, 64), np.uint8))
    painted = {"volume": f"{name}.zarr", "planes": "objects", "values": "objects"}
    found = recipe(folder, volumes=[painted], target={"kind": target}, classes=["background", "ball"] if target == "classes" else None)
    assert sources_of(found)[0].volume.level == level
    assert sources_of(recipe(folder, volumes=[painted | {"level": 0}]))[0].volume.level == 0


def test_planes_painted_on_the_finest_level_serve_a_coarser_one():
    fine = np.array([[1, 1, 0, 0, 2], [1, 2, 0, 2, 2], [2, 2, 2, 0, 1]], np.uint8)
    found = coarser({4: fine, 5: np.full_like(fine, 2), 7: fine}, 2, (2, 2))
    assert list(found) == [2, 3]
    np.testing.assert_array_equal(found[3], [[1, 0, 2], [2, 2, 1]])  # ties go to what is painted
    np.testing.assert_array_equal(found[2], [[1, 2, 2], [2, 2, 1]])  # what plane 4 leaves unknown plane 5 knows
    np.testing.assert_array_equal(coarser({3: fine}, 1, (1, 1))[3], fine)
