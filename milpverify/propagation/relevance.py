"""Which entries of nodes some rows depend on: only these need bounds better than intervals, relaxations of their own, and splits.

Where a network computes much and a property asks for little (one flow of a power network, a class among many heads), most entries have
no path to the rows at all. What is left out is left out for speed alone: a bound that uses it is as valid as before.
Beside it, which variables backward passes can improve at all, whatever the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.interval import Interval
from milpverify.graph import Pullback
from milpverify.operators import Affine

if TYPE_CHECKING:
    from milpverify.graph import Graph, Node

Needed = Mapping[int, Tensor]
"""Node id -> the entries that some rows depend on, (size,) bool; nodes that are not in it are needed whole."""

EVERYTHING: Needed = {}


def needed(graph: Graph, rows: Tensor) -> Needed:
    """The entries that some rows of the output depend on, by paths of coefficients other than zero.

    Args:
        rows: (r, ny).
    """
    found: dict[int, Tensor] = {}
    unread = set(range(len(graph.nodes)))
    walk = Pullback(graph, {graph.output: (rows != 0).any(0).reshape(1, *graph.nodes[graph.output].shape)}, torch.logical_or)
    for node, reached in walk:
        unread.remove(node.id)
        if not bool(reached.all()):
            found[node.id] = reached.flatten()
        parts: tuple[Tensor, ...] = (reached,) * len(node.inputs)
        if isinstance(node.op, Affine):
            parts = graph.absolutes[node.id].adjoint(reached.to(graph.precision(node.id)))
        shapes = (graph.nodes[source].shape for source in node.inputs)
        walk.send(node, ((part != 0).reshape(1, *shape) for part, shape in zip(parts, shapes, strict=True)))
    return found | {i: torch.zeros(graph.nodes[i].size, dtype=torch.bool, device=graph.device) for i in unread}


def wanted(graph: Graph, node: int, chosen: Tensor, lower: Tensor, upper: Tensor, needed: Tensor | None) -> Tensor:
    """Entries of a variable (batch, size) bool less those that nothing needs.

    Those that are infinite, or of which a function is, stay: lines around them are too, and zero times infinity is no number.

    Args:
        lower, upper: the variable's bounds, (batch, size).
        needed: (size,) bool, or None for all.
    """
    if needed is None:
        return chosen
    infinite = torch.isinf(lower) | torch.isinf(upper)
    for reading in graph.readers[node]:
        if len(graph.readings[reading.reader]) == 1:
            low, high = graph.nonlinearities[reading.reader].interval([Interval(lower, upper)])
            infinite |= torch.isinf(low) | torch.isinf(high)
    return chosen & (needed | infinite)


def refinable(graph: Graph) -> list[Node]:
    """The variables of nonlinear nodes that backward passes can improve, in topological order: pre-activations, and factors.

    Interval propagation is exact where at most one summing map lies between the input and the node, and through functions of one input;
    what a ball or half-spaces exclude it does not see.
    """
    depth, seen = summing_maps(graph), 1 if graph.boxed else 0
    improvable = (n for n in map(graph.nodes.__getitem__, graph.readers) if isinstance(n.op, Affine) or len(n.inputs) > 1)
    return [n for n in improvable if depth.get(n.id, 2) > seen]


def summing_maps(graph: Graph) -> dict[int, int]:
    """Per node that one path of affine nodes joins to the input, how many maps on that path sum."""
    found: dict[int, int] = {0: 0}
    for node in graph.nodes:
        if isinstance(node.op, Affine) and len(node.inputs) == 1 and node.inputs[0] in found:
            found[node.id] = found[node.inputs[0]] + (node.op.length > 1)
    return found
