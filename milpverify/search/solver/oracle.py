"""The oracle: a MILP solver in a process of its own that works beside the tree, on a whole disjunct or on one of its subproblems.

A solve never blocks: the tree polls it between batches, unless choices go by counts (`SearchOptions.deterministic`): then the tree
waits for a solve that ends after a number of the solver's nodes. What comes back is a dual bound less a safety margin (trust SOLVER, and
only where the options allow that) and points, which are judged like all others. Whatever happens to the process, the tree goes on.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from milpverify.encode.cut_forms import Split
from milpverify.encode.milp import encode
from milpverify.encode.model import NumericallyUnfit, OutOfTime, elastic
from milpverify.errors import UnsupportedOperator
from milpverify.events import Event
from milpverify.search.solver.judging import Judging
from milpverify.solvers.base import Limits, Progress, SolveOutcome, SolverStatus
from milpverify.solvers.process import POLL, SolverProcess
from milpverify.solvers.registry import FALLBACK, MILP_SOLVERS
from milpverify.solvers.trusted_bound import safe_dual_bound, safety_margin

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.config import Deadline, Options
    from milpverify.encode.encoding import Layer, NodeRanges
    from milpverify.result import Counterexample
    from milpverify.solvers.model import Model
    from milpverify.spec import Array, Box, Disjunct, Problem

SolverTarget = tuple[int, int, int]
"""A bound of a pre-activation: node, flat index, side (+1 the lower bound, -1 the upper)."""
NICENESS = 5  # on a single core the tree gets three quarters
CRASHES = 3  # a solver that dies this often is left alone


@dataclass(frozen=True, eq=False)
class Task:
    """A subproblem: a disjunct by its place in the group, split decisions, the seconds and solver's nodes that it may take.

    `box` is a part of the disjunct's box, where it is not the whole. With `target` it is no subproblem of the margin's: what is bounded
    from below is side times the pre-activation, over the box alone. `unstable` pre-activations were undecided when it was made.
    """

    disjunct: int
    decisions: tuple[Split, ...] = ()
    seconds: float = math.inf
    nodes: int | None = None
    box: Box | None = None
    target: SolverTarget | None = None
    unstable: int = 0


@dataclass(frozen=True, eq=False)
class Finding:
    """What the oracle knows of its task: a lower bound of the margin (trust SOLVER; -inf if none may be used), and whether it has ended.

    `solved`: it ended because the solver has no more to say about it.
    """

    task: Task
    bound: float
    ended: bool
    solved: bool = False


@dataclass(eq=False)
class _Work:
    """A task under way: first its margin model, then the emptiness model of what the solver calls infeasible.

    `judging` is None where points mean nothing; `offset` is what the model's objective lacks.
    """

    task: Task
    model: Model
    judging: Judging | None
    offset: float = 0.0
    emptiness: bool = False
    bound: float = -math.inf
    told: float = -math.inf
    began: float = field(default_factory=time.monotonic)

    def raise_to(self, outcome: SolveOutcome) -> None:
        """The bound that an outcome proves; a subproblem that is empty has every bound."""
        bound = safe_dual_bound(outcome, self.model)
        if self.emptiness:
            bound = math.inf if bound > 0 else -math.inf
        if self.offset:
            bound = math.nextafter(bound + self.offset, -math.inf)
        self.bound = max(self.bound, bound)


@dataclass(eq=False)
class Usage:
    """What the process has taken: its `seconds` and `nodes`, how often it died, and the seconds since `began` that went into models."""

    seconds: float = 0.0
    nodes: int = 0
    crashes: int = 0
    modelling: float = 0.0
    began: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Oracle:
    """One solver process beside the tree; a context manager that leaves no child behind.

    `counterexample` is the first that held, `disagreement` describes a point on which runtime and reals differ, `notes` say what
    went wrong with the solver, `counts` and the `usage` of its process are for the ledger, `solved` are the tasks (disjunct of the problem,
    decisions) that a solver has no more to say about, `proved` the bounds of disjuncts of the problem that it closed and the tree was not
    told of (`SearchOptions.oracle_to_tree`).
    """

    problem: Problem
    options: Options
    deadline: Deadline
    on_event: Callable[[Event], None] | None = None
    counterexample: Counterexample | None = None
    disagreement: str = ""
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"oracle_tasks": 0, "oracle_closed": 0})
    usable: bool = True
    solved: set[tuple[int, tuple[Split, ...]]] = field(default_factory=set)
    proved: dict[int, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    _process: SolverProcess | None = None
    _work: _Work | None = None

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._work is not None:
            self.usage.seconds += time.monotonic() - self._work.began
        if self._process is not None:
            self._process.close()
        self._process = self._work = None

    @property
    def task(self) -> Task | None:
        """What it works on."""
        return None if self._work is None else self._work.task

    @property
    def pid(self) -> int | None:
        """The solver's process id."""
        return None if self._process is None else self._process.pid

    def give_up(self, note: str) -> None:
        """Use the solver no more."""
        self.usable = False
        self.notes.append(note)
        self.close()

    def give(self, task: Task, disjunct: Disjunct, bounds: NodeRanges, start: Array | None = None) -> None:
        """Begin with a task.

        Args:
            bounds: of every node, proved where the task's split decisions hold, on the CPU.
            start: (nx,) an input that satisfies them, to begin with.
        """
        within, now = disjunct if task.box is None else replace(disjunct, box=task.box), time.monotonic()
        try:
            encoding = encode(self.problem.graph, bounds, within, start=start, decisions=task.decisions, deadline=self.deadline)
        except OutOfTime:
            return
        except UnsupportedOperator as error:  # nothing is amiss: the tree goes on alone
            self.usable = False
            if self.on_event is not None:
                self.on_event(Event("oracle", f"not used: {error}"))
            return
        except NumericallyUnfit as error:
            self.give_up(str(error))
            return
        self.usage.modelling += time.monotonic() - now
        self.counts["oracle_tasks"] += 1
        self._begin(_Work(task, encoding.model, Judging(self.problem, disjunct, encoding)), self._started(), task.seconds)

    def give_target(self, task: Task, layer: Layer, place: int) -> None:
        """Begin with a bound of a pre-activation.

        Args:
            layer: the model of what lies before it, over the group's box.
            place: of the pre-activation in the layer.
        """
        assert task.target is not None
        side = task.target[2]
        offset = side * float(layer.constant[place]) - float(layer.error[place])
        self.counts["oracle_ends"] = self.counts.get("oracle_ends", 0) + 1
        self._begin(_Work(task, layer.task(place, side), None, offset), self._started(), task.seconds)

    def _started(self) -> SolverProcess:
        if self._process is None:
            solver = self.options.solver if self.options.solver in MILP_SOLVERS else FALLBACK
            self._process = SolverProcess(solver, self.options.memory_mb, NICENESS)
        return self._process

    def _begin(self, work: _Work, process: SolverProcess, seconds: float) -> None:
        self._work = work
        # Once the bound clears the safety margin twice over the task is closed, and raising it further is idle.
        target = 2.0 * safety_margin(work.model) - work.offset
        plain = work.task.target is not None
        limits = Limits(seconds, self.options.memory_mb, 1, self.options.seed, dual_target=target, nodes=work.task.nodes, plain=plain)
        # When a report arrives depends on the clock: where that must not matter, only outcomes count.
        process.start(work.model, limits, self.deadline, None if self.options.search.deterministic else self._watch)

    def move(self, disjunct: int) -> None:
        """The disjunct of the task under way has another place in the group from now on."""
        assert self._work is not None
        self._work.task = replace(self._work.task, disjunct=disjunct)

    def stop(self) -> None:
        """End the task under way: it is of no more use."""
        if self._process is not None:
            self._process.stop()

    def wait(self) -> Finding | None:
        """Wait for the end of the task under way; what was found."""
        finding = None
        while self._work is not None and (finding is None or not finding.ended):
            finding = self.poll(POLL)
        return finding

    def poll(self, seconds: float = 0.0) -> Finding | None:
        """What is new about the task, if anything. Waits so many seconds at most."""
        work, process = self._work, self._process
        if work is None or process is None:
            return None
        outcome = process.poll(seconds)
        if outcome is not None:
            assert isinstance(outcome, SolveOutcome)
            self._work = None
            self._end(work, process, outcome)
        if work.judging is not None:
            self.counterexample = self.counterexample or work.judging.counterexample
            self.disagreement = self.disagreement or work.judging.disagreement
        if outcome is None and work.bound <= work.told:
            return None
        work.told = work.bound
        may_close = self.options.believes_solvers
        ended = outcome is not None and self._work is None
        solved = ended and outcome is not None and outcome.status in (SolverStatus.OPTIMAL, SolverStatus.INFEASIBLE)
        return Finding(work.task, work.bound if may_close else -math.inf, ended, solved)

    def _watch(self, progress: Progress) -> bool:
        work = self._work
        assert work is not None
        work.raise_to(SolveOutcome(SolverStatus.UNKNOWN, progress.dual_bound))
        if work.emptiness or work.judging is None:
            return False
        if progress.point is not None:
            work.judging.consider(progress.point, progress.primal)
        if self.on_event is not None:
            message = f"{self.options.solver}: bound {progress.dual_bound:.6g}, {progress.nodes} nodes"
            data = {"bound": progress.dual_bound, "nodes": progress.nodes, "splits": len(work.task.decisions)}
            self.on_event(Event("oracle", message, data))
        return work.judging.counterexample is not None

    def _end(self, work: _Work, process: SolverProcess, outcome: SolveOutcome) -> None:
        work.raise_to(outcome)
        self.usage.seconds += outcome.seconds
        self.usage.nodes += outcome.nodes
        if outcome.point is not None and work.judging is not None and work.judging.counterexample is None and not work.emptiness:
            work.judging.consider(outcome.point, outcome.primal)
            work.judging.polish(outcome.point, outcome.primal)
        match outcome.status:
            case SolverStatus.INFEASIBLE if not work.emptiness and work.judging is not None and self.options.believes_solvers:
                # Not to be taken at its word: that the subproblem is empty is proved by a dual bound, too.
                rest = replace(work, model=elastic(work.model), emptiness=True)
                self._begin(rest, process, work.task.seconds - outcome.seconds)
            case SolverStatus.UNAVAILABLE if process.solver == FALLBACK:
                self.give_up(outcome.message)
            case SolverStatus.UNAVAILABLE:
                self.notes.append(f"{outcome.message}; {FALLBACK} is used instead")
                process.close()
                self._process = SolverProcess(FALLBACK, self.options.memory_mb, NICENESS)
            case SolverStatus.CRASHED | SolverStatus.MEMORY_LIMIT:
                self.usage.crashes += 1
                if self.usage.crashes >= CRASHES:
                    self.give_up(outcome.message)
