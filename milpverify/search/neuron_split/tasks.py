"""What the search over neurons asks a solver for: whole disjuncts, the hardest subproblems, and bounds of pre-activations."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch

from milpverify.errors import Contradiction
from milpverify.propagation.state import node_ranges
from milpverify.result import Trust
from milpverify.search.ledger import Part
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.search.sharing import TOO_LARGE, SharingTuning, Tasks
from milpverify.search.solver.oracle import Task
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from milpverify.config import Deadline
    from milpverify.encode.encoding import Layer
    from milpverify.search.neuron_split.space import NeuronSpace
    from milpverify.search.solver.oracle import Finding, Oracle, SolverTarget
    from milpverify.search.tree import Tree

NOTHING_MORE = "the solver has nothing more to say about what the tree cannot split"


class NeuronTaskTuning(Tuning):
    """When the search over neurons asks the solver beside it, and for what; sizes are counts of unstable neurons."""

    head_start: float = 1.0
    curved: int = 100
    late: float = 5.0
    """Seconds for the tree alone: easy problems need no solver. A larger curved network than this takes a solver long, and so it begins
    later, after so many seconds."""
    most_curved: int = 1000
    """Of a larger curved network it gets nothing: the tree would wait seconds for models whose linear programs take seconds each."""
    large: int = 3000
    models: float = 0.3
    """Making a larger model than this takes seconds, in which the tree waits: after the first, the share of the time that this may take."""
    small: int = 150
    small_tree: int = 200
    """So small a network a solver often decides at once: its turn comes after so many subproblems of the tree, if that is earlier."""
    target_seconds: float = 3.0
    """What a bound of a pre-activation may take."""
    middling: int = 300
    """Of a network that is not larger a last disjunct gets all of the time: a solver's bound says little of how near its end is."""
    turn: int = 1000
    """In deterministic mode, the subproblems before the solver's first turn, or as many fewer as are estimated to take the head start; they
    double from turn to turn."""


class Targets(Protocol):
    """Bounds of pre-activations that a solver is asked for."""

    def next(self, deadline: Deadline) -> tuple[Layer, SolverTarget, int] | None:
        """The next one, its layer's model and its place there; None where no more are to be asked for."""

    def answer(self, target: SolverTarget, bound: float, ended: bool) -> None:
        """Note what was proved of one."""


class NeuronTasks(Tasks[Subproblems]):
    """Disjuncts and subproblems as tasks. `given` counts the tasks of a disjunct, the first as a whole; `targets` come between them."""

    waits = True

    def __init__(self, space: NeuronSpace, oracle: Oracle, targets: Targets | None = None) -> None:
        self.space, self.oracle, self.targets, self.tuning = space, oracle, targets, oracle.options.search.tuned(NeuronTaskTuning)
        self.given: dict[int, int] = {}
        self.sharing = oracle.options.search.tuned(SharingTuning)

    @property
    def unstable(self) -> int:
        """The undecided pre-activations of the root."""
        return self.space.plain.relaxations.count

    def due(self, tree: Tree[Subproblems]) -> bool:
        """Whether anything is open, and the tree has had its head start, or in deterministic mode its turn."""
        if not len(tree.frontier) and not len(tree.unsplittable):
            return False
        tuning = self.tuning
        if self.oracle.options.search.deterministic:
            turn = min(tuning.turn, self.space.effort.subproblems(tuning.head_start))
            return not len(tree.frontier) or tree.counts.bounded >= turn * 2 ** sum(self.given.values())
        piecewise = self.space.context.graph.piecewise_linear
        alone = tuning.head_start if piecewise or self.unstable <= tuning.curved else tuning.late
        early = piecewise and self.unstable <= tuning.small and tree.counts.bounded >= tuning.small_tree
        return early or time.monotonic() - tree.counts.began > alone

    # -- answers ------------------------------------------------------------------------------------------------------------

    def _about(self, tree: Tree[Subproblems], task: Task) -> tuple[Tensor, Tensor]:
        """What a task's answer is about: in the frontier, (capacity,) bool, and among what is unsplittable, (n,) bool."""
        slots = self.space.bounder.relaxations.slots
        literals = tuple((slots.index(node), index, side, point) for node, index, side, point in task.decisions)
        waiting, stuck = tree.frontier.store.under(task.disjunct, literals) & tree.frontier.alive, tree.unsplittable
        own = task.box is None  # a part of the box is about no subproblem
        return waiting & own, stuck.under(task.disjunct, literals) & own

    def alive(self, tree: Tree[Subproblems], task: Task) -> bool:
        """Whether anything that a task's answer is about is open."""
        return any(bool(some.any()) for some in self._about(tree, task))

    def raise_to(self, tree: Tree[Subproblems], task: Task, bound: float) -> int:
        """Close what a bound closes, or raise it."""
        waiting, stuck = self._about(tree, task)
        count = int(waiting.sum()) + int(stuck.sum())
        if not count:
            return 0
        if tree.group.disjuncts[task.disjunct].closes(bound):
            tree.trust = Trust.SOLVER
            # The solver's bound holds everywhere, unless it began with what holds at unsafe points only: then there are none.
            tree.closed_bound = min(tree.closed_bound, min(bound, 0.0) if task.conditional else bound)
            tree.incumbents.context.ledger.close(Part.ORACLE, count)
            tree.frontier.remove(waiting)
            tree.unsplittable = tree.unsplittable.take(~stuck)
            return count
        tree.raised = True
        for subs, mask in ((tree.frontier.store, waiting), (tree.unsplittable, stuck)):
            subs.bound = torch.where(mask & (subs.bound < bound), bound, subs.bound)
        return 0

    def heard(self, tree: Tree[Subproblems], finding: Finding, closed: int) -> None:
        """Keep what a solver swept of a whole disjunct: the tree may begin again from it."""
        if finding.ranges is not None and not finding.task.decisions and not closed:
            self.space.swept[finding.task.disjunct] = finding.ranges

    def answer_target(self, tree: Tree[Subproblems], finding: Finding) -> None:
        """Keep what was found of the bound of a pre-activation, until the root is built anew."""
        if self.targets is None or finding.task.target is None:
            return
        try:
            self.targets.answer(finding.task.target, finding.bound, finding.ended)
        except Contradiction as error:
            if tree.raised or tree.trust is Trust.SOLVER:
                raise
            self.oracle.give_up(str(error))

    # -- tasks --------------------------------------------------------------------------------------------------------------

    def give(self, tree: Tree[Subproblems]) -> None:
        """The next task: the whole disjunct of the hardest subproblem, or that subproblem where the whole was tried."""
        space, oracle, switches, tuning = self.space, self.oracle, self.oracle.options.search, self.tuning
        if self.unstable > self.sharing.largest:
            oracle.give_up(TOO_LARGE)
            return
        if self.unstable > tuning.most_curved and not space.context.graph.piecewise_linear:
            oracle.usable = False  # nothing is amiss: the tree goes on alone
            return
        waiting = oracle.usage.modelling > tuning.models * (time.monotonic() - oracle.usage.began)
        if (self.unstable > tuning.large and not switches.deterministic and waiting) or self._give_target(tree):
            return
        hardest = self._hardest(tree)
        if hardest is None:
            oracle.give_up(NOTHING_MORE)
            return
        chosen = self._whole(tree, int(hardest.disjunct[0]))
        if chosen is None:
            return
        place, whole = chosen
        turn = sum(self.given.values())
        self.given[place] = self.given.get(place, 0) + 1
        one = torch.tensor([place], device=tree.unsplittable.bound.device)
        subproblem = space.bounder.first(torch.zeros_like(one), one) if whole else hardest
        if space.context.graph.piecewise_linear:
            # The solver's bound is to hold everywhere: it gets no conditional bounds.
            state, conditional = space.plain.state_of(replace(subproblem, box=torch.zeros_like(subproblem.box))), False
        elif whole:
            state, conditional = space.roots.get(place, space.plain.state), place in space.roots
        else:
            state, conditional = space.bounder.state_of(subproblem), tree.conditional
        share = self.sharing.whole if whole else self.sharing.part
        if whole and self.unstable <= tuning.middling and all(k in self.given for k in self._worth(tree)):
            share = 1.0
        best = tree.incumbents.best
        start = best[place][1] if whole and place in best else None
        seconds = max(self.sharing.least, share * space.context.deadline.remaining())
        task = Task(place, space.decisions(subproblem), seconds, unstable=self.unstable, conditional=conditional)
        if switches.deterministic:
            task = replace(task, seconds=math.inf, nodes=self.sharing.nodes * 2**turn)
        oracle.give(task, tree.group.disjuncts[place], node_ranges(state), start)

    def _whole(self, tree: Tree[Subproblems], place: int) -> tuple[int, bool] | None:
        """The disjunct of the next task, and whether that is the whole of it; None where there is nothing to give.

        Args:
            place: the disjunct of the hardest subproblem.
        """
        oracle, switches = self.oracle, self.oracle.options.search
        if switches.both_ways:
            if not switches.deterministic:
                return place, place not in self.given
            ended = (tree.group.members[place], ()) in oracle.solved
            return place, len(tree.frontier) > 0 and sum(self.given.values()) % 2 == 0 and not ended
        # Parts make sense only where both listen.
        rest = [k for k in self._worth(tree) if switches.deterministic or k not in self.given]
        if not rest:
            if not len(tree.frontier):
                oracle.give_up(NOTHING_MORE)
            return None
        first = place if switches.tree_to_oracle else -1
        return min(rest, key=lambda k: (self.given.get(k, 0), k != first)), True

    def _worth(self, tree: Tree[Subproblems]) -> Iterator[int]:
        """The disjuncts that may be a task as a whole, as far as the solver is told: open, and not closed or ended by it."""
        told = self.oracle.options.search.tree_to_oracle
        for k, m in enumerate(tree.group.members):
            if m not in self.oracle.proved and (m, ()) not in self.oracle.solved and (not told or self.alive(tree, Task(k))):
                yield k

    def _give_target(self, tree: Tree[Subproblems]) -> bool:
        """A bound of a pre-activation as the next task, where those are worth more than subproblems; whether there was one."""
        switches, deadline = self.oracle.options.search, self.space.context.deadline
        if self.targets is None or switches.deterministic or not switches.both_ways or self.oracle.options.trust is not Trust.SOLVER:
            return False
        if self.unstable <= self.tuning.small and any(k not in self.given and self.alive(tree, Task(k)) for k in range(tree.group.count)):
            return False
        found = self.targets.next(deadline)
        if found is None:
            return False
        layer, target, place = found
        self.oracle.give_target(Task(-1, seconds=min(self.tuning.target_seconds, deadline.remaining()), target=target), layer, place)
        return True

    def _hardest(self, tree: Tree[Subproblems]) -> Subproblems | None:
        """The subproblem of lowest bound; of those that cannot be split, the first that the solver is not done with."""
        frontier, stuck = tree.frontier, tree.unsplittable
        if len(frontier):
            bound = torch.where(frontier.alive, frontier.store.bound, torch.inf)
            return frontier.store.take(bound.argmin().unsqueeze(0))
        for n in stuck.bound.argsort(stable=True).tolist():
            one = stuck.take(torch.tensor([n], device=stuck.bound.device))
            if (tree.group.members[int(one.disjunct[0])], self.space.decisions(one)) not in self.oracle.solved:
                return one
        return None
