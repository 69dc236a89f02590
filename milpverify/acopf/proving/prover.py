"""One question put to the relaxation: the root first, cheaply, then as much of the tree as time allows; and the proof, rechecked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from milpverify.acopf.proving.branching import ProverTuning, Tree
from milpverify.acopf.proving.native import native_bound
from milpverify.acopf.proving.programs import Box, Programs, TighteningTuning
from milpverify.acopf.proving.proof import Proof, Statement
from milpverify.acopf.proving.recheck import question_of, recheck
from milpverify.acopf.proving.tightening import Goal, Tightening
from milpverify.acopf.relaxation.ranges import Ranges
from milpverify.acopf.relaxation.relaxation import Relaxation
from milpverify.acopf.relaxation.separation import at_point, separate, tangents
from milpverify.config import Deadline, SearchOptions
from milpverify.errors import InvalidInput
from milpverify.result import Event, Trust
from milpverify.solvers.process import SolverProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.points.judgement import Candidate
    from milpverify.acopf.proving.proof import Node

SOLVERS = ("highs", "scip", "gurobi")


@dataclass(frozen=True, eq=False)
class Proved:
    """What came out: the bound in the question's own unit, the proof where there is one, and what it rests on.

    Of a refuted question the bound is infinite: there is no such operating point. `value` is what that means of the cost ($/h) or the
    growth. `ranges` are those of the columns over all points that are left; `method` is for people.
    """

    bound: float
    value: float
    proof: Proof | None
    trust: Trust
    ranges: Box
    method: str
    warnings: tuple[str, ...] = ()

    @property
    def refuted(self) -> bool:
        """Whether no point is left."""
        return self.bound == math.inf


class Prover:
    """Bounds the least objective of a statement from below: nothing for INFEASIBLE, the cost, or minus the growth.

    A context manager: it holds a solver process, unless one is lent to it. A `solver` other than HiGHS is asked about products once the
    root has been tightened (`native.py`), for a share of the time; what it leaves open goes to the tree. `options` hold the tuning numbers.
    """

    def __init__(
        self,
        case: Case,
        statement: Proof,
        deadline: Deadline,
        on_event: Callable[[Event], None] | None = None,
        solver: str = "highs",
        process: SolverProcess | None = None,
        options: SearchOptions = SearchOptions(),
    ) -> None:
        if solver not in SOLVERS:
            raise InvalidInput(f"there is no solver {solver!r} for power networks: choose one of {', '.join(SOLVERS)}")
        self.case, self.deadline, self._on_event, self._solver = case, deadline, on_event, solver
        self._native, self._warnings = -math.inf, list[str]()
        self._tuning, tightening = options.tuned(ProverTuning), options.tuned(TighteningTuning)
        self._claim = statement
        self.relaxation = Relaxation(question_of(case, statement))
        self.process, self._lent = process or SolverProcess("highs"), process is not None
        columns = self.relaxation.columns
        objective = np.zeros(len(columns))
        self._unit = 1.0
        match statement.statement:
            case Statement.INFEASIBLE:
                objective[columns.pg] = 1.0
                goal = Goal(objective)
            case Statement.COST:
                objective[columns.total] = 1.0
                goal, self._unit = Goal(objective, int(columns.total[0])), self.relaxation.unit
            case Statement.GROWTH:
                objective[columns.growth] = -1.0
                goal = Goal(objective, int(columns.growth[0]), upper=True)
        kept = min(self._tuning.recheck_most, self._tuning.recheck_share * deadline.remaining())
        searching = deadline.within(max(0.0, deadline.remaining() - kept))
        self._programs = Programs(self.relaxation, self.process, searching, tightening)
        self._limits = Box(*Ranges(self.relaxation).limits())
        examining = Tightening(self.relaxation, self._programs, goal, searching, tightening)
        self.tree = Tree(examining, self._limits, tangents(self.relaxation), self._tuning)
        self._cut(statement.cutoff)

    def __enter__(self) -> Prover:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._lent:
            self.process.close()

    @property
    def bound(self) -> float:
        """The least objective of any point left is at least this, in the question's unit; +inf where none is left."""
        return max(self.tree.bound, self._native) * self._unit

    @property
    def refuted(self) -> bool:
        """Whether no point is left."""
        return self.bound == math.inf

    @property
    def out_of_time(self) -> bool:
        """Whether the search ended with its time."""
        return self.tree.tightening.deadline.expired()

    def touch(self, point: Candidate) -> None:
        """Begin with the planes that touch the cones at a point: where a good one lies, solutions of the relaxation are near."""
        self.tree.root.add(separate(self.relaxation, at_point(self.relaxation, point)[None], -self._tuning.touching))

    def root(self, target: float = math.inf) -> None:
        """The relaxation without any tightening: a handful of linear programs, until the bound is at the target."""
        self.tree.examine_root(target / self._unit, 0)
        self._tell()

    def search(self, target: Callable[[], float], on_point: Callable[[Array, int], None]) -> None:
        """Tighten and branch until the bound is at `target()` or time is over; `on_point` sees the solutions (columns,) of relaxations.

        `target` is in the question's unit, and asked again after every box.
        """

        def progress(point: Array | None) -> None:
            self._tell()
            if point is not None:
                on_point(point, self.tree.boxes)

        if self._solver != "highs":
            self._ask_native(target())
        if self.bound < target():
            self.tree.grow(lambda: target() / self._unit, progress)

    def _ask_native(self, target: float) -> None:
        """Tighten the root, and have it solved with its products."""
        tree, tightening = self.tree, self.tree.tightening
        tree.examine_root(target / self._unit, self._tuning.root_rounds)
        if self.bound >= target or tree.root.box.empty or self.deadline.expired():
            return
        model = self._programs.model(tree.root.box, tree.root.cuts, tightening.goal.objective)
        refute = self._claim.statement is Statement.INFEASIBLE
        within = self.deadline.within(self._tuning.native_share * self.deadline.remaining())
        bound, message = native_bound(self._solver, self.relaxation, model, refute, target / self._unit, within)
        self._native = max(self._native, bound)
        if message:
            self._warnings.append(f"{message}; the search goes on without it")

    def cut(self, cutoff: float) -> None:
        """From here on only points count that cost at most, or carry at least, `cutoff`. Before `search` only: proofs have one cutoff."""
        self._claim = replace(self._claim, cutoff=cutoff)
        self._cut(cutoff)

    def _cut(self, cutoff: float) -> None:
        columns, box = self.relaxation.columns, self._limits
        if self._claim.statement is Statement.COST and math.isfinite(cutoff):
            upper = box.upper.copy()
            upper[columns.total] = np.minimum(upper[columns.total], cutoff / self._unit)
            self.tree.root.restrict(Box(box.lower, upper))
        elif self._claim.statement is Statement.GROWTH:
            lower = box.lower.copy()
            lower[columns.growth] = np.maximum(lower[columns.growth], cutoff)
            self.tree.root.restrict(Box(lower, box.upper))

    def proved(self) -> Proved:
        """What has been proved so far, rechecked in rationals where time allows."""
        self.tree.tightening.begin(self.tree.root)
        bound, root, statement = self.bound, self.tree.proof, self._claim.statement
        ranges = self.tree.root.box
        method = f"{_count(self.tree.boxes, 'box', 'boxes')}, {_count(self._programs.solved, 'linear program', 'linear programs')}"
        nothing = math.inf if statement is Statement.GROWTH else -math.inf
        if bound == -math.inf or (statement is Statement.INFEASIBLE and not math.isinf(bound)):
            return Proved(-math.inf, nothing, None, Trust.EXACT, ranges, method, tuple(self._warnings))
        claimed = self._claimed(bound)
        if self._native > self.tree.bound:
            return Proved(bound, claimed, None, Trust.SOLVER, ranges, f"{method}, {self._solver}", tuple(self._warnings))
        proof = replace(self._claim, bound=claimed, root=root)
        checking = Deadline(max(self._tuning.least_check, self.deadline.remaining()))
        checked = recheck(self.case, proof, stop=lambda: checking.expired() or self.deadline.cancelled)
        if checked.accepted:
            return Proved(bound, claimed, proof, Trust.EXACT, ranges, method, tuple(self._warnings))
        if checked.stopped:
            told = "there was no time to recheck the proof in rationals"
            return Proved(bound, claimed, proof, Trust.ROUNDED, ranges, method, (*self._warnings, told))
        told = f"a proof was rejected: {checked.message}"
        return Proved(-math.inf, nothing, None, Trust.EXACT, ranges, method, (*self._warnings, told))

    def _claimed(self, bound: float) -> float:
        """The bound as the proof has it: in $/h rounded down, as a factor rounded up; at most, or at least, the cutoff."""
        match self._claim.statement:
            case Statement.INFEASIBLE:
                return 0.0
            case Statement.COST:
                return min(self._claim.cutoff, float(np.nextafter(bound, -np.inf)))  # of no point at all: the largest number, if no cutoff
            case Statement.GROWTH:
                return max(self._claim.cutoff, float(np.nextafter(-bound, np.inf))) if math.isfinite(bound) else self._claim.cutoff

    def _tell(self) -> None:
        if self._on_event is not None:
            data = {"bound": self.bound, "boxes": self.tree.boxes, "programs": self._programs.solved}
            self._on_event(Event("proof", "tightening" if self.tree.boxes == 1 else "branching", data))


def claim(
    statement: Statement, loads: tuple[Array, Array, Array, Array], tolerance: float, cutoff: float, root: Node | None = None
) -> Proof:
    """A proof to be made.

    Args:
        statement: what is claimed.
        loads: pd from, to, qd from, to, (n,) p.u. each.
        tolerance: p.u. and rad.
        cutoff: $/h, or a factor of all loads.
        root: the tree of the proof, where there is one.
    """
    from milpverify.acopf.proving.proof import Node

    return Proof(statement, loads, tolerance, cutoff, 0.0, root or Node())


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
