"""What the tree and the solver beside it tell each other, between two batches of the tree.

From the solver: a dual bound closes everything of the tree that it is about, or raises it; points end the run. From the tree: what it has
closed is taken from the solver, which gets the hardest of what is open. Without either way the solver gets whole disjuncts only. Without
`oracle_to_tree` the tree goes on with what the solver has closed, until nothing but that is open: who ends first ends the run. Without
`tree_to_oracle` the solver takes disjunct after disjunct, and is told neither what is hardest nor what is closed, until the tree begins
anew. In deterministic mode they take turns by counts.

`Sharing` is the same for every space; what is asked for and whom an answer is about is told by its `Tasks`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

from milpverify.errors import Contradiction
from milpverify.result import Trust
from milpverify.search.frontier import B
from milpverify.search.ledger import Part
from milpverify.search.solver.oracle import Task
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.search.solver.oracle import Finding, Oracle
    from milpverify.search.tree import Tree

TOO_LARGE = "the network has too many unstable neurons for a solver's model"


class SharingTuning(Tuning):
    """What a solver beside the tree is given, and for how long."""

    largest: int = 20_000
    """The largest model that is worth making, in unstable neurons."""
    whole: float = 0.7
    part: float = 0.1
    least: float = 2.0
    """The shares of the time left that a whole disjunct and a single subproblem get, and the seconds that either gets at least."""
    nodes: int = 50
    """In deterministic mode, the solver's nodes in its first turn; they double from turn to turn."""


class Tasks(ABC, Generic[B]):
    """What a space asks the solver for. `waits`: a tree that can split nothing more waits for what the solver makes of the rest."""

    waits: bool = False

    @abstractmethod
    def due(self, tree: Tree[B]) -> bool:
        """Whether it is the solver's turn."""

    @abstractmethod
    def give(self, tree: Tree[B]) -> None:
        """Give the solver, which has none, the next task that is worth it, if there is one."""

    @abstractmethod
    def alive(self, tree: Tree[B], task: Task) -> bool:
        """Whether anything that a task's answer is about is open."""

    @abstractmethod
    def raise_to(self, tree: Tree[B], task: Task, bound: float) -> int:
        """Raise what a task is about to a proved bound, and close what that closes; how many were closed."""

    def heard(self, tree: Tree[B], finding: Finding, closed: int) -> None:
        """Learn from what a finding was worth."""

    def answer_target(self, tree: Tree[B], finding: Finding) -> None:
        """Keep what was found of the bound of a pre-activation."""


@dataclass(eq=False)
class Sharing(Generic[B]):
    """Both ways between a tree and the solver beside it."""

    oracle: Oracle
    tasks: Tasks[B]

    def awaited(self, tree: Tree[B]) -> bool:
        """Whether the solver may yet close what the tree cannot split."""
        helps = self.tasks.waits and self.oracle.usable and self.oracle.options.trust is Trust.SOLVER
        return helps and bool(len(tree.unsplittable))

    def share(self, tree: Tree[B]) -> None:
        """Hear what the solver found, and keep it busy with what is hardest. Waits in deterministic mode alone."""
        oracle, by_counts = self.oracle, self.oracle.options.search.deterministic
        if not (oracle.usable or oracle.proved):
            return
        with tree.incumbents.context.ledger.spent(Part.ORACLE):
            if by_counts:
                if not self.tasks.due(tree):
                    return
                if oracle.usable:
                    self.tasks.give(tree)
            finding = oracle.wait() if by_counts else oracle.poll()
            if finding is not None and finding.task.target is not None:
                self.tasks.answer_target(tree, finding)
                finding = None
            if oracle.counterexample is not None:
                tree.incumbents.counterexample = tree.incumbents.counterexample or oracle.counterexample
                return
            if finding is not None:
                self._hear(tree, finding)
            if oracle.proved and not oracle.options.search.oracle_to_tree:
                self._end_race(tree)
            if oracle.task is not None:
                if oracle.options.search.tree_to_oracle and oracle.task.target is None and not self.tasks.alive(tree, oracle.task):
                    oracle.stop()
            elif not by_counts and oracle.usable and self.tasks.due(tree):
                self.tasks.give(tree)

    def _hear(self, tree: Tree[B], finding: Finding) -> None:
        """Close what a finding closes, or raise bounds by it."""
        oracle, task, bound = self.oracle, finding.task, finding.bound
        if self._contradicted(tree, finding):
            return
        if finding.solved and task.box is None:
            oracle.solved.add((tree.group.members[task.disjunct], task.decisions))
        if not oracle.options.search.oracle_to_tree:
            if tree.group.disjuncts[task.disjunct].closes(bound) and not task.decisions:
                oracle.proved[tree.group.members[task.disjunct]] = bound
                oracle.stop()
            return
        closed = self.tasks.raise_to(tree, task, bound) if bound > -math.inf else 0
        if closed:
            oracle.counts["oracle_closed"] += 1
            if not finding.ended:
                oracle.stop()
        self.tasks.heard(tree, finding, closed)

    def _contradicted(self, tree: Tree[B], finding: Finding) -> bool:
        """Whether a point shows that a bound is wrong; then the solver is used no more.

        Raises:
            Contradiction: where something rests on the solver already.
        """
        task, bound, oracle = finding.task, finding.bound, self.oracle
        if task.decisions or task.box is not None or task.disjunct not in tree.incumbents.best:
            return False
        margin = tree.incumbents.best[task.disjunct][0]
        if not bound > margin + 1e-6 * max(1.0, abs(margin)):
            return False
        text = f"the solver says that the margin is at least {bound:.9g}, a point has {margin:.9g}"
        if oracle.counts["oracle_closed"] or oracle.proved:
            raise Contradiction(text)
        oracle.give_up(text)
        return True

    def _end_race(self, tree: Tree[B]) -> None:
        """Where the tree is not told what the solver closed: end it once nothing else is open."""
        proved = self.oracle.proved
        places = [k for k in range(tree.group.count) if self.tasks.alive(tree, Task(k))]
        if all(tree.group.members[k] in proved for k in places):
            for k in places:
                if self.tasks.raise_to(tree, Task(k), proved[tree.group.members[k]]):
                    self.oracle.counts["oracle_closed"] += 1
            self.oracle.stop()
