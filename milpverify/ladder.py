"""Bounds of a whole box, cheap ones first: intervals, forward forms where few inputs vary, backward passes within a budget.

Every rung is a complete bound: its intermediate bounds, and one backward pass for the rows of the margin. What a rung decides, the next
need not look at: forward forms may leave a hundredth of the neurons to backward passes that intervals leave. Where all backward passes
together are cheap there is one rung only. Where they are not to be afforded they are made for the neurons that loosen the margin most.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from milpverify.propagation.cost import backward_passes, forward_pass, is_dear, multiplications, undecided_backward
from milpverify.propagation.differences.coefficients import DifferenceTuning
from milpverify.propagation.loosest import loosest
from milpverify.propagation.relevance import refinable
from milpverify.propagation.request import BoundRequest, BoundTuning, CostTuning, Method
from milpverify.result import json_number
from milpverify.search.bounding import BatchBounds, Prepared, bound_batch, choose
from milpverify.search.groups import GroupTuning, few_inputs
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from milpverify.config import Deadline, SearchOptions
    from milpverify.graph import Graph
    from milpverify.search.groups import Group


class LadderTuning(Tuning):
    """What the rungs of a ladder may take."""

    share: float = 0.3
    few_share: float = 0.5
    least: float = 1.0
    """Of the time left, what backward passes may take, also where few inputs vary and they spare thousands of boxes, and seconds that they
    may take in any case."""
    fixed: float = 3e11
    above: float = 3.0
    """Multiplications that backward passes may take where no clock may be asked, and how far an estimate may be above what can be afforded:
    what one layer decides, the next need not look at."""
    part: float = 3e10
    growth: float = 3.0
    """Multiplications that the neurons which loosen the margin most get first, a second's, and the factor between one rung for them and the
    next: what little decides takes little time, whatever the limit."""
    large: int = 20_000
    """Above this number of entries of all nodes matrices are multiplied in float32, which halves the time; bounds hold all the same."""


def precision(graph: Graph, tuning: LadderTuning = LadderTuning()) -> torch.dtype:
    """The precision of the matrices: that of float64 but for large graphs."""
    return torch.float64 if graph.entries <= tuning.large else torch.float32


@dataclass(frozen=True, eq=False)
class Rung:
    """What a rung came to: its name, what it was estimated to take, and bounds of the disjuncts of `group`, those open before it.

    `cut`: it had not the time to bound every neuron that it set out to; `first`: dearer ones may follow.
    """

    name: str
    multiplications: float
    group: Group
    found: BatchBounds
    cut: bool = False
    first: bool = False

    def line(self, seconds: float) -> dict[str, Any]:
        """What the ledger of a run says of it."""
        bound, took = float(self.found.margins.amin()), round(seconds, 3)
        whole = {"rung": self.name, "multiplications": f"{self.multiplications:.3g}", "seconds": took, "bound": json_number(bound)}
        return {**whole, "complete": not self.cut}


def climb(graph: Graph, group: Group, deadline: Deadline, search: SearchOptions, bisected: bool = True) -> Iterator[Rung]:
    """Bound the group's box rung by rung, with the open disjuncts only; ends where none is open, or with the last that pays.

    Args:
        graph: in float64.
        search: where choices go by counts backward passes are not cut when they have had their share of the time.
        bisected: whether a search may follow that bisects boxes.
    """
    lower, upper = (torch.tensor(side, device=graph.device)[None] for side in (group.box.lower, group.box.upper))
    tuning, cost, copies = search.tuned(LadderTuning), search.tuned(CostTuning), search.tuned(DifferenceTuning)
    asked = BoundRequest(screened_before=False, tuning=search.tuned(BoundTuning), cost=cost)
    box = _Box(graph, group, lower, upper, Prepared.of(graph, group, copies), tuning, asked, copies)
    if not is_dear(graph, cost):
        yield box.rung(Method.BACKWARD, undecided_backward(graph, cost), deadline)
        return
    yield replace(box.rung(Method.INTERVALS, 4.0 * sum(multiplications(graph, cost)), deadline), first=True)
    varying, clocked = int((upper > lower).sum()), not search.deterministic
    forward, last, few = forward_pass(graph, varying, cost), Method.BACKWARD, few_inputs(group, search.tuned(GroupTuning))
    if varying <= cost.few and forward / cost.forward_rate < box.backward / cost.backward_rate and not box.closed:
        yield box.rung(Method.FORWARD, forward, deadline)
        last = Method.BOTH
    if box.closed:
        return
    seconds = max(tuning.least, (tuning.few_share if few else tuning.share) * deadline.remaining())
    until, most = (deadline.within(seconds), seconds * cost.backward_rate) if clocked else (deadline, tuning.fixed)
    if few and bisected:
        if box.backward > tuning.above * most:  # smaller boxes are the better investment
            return
    else:
        for rung in box.loosest(last, until, most, clocked):
            most -= rung.multiplications
            yield rung
        if box.closed or box.backward > tuning.above * most:
            return
    yield box.rung(last, box.backward, until)


@dataclass(eq=False)
class _Box:
    """The box of a group, what is known of it so far, and the entries that the rungs for the loosest neurons have bounded."""

    graph: Graph
    group: Group
    lower: Tensor
    upper: Tensor
    prepared: Prepared
    tuning: LadderTuning
    asked: BoundRequest
    copies: DifferenceTuning
    known: BatchBounds | None = None
    done: dict[int, Tensor] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        """Whether nothing is open."""
        return self.known is not None and bool(self.group.closed(self.known.margins).all())

    @property
    def backward(self) -> float:
        """Multiplications of backward passes for everything that is undecided."""
        if self.known is None:
            return undecided_backward(self.graph, self.asked.cost)
        return backward_passes(self.graph, self.known.state, self.prepared.needed, self.asked.cost)

    def rung(self, method: Method, estimate: float, until: Deadline, chosen: dict[int, Tensor] | None = None) -> Rung:
        """Bound the disjuncts that are open, with a deadline; `chosen` are the entries that get a pass, all that are needed by default."""
        graph, known = self.graph, self.known
        if known is not None:
            keep = [k for k, closed in enumerate(self.group.closed(known.margins)[0].tolist()) if not closed]
            if len(keep) < self.group.count:
                self.group, known = choose(self.group, known, keep)
                self.prepared = Prepared.of(graph, self.group, self.copies)
        prepared = self.prepared if chosen is None else replace(self.prepared, needed=chosen)
        # Bounds by backward passes are handed on; others, from which passes with forms of their own begin, would be found again.
        bounds = (
            {node.id: known.state[node.id].bounds for node in refinable(graph)} if known is not None and (chosen or self.done) else None
        )
        request = replace(self.asked, known=bounds, deadline=until, method=method)
        found = bound_batch(graph, self.group, self.lower, self.upper, self.dtype, request, prepared)
        self.known = found if known is None else replace(found, margins=torch.maximum(found.margins, known.margins))
        name = method.value if chosen is None else "loosest"
        return Rung(name, estimate, self.group, self.known, method not in (Method.INTERVALS, Method.FORWARD) and until.expired())

    def loosest(self, method: Method, until: Deadline, most: float, clocked: bool) -> Iterator[Rung]:
        """Passes for the neurons that loosen the margin most, part by part while those for all take several times as much."""
        part, rate, above = self.tuning.part, self.asked.cost.backward_rate, self.tuning.above
        while not (until.expired() or self.closed or self.known is None or self.backward <= above * min(part, most)):
            can = min(part, most, rate * until.remaining() if clocked else math.inf)
            now, rows = self.known, self.group.y_rows
            request = replace(self.asked, needed=self.prepared.needed)
            chosen, estimate = loosest(self.graph, now.state, now.table, rows, request, can, self.done, self.dtype)
            if not estimate:
                return
            self.done = {i: mask | self.done[i] if i in self.done else mask for i, mask in chosen.items()}
            began = time.monotonic()
            found = self.rung(method, estimate, until, chosen)
            part, most, rate = self.tuning.growth * part, most - estimate, estimate / max(time.monotonic() - began, 1e-9)
            yield found

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the matrices."""
        return precision(self.graph, self.tuning)
