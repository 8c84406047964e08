"""The page at the end of a training: curves, thresholds, the best and the worst places, and what to annotate next."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from vemray.report import plots
from vemray.report.pictures import PALETTE, data_uri, outlines, to_grey, window
from vemray.store import access
from vemray.training.train import Trained
from vemray.training.validation import Example


def write_training_page(trained: Trained, path: str | None = None) -> str:
    """Write the page beside the model (MODEL.vemray.html, or `path`) and return where."""
    import jinja2

    from vemray.models.files import load_facts

    facts = load_facts(trained.path)
    names = list(facts.classes)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("vemray.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    half = (len(trained.examples) + 1) // 2
    page = environment.get_template("training.html.j2").render(
        trained=trained,
        model=os.path.basename(trained.path),
        facts=facts,
        classes=[(n, *trained.thresholds[n], trained.history[-1]["dice"].get(n)) for n in names],
        curves=plots.training(trained.history),
        worst=[(e, _picture(e)) for e in trained.examples[:half]],
        best=[(e, _picture(e)) for e in trained.examples[half:][::-1]],
        settings={k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in (facts.training or {}).get("settings", {}).items()},
    )
    target = path or f"{trained.path}.html"
    access.write_bytes(target, page.encode())
    return target


def _picture(e: Example) -> str:
    """The image, and beside it what is annotated and what the network found: agreed, missed, falsely found; unknown left grey."""
    rows = np.flatnonzero((e.truth >= 0).any(1))
    cols = np.flatnonzero((e.truth >= 0).any(0))
    at = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)) if len(rows) else (slice(None), slice(None))
    grey = to_grey(e.image[at], *window([e.image[at]]))
    left = np.repeat(grey[..., None], 3, 2)
    right = left.astype(np.float32)
    truth, guess = e.truth[at], e.guess[at]
    wrong = (truth >= 0) & (truth != guess)
    for where, colour in (
        ((truth == guess) & (truth > 0), (70, 160, 90)),
        (wrong & (truth > 0), (215, 60, 50)),
        (wrong & (truth == 0), (60, 110, 220)),
    ):
        right[where] = 0.5 * right[where] + 0.5 * np.array(colour)
    edge = outlines(np.where(guess > 0, guess, 0).astype(np.int64))
    left[edge] = PALETTE[0]
    return data_uri(np.concatenate([left, np.full((len(left), 6, 3), 255, np.uint8), right.astype(np.uint8)], 1), "JPEG")
