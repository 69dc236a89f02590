"""Bounds of a whole box, cheap ones first: intervals, forward forms where few inputs vary, backward passes within a budget.

Every rung is a complete bound: its intermediate bounds, and one backward pass for the rows of the margin. What a rung decides, the next
need not look at: forward forms may leave a hundredth of the neurons to backward passes that intervals leave. Where all backward passes
together are cheap there is one rung only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from milpverify.propagation.cost import (
    BACKWARD_RATE,
    FEW,
    FORWARD_RATE,
    backward_passes,
    forward_pass,
    is_dear,
    multiplications,
    undecided_backward,
)
from milpverify.result import json_number
from milpverify.search.bounding import BatchBounds, Method, Prepared, bound_batch, choose
from milpverify.search.groups import few_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.search.groups import Group

SHARE, FEW_SHARE, LEAST = 0.3, 0.5, 1.0
"""Of the time left, what backward passes may take, also where few inputs vary (where they spare thousands of
boxes), and seconds that they may take in any case."""
FIXED, ABOVE = 1e12, 3.0
"""Multiplications that backward passes may take before boxes are bisected, whatever the time; and how far an estimate may be above what
can be afforded: what one layer decides, the next need not look at."""
LARGE = 20_000
"""Above this number of entries of all nodes matrices are multiplied in float32, which halves the time; bounds hold all the same."""


@dataclass(frozen=True, eq=False)
class Rung:
    """What a rung came to: its method, what it was estimated to take, and bounds of the disjuncts of `group`, those open before it.

    `cut`: it had not the time to bound every neuron; `first`: dearer ones may follow.
    """

    method: Method
    multiplications: float
    group: Group
    found: BatchBounds
    cut: bool = False
    first: bool = False

    def line(self, seconds: float) -> dict[str, Any]:
        """What the ledger of a run says of it."""
        bound, took = float(self.found.margins.amin()), round(seconds, 3)
        whole = {"rung": self.method.value, "multiplications": f"{self.multiplications:.3g}", "seconds": took, "bound": json_number(bound)}
        return {**whole, "complete": not self.cut}


def climb(graph: Graph, group: Group, deadline: Deadline, clocked: bool, bisected: bool = True) -> Iterator[Rung]:
    """Bound the group's box rung by rung, with the open disjuncts only; ends where none is open, or with the last that pays.

    Args:
        graph: in float64.
        clocked: whether backward passes are cut when they have had their share of the time.
        bisected: whether a search may follow that bisects boxes.
    """
    lower, upper = (torch.tensor(side, device=graph.device)[None] for side in (group.box.lower, group.box.upper))
    dtype = torch.float64 if graph.entries <= LARGE else torch.float32
    prepared = Prepared.of(graph, group)

    def bound(method: Method, until: Deadline) -> BatchBounds:
        # Nothing is inherited: bounds that are would not be screened again.
        found = bound_batch(graph, group, lower, upper, dtype, None, until, method, prepared=prepared)
        return found if known is None else replace(found, margins=torch.maximum(found.margins, known.margins))

    known: BatchBounds | None = None
    last, share = Method.BACKWARD, SHARE
    if is_dear(graph):
        known = bound(Method.INTERVALS, deadline)
        yield Rung(Method.INTERVALS, 4.0 * sum(multiplications(graph)), group, known, first=True)
        varying = int((upper > lower).sum())
        forward, backward = forward_pass(graph, varying), backward_passes(graph, known.state, prepared.needed)
        if varying <= FEW and forward / FORWARD_RATE < backward / BACKWARD_RATE and not bool(group.closed(known.margins).all()):
            group, known = _open(group, known)
            prepared = Prepared.of(graph, group)
            known, last = bound(Method.FORWARD, deadline), Method.BOTH
            yield Rung(Method.FORWARD, forward, group, known)
            backward = backward_passes(graph, known.state, prepared.needed)
            if few_inputs(group):
                share = FEW_SHARE
                if bisected and backward > (ABOVE * share * deadline.remaining() * BACKWARD_RATE if clocked else FIXED):
                    return  # smaller boxes are the better investment
        if bool(group.closed(known.margins).all()):
            return
        group, known = _open(group, known)
        prepared = Prepared.of(graph, group)
    estimate = undecided_backward(graph) if known is None else backward_passes(graph, known.state, prepared.needed)
    until = deadline if known is None or not clocked else deadline.within(max(LEAST, share * deadline.remaining()))
    found = bound(last, until)
    yield Rung(last, estimate, group, found, until.expired())


def _open(group: Group, found: BatchBounds) -> tuple[Group, BatchBounds]:
    """Those disjuncts that bounds leave open."""
    keep = [k for k, closed in enumerate(group.closed(found.margins)[0].tolist()) if not closed]
    return (group, found) if len(keep) == group.count else choose(group, found, keep)
