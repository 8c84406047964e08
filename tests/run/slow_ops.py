"""Operators for tests of the engine, loaded through VEMRAY_PLUGINS: one that takes its time and counts, one that fails on a block, a network
that counts."""

import os
import signal
import time
from dataclasses import dataclass

import numpy as np

from vemray.models.infer import InferTiles
from vemray.ops.base import Filter, Measure, register


def note(site) -> None:
    """A line for each block that is begun: its box and the process."""
    if log := os.environ.get("VEMRAY_TEST_COUNT"):
        with open(log, "a") as f:
            f.write(f"{site.write} {os.getpid()}\n")


@register("slow_copy")
@dataclass(frozen=True)
class SlowCopy(Filter):
    """The mask again, after a while; each call leaves a line in the file VEMRAY_TEST_COUNT names."""

    seconds: float = 0.1
    bias: int = 0

    def output(self, image):
        return image

    def memory(self, image):
        return 2

    def __call__(self, image, *, site):
        note(site)
        time.sleep(self.seconds)
        return image.copy()


@register("failing")
@dataclass(frozen=True)
class Failing(Filter):
    """Fails where a block begins at `z`."""

    z: int = 0

    def output(self, image):
        return image

    def memory(self, image):
        return 2

    def __call__(self, image, *, site):
        if site.write.start[0] == self.z:
            raise ValueError("this block is poisoned")
        return np.array(image)


@register("counted_infer", hidden=False)
@dataclass(frozen=True)
class CountedInfer(InferTiles):
    """A real network in a real actor; each block leaves a line in the file VEMRAY_TEST_COUNT names."""

    def __call__(self, *arrays, site):
        note(site)
        return super().__call__(*arrays, site=site)

    __hash__ = InferTiles.__hash__


@register("poisoned_infer", hidden=False)
@dataclass(frozen=True)
class PoisonedInfer(InferTiles):
    """A network that fails on blocks that begin (along z, or at z,y,x) where the file `poison` says, or takes its process along where that says "deadly" too; each
    block leaves a line in `poison`.log."""

    poison: str = ""

    def __call__(self, *arrays, site):
        with open(self.poison + ".log", "a") as f:
            f.write(f"{site.write}\n")
        words = open(self.poison).read().split()
        if str(site.write.start[0]) in words or ",".join(map(str, site.write.start)) in words:
            if "deadly" in words:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("NaN in the weights")
        return super().__call__(*arrays, site=site)

    __hash__ = InferTiles.__hash__


class CannotMerge:
    def merge(self, upper, axis):
        raise ValueError("this cannot be merged")


@register("bad_merge")
@dataclass(frozen=True)
class BadMerge(Measure):
    """A measure whose partials do not merge."""

    def memory(self, image):
        return 1

    def measure(self, image, *, site):
        return CannotMerge()
