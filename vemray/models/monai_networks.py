"""MONAI's networks as native ones: a file names one of them with its parameters, and nothing else of MONAI can be reached from a file.

A network whose normalisation takes its statistics from the tile itself (instance, group) sees all of the tile, however large: it has no halo, and its
tiles can only be blended. With batch normalisation what it sees is measured, on a copy with few channels."""

from __future__ import annotations

import functools
import json
import math
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vemray.errors import MissingExtra, ModelError

#: name -> parameters that a file may give beside classes, channels and dimensions
PARAMETERS = {
    "monai.BasicUNet": {"features", "act", "norm", "bias", "dropout", "upsample"},
    "monai.UNet": {"channels", "strides", "kernel_size", "up_kernel_size", "num_res_units", "act", "norm", "dropout", "bias", "adn_ordering"},
    "monai.DynUNet": {
        "kernel_size", "strides", "upsample_kernel_size", "filters", "dropout", "norm_name", "act_name", "res_block", "trans_bias",
    },
    "monai.SegResNet": {"init_filters", "dropout_prob", "act", "norm", "blocks_down", "blocks_up", "upsample_mode"},
    "monai.AttentionUnet": {"channels", "strides", "kernel_size", "up_kernel_size", "dropout"},
}  # fmt: skip
NORMS = ("batch", "instance", "group")
ACTIVATIONS = ("relu", "leakyrelu", "prelu", "elu", "selu", "gelu", "swish", "mish")
#: no number in a file may be larger, nor a list longer: it is built before its weights are looked at
MOST, LONGEST = 4096, 16
#: what sees farther than this, in voxels to a side, is taken to see all
FARTHEST = 2048


def usual_parameters(name: str, base: int, depth: int) -> dict[str, Any]:
    """Of a network with `base` channels at first, twice as many after each of `depth` halvings (of BasicUNet always 4), and batch normalisation, so
    that it sees no further than its tile's halo."""
    widths = [base * 2**i for i in range(depth + 1)]
    return {
        "monai.BasicUNet": {"features": [base, *[base * 2**i for i in range(5)]], "norm": "batch"},
        "monai.UNet": {"channels": widths, "strides": [2] * depth, "norm": "batch"},
        "monai.DynUNet": {
            "kernel_size": [3] * (depth + 1), "strides": [1, *[2] * depth], "upsample_kernel_size": [2] * depth, "filters": widths, "norm_name": "batch",
        },
        "monai.SegResNet": {"init_filters": base, "blocks_down": [1] + [2] * depth, "blocks_up": [1] * depth, "norm": "batch"},
        "monai.AttentionUnet": {"channels": widths, "strides": [2] * depth},
    }[name]  # fmt: skip


class MonaiNetwork(nn.Module):
    """Input (B, in_channels, [Z,] Y, X) float32, each spatial axis a multiple of `stride`; output (B, classes, [Z,] Y, X) logits."""

    def __init__(self, name: str, classes: int, in_channels: int = 1, dims: int = 2, parameters: dict[str, Any] | None = None):
        super().__init__()
        parameters = json.loads(json.dumps(parameters or {}))  # as a file holds them
        for what, value, most in (("classes", classes, 256), ("in_channels", in_channels, 256)):
            if not (isinstance(value, int) and 1 <= value <= most):
                raise ModelError(f"a network's {what} is a whole number from 1 to {most}, not {value!r}.")
        if dims not in (2, 3):
            raise ModelError(f"a network has 2 or 3 dimensions, not {dims!r}.")
        _check(name, parameters)
        self.name = name
        self.config = {"classes": classes, "in_channels": in_channels, "dims": dims, "parameters": parameters}
        self.net = _built(name, classes, in_channels, dims, parameters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    @property
    def stride(self) -> int | list[int]:
        """Total stride, one number or one an axis."""
        p, dims = self.config["parameters"], self.config["dims"]
        if self.name == "monai.BasicUNet":
            return 16
        if self.name == "monai.SegResNet":
            return 2 ** (len(self.net.blocks_down) - 1)
        steps = p["strides"][: len(p["channels"]) - 1] if "channels" in p else p["strides"]
        each = [math.prod(s if isinstance(s, int) else s[axis] for s in steps) for axis in range(dims)]
        return each[0] if len(set(each)) == 1 else each

    @property
    def halo(self) -> int | list[int] | None:
        """Voxels around an output voxel that can reach it, rounded up to the stride; None where all of the tile can."""
        return None if self.sees_all else _halo(self.name, json.dumps(self.config, sort_keys=True))

    @property
    def strides(self) -> list[int]:
        """Of each axis."""
        stride = self.stride
        return [stride] * self.config["dims"] if isinstance(stride, int) else stride

    @property
    def sees_all(self) -> bool:
        """Whether a layer takes statistics of all its input."""
        return any(isinstance(m, _STATISTICS) for m in self.modules())

    @property
    def memory(self) -> float:
        """Bytes for each voxel of the input while predicting: the most that is alive at once, and half as much again for the convolutions' own."""
        shape = [2 * s for s in self.strides]
        with torch.device("meta"):
            net = MonaiNetwork(self.name, **self.config).eval()
            x = torch.zeros((1, self.config["in_channels"], *shape))
        with torch.no_grad(), _Alive() as alive:
            y = net(x)
        if y.shape[1:] != (self.config["classes"], *shape):
            raise ModelError(
                f"{self.name} turns {tuple(x.shape)} into {tuple(y.shape)}; its output must have the input's size and a channel a class."
            )
        return 1.5 * alive.most / math.prod(shape) + 4.0 * (2 * self.config["classes"] + self.config["in_channels"])


def _check(name: str, parameters: dict[str, Any]) -> None:
    from vemray.errors import nearest

    if name not in PARAMETERS:
        raise ModelError(f"'{name}' is none of MONAI's networks that vemray runs: {', '.join(PARAMETERS)}.")
    for key, value in parameters.items():
        if key not in PARAMETERS[name]:
            raise ModelError(
                f"{name} has no parameter '{key}' here.{nearest(key, PARAMETERS[name])} It takes: {', '.join(sorted(PARAMETERS[name]))}."
            )
        if key in ("norm", "norm_name", "act", "act_name"):
            known = NORMS if key.startswith("norm") else ACTIVATIONS
            kind, arguments = (value, {}) if isinstance(value, str) else value if isinstance(value, list) and len(value) == 2 else (None, None)
            if not (isinstance(kind, str) and kind.lower() in known and isinstance(arguments, dict) and _plain(list(arguments.values()), 0)):
                raise ModelError(f"{name}: {key} is one of {', '.join(known)}, or [one of them, {{its parameters}}], not {value!r}.")
        elif not _plain(value, 2):
            raise ModelError(f"{name}: {key} cannot be {str(value)[:80]!r}: numbers from 0 to {MOST}, words, and lists of up to {LONGEST} of them.")


def _plain(value: Any, depth: int) -> bool:
    if isinstance(value, list):
        return len(value) <= LONGEST and all(_plain(v, depth - 1) for v in value) and depth >= 0
    return (
        value is None
        or isinstance(value, bool)
        or (isinstance(value, str) and len(value) < 40)
        or (isinstance(value, int | float) and 0 <= value <= MOST)
    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _built(name: str, classes: int, in_channels: int, dims: int, parameters: dict[str, Any]) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from monai.networks import nets
    except ImportError:
        raise MissingExtra("monai", "train", f"The network {name}") from None
    own = {"spatial_dims": dims, "in_channels": in_channels, "out_channels": classes}
    try:
        return getattr(nets, name.removeprefix("monai."))(**own, **{k: _tuples(v) for k, v in parameters.items()})
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError, RuntimeError, ZeroDivisionError) as e:
        raise ModelError(f"{name} cannot be built with {parameters}: {(str(e).splitlines() or [type(e).__name__])[0]}") from None


class _Alive(TorchDispatchMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self):
        super().__init__()
        self.found, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        from torch.multiprocessing.reductions import StorageWeakRef
        from torch.utils._pytree import tree_leaves

        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                self.found[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.found = {k: v for k, v in self.found.items() if not v[0].expired()}
        self.most = max(self.most, sum(n for _, n in self.found.values()))
        return out


# what a network sees -----------------------------------------------------------------------------------------------------------


def _thin(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The same network with few channels: how far it sees does not depend on them."""
    few = {
        "monai.BasicUNet": {"features": [4] * 6},
        "monai.SegResNet": {"init_filters": 4},
        "monai.DynUNet": {"filters": [4] * len(parameters.get("strides", ()))},
    }.get(name, {"channels": [4] * len(parameters.get("channels", ()))})
    return {**parameters, **few}


@functools.lru_cache(maxsize=32)
def _halo(name: str, config: str) -> int | list[int] | None:
    config = json.loads(config)
    thin = {**config, "parameters": _thin(name, config["parameters"])}
    alike = not any(isinstance(v, list) for k, p in config["parameters"].items() if isinstance(p, list) for v in (p if "kernel" not in k else [p]))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.manual_seed(0)
        net = MonaiNetwork(name, **thin).double().eval()
        out = []
        for axis, s in enumerate(net.strides[:1] if alike else net.strides):
            reach = _reach(net, axis)
            if reach > FARTHEST or not _moves_along(net, axis, -(-reach // s) * s):
                return None
            out.append(-(-reach // s) * s)
    return out[0] if len(set(out)) == 1 and isinstance(net.stride, int) else out


#: layers that look at all of their input
_STATISTICS = (nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


def _reach(net: MonaiNetwork, axis: int) -> int:
    """How far one voxel is felt along an axis, whatever its place within a stride. Weights are random and positive, all else is 0: nothing cancels, and
    what lies within reach is above 0, however little of the voxel arrives there."""
    for key, p in net.named_parameters():
        if key.endswith("bias"):
            p.zero_()
        else:
            p.uniform_(0.5, 1).div_(math.sqrt(p[0].numel()) if p.ndim > 1 else 1)
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.reset_running_stats()
    strides = net.strides
    s, n = strides[axis], 16 * strides[axis]
    while n <= 4 * FARTHEST:
        shape = list(strides)
        shape[axis] = n
        x = torch.zeros((s, net.config["in_channels"], *shape), dtype=torch.float64)
        places = n // 2 // s * s + torch.arange(s)
        for i, p in enumerate(places):
            x[i].select(axis + 1, int(p))[:] = 1
        felt = (net(x) != 0).movedim(axis + 2, 1).flatten(2).any(2)  # (phases, n)
        at = torch.arange(n)
        if not (felt[:, 0].any() or felt[:, -1].any()):
            return int(max((places - torch.where(felt, at, n).amin(1)).max(), (torch.where(felt, at, -1).amax(1) - places).max()))
        n *= 2
    return FARTHEST + 1


def _moves_along(net: MonaiNetwork, axis: int, halo: int) -> bool:
    """Whether a tile cut out of a larger one gives the same where its ends are a halo away. An interpolation that is fitted to the ends of the tile
    does not."""
    for key, p in net.named_parameters():
        p.uniform_(-1, 1).div_(math.sqrt(p[0].numel()) if p.ndim > 1 and not key.endswith("bias") else 1)
    s, shape = net.strides[axis], list(net.strides)
    shape[axis] = 2 * halo + 6 * s
    x = torch.rand((1, net.config["in_channels"], *shape), dtype=torch.float64)
    whole, part = net(x), net(x.narrow(axis + 2, 2 * s, shape[axis] - 3 * s))
    n = shape[axis] - 3 * s - 2 * halo
    a, b = whole.narrow(axis + 2, 2 * s + halo, n), part.narrow(axis + 2, halo, n)
    return bool(torch.allclose(a, b, rtol=1e-9, atol=1e-12))
