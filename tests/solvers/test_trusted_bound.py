"""Dual bounds of nonlinear models less their margin never exceed the optimum, which is known exactly or enclosed in ball arithmetic."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import flint
import numpy as np
import pytest

from milpverify.encode.model import ModelBuilder
from milpverify.functions.algebras import ball_algebra
from milpverify.functions.terms import Term, differentiate, evaluate, parse
from milpverify.solvers.base import Capability, Limits, SolveOutcome
from milpverify.solvers.base import SolverStatus as Status
from milpverify.solvers.model import Model
from milpverify.solvers.names import MILP_SOLVERS
from milpverify.solvers.registry import load
from milpverify.solvers.trusted_bound import safe_dual_bound, safety_margin

NONLINEAR = tuple(s for s in MILP_SOLVERS if Capability.FUNCTIONS in load(s).capabilities)
Number = Fraction | int


def solved(solver: str, model: Model) -> SolveOutcome:
    outcome = load(solver).solve(model, Limits(20), lambda _: False)
    assert isinstance(outcome, SolveOutcome)
    return outcome


# ---- quadratics over boxes, exactly: the minimum is a stationary point of some face, where its equations have one solution


def _solution(matrix: list[list[Number]], right: list[Number]) -> list[Fraction] | None:
    rows = [[Fraction(v) for v in (*row, b)] for row, b in zip(matrix, right, strict=True)]
    for c in range(len(rows)):
        pivot = next((r for r in range(c, len(rows)) if rows[r][c]), None)
        if pivot is None:
            return None
        rows[c], rows[pivot] = rows[pivot], rows[c]
        rows[c] = [v / rows[c][c] for v in rows[c]]
        for r in range(len(rows)):
            if r != c and rows[r][c]:
                rows[r] = [v - rows[r][c] * w for v, w in zip(rows[r], rows[c], strict=True)]
    return [row[-1] for row in rows]


def least_quadratic(q: list[list[int]], c: list[int], low: list[int], high: list[int]) -> Fraction:
    n, best = len(c), Fraction(10**9)
    for face in itertools.product((0, 1, 2), repeat=n):
        x = [Fraction(high[i] if face[i] else low[i]) for i in range(n)]
        free = [i for i in range(n) if face[i] == 2]
        right = [-c[i] - sum((q[i][j] + q[j][i]) * x[j] for j in range(n) if j not in free) for i in free]
        found = _solution([[q[i][j] + q[j][i] for j in free] for i in free], right)
        if found is None or not all(low[i] <= v <= high[i] for i, v in zip(free, found, strict=True)):
            continue  # where the equations have many solutions, a smaller face has one of the same value
        for i, v in zip(free, found, strict=True):
            x[i] = v
        best = min(
            best,
            sum((q[i][j] * x[i] * x[j] for i in range(n) for j in range(n)), Fraction(0)) + sum(a * b for a, b in zip(c, x, strict=True)),
        )
    return best


def quadratic(rng: np.random.Generator, n: int) -> tuple[Model, Fraction]:
    """Minimise t >= x q x + c x over a box, all integers, and its optimum."""
    q, c = rng.integers(-5, 6, (n, n)) * (rng.random((n, n)) < 0.6), rng.integers(-9, 10, n)
    low = -rng.integers(0, 5, n)
    high = low + rng.integers(1, 7, n)
    reach = np.maximum(abs(low), abs(high))
    size = float(reach @ abs(q) @ reach + abs(c) @ reach + 1)
    builder = ModelBuilder()
    x = builder.variables(low, high)
    t = int(builder.variables(-size, size, centred=False)[0])
    products = [(int(x[i]), int(x[j]), -float(q[i, j])) for i in range(n) for j in range(n)]
    builder.row([t, *x], [1.0, *-c.astype(float)], lower=0.0, products=products)
    return builder.build({t: 1.0}), least_quadratic(q.tolist(), c.tolist(), low.tolist(), high.tolist())


@pytest.mark.parametrize("solver", NONLINEAR)
@pytest.mark.parametrize("seed", range(4))
def test_quadratics_over_boxes(solver: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for n in (2, 3, 3, 4, 4 + seed % 3):
        model, truth = quadratic(rng, n)
        outcome = solved(solver, model)
        assert outcome.status is Status.OPTIMAL
        assert Fraction(safe_dual_bound(outcome, model)) <= truth
        assert outcome.dual_bound == pytest.approx(float(truth), abs=2 * safety_margin(model))


# ---- products of products: a polynomial of degree 4, bounded from above at a point


@pytest.mark.parametrize("solver", NONLINEAR)
def test_products_of_products(solver: str) -> None:
    """w = x y, z = w x, t >= a polynomial in them; x and y are far from 0 half of the time, so that they are centred."""
    rng = np.random.default_rng(1)
    for k in range(8):
        low = rng.integers(-3, 1, 2) + (90 * (k % 2) * np.array([0, 1]))
        high, a = low + rng.integers(1, 5, 2), rng.integers(-4, 5, 6).astype(float)
        rx, ry = (float(v) for v in np.maximum(abs(low), abs(high)))
        rw, rz = rx * ry, rx * rx * ry
        size = float(np.abs(a) @ [rx, ry, rw, rz, rz * ry, rw * rw]) + 1.0
        builder = ModelBuilder()
        x, y = (int(v) for v in builder.variables(low, high))
        w, z = (int(v) for v in builder.variables([-rw, -rz], [rw, rz]))
        t = int(builder.variables(-size, size, centred=False)[0])
        builder.row([w], [1.0], 0.0, 0.0, products=[(x, y, -1.0)])
        builder.row([z], [1.0], 0.0, 0.0, products=[(w, x, -1.0)])
        builder.row([t, x, y, w, z], [1.0, *-a[:4]], 0.0, products=[(z, y, -a[4]), (w, w, -a[5])])
        model = builder.build({t: 1.0})
        p, h = (low + high) / 2, (high - low) / 2
        for _ in range(40):  # ever finer grids around the best point
            grid = [np.clip(np.linspace(p[i] - h[i], p[i] + h[i], 101), low[i], high[i]) for i in range(2)]
            u, v = np.meshgrid(*grid, indexing="ij")
            f = a[0] * u + a[1] * v + a[2] * u * v + a[3] * u**2 * v + (a[4] + a[5]) * u**2 * v**2
            i, j = np.unravel_index(f.argmin(), f.shape)
            p, h = np.array([grid[0][i], grid[1][j]]), h / 3
        b, (u, v) = [Fraction(value) for value in a], [Fraction(value) for value in p.tolist()]
        truth = b[0] * u + b[1] * v + b[2] * u * v + b[3] * u**2 * v + (b[4] + b[5]) * u**2 * v**2
        outcome = solved(solver, model)
        assert Fraction(safe_dual_bound(outcome, model)) <= truth
        assert outcome.status is Status.OPTIMAL
        assert outcome.dual_bound == pytest.approx(float(truth), abs=2 * safety_margin(model))


# ---- functions: the optimum enclosed by subdivision in ball arithmetic


@dataclass(frozen=True)
class Sum:
    """g(x) = the sum of weight f(slopes . x) over some functions, plus a linear term."""

    terms: tuple[tuple[float, Term, tuple[float, ...]], ...]
    linear: tuple[float, ...]

    def enclosure(self, centre: Sequence[float], half: Sequence[float]) -> tuple[float, float]:
        """A lower bound of g over the box and an upper one of its value in the middle: mean value form."""
        ball = [flint.arb(c, h) for c, h in zip(centre, half, strict=True)]
        middle = [flint.arb(c) for c in centre]
        algebra = ball_algebra()
        value = sum((flint.arb(c) * m for c, m in zip(self.linear, middle, strict=True)), flint.arb(0))
        slopes = [flint.arb(c) for c in self.linear]
        for weight, term, along in self.terms:
            inner = sum((flint.arb(s) * b for s, b in zip(along, ball, strict=True)), flint.arb(0))
            at = sum((flint.arb(s) * m for s, m in zip(along, middle, strict=True)), flint.arb(0))
            value += flint.arb(weight) * evaluate(term, algebra, {"x": at})
            rate = flint.arb(weight) * evaluate(differentiate(term), algebra, {"x": inner})
            slopes = [s + rate * flint.arb(a) for s, a in zip(slopes, along, strict=True)]
        spread = sum((abs(s).upper() * flint.arb(h) for s, h in zip(slopes, half, strict=True)), flint.arb(0))
        bottom, top = float((value - spread).lower()) - 1e-14, float(value.upper()) + 1e-14
        return -math.inf if math.isnan(bottom) else bottom, math.inf if math.isnan(top) else top

    def least(self, low: Sequence[float], high: Sequence[float], within: float) -> tuple[float, float]:
        """The minimum over the box, enclosed."""
        centre, half = [(a + b) / 2 for a, b in zip(low, high, strict=True)], [(b - a) / 2 for a, b in zip(low, high, strict=True)]
        bottom, best = self.enclosure(centre, half)
        for corner in itertools.product(*zip(low, high, strict=True)):
            best = min(best, self.enclosure(corner, [0.0] * len(corner))[1])
        queue = [(bottom, centre, half)]
        while best - queue[0][0] > within:
            _, centre, half = heapq.heappop(queue)
            widest = max(range(len(half)), key=half.__getitem__)
            for side in (-0.5, 0.5):
                c, h = list(centre), list(half)
                h[widest] /= 2
                c[widest] += side * half[widest]
                bottom, top = self.enclosure(c, h)
                best = min(best, top)
                heapq.heappush(queue, (bottom, c, h))
        return queue[0][0], best

    def model(self, low: Sequence[float], high: Sequence[float], ranges: list[tuple[float, float]]) -> Model:
        builder = ModelBuilder()
        x = builder.variables(low, high)
        results, size = [], float(np.abs(self.linear) @ np.maximum(np.abs(low), np.abs(high))) + 1.0
        for (weight, term, along), (bottom, top) in zip(self.terms, ranges, strict=True):
            reach = float(np.abs(along) @ np.maximum(np.abs(low), np.abs(high)))
            inner = int(builder.variables(-reach, reach)[0])
            builder.row([inner, *x], [1.0, *(-s for s in along)], 0.0, 0.0)
            results.append(int(builder.variables(bottom, top, least=1e-3)[0]))
            builder.function(results[-1], inner, "f", term)
            size += abs(weight) * max(abs(bottom), abs(top))
        t = int(builder.variables(-size, size, centred=False)[0])
        builder.row([t, *results, *x], [1.0, *(-w for w, _, _ in self.terms), *(-c for c in self.linear)], lower=0.0)
        return builder.build({t: 1.0})


FUNCTIONS = {
    "tanh": ("(tanh x)", -1.0, 1.0),
    "exp": ("(exp x)", 0.0, 150.0),
    "sin": ("(sin x)", -1.0, 1.0),
    "sigmoid": ("(/ 1 (+ 1 (exp (- x))))", 0.0, 1.0),
    "softplus": ("(log1p (exp x))", 0.0, 6.0),
    "bell": ("(/ 1 (+ 1 (pow x 2)))", 0.0, 1.0),
}


@pytest.mark.parametrize("solver", NONLINEAR)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_one_and_two_variables(solver: str, name: str) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    for n in (1, 2):
        chosen = [name, name, *rng.choice(list(FUNCTIONS), n - 1)]
        terms = tuple((round(rng.normal(), 3), parse(FUNCTIONS[f][0]), tuple(np.round(rng.normal(0, 1, n), 3).tolist())) for f in chosen)
        problem = Sum(terms, tuple(np.round(rng.normal(0, 0.3, n), 3).tolist()))
        low, high = np.round(rng.uniform(-2.0, -0.5, n), 2).tolist(), np.round(rng.uniform(0.3, 1.5, n), 2).tolist()
        model = problem.model(low, high, [FUNCTIONS[f][1:] for f in chosen])
        bottom, top = problem.least(low, high, 1e-5)
        outcome = solved(solver, model)
        assert safe_dual_bound(outcome, model) <= top
        assert outcome.status is Status.OPTIMAL
        assert outcome.dual_bound >= bottom - 2 * safety_margin(model)


# ---- the rule itself


def test_the_margin_grows_with_the_range_of_every_term() -> None:
    def margin(products: list[float], functions: int = 0, reach: float = 1.0) -> float:
        builder = ModelBuilder()
        x, y, t = (int(v) for v in builder.variables([-reach, -1.0, -1.0], [reach, 1.0, 1.0], centred=False))
        builder.row([t], [1.0], 0.0, products=[(x, y, value) for value in products])
        for _ in range(functions):
            builder.function(y, x, "tanh", parse("(tanh x)"))
        return safety_margin(builder.build({t: 1.0}))

    linear = margin([])
    assert linear == 16e-9
    assert margin([1.0]) == 2 * linear and margin([1.0, -0.5, 2.0**-20]) == 4 * linear
    assert margin([], functions=3) == (1 + 3 * 2) * linear
    assert margin([], functions=1, reach=64.0) == (1 + 64 + 1) * linear


def test_a_better_point_than_the_optimum_proves_nothing() -> None:
    """SCIP and Gurobi have been seen to return points of quadratic models that lie 1e-5 below the optimum."""
    model, truth = quadratic(np.random.default_rng(0), 3)
    claimed = SolveOutcome(Status.OPTIMAL, primal=float(truth) + 5.0, point=np.zeros(model.num_variables))
    assert safe_dual_bound(claimed, model) == -math.inf
