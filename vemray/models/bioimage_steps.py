"""Pre- and postprocessing of BioImage.IO packages, as steps that blocks do not change. What cannot be such a step is refused by its key.

Statistics that preprocessing wants are taken from the whole volume, whatever the package calls a sample: with those of a tile, the result would depend
on the tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic

from vemray.models.package import At
from vemray.models.process import Step, Steps

if TYPE_CHECKING:
    from vemray.models.bioimage_spec import Tensor


def before(image: Tensor, new: bool) -> tuple[Steps, bool]:
    out, jointly = [], []
    for i, at in enumerate(image.steps):
        op = at["id" if new else "name"].text()
        if op == "ensure_dtype":
            _float(at, image.steps[i - 1].get("id").value if i else None)
            continue
        made = _step(at, op, new, 1)
        if made is None or made == "softmax":
            raise at.error(f"'{op}' is not read before a network. Known: binarize, clip, ensure_dtype, fixed_zero_mean_unit_variance, scale_linear, "
                           "scale_range, sigmoid, zero_mean_unit_variance.")  # fmt: skip
        if made[0].of_the_volume:
            jointly.append(_reduced(at, image, new, first=not out))
        out += made
    return Steps(steps=out), bool(jointly) and all(jointly)


def _reduced(at: At, image: Tensor, new: bool, first: bool) -> bool:
    """The axes that statistics are taken over must be all of the image's. Returns whether the batch is among them."""
    kwargs = at.get("kwargs")
    axes, all_of = kwargs.get("axes"), [a.kind for a in image.space]
    reference = kwargs.get("reference_tensor")
    if reference and (reference.value != image.id or not first):
        raise reference.error("percentiles of another tensor than the one that is scaled are not read.")
    if not axes:
        return new
    named = [v.text() for v in axes.items()] if isinstance(axes.value, list) else list(axes.text())
    if missing := [k for k in all_of if k not in named]:
        raise axes.error(
            f"statistics for each {missing[0]} by itself cannot be kept blockwise: vemray takes them from the whole volume ({', '.join(all_of)})."
        )
    return "batch" in named or "b" in named


def after(scores: Tensor, new: bool) -> list[str | list[Step]]:
    out: list[str | list[Step]] = []
    c = scores.axis("c")
    for i, at in enumerate(scores.steps):
        op = at["id" if new else "name"].text()
        if op == "ensure_dtype":
            _float(at, scores.steps[i - 1].get("id").value if i else None)
            continue
        made = _step(at, op, new, c.size if c else 1)
        if made is None:
            raise at.error(
                f"'{op}' is not run: it is no function of one voxel. Take the network's output as it is, and do it with vemray's own steps."
            )
        if made == "softmax" and not c:
            raise at.error("the output has no channel axis for a softmax.")
        if made != "softmax" and made[0].of_the_volume:
            raise at.error(
                f"'{op}' needs statistics of the whole output, which exists only after the run. Leave it out, and rescale the result by a step."
            )
        out.append(made)
    return out


def _float(at: At, last: str | None) -> None:
    dtype = at["kwargs"]["dtype"].text()
    if dtype not in ("float32", "float64") and not (last == "binarize" and dtype != "bool"):
        raise at["kwargs"]["dtype"].error(f"'{dtype}' is not kept: networks run in float32 here.")


def _step(at: At, op: str, new: bool, channels: int) -> list[Step] | str | None:
    """A step, for each channel where it says so; 'softmax'; or None for what is not known. 0.4 and 0.5 differ little."""
    k = at.get("kwargs")
    known = {
        "binarize": ("threshold", "axis"), "clip": ("min", "max", "min_percentile", "max_percentile", "axes"), "sigmoid": (), "softmax": ("axis",),
        "scale_linear": ("gain", "offset", "axis", "axes"), "fixed_zero_mean_unit_variance": ("mean", "std", "axis"),
        "zero_mean_unit_variance": ("axes", "eps", "mode", "mean", "std"),
        "scale_range": ("axes", "eps", "mode", "min_percentile", "max_percentile", "reference_tensor"),
    }  # fmt: skip
    if op not in known:
        return None
    if odd := [str(name) for name in k.value or {} if name not in known[op]]:
        raise k.error(f"'{odd[0]}' is no parameter of {op}. It has: {', '.join(known[op]) or 'none'}.")
    if k.get("axis") and k.get("axis").value not in ("channel", "c"):
        raise k.get("axis").error(f"'{k.get('axis').value}' is not read here: values are one for all, or one for each channel.")

    def values(name: str, default: float | None = None) -> list[float]:
        given = k.get(name)
        if not given and default is not None:
            return [default]
        return [v.number() for v in given.items()] if isinstance(given.value, list) else [k[name].number()]

    def rows(**columns: list[float]) -> list[dict[str, float]]:
        n = max(map(len, columns.values()))
        if (n > 1 and n != channels) or any(len(c) not in (1, n) for c in columns.values()):
            raise k.error(f"{n} values for {channels} channel{'s' * (channels > 1)}.")
        return [{name: c[i if len(c) > 1 else 0] for name, c in columns.items()} for i in range(n)]

    def one(name: str) -> float | None:
        return k.get(name).number() if k.get(name) else None

    eps = k.get("eps").number() if k.get("eps") else 1e-6
    if k.get("mode") and k.get("mode").value not in ("fixed", "per_sample", "per_dataset"):
        raise k.get("mode").error("is fixed, per_sample or per_dataset.")
    try:
        if op == "softmax":
            return "softmax"
        if op == "sigmoid":
            return [Step(op="sigmoid")]
        if op == "binarize":
            return [Step(op="binarize", **r) for r in rows(threshold=values("threshold"))]
        if op == "scale_linear":
            return [Step(op="linear", **r) for r in rows(gain=values("gain", 1.0), offset=values("offset", 0.0))]
        if op == "clip":
            percentiles = {"low_percentile": bool(k.get("min_percentile")), "high_percentile": bool(k.get("max_percentile"))}
            if (percentiles["low_percentile"] and k.get("min")) or (percentiles["high_percentile"] and k.get("max")):
                raise k.error("a limit is a value or a percentile, not both.")
            low, high = (one(f"{end}_percentile") if one(end) is None else one(end) for end in ("min", "max"))
            return [Step(op="clip", low=low, high=high, **percentiles)]
        if op == "scale_range":
            low, high = one("min_percentile"), one("max_percentile")
            return [Step(op="range", low=0.0 if low is None else low, high=100.0 if high is None else high, eps=eps)]
        if op == "fixed_zero_mean_unit_variance" or k.get("mode").value == "fixed" or (not new and not k.get("mode")):
            given = rows(mean=values("mean"), std=values("std"))
            if any(not r["std"] > 0 for r in given):
                raise k["std"].error("must be above 0.")
            return [Step(op="linear", gain=1 / r["std"], shift=r["mean"]) for r in given]
        return [Step(op="standard", eps=eps)]
    except pydantic.ValidationError as e:
        raise k.error(e.errors()[0]["msg"]) from None
