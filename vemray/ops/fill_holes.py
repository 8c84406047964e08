"""Filling the holes of a mask or of objects: a global decision, taken on the holes of the whole volume and never within a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from vemray.ops.base import Analysis, Composite, Port, Step, build, register
from vemray.ops.combine import OverlayLabels
from vemray.ops.logic import BINARY
from vemray.ops.measure import MeasureObjects
from vemray.ops.objects import Relabel
from vemray.ops.touching import Touching


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


@register("holes_of_objects", hidden=True)
@dataclass(frozen=True)
class HolesOfObjects(Analysis):
    """Parts of the background that touch one object only and not the volume's border: columns `label` (part), `new_label` (object)."""

    ports = (Port("pairs", ("table",), doc="`touching` of parts and objects"), Port("parts", ("table",), doc="`measure` of the parts"))

    max_volume_nm3: Annotated[float | None, Field(gt=0, allow_inf_nan=False, description="larger holes stay open, nm^3. Default: all are filled")] = (
        None
    )

    @classmethod
    def examples(cls):
        return [cls(), cls(5e3)]

    def __call__(self, pairs, parts):
        import pyarrow as pa

        part, obj = (pairs.column(c).to_numpy() for c in ("a", "b"))
        part, first, neighbours = np.unique(part, return_index=True, return_counts=True)
        enclosed = ~parts.column("touches_border").to_numpy(zero_copy_only=False)
        if self.max_volume_nm3 is not None:
            enclosed &= parts.column("volume_nm3").to_numpy() <= self.max_volume_nm3
        one = (neighbours == 1) & np.isin(part, parts.column("label").to_numpy()[enclosed])
        return pa.table({"label": part[one], "new_label": obj[first[one]]})


@register("fill_objects")
@dataclass(frozen=True)
class FillObjects(Composite):
    """Each object with its holes: every part of the background that touches no other object and not the volume's border, over faces of voxels
    (6 neighbours), gets the label of the object around it, whatever blocks it lies in. With `max_volume_nm3` only the holes up to that
    size. What lies between two objects stays background. In a volume of one plane every part of the background reaches the border.

    The parts of the background are labelled, what they touch is counted, and those to fill are chosen from the tables."""

    serves = "step 4: segment morphology closes gaps"
    ports = (Port("labels", ("labels",), doc="objects; 0 is background"),)

    max_volume_nm3: Annotated[float | None, Field(gt=0, allow_inf_nan=False, description="larger holes stay open, nm^3. Default: all are filled")] = (
        None
    )

    @classmethod
    def examples(cls):
        return [cls(), cls(5e3)]

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        labels = inputs["labels"]
        return [
            Step(".background", build("not", {}), {"mask": labels}),
            Step(".parts", build("connected_components", {"connectivity": 6}), {"mask": ".background"}),
            Step(".measure", MeasureObjects(), {"labels": ".parts"}),
            Step(".pairs", Touching(), {"labels": ".parts", "other": labels}),
            Step(".holes", HolesOfObjects(self.max_volume_nm3), {"pairs": ".pairs", "parts": ".measure"}),
            Step(".filled", Relabel(), {"labels": ".parts", "table": ".holes"}),
            Step("", OverlayLabels(), {"a": labels, "b": ".filled"}),
        ]
