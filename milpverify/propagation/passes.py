"""The passes that bound chosen entries of a node: which come together, in which windows, and what is known of the entries then."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64
from milpverify.operators import Affine, Window
from milpverify.operators.core import units
from milpverify.propagation.backward import Backward
from milpverify.propagation.memory import rows_that_fit
from milpverify.propagation.patches import pass_for, tiling
from milpverify.propagation.request import BoundTuning
from milpverify.propagation.screening import grouped, undecided
from milpverify.propagation.state import Bounds, NodeState, Passage, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from milpverify.graph import Graph, Node
    from milpverify.propagation.request import BoundRequest


def parts(
    graph: Graph, node: Node, state: State, chosen: Tensor, known: Known, sampled: bool, request: BoundRequest
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chosen entries (batch, size) bool as boxes and places: all, or where they are dear a sample, and the others if that gained much.

    Args:
        known: of the node, which the passes improve.
        sampled: whether the entries have been bounded by something other than intervals, so that a pass may gain next to nothing.
    """
    owner, index = chosen.nonzero(as_tuple=True)
    if not (sampled and _dear(graph, node, len(owner), len(chosen), request)):
        yield owner, index
        return
    tuning = request.tuning
    first = torch.zeros_like(owner, dtype=torch.bool)
    first[:: len(owner) // tuning.sample] = True
    at = owner[first], index[first]
    before = known.high[at] - known.low[at]
    yield at
    low, high = known.low, known.high
    left = undecided(graph, node.id, state, low, high)[at]
    gained = 1.0 - ((high[at] - low[at]) / before).nan_to_num(1.0, 0.0, 0.0)
    if float(torch.where(left, gained, 1.0).mean()) >= tuning.gains:
        yield owner[~first], index[~first]


def _dear(graph: Graph, node: Node, entries: int, boxes: int, request: BoundRequest) -> bool:
    """Whether passes for so many entries of a node, of so many boxes together, are to be tried on a sample first."""
    tuning, cost = request.tuning, request.cost
    if entries < 4 * tuning.sample:
        return False
    rows = entries / boxes
    all_rows = pass_for(graph, node, rows, cost)
    return not (all_rows < tuning.dear * rows or boxes * all_rows < cost.cheap)


class Known:
    """What is known of one node so far: `low` and `high` (batch, size), improved in place."""

    def __init__(self, node: NodeState) -> None:
        self.node = node
        bounds = node.bounds
        self.low, self.high = (side.flatten(1).clone(memory_format=torch.contiguous_format) for side in (bounds.lower, bounds.upper))

    @property
    def bounds(self) -> Bounds:
        """The bounds as they are now."""
        shape = self.node.bounds.lower.shape
        return Bounds(self.low.reshape(shape), self.high.reshape(shape))

    def improve(self, box: Tensor, index: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Take in bounds of the deviations of entries `index` (groups, rows) on boxes (groups,), with the node's charges.

        Returns:
            the bounds of these entries as they are then known, (groups, rows).
        """
        place = box.unsqueeze(1) * self.low.shape[1] + index
        center = self.node.center.flatten()[place]
        charge = self.node.charge.flatten()[place] if self.node.charge is not None else 0.0
        lost = charge * (1 + 2.0**-40) + 4 * U64 * center.abs()
        lower = torch.maximum(self.low.view(-1)[place], finite(center + lower - (lost + 4 * U64 * lower.abs())))
        upper = torch.minimum(self.high.view(-1)[place], -finite(-center - upper - (lost + 4 * U64 * upper.abs())))
        # Padding repeats entries: the best of them is taken, whatever the order in which they are written.
        self.low.view(-1).scatter_reduce_(0, place.flatten(), lower.flatten(), "amax")
        self.high.view(-1).scatter_reduce_(0, place.flatten(), upper.flatten(), "amin")
        return lower, upper


def passes(
    graph: Graph, node: Node, through: Passage, chosen: tuple[Tensor, Tensor], request: BoundRequest, parallel: bool
) -> Iterator[tuple[Backward, Tensor, Tensor]]:
    """Passes for chosen entries of a node, just started, with their boxes (groups,) and entries (groups, rows).

    Unless they are parallel, and bound both sides, the negatives follow the entries.

    Args:
        chosen: boxes, ascending, and places in the node.
    """
    owner, index = chosen
    tiles = tiling(graph, node, len(owner) / len(through.state[0].center), request.cost)
    most = rows_at_once(graph, None if tiles is None else tiles.cost.entries, request.tuning)
    if tiles is not None:
        owner = owner * tiles.count + tiles.of(index)
        order = owner.argsort(stable=True)
        owner, index = owner[order], index[order]
    for group, place in grouped(owner, most if parallel else most // 2):
        if request.expired:
            return
        entries = local = index[place]
        box, window = group, None
        if tiles is not None:
            box, window = group // tiles.count, tiles.window(group % tiles.count)
            local = tiles.local(entries, window)
        count, rows = entries.shape
        sweep = Backward(graph, through, count, rows if parallel else 2 * rows, box, parallel, request.cost.share)
        for source, part, there in _first(graph, node, local, window):
            sweep.add(source, part if parallel else torch.cat([part, -part], dim=1), there)
        yield sweep, box, entries


def _first(graph: Graph, node: Node, index: Tensor, window: Window | None) -> Iterable[tuple[int, Tensor, Window | None]]:
    """Unit vectors for entries (groups, r) of a node, or of what lies in its window, moved through its adjoint if it is affine."""
    if isinstance(node.op, Affine) and window is None:
        parts = node.op.rows(index.flatten(), node.shape)
        return ((i, part.reshape(*index.shape, *part.shape[1:]), None) for i, part in zip(node.inputs, parts, strict=True))
    if isinstance(node.op, Affine) and window is not None and (behind := node.op.behind(window, node.shape)) is not None:
        return zip(node.inputs, node.op.rows_within(index, window, node.shape), behind, strict=True)
    shape = node.shape if window is None else window.within
    return ((node.id, units(index.flatten(), shape, graph.precision(node.id)).reshape(*index.shape, *shape), window),)


def finite(bound: Tensor) -> Tensor:
    """A lower bound, of any shape, with NaN (from overflow) replaced by what is known then: nothing, -inf."""
    return torch.where(torch.isnan(bound), -torch.inf, bound)


def rows_at_once(graph: Graph, entries: float | None = None, tuning: BoundTuning = BoundTuning()) -> int:
    """How many rows of multipliers make one matrix of the size that suits the device, of so many entries at a node or of all."""
    mean = -(-graph.entries // len(graph.nodes)) if entries is None else math.ceil(entries)
    fit = rows_that_fit(graph, None if entries is None else 4 * entries, tuning)
    # Where there are several inputs there are as many matrices at once, and broadcasts make these nodes far larger than the others.
    several = max((3 * graph.nodes[i].size // 4 for i, r in graph.readings.items() if len(r) > 1 and entries is None), default=0)
    suits = max(16, tuning.chunk(graph.device) // (max(mean, several) * torch.finfo(graph.dtype).bits // 8))
    return max(2, min(suits, fit) // 2 * 2)
