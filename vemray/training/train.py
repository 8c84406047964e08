"""A small trainer: a 2D U-Net from a few, partly painted planes. What is not painted is unknown, never background."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as strict

from vemray.errors import InputError, MissingExtra
from vemray.geometry import Spacing
from vemray.models.facts import normalised
from vemray.models.files import Facts, Normalisation, save_native
from vemray.training.sampling import Plane, Sampler


@strict(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """How to train. Steps, not seconds: the same seed gives the same network on the same machine."""

    steps: Annotated[int, Field(gt=0, description="optimiser steps")] = 400
    batch: Annotated[int, Field(gt=0, description="crops a step")] = 6
    crop: Annotated[int, Field(gt=0, description="edge of a crop in pixels")] = 128
    base: Annotated[int, Field(gt=0, description="channels of the first level")] = 8
    depth: Annotated[int, Field(gt=0, description="times the network halves the plane")] = 3
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    validation: Annotated[float, Field(ge=0, lt=1, description="share of the planes, in one run of the stack, kept for validation")] = 0.2
    seed: int = 1
    threads: Annotated[
        int, Field(gt=0, description="threads of the optimiser; part of what makes a training repeatable. More than one is slower on a busy machine")
    ] = 1


@dataclass
class Trained:
    path: str
    steps: int
    seconds: float
    best: float
    best_step: int
    history: list[dict]

    def __str__(self) -> str:
        return f"{self.path}: {self.steps} steps in {self.seconds:.0f} s, mean Dice on the validation planes {self.best:.3f} (step {self.best_step})"


def histogram_of(volume) -> dict:
    """Histogram of a volume (anything with .shape, .spec and .read(Box)), as the operator gives it to inference."""
    from vemray.geometry import Grid
    from vemray.ops.base import Site
    from vemray.ops.histogram import Histogram

    op, total = Histogram(), None
    grid = Grid(volume.shape, (64, 512, 512))
    for i in range(len(grid)):
        box = grid.write_box(i)
        part = op.measure(volume.read(box), site=Site(volume.shape, volume.spec.spacing, box, box, (volume.spec,)))
        total = part if total is None else total.merge(part, 0)
    return op.finish(total, (volume.spec,))


def planes_of(volume, annotations: Mapping[int, np.ndarray], normalisation: Normalisation) -> list[Plane]:
    """Annotated z planes of a volume, normalised exactly as inference will. `annotations`: z -> uint8 (Y, X)."""
    from vemray.geometry import Box

    constants = normalisation.constants(histogram_of(volume) if normalisation.needs_histogram else None)
    out = []
    _, ny, nx = volume.shape
    for z, labels in sorted(annotations.items()):
        if not 0 <= z < volume.shape[0] or labels.shape != (ny, nx):
            raise InputError(f"the annotation of plane {z} is {labels.shape}; the volume has planes 0 to {volume.shape[0] - 1} of {(ny, nx)}.")
        image = volume.read(Box((z, 0, 0), (z + 1, ny, nx)))[0]
        out.append(Plane(normalised(image, constants, np.empty((ny, nx), np.float32)), np.asarray(labels, np.uint8)))
    return out


def train(
    planes: Sequence[Plane], classes: Sequence[str], spacing: Spacing, out: str | Path, settings: Settings | None = None,
    normalisation: Normalisation | None = None, progress: Callable[[dict], None] = lambda e: None,
) -> Trained:  # fmt: skip
    """Train a 2D U-Net on `planes`, in order of z, and write it to `out` (.vemray) with a log beside it (.json).

    classes: names of the labels 1..K of the planes; the first is the background. Every class must be painted somewhere."""
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "torch", "Training") from None
    from vemray.models.networks import UNet

    settings = settings or Settings()
    painted = (
        np.bincount(np.concatenate([p.labels.ravel() for p in planes]), minlength=len(classes) + 1) if planes else np.zeros(len(classes) + 1, int)
    )
    if len(painted) > len(classes) + 1:
        raise InputError(
            f"the annotation holds the value {len(painted) - 1}, but there are {len(classes)} classes (1 to {len(classes)}; 0 is unlabelled)."
        )
    if missing := [c for c, n in zip(classes, painted[1:]) if not n]:
        raise InputError(f"nothing is painted as '{missing[0]}'. Paint some of it, or leave the class out.")
    fit, held = _split(list(planes), settings.validation, len(classes))
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    network = UNet(len(classes), base=settings.base, depth=settings.depth).to(memory_format=torch.channels_last)
    sampler = Sampler(fit, len(classes), settings.crop, network.stride, settings.seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, total_steps=settings.steps, pct_start=0.15)
    # the mean of the late weights generalises better than the last ones, and costs nothing (Izmailov et al. 2018)
    average = copy.deepcopy(network)
    best, best_state, best_step, history = -1.0, None, 0, []
    # between equal weight a pixel and equal weight a class
    weight = torch.from_numpy(np.minimum(np.sqrt(painted[1:].max() / painted[1:]), 12.0).astype(np.float32))
    start = time.time()
    for step in range(1, settings.steps + 1):
        network.train()
        images, labels = sampler.draw(settings.batch)
        x = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        loss = _loss(network(x), torch.from_numpy(labels), weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        _follow(average, network, 0.0 if step < 20 else 0.95)
        if step % max(1, settings.steps // 8) == 0 or step == settings.steps:
            dice = _dice(average, held, len(classes))
            score = float(np.nanmean(dice))
            history.append(
                {
                    "step": step,
                    "loss": round(float(loss.detach()), 4),
                    "validation_dice": round(score, 4),
                    "dice": {c: None if np.isnan(d) else round(float(d), 4) for c, d in zip(classes, dice)},
                }
            )
            progress(
                {
                    "step": step,
                    "of": settings.steps,
                    "loss": history[-1]["loss"],
                    "dice": history[-1]["validation_dice"],
                    "seconds": round(time.time() - start, 1),
                }
            )
            if score >= best:
                best, best_step, best_state = score, step, copy.deepcopy(average.state_dict())
    network.load_state_dict(best_state)
    seconds = time.time() - start
    facts = Facts(
        classes=list(classes), dims=2, voxel_nm=spacing.zyx, normalisation=normalisation or Normalisation(), activation="softmax", stride=network.stride, halo=network.halo,
        training={
            "settings": {k: getattr(settings, k) for k in settings.__dataclass_fields__}, "planes": len(fit), "validation_planes": len(held),
            "painted_pixels": {c: int(n) for c, n in zip(classes, painted[1:])}, "validation_dice": best, "step": best_step,
        },
    )  # fmt: skip
    save_native(out, network, facts)
    Path(str(out) + ".json").write_text(json.dumps({"seconds": round(seconds, 1), "history": history}, indent=1))
    return Trained(str(out), settings.steps, seconds, best, best_step, history)


def _split(planes: list[Plane], share: float, classes: int) -> tuple[list[Plane], list[Plane]]:
    """Validation planes are one run of the stack, not neighbours of training planes strewn among them: the run whose classes are painted most
    nearly in the proportions of all, without which every class is still painted. Where there is none the training planes judge themselves."""
    n = round(share * len(planes))
    counts = np.array([np.bincount(p.labels.ravel(), minlength=classes + 1)[1 : classes + 1] for p in planes], float)
    total = counts.sum(0)
    best, at = np.inf, None
    for i in range(len(planes) - n + 1 if n else 0):
        run = counts[i : i + n].sum(0)
        if ((total - run) > 0).all() and run.sum():
            off = np.abs(run / run.sum() - total / total.sum()).sum() + (run == 0).sum()
            if off < best:
                best, at = off, i
    if at is None:
        return planes, planes
    return planes[:at] + planes[at + n :], planes[at : at + n]


def _loss(scores, labels, weight=None):
    """Cross entropy, weighted by class, and soft Dice over labelled pixels (labels (B, Y, X), -1 unknown); both keep rare classes from
    vanishing."""
    import torch
    from torch.nn import functional as F

    known = labels >= 0
    entropy = F.cross_entropy(scores, labels, weight=weight, ignore_index=-1)
    p = scores.softmax(1) * known[:, None]
    t = F.one_hot(labels.clamp(min=0), scores.shape[1]).permute(0, 3, 1, 2) * known[:, None]
    both, all_ = (p * t).sum((0, 2, 3)), (p + t).sum((0, 2, 3))
    present = t.sum((0, 2, 3)) > 0
    dice = 1 - (2 * both + 1) / (all_ + 1)
    return entropy + torch.where(present, dice, torch.zeros_like(dice)).sum() / present.sum().clamp(min=1)


def _follow(average, network, keep: float) -> None:
    import torch

    with torch.no_grad():
        for a, b in zip(average.state_dict().values(), network.state_dict().values()):
            if a.dtype.is_floating_point:
                a.mul_(keep).add_(b, alpha=1 - keep)
            else:
                a.copy_(b)


def _dice(network, planes: list[Plane], classes: int) -> np.ndarray:
    """Dice of each class over the labelled pixels of whole planes; nan where a class is not painted."""
    import torch

    network.eval()
    both, sums, true = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    with torch.inference_mode():
        for p in planes:
            pad = [(0, -n % network.stride) for n in p.image.shape]
            x = torch.from_numpy(np.pad(p.image, pad, mode="reflect")[None, None].astype(np.float32))
            guess = network(x)[0].argmax(0).numpy()[: p.image.shape[0], : p.image.shape[1]] + 1
            known = p.labels > 0
            for c in range(classes):
                g, t = (guess == c + 1) & known, p.labels == c + 1
                both[c] += (g & t).sum()
                sums[c] += g.sum() + t.sum()
                true[c] += t.sum()
    return np.where(true > 0, 2 * both / np.maximum(sums, 1), np.nan)
