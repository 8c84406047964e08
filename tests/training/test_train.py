"""The trainer learns from little, ignores what is not painted, repeats itself, and goes on where it was stopped."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("monai")

from tests.ops.blockwise import run, spec_of
from vemray.errors import InputError
from vemray.geometry import Box, Spacing
from vemray.models import infer, member
from vemray.models.files import Facts, Model, Normalisation, load
from vemray.ops.histogram import Histogram
from vemray.training.source import Array, LabelVolume, Source, painted
from vemray.training.targets import Target
from vemray.training.train import Settings, train

QUICK = Settings(steps=120, batch=4, crop=48, base=4, depth=2, validation=0.25)
FIXED = Normalisation(method="fixed", low=0, high=1)
DISCS = Target("classes", ("background", "disc"))
CUBES = Spacing(8, 8, 8)


def discs(seed=0, n=4, edge=96):
    """(image, truth) of bright discs on dark."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((n, edge, edge), bool)
    y, x = np.mgrid[:edge, :edge]
    for plane in truth:
        for cy, cx in rng.uniform(5, edge - 5, (14, 2)):
            plane |= (y - cy) ** 2 + (x - cx) ** 2 < 40
    return (truth * 0.7 + rng.normal(0.1, 0.1, truth.shape)).astype(np.float32), truth


def half_painted(lie=False):
    """The left half alone is painted; `lie` changes what lies under the unpainted half of the truth."""
    image, truth = discs()
    labels = np.where(truth, 2, 1).astype(np.uint8)
    if lie:
        labels[:, :, 48:] = 3 - labels[:, :, 48:]
    labels[:, :, 48:] = 0
    return painted(image, dict(enumerate(labels)), CUBES, FIXED)


def made(folder, name="a", source=None, settings=QUICK, target=DISCS, **how):
    return train([source or half_painted()], target, folder / f"{name}.vemray", settings, **how)


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / max(1, np.count_nonzero(a) + np.count_nonzero(b))


def test_it_learns_and_repeats_itself(tmp_path):
    a = made(tmp_path)
    assert a.best > 0.85 and a.held_back
    made(tmp_path, "b", settings=Settings(**{**vars(QUICK), "loaders": 3}))  # however many threads cut crops
    a, b = (load(tmp_path / f"{n}.vemray") for n in "ab")
    for name, value in a.module.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), b.module.state_dict()[name].numpy(), err_msg=name)
    assert json.loads((tmp_path / "a.vemray.json").read_text())["history"]
    assert not (tmp_path / "a.vemray.checkpoint").exists()


def test_what_is_not_painted_does_not_matter(tmp_path):
    made(tmp_path, "a")
    made(tmp_path, "b", half_painted(lie=True))
    assert (tmp_path / "a.vemray").read_bytes() == (tmp_path / "b.vemray").read_bytes()


def test_unpainted_and_unknown_classes_are_named(tmp_path):
    with pytest.raises(InputError, match="nothing is painted as 'ghost'"):
        made(tmp_path, target=Target("classes", ("background", "disc", "ghost")))
    with pytest.raises(InputError, match="holds the value 2"):
        made(tmp_path, target=Target("classes", ("background",)))
    with pytest.raises(InputError, match="no network 'unett'. Did you mean 'unet'"):
        made(tmp_path, settings=Settings(network="unett"))
    with pytest.raises(InputError, match="context"):
        made(tmp_path, settings=Settings(dims=3, context=1))


@pytest.mark.parametrize("how", [{"self_training": 0.5}, {"loss": "tversky"}, {"loss": "focal"}, {"precision": "bf16"}], ids=str)
def test_ways_of_training(tmp_path, how):
    result = made(tmp_path, settings=Settings(**{**vars(QUICK), **how}))
    image, truth = discs(9, 1)
    p = load(tmp_path / "a.vemray").predict(image[None])[0, 1]
    assert dice(p > result.thresholds["disc"][0], truth[0]) > 0.85


def test_self_training_looks_where_nothing_is_painted(tmp_path):
    """The network differs from one that is trained on other grey values there; without it, such a place is never in a crop's loss."""

    def source(other):
        image, truth = discs()
        labels = np.where(truth, 2, 1).astype(np.uint8)
        labels[:, :, 20:] = 0
        image[:, :, 80:] = other  # out of the reach of what is painted
        return painted(image, dict(enumerate(labels)), CUBES, FIXED)

    settings = {**vars(QUICK), "steps": 60, "crop": 16, "validation": 0.0, "turns": {"elastic": 0.0, "rotate": 0.0}}
    for weight, same in ((0.0, True), (1.0, False)):
        a, b = (made(tmp_path, f"{weight}-{v}", source(v), Settings(**{**settings, "self_training": weight})).path for v in (0.0, 0.9))
        a, b = (load(p).module.state_dict() for p in (a, b))
        assert all(np.array_equal(a[k].numpy(), b[k].numpy()) for k in a) == same


def test_three_dimensions(tmp_path):
    rng = np.random.default_rng(3)
    z, y, x = np.mgrid[:32, :48, :48]
    ids = np.zeros((32, 48, 48), np.uint16)
    for i, c in enumerate(rng.uniform(4, 28, (12, 3))):
        ids[((z - c[0]) ** 2 + (y - c[1] * 1.5) ** 2 + (x - c[2] * 1.5) ** 2) < 30] = i + 1
    image = ((ids > 0) * 0.7 + rng.normal(0.1, 0.1, ids.shape)).astype(np.float32)

    def source():
        return Source("balls", Array(image, CUBES), LabelVolume(Array(ids, CUBES), "objects"), FIXED)

    settings = Settings(dims=3, steps=60, batch=2, crop=16, base=4, depth=1, validation=0.25)
    result = made(tmp_path, "classes", source(), settings, Target("classes", ("background", "ball"), objects=True))
    p = load(result.path).predict(image[None, None])[0, 1]
    assert result.held_back and dice(p > result.thresholds["ball"][0], ids > 0) > 0.85
    for target in (
        Target("boundary", ("background", "inside", "boundary"), objects=True),
        Target("affinities", ("affinity_z", "affinity_y", "affinity_x"), objects=True),
        Target("distance", ("distance",), objects=True, scale_nm=20),
    ):
        model = load(made(tmp_path, target.kind, source(), settings, target).path)
        p = model.predict(image[None, None])[0]
        assert p.shape == (len(target.names), *image.shape) and 0 <= p.min() and p.max() <= 1
        inside = p[-1] if target.kind != "boundary" else p[1] + p[2]
        assert inside[ids > 0].mean() > inside[ids == 0].mean() + 0.1


def test_planes_of_three_directions(tmp_path):
    image, truth = discs(1, 48, 48)
    labels = np.where(truth, 2, 1).astype(np.uint8)
    planes = {"z": {3: labels[3], 20: labels[20]}, "y": {7: labels[:, 7]}, "x": {11: labels[:, :, 11], 40: labels[:, :, 40]}}
    source = painted(image, planes, CUBES, FIXED)
    whole = source.labels(Box.of(image.shape))
    known = np.zeros(image.shape, bool)
    known[[3, 20]] = known[:, 7] = known[:, :, [11, 40]] = True
    np.testing.assert_array_equal(whole, np.where(known, labels, 0))
    made(tmp_path, source=source, settings=Settings(**{**vars(QUICK), "steps": 4, "crop": 32}))
    with pytest.raises(InputError, match="plane 48 along y"):
        painted(image, {"y": {48: labels[:, 7]}}, CUBES, FIXED)


def test_early_stopping(tmp_path):
    result = made(tmp_path, settings=Settings(**{**vars(QUICK), "steps": 400, "checks": 80, "patience": 2, "learning_rate": 1e-7}))
    assert result.steps < 400 and result.best_step <= result.steps


def test_minutes(tmp_path):
    result = made(tmp_path, settings=Settings(**{**vars(QUICK), "steps": 100000, "checks": 100000, "minutes": 0.02}))
    assert result.steps < 1000 and result.seconds < 60


SCRIPT = """
import sys; sys.path.insert(0, {here!r})
from pathlib import Path
from tests.training.test_train import made, QUICK, Settings
made(Path({folder!r}), settings=Settings(**{{**vars(QUICK), "steps": 60, "checks": 12}}), progress=lambda e: print(e, flush=True))
"""


def test_kill_nine_and_the_same_network(tmp_path):
    """Killed between two checks: the same call ends with the network of a training that nobody disturbed."""
    from pathlib import Path

    here = str(Path(__file__).parents[2])
    settings = Settings(**{**vars(QUICK), "steps": 60, "checks": 12})
    made(tmp_path, "calm", settings=settings)
    (tmp_path / "killed").mkdir()
    script = SCRIPT.format(here=here, folder=str(tmp_path / "killed"))
    p = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in p.stdout:
        if "'step': 20" in line:
            break
    time.sleep(0.2)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert (tmp_path / "killed" / "a.vemray.checkpoint").exists() and not (tmp_path / "killed" / "a.vemray").exists()
    with pytest.raises(InputError, match="other settings or annotations"):
        made(tmp_path / "killed", settings=Settings(**{**vars(settings), "seed": 2}))
    events = []
    made(tmp_path / "killed", settings=settings, progress=events.append)
    assert events[0].get("resumed", 0) >= 20
    a, b = load(tmp_path / "calm.vemray").module.state_dict(), load(tmp_path / "killed" / "a.vemray").module.state_dict()
    for name, value in a.items():
        np.testing.assert_array_equal(value.numpy(), b[name].numpy(), err_msg=name)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(
    "normalisation",
    [Normalisation(low=2, high=98), Normalisation(method="fixed", low=30, high=170), Normalisation(method="standard")],
    ids=lambda n: n.method,
)
def test_training_sees_what_inference_feeds(monkeypatch, normalisation, dtype):
    """Bit for bit, on a whole plane as one tile."""
    image = (np.random.default_rng(2).gamma(9, 11, (3, 64, 64)) - (40 if dtype == "int16" else 0)).astype(dtype)
    seen = []

    class Fake(Model):
        def predict(self, batch):
            seen.extend(batch[:, 0].copy())
            return np.repeat(batch * 0, 2, 1)

    facts = Facts(classes=["a", "b"], voxel_nm=(8, 8, 8), stride=1, halo=0, normalisation=normalisation)
    for module, name, fake in ((member, "_facts", facts), (member, "_model", Fake()), (member.files, "stamp", ())):
        monkeypatch.setattr(module, name, lambda *_, fake=fake: fake)
    spec = spec_of(image)
    histogram = run(Histogram(), {"image": image}, {"image": spec})
    values = {"image": image} | ({"histogram": histogram} if normalisation.needs_histogram else {})
    run(infer.InferTiles(model="any", batch=1), values, {"image": spec})
    source = painted(image, {0: np.ones((64, 64), np.uint8)}, spec.spacing, normalisation)
    assert len(seen) == 3
    for z, fed in enumerate(seen):
        found = source.image(Box((z, 0, 0), (z + 1, 64, 64)))[0]
        assert found.dtype == fed.dtype == np.float32
        np.testing.assert_array_equal(found, fed)
