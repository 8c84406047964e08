"""Contact sites between objects: where their surfaces come within a distance of each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import ArtefactSpec, Box, Int3
from vemray.ops.base import Port, Site, register
from vemray.ops.face_distance import SurfaceReader, face_chunks
from vemray.ops.face_tree import ANY, FAN, OTHER, _to_face, squared, wanted
from vemray.ops.faces import Surface, area_nm2
from vemray.ops.patches import Growing, Patches

#: pairs of labels that a block may find: objects have a few neighbours each, noise has any number
MOST_PAIRS = 1 << 20
#: faces whose neighbours are sought together
CHUNK = 1 << 14


@njit(cache=True, nogil=True)
def _within(lo, hi, group, own, which, limit, half, tree):
    """Every (box, label, squared distance) of a face of the tree within `limit` nm2, at most one for each box and leaf. `own`: label of a group."""
    origin, labels, voxels, sides, leaf_start, leaf_label = tree[0], tree[1], tree[2], tree[3], tree[4], tree[5]
    level, node_lo, node_hi, label_min, label_max = tree[8], tree[9], tree[10], tree[11], tree[12]
    levels = len(level) - 1
    stack_level, stack_node = np.empty(FAN * 24, np.int64), np.empty(FAN * 24, np.int64)
    box, label, d2, n_found = np.empty(1024, np.int64), np.empty(1024, np.uint64), np.empty(1024), 0
    group_lo, group_hi = np.empty((1, 3)), np.empty((1, 3))
    for g in range(len(group) - 1):
        for a in range(3):
            group_lo[0, a], group_hi[0, a] = lo[group[g] : group[g + 1], a].min(), hi[group[g] : group[g + 1], a].max()
        top = 0
        stack_level[0], stack_node[0] = levels - 1, level[levels - 1]
        while top >= 0:
            k, n = stack_level[top], stack_node[top]
            top -= 1
            if not wanted(label_min[n], label_max[n], own[g], which) or squared(group_lo, group_hi, 0, node_lo, node_hi, n, half) > limit:
                continue
            if k > 0:
                first = level[k - 1] + FAN * (n - level[k])
                for c in range(first, min(first + FAN, level[k])):
                    top += 1
                    stack_level[top], stack_node[top] = k - 1, c
                continue
            for i in range(group[g], group[g + 1]):
                if squared(lo, hi, i, node_lo, node_hi, n, half) > limit:
                    continue
                least = np.inf
                for j in range(leaf_start[n], leaf_start[n + 1]):
                    least = min(least, _to_face(lo, hi, i, voxels, sides, origin, j, half))
                if least > limit:
                    continue
                if n_found == len(box):
                    box, label, d2 = np.append(box, np.empty_like(box)), np.append(label, np.empty_like(label)), np.append(d2, np.empty_like(d2))
                box[n_found], label[n_found], d2[n_found] = i, labels[leaf_label[n]], least
                n_found += 1
    return box[:n_found], label[:n_found], d2[:n_found]


@dataclass
class Touching:
    """Pairs (of, to) of labels, ascending: the faces of `of` that are near `to`."""

    of: np.ndarray  # uint64
    to: np.ndarray  # uint64
    area: np.ndarray  # int64 (n, 3): sums of shares by axis
    d2: np.ndarray  # least squared distance, nm2
    sites: np.ndarray  # int64: patches that are complete

    @classmethod
    def none(cls) -> Touching:
        return cls.complete(np.zeros(0, np.uint64), np.zeros(0, np.uint64))

    @classmethod
    def complete(cls, of: np.ndarray, to: np.ndarray) -> Touching:
        """A patch each."""
        return cls(of, to, np.zeros((len(of), 3), np.int64), np.full(len(of), np.inf), np.ones(len(of), np.int64))

    def joined(self) -> Touching:
        order = np.lexsort((self.to, self.of))
        of, to = self.of[order], self.to[order]
        first = np.flatnonzero(np.concatenate([[True], (of[1:] != of[:-1]) | (to[1:] != to[:-1])])) if len(of) else np.zeros(0, np.int64)
        if not len(first):
            return self
        sums = (np.add.reduceat(self.area[order], first), np.minimum.reduceat(self.d2[order], first), np.add.reduceat(self.sites[order], first))
        return Touching(of[first], to[first], *sums)


@dataclass
class OneWay:
    """Pairs, and the patches of their faces that may go on beyond the blocks so far."""

    touching: Touching
    patches: Patches

    def merge(self, upper: OneWay, axis: int) -> OneWay:
        patches, *complete = self.patches.merge(upper.patches)
        return OneWay(_together([self.touching, upper.touching, Touching.complete(*complete)]), patches)


@dataclass
class Contacts:
    """Both ways; `back` is None among the objects of one surface, where `there` holds both."""

    there: OneWay
    back: OneWay | None

    def merge(self, upper: Contacts, axis: int) -> Contacts:
        return Contacts(self.there.merge(upper.there, axis), self.back.merge(upper.back, axis) if self.back else None)


def _touching(surface: Surface, other: Surface, box: Box, radius_nm: float, which: int) -> OneWay:
    """What the faces of `surface` in `box` are within `radius_nm` of."""
    out, patches = Touching.none(), Growing(box, surface.spec.shape)
    waiting, n = [], 0
    for part in _parts(surface, other, box, radius_nm, which, patches):
        waiting.append(part)
        n += len(part.of)
        if n > MOST_PAIRS // 4:
            out, waiting, n = _together([out, *waiting]), [], 0
            if len(out.of) > MOST_PAIRS:
                raise RecipeError(
                    f"more than {MOST_PAIRS:,} pairs of objects come within {radius_nm:g} nm in one block. These are hardly objects: "
                    "remove the small ones first (filter_objects), or use a smaller radius."
                )
    open_, *complete = patches.done()
    return OneWay(_together([out, *waiting, Touching.complete(*complete)]), open_)


def _together(parts: list[Touching]) -> Touching:
    return Touching(*(np.concatenate(c) for c in zip(*(vars(p).values() for p in parts)))).joined()


def _parts(surface: Surface, other: Surface, box: Box, radius_nm: float, which: int, patches: Growing) -> Iterator[Touching]:
    half, limit = np.array(surface.spec.spacing.zyx) / 2, radius_nm * radius_nm
    block_lo, block_hi = other.bounds()
    for faces in surface.inside(box):
        chunks, corners = face_chunks(faces, surface.spec, CHUNK)
        start = 0
        for make, (low, high) in zip(chunks, corners):
            boxes = make()
            gap = np.maximum(np.maximum(block_lo - high, low - block_hi), 0.0) * half
            found = []
            for i in np.flatnonzero(gap[:, 0] ** 2 + gap[:, 1] ** 2 + gap[:, 2] ** 2 <= limit):
                own = faces.labels[boxes.row]
                found.append(_within(boxes.lo, boxes.hi, boxes.group, own, which, limit, half, other.block(i).tree.arrays()))
            at = faces.tree.order[start : start + len(boxes.lo)]
            start += len(boxes.lo)
            if not found:
                continue
            face, to, d2 = (np.concatenate(a) for a in zip(*found))
            order = np.lexsort((d2, to, face))
            face, to, d2 = face[order], to[order], d2[order]
            first = np.ones(len(face), bool)
            first[1:] = (face[1:] != face[:-1]) | (to[1:] != to[:-1])
            face, to, d2 = face[first], to[first], d2[first]
            area = np.zeros((len(face), 3), np.int64)
            area[np.arange(len(face)), faces.sides[at][face] >> 1] = faces.shares()[at][face]
            of = faces.labels[np.repeat(boxes.row, np.diff(boxes.group))[face]]
            order = np.lexsort((to, of))
            at = at[face[order]]
            patches.add(of[order], to[order], faces.voxels[at].astype(np.int64) + faces.origin, faces.sides[at])
            yield Touching(of, to, area, d2, np.zeros(len(of), np.int64)).joined()


@register("contacts")
@dataclass(frozen=True)
class ContactSites(SurfaceReader):
    """Pairs of objects whose surfaces come within `radius_nm` of each other: a row for each pair with its gap, and the area and the sites of the
    contact.

    Columns `label_a`, `label_b`, ascending; `gap_nm`, the least distance between their faces, exact, 0 where they touch; `area_a_nm2`: area of
    those faces of a that lie within `radius_nm` of a face of b, whatever lies between, each face with its share of the surface (see
    `surface`); `area_b_nm2`: the same the other way; `area_nm2`, their mean; `sites_a`: connected patches of those faces of a, faces that share
    an edge or a corner of voxels together; `sites_b`: those of b; `sites`, the smaller number, as one patch may face two and a rough rim breaks up.
    Without `b`, pairs among the objects of `a`, each once."""

    version = 2

    serves = "beyond the note: contact sites between organelles"
    ports = (Port("a", ("surface",)), Port("b", ("surface",), optional=True, doc="of the other objects, over the same voxels"))

    radius_nm: Annotated[float, Field(ge=0, description="surfaces this near, in nm, are in contact")] = 30.0

    @classmethod
    def examples(cls):
        return [cls(8.0), cls(0.0)]

    def block_shape(self, shape: Int3, block: Int3, chunk: Int3) -> Int3:
        return (max(block[0] // 2 // chunk[0] * chunk[0], chunk[0]), *block[1:])  # half of it: pairs need room beside the faces

    def fixed_memory(self) -> int:
        return super().fixed_memory() + 300 * MOST_PAIRS

    def check(self, a: ArtefactSpec, b: ArtefactSpec | None = None) -> None:
        if b is not None and a != b:
            raise RecipeError(f"'contacts' takes surfaces of the same voxels, not of {a.shape} at {a.spacing} and {b.shape} at {b.spacing}.")

    def measure(self, a: Surface, b: Surface | None = None, *, site: Site) -> Contacts:
        there = _touching(a, a if b is None else b, site.write, self.radius_nm, OTHER if b is None else ANY)
        return Contacts(there, None if b is None else _touching(b, a, site.write, self.radius_nm, ANY))

    def finish(self, partial: Contacts, inputs):
        import pyarrow as pa

        there, back = partial.there.touching, (partial.back or partial.there).touching
        order = np.lexsort((back.of, back.to))  # each pair is found from both sides
        one, other = area_nm2(there.area, inputs[0].spacing), area_nm2(back.area[order], inputs[0].spacing)
        once = there.of < there.to if partial.back is None else np.ones(len(there.of), bool)
        columns = {
            "label_a": there.of, "label_b": there.to, "gap_nm": np.sqrt(there.d2), "area_nm2": (one + other) / 2, "area_a_nm2": one,
            "area_b_nm2": other, "sites": np.minimum(there.sites, back.sites[order]), "sites_a": there.sites, "sites_b": back.sites[order],
        }  # fmt: skip
        return pa.table({k: v[once] for k, v in columns.items()})
