"""The phantom as operators without inputs, so that the engine writes it blockwise like any stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from vemray.ops.base import Analysis, ArraySpec, Filter, Site, register
from vemray.phantom.objects import truth_table
from vemray.phantom.render import render
from vemray.phantom.scene import Around, Preset, Relation, Scene

PresetField = Annotated[
    Preset, Field(description="demo: a whole miniature cell; pores: the same with nuclear pores; hela: a cell of natural size, with pores")
]
Seed = Annotated[int, Field(ge=0, description="seed of everything random")]
VoxelNm = Annotated[tuple[float, float, float] | None, Field(description="voxel size ZYX in nm; default: the preset's")]
Shape = Annotated[tuple[int, int, int] | None, Field(description="voxels ZYX around the scene's middle; default: the whole scene")]
AroundField = Annotated[Around, Field(description="what `shape` is cut around: the middle of the cell, or a place on its nuclear envelope")]
Pores = Annotated[bool | None, Field(description="draw nuclear pores; default: where the preset has them and voxels are 16 nm or finer")]
Relations = Annotated[
    tuple[Relation, ...] | None,
    Field(
        description="what is planted: pores denser in the nucleus' smaller lobe; mitochondria whose surface-to-volume ratio falls with the distance to the "
        "nearest membrane; default: all that the preset has"
    ),
]


def _scene(op) -> Scene:
    return Scene.make(op.preset, op.seed, op.voxel_nm, op.shape, op.around, op.pores, op.relations)


@register("phantom")
@dataclass(frozen=True)
class Phantom(Filter):
    """A synthetic HeLa FIB-SEM volume with its truth: outputs `em`, `cell`, `nucleus`, `mitochondria`, `lysosomes` and, with
    nuclear pores, `pores` and `pockets`."""

    ports = ()

    preset: PresetField = "demo"
    seed: Seed = 1
    voxel_nm: VoxelNm = None
    shape: Shape = None
    around: AroundField = "cell"
    pores: Pores = None
    relations: Relations = None

    @classmethod
    def examples(cls):
        return [
            cls(shape=(20, 70, 70)),
            cls(seed=2, voxel_nm=(50.0, 32.0, 32.0), shape=(12, 60, 60)),
            cls(preset="pores", shape=(20, 50, 50), around="envelope"),
        ]

    @property
    def scene(self) -> Scene:
        return _scene(self)

    def output(self) -> dict[str, ArraySpec]:
        s = self.scene
        kinds = {
            "em": ("uint8", "image"),
            "cell": ("bool", "mask"),
            "nucleus": ("bool", "mask"),
            "mitochondria": ("uint64", "labels"),
            "lysosomes": ("uint64", "labels"),
        }
        if len(s.pores):
            kinds |= {"pores": ("uint64", "labels"), "pockets": ("uint64", "labels")}
        return {name: ArraySpec(s.shape, dtype, s.spacing, kind) for name, (dtype, kind) in kinds.items()}

    def memory(self) -> float:
        return 36 if len(self.scene.pores) else 20

    def __call__(self, *, site: Site) -> dict[str, np.ndarray]:
        return render(self.scene, site.write)


@register("phantom_objects")
@dataclass(frozen=True)
class PhantomObjects(Analysis):
    """The table of every object in the phantom: class, label, centre, size, volume, surface, what it touches, distances to the membranes;
    of nuclear pores also their normal and lobe."""

    version = 3
    ports = ()

    preset: PresetField = "demo"
    seed: Seed = 1
    voxel_nm: VoxelNm = None
    shape: Shape = None
    around: AroundField = "cell"
    pores: Pores = None
    relations: Relations = None

    def __call__(self):
        return truth_table(_scene(self))
