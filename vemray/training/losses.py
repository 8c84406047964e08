"""Losses that leave out what is not annotated and do not lose rare classes."""

from __future__ import annotations

from collections.abc import Callable

from vemray.errors import MissingExtra


def make(name: str, exclusive: bool, weight) -> Callable:
    """loss(scores (B, K, ...), target, known). Exclusive classes: target int64 (B, ...), -1 unknown, `known` unused; `weight` (K,) of the classes.
    Else target float32 (B, K, ...) in 0..1 and known bool like it.

    dice_ce: cross entropy and soft Dice of the batch (Milletari et al. 2016); tversky (Salehi et al. 2017) and focal (Lin et al. 2017) in Dice's place,
    as MONAI has them. What is not exclusive: binary cross entropy."""
    from torch.nn import functional as F

    if not exclusive:

        def binary(scores, target, known):
            loss = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
            return (loss * known).sum() / known.sum().clamp(min=1)

        return binary
    try:
        from monai import losses
    except ImportError:
        raise MissingExtra("monai", "train", "Training") from None
    # of a class that a batch has nothing of, what is falsely taken for it costs, up to 1
    overlap = {"softmax": True, "batch": True, "smooth_nr": 1.0, "smooth_dr": 1.0, "reduction": "mean"}
    extra = {
        "dice_ce": lambda: losses.DiceLoss(**overlap),
        "tversky": lambda: losses.TverskyLoss(alpha=0.3, beta=0.7, **overlap),
        "focal": lambda: losses.FocalLoss(use_softmax=True, gamma=2.0, reduction="mean"),
    }[name]()

    def loss(scores, target, known=None):
        index = (target.flatten() >= 0).nonzero()[:, 0]  # all that is known, as one row
        if not len(index):
            return scores.sum() * 0
        flat, wanted = scores.movedim(1, -1).reshape(-1, scores.shape[1])[index], target.flatten()[index]
        hot = F.one_hot(wanted, scores.shape[1]).to(flat.dtype)
        return F.cross_entropy(flat, wanted, weight=weight) + extra(flat.T[None], hot.T[None])

    return loss
