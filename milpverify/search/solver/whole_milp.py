"""Deciding disjuncts by whole models: one mixed-integer model each, in a worker process.

A disjunct is closed by the solver's dual bound alone, less a safety margin (trust SOLVER). Every improving point of the solver is judged as
it comes, so that a counterexample ends the run at once. Disjuncts share the time fairly: each gets an equal part of what is left,
and those that ran out of theirs are tried again with what the others did not need.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from milpverify.counterexamples.polish import polish
from milpverify.encode.encoding import EncodingTuning, ModelForm
from milpverify.encode.milp import encode
from milpverify.encode.model import NumericallyUnfit, OutOfTime
from milpverify.encode.smt import smt_script
from milpverify.errors import Contradiction, SolverUnavailable
from milpverify.inquiries.judging import Judging
from milpverify.inquiries.refinement import Refinement, RefinementTuning, native_to
from milpverify.result import Counterexample, Event, Reason, Trust, Verdict
from milpverify.search.outcome import SearchOutcome
from milpverify.search.solver.oracle import SolvingTuning
from milpverify.solvers.base import Answer, Limits, Progress, SolveOutcome, SolverStatus, SweepOutcome
from milpverify.solvers.model import Model, Sweep
from milpverify.solvers.process import SolverProcess, SolverTuning
from milpverify.solvers.registry import FALLBACK
from milpverify.solvers.trusted_bound import safe_dual_bound, safety_margin

if TYPE_CHECKING:
    from milpverify.config import Deadline, Options, SearchMethod
    from milpverify.encode.encoding import Encoding, NodeRanges
    from milpverify.spec import Array, Disjunct, Problem

OnEvent = Callable[[Event], None]
_REASONS = {SolverStatus.TIME_LIMIT: Reason.TIMEOUT, SolverStatus.INTERRUPTED: Reason.INTERRUPTED, SolverStatus.MEMORY_LIMIT: Reason.MEMORY}


@dataclass(frozen=True, eq=False)
class OpenDisjunct:
    """A disjunct that bounds did not close: its place in the problem, proved bounds (made when its turn comes), the best point."""

    index: int
    disjunct: Disjunct
    bounds: Callable[[], NodeRanges]
    start: Array | None = None  # (nx,)


@dataclass(frozen=True)
class Leaf:
    """What became of one disjunct; UNKNOWN says why in `reason` and in words in `note`.

    `lower_bound` of its margin is proved with trust `trust`; `point_margin` is the solver's value of its best point.
    """

    index: int
    verdict: Verdict
    reason: Reason
    lower_bound: float
    trust: Trust
    note: str = ""
    counterexample: Counterexample | None = None
    point_margin: float = math.inf
    solver: str = ""
    nodes: int = 0
    seconds: float = 0.0


def decide_by_milp(
    problem: Problem, disjuncts: Sequence[OpenDisjunct], options: Options, deadline: Deadline, on_event: OnEvent | None = None
) -> tuple[list[Leaf], list[str]]:
    """Decide disjuncts one after the other with the solver of the options; what became of each, and lines to show once.

    Fewer than there are once one is falsified.

    Args:
        problem: its graph in float64 on the CPU, piecewise linear.
        disjuncts: those still open; the verdict is about them alone.

    Raises:
        UnsupportedOperator: a function that is not piecewise linear.
        Contradiction: a proved bound and a counterexample exclude each other.
        SolverUnavailable: the default solver cannot be used either.
    """
    with _Runner(problem, options, deadline, on_event) as runner:
        leaves: dict[int, Leaf] = {}
        waiting = list(disjuncts)
        while waiting:
            stuck = []
            for left, item in zip(range(len(waiting), 0, -1), waiting, strict=True):
                leaf = runner.decide(item, math.inf if options.search.deterministic else deadline.remaining() / left)
                known = leaves.get(item.index)
                if known is not None:
                    leaf = replace(leaf, lower_bound=max(leaf.lower_bound, known.lower_bound))
                leaves[item.index] = leaf
                if leaf.verdict is Verdict.FALSIFIED:
                    return list(leaves.values()), runner.notes
                if leaf.reason is Reason.TIMEOUT:
                    stuck.append(item)
            waiting = stuck if deadline.remaining() > options.search.tuned(SolvingTuning).retry else []
        return list(leaves.values()), runner.notes


def conclude(leaves: Sequence[Leaf], count: int, method: SearchMethod, notes: Sequence[str] = ()) -> SearchOutcome:
    """The outcome over `count` disjuncts: one counterexample falsifies, and only all of them closed verify.

    Its `lower_bound` is the smallest of the leaves', -inf where one has none: a counterexample leaves the disjuncts after it without.
    """
    trust = Trust.weakest(*(leaf.trust for leaf in leaves))
    bound = min((leaf.lower_bound for leaf in leaves), default=math.inf) if len(leaves) == count else -math.inf
    broken = next((leaf for leaf in leaves if leaf.verdict is Verdict.FALSIFIED), None)
    unknown = [leaf for leaf in leaves if leaf.verdict is Verdict.UNKNOWN]
    if broken is None:
        notes = [*notes, *dict.fromkeys(leaf.note for leaf in unknown if leaf.note)]
    solvers = sorted({leaf.solver for leaf in leaves if leaf.solver})
    detail = {"method": method.value, "solver": ",".join(solvers), "nodes": sum(leaf.nodes for leaf in leaves)}
    reason = Reason.COUNTEREXAMPLE if broken is not None else unknown[0].reason if unknown else Reason.PROVED
    example = None if broken is None else broken.counterexample
    return SearchOutcome(broken is None and not unknown, bound, trust, example, reason, "; ".join(notes), detail=detail)


def reason_of(status: SolverStatus) -> Reason:
    """Why a solve that decided nothing leaves the answer open."""
    return _REASONS.get(status, Reason.SOLVER_INCONCLUSIVE)


def _falsified(leaf: Leaf, example: Counterexample) -> Leaf:
    return replace(leaf, verdict=Verdict.FALSIFIED, reason=Reason.COUNTEREXAMPLE, counterexample=example)


class _Runner:
    """The solver process and what the disjuncts of one run share."""

    def __init__(self, problem: Problem, options: Options, deadline: Deadline, on_event: OnEvent | None) -> None:
        self.problem = problem
        self.options = options
        self.deadline = deadline
        self.on_event = on_event
        self.notes: list[str] = []
        self.process = SolverProcess(options.solver, options.memory_mb, tuning=options.search.tuned(SolverTuning))
        self.refinements: dict[int, Refinement] = {}  # by disjunct: who gets more time goes on from there

    def __enter__(self) -> _Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close()

    def decide(self, item: OpenDisjunct, seconds: float) -> Leaf:
        """Decide one disjunct within its share of the time."""
        unknown = Leaf(item.index, Verdict.UNKNOWN, Reason.SOLVER_INCONCLUSIVE, -math.inf, Trust.SOLVER, solver=self.process.solver)
        if self.deadline.expired():
            return replace(unknown, reason=Reason.INTERRUPTED if self.deadline.cancelled else Reason.TIMEOUT)
        if not len(item.disjunct.unsafe):
            return self._decide_input_set(item, unknown)
        if not self.problem.graph.piecewise_linear:
            return self._refine(item, seconds, unknown)
        try:
            encoding = encode(self.problem.graph, item.bounds(), item.disjunct, item.start, deadline=self.deadline, form=self._form)
        except NumericallyUnfit as error:
            return replace(unknown, note=str(error))
        except OutOfTime:
            return replace(unknown, reason=Reason.INTERRUPTED if self.deadline.cancelled else Reason.TIMEOUT)
        judging = Judging(self.problem, item.disjunct, safety_margin(encoding.model))
        outcome = self._solve(item, encoding, judging, seconds)
        return self._leaf(item, encoding, outcome, judging, unknown)

    @property
    def _form(self) -> ModelForm:
        """With all that the solver takes as it is."""
        native = native_to(self.process.solver, self.problem.graph, self.options)
        return ModelForm(native=native, tuning=self.options.search.tuned(EncodingTuning))

    def _refine(self, item: OpenDisjunct, seconds: float, unknown: Leaf) -> Leaf:
        """Decide a disjunct of a curved network by models of more and more pieces, or by one with all that the solver takes as it is."""
        if item.index not in self.refinements:
            judging, tuning = Judging(self.problem, item.disjunct, 0.0), self.options.search.tuned(RefinementTuning)
            known = self.problem.graph, item.disjunct, item.bounds(), judging, self.deadline
            self.refinements[item.index] = Refinement(*known, form=self._form, x=item.start, tuning=tuning)
        refinement = self.refinements[item.index]
        limit, nodes, began, status, message = self.deadline.within(seconds), 0, time.monotonic(), SolverStatus.OPTIMAL, ""
        questions, reply = refinement.questions(), None
        try:
            while True:
                question = next(questions) if reply is None else questions.send(reply)
                if limit.expired():
                    status, message = SolverStatus.TIME_LIMIT, "time limit"
                    break
                reply = self._ask(question, refinement, limit, item.index)
                status, message = reply.status, reply.message
                nodes += reply.nodes if isinstance(reply, SolveOutcome) else 0
        except StopIteration:
            pass
        except NumericallyUnfit as error:
            status, message = SolverStatus.UNKNOWN, str(error)
        except OutOfTime:
            status, message = SolverStatus.INTERRUPTED if self.deadline.cancelled else SolverStatus.TIME_LIMIT, "no time left"
        leaf = replace(unknown, lower_bound=refinement.bound, point_margin=refinement.least, nodes=nodes, seconds=time.monotonic() - began)
        return self._refined(item, leaf, refinement, status, message)

    def _ask(self, question: Model | Sweep, refinement: Refinement, limit: Deadline, index: int) -> SolveOutcome | SweepOutcome:
        """Have one question answered."""

        def watch(progress: Progress) -> bool:
            if self.on_event is not None and isinstance(question, Model):
                message = f"{self.process.solver}: bound {max(refinement.bound, progress.dual_bound):.6g}, {progress.nodes} nodes"
                message += f", round {refinement.rounds}, {len(refinement.cuts)} neurons parted"
                data = {"bound": progress.dual_bound, "nodes": progress.nodes, "gap": progress.gap, "disjunct": index}
                self.on_event(Event("milp", message, dict(data)))
            return False

        options, left = self.options, limit.remaining()
        limits = Limits(left, options.memory_mb, options.threads, options.seed, dual_target=refinement.target(question))
        if isinstance(question, Sweep):
            return self.process.solve(question, replace(limits, seconds=refinement.share(question) * left), self.deadline, watch)
        outcome = self.process.solve(question, limits, self.deadline, watch)
        if outcome.status is not SolverStatus.UNAVAILABLE or self.process.solver == FALLBACK:
            return outcome
        self.notes.append(f"{outcome.message}; {FALLBACK} is used instead")
        self.process.close()
        self.process = SolverProcess(FALLBACK, options.memory_mb, tuning=options.search.tuned(SolverTuning))
        return self.process.solve(question, limits, self.deadline, watch)

    def _refined(self, item: OpenDisjunct, leaf: Leaf, refinement: Refinement, status: SolverStatus, message: str) -> Leaf:
        """What refining came to."""
        leaf, judging = replace(leaf, solver=self.process.solver), refinement.judging
        if judging.counterexample is not None:
            if refinement.closed:
                raise Contradiction(f"{leaf.solver} proves a margin of {leaf.lower_bound:.9g}, but there is a counterexample")
            return _falsified(leaf, judging.counterexample)
        if refinement.closed and self.options.believes_solvers:
            return replace(leaf, verdict=Verdict.VERIFIED, reason=Reason.PROVED)
        if refinement.closed:
            return replace(leaf, reason=Reason.TRUST, lower_bound=-math.inf)
        if judging.disagreement:
            return replace(leaf, reason=Reason.FLOAT_SEMANTICS, note=judging.disagreement)
        where = f"disjunct {item.index}: margin between {leaf.lower_bound:.6g} and {leaf.point_margin:.6g}"
        if leaf.lower_bound >= -self.options.delta and leaf.point_margin <= self.options.delta:
            return replace(leaf, reason=Reason.DELTA, note=where)
        return replace(leaf, reason=reason_of(status), note=f"{where}, {message}")

    def _solve(self, item: OpenDisjunct, encoding: Encoding, judging: Judging, seconds: float) -> SolveOutcome:
        nodes: list[int] = []  # when a counterexample came; the solver stops soon after, by the clock

        def watch(progress: Progress) -> bool:
            if self.on_event is not None:
                message = f"{self.process.solver}: bound {progress.dual_bound:.6g}, {progress.nodes} nodes"
                data = {"bound": progress.dual_bound, "nodes": progress.nodes, "gap": progress.gap, "disjunct": item.index}
                self.on_event(Event("milp", message, dict(data)))
            if progress.point is not None:
                judging.consider(encoding.x_of(progress.point), progress.primal)
            if judging.counterexample is not None:
                nodes.append(progress.nodes)
            return bool(nodes)

        # Once the bound clears the safety margin twice over the disjunct is closed, and raising it further is idle.
        target = 2.0 * safety_margin(encoding.model)
        limits = Limits(seconds, self.options.memory_mb, self.options.threads, self.options.seed, dual_target=target)
        outcome = self.process.solve(encoding.model, limits, self.deadline, watch)
        if outcome.status is SolverStatus.UNAVAILABLE:
            if self.process.solver == FALLBACK:
                raise SolverUnavailable(outcome.message)
            self.notes.append(f"{outcome.message}; {FALLBACK} is used instead")
            self.process.close()
            self.process = SolverProcess(FALLBACK, self.options.memory_mb, tuning=self.options.search.tuned(SolverTuning))
            outcome = self.process.solve(encoding.model, limits, self.deadline, watch)
        return replace(outcome, nodes=nodes[0]) if nodes else outcome

    def _leaf(self, item: OpenDisjunct, encoding: Encoding, outcome: SolveOutcome, judging: Judging, unknown: Leaf) -> Leaf:
        if outcome.point is not None and judging.counterexample is None:
            judging.consider(encoding.x_of(outcome.point), outcome.primal)
            judging.polish(encoding.x_of(outcome.point), outcome.primal)
        bound = safe_dual_bound(outcome, encoding.model)
        closed = item.disjunct.closes(bound)
        leaf = replace(unknown, lower_bound=bound, point_margin=outcome.primal, solver=self.process.solver)
        leaf = replace(leaf, nodes=outcome.nodes, seconds=outcome.seconds)
        if judging.counterexample is not None:
            if closed:
                raise Contradiction(f"{leaf.solver} proves a margin of {bound:.9g} for disjunct {item.index}, which has a counterexample")
            return _falsified(leaf, judging.counterexample)
        if closed and self.options.believes_solvers:
            return replace(leaf, verdict=Verdict.VERIFIED, reason=Reason.PROVED)
        if closed:
            return replace(leaf, reason=Reason.TRUST, lower_bound=-math.inf)
        if outcome.status is SolverStatus.INFEASIBLE and len(item.disjunct.domain):
            return self._decide_input_set(item, leaf)
        if judging.disagreement:
            return replace(leaf, reason=Reason.FLOAT_SEMANTICS, note=judging.disagreement)
        reason = reason_of(outcome.status)
        note = f"disjunct {item.index}: {outcome.message}, margin between {bound:.6g} and {outcome.primal:.6g}"
        return replace(leaf, reason=reason, note=note)

    def _decide_input_set(self, item: OpenDisjunct, unknown: Leaf) -> Leaf:
        """A disjunct without unsafe rows, or one that a solver calls infeasible: is its input set empty, in exact arithmetic?"""
        bare = replace(item.disjunct, unsafe=type(item.disjunct.unsafe).none(self.problem.graph.nx, self.problem.graph.ny))
        with SolverProcess("z3", self.options.memory_mb, tuning=self.options.search.tuned(SolverTuning)) as process:
            script = smt_script(self.problem.graph, bare, tuning=self.options.search.tuned(EncodingTuning))
            limits = Limits(memory_mb=self.options.memory_mb, seed=self.options.seed)
            outcome = process.solve(script, limits, self.deadline)
        if outcome.answer is Answer.UNSAT:
            closed = replace(unknown, verdict=Verdict.VERIFIED, reason=Reason.EMPTY_INPUT_SET, trust=Trust.EXACT)
            return replace(closed, lower_bound=math.inf)
        if outcome.answer is Answer.UNKNOWN:
            return replace(unknown, reason=reason_of(outcome.status), note=outcome.message)
        if len(item.disjunct.unsafe):
            return replace(unknown, note=f"{unknown.solver} calls disjunct {item.index} infeasible, but its input set is not empty")
        candidates = [np.array([float(value) for value in outcome.values()])] + ([] if item.start is None else [item.start])
        for x in candidates:
            example = polish(self.problem, item.disjunct, x)
            if example is not None:
                return _falsified(unknown, example)
        note = f"disjunct {item.index} has inputs, but none in the network's own numbers was found"
        return replace(unknown, reason=Reason.FLOAT_SEMANTICS, note=note)
