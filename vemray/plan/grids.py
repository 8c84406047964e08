"""Which voxels a node works on, and which it reads of each input: most inputs lie on the node's own grid, some ports take arrays on others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from vemray.geometry import ArraySpec, ArtefactSpec, Box
from vemray.plan.graph import Node, _call_specs, own_arrays, ports_of


def grid_spec(node: Node, specs: Mapping[str, Any]) -> ArraySpec | ArtefactSpec | None:
    """The voxels that the node's blocks are cut from: those of its inputs, or of its output where all inputs lie on other grids, or of the first
    surface where it reads no voxels."""
    own = own_arrays(node.op, node.inputs, specs).values()
    made = (s for s in node.outputs.values() if isinstance(s, ArraySpec))
    surfaces = (specs[r] for r in node.inputs.values() if isinstance(specs[r], ArtefactSpec))
    return next(itertools.chain(own, made, surfaces), None)


def read_inputs(node: Node) -> dict[str, str]:
    """Inputs whose values the node gets: all but those used for their grid only."""
    ports = ports_of(node.op, node.inputs)
    return {key: r for key, r in node.inputs.items() if not ports[key].grid_only}


def refs_on_other_grids(node: Node) -> set[str]:
    ports = ports_of(node.op, node.inputs)
    return {r for key, r in node.inputs.items() if ports[key].other_grid}


def other_boxes(node: Node, write: Box, specs: Mapping[str, Any]) -> dict[str, Box]:
    """The box that `write` depends on of each input on another grid, by input."""
    call = _call_specs(node.op, node.inputs, specs)
    return {key: node.op.read_box_of(key, write, *call) for key, p in ports_of(node.op, node.inputs).items() if p.other_grid}


def boxes_read(node: Node, write: Box, specs: Mapping[str, Any]) -> Iterator[tuple[str, Box]]:
    """(ref, box) of each array that is read to compute `write`."""
    grid = grid_spec(node, specs)
    if grid is None:
        return
    read = node.op.read_box(write, grid.shape, grid.spacing)
    others = other_boxes(node, write, specs)
    for key, r in read_inputs(node).items():
        if isinstance(specs[r], ArraySpec):
            yield r, others.get(key, read)
