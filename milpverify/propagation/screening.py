"""Which pre-activations are stable: one backward pass with parallel slopes, which gives both sides with one matrix.

Rows leave the pass as soon as the intervals on the way decide them. The last step, onto the input, is often the dearest. Before
it the norm inequality ||v||_1 <= sqrt(n) ||v||_2 bounds what the inputs can add through the Gram matrix of the first layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import gamma
from milpverify.graph import affine_form
from milpverify.operators import Affine
from milpverify.propagation.backward import Backward
from milpverify.propagation.relevance import summing_maps
from milpverify.propagation.request import BoundTuning
from milpverify.relaxations.registry import rule_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.graph import Graph
    from milpverify.operators import Nonlinear
    from milpverify.propagation.state import State

Improve = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes boxes (groups,), entries, and bounds of their deviations (groups, rows); returns the entries' bounds as then known."""


@dataclass(frozen=True, eq=False)
class Gram:
    """rows (A diag(r)) bounded through rows G rows^T, G = A diag(r)^2 A^T, at the first pre-activation node z = A x + b.

    `matrix` (n, n), in the precision of the passes, exceeds G by a multiple of the identity that covers all rounding.
    """

    node: int
    matrix: Tensor
    inputs: int

    @staticmethod
    def of(graph: Graph, fast: Graph, radius: Tensor) -> Gram | None:
        """The matrix for boxes of at most the radius given, (nx,); None where it would save nothing.

        Args:
            graph: in float64.
            fast: in the precision of the passes.
        """
        node = next((graph.nodes[i].inputs[0] for i in graph.nonlinear), 0)
        size = graph.nodes[node].size
        if 4 * size > graph.nx or summing_maps(graph).get(node) != 1:
            return None
        # A product with the matrix must take less than the step onto the input: that of a convolution is no dense one.
        passed = (graph.nodes[i] for i in graph.ancestors[node])
        if size * size > sum(n.op.products(n.shape) for n in passed if isinstance(n.op, Affine) and n.op.length > 1):
            return None
        unit = torch.eye(size, dtype=torch.float64, device=graph.device).reshape(size, *graph.nodes[node].shape)
        # With one summing map at most, an entry of A is a product of weights, exact up to a unit each beside their own rounding.
        scaled = affine_form(graph, node, unit).coefficients[0].flatten(1) * radius
        exact = scaled @ scaled.T
        roundings = graph.nx + 4 * len(graph.nodes) + 2 * sum(op.rounded for op in graph.absolutes.values())
        lost = 2 * gamma(roundings) * scaled.square().sum()
        lost += 2 * gamma(2 * size + 16, fast.dtype) * exact.square().sum().sqrt()
        tiny = 2.0 * size * size * torch.finfo(fast.dtype).tiny
        matrix = exact + (lost + tiny) * torch.eye(size, dtype=torch.float64, device=graph.device)
        return Gram(node, matrix.to(fast.dtype), int((radius > 0).sum()))

    def reach(self, rows: Tensor) -> Tensor:
        """An upper bound of |rows . (z - centre)| over every box: (groups, rows, *shape) -> (groups, rows) float64."""
        flat = rows.flatten(2)
        square = ((flat.flatten(0, 1) @ self.matrix).reshape(flat.shape) * flat).sum(2).double().clamp(min=0.0)
        tiny = 2.0 * flat.shape[2] ** 2 * torch.finfo(flat.dtype).tiny
        return (self.inputs * (square + tiny)).sqrt() * (1 + 2.0**-40)


def undecided(graph: Graph, node: int, state: State, lower: Tensor, upper: Tensor) -> Tensor:
    """Where the relaxation of something that reads a variable within [lower, upper] is not exact, (batch, size) bool.

    Args:
        lower, upper: (batch, size) float64.
        state: of what else it reads; anything is possible of nodes that are not in it.
    """
    functions = functions_of(graph, node)
    if functions is not None:
        return inexact(functions, lower, upper)
    loose = torch.zeros_like(lower, dtype=torch.bool)
    for reading in graph.readers[node]:
        others = graph.readings[reading.reader]
        shape = graph.nodes[reading.reader].size
        ends: tuple[list[Tensor], list[Tensor]] = [], []
        for other in others:
            if other.node == node:
                known = lower, upper
            elif other.node in state:
                known = state[other.node].bounds.lower.flatten(1), state[other.node].bounds.upper.flatten(1)
            else:
                everything = lower.new_full((), torch.inf).expand(len(lower), shape)
                known = -everything, everything
            for side, end in zip(ends, known, strict=True):
                side.append(end if other.index is None or (other.node not in state and other.node != node) else end[:, other.index])
        exact = rule_of(graph.nodes[reading.reader].op).is_exact(tuple(ends[0]), tuple(ends[1]))
        if reading.index is None:
            loose |= ~exact
        else:
            loose |= torch.zeros_like(lower).index_add_(1, reading.index, (~exact).to(lower.dtype)) > 0
    return loose


def functions_of(graph: Graph, node: int) -> list[Nonlinear] | None:
    """The functions of one input that read a variable; None where operators of several inputs do, too."""
    readers = [reading.reader for reading in graph.readers[node]]
    return [graph.nonlinearities[i] for i in readers] if all(len(graph.readings[i]) == 1 for i in readers) else None


def inexact(functions: Sequence[Nonlinear], lower: Tensor, upper: Tensor) -> Tensor:
    """Where a relaxation of functions of one input on [lower, upper], float64 of any one shape, is not exact: bool, of that shape."""
    exact = [rule_of(f).is_exact((lower,), (upper,)) for f in functions]
    return ~(exact[0] if len(exact) == 1 else torch.stack(exact).all(0))


def screen(
    sweep: Backward,
    functions: Sequence[Nonlinear],
    gram: Gram | None,
    place: Tensor,
    improve: Improve,
    tuning: BoundTuning = BoundTuning(),
) -> None:
    """Run one pass with parallel slopes; rows leave it as soon as they are decided, or as it cannot be expected any more.

    Args:
        sweep: just started.
        functions: that read the node.
        place: (groups, rows): the entries that the rows are for; repetitions at the end of a group are padding.
        improve: takes the bounds in.
    """
    nodes = sweep.graph.nodes
    alive = torch.ones_like(place, dtype=torch.bool)
    arrived = False
    while not arrived:
        arrived = not sweep.step()
        last = max(sweep.waiting)
        at_gram = gram is not None and last == gram.node and len(sweep.waiting) == 1
        # Intervals say something new where the multipliers have just passed an affine map onto a nonlinear node's output.
        if not (arrived or at_gram or not isinstance(nodes[last].op, Affine)):
            continue
        assert sweep.owner is not None
        below, above = sweep.accumulated(gram.reach(sweep.whole(last))) if at_gram and gram is not None else sweep.concretise()
        # Rows that have left add nothing, so that results do not depend on whether the table was packed.
        low, high = improve(sweep.owner, place, below.masked_fill(~alive, -torch.inf), above.masked_fill(~alive, torch.inf))
        if arrived:
            return
        alive &= inexact(functions, low, high)
        alive[:, 1:] &= place[:, 1:] != place[:, :-1]
        if at_gram:
            centre, half = 0.5 * (low + high), tuning.hopeless * 0.5 * (high - low)
            alive &= ~inexact(functions, centre - half, centre + half)
        kept = alive.flatten().nonzero(as_tuple=True)[0]
        if not len(kept):
            return
        if len(kept) < 0.8 * alive.numel():
            start, count = pieces(kept // alive.shape[1], -(-len(kept) // len(alive)))
            position = kept[padded(start, count, int(count.max()))]
            sweep.gather(position[:, 0] // alive.shape[1], position)
            place = place.flatten()[position]
            alive = torch.ones_like(place, dtype=torch.bool)


def pieces(owner: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Stretches of at most so many consecutive entries of one owner, (K,) ascending: their starts and lengths, (S,) int64."""
    rank = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
    start = (rank % most == 0).nonzero(as_tuple=True)[0]
    return start, torch.diff(start, append=start.new_tensor([len(owner)]))


def padded(start: Tensor, count: Tensor, width: int) -> Tensor:
    """The stretches, their starts and lengths (S,), as rows of a table (S, width), the last entry of shorter ones repeated."""
    return start.unsqueeze(1) + torch.minimum(torch.arange(width, device=start.device), count.unsqueeze(1) - 1)


def grouped(owner: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Entries as groups of one owner each: owners (G,) and places (G, R), with G * R <= most and little padding.

    Groups of like length come together, so that little is padded.

    Args:
        owner: (K,), ascending.
    """
    if not len(owner):
        return
    start, count = pieces(owner, most)
    order = count.argsort(descending=True, stable=True)
    lengths, first = count[order].tolist(), 0
    while first < len(lengths):
        some = order[first : first + most // lengths[first]]
        yield owner[start[some]], padded(start[some], count[some], lengths[first])
        first += len(some)
