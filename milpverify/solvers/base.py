"""What every solver adapter speaks: limits in, progress on the way, an outcome out. Imports neither torch nor a solver.

What a solver says is trusted in one place only, `trusted_bound.safe_dual_bound`: a finite dual bound, less a margin above the
solver's tolerances, bounds the optimum from below. A status proves nothing, and neither does a point.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from milpverify.solvers.names import SOLVERS


class Capability(Enum):
    """What a model needs and an adapter passes on to its solver; `registry.solve` compares them."""

    LINEAR = "linear"
    INTEGER = "integer"
    QUADRATIC = "products of variables"
    FUNCTIONS = "smooth functions"
    SWEEP = "many objectives over one linear program"
    SMT = "exact SMT"
    SMT_TRANSCENDENTAL = "SMT of transcendental functions"


class SolverStatus(Enum):
    """How a solve ended. The values are the words shown to people. Only a dual bound proves anything, whatever the status."""

    OPTIMAL = "solved to optimality"
    TARGET = "stopped at the bound or the value that was asked for"
    INFEASIBLE = "the solver found no feasible point"
    UNBOUNDED = "unbounded, or infeasible or unbounded"
    TIME_LIMIT = "time limit"
    MEMORY_LIMIT = "memory limit"
    INTERRUPTED = "interrupted"
    UNAVAILABLE = "the solver cannot take this model"
    CRASHED = "the solver process died"
    UNKNOWN = "inconclusive"


@dataclass(frozen=True)
class Manner:
    """How adapters go about a solve, whatever its limits; no bound rests on it. Part of `process.SolverTuning`."""

    report: float = 0.1
    """Seconds between two reports, but for those of a new point or a target that is reached."""
    attained: float = 1e-3
    """In sweeps, a bound of which less than this share of the range can be taken off is left."""
    first_order: float = 30.0
    """z3 tries polynomials in the order of their definitions for so many seconds at most, and half of its time: where that order is good,
    it is good at once."""
    decimals: int = 20
    """Of an algebraic number that z3 returns."""


@dataclass(frozen=True)
class Limits:
    """What bounds a solve: wall-clock seconds, MiB of memory, threads; a minimisation may also stop once it is decided.

    The solve ends with TARGET when the dual bound rises to `dual_target` or a point of value <= `primal_target` is found. `nodes`
    of a MILP solver's own tree are a limit that repeats exactly, where seconds do not. `plain` asks for a dual bound of a small model
    and nothing else: no search for points and no cuts, which take longer there than the branching that they save. `manner` is how the
    adapter goes about it.
    """

    seconds: float = math.inf
    memory_mb: int = 8192
    threads: int = 1
    seed: int = 0
    dual_target: float = math.inf
    primal_target: float = -math.inf
    nodes: int | None = None
    plain: bool = False
    manner: Manner = Manner()


@dataclass(frozen=True, eq=False)
class Progress:
    """One report during a solve, in units of the objective. `point` (n,) is given when it is new and the best so far."""

    dual_bound: float
    primal: float
    nodes: int
    seconds: float
    point: NDArray[np.float64] | None = None

    @property
    def gap(self) -> float:
        """primal - dual_bound, infinite while one of them is missing."""
        return self.primal - self.dual_bound if math.isfinite(self.primal) and math.isfinite(self.dual_bound) else math.inf


@dataclass(frozen=True, eq=False)
class SolveOutcome:
    """What a solve returned, in units of the objective: the proved side `dual_bound`, the best `point` (n,) and its value.

    A linear program solved to a basis also has the `multipliers` (m,) of its rows, >= 0 for one that its lower end holds, and
    `basic` (n + m,): which variables and which rows are basic. To be checked like all else.
    """

    status: SolverStatus
    dual_bound: float = -math.inf
    primal: float = math.inf
    point: NDArray[np.float64] | None = None
    nodes: int = 0
    seconds: float = 0.0
    message: str = ""
    multipliers: NDArray[np.float64] | None = None
    basic: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class SweepOutcome:
    """What a sweep returned; a status proves nothing.

    Of the model's own objective the proved side `dual_bound` and the `point` (n,); `bounds` are the proved sides of the other least
    values, -inf where one was not reached. Of a certified sweep also the solutions `points` (S, n) of the S linear programs that were
    solved, which of the K values `solved` (S,) they are of, and the `multipliers` (S, m) of the model's rows.
    """

    status: SolverStatus
    dual_bound: float
    point: NDArray[np.float64] | None
    bounds: NDArray[np.float64]  # (K,)
    seconds: float = 0.0
    message: str = ""
    solved: NDArray[np.int64] | None = None
    points: NDArray[np.float64] | None = None
    multipliers: NDArray[np.float64] | None = None


class Answer(Enum):
    """The answer of an SMT solver."""

    UNSAT = "unsat"
    SAT = "sat"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class SmtOutcome:
    """The answer of an SMT solver; on SAT, `point` holds the exact value of every variable asked for, as "p/q"."""

    answer: Answer
    point: tuple[str, ...] = ()
    status: SolverStatus = SolverStatus.OPTIMAL
    seconds: float = 0.0
    message: str = ""

    def values(self) -> list[Fraction]:
        """The point in rationals."""
        return [Fraction(value) for value in self.point]


OnProgress = Callable[[Progress], bool]
"""Called with each report; a true return asks the solver to stop."""

M = TypeVar("M")
R = TypeVar("R")


class Solver(ABC, Generic[M, R]):
    """A solver for one kind of model. Final classes live in modules of their own, each the only one to import its library."""

    name: str
    capabilities: frozenset[Capability]

    @abstractmethod
    def solve(self, model: M, limits: Limits, on_progress: OnProgress) -> R:
        """Solve in this process, without a word on standard output.

        Raises:
            SolverUnavailable: the library is missing, or its licence or abilities do not cover the model.
        """

    def needs_second(self, model: M) -> bool:
        """Whether SCIP has to prove of a model, too, what this solver proves of it: no safety margin covers what is known of it.

        So it is of every minimisation, until an adapter says otherwise; nobody asks about other questions.
        """
        return True

    @property
    def package(self) -> str:
        """The distribution whose version is reported."""
        return SOLVERS[self.name].package

    @abstractmethod
    def licence(self) -> str:
        """What it may be used for, in words; raises SolverUnavailable where it cannot be used at all."""


EMPTY_HANDED = frozenset({SolverStatus.INFEASIBLE, SolverStatus.UNBOUNDED})
"""What solvers say of a model without an optimum: a word only, whatever bound they call it by (SCIP: +inf)."""


class Minimisation:
    """A solve under way, by the rules that all MILP adapters share: when a report is due, when to stop, and what the end proves."""

    def __init__(self, limits: Limits, on_progress: OnProgress) -> None:
        self.limits = limits
        self.on_progress = on_progress
        self.requested = False
        self._began, self._reported = time.monotonic(), -math.inf

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """The seconds that are left to it."""
        return max(0.0, self.limits.seconds - self.seconds)

    def due(self, dual_bound: float, primal: float, found: bool = False) -> bool:
        """Whether it is time for a report: at once of a point found and of a target reached, else every `Manner.report` seconds."""
        now = time.monotonic()
        if not found and now - self._reported < self.limits.manner.report and not self.decided(dual_bound, primal):
            return False
        self._reported = now
        return True

    def report(self, dual_bound: float, primal: float, nodes: int, point: NDArray[np.float64] | None = None) -> bool:
        """Pass a report on; returns whether the solver must stop now."""
        self.requested |= self.on_progress(Progress(dual_bound, primal, nodes, self.seconds, point))
        return self.requested or self.decided(dual_bound, primal)

    def decided(self, dual_bound: float, primal: float) -> bool:
        """Whether a target is reached."""
        return dual_bound >= self.limits.dual_target or primal <= self.limits.primal_target

    def outcome(
        self, status: SolverStatus, dual_bound: float, primal: float, point: NDArray[np.float64] | None, nodes: int, message: str
    ) -> SolveOutcome:
        """What the solver's last words amount to.

        An interruption was this class's own where a target is reached and nobody asked for it. "Infeasible" and "unbounded" prove
        nothing, and neither does an infinite bound.
        """
        if status is SolverStatus.INTERRUPTED and not self.requested and self.decided(dual_bound, primal):
            status = SolverStatus.TARGET
        if status in EMPTY_HANDED or not math.isfinite(dual_bound):
            dual_bound = -math.inf
        return SolveOutcome(status, dual_bound, primal, point, nodes, self.seconds, message)
