"""The trainer: a network from sparse annotation. What is not annotated is unknown, never background."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.util
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as strict

from vemray.errors import InputError, MissingExtra, ModelError
from vemray.models.files import Facts, save_native
from vemray.store import access
from vemray.training import parallel, split
from vemray.training.augment import Grey, GreyAugmentation
from vemray.training.crops import Places, Sampler, Shape, Turns, places
from vemray.training.source import Source
from vemray.training.targets import Target
from vemray.training.validation import Example, Scores, judge, pixel_nm, views

#: nm that a network should see to each side: about the size of a mitochondrion. It decides the depth
REACH_NM = 400.0


@strict(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """How to train. Steps, not seconds: the same seed gives the same network on the same machine."""

    network: Annotated[
        str, Field(description="unet, or one of MONAI's: monai.BasicUNet, monai.UNet, monai.DynUNet, monai.SegResNet, monai.AttentionUnet")
    ] = "unet"
    options: Annotated[dict[str, Any], Field(description="further parameters of a network of MONAI's, as MONAI names them")] = dataclasses.field(
        default_factory=dict
    )
    dims: Annotated[Literal[2, 3], Field(description="2: plane by plane; 3: in the volume")] = 2
    context: Annotated[int, Field(ge=0, le=8, description="2.5D: neighbour planes to each side that a 2D network sees as channels")] = 0
    base: Annotated[int, Field(gt=0, description="channels of the first level")] = 16
    depth: Annotated[
        int | None,
        Field(gt=0, le=6, description="times the network halves the plane; default: 3, or 4 for pixels so small that it would not see 400 nm"),
    ] = None
    steps: Annotated[int, Field(gt=0, description="optimiser steps")] = 1000
    batch: Annotated[int | None, Field(gt=0, description="crops a step; default 6, of 3D networks 1")] = None
    crop: Annotated[
        int | tuple[int, ...] | None, Field(description="edge of a crop in voxels, or one for each axis; default 128, of 3D networks 64")
    ] = None
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    loss: Annotated[Literal["dice_ce", "tversky", "focal"], Field(description="cross entropy with: soft Dice; Tversky, which finds more; focal")] = (
        "dice_ce"
    )
    validation: Annotated[float, Field(ge=0, lt=1, description="share of the annotation, in one region of each volume, kept for validation")] = 0.2
    checks: Annotated[int, Field(gt=0, description="how often the network is held against the validation region")] = 8
    patience: Annotated[int, Field(ge=0, description="stop after so many of them without a better score; 0: never")] = 0
    self_training: Annotated[
        float, Field(ge=0, description="weight of what the network's own average is sure of where nothing is annotated (mean teacher); 0: none of it")
    ] = 0.0
    sure: Annotated[float, Field(gt=0.5, lt=1, description="for self_training: the least probability that counts as sure")] = 0.95
    turns: Turns = dataclasses.field(default_factory=Turns)
    grey: Grey = dataclasses.field(default_factory=Grey)
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: a GPU if there is one")] = "auto"
    precision: Annotated[Literal["float32", "bf16"], Field(description="of the forward pass; bf16 is faster where the machine has it")] = "float32"
    seed: Annotated[int, Field(ge=0)] = 1
    threads: Annotated[
        int, Field(gt=0, description="threads of the optimiser; part of what makes a training repeatable. More than one is slower on a busy machine")
    ] = 1
    loaders: Annotated[int, Field(gt=0, description="threads that cut crops; they change nothing in the result")] = 1
    workers: Annotated[
        int,
        Field(
            gt=0, description="data-parallel processes, each with its own GPU where there are GPUs; each cuts and computes its share of each batch"
        ),
    ] = 1
    minutes: Annotated[
        float | None, Field(gt=0, description="stop then, the learning rate having fallen by then; such a training does not repeat")
    ] = None


@dataclass
class Task:
    """What is to be trained, as it is known before the first step. `found`: where each class is annotated; `key`: what a checkpoint must agree with."""

    settings: Settings
    sources: list[Source]
    target: Target
    out: str
    found: list[Places | None]
    shape: Shape
    held_back: bool
    fold: tuple[int, int] | None
    key: str
    started: float

    @property
    def checkpoint(self) -> Path:
        return Path(f"{self.out}.checkpoint")


@dataclass
class Trained:
    """`best`: mean Dice of the classes but the background, on the validation region at `best_step`. `thresholds`: class -> (threshold, Dice)."""

    path: str
    steps: int
    seconds: float
    best: float
    best_step: int
    history: list[dict]
    thresholds: dict[str, tuple[float, float]]
    held_back: bool
    examples: list[Example] = field(default_factory=list)
    unsure: list[dict] = field(default_factory=list)

    def __str__(self) -> str:
        where = "in the validation region" if self.held_back else "on what it was trained on, since nothing could be kept for validation"
        return f"{self.path}: {self.steps} steps in {self.seconds:.0f} s, Dice {where} {self.best:.3f} (step {self.best_step})"


def train(
    sources: Sequence[Source], target: Target, out: str | Path, settings: Settings | None = None,
    progress: Callable[[dict], None] = lambda e: None, fold: tuple[int, int] | None = None, overwrite: bool = False,
) -> Trained:  # fmt: skip
    """Train a network that gives `target` on `sources` and write it to `out` (.vemray) with a log beside it (.json).

    A training that was interrupted goes on from its last check (`out`.checkpoint) and ends as it would have. `fold` (i, n): keep the i-th of n parts of
    each volume for validation. With `settings.workers` it runs in the Ray that this process is connected to, or in one of its own. InputError for a class
    that is annotated nowhere."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra("torch", "train", "Training")
    settings = settings or Settings()
    task = prepared(sources, target, out, settings, fold)
    if overwrite:
        task.checkpoint.unlink(missing_ok=True)
    if settings.workers == 1:
        result = work(task, progress)
    else:
        _checkpoint(task)  # one that does not fit is refused here
        far = dataclasses.replace(task, out=os.path.abspath(out))
        urls = [str(getattr(s.volume, "url", "")) for s in sources]
        result = parallel.run(work, far, settings.workers, settings.threads, settings.device, urls, progress)
        result.path = str(out)
    task.checkpoint.unlink(missing_ok=True)
    return result


def prepared(sources: Sequence[Source], target: Target, out: str | Path, settings: Settings, fold: tuple[int, int] | None = None) -> Task:
    started = time.time()
    parallel.share(_batch_size(settings), settings.workers)
    held_back = split.hold_back(sources, target, _indices(target), settings.validation, fold)
    found = places(sources, target, _indices(target), settings.seed)
    _check_annotated(sources, target, found)
    shape = _crop(settings, sources, _stride(_network(settings, target, sources[0])))
    return Task(settings, list(sources), target, str(out), found, shape, held_back, fold, _key(settings, sources, target, fold), started)


def work(task: Task, progress: Callable[[dict], None], group: parallel.Alone = parallel.Alone()) -> Trained | None:  # noqa: B008
    """The steps, or one rank's share of them; rank 0 gives what came of it, but does not remove the checkpoint."""
    settings, target, out = task.settings, task.target, task.out
    run = _Run(task, group)
    done = run.resume()
    if done:
        progress({"resumed": done, "of": settings.steps})
    looks = {round(settings.steps * (i + 1) / settings.checks) for i in range(settings.checks)}
    for step, batch in run.batches(done):
        loss = run.step(step, batch)
        over = settings.minutes is not None and run.elapsed >= 60 * settings.minutes
        if step in looks or over:
            if group.rank == 0:
                progress(run.check(step, loss))
                run.save(step)
            if group.agreed(over or bool(settings.patience and run.worse >= settings.patience)):
                break
    if group.rank:
        return None
    run.best_network()
    scores, examples = judge(run.predict, task.sources, run.pieces, target, len(target.names), examples=3)
    thresholds = dict(zip(target.names, scores.thresholds()))
    save_native(out, run.average, _facts(task, run, thresholds))
    unsure = run.unsure()
    result = Trained(out, run.history[-1]["step"], run.seconds, run.best, run.best_step, run.history, thresholds, task.held_back, examples, unsure)
    log = {
        "seconds": round(run.seconds, 1), "preparation_s": round(time.time() - task.started - run.seconds, 1), "history": run.history,
        "thresholds": thresholds, "unsure": unsure,
    }  # fmt: skip
    access.write_json_bytes(f"{out}.json", log)
    return result


class _Run:
    """A network in training and all that changes with it."""

    def __init__(self, task: Task, group: parallel.Alone):
        import torch

        from vemray.training import losses

        settings, sources, target, found, shape = task.settings, task.sources, task.target, task.found, task.shape
        self.task, self.group = task, group
        self.settings, self.sources, self.target, self.shape = settings, sources, target, shape
        network = _network(settings, target, sources[0])
        self.device = group.device or (settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(True, warn_only=self.device != "cpu")
        self.format = torch.channels_last if shape.dims == 2 else torch.channels_last_3d
        self.network = network.to(self.device).to(memory_format=self.format)
        self.sampler = Sampler(sources, found, shape, settings.turns, settings.seed)
        self.grey = GreyAugmentation(settings.grey, shape.dims == 3 or shape.context > 0)
        self.batch = _batch_size(settings)
        self.anywhere = Sampler(sources, [_anywhere(sources, target, settings.seed)], shape, settings.turns, settings.seed + 1)
        weight = None
        if target.exclusive:  # between equal weight a voxel and equal weight a class
            n = np.array([0 if p is None else p.weight[-1] for p in found], float)
            weight = torch.from_numpy(np.minimum(np.sqrt(n.max() / np.maximum(n, 1)), 12.0).astype(np.float32)).to(self.device)
        self.loss = losses.make(settings.loss, target.exclusive, weight)
        self.plain = losses.make(settings.loss, target.exclusive, None)
        # the mean of the late weights generalises better than the last ones, and costs nothing (Izmailov et al. 2018)
        self.average = copy.deepcopy(self.network)
        self.network, self.forward = group.joined(self.network)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
        self.pieces = views(sources, shape.dims, shape.context, _stride(network)) if group.rank == 0 else []
        self.best, self.best_step, self.best_state, self.worse = -1.0, 0, None, 0
        self.history: list[dict] = []
        self.before, self.started, self.elapsed = 0.0, time.time(), 0.0
        torch.manual_seed(settings.seed)

    @property
    def seconds(self) -> float:
        return self.before + time.time() - self.started

    # batches --------------------------------------------------------------------------------------------------------------

    def batches(self, done: int) -> Iterator[tuple[int, tuple]]:
        """(step, batch) from step `done` + 1 on, cut ahead of time by other threads."""
        s = self.settings
        ahead = 2 * s.loaders
        with ThreadPoolExecutor(s.loaders) as pool:
            waiting = {i: pool.submit(self._batch, i) for i in range(done + 1, min(done + 1 + ahead, s.steps + 1))}
            try:
                for step in range(done + 1, s.steps + 1):
                    batch = waiting.pop(step).result()
                    if step + ahead <= s.steps:
                        waiting[step + ahead] = pool.submit(self._batch, step + ahead)
                    yield step, batch
            finally:
                for w in waiting.values():
                    w.cancel()

    def _batch(self, step: int) -> tuple:
        """images as cut, images as seen, target and what is known of it: this rank's share, every `of`-th."""
        crops = [(self.sampler if i < self.batch else self.anywhere, step * self.batch + i % self.batch) for i in range(self._rows(step))]
        drawn = [sampler.draw(number) for sampler, number in crops[self.group.rank :: self.group.of]]
        clean = np.stack([image for image, _, _ in drawn])
        seen = np.stack([self.grey(image, rng) for image, _, rng in drawn])
        labels = [labels for _, labels, _ in drawn]
        if self.target.exclusive:
            return clean, seen, np.stack([self.target.indices(a) for a in labels]), None
        pixel = pixel_nm(self.sources[0], "z", self.shape.dims)
        values, known = zip(*[self.target.values(a, pixel) for a in labels])
        return clean, seen, np.stack(values), np.stack(known)

    def _rows(self, step: int) -> int:
        """Crops of a step, on all ranks."""
        return self.batch + (self.batch // 2 if self._teaches(step) else 0)

    def _teaches(self, step: int) -> bool:
        return self.settings.self_training > 0 and step > 0.3 * self.settings.steps

    # steps ----------------------------------------------------------------------------------------------------------------

    def step(self, step: int, batch: tuple) -> float:
        import torch

        s = self.settings
        clean, seen, target, known = batch
        self.elapsed = self.seconds if s.minutes is None else self.group.agreed(self.seconds)
        for group in self.optimiser.param_groups:
            group["lr"] = float(s.learning_rate * self._rate(step))
        self.network.train()
        to = lambda a: torch.from_numpy(a).to(self.device)  # noqa: E731
        x = to(seen).contiguous(memory_format=self.format)
        y, mask = to(target), None if known is None else to(known)
        with torch.autocast(self.device, torch.bfloat16, enabled=s.precision == "bf16"):
            scores = self.forward(x)
        scores, rows = scores.float(), self._rows(step)
        loss = self.loss(*self.group.whole(rows, scores, y, mask))
        if self._teaches(step):
            taught = self._taught(to(clean).contiguous(memory_format=self.format), y, mask)
            loss = loss + s.self_training * self.plain(*self.group.whole(rows, scores, *taught))
        self.optimiser.zero_grad(set_to_none=True)
        (loss * self.group.of).backward()  # each rank has its share of the gradient of the whole loss, and of these the mean is taken
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        self.group.evened(self.network)
        _follow(self.average, self.network, 0.0 if step < 20 else min(0.98, 0.9 + step / 4000))
        return float(loss.detach())

    def _taught(self, clean, target, known) -> tuple:
        """(target, known): what the average network is sure of on the crop as it was cut, the network has to find on what it sees of it (Tarvainen and Valpola 2017,
        Sohn et al. 2020); where nothing is annotated."""
        import torch

        s = self.settings
        self.average.eval()
        with torch.no_grad(), torch.autocast(self.device, torch.bfloat16, enabled=s.precision == "bf16"):
            guess = self.average(clean).float()
        if self.target.exclusive:
            p, likeliest = guess.softmax(1).max(1)
            likeliest[(p < s.sure) | (target >= 0)] = -1
            return likeliest, None
        p = guess.sigmoid()
        sure = ((p > s.sure) | (p < 1 - s.sure)) & ~known
        return (p > 0.5).float(), sure

    def _rate(self, step: int) -> float:
        """Of the largest: up within the first 15 per cent, then down as a cosine (Smith and Topin 2018)."""
        done = step / self.settings.steps
        if self.settings.minutes is not None:
            done = max(done, self.elapsed / 60 / self.settings.minutes)
        if done < 0.15:
            return 0.04 + 0.96 * (0.5 - 0.5 * np.cos(np.pi * done / 0.15))
        return max(1e-4, 0.5 + 0.5 * np.cos(np.pi * min(1.0, (done - 0.15) / 0.85)))

    # checks ---------------------------------------------------------------------------------------------------------------

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Probabilities (B, K, ...) of the average network for (B, C, ...)."""
        import torch

        self.average.eval()
        with torch.inference_mode():
            scores = self.average(torch.from_numpy(np.ascontiguousarray(image)).to(self.device).contiguous(memory_format=self.format))
            return (scores.softmax(1) if self.target.exclusive else scores.sigmoid()).float().cpu().numpy()

    def check(self, step: int, loss: float) -> dict:
        scores, _ = judge(self.predict, self.sources, self.pieces, self.target, len(self.target.names))
        score, dice = _score(scores, self.target), scores.dice()
        entry = {
            "step": step, "loss": round(loss, 4), "dice": {c: None if np.isnan(d) else round(float(d), 4) for c, d in zip(self.target.names, dice)},
            "score": round(score, 4), "seconds": round(self.seconds, 1),
        }  # fmt: skip
        self.history.append(entry)
        self.worse = 0 if score > self.best else self.worse + 1
        if score >= self.best:  # of equals the later, which has learned more
            self.best, self.best_step = score, step
            self.best_state = {k: v.detach().cpu().clone() for k, v in self.average.state_dict().items()}
        left = self.seconds / step * (self.settings.steps - step)
        return {
            "step": step,
            "of": self.settings.steps,
            "loss": entry["loss"],
            "dice": entry["score"],
            "seconds": entry["seconds"],
            "left_s": round(left),
        }

    def best_network(self) -> None:
        self.average.load_state_dict(self.best_state)
        self.network.load_state_dict(self.best_state)

    def unsure(self, most: int = 5, looked: int = 24, edge: int = 256) -> list[dict]:
        """Planes that the network is least sure of, and which are not annotated: the best to annotate next."""
        out = []
        for i, source in enumerate(self.sources):
            if self.shape.dims == 3 or source.turned is not None:  # nobody paints a turned one
                continue
            axis = source.annotation.boxes()[0][1][0]
            a = "zyx".index(axis)
            n = source.shape[a]
            done = source.annotation.done(axis)
            free = [z for z in np.unique(np.linspace(0, n - 1, looked + 2).round().astype(int)[1:-1]) if int(z) not in done]
            rng = np.random.default_rng([self.settings.seed, 23, i])
            for z in free:
                doubt = [self._doubt(source, int(z), axis, rng, edge) for _ in range(2)]
                out.append({"volume": source.name, "axis": axis, "plane": int(z), "doubt": round(float(np.mean(doubt)), 4)})
        return sorted(out, key=lambda u: -u["doubt"])[:most]

    def _doubt(self, source: Source, z: int, axis: str, rng: np.random.Generator, edge: int) -> float:
        """Mean over the least sure twentieth of a window of 1 - |2p - 1|, of the most doubtful class."""
        from vemray.training.crops import around

        stride = _stride(self.network)
        other = [n for i, n in enumerate(source.shape) if i != "zyx".index(axis)]
        edges = tuple(-(-min(edge, n) // stride) * stride for n in other)
        centre = np.array([z if i == "zyx".index(axis) else 0 for i in range(3)])
        for i, e, n in zip([i for i in range(3) if i != "zyx".index(axis)], edges, other):
            centre[i] = e // 2 + int(rng.integers(0, max(1, n - e + 1)))
        image, _ = around(source, centre, Shape(edges, self.shape.context), axis)
        doubt = (1 - np.abs(2 * self.predict(image[None])[0] - 1)).max(0).ravel()
        n = max(1, len(doubt) // 20)
        return float(np.partition(doubt, -n)[-n:].mean())

    # checkpoints ----------------------------------------------------------------------------------------------------------

    def save(self, step: int) -> None:
        import torch

        state = {
            "key": self.task.key, "step": step, "network": self.network.state_dict(), "average": self.average.state_dict(), "optimiser": self.optimiser.state_dict(),
            "best": self.best, "best_step": self.best_step, "best_state": self.best_state, "worse": self.worse, "history": json.dumps(self.history),
            "seconds": self.seconds,
        }  # fmt: skip
        data = io.BytesIO()
        torch.save(state, data)
        access.write_bytes(str(self.task.checkpoint), data.getvalue())

    def resume(self) -> int:
        """The step that the checkpoint was written after; 0 where there is none. Rank 0 reads it."""
        state = self.group.agreed(_checkpoint(self.task) if self.group.rank == 0 else None)
        if state is None:
            return 0
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best, self.best_step, self.best_state, self.worse = state["best"], state["best_step"], state["best_state"], state["worse"]
        self.history, self.before, self.started = json.loads(state["history"]), state["seconds"], time.time()
        return state["step"]


def _checkpoint(task: Task) -> dict | None:
    """InputError if it is of another training, or cannot be read."""
    import torch

    path = task.checkpoint
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["key"]
    except Exception as e:
        raise InputError(f"the checkpoint {path} cannot be read: {str(e).splitlines()[0]}. Remove it, or start anew with --overwrite.") from None
    if found != task.key:
        raise InputError(
            f"{path} is the checkpoint of a training with other settings or annotations. Remove it to start anew (or --overwrite), or choose another 'out'."
        )
    return state


def _batch_size(settings: Settings) -> int:
    return settings.batch or (6 if settings.dims == 2 else 1)


def _score(scores: Scores, target: Target) -> float:
    """Mean Dice of what is not the background; nan, where nothing is annotated, counts as nothing."""
    dice = scores.dice()
    if target.exclusive and len(dice) > 1:
        dice = dice[1:] if not np.isnan(dice[1:]).all() else dice
    return float(np.nanmean(dice)) if not np.isnan(dice).all() else 0.0


def _indices(target: Target) -> int:
    """Classes of target.indices."""
    return len(target.names) if target.exclusive else 2


def _check_annotated(sources: Sequence[Source], target: Target, found: list[Places | None]) -> None:
    if not sources:
        raise InputError("there is nothing to train on: name a volume.")
    most = max((int(s.annotation.largest()) for s in sources), default=0)
    if not target.objects and most > len(target.names):
        raise InputError(
            f"the annotation holds the value {most}, but there are {len(target.names)} classes (1 to {len(target.names)}; 0 is unlabelled)."
        )
    names = target.names if target.exclusive else ("background", "object")
    if missing := [c for c, p in zip(names, found) if p is None]:
        raise InputError(f"nothing is painted as '{missing[0]}'. Paint some of it, or leave the class out.")


def _anywhere(sources: Sequence[Source], target: Target, seed: int, n: int = 4096) -> Places:
    rng = np.random.default_rng([seed, 19])
    part = []
    for i, s in enumerate(sources):
        axes = "".join(dict.fromkeys(a for _, axes in s.annotation.boxes() for a in axes))
        part.append((i, axes, np.stack([rng.integers(0, m, n) for m in s.shape], 1).astype(np.int32)))
    return Places(part, np.cumsum([float(np.prod(s.shape)) for s in sources]))


def _network(settings: Settings, target: Target, source: Source):
    import torch

    from vemray.models.networks import network, usual

    if settings.dims == 3 and settings.context:
        raise InputError("'context' is for 2D networks: a 3D one sees its neighbours anyway.")
    torch.manual_seed(settings.seed)
    channels = 2 * settings.context + 1 if settings.dims == 2 else 1
    try:
        own = usual(settings.network, settings.base, settings.depth or _depth(source), settings.options)
        return network(settings.network, classes=len(target.names), in_channels=channels, dims=settings.dims, **own)
    except ModelError as e:
        raise InputError(f"settings.network: {e}") from None


def _stride(network) -> int:
    """What every edge is to be a multiple of."""
    return network.stride if isinstance(network.stride, int) else math.lcm(*network.stride)


def _depth(source: Source) -> int:
    """Of a U-Net: 3, which sees about 44 pixels to each side, or 4, which sees 92."""
    return 3 if 44 * min(source.spacing.zyx) >= REACH_NM else 4


def _crop(settings: Settings, sources: Sequence[Source], stride: int) -> Shape:
    dims = settings.dims
    asked = settings.crop or (128 if dims == 2 else 64)
    edges = asked if isinstance(asked, tuple) else (asked,) * dims
    if len(edges) != dims:
        raise InputError(f"crop {edges} has {len(edges)} edges; a {dims}D network takes {dims}.")
    smallest = [min(s.shape[3 - dims + i] for s in sources) for i in range(dims)]
    return Shape(tuple(max(stride, min(e, n) // stride * stride) for e, n in zip(edges, smallest)), settings.context)


def _key(settings: Settings, sources: Sequence[Source], target: Target, fold) -> str:
    """What a checkpoint must agree with: all that the training is made of, but for how long it lasts by the clock."""
    what = {"settings": dataclasses.asdict(settings), "target": dataclasses.asdict(target), "fold": fold, "sources": [s.digest() for s in sources]}
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _facts(task: Task, run: _Run, thresholds: dict[str, tuple[float, float]]) -> Facts:
    settings, sources, target, network = task.settings, task.sources, task.target, run.average
    names = target.names if target.exclusive else ("background", "object")
    chosen = {"batch": run.batch, "crop": task.shape.edges, "depth": settings.depth or _depth(sources[0])}  # where nothing was said
    return Facts(
        classes=list(target.names), dims=settings.dims, channels=2 * settings.context + 1 if settings.dims == 2 else 1,
        voxel_nm=sources[0].spacing.zyx, normalisation=sources[0].normalisation,
        activation="softmax" if target.exclusive else "sigmoid", stride=network.stride, halo=network.halo,
        training={
            "settings": dataclasses.asdict(settings) | chosen, "target": target.kind, "volumes": [s.name for s in sources],
            "annotated_voxels": {c: int(p.weight[-1]) for c, p in zip(names, task.found) if p is not None},
            "held_back": {s.name: str(s.held) for s in sources if s.held is not None and s.held.size} if task.held_back else {}, "fold": task.fold,
            "validation_dice": run.best, "step": run.best_step, "thresholds": {c: t for c, (t, _) in thresholds.items()},
        },
        background=target.kind == "classes" or (target.kind == "boundary" and len(target.names) > 2),
        context=settings.context,
    )  # fmt: skip


def _follow(average, network, keep: float) -> None:
    import torch

    with torch.no_grad():
        for a, b in zip(average.state_dict().values(), network.state_dict().values()):
            if a.dtype.is_floating_point:
                a.mul_(keep).add_(b, alpha=1 - keep)
            else:
                a.copy_(b)
