"""Filling the holes of a mask: a global decision, taken on the holes of the whole volume and never within a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from vemray.ops.base import Composite, Port, Step, build, register
from vemray.ops.logic import BINARY


@register("fill_holes")
@dataclass(frozen=True)
class FillHoles(Composite):
    """The mask and its holes: every part of the background that does not reach the volume's border over faces of voxels (6 neighbours),
    whatever blocks it lies in. With `max_volume_nm3` only the holes up to that size. In a volume of one plane every part of the
    background reaches the border.

    Agrees with `scipy.ndimage.binary_fill_holes`. The holes are labelled and measured, and those to fill are chosen from the table."""

    serves = "step 4: segment morphology closes gaps"
    ports = (Port("mask", BINARY, doc="labels count as set where they are not 0"),)

    max_volume_nm3: Annotated[float | None, Field(gt=0, allow_inf_nan=False, description="larger holes stay open, nm^3. Default: all are filled")] = (
        None
    )

    @classmethod
    def examples(cls):
        return [cls(), cls(max_volume_nm3=5e3)]

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        enclosed = "not touches_border"
        if self.max_volume_nm3 is not None:
            enclosed += f" and volume_nm3 <= {self.max_volume_nm3!r}"
        return [
            Step(".background", build("not", {}), {"mask": inputs["mask"]}),
            Step(".parts", build("connected_components", {"connectivity": 6}), {"mask": ".background"}),
            Step(".holes", build("filter_objects", {"where": enclosed}), {"labels": ".parts"}),
            Step("", build("or", {}), {"a": inputs["mask"], "b": ".holes"}),
        ]
