"""Leaves: subproblems in which every neuron is on one piece are linear programs, decided by multipliers that are checked.

On a leaf the network is affine. With rows r_i of the margin, split constraints s_k >= 0 and domain rows d_j <= 0, for any
multipliers w >= 0 with sum 1 and u, v >= 0

    margin = max_i r_i >= sum_i w_i r_i - sum_k u_k s_k + sum_j v_j d_j,

whose minimum over the box is a sum of minima: weak duality. HiGHS proposes the multipliers. They are checked by a backward pass in
float64 that charges its rounding, and where that cannot tell, by exact rationals at the basis. Both are ROUNDED: that the other
neurons are on one piece is known from bounds. With w = 0 a positive minimum proves that the leaf is empty.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from milpverify.balls.norm import Norm
from milpverify.counterexamples.polish import polish
from milpverify.counterexamples.validate import Validation, Validity, validate
from milpverify.encode.balls import confined
from milpverify.encode.segments import touched_pieces
from milpverify.graph import Pullback
from milpverify.linear_relaxation import margin_bound, settled, split_table, weighted_bound
from milpverify.operators import Affine, Input
from milpverify.propagation.backward import default_lines
from milpverify.propagation.crown import bound_rows
from milpverify.search.solver.pace import Pace, ProgramTuning
from milpverify.solvers.base import Limits, SolveOutcome, SolverStatus
from milpverify.solvers.model import Model, power_of_two
from milpverify.solvers.process import SolverProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from milpverify.config import Deadline
    from milpverify.encode.cut_forms import Split
    from milpverify.graph import Graph
    from milpverify.propagation.state import State
    from milpverify.spec import Array, Disjunct, Problem

_LARGEST: Final = 2.0**400  # of what a row can come to: quotients of such numbers are numbers, too


@dataclass(frozen=True)
class LeafOutcome:
    """What became of a leaf: a lower bound of its margin (trust ROUNDED; inf if it is empty), a judged point, words if it is open.

    `closed`: the bound proves that no point of the leaf is unsafe; only `closing` says so, all else leaves the leaf open.
    `tie`: in rationals, too, the bound at the basis does not clear the threshold, and the network's own numbers show no violation.
    """

    bound: float = -math.inf
    validation: Validation | None = None
    note: str = ""
    tie: bool = False
    closed: bool = False

    @staticmethod
    def closing(bound: float) -> LeafOutcome:
        """A leaf that a bound closes."""
        return LeafOutcome(bound, closed=True)


@dataclass(eq=False)
class Leaves:
    """Decides leaves; a context manager, for HiGHS runs in a process of its own.

    `left` is how many more may be solved (None: all), `until` when that ends, of `time.monotonic`.
    `pace` says when relaxations of other subproblems pay, and has the numbers of all programs.
    """

    problem: Problem
    deadline: Deadline
    solved: int = 0
    left: int | None = None
    until: float = math.inf
    pace: Pace = field(default_factory=Pace)
    _process: SolverProcess = field(default_factory=lambda: SolverProcess("highs"))

    def __enter__(self) -> Leaves:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    @contextmanager
    def at_most(self, count: int | None, seconds: float = math.inf) -> Iterator[None]:
        """Solve so many within (None: all), and begin none after so many seconds."""
        before = self.left, self.until
        self.left, self.until = count, time.monotonic() + seconds
        try:
            yield
        finally:
            self.left, self.until = before

    def decide(self, disjunct: Disjunct, bounds: State, decisions: tuple[Split, ...]) -> LeafOutcome:
        """Decide one leaf.

        Args:
            bounds: of every node, a batch of one, where the decisions hold; every neuron is on one piece within them.
        """
        if (self.left is not None and self.left <= 0) or time.monotonic() > self.until:
            return LeafOutcome(note="a leaf's linear program was not solved: as many were as may be")
        self.left = None if self.left is None else self.left - 1
        self.solved += 1
        leaf, tuning = _Leaf(self.problem.graph, disjunct, bounds, decisions), self.pace.tuning
        if not leaf.fits:
            return LeafOutcome(note="a leaf's numbers are too large for a linear program")
        with torch.no_grad():
            outcome = self._solve(leaf.model(elastic=False))
            while outcome.status is SolverStatus.OPTIMAL and outcome.multipliers is not None:
                found = self._optimal(leaf, outcome, outcome.multipliers)
                falsified = found.validation is not None and found.validation.status is Validity.HOLDS
                if found.closed or falsified or not leaf.touch(outcome, tuning):
                    return found
                outcome = self._solve(leaf.model(elastic=False))
            first = outcome
            outcome = self._solve(leaf.model(elastic=True))
        if outcome.multipliers is None:
            return LeafOutcome(note=f"a leaf's linear program: {first.message}")
        weights = leaf.weights(outcome.multipliers, elastic=True)
        if leaf.bound(weights) > 0:
            return LeafOutcome.closing(math.inf)
        exact = leaf.exact_bound(outcome, elastic=True, tuning=tuning)
        empty = exact is not None and exact > 0
        return LeafOutcome.closing(math.inf) if empty else LeafOutcome(note="a leaf that is empty but for rounding")

    def relax(self, disjunct: Disjunct, bounds: State, decisions: tuple[Split, ...], deadline: Deadline) -> float:
        """A lower bound of the margin of any subproblem by its linear relaxation (trust ROUNDED; inf if it is empty, -inf for none).

        Args:
            bounds: of every node, a batch of one, where the decisions hold.
        """
        self.solved += 1
        with torch.no_grad():
            return margin_bound(self.problem.graph, bounds, disjunct, decisions, self._process, deadline)

    def _optimal(self, leaf: _Leaf, outcome: SolveOutcome, multipliers: Array) -> LeafOutcome:
        bound = leaf.bound(leaf.weights(multipliers, elastic=False))
        if leaf.disjunct.closes(bound):
            return LeafOutcome.closing(bound)
        assert outcome.point is not None
        x = leaf.x_of(outcome.point)
        validation = validate(self.problem, leaf.disjunct, x)
        if validation.status is not Validity.HOLDS and (example := polish(self.problem, leaf.disjunct, x)) is not None:
            validation = replace(validation, status=Validity.HOLDS, counterexample=example)
        if validation.status is Validity.HOLDS:
            return LeafOutcome(bound, validation)
        exact = leaf.exact_bound(outcome, elastic=False, tuning=self.pace.tuning)
        if exact is not None and leaf.disjunct.closes(exact):
            return LeafOutcome.closing(exact)
        least = outcome.primal * float(leaf.scale[0])
        note = f"a leaf's margin goes down to {least:.9g}, at a point that is no counterexample ({validation})"
        return LeafOutcome(max(bound, -math.inf if exact is None else exact), validation, note, tie=exact is not None)

    def _solve(self, model: Model) -> SolveOutcome:
        return self._process.solve(model, Limits(), self.deadline)


class _Leaf:
    """One leaf as a linear program, where its numbers fit. Its rows in order: margin rows, split decisions, domain rows."""

    def __init__(self, graph: Graph, disjunct: Disjunct, bounds: State, decisions: tuple[Split, ...]) -> None:
        self.graph, self.disjunct, self.decisions = graph, disjunct, decisions
        box = disjunct.box
        self.lower, self.upper = (t[0].cpu().numpy() for t in (bounds[0].bounds.lower, bounds[0].bounds.upper))
        self.state = settled(graph, bounds)
        self.table = {i: default_lines(graph, i, self.state, torch.float64) for i in graph.nonlinear}
        self.centre = self.state[0].center[0].numpy()
        self.radius = np.maximum(self.upper - self.centre, self.centre - self.lower)
        assert box.size == len(self.centre)
        self.tangents: list[Array] = []  # where an L2 ball is touched, beside what every model begins with
        self.top, self.domain = disjunct.unsafe, disjunct.domain
        rows = torch.from_numpy(np.array(self.top.y_rows))[None]
        x_rows = torch.from_numpy(np.array(self.top.x_rows))[None] if self.top.mentions_x.any() else None
        form = bound_rows(graph, self.state, self.table, rows, x_rows=x_rows)
        parts = [(form.coefficients[0], form.constant[0] - torch.tensor(self.top.rhs))]
        for z, index, side, point in decisions:
            unit = torch.zeros(1, 1, graph.nodes[z].size, dtype=torch.float64)
            unit[0, 0, index] = 1.0
            form = bound_rows(graph, self.state, self.table, unit, z)
            parts.append((-side * form.coefficients[0], -side * (form.constant[0] - point)))
        on_inputs, centre, radius = (torch.tensor(array) for array in (self.domain.x_rows, self.centre, self.radius))
        parts.append((on_inputs, on_inputs @ centre - torch.tensor(self.domain.rhs)))
        # Residuals rows . (x - centre) + constant: the largest of the first is the margin, the others are to be <= 0.
        matrix, constants = torch.cat([part for part, _ in parts]), torch.cat([c for _, c in parts])
        reach = matrix.abs() @ radius + constants.abs()
        self.fits = bool((reach <= _LARGEST).all())
        self.rows, self.constants = matrix.numpy(), constants.numpy()
        self.scale = np.maximum(power_of_two(reach.clamp(max=_LARGEST).numpy()), 1.0 / _LARGEST)
        self.scale[: len(self.top)] = self.scale[: len(self.top)].max(initial=1e-300)

    def x_of(self, point: Array) -> Array:
        """The input of a solution of the model."""
        x: Array = np.clip(self.centre + self.radius * point[1 : 1 + len(self.centre)], self.lower, self.upper)
        return x

    def touch(self, outcome: SolveOutcome, tuning: ProgramTuning) -> bool:
        """Let an L2 ball exclude a solution that lies outside; False where it does not, or has excluded many."""
        ball, point = self.graph.ball, outcome.point
        if ball is None or ball.norm is not Norm.L2 or point is None or len(self.tangents) >= tuning.tangents:
            return False
        x = self.x_of(point)
        outside = ball.distance(x) > ball.radius * (1.0 + tuning.outside)
        if outside:
            self.tangents.append(x)
        return outside

    def _slack(self, elastic: bool) -> Array:
        """The coefficient of the first variable: the margin t in its own rows, or with `elastic` a slack s in the others."""
        own = np.arange(len(self.rows)) < len(self.top)
        return np.where(own, 0.0 if elastic else 1.0, 1.0 if elastic else 0.0)

    def model(self, elastic: bool) -> Model:
        """Minimise t (or the slack s) over inputs in units of their radius, with every row in units of its reach."""
        m, n = self.rows.shape
        used = (np.arange(m) >= len(self.top)) | (not elastic)
        value = np.concatenate([self._slack(elastic)[:, None], -self.rows * self.radius / self.scale[:, None]], axis=1)
        lower = np.where(used, self.constants / self.scale, -math.inf)
        row, column = np.nonzero(value)
        start = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=m))]).astype(np.int64)
        ends = np.where(self.radius > 0, 1.0, 0.0)
        bottom = 0.0 if elastic else -2.0
        model = Model(
            np.append(bottom, -ends), np.append(2.0, ends), np.zeros(n + 1, dtype=bool), start, column.astype(np.int64), value[row, column],
            lower, np.full(m, math.inf), np.append(1.0, np.zeros(n)),
        )  # fmt: skip
        ball = self.graph.ball
        return model if ball is None else confined(model, ball, 1, self.centre, self.radius, self.tangents)

    def weights(self, multipliers: Array, elastic: bool) -> Array:
        """Multipliers of the model as weights of the residuals, >= 0; those of the margin rows add up to about 1, or are 0."""
        w: Array = np.maximum(multipliers[: len(self.rows)], 0.0) * (self._unit(elastic) / self.scale)
        if elastic:
            w[: len(self.top)] = 0.0
        return np.where(np.isfinite(w), w, 0.0)

    def _unit(self, elastic: bool) -> float:
        return 1.0 if elastic else float(self.scale[0])

    def bound(self, weights: Array) -> float:
        """A lower bound of the weighted sum of residuals over the box, per unit of the margin's weights: rigorous, in float64."""
        count, end = len(self.top), len(self.top) + len(self.decisions)
        splits = split_table(zip(self.decisions, weights[count:end].tolist(), strict=True))
        both = weights[:count], weights[end:]
        return weighted_bound(self.graph, self.state, self.table, self.top, self.domain, both, splits)

    # -- exact ------------------------------------------------------------------------------------------------------------

    def exact_bound(self, outcome: SolveOutcome, elastic: bool, tuning: ProgramTuning = ProgramTuning()) -> float | None:
        """The bound at the solver's basis in rationals, rounded down.

        None where there is no basis, the network's matrices have more than `tuning.dense` entries or rounded weights, or a neuron that
        matters may be on several pieces; and where inputs are confined to a ball, for which the pass finds a multiplier of its own.
        """
        if outcome.basic is None or self.graph.ball is not None or self.graph.rounded or self._dense_entries() > tuning.dense:
            return None
        import flint

        m = len(self.rows)
        columns = [j for j in range(len(self.centre)) if outcome.basic[1 + j]]
        active = [i for i in range(m) if not outcome.basic[len(self.centre) + 1 + i] and (not elastic or i >= len(self.top))]
        if not active or len(active) != len(columns) + int(outcome.basic[0]):
            return None
        found = self._exact_rows(active)
        if found is None:
            return None
        forms, constants = found
        slack = self._slack(elastic)
        # Reduced costs vanish on basic variables: sum_i w_i row_i = 0 there, and the first variable's costs 1.
        square = [[forms[i, j] for i in range(len(active))] for j in columns]
        if outcome.basic[0]:
            square.append([flint.fmpq(int(slack[i])) for i in active])
        target = [flint.fmpq(0)] * len(columns) + ([flint.fmpq(1)] if outcome.basic[0] else [])
        try:
            w = flint.fmpq_mat(square).solve(flint.fmpq_mat([[t] for t in target]))
        except ZeroDivisionError:
            return None
        weights = [max(w[i, 0], flint.fmpq(0)) for i in range(len(active))]
        share = sum((x for x, i in zip(weights, active, strict=True) if slack[i]), flint.fmpq(0))
        if share == 0:
            return None
        total = sum((x * c for x, c in zip(weights, constants, strict=True)), flint.fmpq(0))
        for j, (low, high) in enumerate(zip(self.lower.tolist(), self.upper.tolist(), strict=True)):
            g = sum((x * forms[i, j] for i, x in enumerate(weights) if x), flint.fmpq(0))
            if g:
                total += g * _rational(low if g > 0 else high)
        return _float_below(total if elastic else total / share)

    def _dense_entries(self) -> int:
        affine = [n for n in self.graph.nodes if isinstance(n.op, Affine)]
        return sum(n.size * self.graph.nodes[i].size for n in affine for i in n.inputs)

    def _exact_rows(self, active: list[int]) -> tuple[Any, list[Any]] | None:
        """The active residuals as exact affine functions of x: an fmpq_mat (rows, nx) and constants; None where they are not affine."""
        import flint

        count, splits = len(self.top), len(self.decisions)
        forms, constants = flint.fmpq_mat(len(active), len(self.centre)), [flint.fmpq(0)] * len(active)
        start: dict[int, Any] = {}

        def at(node: int) -> Any:
            return start.setdefault(node, flint.fmpq_mat(len(active), self.graph.nodes[node].size))

        for k, i in enumerate(active):
            if i < count or i >= count + splits:
                rows, r = (self.top, i) if i < count else (self.domain, i - count - splits)
                for j, value in enumerate(rows.x_rows[r].tolist()):
                    forms[k, j] = _rational(value)
                for j, value in enumerate(rows.y_rows[r].tolist()):
                    at(self.graph.output)[k, j] = _rational(value)
                constants[k] = -_rational(float(rows.rhs[r]))
            else:
                z, index, side, point = self.decisions[i - count]
                at(z)[k, index] = _rational(-side)
                constants[k] = _rational(side * point)
        walk = Pullback(self.graph, start)
        for node, here in walk:
            match node.op:
                case Affine() as op:
                    if op.bias is not None:
                        bias = flint.fmpq_mat([[_rational(b)] for b in op.bias.expand(node.shape).flatten().tolist()])
                        constants = [c + s for c, s in zip(constants, (here * bias).entries(), strict=True)]
                    walk.send(node, (here * matrix for matrix in self._matrices[node.id]))
                case Input():
                    forms = forms + here
                case _:  # made of lines
                    slopes, intercepts, undecided = self._pieces[node.id]
                    if any(here[k, j] for j in undecided for k in range(len(active))):
                        return None
                    values = flint.fmpq_mat([[_rational(b)] for b in intercepts])
                    constants = [c + s for c, s in zip(constants, (here * values).entries(), strict=True)]
                    for j, slope in enumerate(map(_rational, slopes)):
                        for k in range(len(active)):
                            here[k, j] *= slope
                    walk.send(node, [here])
        return forms, constants

    @cached_property
    def _matrices(self) -> dict[int, list[Any]]:
        """Per affine node, its exact matrix for each input."""
        import flint

        found = {}
        for node in self.graph.nodes:
            if isinstance(node.op, Affine):
                parts = node.op.rows(torch.arange(node.size), node.shape)
                found[node.id] = [flint.fmpq_mat([[_rational(w) for w in row] for row in p.reshape(node.size, -1).tolist()]) for p in parts]
        return found

    @cached_property
    def _pieces(self) -> dict[int, tuple[list[float], list[float], list[int]]]:
        """Per nonlinear node, the slopes and intercepts of the pieces that its neurons are on, and which may be on several."""
        found = {}
        for i, op in self.graph.nonlinearities.items():
            assert op.pieces is not None
            bounds = self.state[self.graph.nodes[i].inputs[0]].bounds
            first, last = touched_pieces(op.pieces, *(t.flatten().numpy() for t in (bounds.lower, bounds.upper)))
            slopes, intercepts = ([values[k] for k in first] for values in (op.pieces.slopes, op.pieces.intercepts))
            found[i] = (slopes, intercepts, np.nonzero(first != last)[0].tolist())
        return found


def _rational(x: float) -> Any:
    import flint

    return flint.fmpq(*float(x).as_integer_ratio())


def _float_below(x: Any) -> float:
    """The largest float64 <= a rational, or one near it."""
    value = int(x.p) / int(x.q)
    return value if _rational(value) <= x else math.nextafter(value, -math.inf)
