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
from milpverify.encode.encoding import EncodingTuning, ModelForm
from milpverify.encode.milp import encode
from milpverify.encode.model import NumericallyUnfit, OutOfTime
from milpverify.inquiries.inquiry import Inquiry, ModelInquiry, Question, Questions
from milpverify.inquiries.judging import Judging
from milpverify.inquiries.refinement import Refinement, RefinementTuning, native_to
from milpverify.result import Event
from milpverify.solvers.base import Limits, Progress, SolveOutcome, SolverStatus, SweepOutcome
from milpverify.solvers.names import takes_models
from milpverify.solvers.process import SolverProcess, SolverTuning
from milpverify.solvers.registry import FALLBACK
from milpverify.solvers.trusted_bound import safety_margin
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.config import Deadline, Options
    from milpverify.encode.encoding import Layer, NodeRanges
    from milpverify.result import Counterexample
    from milpverify.spec import Array, Box, Disjunct, Problem

SolverTarget = tuple[int, int, int]
"""A bound of a pre-activation: node, flat index, side (+1 the lower bound, -1 the upper)."""


class SolvingTuning(Tuning):
    """How solvers are run, beside a tree or on whole models."""

    niceness: int = 5
    """Of a solver beside a tree: on a single core the tree gets three quarters."""
    crashes: int = 3
    """A solver beside a tree that dies this often is left alone."""
    retry: float = 1.0
    """Seconds that are worth trying whole models again for, which ran out of their time."""


@dataclass(frozen=True, eq=False)
class Task:
    """A subproblem: a disjunct by its place in the group, split decisions, the seconds and solver's nodes that it may take.

    `box` is a part of the disjunct's box, where it is not the whole. With `target` it is no subproblem of the margin's: what is bounded
    from below is side times the pre-activation, over the box alone. `unstable` pre-activations were undecided when it was made.
    `conditional`: the bounds that come with it hold at unsafe points only.
    """

    disjunct: int
    decisions: tuple[Split, ...] = ()
    seconds: float = math.inf
    nodes: int | None = None
    box: Box | None = None
    target: SolverTarget | None = None
    unstable: int = 0
    conditional: bool = False


@dataclass(frozen=True, eq=False)
class Finding:
    """What the oracle knows of its task: a lower bound of the margin (trust SOLVER; -inf if none may be used), and whether it has ended.

    `solved`: it ended because the solver has no more to say about it. `ranges` of every node hold where the task's decisions do and the
    margin is at most 0 (trust SOLVER, and only where the options allow that).
    """

    task: Task
    bound: float
    ended: bool
    solved: bool = False
    ranges: NodeRanges | None = None


@dataclass(eq=False)
class _Work:
    """A task under way: the question that the solver works on, of those that the inquiry asks."""

    task: Task
    inquiry: Inquiry
    questions: Questions
    question: Question
    told: float = -math.inf
    stopped: bool = False
    exhausted: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """The seconds that are left to the task."""
        return self.task.seconds - (time.monotonic() - self.began)

    def next(self, reply: SolveOutcome | SweepOutcome) -> bool:
        """Whether there is a next question, and time for it."""
        try:
            self.question = self.questions.send(reply)
        except (StopIteration, NumericallyUnfit, OutOfTime) as end:
            self.exhausted = isinstance(end, StopIteration)
            return False
        return not self.stopped and self.left > 0.0


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
            bounds: of every node, proved where the task's split decisions hold (of a curved network, where the task says so: and the point
                is unsafe), on the CPU.
            start: (nx,) an input that satisfies them, to begin with.
        """
        within, now = disjunct if task.box is None else replace(disjunct, box=task.box), time.monotonic()
        try:
            inquiry = self._inquiry(task, disjunct, within, bounds, start)
            questions = inquiry.questions()
            question = next(questions)
        except OutOfTime:
            return
        except NumericallyUnfit as error:
            self.give_up(str(error))
            return
        self.usage.modelling += time.monotonic() - now
        self.counts["oracle_tasks"] += 1
        self._begin(_Work(task, inquiry, questions, question), self._started())

    def _inquiry(self, task: Task, disjunct: Disjunct, within: Disjunct, bounds: NodeRanges, start: Array | None) -> Inquiry:
        """What is asked about a task: one model of a piecewise-linear network, or of a curved one models that are refined."""
        graph, form = self.problem.graph, ModelForm(tuning=self.options.search.tuned(EncodingTuning))
        if not graph.piecewise_linear:
            judging = Judging(self.problem, disjunct, 0.0)
            known = graph, within, bounds, judging, self.deadline, task.decisions
            form = replace(form, native=native_to(self._solver, graph, self.options))
            refinement = Refinement(*known, form, x=start, tuning=self.options.search.tuned(RefinementTuning))
            return refinement.under_the_rows() if task.conditional else refinement
        encoding = encode(graph, bounds, within, start, task.decisions, self.deadline, form)
        return ModelInquiry(encoding.model, Judging(self.problem, disjunct, safety_margin(encoding.model)), encoding)

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
        inquiry = ModelInquiry(layer.task(place, side), offset=offset)
        questions = inquiry.questions()
        self._begin(_Work(task, inquiry, questions, next(questions)), self._started())

    @property
    def _tuning(self) -> SolvingTuning:
        return self.options.search.tuned(SolvingTuning)

    @property
    def _solver(self) -> str:
        if self._process is not None:
            return self._process.solver
        return self.options.solver if takes_models(self.options.solver) else FALLBACK

    def _process_of(self, solver: str) -> SolverProcess:
        return SolverProcess(solver, self.options.memory_mb, self._tuning.niceness, self.options.search.tuned(SolverTuning))

    def _started(self) -> SolverProcess:
        if self._process is None:
            self._process = self._process_of(self._solver)
        return self._process

    def _begin(self, work: _Work, process: SolverProcess) -> None:
        self._work = work
        options, question, task = self.options, work.question, work.task
        plain = task.target is not None
        seconds = work.inquiry.share(question) * work.left
        target = work.inquiry.target(question)
        limits = Limits(seconds, options.memory_mb, 1, options.seed, dual_target=target, nodes=task.nodes, plain=plain)
        # When a report arrives depends on the clock: where that must not matter, only outcomes count.
        process.start(question, limits, self.deadline, None if options.search.deterministic else self._watch)

    def whole(self) -> int | None:
        """The disjunct that it works on as a whole; any other task, which means something to one tree alone, is ended."""
        task = self.task
        if task is None or not (task.decisions or task.box is not None or task.target is not None):
            return None if task is None else task.disjunct
        self.close()
        return None

    def move(self, disjunct: int) -> None:
        """The disjunct of the task under way has another place in the group from now on."""
        assert self._work is not None
        self._work.task = replace(self._work.task, disjunct=disjunct)

    def stop(self) -> None:
        """End the task under way: it is of no more use."""
        if self._work is not None:
            self._work.stopped = True
        if self._process is not None:
            self._process.stop()

    def wait(self) -> Finding | None:
        """Wait for the end of the task under way; what was found."""
        finding = None
        while self._work is not None and (finding is None or not finding.ended):
            finding = self.poll(self.options.search.tuned(SolverTuning).poll)
        return finding

    def poll(self, seconds: float = 0.0) -> Finding | None:
        """What is new about the task, if anything. Waits so many seconds at most."""
        work, process = self._work, self._process
        if work is None or process is None:
            return None
        outcome = process.poll(seconds)
        if outcome is not None:
            assert isinstance(outcome, SolveOutcome | SweepOutcome)
            self._work = None
            self._end(work, process, outcome)
        bound, judging = work.inquiry.bound, work.inquiry.judging
        if judging is not None:
            self.counterexample = self.counterexample or judging.counterexample
            self.disagreement = self.disagreement or judging.disagreement
        if outcome is None and bound <= work.told:
            return None
        work.told = bound
        may_close = self.options.believes_solvers
        ended = outcome is not None and self._work is None
        solved = ended and work.exhausted and outcome is not None and outcome.status in (SolverStatus.OPTIMAL, SolverStatus.INFEASIBLE)
        ranges = work.inquiry.swept if may_close and not self.options.search.deterministic else None
        return Finding(work.task, bound if may_close else -math.inf, ended, solved, ranges)

    def _watch(self, progress: Progress) -> bool:
        work = self._work
        assert work is not None
        work.inquiry.heard(progress)
        judging = work.inquiry.judging
        if judging is None:
            return False
        if self.on_event is not None:
            message = f"{self.options.solver}: bound {progress.dual_bound:.6g}, {progress.nodes} nodes"
            data = {"bound": progress.dual_bound, "nodes": progress.nodes, "splits": len(work.task.decisions)}
            self.on_event(Event("oracle", message, data))
        return judging.counterexample is not None

    def _end(self, work: _Work, process: SolverProcess, outcome: SolveOutcome | SweepOutcome) -> None:
        self.usage.seconds += outcome.seconds
        self.usage.nodes += outcome.nodes if isinstance(outcome, SolveOutcome) else 0
        if work.next(outcome) and not self.deadline.expired() and self.options.believes_solvers:
            self._begin(work, process)
            return
        match outcome.status:
            case SolverStatus.UNAVAILABLE if process.solver == FALLBACK:
                self.give_up(outcome.message)
            case SolverStatus.UNAVAILABLE:
                self.notes.append(f"{outcome.message}; {FALLBACK} is used instead")
                process.close()
                self._process = self._process_of(FALLBACK)
            case SolverStatus.CRASHED | SolverStatus.MEMORY_LIMIT:
                self.usage.crashes += 1
                if self.usage.crashes >= self._tuning.crashes:
                    self.give_up(outcome.message)
