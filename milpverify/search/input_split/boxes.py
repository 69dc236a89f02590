"""Open boxes of the bisection, compactly, and a frontier that takes and gives without copying what waits.

Beside its ends a box keeps the margins known of it and the bounds of pre-activations that its children inherit. Of these only
neurons that the root leaves undecided are kept, in float32 rounded outwards: they are by far the largest part.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.propagation.relevance import refinable
from milpverify.propagation.screening import undecided
from milpverify.propagation.state import Bounds

if TYPE_CHECKING:
    from milpverify.graph import Graph
    from milpverify.propagation.state import State


@dataclass(eq=False)
class Boxes:
    """Boxes as arrays over n, with D disjuncts and U pre-activations that the root leaves undecided.

    `lower`, `upper` (n, nx) float64; `margins` (n, D) float64, proved; `scores` (n, nx) how much an input's interval moves the open
    rows; `unstable` (n,) the number of pre-activations whose relaxation is not exact; `tried` (n,) whether neuron splits were tried;
    `age` (n,) the number of subproblems when it was pushed; `ends` (n, 2, U) float32, the inherited bounds (`Inheritance`).
    """

    lower: Tensor
    upper: Tensor
    margins: Tensor
    scores: Tensor
    unstable: Tensor
    tried: Tensor
    age: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.lower)

    def take(self, chosen: Tensor) -> Boxes:
        """Some of them, by number or by mask."""
        return Boxes(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def join(self, *others: Boxes) -> Boxes:
        """All together."""
        return Boxes(*(torch.cat([getattr(b, f.name) for b in (self, *others)]) for f in fields(self)))

    @property
    def worst(self) -> Tensor:
        """The lowest margin of each, (n,)."""
        return self.margins.amin(1)

    @property
    def lowest(self) -> float:
        """The lowest margin of all, inf where there is no box."""
        return float(self.worst.amin()) if len(self) else torch.inf

    @property
    def bytes_each(self) -> int:
        """The storage of one, in bytes."""
        return sum(t[:1].numel() * t.element_size() for t in (getattr(self, f.name) for f in fields(self)))

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


class Inheritance:
    """Which bounds of pre-activations are handed from a box to its halves.

    Args:
        graph: in float64.
        root: the state of the whole box, a batch of one.
    """

    def __init__(self, graph: Graph, root: State) -> None:
        self.root = {node.id: root[node.id].bounds for node in refinable(graph)}
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

    def unpack(self, ends: Tensor) -> dict[int, Bounds]:
        """The bounds of all neurons of these nodes, float64: those that the root decides have the root's."""
        known, start = {}, 0
        for z, free in self.free.items():
            sides = []
            for side, root in enumerate((self.root[z].lower, self.root[z].upper)):
                full = root.flatten(1).repeat(len(ends), 1)
                full[:, free] = ends[:, side, start : start + len(free)].double()
                sides.append(full.reshape(len(ends), *root.shape[1:]))
            known[z] = Bounds(sides[0], sides[1])
            start += len(free)
        return known


def _outward(x: Tensor, direction: float) -> Tensor:
    y = x.float()
    return torch.nextafter(y, y.new_full((), direction * torch.inf))


class BoxFrontier:
    """The open boxes, in arrays with room to grow: taking some out and putting some in costs what these are, not what waits.

    Args:
        like: boxes of the shapes to come.
    """

    def __init__(self, like: Boxes) -> None:
        self.store = like.take(torch.zeros(0, dtype=torch.long, device=like.lower.device))
        self.alive = torch.zeros(0, dtype=torch.bool, device=like.lower.device)
        self.bytes_each = like.bytes_each
        self.lent: int | None = None  # the place of a box that something else works on, to be taken last

    def __len__(self) -> int:
        return int(self.alive.sum())

    @property
    def bytes(self) -> int:
        """The storage of what is open."""
        return len(self) * self.bytes_each

    @property
    def lowest(self) -> float:
        """The lowest margin of all that are open, inf if nothing is."""
        return float(self.store.worst[self.alive].amin()) if bool(self.alive.any()) else torch.inf

    def push(self, boxes: Boxes) -> None:
        """Put some in. Where memory is short nothing has changed."""
        if not len(boxes):
            return
        free = (~self.alive).nonzero(as_tuple=True)[0]
        if len(free) < len(boxes):
            self._grow(max(len(self.alive) // 2, len(boxes) - len(free)))
            free = (~self.alive).nonzero(as_tuple=True)[0]
        place = free[: len(boxes)]
        for f in fields(boxes):
            getattr(self.store, f.name)[place] = getattr(boxes, f.name)
        self.alive[place] = True

    def pop(self, count: int, nearest: bool = False) -> Boxes:
        """Take out those of lowest margin, or with `nearest` those of highest, which are the nearest to being closed."""
        place = self.alive.nonzero(as_tuple=True)[0]
        if self.lent is not None and len(place) > 1:
            place = place[place != self.lent]
        chosen = place[self.store.worst[place].topk(min(count, len(place)), largest=nearest).indices]
        taken = self.store.take(chosen)
        self.alive[chosen] = False
        return taken

    def within(self, lower: Tensor, upper: Tensor) -> Tensor:
        """The places of the open boxes that lie in a box (nx,)."""
        inside = (self.store.lower >= lower).all(1) & (self.store.upper <= upper).all(1)
        return (inside & self.alive).nonzero(as_tuple=True)[0]

    def remove(self, place: Tensor) -> None:
        """Take out those at some places."""
        self.alive[place] = False

    def all(self) -> Boxes:
        """All that are open."""
        return self.store.take(self.alive)

    def _grow(self, more: int) -> None:
        old = [getattr(self.store, f.name) for f in fields(self.store)]
        self.store = Boxes(*(torch.cat([t, t.new_zeros(more, *t.shape[1:])]) for t in old))
        self.alive = torch.cat([self.alive, self.alive.new_zeros(more)])
