"""On several workers: the same crops, the same loss and the same gradients as on one, and a training that outlives its workers.

On CPUs batch normalisation is each worker's own: gradients are compared with networks that have none. The loss is taken over the whole batch, so that
soft Dice and the mean over what is annotated need no allowance."""

import contextlib
import json

import numpy as np
import psutil
import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("monai")
import torch

from tests.training.test_train import CUBES, DISCS, dice, discs, half_painted
from tests.training.test_train_recipe import volume
from vemray.errors import InputError
from vemray.geometry import Box
from vemray.models.files import load, load_facts
from vemray.training import parallel
from vemray.training.recipe import load as load_recipe
from vemray.training.recipe import run, sources_of
from vemray.training.source import painted
from vemray.training.targets import Target
from vemray.training.train import Settings, _Run, prepared, train, work

BASE = {"batch": 6, "crop": 48, "base": 4, "depth": 2, "validation": 0.25}
CALM = {"network": "monai.UNet", "options": {"norm": "instance"}}


def settings(**how):
    return Settings(**{**BASE, **how})


class One(parallel.Alone):
    """A rank, without the others."""

    def __init__(self, rank, of):
        self.rank, self.of = rank, of


@pytest.mark.parametrize("teaching", [False, True])
def test_together_the_same_crops(tmp_path, teaching):
    """Also where the number of crops does not divide by that of the workers, as with half as many again for self-training."""
    task = prepared([half_painted()], DISCS, tmp_path / "a", settings(steps=10, self_training=0.5 * teaching))
    for of in (2, 3):
        whole = _Run(task, One(0, 1))._batch(7)
        parts = [_Run(task, One(r, of))._batch(7) for r in range(of)]
        assert len(whole[0]) == 9 if teaching else 6
        for i in range(3):  # images as cut, as seen, classes
            for r, part in enumerate(parts):
                np.testing.assert_array_equal(part[i], whole[i][r::of])


@pytest.mark.parametrize(("batch", "workers", "wanted"), [(6, 4, "4 or 8"), (1, 2, "to 2"), (None, 5, "5 or 10")])
def test_what_does_not_divide(tmp_path, batch, workers, wanted):
    with pytest.raises(InputError, match=f"{workers} workers.*{wanted}"):
        train([half_painted()], DISCS, tmp_path / "a.vemray", settings(batch=batch, workers=workers))


def test_too_few_of_what_they_need():
    with pytest.raises(InputError, match="need 4 GPUs, and Ray has 2"):
        parallel._with_gpus({"CPU": 8.0, "GPU": 2.0}, 4, 1, "auto")
    with pytest.raises(InputError, match="2 GPUs, and Ray has 0"):
        parallel._with_gpus({"CPU": 8.0}, 2, 1, "cuda")
    with pytest.raises(InputError, match="need 6 CPUs, and Ray has 4"):
        parallel._with_gpus({"CPU": 4.0, "GPU": 2.0}, 2, 3, "cpu")
    assert parallel._with_gpus({"CPU": 4.0, "GPU": 2.0}, 2, 1, "auto") and not parallel._with_gpus({"CPU": 4.0}, 2, 1, "auto")


# two ranks, without Ray --------------------------------------------------------------------------------------------------------

WAYS = {
    "dice_ce": (DISCS, {"loss": "dice_ce"}),
    "tversky": (DISCS, {"loss": "tversky"}),
    "self-training": (DISCS, {"self_training": 1.0, "sure": 0.51}),
    "distance": (Target("distance", ("distance",), objects=True), {"self_training": 1.0, "sure": 0.51}),
}


def first(folder, name, group):
    """Loss and gradients of a first update."""
    target, how = WAYS[name]
    run = _Run(prepared([half_painted()], target, folder / "a", settings(steps=3, **CALM, **how)), group)
    loss = run.step(1, run._batch(1))
    return {"loss": np.float64(loss), **{k: p.grad.numpy() for k, p in run.network.named_parameters()}}


def rank_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    group = parallel.Group(rank, 2, gpu=False)
    for name in WAYS:
        np.savez(folder / f"{name}-{rank}.npz", **first(folder, name, group))
    run = _Run(prepared([half_painted()], DISCS, folder / "a", settings(steps=3, self_training=1.0)), group)  # with batch normalisation
    for step, batch in run.batches(0):
        run.step(step, batch)
    np.savez(
        folder / f"state-{rank}.npz",
        **{f"{n}.{k}": v.numpy() for n, m in (("n", run.network), ("a", run.average)) for k, v in m.state_dict().items()},
    )
    recipe = load_recipe(folder / "train.yaml")
    done = work(prepared(sources_of(recipe), DISCS, folder / "calm.vemray", recipe.settings), lambda e: None, group)
    assert (done is None) == (rank == 1)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A volume, its classes, a recipe, and what two ranks make of it that nobody disturbs."""
    where = tmp_path_factory.mktemp("parallel")
    image, truth = discs()
    labels = np.where(truth, 2, 1).astype(np.uint8)
    labels[:, :, 48:] = 0
    volume(where / "em.zarr", grey(image))
    volume(where / "labels.zarr", labels, "labels")
    what = {
        "vemray": 1, "out": "killed.vemray", "classes": list(DISCS.names), "volumes": [{"volume": "em.zarr", "labels": "labels.zarr"}],
        "settings": {**BASE, "steps": 120, "checks": 24, "workers": 2},
    }  # fmt: skip
    (where / "train.yaml").write_text(yaml.safe_dump(what))
    torch.multiprocessing.spawn(rank_of_two, (where,), nprocs=2)
    return where


def grey(image):
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def test_the_update_of_one_worker(folder, tmp_path):
    for name in WAYS:
        one = first(tmp_path, name, parallel.Alone())
        two, other = (np.load(folder / f"{name}-{r}.npz") for r in (0, 1))
        largest = max(np.abs(g).max() for k, g in one.items() if k != "loss")
        assert largest > 1e-3
        for k, value in one.items():
            np.testing.assert_allclose(two[k], value, rtol=1e-4, atol=1e-5 * largest, err_msg=f"{name} {k}")
            np.testing.assert_array_equal(two[k], other[k], err_msg=f"{name} {k}")
    one, other = (np.load(folder / f"state-{r}.npz") for r in (0, 1))
    for k in one:  # ranks do not part, running statistics included
        np.testing.assert_array_equal(one[k], other[k], err_msg=k)


# through Ray Train -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_of_two():
    from vemray.run.cluster import RayRunner

    runner = RayRunner(workers=2)
    yield
    runner.close()


def kill_one():
    """kill -9 of a process that trains: one of those that this process has started."""
    for p in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # of one that is gone
            if "RayTrainWorker" in " ".join(p.cmdline()):
                return p.kill()


@pytest.mark.slow
def test_a_training_that_outlives_its_workers(folder, ray_of_two, capfd):
    """One of two workers is killed: the training ends by itself, with the very same file as one that nobody disturbed."""
    killed, events = [], []

    def watch(event):
        events.append(event)
        if not killed and event.get("step", 0) >= 20:
            killed.append(capfd.readouterr().out)
            kill_one()

    (result,) = run(load_recipe(folder / "train.yaml"), watch)
    resumed = [e["resumed"] for e in events if "resumed" in e]
    assert len(resumed) == 1 and 20 <= resumed[0] < 120 and killed == [""]
    assert result.path == str(folder / "killed.vemray") and result.best > 0.85 and result.examples
    assert (folder / "killed.vemray").read_bytes() == (folder / "calm.vemray").read_bytes()
    calm, own = (json.loads((folder / f"{n}.vemray.json").read_text()) for n in ("calm", "killed"))
    assert [{**h, "seconds": 0} for h in own["history"]] == [{**h, "seconds": 0} for h in calm["history"]] and len(own["history"]) == 24
    assert not (folder / "killed.vemray.checkpoint").exists()
    image, truth = discs(9, 1)
    facts = load_facts(result.path)
    p = load(result.path).predict(painted(grey(image), {}, CUBES, facts.normalisation).image(Box.of(image.shape))[None])[0, 1]
    assert facts.training["settings"]["workers"] == 2 and dice(p > result.thresholds["disc"][0], truth[0]) > 0.85


def refuses(task, progress, group):
    group.agreed("both are there")
    if group.rank == 1:
        raise InputError("it cannot be")
    group.agreed("and one waits for the other")


@pytest.mark.slow
def test_what_is_no_fault_of_a_worker_is_said_at_once(ray_of_two):
    with pytest.raises(InputError, match="it cannot be"):
        parallel.run(refuses, None, 2, 1, "cpu", [], lambda e: None)
