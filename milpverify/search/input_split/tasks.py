"""What the bisection asks a solver for: the hardest box, as a mixed-integer model over that box and disjunct.

Of a curved network, and of one with few unstable neurons, it asks for the whole box first, disjunct by disjunct. While the solver works
the bisection leaves its box alone unless nothing else is left. A dual bound holds for all open boxes within the task's. Where one of
them is not told what the other does, the solver gets the whole box, disjunct by disjunct.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch

from milpverify.propagation.state import node_ranges
from milpverify.result import Trust
from milpverify.search.bounding import bound_batch
from milpverify.search.gap import doublings
from milpverify.search.input_split.boxes import Boxes
from milpverify.search.ledger import Part
from milpverify.search.sharing import TOO_LARGE, SharingTuning, Tasks
from milpverify.search.solver.oracle import Task
from milpverify.spec import Box
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.search.input_split.space import BoxSpace
    from milpverify.search.solver.oracle import Finding, Oracle
    from milpverify.search.tree import Tree


class BoxTaskTuning(Tuning):
    """When bisection asks the solver beside it."""

    first: float = 6.0
    """Seconds of bisection before the first task, as estimated: easy problems need no solver."""
    small: int = 150
    early: float = 0.3
    """With so few unstable neurons a solver often decides a piecewise-linear network at once: these seconds come before, or"""
    soon: int = 64
    far: float = 3.0
    near: float = 1.0
    """so many boxes, where more than `far` doublings are needed then; with no more than `near` to go bisection is left alone as usual."""
    failures: int = 3
    """After so many tasks in a row that closed nothing, the solver waits until the subproblems have doubled."""
    share: float = 0.1
    """The most of the time that may go into making models."""


class BoxTasks(Tasks[Boxes]):
    """Boxes as tasks. `start`: so many subproblems come before the next; `given` are the disjuncts that were tasks over the whole box."""

    def __init__(self, space: BoxSpace, oracle: Oracle) -> None:
        self.space, self.oracle, search = space, oracle, oracle.options.search
        self.tuning, self.sharing = search.tuned(BoxTaskTuning), search.tuned(SharingTuning)
        self.small = space.context.graph.piecewise_linear and int(space.whole.unstable[0]) <= self.tuning.small
        seconds = min(self.tuning.first, self.tuning.early) if self.small else self.tuning.first
        self.start, self.turns, self.failed = space.effort.subproblems(seconds), 0, 0
        kept = oracle.whole()
        self.given: set[int] = set() if kept is None else {kept}
        self.began, self.modelling = time.monotonic(), 0.0

    def due(self, tree: Tree[Boxes]) -> bool:
        """Whether the bisection has gone on for long enough."""
        if not self.oracle.usable or not len(tree.frontier):
            return False
        start, bounded, tuning = self.start, tree.counts.bounded, self.tuning
        if self.small and not self.turns:
            needs = doublings(float(self.space.root.margins.amin()), tree.lower_bound, bounded)
            if needs <= tuning.near:
                start = self.space.effort.subproblems(tuning.first)
            elif needs > tuning.far and not self.given:
                start = tuning.soon
        return bounded >= start

    def alive(self, tree: Tree[Boxes], task: Task) -> bool:
        """Whether the task's disjunct is open on a box that the task is about."""
        margins = tree.frontier.store.margins[self._about(tree, task)]
        return not bool(tree.group.closed(margins)[:, task.disjunct].all())

    def _about(self, tree: Tree[Boxes], task: Task) -> Tensor:
        """The places of the open boxes that the task is about; none of split neurons."""
        if task.decisions:
            return tree.frontier.alive.nonzero(as_tuple=True)[0][:0]
        if task.box is None:
            return tree.frontier.alive.nonzero(as_tuple=True)[0]
        store = tree.frontier.store
        lower, upper = (torch.tensor(side, device=store.lower.device) for side in (task.box.lower, task.box.upper))
        return (store.within(lower, upper) & tree.frontier.alive).nonzero(as_tuple=True)[0]

    def raise_to(self, tree: Tree[Boxes], task: Task, bound: float) -> int:
        """Raise the margins of one disjunct on the boxes that the task is about, and close what that closes."""
        place, store = self._about(tree, task), tree.frontier.store
        if not len(place):
            return 0
        margins = store.margins[place]
        tree.raised = True
        if tree.group.disjuncts[task.disjunct].closes(bound):
            tree.trust = Trust.SOLVER
        margins[:, task.disjunct] = margins[:, task.disjunct].clamp(min=bound)
        store.margins[place] = margins
        done = tree.group.closed(margins).all(1)
        if not bool(done.any()):
            return 0
        tree.close(float(margins[done].amin()), Part.ORACLE, int(done.sum()))
        tree.frontier.remove(place[done])
        return int(done.sum())

    def heard(self, tree: Tree[Boxes], finding: Finding, closed: int) -> None:
        """Count failures, and take back what was lent."""
        if closed:
            self.failed = 0
        elif finding.ended and self.oracle.options.search.both_ways and self._matters(tree, finding):
            self.failed += 1
            if self.failed >= self.tuning.failures:
                self.start, self.failed = 2 * tree.counts.bounded, 0
        if finding.ended or closed:
            tree.frontier.lent = None

    def _matters(self, tree: Tree[Boxes], finding: Finding) -> bool:
        """Whether a finding says nothing, or something about open boxes."""
        return finding.bound == -math.inf or bool(len(self._about(tree, finding.task)))

    def give(self, tree: Tree[Boxes]) -> None:
        """The hardest box, or where only one side is told, the whole box with the next disjunct."""
        began, nodes = time.monotonic(), None
        if self.oracle.options.search.deterministic:
            nodes = self.sharing.nodes * 2**self.turns
            self.turns, self.start = self.turns + 1, 2 * tree.counts.bounded
        elif self.modelling > self.tuning.share * (began - self.began):
            return
        self._give(tree, nodes)
        self.modelling += time.monotonic() - began

    def _give(self, tree: Tree[Boxes], nodes: int | None) -> None:
        space, oracle, group, switches = self.space, self.oracle, tree.group, self.oracle.options.search
        # What a curved network's ranges are tightened to under the margin's row is worth most on the whole box.
        at_once = switches.both_ways and (nodes is not None and self.turns % 2 == 0 if self.small else space.context.graph.piecewise_linear)
        rest = [] if at_once else self._rest(tree)
        parts = at_once or (switches.both_ways and not rest)
        if not parts and not rest:
            return
        box, place = _hardest(tree) if parts else (space.whole, None)
        if int(box.unstable[0]) > self.sharing.largest:
            oracle.give_up(TOO_LARGE)
            return
        margins = torch.where(group.closed(box.margins), torch.inf, box.margins)[0]
        if not parts:  # where not both listen, parts make no sense
            margins[[k for k in range(group.count) if k not in rest]] = torch.inf
        disjunct = int(margins.argmin())
        if margins[disjunct] == torch.inf:
            return
        request, deadline = space.context.request(space.inheritance.unpack(box.inherited)), space.context.deadline
        found = bound_batch(space.context.graph, group, box.lower, box.upper, torch.float64, request, space.prepared)
        ends = Box(box.lower[0].cpu().numpy(), box.upper[0].cpu().numpy())
        last = int((margins < torch.inf).sum()) == 1 and not self.small
        share = self.sharing.part if parts else 1.0 if last else self.sharing.whole
        seconds = max(self.sharing.least, share * deadline.remaining()) if nodes is None else math.inf
        oracle.give(Task(disjunct, (), seconds, nodes, ends if parts else None), group.disjuncts[disjunct], node_ranges(found.state))
        if oracle.task is not None:
            tree.frontier.lent = place
            if not parts and (nodes is None or (switches.both_ways and not self.small)):
                self.given.add(disjunct)

    def _rest(self, tree: Tree[Boxes]) -> list[int]:
        """The disjuncts that were no task over the whole box, and that are open as far as the solver is told."""
        group, oracle = tree.group, self.oracle
        had = self.given | {k for k, m in enumerate(group.members) if m in oracle.proved or (m, ()) in oracle.solved}
        closed = group.closed(tree.frontier.all().margins).all(0).tolist()
        told = oracle.options.search.tree_to_oracle
        return [k for k in range(group.count) if k not in had and not (told and closed[k])]


def _hardest(tree: Tree[Boxes]) -> tuple[Boxes, int]:
    """The open box of the lowest margin, and its place; the oldest of those that are alike."""
    frontier = tree.frontier
    worst = torch.where(frontier.alive, frontier.store.proved, torch.inf)
    tied = (worst == worst.amin()).nonzero(as_tuple=True)[0]
    place = int(tied[frontier.store.age[tied].argmin()])
    return frontier.store.take(torch.tensor([place], device=worst.device)), place
