"""Model files with random weights, for tests of everything but the quality of a network."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")


def small_model(
    path,
    *,
    classes=("background", "a", "b"),
    dims=2,
    depth=2,
    base=3,
    normalisation=None,
    voxel_nm=(8.0, 8.0, 8.0),
    channels=1,
    seed=0,
    gain=2,
    **facts,
):
    """A U-Net whose weights and batch statistics are random, saved as .vemray. Returns the path as text."""
    from vemray.models.files import Facts, Normalisation, save_native
    from vemray.models.networks import UNet

    torch.manual_seed(seed)
    net = UNet(len(classes), in_channels=channels, base=base, depth=depth, dims=dims)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
        if hasattr(m, "weight") and m.weight.ndim > 1:
            m.weight.data *= gain  # probabilities away from 1 / classes
    save_native(
        path,
        net,
        Facts(
            classes=list(classes), dims=dims, channels=channels, voxel_nm=voxel_nm, stride=net.stride, halo=net.halo,
            normalisation=normalisation or Normalisation(method="fixed", low=0, high=255), **facts,
        ),
    )  # fmt: skip
    return str(path)
