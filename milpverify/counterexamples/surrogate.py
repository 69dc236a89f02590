"""Gradients where a network has none: what an attack follows across jumps and through saturated functions.

A jump counts as an arc tangent, about as steep as its argument's spread over the starts: the straight-through estimator of Bengio et al.
(arXiv 1308.3432), whose tails reach neurons that are far from their jump. A curved function whose derivative vanishes at every start, as
those of a softmax of logits hundreds apart do, is taken at a higher temperature (Hinton et al., arXiv 1503.02531). Values across jumps stay
those of the network; what temperatures change, the attack alone sees, and only points that the network itself violates count.

An exponential that overflows, as that of a score less one that is masked by -1e4 does, has no gradient either: 0, that of the reciprocal
behind it, times infinity. Here it ends at the largest number, and has slope 0 there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.graph import evaluate_all
from milpverify.operators import Elementwise, Nonlinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.functions.catalogue import Function
    from milpverify.functions.pieces import Pieces
    from milpverify.graph import Graph, Node


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A network with slopes at jumps and temperatures, by node: `spreads` are those of arguments of functions with jumps.

    Without either it is the network itself, but for exponentials that overflow.
    """

    graph: Graph
    spreads: dict[int, float] = field(default_factory=dict)
    temperatures: dict[int, float] = field(default_factory=dict)

    @staticmethod
    def across_jumps(graph: Graph, x: Tensor) -> Surrogate:
        """With slopes at jumps as steep as suits the points x (N, nx)."""
        with torch.no_grad():
            values = evaluate_all(graph, x)
        return Surrogate(graph, {n.id: _spread(values[n.inputs[0]]) for n in graph.nodes if _jumping(n)})

    def softened(self, x: Tensor, saturated: float = 20.0) -> Surrogate:
        """With temperatures for those functions whose derivative vanishes at all points x (N, nx) and at almost all entries.

        Args:
            saturated: the size that the largest argument of such a function is brought to.
        """
        found: dict[int, float] = {}
        with torch.no_grad():
            values = evaluate_all(self.graph, x)
            for node in self.graph.nodes:
                if not isinstance(node.op, Elementwise) or node.op.function.pieces is not None:
                    continue
                z = values[node.inputs[0]]
                flat = node.op.function.derivative(z).abs()
                largest = float(z.abs().amax())
                if float(((flat > 0) & flat.isfinite()).double().mean()) < 0.5 and saturated < largest < math.inf:
                    found[node.id] = largest / saturated
        return Surrogate(self.graph, self.spreads, found)

    def __call__(self, x: Tensor) -> Tensor:
        """The outputs (N, ny) at the points x (N, nx), differentiable."""
        return evaluate_all(self.graph, x, self._value)[self.graph.output]

    def _value(self, node: Node, args: Sequence[Tensor]) -> Tensor:
        if node.id in self.spreads and isinstance(node.op, Elementwise):
            true, slope = node.op.function(args[0]), _smoothed(node.op.function, args[0], self.spreads[node.id])
            return true.detach() + slope - slope.detach()
        if node.id in self.temperatures:
            args = [args[0] / self.temperatures[node.id]]
        assert isinstance(node.op, Nonlinear)
        if isinstance(node.op, Elementwise) and (factor := abs(node.op.function.exponential)):
            args = [args[0].clamp(max=math.log(torch.finfo(args[0].dtype).max) - max(0.0, math.log(factor)) - 1)]
        return node.op.value(args)


def has_jumps(graph: Graph) -> bool:
    """Whether a function of a network has jumps."""
    return any(map(_jumping, graph.nodes))


def _jumping(node: Node) -> bool:
    return isinstance(node.op, Nonlinear) and (node.op.staircase or bool(_jumps(node.op.pieces)))


def _jumps(pieces: Pieces | None) -> list[tuple[float, float]]:
    """The places of jumps of a piecewise-linear function, and their heights."""
    if pieces is None:
        return []
    left = [k * p + c for k, c, p in zip(pieces.slopes, pieces.intercepts, pieces.breakpoints, strict=False)]
    right = [k * p + c for k, c, p in zip(pieces.slopes[1:], pieces.intercepts[1:], pieces.breakpoints, strict=True)]
    return [(p, b - a) for p, a, b in zip(pieces.breakpoints, left, right, strict=True) if a != b]


def _spread(z: Tensor) -> float:
    """How far values (N, ...) are from their mean over N, on average; of one point, how large they are."""
    return max(float((z - z.mean(0) if len(z) > 1 else z).abs().mean()), 1e-6)


def _smoothed(function: Function, z: Tensor, spread: float) -> Tensor:
    """A function whose derivative is to stand for that of one with jumps: of a staircase, the line through its middle."""
    if function.staircase:
        return z
    total = function(z)
    for place, height in _jumps(function.pieces):
        total = total + height / math.pi * torch.atan((z - place) / spread)
    return total
