"""The phantom as operators without inputs, so that the engine writes it blockwise like any stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from vemray.ops.base import Analysis, ArraySpec, Filter, Site, register
from vemray.phantom.render import render, truth_table
from vemray.phantom.scene import Preset, Scene

PresetField = Annotated[Preset, Field(description="demo: a whole miniature cell; hela: a cell of natural size")]
Seed = Annotated[int, Field(ge=0, description="seed of everything random")]
VoxelNm = Annotated[tuple[float, float, float] | None, Field(description="voxel size ZYX in nm; default: the preset's")]
Shape = Annotated[tuple[int, int, int] | None, Field(description="voxels ZYX around the scene's middle; default: the whole scene")]


@register("phantom")
@dataclass(frozen=True)
class Phantom(Filter):
    """A synthetic HeLa FIB-SEM volume with its truth: outputs `em`, `cell`, `nucleus`, `mitochondria`, `lysosomes`."""

    ports = ()

    preset: PresetField = "demo"
    seed: Seed = 1
    voxel_nm: VoxelNm = None
    shape: Shape = None

    @classmethod
    def examples(cls):
        return [cls(shape=(20, 70, 70)), cls(seed=2, voxel_nm=(50.0, 32.0, 32.0), shape=(12, 60, 60))]

    @property
    def scene(self) -> Scene:
        return Scene.make(self.preset, self.seed, self.voxel_nm, self.shape)

    def output(self) -> dict[str, ArraySpec]:
        s = self.scene
        kinds = {
            "em": ("uint8", "image"),
            "cell": ("bool", "mask"),
            "nucleus": ("bool", "mask"),
            "mitochondria": ("uint64", "labels"),
            "lysosomes": ("uint64", "labels"),
        }
        return {name: ArraySpec(s.shape, dtype, s.spacing, kind) for name, (dtype, kind) in kinds.items()}

    def memory(self) -> float:
        return 20

    def __call__(self, *, site: Site) -> dict[str, np.ndarray]:
        return render(self.scene, site.write)


@register("phantom_objects")
@dataclass(frozen=True)
class PhantomObjects(Analysis):
    """The table of every object in the phantom: class, label, centre, size, what it touches, distances to the membranes."""

    version = 2
    ports = ()

    preset: PresetField = "demo"
    seed: Seed = 1
    voxel_nm: VoxelNm = None
    shape: Shape = None

    def __call__(self):
        return truth_table(Scene.make(self.preset, self.seed, self.voxel_nm, self.shape))
