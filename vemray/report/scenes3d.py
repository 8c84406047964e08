"""Pictures in 3D: meshes of objects, coloured by a column of a table, translucent, cut open, with points, a colour bar and a scale bar.

    layers = [Layer("cell", cell, opacity=0.15), Layer("mitochondria", mitochondria, values=ratio)]
    png = render(layers, scale=Scale("surface to volume (1/µm)"), cut=Cut("x", 5000.0), view="oblique")

Meshes and positions are ZYX in nm, the frame of the volume. The projection is parallel, so that the scale bar holds everywhere. Drawn without a
display; needs the extra 'pictures' (PyVista)."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vemray.analysis.mesh import Mesh
from vemray.errors import InputError, MissingExtra
from vemray.plan.scenes import check_view
from vemray.report.pictures import PALETTE, RGB
from vemray.report.scale import bar_length

#: view -> (from where the camera looks, what is up), XYZ. Planes look as in a stack: x to the right, y or z down
VIEWS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "oblique": ((-0.62, -0.9, -0.55), (0.0, 0.0, -1.0)),
    "xy": ((0.0, 0.0, -1.0), (0.0, -1.0, 0.0)),
    "xz": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
    "yz": ((-1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    "back": ((0.62, 0.9, -0.55), (0.0, 0.0, -1.0)),
}
#: columns of XYZ
_AXES = {"x": 0, "y": 1, "z": 2}
#: strips that a cap across the whole picture is made of
_STRIPS = 3000
#: balls that are drawn round
_BALLS = 5000
#: of objects that have no value
_GREY: RGB = (185, 185, 185)


@dataclass(frozen=True)
class Cut:
    """A plane across an axis at `at_nm`. What lies on the side of the camera that is cut away: below the plane, or above if `keep_below`;
    of every layer, or of the one called `layer`."""

    axis: str
    at_nm: float
    keep_below: bool = False
    layer: str = ""

    def __post_init__(self):
        if self.axis not in _AXES:
            raise InputError(f"a cut is across x, y or z, not '{self.axis}'.")


@dataclass(frozen=True)
class Scale:
    """A colour scale. `low`, `high`: its ends; by default the 2nd and 98th per cent of the values."""

    label: str
    colours: str = "viridis"  # any of matplotlib's; its darkest tenth is left out, where shading would not show
    low: float | None = None
    high: float | None = None

    @property
    def map(self):
        import matplotlib

        found = matplotlib.colormaps[self.colours]
        return matplotlib.colors.ListedColormap(found(np.linspace(0.1, 1.0, 256)))

    def ends(self, values: np.ndarray) -> tuple[float, float]:
        v = values[np.isfinite(values)]
        low, high = np.percentile(v, [2, 98]) if len(v) else (0.0, 1.0)
        low, high = low if self.low is None else self.low, high if self.high is None else self.high
        return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


@dataclass(frozen=True)
class Layer:
    """Objects drawn alike: label -> mesh. `values` label -> number colours each by the scale; else all have `colour` (or one of the palette).
    `capped`: what a cut opens is filled; else it is hollow."""

    name: str
    meshes: Mapping[int, Mesh]
    colour: RGB | None = None
    opacity: float = 1.0
    values: Mapping[int, float] | None = None
    capped: bool = True


@dataclass(frozen=True)
class Points:
    """Balls at `positions` (n, 3) ZYX nm, of `radius_nm`, coloured by `values` (n,) or by `colour`."""

    name: str
    positions: np.ndarray
    radius_nm: float
    values: np.ndarray | None = None
    colour: RGB | None = None


@dataclass
class _Drawn:
    """What the plotter showed: pixels, the size of one, and what the legend and the colour bar say."""

    pixels: np.ndarray
    pixel_nm: float
    legend: dict[str, RGB] = field(default_factory=dict)
    ends: tuple[float, float] | None = None


def pyvista() -> Any:
    """The package, set to draw without a display."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")  # else it looks for a display first, and says that there is none
    try:
        import pyvista as pv
    except ImportError:
        raise MissingExtra("pyvista", "pictures", "a picture in 3D") from None
    pv.OFF_SCREEN = True
    return pv


def render(
    layers: Sequence[Layer | Points],
    scale: Scale | None = None,
    cut: Cut | Sequence[Cut] = (),
    view: str = "oblique",
    size: tuple[int, int] = (1500, 1200),
    title: str = "",
) -> bytes:
    """A PNG. `size`: pixels of the scene; the colour bar and the legend come beside it. InputError if there is nothing to draw."""
    drawn = draw(layers, scale, (cut,) if isinstance(cut, Cut) else tuple(cut), view, size)
    return _composed(drawn, scale, title)


def draw(layers: Sequence[Layer | Points], scale: Scale | None, cuts: Sequence[Cut], view: str, size: tuple[int, int]) -> _Drawn:
    check_view(view)
    pv = pyvista()
    found = [a for layer in layers if layer is not None and len(a := _values(layer))]
    ends = scale.ends(np.concatenate(found)) if scale and found else None
    colours = _palette(layers)
    plotter = pv.Plotter(off_screen=True, window_size=list(size), lighting="none")
    try:
        plotter.set_background("white")
        points, legend = [], {}
        extent = [_extent(layer) for layer in layers]
        rank = np.argsort(np.argsort(-np.array(extent), kind="stable"), kind="stable")
        for layer, colour, order in zip(layers, colours, rank):
            # of caps in one plane the smaller object's is seen: it is cut a hair's breadth later
            apart = float(order) * 3e-4 * max(extent)
            moved = [replace(c, at_nm=c.at_nm + (apart if c.keep_below else -apart)) for c in cuts if c.layer in ("", layer.name)]
            drawn = (_balls if isinstance(layer, Points) else _joined)(pv, layer, colour, scale, ends, moved, max(extent) / _STRIPS)
            if drawn is None:
                continue
            data, rgb = drawn
            data.cell_data["colour"] = rgb
            opacity = 1.0 if isinstance(layer, Points) else layer.opacity
            plotter.add_mesh(
                data, scalars="colour", rgb=True, opacity=opacity, smooth_shading=True, show_scalar_bar=False, ambient=0.3, diffuse=0.75,
                specular=0.12 if opacity == 1 else 0.05, specular_power=18, culling="back" if opacity < 1 else None,
            )  # fmt: skip
            points.append(np.asarray(data.points))
            if layer.values is None:
                legend[layer.name] = colour
        if not points:
            raise InputError("there is nothing to draw: no object of these layers has a surface here. Check the labels and where it is cut.")
        pixel_nm = _aim(pv, plotter, np.concatenate(points), view, size)
        if any(isinstance(layer, Layer) and layer.opacity < 1 for layer in layers):
            plotter.enable_depth_peeling(8, occlusion_ratio=0)
        plotter.enable_anti_aliasing("ssaa", multi_samples=4)
        pixels = plotter.screenshot(None, return_img=True)
    finally:
        plotter.close()
    return _Drawn(np.asarray(pixels)[..., :3], pixel_nm, legend, ends)


def _extent(layer: Layer | Points) -> float:
    """Diagonal of the layer's box, nm."""
    parts = [layer.positions] if isinstance(layer, Points) else [m.vertices for m in layer.meshes.values()]
    parts = [np.asarray(p, float).reshape(-1, 3) for p in parts if len(p)]
    if not parts:
        return 0.0
    return float(np.linalg.norm(np.max([p.max(axis=0) for p in parts], axis=0) - np.min([p.min(axis=0) for p in parts], axis=0)))


def _values(layer: Layer | Points) -> np.ndarray:
    if layer.values is None:
        return np.empty(0)
    return np.asarray(list(layer.values.values()) if isinstance(layer, Layer) else layer.values, float)


def _palette(layers: Sequence[Layer | Points]) -> list[RGB]:
    """The colour of each layer: its own, else the next of the palette that none has."""
    taken = {layer.colour for layer in layers}
    free = [c for c in PALETTE if c not in taken] or list(PALETTE)
    out, used = [], 0
    for layer in layers:
        if layer.colour is None and layer.values is None:
            out.append(free[used % len(free)])
            used += 1
        else:
            out.append(layer.colour or _GREY)
    return out


def _coloured(values: np.ndarray, scale: Scale | None, ends: tuple[float, float] | None) -> np.ndarray:
    """uint8 (n, 3); grey where there is no value."""
    out = np.tile(np.array(_GREY, np.uint8), (len(values), 1))
    ok = np.isfinite(values)
    if scale and ends and ok.any():
        share = np.clip((values[ok] - ends[0]) / (ends[1] - ends[0]), 0, 1)
        out[ok] = np.round(scale.map(share)[:, :3] * 255)
    return out


def _poly(pv, mesh: Mesh):
    return pv.PolyData.from_regular_faces(np.ascontiguousarray(mesh.vertices[:, ::-1], np.float32), mesh.triangles)


def _joined(pv, layer: Layer, colour: RGB, scale, ends, cuts: Sequence[Cut], fine: float):
    """All objects of a layer in one piece with normals, and the colour of each triangle."""
    values = np.array([np.nan if layer.values is None else layer.values.get(n, np.nan) for n in layer.meshes], float)
    each = np.tile(np.array(colour, np.uint8), (len(values), 1)) if layer.values is None else _coloured(values, scale, ends)
    vertices, triangles, normals, owner, n = [], [], [], [], 0
    for i, mesh in enumerate(layer.meshes.values()):
        if not len(mesh.triangles):
            continue
        piece = _poly(pv, mesh).compute_normals(cell_normals=False, split_vertices=False, auto_orient_normals=False, consistent_normals=False)
        if cuts:
            piece = _cut(pv, piece, cuts, layer.capped and mesh.closed, fine)
        if not piece.n_cells:
            continue
        vertices.append(np.asarray(piece.points))
        normals.append(np.asarray(piece.point_data["Normals"]))
        triangles.append(piece.regular_faces + n)
        owner.append(np.full(piece.n_cells, i))
        n += piece.n_points
    if not n:
        return None
    data = pv.PolyData.from_regular_faces(np.concatenate(vertices), np.concatenate(triangles))
    data.point_data.active_normals = np.concatenate(normals)
    return data, each[np.concatenate(owner)]


def _cut(pv, piece, cuts: Sequence[Cut], capped: bool, fine: float):
    """The part of a piece on the kept side of every cut, with point normals; caps have those of their planes."""
    parts = [_kept(piece, cuts)]
    for cut in cuts if capped else ():
        axis, sign = _AXES[cut.axis], 1.0 if cut.keep_below else -1.0
        if not piece.bounds[2 * axis] < cut.at_nm < piece.bounds[2 * axis + 1]:
            continue
        points, triangles = _lid(np.asarray(piece.points, float), piece.regular_faces, axis, cut.at_nm, fine)
        lid = pv.PolyData.from_regular_faces(points.astype(np.float32), triangles[:, ::-1] if cut.keep_below else triangles)
        lid.point_data["Normals"] = np.tile((np.arange(3) == axis) * np.float32(sign), (len(points), 1))
        parts.append(_kept(lid, [c for c in cuts if c is not cut]))
    parts = [p for p in parts if p.n_cells]
    if len(parts) < 2:
        return parts[0] if parts else pv.PolyData()
    starts = np.cumsum([0, *(p.n_points for p in parts[:-1])])
    out = pv.PolyData.from_regular_faces(
        np.concatenate([p.points for p in parts]), np.concatenate([p.regular_faces.reshape(-1, 3) + n for p, n in zip(parts, starts)])
    )
    out.point_data["Normals"] = np.concatenate([p.point_data["Normals"] for p in parts])
    return out


def _kept(piece, cuts: Sequence[Cut]):
    for cut in cuts:
        if piece.n_cells:
            origin = np.array(piece.center)
            origin[_AXES[cut.axis]] = cut.at_nm
            normal = (np.arange(3) == _AXES[cut.axis]) * (-1.0 if cut.keep_below else 1.0)
            piece = piece.clip(normal=normal, origin=origin, invert=False).triangulate()
    return piece


def _lid(points: np.ndarray, triangles: np.ndarray, axis: int, at: float, fine: float) -> tuple[np.ndarray, np.ndarray]:
    """What of the plane lies inside a closed mesh, as strips of the width `fine` along the next axis: points and triangles. A strip is inside
    between its odd and even crossings of the outline, however often that touches or crosses itself."""
    b, c = (axis + 1) % 3, (axis + 2) % 3
    above = points[:, axis] >= at
    crossing = triangles[(n := above[triangles].sum(axis=1)) % 3 != 0]
    alone = np.argmax(above[crossing] == (n[n % 3 != 0] == 1)[:, None], axis=1)
    p, q, r = np.take_along_axis(crossing, (alone[:, None] + np.arange(3)) % 3, axis=1).T

    def on_plane(i, j):
        i, j = np.minimum(i, j), np.maximum(i, j)  # the same point from both triangles of an edge
        share = (at - points[i, axis]) / (points[j, axis] - points[i, axis])
        return (points[i] + share[:, None] * (points[j] - points[i]))[:, [b, c]]

    one, other = on_plane(p, q), on_plane(p, r)
    first, last = (np.ceil(end / fine - 0.5).astype(np.int64) for end in (np.minimum(one[:, 0], other[:, 0]), np.maximum(one[:, 0], other[:, 0])))
    which = np.repeat(np.arange(len(one)), last - first)
    row = np.arange(len(which)) - np.repeat(np.cumsum(last - first) - (last - first), last - first) + first[which]
    share = ((row + 0.5) * fine - one[which, 0]) / (other[which, 0] - one[which, 0])
    where = one[which, 1] + share * (other[which, 1] - one[which, 1])
    order = np.lexsort((where, row))
    row, where = row[order][::2], where[order].reshape(-1, 2)
    out = np.empty((len(row), 4, 3))
    out[:, :, axis] = at
    out[:, :2, b], out[:, 2:, b] = (row * fine)[:, None], ((row + 1) * fine)[:, None]
    out[:, [0, 3], c], out[:, [1, 2], c] = where[:, :1], where[:, 1:]
    corner = 4 * np.arange(len(row))[:, None]
    return out.reshape(-1, 3), np.concatenate([corner + [0, 1, 2], corner + [0, 2, 3]])


def _balls(pv, layer: Points, colour: RGB, scale, ends, cuts: Sequence[Cut], fine: float):
    positions = np.asarray(layer.positions, float).reshape(-1, 3)
    kept = np.ones(len(positions), bool)
    for cut in cuts:
        at = positions[:, 2 - _AXES[cut.axis]]
        kept &= at <= cut.at_nm if cut.keep_below else at >= cut.at_nm
    if not kept.any():
        return None
    fineness = 14 if kept.sum() <= _BALLS else 6  # of very many balls none is seen closely
    ball = pv.Sphere(radius=layer.radius_nm, theta_resolution=fineness, phi_resolution=fineness)
    data = pv.PolyData(np.ascontiguousarray(positions[kept, ::-1])).glyph(geom=ball, scale=False, orient=False)
    each = (
        np.tile(np.array(colour, np.uint8), (len(positions), 1)) if layer.values is None else _coloured(np.asarray(layer.values, float), scale, ends)
    )
    return data, np.repeat(each[kept], ball.n_cells, axis=0)


def _aim(pv, plotter, points: np.ndarray, view: str, size: tuple[int, int]) -> float:
    """Place the camera and the lights; the size of a pixel in nm."""
    towards, up = (np.array(v, float) for v in VIEWS[view])
    towards /= np.linalg.norm(towards)
    right = np.cross(up, towards)
    right /= np.linalg.norm(right)
    over = np.cross(towards, right)
    seen = points @ np.stack([right, over, towards]).T.astype(np.float32)
    lo, hi = seen.min(axis=0), seen.max(axis=0)
    centre, radius = np.stack([right, over, towards]).T @ ((lo + hi) / 2), max(float(np.linalg.norm(hi - lo)) / 2, 1.0)
    half = max((hi[1] - lo[1]) / 2, (hi[0] - lo[0]) / 2 * size[1] / size[0], 1.0) * 1.08
    camera = plotter.camera
    camera.enable_parallel_projection()
    camera.focal_point, camera.position, camera.up = centre, centre + towards * 4 * radius, over
    camera.parallel_scale = half
    camera.clipping_range = (1.5 * radius, 7 * radius)
    for side, rise, strength in ((-0.7, 0.9, 0.75), (0.9, 0.2, 0.3), (0.0, -0.8, 0.15)):
        from_ = centre + (towards + side * right + rise * over) * 10 * radius
        plotter.add_light(pv.Light(position=from_, focal_point=centre, intensity=strength, light_type="scene light"))
    return float(2 * half / size[1])


def _composed(drawn: _Drawn, scale: Scale | None, title: str) -> bytes:
    """The scene with its scale bar, colour bar and legend."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    h, w = drawn.pixels.shape[:2]
    dpi, big = 200, max(h, w) / 130
    beside = 0.16 * w if drawn.ends and scale else 0.0
    below = 0.055 * h if drawn.legend else 0.0
    above = 0.06 * h if title else 0.0
    figure = Figure(figsize=((w + beside) / dpi, (h + below + above) / dpi), dpi=dpi)
    total_w, total_h = w + beside, h + below + above
    a = figure.add_axes((0, below / total_h, w / total_w, h / total_h))
    a.imshow(drawn.pixels, interpolation="none")
    a.set_axis_off()
    point = big * 72 / dpi * 2.2  # font size that grows with the picture
    length, text = bar_length(w * drawn.pixel_nm)
    bar, x0, y0 = length / drawn.pixel_nm, 0.035 * w, 0.965 * h
    a.add_line(Line2D([x0, x0 + bar], [y0, y0], color="black", linewidth=big * 72 / dpi * 0.45, solid_capstyle="butt"))
    a.text(x0 + bar / 2, y0 - 0.012 * h, text, ha="center", va="bottom", fontsize=point, color="black")
    if drawn.ends and scale:
        c = figure.add_axes(((w + 0.15 * beside) / total_w, (below + 0.2 * h) / total_h, 0.16 * beside / total_w, 0.6 * h / total_h))
        shade = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(*drawn.ends), scale.map)
        colourbar = figure.colorbar(shade, cax=c, extend="both")
        colourbar.set_label(scale.label, fontsize=point)
        colourbar.ax.tick_params(labelsize=point * 0.9)
        colourbar.outline.set_linewidth(0.6)
    if drawn.legend:
        handles = [Line2D([], [], marker="s", linestyle="", markersize=point, color=np.array(c) / 255, label=n) for n, c in drawn.legend.items()]
        figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False, fontsize=point, handletextpad=0.2, columnspacing=1.2)
    if title:
        figure.text(0.02, 1 - 0.3 * above / total_h, title, fontsize=point * 1.15, va="top")
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white", metadata={"Software": None})
    return out.getvalue()
