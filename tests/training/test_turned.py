"""3D-aware training on volumes that were turned before: from one volume and configs/rotate_for_training.yaml to a network, and nothing of what is kept for
validation in any of them."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("monai")

import vemray
from tests.ops.blockwise import run, spec_of
from vemray.errors import InputError
from vemray.geometry import Box, Spacing, turned_back
from vemray.models.files import Normalisation, load_facts
from vemray.ops import build
from vemray.plan import Options
from vemray.store.volume import create
from vemray.store.volume import open as open_volume
from vemray.training import recipe as training
from vemray.training.crops import Sampler, Shape, Turns, places
from vemray.training.source import Array, LabelVolume, Source, Turned
from vemray.training.split import hold_back
from vemray.training.targets import Target
from vemray.training.validation import views

ROOT = Path(__file__).parents[2]
FLAT = (32.0, 8.0, 8.0)
FIXED = Normalisation(method="fixed", low=0, high=1)
TWO = Target("classes", ("a", "b"))


def write(path, array, kind, spacing=FLAT):
    made = create(str(path), array.shape, str(array.dtype), Spacing(*spacing), kind, levels=1)
    made.write(made.box, array)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """em.zarr in flat voxels, its classes, and out/ of the recipe of the repository."""
    where = tmp_path_factory.mktemp("turned")
    rng = np.random.default_rng(0)
    nm = np.indices((12, 40, 44)) * np.array(FLAT)[:, None, None, None]
    truth = np.zeros(nm.shape[1:], bool)
    for c in rng.uniform(0, 380, (16, 3)):
        truth |= ((nm - c[:, None, None, None]) ** 2).sum(0) < 45**2
    write(where / "em.zarr", np.clip(rng.normal(80, 12, truth.shape) + 100 * truth, 0, 255).astype(np.uint8), "image")
    write(where / "labels.zarr", np.where(truth, 2, 1).astype(np.uint8), "labels")
    vemray.run(
        ROOT / "configs" / "rotate_for_training.yaml", {"em": where / "em.zarr", "labels": where / "labels.zarr"}, where / "turned",
        runner="serial", listeners=(lambda e: None,),
    )  # fmt: skip
    return where


def recipe(folder, name="r", **changes):
    """The first training recipe of the docs that names turned volumes, made small."""
    texts = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.S)
    what = yaml.safe_load(next(t for t in texts if "turned:" in t))
    what.update({"out": f"{name}.vemray", "settings": {"steps": 8, "batch": 2, "crop": 32, "base": 4, "depth": 2, "checks": 1}, **changes})
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(what))
    return training.load(folder / f"{name}.yaml")


def test_one_volume_and_six_turned_ones_make_a_network(folder):
    r = recipe(folder)
    sources = training.sources_of(r)
    assert len(sources) == 7 and all(s.spacing.zyx == (8, 8, 8) and s.constants == sources[0].constants for s in sources[1:])
    labels, known = (open_volume(str(folder / "turned" / "volumes" / f"{n}_x30.zarr")) for n in ("labels", "known"))
    whole = Box.of(labels.shape)
    np.testing.assert_array_equal(labels.read(whole) > 0, known.read(whole) > 0)
    result = training.run(r)[0]
    facts = load_facts(result.path)
    assert facts.voxel_nm == FLAT and len(facts.training["volumes"]) == 7
    assert list(facts.training["held_back"]) == ["em.zarr"], "a turned volume keeps nothing itself"
    with pytest.raises(InputError, match="turned by 31 degrees"):
        volumes = [v.model_dump(exclude_none=True) for v in r.volumes]
        volumes[1]["turned"]["degrees"] = 31
        training.sources_of(recipe(folder, "wrong", volumes=volumes))


def test_any_blocks_give_the_same_turned_volumes(folder):
    options = Options(block=(32, 32, 32), chunk=(16, 16, 16))
    volumes = {"em": folder / "em.zarr", "labels": folder / "labels.zarr"}
    vemray.run(
        ROOT / "configs" / "rotate_for_training.yaml", volumes, folder / "again", runner="serial", options=options, listeners=(lambda e: None,)
    )
    for name in ("em_x30", "labels_y60", "known_x90"):
        a, b = (open_volume(str(folder / out / "volumes" / f"{name}.zarr")) for out in ("turned", "again"))
        assert a.spec == b.spec and min(a.shape) > 32
        np.testing.assert_array_equal(a.read(Box.of(a.shape)), b.read(Box.of(b.shape)))


def turned_pair(degrees=30.0, about="x", **how):
    """A source that shows its own y, all annotated, and the same turned."""
    y = np.indices((24, 60, 50))[1].astype(np.float32)
    labels = np.random.default_rng(0).integers(1, 3, y.shape).astype(np.uint64)
    first = Source("v", Array(y, Spacing(*FLAT)), LabelVolume(Array(labels, Spacing(*FLAT)), **how), FIXED)
    op = build("rotate", {"degrees": degrees, "about": about})
    image = run(op, {"image": y}, {"image": spec_of(y, FLAT)})
    known = run(op, {"image": labels}, {"image": spec_of(labels, FLAT)})
    cubes = Spacing(8, 8, 8)
    return first, Source("t", Array(image, cubes), LabelVolume(Array(known, cubes), axes="zyx", **how), FIXED, Turned(first, degrees, about))


@pytest.mark.parametrize("degrees, about", [(30.0, "x"), (90.0, "x"), (60.0, "y")])
def test_what_is_held_back_is_in_no_turned_volume_either(degrees, about):
    first, turned = turned_pair(degrees, about)
    assert hold_back([first, turned], TWO, 2, 0.2)
    first.held, first.gap = Box((0, 24, 0), (24, 36, 50)), Box((0, 20, 0), (24, 40, 50))
    whole = Box.of(turned.shape)
    kept, every = turned.labels(whole), turned.annotation.read(whole)
    y = turned.image(whole)
    assert kept.any() and not ((y > 19.51) & (y < 39.49))[kept > 0].any()
    np.testing.assert_array_equal((kept == 0) & (every > 0), (y >= 19.5) & (y < 39.5) & (every > 0))
    part = Box((5, 9, 3), (40, 41, 30))
    np.testing.assert_array_equal(turned.labels(part), kept[part.slices])
    assert not turned.labels(whole, validation=True).any() and {v.source for v in views([first, turned], 2, 0, 8)} == {0}
    found = places([first, turned], TWO, 2)
    sampler, seen = Sampler([first, turned], found, Shape((16, 16)), Turns(sections=0.3), 1), []
    for number in range(40):
        crop, known, _ = sampler.draw(number)
        seen.append(crop[0][known > 0])
    seen = np.concatenate(seen)
    assert len(seen) > 1000 and not ((seen > 20.5) & (seen < 38.5)).any() and {s for p in found for s, _, _ in p.part} == {0, 1}


def test_nothing_held_back_and_only_turned_ones_judged_too():
    first, turned = turned_pair()
    assert not hold_back([first, turned], TWO, 2, 0.0) and first.held is None and turned.held is None
    assert turned.labels(Box.of(turned.shape)).any()
    before = turned.digest()
    turned.turned = Turned(first, 30.0, "y")
    assert turned.digest() != before


def test_every_nth_plane():
    labels = np.ones((20, 30, 40), np.uint8)
    made = LabelVolume(Array(labels, Spacing(8, 8, 8)), axes="zx", every=6)
    boxes = made.boxes()
    planes = {axis: sorted(b.start["zyx".index(axis)] for b, a in boxes if a == axis) for axis in "zx"}
    assert planes == {"z": [4, 10, 16], "x": [2, 8, 14, 20, 26, 32, 38]} and all(b.shape["zyx".index(a)] == 1 for b, a in boxes)
    part = LabelVolume(Array(labels, Spacing(8, 8, 8)), region=Box((5, 0, 0), (15, 30, 40)), every=6)
    assert [b for b, _ in part.boxes()] == [Box((10, 0, 0), (11, 30, 40))]
    source = Source("v", Array(np.indices(labels.shape)[0].astype(np.float32), Spacing(8, 8, 8)), made, FIXED)
    made.axes = "z"
    sampler = Sampler([source], places([source], Target("classes", ("a",)), 1), Shape((8, 8)), Turns(), 1)
    assert {float(np.median(sampler.draw(i)[0])) for i in range(40)} == {4.0, 10.0, 16.0}
    assert len({LabelVolume(Array(labels, Spacing(8, 8, 8)), every=n).digest() for n in (1, 2, 3)}) == 3


def test_a_mask_says_where_labels_count():
    """Of objects 0 is background, but outside the volume that was turned it is not."""
    ids = np.random.default_rng(0).integers(0, 3, (20, 20, 20)).astype(np.uint64)
    op = build("rotate", {"degrees": 30.0, "about": "y"})
    turned = run(op, {"image": ids}, {"image": spec_of(ids)})
    inside = run(op, {"image": np.ones(ids.shape, bool)}, {"image": spec_of(np.ones(ids.shape, bool))})
    made = LabelVolume(Array(turned, Spacing(8, 8, 8)), "objects", mask=Array(inside, Spacing(8, 8, 8)))
    np.testing.assert_array_equal(made.read(Box.of(turned.shape)), np.where(inside, turned + 1, 0))
    plain = LabelVolume(Array(turned, Spacing(8, 8, 8)), "objects")
    assert (plain.read(Box.of(turned.shape)) > 0).all() and plain.digest() != made.digest()


def test_voxel_sizes_that_a_network_cannot_tell_apart(folder):
    flat, cubes = {"volume": "em.zarr", "labels": "labels.zarr"}, {"volume": "turned/volumes/em_x30.zarr", "labels": "turned/volumes/labels_x30.zarr"}
    quick = {"steps": 8, "crop": 16}
    for a, b in (
        (flat, {**cubes, "axes": ["z", "y", "x"]}),
        (cubes, flat),
        ({**flat, "axes": ["z", "y"]}, cubes),
        (cubes, {**flat, "axes": ["z", "x"]}),
    ):
        assert len(training.sources_of(recipe(folder, "sizes", volumes=[a, b], settings=quick))) == 2
    for settings, says in (({"dims": 3}, "one voxel size"), ({"context": 1}, "one size of pixels")):
        with pytest.raises(InputError, match=says):
            training.sources_of(recipe(folder, "sizes", volumes=[flat, cubes], settings={**quick, **settings}))
    with pytest.raises(InputError, match="one size of pixels"):
        training.sources_of(recipe(folder, "sizes", volumes=[{**flat, "axes": ["y"]}, cubes], settings=quick))
    for change, says in (
        ({"turned": {"of": "e.zarr", "degrees": 30, "about": "x"}}, "no volume before it. Did you mean 'em.zarr'"),
        ({"known": "labels.zarr"}, "must lie on the voxels"),
    ):
        with pytest.raises(InputError, match=says):
            training.sources_of(recipe(folder, "sizes", volumes=[flat, {**cubes, **change}], settings=quick))
    with pytest.raises(InputError, match="'every' is for 2D"):
        training.sources_of(recipe(folder, "sizes", volumes=[{**flat, "every": 2}], settings={**quick, "dims": 3}))


def test_positions_of_a_turned_volume_on_disk(folder):
    """What the file says of voxel size and place agrees with what training takes it to be."""
    em, turned = open_volume(str(folder / "em.zarr")), open_volume(str(folder / "turned" / "volumes" / "em_y60.zarr"))
    matrix, offset = turned_back(em.spec, turned.spec, 60, "y")
    middle = (np.array(turned.shape) - 1) / 2
    np.testing.assert_allclose(matrix @ middle + offset, (np.array(em.shape) - 1) / 2)
    nm = [np.array(v.origin_nm) + (np.array(v.shape) - 1) / 2 * v.spacing.zyx for v in (em, turned)]
    np.testing.assert_allclose(*nm)
