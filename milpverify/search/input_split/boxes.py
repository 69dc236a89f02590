"""Open boxes of the bisection, compactly.

Beside its ends a box keeps the margins known of it and the bounds of pre-activations that its children inherit. Of these only
neurons that the root leaves undecided are kept, in float32 rounded outwards: they are by far the largest part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.propagation.relevance import refinable
from milpverify.propagation.screening import undecided
from milpverify.propagation.state import Bounds
from milpverify.search.frontier import Batch

if TYPE_CHECKING:
    from milpverify.graph import Graph
    from milpverify.propagation.state import State


@dataclass(eq=False)
class Boxes(Batch):
    """Boxes as arrays over n, with D disjuncts and U pre-activations that the root leaves undecided.

    `lower`, `upper` (n, nx) float64; `margins` (n, D) float64, proved; `scores` (n, nx) how much an input's interval moves the open
    rows; `unstable` (n,) the number of pre-activations whose relaxation is not exact; `tried` (n,) whether neuron splits were tried;
    `age` (n,) the number of subproblems when it was pushed; `inherited` (n, 2, U) float32, bounds of pre-activations (`Inheritance`).
    """

    lower: Tensor
    upper: Tensor
    margins: Tensor
    scores: Tensor
    unstable: Tensor
    tried: Tensor
    age: Tensor
    inherited: Tensor

    @property
    def proved(self) -> Tensor:
        """The lowest margin of each, (n,)."""
        return self.margins.amin(1)

    def divisible(self) -> Tensor:
        """Which have an input whose interval has a float64 strictly inside, (n,) bool."""
        middle = self.lower + 0.5 * (self.upper - self.lower)
        return ((middle > self.lower) & (middle < self.upper)).any(1)

    def halves(self) -> Boxes:
        """Both halves of every box, cut at the middle of its most sensitive input: (2 n), lower halves first."""
        width = self.upper - self.lower
        middles = self.lower + 0.5 * width
        axis = torch.where((middles > self.lower) & (middles < self.upper), self.scores + 1e-9 * width, -1.0).argmax(1, keepdim=True)
        middle = middles.gather(1, axis)
        both = self.join(self)
        both.lower[len(self) :] = self.lower.scatter(1, axis, middle)
        both.upper[: len(self)] = self.upper.scatter(1, axis, middle)
        return both

    def within(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Which lie in a box (nx,), (n,) bool."""
        return (self.lower >= lower).all(1) & (self.upper <= upper).all(1)


class Inheritance:
    """Which bounds of pre-activations are handed from a box to its halves.

    Args:
        graph: in float64.
        root: the state of the whole box, a batch of one.
    """

    def __init__(self, graph: Graph, root: State) -> None:
        self.whole = {node.id: root[node.id].bounds for node in refinable(graph)}
        self.free = {
            node.id: undecided(graph, node.id, root, *(t.flatten(1) for t in (root[node.id].bounds.lower, root[node.id].bounds.upper)))[
                0
            ].nonzero(as_tuple=True)[0]
            for node in refinable(graph)
        }

    def pack(self, state: State, chosen: Tensor) -> Tensor:
        """The bounds that some boxes of a batch hand down, rounded outwards: (n, 2, U) float32."""
        parts = []
        for z, free in self.free.items():
            bounds = state[z].bounds
            low, high = (side[chosen].flatten(1)[:, free] for side in (bounds.lower, bounds.upper))
            parts.append(torch.stack([_outward(low, -1.0), _outward(high, 1.0)], 1))
        return torch.cat(parts, 2) if parts else torch.zeros(len(chosen), 2, 0, device=chosen.device)

    def unpack(self, inherited: Tensor) -> dict[int, Bounds]:
        """The bounds of all neurons of these nodes, (n, *node.shape) float64, from what `pack` made, (n, 2, U).

        Those that the root decides have the root's.
        """
        known, start = {}, 0
        for z, free in self.free.items():
            sides = []
            for side, root in enumerate((self.whole[z].lower, self.whole[z].upper)):
                full = root.flatten(1).repeat(len(inherited), 1)
                full[:, free] = inherited[:, side, start : start + len(free)].double()
                sides.append(full.reshape(len(inherited), *root.shape[1:]))
            known[z] = Bounds(sides[0], sides[1])
            start += len(free)
        return known


def _outward(x: Tensor, direction: float) -> Tensor:
    y = x.float()
    return torch.nextafter(y, y.new_full((), direction * torch.inf))
