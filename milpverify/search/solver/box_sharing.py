"""What the bisection and the oracle tell each other, between two batches.

The oracle takes the hardest box as a mixed-integer model over that box and disjunct. While it works the bisection leaves the box
alone unless nothing else is left. A dual bound holds for all open boxes within the task's; a point ends the run; what the bisection
closes is taken from the oracle. Where one of them is not told what the other does, the oracle gets the whole box, disjunct by disjunct,
and a bisection that is not told goes on until nothing but what the oracle proved is open.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from milpverify.result import Trust
from milpverify.search.bounding import bound_batch
from milpverify.search.ledger import Part
from milpverify.search.solver.oracle import Finding, Oracle, Task
from milpverify.search.solver.sharing import LARGEST, LEAST_TASK, PART_SHARE, WHOLE_SHARE
from milpverify.spec import Box

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.search.input_split.bisection import Bisection
    from milpverify.search.input_split.boxes import Boxes

FIRST = 20_000
"""Subproblems before the first task: easy problems need no solver."""
FAILURES = 3
"""After so many tasks in a row that closed nothing, the oracle waits until the subproblems have doubled."""
SHARE = 0.1
"""The most of the time that may go into making models."""
NODES = 50
"""In deterministic mode, the solver's nodes in its first turn. They double from turn to turn, and so do the subproblems before the next."""


@dataclass(eq=False)
class BoxExchange:
    """Both ways between a bisection and an oracle; `trust` is what the bounds and closures of the bisection rest on.

    `closed` counts open boxes that the oracle closed; `tried` are the disjuncts that it had over the whole box, `proved` the bounds of
    those that it closed there and the bisection was not told of.
    """

    search: Bisection
    oracle: Oracle
    trust: Trust = Trust.ROUNDED
    closed: int = 0
    raised: bool = False
    start: int = field(default_factory=lambda: FIRST)
    tried: set[int] = field(default_factory=set)
    proved: dict[int, float] = field(default_factory=dict)
    _failed: int = 0
    _ends: tuple[Tensor, Tensor] | None = None  # of the task's box
    _began: float = field(default_factory=time.monotonic)
    _spent: float = 0.0
    _turns: int = 0

    @property
    def found(self) -> bool:
        """Whether the oracle has a counterexample."""
        return self.oracle.counterexample is not None

    @property
    def _open_margins(self) -> Tensor:
        """Of all open boxes, (n, D)."""
        frontier = self.search.frontier
        return frontier.store.margins[frontier.alive]

    def consult(self) -> None:
        """Hear what the oracle found, and give it the next task where it has none. Waits in deterministic mode alone."""
        search, oracle = self.search, self.oracle
        if search.options.deterministic:
            self._turn()
            return
        task, finding = oracle.task, oracle.poll()
        if self.found:
            return
        if finding is not None:
            self._hear(finding)
        if self.proved:
            self._end_race()
        if oracle.task is not None and task is oracle.task:
            if search.options.tree_to_oracle and not self._needed(oracle.task):
                oracle.stop()
        elif oracle.task is None and oracle.usable and search.subproblems >= self.start and len(search.frontier):
            self._give()

    def _turn(self) -> None:
        """The oracle's turn, by counts: a task of so many nodes, and its end."""
        search, oracle = self.search, self.oracle
        if search.subproblems < self.start or not oracle.usable or not len(search.frontier):
            return
        turn = self._turns
        self._turns, self.start = turn + 1, 2 * search.subproblems
        self._give(NODES * 2**turn)
        finding = oracle.wait()
        if finding is not None and not self.found:
            self._hear(finding)
        if self.proved:
            self._end_race()
        search.frontier.lent = None

    def _under(self) -> Tensor:
        """The places of the open boxes that the task is about."""
        assert self._ends is not None
        return self.search.frontier.within(*self._ends)

    def _needed(self, task: Task) -> bool:
        """Whether the task's disjunct is open on a box that the task is about."""
        place = self._under()
        return not bool(self.search.group.closed(self.search.frontier.store.margins[place])[:, task.disjunct].all())

    def _hear(self, finding: Finding) -> None:
        search, bound, disjunct = self.search, finding.bound, finding.task.disjunct
        if not search.options.oracle_to_tree:
            if search.group.disjuncts[disjunct].closes(bound):
                self.proved[disjunct] = bound
                self.oracle.stop()
            return
        place = self._under() if bound > -torch.inf else None
        before = self.closed
        if place is not None and len(place):
            self._raise(place, disjunct, bound)
        if self.closed > before and not finding.ended:
            self.oracle.stop()
        if self.closed > before:
            self._failed = 0
        elif finding.ended and search.options.both_ways and (place is None or len(place)):
            self._failed += 1
            if self._failed >= FAILURES:
                self.start, self._failed = 2 * search.subproblems, 0
        if finding.ended or self.closed > before:
            search.frontier.lent = None

    def _end_race(self) -> None:
        """End a bisection that is not told what the oracle proves, once nothing else is open."""
        search = self.search
        still_open = ~search.group.closed(self._open_margins)
        still_open[:, list(self.proved)] = False
        if not bool(still_open.any()):
            for disjunct, bound in self.proved.items():
                place = search.frontier.alive.nonzero(as_tuple=True)[0]
                if len(place):
                    self._raise(place, disjunct, bound)

    def _raise(self, place: Tensor, disjunct: int, bound: float) -> None:
        """Raise the margins of one disjunct on some open boxes, and close what that closes."""
        search, store = self.search, self.search.frontier.store
        margins = store.margins[place]
        self.raised = True
        if search.group.disjuncts[disjunct].closes(bound):
            self.trust = Trust.SOLVER
        margins[:, disjunct] = margins[:, disjunct].clamp(min=bound)
        store.margins[place] = margins
        done = search.group.closed(margins).all(1)
        if bool(done.any()):
            search.closed_bound = min(search.closed_bound, float(margins[done].amin()))
            search.frontier.remove(place[done])
            self.closed += int(done.sum())
            search.ledger.close(Part.ORACLE, int(done.sum()))
            self.oracle.counts["oracle_closed"] += 1

    def _give(self, nodes: int | None = None) -> None:
        began, search = time.monotonic(), self.search
        if nodes is None and self._spent > SHARE * (began - self._began):
            return
        parts, had = search.options.both_ways, self.tried | self.proved.keys()
        if not parts and len(had) == search.group.count:
            return
        box, place = self._hardest() if parts else (search.whole, None)
        if int(box.unstable[0]) > LARGEST:
            self.oracle.give_up("the network has too many unstable neurons for a solver's model")
            return
        margins = torch.where(search.group.closed(box.margins), torch.inf, box.margins)[0]
        if not parts:  # they make sense only where both listen
            margins[list(had)] = torch.inf
            if search.options.tree_to_oracle:
                margins[search.group.closed(self._open_margins).all(0)] = torch.inf
        disjunct = int(margins.argmin())
        if margins[disjunct] == torch.inf:
            self._spent += time.monotonic() - began
            return
        known = search.inheritance.unpack(box.ends)
        found = bound_batch(
            search.graph, search.group, box.lower, box.upper, torch.float64, known, search.deadline, prepared=search.prepared
        )
        bounds = [(s.bounds.lower[0].cpu(), s.bounds.upper[0].cpu()) for _, s in sorted(found.state.items())]
        ends = Box(box.lower[0].cpu().numpy(), box.upper[0].cpu().numpy())
        share = PART_SHARE if parts else 1.0 if int((margins < torch.inf).sum()) == 1 else WHOLE_SHARE
        seconds = max(LEAST_TASK, share * search.deadline.remaining())
        seconds = seconds if nodes is None else math.inf
        self.oracle.give(Task(disjunct, (), seconds, nodes, ends), search.group.disjuncts[disjunct], bounds)
        if self.oracle.task is not None:
            self._ends = box.lower[0], box.upper[0]
            search.frontier.lent = place
            if not parts and nodes is None:
                self.tried.add(disjunct)
        self._spent += time.monotonic() - began

    def _hardest(self) -> tuple[Boxes, int]:
        """The open box of the lowest margin, and its place; the oldest of those that are alike."""
        frontier = self.search.frontier
        worst = torch.where(frontier.alive, frontier.store.worst, torch.inf)
        tied = (worst == worst.amin()).nonzero(as_tuple=True)[0]
        place = int(tied[frontier.store.age[tied].argmin()])
        return frontier.store.take(torch.tensor([place], device=worst.device)), place
