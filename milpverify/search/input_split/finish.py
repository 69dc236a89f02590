"""Finishing small boxes by neuron splits: where few neurons are unstable, a handful of splits does what thousands of bisections do.

A box shrinks in every input before a kink that matters is on its border; a split puts the kink there at once. Whether that pays is
measured by counts: the share of boxes that a round closes moves the number of unstable neurons up to which it is tried. Boxes with
every neuron on one piece are linear programs, which also tell a tie from what bisection would decide in the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milpverify.propagation.state import Bounds
from milpverify.search.bounding import bound_batch, is_out_of_memory
from milpverify.search.neuron_split.search import Search

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.counterexamples.validate import Validation
    from milpverify.graph import Graph
    from milpverify.search.bounding import Prepared
    from milpverify.search.groups import Group
    from milpverify.search.neuron_split.subproblems import NeuronOutcome
    from milpverify.search.solver.leaves import Leaves
    from milpverify.spec import Problem

FIRST = 2000
"""Bisections before the first round: easy problems end earlier."""
ROUND = 256
"""The most boxes a round takes, and a quarter of the fewest."""
BRANCHINGS = 5
"""What a round may spend on a box: some need far more than a handful, and go back to bisection."""
LEAVES = 64
"""The most linear programs of a round: each takes as long as many bisections."""
SETTLED, SUBPROBLEMS = 32, 4096
"""How many boxes that cannot be bisected are split into linear programs at a time, and the most subproblems that may take."""


@dataclass(frozen=True, eq=False)
class Finished:
    """What became of some boxes: which are proved, which are ties, (n,) bool each, and a judgement if a point was judged."""

    proved: Tensor
    tied: Tensor
    judgement: Validation | None


@dataclass
class Finisher:
    """The choice between bisection and neuron splits on small boxes.

    `threshold`: boxes with at most so many unstable neurons are tried. `closed` and `bounded` count boxes and subproblems, `ties` the
    boxes with a linear program whose margin is not positive in rationals either; `note` says so.
    """

    problem: Problem
    graph: Graph
    group: Group
    deadline: Deadline
    leaves: Leaves | None = None
    prepared: Prepared | None = None
    threshold: int = 24
    closed: int = 0
    bounded: int = 0
    ties: int = 0
    note: str = ""
    most: int = ROUND

    def __post_init__(self) -> None:
        if not self.graph.piecewise_linear:
            self.leaves = None

    @property
    def detail(self) -> dict[str, Any]:
        """Counts for the ledger."""
        return {} if self.leaves is None else {"leaves": self.leaves.solved}

    def begins(self, subproblems: int) -> bool:
        """Whether bisection has gone on for long enough."""
        return self.group.places is not None and subproblems >= FIRST

    def candidates(self, unstable: Tensor, tried: Tensor, subproblems: int) -> Tensor:
        """The boxes to try now (indices), none unless they fill a round to a quarter, and none before `FIRST` subproblems."""
        most = min(self.most, ROUND)
        if not self.begins(subproblems) or not most:
            return torch.zeros(0, dtype=torch.long, device=unstable.device)
        fit = ((unstable <= self.threshold) & ~tried).nonzero(as_tuple=True)[0]
        return fit[:most] if 4 * len(fit) >= most else fit[:0]

    def run(self, lower: Tensor, upper: Tensor, margins: Tensor, known: dict[int, Bounds]) -> Finished:
        """Split neurons on some boxes, a few times each. Where memory is short nothing is found, and fewer are tried in future."""
        try:
            search, outcome = self._split(lower, upper, margins, known, torch.float32, BRANCHINGS, None, LEAVES)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.most //= 2
            nothing = torch.zeros(len(lower), dtype=torch.bool, device=lower.device)
            return Finished(nothing, nothing, None)
        proved, unfinished = self._left(outcome, len(lower))
        # Of a tie, everything else must be done: bisection may yet find a counterexample in what was given up.
        tied = torch.zeros_like(proved)
        tied[sorted(search.tied)] = True
        tied &= ~unfinished
        share = float(proved.double().mean())
        self.threshold = max(4, self.threshold - 2) if share < 0.5 else self.threshold + 2 * (share > 0.9)
        self._count(search, outcome, proved, int(tied.sum()))
        return Finished(proved, tied, outcome.judgement)

    def settle(self, lower: Tensor, upper: Tensor, margins: Tensor, known: dict[int, Bounds], leaves: int | None = None) -> Finished:
        """Split the neurons of some boxes until linear programs are left, and solve these, at most `leaves`; ties stay open."""
        proved = torch.zeros(len(lower), dtype=torch.bool, device=lower.device)
        tied = torch.zeros_like(proved)
        judgement = None
        for start in range(0, len(lower), SETTLED):
            here = slice(start, start + SETTLED)
            if self.deadline.expired():
                break
            mine = {i: Bounds(b.lower[here], b.upper[here]) for i, b in known.items()}
            search, outcome = self._split(lower[here], upper[here], margins[here], mine, torch.float64, None, SUBPROBLEMS, leaves)
            proved[here], _ = self._left(outcome, len(proved[here]))
            tied[[start + k for k in sorted(search.tied)]] = True
            judgement = outcome.judgement or judgement
            self._count(search, outcome, proved[here], len(search.tied))
            if search.broken:
                break
        return Finished(proved, tied, judgement)

    def _split(
        self,
        lower: Tensor,
        upper: Tensor,
        margins: Tensor,
        known: dict[int, Bounds],
        dtype: torch.dtype,
        per_box: int | None,
        limit: int | None,
        leaves: int | None,
    ) -> tuple[Search, NeuronOutcome]:
        found = bound_batch(self.graph, self.group, lower, upper, dtype, known, self.deadline, prepared=self.prepared)
        box, disjunct = (~self.group.closed(torch.maximum(found.margins, margins))).nonzero(as_tuple=True)
        search = Search(self.problem, self.graph, self.group, found.state, self.deadline, leaves=self.leaves)
        if self.leaves is not None:
            self.leaves.left = leaves
        return search, search.run(4, 4, batch=4 * ROUND, start=search.first(box, disjunct), limit=limit, per_box=per_box)

    @staticmethod
    def _left(outcome: NeuronOutcome, count: int) -> tuple[Tensor, Tensor]:
        """Which boxes are proved, and which have something left to split, (n,) bool each."""
        unfinished = torch.zeros(count, dtype=torch.bool, device=outcome.open.box.device)
        unfinished[outcome.open.box] = True
        proved = ~unfinished
        proved[outcome.stuck.box] = False
        return proved, unfinished

    def _count(self, search: Search, outcome: NeuronOutcome, proved: Tensor, ties: int) -> None:
        self.closed += int(proved.sum())
        self.bounded += search.bounded
        self.ties += ties
        self.note = outcome.note if search.tied else self.note
