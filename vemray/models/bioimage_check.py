"""Whether a BioImage.IO package gives here what its authors got: its test input through its own processing and weights, against its test output.

Statistics are those of the test input, as the spec says; over a volume they are the volume's."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vemray.errors import ModelError
from vemray.models.bioimage import BioImageModel, facts_of
from vemray.models.bioimage_spec import Description, describe
from vemray.models.package import At
from vemray.models.process import histogram_of


@dataclass(frozen=True)
class Checked:
    """`weights`: 'onnx' or 'torchscript'. `largest` difference anywhere; `mismatched` of the `values` are further off than both tolerances allow."""

    weights: str
    largest: float
    mismatched: int
    values: int
    absolute: float
    relative: float
    per_million: float

    @property
    def passed(self) -> bool:
        return self.mismatched <= self.per_million * self.values / 1e6

    def __str__(self) -> str:
        return (
            f"{self.weights}: {'reproduced' if self.passed else 'NOT reproduced'}: largest difference {self.largest:.3g} (allowed {self.absolute:g} + "
            f"{self.relative:g} of the value), {self.mismatched:,} of {self.values:,} values beyond it (allowed {self.per_million:g} per million)"
        )


def check(path: str | Path, device: str = "cpu") -> list[Checked]:
    """One result for each kind of weights that vemray runs. ModelError."""
    d = describe(path)
    given, expected = d.input.usual(_array(d.input.test)), d.output.usual(_array(d.output.test))
    if given.shape[1] != 1:
        raise d.input.test.error(f"the test input has {given.shape[1]} channels, its axes say one.")
    facts, out = facts_of(d), []
    for kind, entry in d.weights.items():
        got = run(BioImageModel(d, facts, kind, entry.file(), device), given)
        if got.shape != expected.shape:
            raise d.output.test.error(f"the test output is {expected.shape} as (batch, channel, space), the network gives {got.shape}.")
        absolute, relative, per_million = _tolerance(d, kind)
        off = np.abs(got.astype(np.float64) - expected)
        bad = int(np.count_nonzero(~(off <= absolute + relative * np.abs(expected.astype(np.float64)))))  # NaN is off too
        out.append(Checked(kind, float(off.max()), bad, off.size, absolute, relative, per_million))
    return out


def run(model: BioImageModel, given: np.ndarray) -> np.ndarray:
    """(batch, 1, [z,] y, x) of grey values through preprocessing, with statistics of each sample or of all, and the network."""
    x, before = np.empty(given.shape, np.float32), model.d.before
    for part, out in [(given, x)] if model.d.jointly else zip(given, x):
        before.constants(histogram_of(part) if before.needs_histogram else None)(part, out)
    return model.predict(x)


def _array(at: At) -> np.ndarray:
    """A test tensor. Never a pickled one."""
    try:
        array = np.load(io.BytesIO(at.file()), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as e:
        raise at["source"].error(f"cannot be read as a .npy array: {' '.join(str(e).split())[:200]}.") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or not array.size:
        raise at["source"].error("must hold one array of numbers.")
    return array


def _tolerance(d: Description, kind: str) -> tuple[float, float, float]:
    """Absolute, relative, mismatches per million: the first entry that is meant for these weights and this output."""
    about = d.root.get("config")
    entries = about.get("bioimageio").get("reproducibility_tolerance") if isinstance(about.get("bioimageio").value, dict) else None
    names = (("absolute_tolerance", 1e-3), ("relative_tolerance", 1e-3), ("mismatched_elements_per_million", 100.0))
    for e in entries.items() if entries else []:
        formats, outputs = e.get("weights_formats").value or [kind], e.get("output_ids").value or [d.output.id]
        if kind in formats and (outputs == "any_continuous_output" or d.output.id in outputs):
            return tuple(e.get(n).number() if e.get(n) else default for n, default in names)
    return tuple(default for _, default in names)


def must_pass(path: str | Path, results: list[Checked]) -> None:
    """ModelError where one did not."""
    if bad := [r.weights for r in results if not r.passed]:
        raise ModelError(f"{path}: its {' and '.join(bad)} weights do not reproduce its test output.")
