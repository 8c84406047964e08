"""The trainer learns from little, ignores what is not painted, and repeats itself."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.ops.blockwise import run, spec_of
from vemray.errors import InputError
from vemray.geometry import Spacing
from vemray.models import infer
from vemray.models.facts import Facts, Normalisation
from vemray.ops.histogram import Histogram
from vemray.training.sampling import Plane
from vemray.training.train import Settings, planes_of, train

QUICK = Settings(steps=160, batch=4, crop=48, base=4, depth=2, validation=0.25)


def planes(seed=0, lie=False):
    """Bright discs on dark, painted in the left half alone; `lie` changes what lies under the unpainted half of the truth."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(4):
        y, x = np.mgrid[:96, :96]
        truth = np.zeros((96, 96), bool)
        for cy, cx in rng.uniform(5, 91, (14, 2)):
            truth |= (y - cy) ** 2 + (x - cx) ** 2 < 40
        image = truth * 0.7 + rng.normal(0.1, 0.1, truth.shape)
        labels = np.where(truth, 2, 1).astype(np.uint8)
        if lie:
            labels[:, 48:] = 3 - labels[:, 48:]
        labels[:, 48:] = 0
        out.append(Plane(image.astype(np.float32), labels))
    return out


def test_it_learns_and_repeats_itself(tmp_path):
    a = train(planes(), ["background", "disc"], Spacing(8, 8, 8), tmp_path / "a.vemray", QUICK)
    assert a.best > 0.85
    train(planes(), ["background", "disc"], Spacing(8, 8, 8), tmp_path / "b.vemray", QUICK)
    assert (tmp_path / "a.vemray").read_bytes() == (tmp_path / "b.vemray").read_bytes()
    assert json.loads((tmp_path / "a.vemray.json").read_text())["history"]


def test_what_is_not_painted_does_not_matter(tmp_path):
    train(planes(), ["background", "disc"], Spacing(8, 8, 8), tmp_path / "a.vemray", QUICK)
    train(planes(lie=True), ["background", "disc"], Spacing(8, 8, 8), tmp_path / "b.vemray", QUICK)
    assert (tmp_path / "a.vemray").read_bytes() == (tmp_path / "b.vemray").read_bytes()


def test_unpainted_and_unknown_classes_are_named(tmp_path):
    with pytest.raises(InputError, match="nothing is painted as 'ghost'"):
        train(planes(), ["background", "disc", "ghost"], Spacing(8, 8, 8), tmp_path / "a.vemray", QUICK)
    with pytest.raises(InputError, match="holds the value 2"):
        train(planes(), ["background"], Spacing(8, 8, 8), tmp_path / "a.vemray", QUICK)


class Volume:
    def __init__(self, image):
        self.image, self.shape, self.spec = image, image.shape, spec_of(image)

    def read(self, box):
        return self.image[box.slices]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(
    "normalisation",
    [Normalisation(low=2, high=98), Normalisation(method="fixed", low=30, high=170), Normalisation(method="standard")],
    ids=lambda n: n.method,
)
def test_training_sees_what_inference_feeds(monkeypatch, normalisation, dtype):
    """Bit for bit, on a whole plane as one tile."""
    volume = Volume((np.random.default_rng(2).gamma(9, 11, (3, 64, 64)) - (40 if dtype == "int16" else 0)).astype(dtype))
    seen = []

    class Model:
        def predict(self, batch):
            seen.extend(batch[:, 0].copy())
            return np.repeat(batch * 0, 2, 1)

    facts = Facts(classes=["a", "b"], voxel_nm=(8, 8, 8), stride=1, halo=0, normalisation=normalisation)
    for name, fake in (("_facts", facts), ("_model", Model()), ("_stamp", ())):
        monkeypatch.setattr(infer, name, lambda *_, fake=fake: fake)
    histogram = run(Histogram(), {"image": volume.image}, {"image": volume.spec})
    values = {"image": volume.image} | ({"histogram": histogram} if normalisation.needs_histogram else {})
    run(infer.InferTiles(model="any", batch=1), values, {"image": volume.spec})
    found = planes_of(volume, {z: np.zeros((64, 64), np.uint8) for z in range(3)}, normalisation)
    assert len(seen) == len(found) == 3
    for plane, fed in zip(found, seen):
        assert plane.image.dtype == fed.dtype == np.float32
        np.testing.assert_array_equal(plane.image, fed)
