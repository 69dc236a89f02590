"""The neuron search and bound tightening in turns.

The tree comes first, for easy problems need nothing else; then as much time goes into tighter bounds, first of all into the slopes of
the root where their optimisation was cut short. Whether it pays is measured: what a turn of tightening closes of the root's gap to 0.
If that is little, the tree goes on alone; otherwise it begins anew from the tighter root, with only what it left open, and turns grow
twice as long. A tree that closed far more of the gap itself gets another turn before: but the last of a gap is the hardest.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from milpverify.result import Trust
from milpverify.search.bounding import choose
from milpverify.search.gap import gap_closed
from milpverify.search.ledger import Part
from milpverify.search.tightening.tighten import Tightening

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.search.bounding import BatchBounds
    from milpverify.search.groups import Group
    from milpverify.search.neuron_split.search import Search
    from milpverify.search.neuron_split.subproblems import NeuronOutcome
    from milpverify.search.solver.oracle import Oracle
    from milpverify.spec import Array

SECONDS = 1.5
"""What the tree and then tightening have in their first turns, both doubled from turn to turn."""
SPLITS, TARGETS = 512, 4096
"""In place of seconds, the subproblems of the first turns where choices go by counts; tightening's are of a part of the network."""
LEAST = 0.03
"""The share of the root's gap that a turn must close for the tree to begin anew, and"""
AHEAD = 0.5
"""how much of what the tree closed of it in its turn for that to be done at once: tighter bounds help the tree all along."""
LEAST_BY_SOLVER = 0.05
"""The share of the gap that a solver's bounds must close to be used."""
SIMPLER = 0.88
"""So much of the unstable neurons must be left for a solver to go on with the model of a looser root."""
STEP = 64
"""Subproblems between two looks at the clock."""


@dataclass(eq=False)
class Restarts:
    """A search over one group, begun anew whenever its root is tighter.

    Args:
        search: over the group, from the root; it may have begun.
        make: a search from another root, over some of the disjuncts, with the best points known.
        oracle: what the search listens to, or None.
        counted: whether subproblems are counted instead of seconds.
        tightens: whether bounds are tightened; the root's slopes are gone on with in any case, where their optimisation was cut short.

    `closed_bound` is a proved bound of the disjuncts closed in earlier turns, `spent` are the subproblems of their searches; `raised`
    says whether a solver raised bounds of open subproblems there.
    """

    search: Search
    make: Callable[[Group, BatchBounds, dict[int, Array]], Search]
    graph: Graph
    root: BatchBounds
    oracle: Oracle | None
    counted: bool = False
    tightens: bool = True
    closed_bound: float = math.inf
    lower_bound: float = -math.inf
    trust: Trust = Trust.ROUNDED
    raised: bool = False
    spent: int = 0
    anew: int = 0

    def __post_init__(self) -> None:
        # What else a machine does says nothing of the two; but the time of several threads, or of a GPU, is that of the clock.
        alone = self.graph.device.type == "cpu" and torch.get_num_threads() == 1
        self.clock = time.process_time if alone else time.perf_counter

    def run(self, iterations: int, deadline: Deadline) -> NeuronOutcome:
        """Search until everything is closed or stuck, a counterexample holds, or the deadline."""
        tightening = Tightening(self.graph, self.search.group, self.root, clock=self.clock)
        self._listen(tightening)
        for turn in itertools.count():
            refining = tightening.root.unrefined > 0
            if not refining and not (self.tightens and tightening.layers):
                return self._outcome(self.search.run(iterations), tightening)
            began, scale = self.clock(), 2**turn
            self.search.run(iterations, limit=0)  # the root takes what it takes
            outcome = self._tree(iterations, SECONDS * scale, SPLITS * scale)
            if self._over(outcome) or deadline.expired():
                return self._outcome(outcome, tightening)
            worst, bounded = float(tightening.root.margins.amin()), tightening.bounded
            by_solver = False
            if refining:
                with self.search.ledger.spent(Part.ALPHA_CROWN):
                    tightening.refine(deadline)
            else:
                # As long as the tree took, beginning included, but for a beginning that took very long.
                seconds = math.inf if self.counted else SECONDS * scale * min(2.0, max(1.0, (self.clock() - began) / (SECONDS * scale)))
                with self.search.ledger.spent(Part.TIGHTENING):
                    tightening.run(deadline, seconds, TARGETS * scale if self.counted else math.inf)
                    by_solver = self._meet(tightening, deadline)
                self.search.ledger.bound(Part.TIGHTENING, tightening.bounded - bounded)
            now = float(tightening.root.margins.amin())
            gained, tree = gap_closed(worst, now), gap_closed(worst, outcome.lower_bound)
            if gained < LEAST:
                if refining:
                    continue
                self.search.tightening = tightening.consult = None
                return self._outcome(self.search.run(iterations), tightening)
            if gained < AHEAD * tree and not refining:  # it may be about to end; if not, what is left may be what a tighter root is for
                outcome = self._tree(iterations, 2 * SECONDS * scale, 2 * SPLITS * scale)
                if self._over(outcome) or deadline.expired():
                    return self._outcome(outcome, tightening)
            if by_solver:
                self.trust = Trust.SOLVER
            if not self._anew(tightening):
                return self._outcome(self._closed(outcome), tightening)
        raise AssertionError("turns end")

    def _meet(self, tightening: Tightening, deadline: Deadline) -> bool:
        """Take what the solver proved of pre-activations, where it is worth the weaker trust; whether the root rests on it."""
        before = tightening.root
        if bool(tightening.group.closed(before.margins).all()):
            return False
        if not tightening.meet_solver(deadline):
            return False
        if gap_closed(float(before.margins.amin()), float(tightening.root.margins.amin())) >= LEAST_BY_SOLVER:
            return True
        tightening.root = before
        return False

    def _listen(self, tightening: Tightening) -> None:
        """Let the oracle work on ends of pre-activations, and be heard while the tree stands still."""
        if not self.tightens:
            return
        self.search.tightening = tightening
        tightening.consult = None if self.counted else self.search.consult

    def _tree(self, iterations: int, seconds: float, splits: int) -> NeuronOutcome:
        end, limit = self.clock() + seconds, self.search.bounded + splits
        while True:
            outcome = self.search.run(
                iterations, limit=min(limit, self.search.bounded + STEP) if self.counted else self.search.bounded + STEP
            )
            self.lower_bound = max(self.lower_bound, min(self.closed_bound, outcome.lower_bound))
            if self._over(outcome) or (self.search.bounded >= limit if self.counted else self.clock() >= end):
                return outcome

    def _over(self, outcome: NeuronOutcome) -> bool:
        """Whether a turn ended for another reason than its end."""
        search = self.search
        return outcome.closed or search.broken or search.out_of_memory or search.deadline.expired() or not len(outcome.open)

    def _anew(self, tightening: Tightening) -> bool:
        """Begin from the tighter root with what is open; False where nothing is."""
        old, group = self.search, self.search.group
        alive = torch.zeros(group.count, dtype=torch.bool, device=self.graph.device)
        for part in (old.left, old.stuck):
            alive[part.disjunct] = True
        margins = tightening.root.margins[0]
        closed = group.closed(margins) & alive
        self.closed_bound = min([self.closed_bound, old.closed_bound, *margins[closed].tolist()])
        old.ledger.close(Part.TIGHTENING, int(closed.sum()))
        self.trust = Trust.weakest(self.trust, old.trust)
        keep = (alive & ~closed).nonzero().flatten().tolist()
        kept = self._kept(keep, tightening.unstable)
        if not keep:
            return False
        points = {group.members[place]: x for place, (_, x) in old.best.items()}
        if len(keep) < group.count:
            tightening.group, tightening.root = choose(group, tightening.root, keep)
        self.spent += old.bounded
        self.anew += 1
        self.search = self.make(tightening.group, tightening.root, points)
        self.search.judgement, self.search.note, self.search.closed_bound = old.judgement, old.note, self.closed_bound
        if kept is not None:
            self.search.tried[kept] = 1
        self.raised |= old.raised  # `lower_bound` may rest on what is forgotten now
        self._listen(tightening)
        if self.trust is Trust.SOLVER:
            self.search.trust, self.search.raised = Trust.SOLVER, True
        return True

    def _kept(self, keep: list[int], unstable: int) -> int | None:
        """The new place of the disjunct that the oracle works on as a whole, if that is still open and a new model no simpler by far."""
        task = None if self.oracle is None else self.oracle.task
        if self.oracle is None or task is None or task.end is not None:
            return None
        if task.decisions or task.disjunct not in keep or unstable < SIMPLER * task.unstable:
            self.oracle.close()
            return None
        place = keep.index(task.disjunct)
        self.oracle.move(place)
        return place

    def _closed(self, outcome: NeuronOutcome) -> NeuronOutcome:
        none = outcome.open.take(torch.zeros(0, dtype=torch.long, device=self.graph.device))
        return replace(outcome, closed=True, lower_bound=self.closed_bound, open=none, stuck=none)

    def _outcome(self, outcome: NeuronOutcome, tightening: Tightening) -> NeuronOutcome:
        detail: dict[str, Any] = {**outcome.detail, "subproblems": self.spent + self.search.bounded}
        if tightening.bounded or self.anew:
            detail.update(tightened=tightening.bounded, restarts=self.anew)
            detail.update(unstable_before=tightening.first_unstable, unstable_after=tightening.unstable)
        bound = max(self.lower_bound, min(self.closed_bound, outcome.lower_bound))
        trust = Trust.SOLVER if self.raised and not outcome.closed else Trust.weakest(self.trust, outcome.trust)
        return replace(outcome, lower_bound=bound, trust=trust, detail=detail)
