"""Networks. No layer of vemray's own looks further than its receptive field (no instance or group statistics), so a tile with enough halo gives
exactly what the whole plane gives. MONAI's: monai_networks.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vemray.errors import ModelError, nearest


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) in 2D or 3D with batch normalisation and zero padding: the output has the input's size.

    Input (B, in_channels, [Z,] Y, X) float32, each spatial axis a multiple of `stride`; output (B, classes, [Z,] Y, X) logits."""

    name = "unet"

    def __init__(self, classes: int, in_channels: int = 1, base: int = 16, depth: int = 3, dims: int = 2):
        super().__init__()
        for name, value, most in (("classes", classes, 256), ("in_channels", in_channels, 256), ("base", base, 512), ("depth", depth, 7)):
            if not (isinstance(value, int) and 1 <= value <= most):
                raise ModelError(f"a U-Net's {name} is a whole number from 1 to {most}, not {value!r}.")
        if dims not in (2, 3):
            raise ModelError(f"a U-Net has 2 or 3 dimensions, not {dims!r}.")
        self.config = {"classes": classes, "in_channels": in_channels, "base": base, "depth": depth, "dims": dims}
        conv, norm, pool = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d)

        def double(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(
                conv(i, o, 3, padding=1, bias=False), norm(o), nn.ReLU(inplace=True),
                conv(o, o, 3, padding=1, bias=False), norm(o), nn.ReLU(inplace=True),
            )  # fmt: skip

        widths = [base * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList([double(in_channels, widths[0])] + [double(widths[i], widths[i + 1]) for i in range(depth)])
        self.pool = pool(2)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.reduce = nn.ModuleList([conv(widths[i + 1], widths[i], 1) for i in reversed(range(depth))])
        self.merge = nn.ModuleList([double(2 * widths[i], widths[i]) for i in reversed(range(depth))])
        self.head = conv(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else self.pool(x))  # (B, base * 2**i, Y / 2**i, X / 2**i)
            skips.append(x)
        skips.pop()
        for reduce, merge in zip(self.reduce, self.merge):
            x = merge(torch.cat([skips.pop(), self.up(reduce(x))], dim=1))
        return self.head(x)

    @property
    def stride(self) -> int:
        return 2 ** self.config["depth"]

    #: whether it takes statistics of all its tile
    sees_all = False

    @property
    def halo(self) -> int:
        """Voxels around an output voxel that can reach it, rounded up to the stride."""
        depth = self.config["depth"]
        convs = sum(2 * 2**i for i in range(depth + 1)) + sum(2 * 2**i for i in range(depth))
        reach = convs + 2**depth - 1  # pooling windows and nearest upsampling widen it by at most one window of the last level
        return -(-reach // self.stride) * self.stride

    @property
    def memory(self) -> float:
        """Bytes of activations for each voxel of the input while predicting: in the last level the skip, the upsampled, both joined, and
        what the convolution and the gaps between freed arrays need, 4 bytes a channel."""
        return 4.0 * (8 * self.config["base"] + 3 * self.config["classes"] + self.config["in_channels"])


#: networks that a native model file may name; MONAI's are imported where one is asked for
NETWORKS = ("unet", "monai.BasicUNet", "monai.UNet", "monai.DynUNet", "monai.SegResNet", "monai.AttentionUnet")


def network(name: str, **config) -> nn.Module:
    """The network of that name; ModelError where there is none, or none with this configuration. It knows its `name`, `config`, `stride`, `halo` (None
    where it sees all of its tile; that of MONAI's is measured, which takes seconds in 3D), `sees_all` and `memory`."""
    if name not in NETWORKS:
        raise ModelError(f"there is no network '{name}'.{nearest(name, NETWORKS)} There are: {', '.join(NETWORKS)}.")
    if name == "unet":
        return UNet(**config)
    from vemray.models.monai_networks import MonaiNetwork

    return MonaiNetwork(name, **config)


def usual(name: str, base: int, depth: int, options: dict[str, Any]) -> dict[str, Any]:
    """Configuration of a new network of `depth` halvings with `base` channels at first, twice as many after each; `options` go before that."""
    if name == "unet":
        if options:
            raise ModelError(f"unet has no options ({', '.join(options)}): it is made of base and depth.")
        return {"base": base, "depth": depth}
    if name not in NETWORKS:
        return {}
    from vemray.models.monai_networks import usual_parameters

    return {"parameters": usual_parameters(name, base, depth) | options}


def folded(module: nn.Module) -> nn.Module:
    """The same network for prediction: each batch normalisation, a fixed scale and shift by then, is folded into the convolution before it."""
    for sequence in [m for m in module.modules() if isinstance(m, nn.Sequential)]:
        layers, out = list(sequence), []
        for layer in layers:
            if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d) and out and isinstance(out[-1], nn.Conv2d | nn.Conv3d):
                out[-1] = nn.utils.fuse_conv_bn_eval(out[-1], layer)
            else:
                out.append(layer)
        for name in list(sequence._modules):
            del sequence._modules[name]
        for i, layer in enumerate(out):
            sequence.add_module(str(i), layer)
    return module
