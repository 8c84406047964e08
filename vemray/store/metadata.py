"""OME-Zarr metadata, read (0.4 and 0.5) and written (0.5), and what plain Zarr arrays say about themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from vemray.errors import VolumeError
from vemray.geometry import Spacing
from vemray.store import access
from vemray.store.pyramid import Level

#: nanometres per unit; the UDUNITS names OME-Zarr prescribes and the abbreviations seen in files
NM = {
    "nanometer": 1.0, "nanometre": 1.0, "nm": 1.0,
    "micrometer": 1e3, "micrometre": 1e3, "micron": 1e3, "um": 1e3, "µm": 1e3, "μm": 1e3,
    "angstrom": 0.1, "ångström": 0.1, "å": 0.1,
    "picometer": 1e-3, "picometre": 1e-3, "pm": 1e-3,
    "millimeter": 1e6, "millimetre": 1e6, "mm": 1e6,
    "centimeter": 1e7, "centimetre": 1e7, "cm": 1e7,
    "meter": 1e9, "metre": 1e9, "m": 1e9,
    "inch": 2.54e7,
}  # fmt: skip

SPACING_HINT = "Give it when you import: vemray import SOURCE TARGET --voxel-size Z,Y,X (nm); in Python: spacing=Spacing(z, y, x)."


def nanometres(unit: Any) -> float | None:
    """Nanometres in one `unit`, None for a missing or unknown one."""
    return NM.get(unit.strip().lower().removesuffix("s") if len(unit.strip()) > 3 else unit.strip().lower()) if isinstance(unit, str) else None


@dataclass(frozen=True)
class Node:
    """A Zarr node as found: `format` 2 or 3, `type` 'array' or 'group', its attributes, and an array's own metadata."""

    format: int
    type: str
    attributes: dict[str, Any]
    array: dict[str, Any]


def _json(url: str) -> dict[str, Any] | None:
    try:
        data = access.read_bytes(url)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return json.loads(data)
    except ValueError as e:
        raise VolumeError(
            f"{access.shown(url)} is not valid JSON ({e}): the volume's metadata is damaged. Copy or create the volume again."
        ) from None


def read_node(url: str) -> Node | None:
    """The Zarr node at `url`, v3 before v2; None if there is none."""
    meta = _json(access.join(url, "zarr.json"))
    if meta is not None:
        return Node(3, meta.get("node_type", "array"), meta.get("attributes") or {}, meta if meta.get("node_type") == "array" else {})
    array = _json(access.join(url, ".zarray"))
    if array is not None:
        return Node(2, "array", _json(access.join(url, ".zattrs")) or {}, array)
    if _json(access.join(url, ".zgroup")) is not None or _json(access.join(url, ".zattrs")) is not None:
        return Node(2, "group", _json(access.join(url, ".zattrs")) or {}, {})
    return None


@dataclass(frozen=True)
class Multiscale:
    """What a multiscales entry says. `units[i]` is nm per unit of axis i or None; scales and translations are per level and axis,
    in the axis' own unit; None where absent."""

    axes: tuple[str, ...]
    types: tuple[str, ...]
    units: tuple[float | None, ...]
    unit_names: tuple[str | None, ...]
    paths: tuple[str, ...]
    scales: tuple[tuple[float, ...] | None, ...]
    translations: tuple[tuple[float, ...], ...]
    name: str
    is_labels: bool


def read_multiscale(node: Node, where: str) -> Multiscale | None:
    """The first multiscale of a group's attributes (OME-Zarr 0.4: top level, 0.5: under 'ome'); None if there is none."""
    ome = node.attributes.get("ome") if isinstance(node.attributes.get("ome"), dict) else node.attributes
    entries = ome.get("multiscales")
    if not entries:
        return None
    try:
        entry = entries[0]
        datasets = entry["datasets"]
        axes = entry.get("axes") or []
        names, types, unit_names = [], [], []
        for a in axes:
            a = {"name": a} if isinstance(a, str) else a  # 0.3 wrote bare names
            names.append(str(a["name"]).lower())
            types.append(a.get("type") or {"t": "time", "c": "channel"}.get(names[-1], "space"))
            unit_names.append(a.get("unit"))
        common_scale, common_shift = _transforms(entry.get("coordinateTransformations"), len(names), where)
        scales, shifts = [], []
        for d in datasets:
            scale, shift = _transforms(d.get("coordinateTransformations"), len(names), where)
            if common_scale is not None:
                scale = tuple(a * b for a, b in zip(scale or (1.0,) * len(names), common_scale))
                shift = tuple(a * b for a, b in zip(shift, common_scale))
            scales.append(scale)
            shifts.append(tuple(a + b for a, b in zip(shift, common_shift)))
        return Multiscale(
            tuple(names), tuple(types), tuple(nanometres(u) for u in unit_names), tuple(unit_names), tuple(d["path"] for d in datasets),
            tuple(scales), tuple(shifts), str(entry.get("name") or ""), "image-label" in ome,
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise VolumeError(
            f"the OME-Zarr metadata of {where} cannot be read ({type(e).__name__}: {e}). Check it, or open one of its arrays."
        ) from None


def _transforms(items, n: int, where: str) -> tuple[tuple[float, ...] | None, tuple[float, ...]]:
    scale, shift = None, (0.0,) * n
    for t in items or ():
        if t["type"] == "scale" and "scale" in t:
            scale = tuple(float(v) for v in t["scale"])
        elif t["type"] == "translation" and "translation" in t:
            shift = tuple(float(v) for v in t["translation"])
        elif t["type"] != "identity":
            raise VolumeError(f"{where} places its voxels by a '{t['type']}' transformation, which is not read. Only scale and translation are.")
    for v in (scale, shift):
        if v is not None and len(v) != n:
            raise VolumeError(f"{where}: a coordinate transformation has {len(v)} numbers for {n} axes. Correct the metadata.")
    return scale, shift


def array_dimensions(node: Node, ndim: int) -> tuple[str, ...] | None:
    """Dimension names an array itself carries (Zarr v3, or xarray's attribute in v2), lower case; None if incomplete."""
    names = node.array.get("dimension_names") or node.attributes.get("_ARRAY_DIMENSIONS")
    if not names or len(names) != ndim or any(not isinstance(n, str) for n in names):
        return None
    return tuple(n.lower() for n in names)


def write_multiscale(name: str, levels: tuple[Level, ...], kind: str, extra: dict[str, Any]) -> dict[str, Any]:
    """Group attributes (OME-Zarr 0.5) of a volume vemray writes; `extra` joins the kind under 'vemray'."""
    datasets = []
    for lv in levels:
        transforms = [{"type": "scale", "scale": list(lv.spacing.zyx)}]
        if any(lv.origin_nm):
            transforms.append({"type": "translation", "translation": list(lv.origin_nm)})
        datasets.append({"path": lv.path, "coordinateTransformations": transforms})
    labels = kind in ("labels", "mask")
    method = "most frequent value of 2x2x2 voxels" if labels else "mean of 2x2x2 voxels"
    ome: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"],
                "datasets": datasets,
                "type": "mode" if labels else "mean",
                "metadata": {"method": method},
            }
        ],
    }
    if labels:
        ome["image-label"] = {"version": "0.5"}
    return {"ome": ome, "vemray": {**extra, "kind": kind}}


def spacing_of(ms: Multiscale, level: int, zyx: tuple[int, int, int], where: str) -> tuple[Spacing, tuple[float, float, float]]:
    """(spacing, origin) of a level in nm; VolumeError 'voxel size unknown' when the file does not say it in a known unit."""
    scale = ms.scales[level]
    if scale is None or not ms.axes:
        raise VolumeError(f"voxel size unknown: {where} has no scale. {SPACING_HINT}")
    for i in zyx:
        if ms.units[i] is None:
            said = f"has the unit '{ms.unit_names[i]}', which is not a known length" if ms.unit_names[i] else "has no unit"
            raise VolumeError(f"voxel size unknown: axis {ms.axes[i]} of {where} {said} (scale {scale[i]:g}). {SPACING_HINT}")
    try:
        spacing = Spacing(*(scale[i] * ms.units[i] for i in zyx))
    except ValueError as e:
        raise VolumeError(f"voxel size unknown: {where}: {e}. {SPACING_HINT}") from None
    return spacing, tuple(ms.translations[level][i] * ms.units[i] for i in zyx)
