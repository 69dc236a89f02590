"""Lookup tables: W relu(s v + c) + b of one variable v, as networks write down a function of many pieces.

Intervals take each ReLU for a variable of its own. As a function of v alone the sum is least and largest at an end of v's interval, or at
one of the kinks -c_j / s_j inside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import UNDERFLOW, down, gamma, up
from milpverify.functions.pieces import RELU
from milpverify.operators import Linear, Nonlinear, Scale, Select
from milpverify.propagation.request import BoundTuning
from milpverify.propagation.state import Bounds

if TYPE_CHECKING:
    from milpverify.graph import Graph, Node


@dataclass(frozen=True, eq=False)
class Lookup:
    """W relu(s v + c) + b at every place of a node, (*places, m), of a variable v that the place has for itself.

    Attributes:
        source: the node that holds the variables.
        index: which of its entries, by places, flat.
        slope, offset: s and c, (k,).
        last: the operator with W (m, k) and b.
        terms: how many roundings a product of W with s or c suffers at most.
    """

    source: int
    index: Tensor
    slope: Tensor
    offset: Tensor
    last: Linear
    terms: int

    def bounds(self, known: Bounds) -> Bounds:
        """Bounds (batch, places * m) over the intervals of the variables, (batch, entries of the source)."""
        low, high = (side[:, self.index].unsqueeze(2) for side in (known.lower, known.upper))
        ends = [self._values(v) for v in (low, high)]
        least, most = (torch.stack(parts) for parts in zip(*ends, strict=True))
        below, above, (first, last) = self._kinks
        inside = ((last >= low) & (first <= high)).unsqueeze(2)
        lower = torch.minimum(least.amin(0), torch.where(inside, below, torch.inf).amin(3))
        upper = torch.maximum(most.amax(0), torch.where(inside, above, -torch.inf).amax(3))
        # NaN comes from values beyond float64.
        unknown = ~(low.isfinite() & high.isfinite()) | lower.isnan() | upper.isnan()
        return Bounds(lower.masked_fill(unknown, -torch.inf).flatten(1), upper.masked_fill(unknown, torch.inf).flatten(1))

    def _values(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the function at v (..., 1), each (..., m)."""
        size = self.last.absolute()
        value = self.last.forward([(self.slope * v + self.offset).relu()])
        reach = self.slope.abs() * v.abs() + self.offset.abs()
        error = gamma(self.terms) * size.forward([reach]) * (1 + 2 * gamma(self.terms))
        # What underflows in the argument of a ReLU is multiplied by W.
        error = error + size.linear([torch.full_like(reach, UNDERFLOW)]) + self.terms * UNDERFLOW
        return down(value - error), up(value + error)

    @cached_property
    def _kinks(self) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Bounds of the function at the kinks, (m, k) each, and the kinks enclosed, (k,); none where a slope is 0."""
        kink = (-self.offset / self.slope).nan_to_num(torch.inf, torch.inf, torch.inf)
        away = 2 * gamma(self.terms) * kink.abs() + UNDERFLOW
        below, above = self._values(kink.nan_to_num(0.0, 0.0, 0.0).unsqueeze(1))
        # What the function changes by between the kink and where it is taken for.
        steep = (self.last.weight.abs() * self.slope.abs()).sum(1) * (1 + 2 * gamma(self.terms)) + self.terms * UNDERFLOW
        moved = up(2 * away.nan_to_num(0.0, 0.0, 0.0).unsqueeze(1) * steep)
        enclosed = down(kink - away).nan_to_num(torch.inf), up(kink + away).nan_to_num(torch.inf)
        return down(below - moved).T, up(above + moved).T, enclosed


_KNOWN: WeakKeyDictionary[Graph, dict[int, dict[int, Lookup]]] = WeakKeyDictionary()


def lookups(graph: Graph, tuning: BoundTuning = BoundTuning()) -> dict[int, Lookup]:
    """The graph's lookup tables by the nodes that hold their values; looked for once."""
    known, largest = _KNOWN.setdefault(graph, {}), tuning.lookup
    if largest not in known:
        known[largest] = {node.id: found for node in graph.nodes if (found := _lookup(graph, node, largest)) is not None}
    return known[largest]


def _lookup(graph: Graph, node: Node, largest: int) -> Lookup | None:
    if not isinstance(node.op, Linear) or node.op.weight.dtype != torch.float64:  # the errors are float64's
        return None
    relu = graph.nodes[node.inputs[0]]
    if not (isinstance(relu.op, Nonlinear) and relu.op.pieces == RELU and len(graph.consumers[relu.id]) == 1):
        return None
    line = graph.nodes[relu.inputs[0]]
    if not (isinstance(line.op, Scale) and (k := line.shape[-1]) > 1):
        return None
    spread = graph.nodes[line.inputs[0]]
    if not isinstance(spread.op, Select) or spread.op.bias is not None or node.op.weight.numel() > largest:
        return None
    index = spread.op.index.reshape(-1, k)
    given = (line.op.weight, 1.0), (line.op.bias, 0.0)
    parts = [torch.full((1,), value, dtype=torch.float64, device=index.device) if part is None else part for part, value in given]
    # One variable a place, and the same function everywhere.
    if bool((index != index[:, :1]).any()) or bool((index < 0).any()) or any(p.numel() not in (1, p.shape[-1]) for p in parts):
        return None
    slope, offset = (p.flatten().expand(k) for p in parts)
    return Lookup(spread.inputs[0], index[:, 0], slope, offset, node.op, node.op.terms + line.op.terms + 4)
