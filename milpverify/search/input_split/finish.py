"""Finishing small boxes by neuron splits: where few neurons are unstable, a handful of splits does what thousands of bisections do.

A box shrinks in every input before a kink that matters is on its border; a split puts the kink there at once. Whether that pays is
measured by counts: the share of boxes that a round closes moves the number of unstable neurons up to which it is tried. Boxes with
every neuron on one piece are linear programs, which also tell a tie from what bisection would decide in the end.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milpverify.config import Branching, Options, SearchOptions
from milpverify.propagation.state import Bounds
from milpverify.search.bounding import bound_batch, is_out_of_memory
from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.context import SearchContext
from milpverify.search.ledger import Reporter
from milpverify.search.neuron_split.bounder import NeuronTuning
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.search.bounding import Prepared
    from milpverify.search.effort import Effort
    from milpverify.search.groups import Group
    from milpverify.search.input_split.boxes import Boxes
    from milpverify.search.neuron_split.subproblems import Subproblems
    from milpverify.search.solver.leaves import Leaves
    from milpverify.search.tree import Incumbents, Tree

PLAIN = SearchOptions(clipping=False, output_constraints=False, no_goods=False, branching=Branching.FIRST_ORDER)
"""A search that derives nothing under "the point is unsafe"."""


class FinishTuning(Tuning):
    """When small boxes are finished by neuron splits, and what that may take."""

    first: float = 0.6
    """Seconds of bisection before the first round, as estimated: easy problems end earlier."""
    boxes: int = 256
    seconds: float = 0.5
    """The most boxes a round takes, and four times the fewest; where they are dear, as many as bisection bounds in so many seconds, as
    estimated."""
    branchings: int = 5
    """What a round may spend on a box: some need far more than a handful, and go back to bisection."""
    leaves: int = 64
    leaf_seconds: float = 0.3
    """The most linear programs of a round, each of which takes as long as many bisections, and seconds after which none is begun."""
    settled: int = 32
    subproblems: int = 4096
    """How many boxes that cannot be bisected are split into linear programs at a time, and the most subproblems that may take."""
    small: int = 24
    small_leaves: int = 256
    """A network with so few unstable neurons is tried whole by neuron splits, with so many linear programs at most."""


@dataclass(frozen=True, eq=False)
class Finished:
    """What became of some boxes: which are proved, which are ties, (n,) bool each, and the best point that was found."""

    proved: Tensor
    tied: Tensor
    incumbents: Incumbents | None


class Finisher:
    """The choice between bisection and neuron splits on small boxes.

    `threshold`: boxes with at most so many unstable neurons are tried; `most` of them in a round. `closed` and `bounded` count boxes and
    subproblems; `note` tells of leaves whose margin is not positive in rationals either.

    Args:
        context: of the bisection; the searches within it report nothing and ask no solver.
        effort: what bisection takes for a box.
        prepared: what the group's rows tell before any box is known.
    """

    def __init__(self, context: SearchContext, group: Group, effort: Effort, prepared: Prepared | None = None) -> None:
        self.programs: Leaves | None = context.leaves if context.switches.leaves and context.graph.piecewise_linear else None
        options = Options(search=replace(PLAIN, tuning=context.switches.tuning), delta=context.options.delta)
        alone = replace(context, oracle=None, attacks=None)
        self.context = replace(alone, options=options, reporter=Reporter(None), points={}, leaves=self.programs)
        self.group, self.prepared, self.tuning = group, prepared, context.tuned(FinishTuning)
        self.first, self.threshold, self.paced = effort.subproblems(self.tuning.first), 24, not context.switches.deterministic
        self.most = int(min(self.tuning.boxes, effort.subproblems(self.tuning.seconds)))
        self.closed = self.bounded = 0
        self.note = ""

    @property
    def detail(self) -> dict[str, Any]:
        """Counts for the ledger."""
        return {} if self.programs is None else {"leaves": self.programs.solved}

    def begins(self, subproblems: int) -> bool:
        """Whether bisection has gone on for long enough."""
        return self.group.places is not None and subproblems >= self.first

    def candidates(self, unstable: Tensor, tried: Tensor, subproblems: int) -> Tensor:
        """The boxes to try now, none unless they fill a round to a quarter, and none before it begins.

        Args:
            unstable: (n,), how many unstable neurons each box has.
            tried: (n,) bool.
            subproblems: bounded so far.

        Returns:
            their places, (m,) int64.
        """
        most = self.most
        if not self.begins(subproblems) or not most:
            return torch.zeros(0, dtype=torch.long, device=unstable.device)
        fit = ((unstable <= self.threshold) & ~tried).nonzero(as_tuple=True)[0]
        return fit[:most] if 4 * len(fit) >= most else fit[:0]

    def run(self, boxes: Boxes, known: dict[int, Bounds], deadline: Deadline) -> Finished:
        """Split neurons on some boxes, a few times each. Where memory is short nothing is found, and fewer are tried in future."""
        try:
            tree = self._split(boxes, known, torch.float32, self.tuning.branchings, math.inf, self.tuning.leaves, deadline)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.most //= 2
            nothing = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.lower.device)
            return Finished(nothing, nothing, None)
        proved, unfinished = _left(tree, len(boxes))
        # Of a tie, everything else must be done: bisection may yet find a counterexample in what was given up.
        tied = torch.zeros_like(proved)
        tied[sorted(tree.ties)] = True
        tied &= ~unfinished
        share = float(proved.double().mean())
        self.threshold = max(4, self.threshold - 2) if share < 0.5 else self.threshold + 2 * (share > 0.9)
        self._count(tree, proved)
        return Finished(proved, tied, tree.incumbents)

    def settle(self, boxes: Boxes, known: dict[int, Bounds], programs: int | None, deadline: Deadline) -> Finished:
        """Split the neurons of some boxes until linear programs are left, and solve these, at most `programs`; ties stay open."""
        proved = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.lower.device)
        tied, incumbents = torch.zeros_like(proved), None
        for start in range(0, len(boxes), self.tuning.settled):
            if deadline.expired():
                break
            here = slice(start, start + self.tuning.settled)
            some = boxes.take(torch.arange(len(boxes), device=proved.device)[here])
            mine = {i: Bounds(b.lower[here], b.upper[here]) for i, b in known.items()}
            tree = self._split(some, mine, torch.float64, None, self.tuning.subproblems, programs, deadline)
            proved[here], _ = _left(tree, len(some))
            tied[[start + k for k in sorted(tree.ties)]] = True
            if tree.incumbents.counterexample is not None or tree.incumbents.disagreement:
                incumbents = tree.incumbents
            self._count(tree, proved[here])
            if tree.falsified:
                break
        return Finished(proved, tied, incumbents)

    def _split(
        self, boxes: Boxes, known: dict[int, Bounds], dtype: torch.dtype, per_box: int | None, limit: float, programs: int | None,
        deadline: Deadline,
    ) -> Tree[Subproblems]:  # fmt: skip
        context = self.context.until(deadline)
        found = bound_batch(context.graph, self.group, boxes.lower, boxes.upper, dtype, context.request(known), self.prepared)
        box, disjunct = (~self.group.closed(torch.maximum(found.margins, boxes.margins))).nonzero(as_tuple=True)
        few = dict.fromkeys(("candidates", "iterations", "root_iterations"), 4)
        tuning = replace(context.tuned(NeuronTuning), **few, per_box=per_box, batch=4 * self.tuning.boxes)
        space = NeuronSpace(context, self.group, found.state, tuning)
        seconds = math.inf if programs is None or not self.paced else self.tuning.leaf_seconds * programs / self.tuning.leaves
        with nullcontext() if self.programs is None else self.programs.at_most(programs, seconds):
            return branch_and_bound(space.tree(space.bounder.first(box, disjunct)), space, Budget(deadline, limit))

    def _count(self, tree: Tree[Subproblems], proved: Tensor) -> None:
        self.closed += int(proved.sum())
        self.bounded += tree.counts.bounded
        self.note = tree.note if tree.ties else self.note


def _left(tree: Tree[Subproblems], count: int) -> tuple[Tensor, Tensor]:
    """Which boxes are proved, and which have something left to split, (n,) bool each."""
    unfinished = torch.zeros(count, dtype=torch.bool, device=tree.in_progress.box.device)
    unfinished[tree.left.box] = True
    proved = ~unfinished
    proved[tree.unsplittable.box] = False
    return proved, unfinished
