"""Whether a BioImage.IO package gives here what its authors got: its test input through its own processing and weights, against its test output.

Statistics are those of the test input, as the spec says; over a volume they are the volume's."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vemray.errors import ModelError
from vemray.models.bioimage import BioImageModel, facts_of, finished, onnx_session
from vemray.models.bioimage_spec import Tensors, describe, describe_several
from vemray.models.package import At
from vemray.models.process import Steps, histogram_of
from vemray.models.torchscript import Script


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
    """One result for each kind of weights that vemray runs; where there are several outputs, for each of those. ModelError."""
    if several := describe_several(path):
        return [one for kind, entry in several.weights.items() for one in _check_several(several, kind, entry, device)]
    d = describe(path)
    given, expected = d.input.usual(_array(d.input.test)), d.output.usual(_array(d.output.test))
    if given.shape[1] != 1:
        raise d.input.test.error(f"the test input has {given.shape[1]} channels, its axes say one.")
    facts, out = facts_of(d), []
    for kind, entry in d.weights.items():
        got = run(BioImageModel(d, facts, kind, entry.file(), device), given)
        if got.shape != expected.shape:
            raise d.output.test.error(f"the test output is {expected.shape} as (batch, channel, space), the network gives {got.shape}.")
        out.append(_compared(kind, got, expected, _tolerance(d.root, d.output.id, kind)))
    return out


def _compared(what: str, got: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float, float]) -> Checked:
    absolute, relative, per_million = tolerance
    off = np.abs(got.astype(np.float64) - expected)
    bad = int(np.count_nonzero(~(off <= absolute + relative * np.abs(expected.astype(np.float64)))))  # NaN is off too
    return Checked(what, float(off.max()), bad, off.size, absolute, relative, per_million)


def _check_several(d: Tensors, kind: str, entry: At, device: str) -> list[Checked]:
    """A network of several images in or out, which takes and gives them in the order of the description."""
    if kind == "onnx":
        session = onnx_session(entry.file(), device, entry.key)
        if len(session.get_inputs()) != len(d.inputs):
            raise entry.error(f"the graph takes {len(session.get_inputs())} inputs, the description has {len(d.inputs)}.")
    else:
        script = Script(entry.file(), device, f"{d.root.package.where}: {entry.key}")
    given = [t.own(prepared(t.usual(_array(t.test)), steps, jointly)) for t, steps, jointly in d.inputs]
    if kind == "onnx":
        try:
            made = session.run(None, {i.name: x for i, x in zip(session.get_inputs(), given)})
        except Exception as e:
            raise entry.error(f"the network cannot take its test inputs: {str(e).splitlines()[0]}") from None
    else:
        made = script.all(*given)
    if len(made) < len(d.outputs):
        raise entry.error(f"the network gives {len(made)} tensors, the description has {len(d.outputs)}.")
    out = []
    for (t, after), y in zip(d.outputs, made):
        got, expected = finished(t.usual(y), after), t.usual(_array(t.test))
        if got.shape != expected.shape:
            raise t.test.error(f"the test output is {expected.shape} as (batch, channel, space), the network gives {got.shape}.")
        out.append(_compared(f"{kind}, {t.id}", got, expected, _tolerance(d.root, t.id, kind)))
    return out


def prepared(given: np.ndarray, before: Steps, jointly: bool) -> np.ndarray:
    """(batch, channel, [z,] y, x) of grey values after preprocessing, with statistics of each sample or of all."""
    x = np.empty(given.shape, np.float32)
    for part, out in [(given, x)] if jointly else zip(given, x):
        before.constants(histogram_of(part) if before.needs_histogram else None)(part, out)
    return x


def run(model: BioImageModel, given: np.ndarray) -> np.ndarray:
    return model.predict(prepared(given, model.d.before, model.d.jointly))


def _array(at: At) -> np.ndarray:
    """A test tensor. Never a pickled one."""
    try:
        array = np.load(io.BytesIO(at.file()), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as e:
        raise at["source"].error(f"cannot be read as a .npy array: {' '.join(str(e).split())[:200]}.") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or not array.size:
        raise at["source"].error("must hold one array of numbers.")
    return array


def _tolerance(root: At, output: str, kind: str) -> tuple[float, float, float]:
    """Absolute, relative, mismatches per million: the first entry that is meant for these weights and this output."""
    about = root.get("config")
    entries = about.get("bioimageio").get("reproducibility_tolerance") if isinstance(about.get("bioimageio").value, dict) else None
    names = (("absolute_tolerance", 1e-3), ("relative_tolerance", 1e-3), ("mismatched_elements_per_million", 100.0))
    for e in entries.items() if entries else []:
        formats, outputs = e.get("weights_formats").value or [kind], e.get("output_ids").value or [output]
        if kind in formats and (outputs == "any_continuous_output" or output in outputs):
            return tuple(e.get(n).number() if e.get(n) else default for n, default in names)
    return tuple(default for _, default in names)


def must_pass(path: str | Path, results: list[Checked]) -> None:
    """ModelError where one did not."""
    if bad := [r.weights for r in results if not r.passed]:
        raise ModelError(f"{path}: its {' and '.join(bad)} weights do not reproduce its test output.")
