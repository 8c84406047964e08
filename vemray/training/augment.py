"""What is done to the grey values of a crop, by MONAI's transforms; and what happens to planes of a stack: one is missing, or has slipped."""

from __future__ import annotations

import threading
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as strict

from vemray.errors import MissingExtra
from vemray.training.crops import Share


@strict(frozen=True, config=ConfigDict(extra="forbid"))
class Grey:
    """What is done to grey values. Shares are of the crops, sizes in the network's input, where 0..1 is most of the volume.

    Changes of grey are small: the volume is normalised already, and what tells structures apart is often a few per cent of grey."""

    scale: Annotated[float, Field(ge=0, lt=1, description="largest relative change of all grey values")] = 0.1
    shift: Annotated[float, Field(ge=0, description="largest change by the same amount")] = 0.06
    contrast: Annotated[Share, Field(description="share with another gamma, 0.85 to 1.2")] = 0.1
    noise: Annotated[Share, Field(description="share with more noise")] = 0.5
    noise_std: Annotated[float, Field(ge=0, description="its largest standard deviation")] = 0.04
    blur: Annotated[Share, Field(description="share that is blurred a little, 0.3 to 0.8 pixels")] = 0.1
    defocus: Annotated[Share, Field(description="share out of focus, 1 to 2 pixels")] = 0.01
    patches: Annotated[Share, Field(description="share with dirt: squares of one grey, 4 to 24 pixels")] = 0.01
    missing: Annotated[Share, Field(description="share of the planes of a stack (3D, 2.5D) that are missing")] = 0.05
    slipped: Annotated[Share, Field(description="and that have slipped by up to 4 pixels")] = 0.05


class GreyAugmentation:
    def __init__(self, grey: Grey, planes: bool):
        """`planes`: the first axis of a crop, after the channels of one, is a stack of planes."""
        try:
            from monai import transforms as t
        except ImportError:
            raise MissingExtra("monai", "train", "Training") from None
        self.grey, self.planes, self.own = grey, planes, threading.local()
        self.make = lambda: t.Compose(
            [
                t.RandScaleIntensity(grey.scale, prob=1.0),
                t.RandShiftIntensity(grey.shift, prob=1.0),
                t.RandAdjustContrast(prob=grey.contrast, gamma=(0.85, 1.2), retain_stats=True),
                t.RandGaussianSmooth(sigma_x=(0.3, 0.8), sigma_y=(0.3, 0.8), sigma_z=(0.3, 0.8), prob=grey.blur),
                t.RandGaussianSmooth(sigma_x=(1.0, 2.0), sigma_y=(1.0, 2.0), sigma_z=(1.0, 2.0), prob=grey.defocus),
                t.RandCoarseDropout(holes=1, spatial_size=4, max_spatial_size=24, max_holes=4, prob=grey.patches, fill_value=0.5),
                t.RandGaussianNoise(prob=grey.noise, std=grey.noise_std),
            ]
        )

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(C, ...) float32."""
        if self.planes:
            image = self._stack(image.copy(), rng)
        if not hasattr(self.own, "transforms"):  # what they draw is theirs, so each thread has its own
            self.own.transforms = self.make()
        self.own.transforms.set_random_state(seed=int(rng.integers(1 << 31)))
        return np.ascontiguousarray(np.asarray(self.own.transforms(image)), np.float32)

    def _stack(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        stack = image[0] if image.ndim == 4 else image
        middle = len(stack) // 2
        for i in range(len(stack)):
            if image.ndim == 3 and i == middle:  # the plane that is asked about
                continue
            if rng.random() < self.grey.missing:
                stack[i] = rng.choice([0.0, 0.5])
            elif rng.random() < self.grey.slipped:
                stack[i] = np.roll(stack[i], tuple(rng.integers(-4, 5, 2)), (0, 1))
        return image
