"""The same models with products and smooth functions for every solver: those that can take them, and what the others say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import pytest

from milpverify.config import Deadline
from milpverify.encode.model import SMALLEST_COEFFICIENT, ModelBuilder, NumericallyUnfit, elastic
from milpverify.errors import SolverUnavailable
from milpverify.functions.catalogue import catalogue
from milpverify.functions.terms import Term, parse
from milpverify.solvers import registry
from milpverify.solvers.base import Capability, Limits, Progress, SolveOutcome
from milpverify.solvers.base import SolverStatus as Status
from milpverify.solvers.expressions import value_of
from milpverify.solvers.model import Model
from milpverify.solvers.names import MILP_SOLVERS
from milpverify.solvers.process import SolverProcess
from milpverify.solvers.registry import load
from milpverify.solvers.trusted_bound import safe_dual_bound, safety_margin

ABLE = {what: [s for s in MILP_SOLVERS if what in load(s).capabilities] for what in (Capability.QUADRATIC, Capability.FUNCTIONS)}
INF = math.inf
Products = Sequence[tuple[int, int, float]]


def polynomial(
    low: list[float], high: list[float], products: Products, linear: list[float], *extra: tuple[list[float], Products, float, float],
    integer: int = 0,
) -> Model:  # fmt: skip
    """Minimise products + linear . x over a box, the last `integer` of x in {0, 1}, with extra rows (linear, products, lower, upper)."""
    builder = ModelBuilder()
    n = len(low) + integer
    x = [*builder.variables(low, high), *(builder.binaries(integer) if integer else ())]
    t = int(builder.variables(-1024.0, 1024.0, centred=False)[0]) if max(map(abs, high)) < 50 else -1
    t = int(builder.variables(-(2.0**20), 2.0**20, centred=False)[0]) if t < 0 else t
    assert len(linear) == n
    builder.row([t, *x], [1.0, *(-c for c in linear)], 0.0, products=[(x[i], x[j], -c) for i, j, c in products])
    for values, terms, below, above in extra:
        builder.row(x, values, below, above, products=[(x[i], x[j], c) for i, j, c in terms])
    return builder.build({t: 1.0})


def function(term: str, low: float, high: float, slope: float, name: str = "f") -> Model:
    """Minimise f(x) - slope x over an interval."""
    f = parse(term)
    values = [value_of(f, x) for x in np.linspace(low, high, 50)]
    builder = ModelBuilder()
    x = int(builder.variables(low, high)[0])
    y = int(builder.variables(min(values) - 1.0, max(values) + 1.0)[0])
    builder.function(y, x, name, f)
    t = int(builder.variables(-64.0, 64.0, centred=False)[0])
    builder.row([t, y, x], [1.0, -1.0, slope], 0.0)
    return builder.build({t: 1.0})


def product_of_functions() -> Model:
    """Minimise z tanh(x) exp(y) over [-1, 1]^2 and z in {0, 1}."""
    builder = ModelBuilder()
    x, y, s, e, p = (int(v) for v in builder.variables([-1, -1, -1, 0, -3], [1, 1, 1, 3, 3]))
    z = int(builder.binaries(1)[0])
    t = int(builder.variables(-4.0, 4.0, centred=False)[0])
    builder.function(s, x, "tanh", parse("(tanh x)"))
    builder.function(e, y, "exp", parse("(exp x)"))
    builder.row([p], [1.0], 0.0, 0.0, products=[(s, e, -1.0)])
    builder.row([t], [1.0], 0.0, products=[(z, p, -1.0)])
    return builder.build({t: 1.0})


ENDED = {Status.OPTIMAL}
NONE = {Status.INFEASIBLE, Status.UNBOUNDED}
MODELS: dict[str, tuple[Model, float, set[Status]]] = {
    "saddle": (polynomial([-1, -3], [2, 1], [(0, 1, 1.0)], [0, 0]), -6.0, ENDED),
    "convex": (polynomial([-3], [5], [(0, 0, 1.0)], [-1]), -0.25, ENDED),
    "concave": (polynomial([-3, 0], [2, 1], [(0, 0, -1.0), (1, 1, -2.0)], [0, 1]), -10.0, ENDED),
    "product in a row": (polynomial([0.125, 0.125], [8, 8], [], [1, 1], ([0, 0], [(0, 1, 1.0)], 1.0, 1.0)), 2.0, ENDED),
    "products of binaries": (polynomial([0], [1], [(1, 2, -3.0), (0, 1, 1.0)], [0, 1, 1], integer=2), -1.0, ENDED),
    "far from 0": (polynomial([100, -1000], [101, -999.5], [(0, 1, 1.0)], [0, 0]), -101000.0, ENDED),
    "no point": (
        polynomial([-1, -1], [1, 1], [], [1, 0], ([0, 0], [(0, 0, 1), (1, 1, 1)], -INF, 0.5), ([0, 0], [(0, 1, 1)], 0.5, INF)), INF, NONE,
    ),
    "tanh": (function("(tanh x)", -2, 2, 0.5), math.atanh(math.sqrt(0.5)) / 2 - math.sqrt(0.5), ENDED),
    "exp": (function("(exp x)", -3, 3, 2.0), 2 - 2 * math.log(2), ENDED),
    "log": (function("(- (log x))", 0.25, 4, -1.0), 1.0, ENDED),
    "sin": (function("(sin x)", 2, 6, 0.0), -1.0, ENDED),
    "cos": (function("(cos x)", -1, 2, 0.0), math.cos(2), ENDED),
    "root": (function("(- (sqrt x))", 0, 9, -0.25), -1.0, ENDED),
    "power": (function("(pow x 4)", -2, 2, 4.0), -3.0, ENDED),
    "reciprocal": (function("(/ 1 x)", 0.5, 4, -0.25), 1.0, ENDED),
    "larger one": (function("(+ (max x 0) (abs (+ x 1)))", -3, 2, 0.5), 0.5, ENDED),
    "functions, products and binaries": (product_of_functions(), -math.tanh(1) * math.e, ENDED),
}  # fmt: skip


@pytest.mark.parametrize("solver", MILP_SOLVERS)
@pytest.mark.parametrize("name", MODELS)
def test_statuses_and_bounds(solver: str, name: str) -> None:
    problem, truth, allowed = MODELS[name]
    if lacking := problem.required - load(solver).capabilities:
        with pytest.raises(SolverUnavailable, match=f"^{solver} cannot take this model: it lacks .*{next(iter(lacking)).value}[^\n]*$"):
            registry.solve(solver, problem, Limits(30), lambda _: False)
        return
    outcome = registry.solve(solver, problem, Limits(30), lambda _: False)
    assert outcome.status in allowed
    assert safe_dual_bound(outcome, problem) <= truth
    if outcome.status is Status.OPTIMAL:
        within = 2.0 * safety_margin(problem, truth)
        assert outcome.dual_bound == pytest.approx(truth, abs=within) and outcome.primal == pytest.approx(truth, abs=within)
        assert outcome.point is not None and problem.violation(outcome.point) < 1e-8
    else:
        assert outcome.dual_bound == -INF


@pytest.mark.parametrize("solver", MILP_SOLVERS)
def test_the_process_says_what_a_solver_cannot_take(solver: str) -> None:
    odd = function("(erf x)", -1, 1, 0.1, name="erf(scale=2)")
    with SolverProcess(solver) as process:
        outcome = process.solve(odd, Limits(30.0), Deadline(60.0))
        assert outcome.status is Status.UNAVAILABLE and "\n" not in outcome.message
        able = Capability.FUNCTIONS in load(solver).capabilities
        assert outcome.message.lower() == (f"{solver} cannot take erf(scale=2): it has no erf" if able else outcome.message.lower())
        assert "smooth functions" in outcome.message or able


def _functions() -> Iterator[tuple[str, Term, float, float]]:
    """The functions of the catalogue that are not piecewise linear, over intervals where they are defined and of moderate size."""
    for name, given in catalogue().items():
        parameters = {key: limit.trial for key, limit in given.limits.items()}
        if given.rational_pieces(parameters) is not None:
            continue
        term = given.bind(**parameters).term
        for low, high in ((-2.0, 3.0), (-24.0, -3.0), (-5.0, 22.0), (0.25, 1.25)):
            moderate = all(abs(value_of(term, x)) < 1000 for x in np.linspace(low, high, 40))
            if moderate and (name not in ("reciprocal", "tan") or low > 0):
                yield name, term, low, high


@pytest.mark.parametrize("solver", ABLE[Capability.FUNCTIONS])
def test_every_function_of_the_catalogue_is_taken_or_refused_by_its_name(solver: str) -> None:
    refused = set()
    for name, f, low, high in _functions():
        grid = np.linspace(low, high, 201).tolist()
        values = [value_of(f, x) for x in grid]
        slope = (values[-1] - values[0]) / (high - low) + 0.0625
        builder = ModelBuilder()
        x, y = (int(v) for v in builder.variables([low, min(values) - 0.5], [high, max(values) + 0.5]))
        t = int(builder.variables(-2048.0, 2048.0, centred=False)[0])
        builder.function(y, x, name, f)
        builder.row([t, y, x], [1.0, -1.0, slope], 0.0)
        problem = builder.build({t: 1.0})
        try:
            outcome = load(solver).solve(problem, Limits(10), lambda _: False)
        except SolverUnavailable as error:
            assert name in str(error)
            refused.add((name, str(error).split(": ")[1].split(" ranges")[0]))
            continue
        least = min(v - slope * x for v, x in zip(values, grid, strict=True))
        assert outcome.status is Status.OPTIMAL
        assert least - 1e-2 * max(1.0, *map(abs, values)) <= outcome.dual_bound, (name, low, high)
        assert safe_dual_bound(outcome, problem) <= least, (name, low, high)
    without = {"floor": "floor", "round": "round", "atan": "atan", "erf": "erf", "gelu": "erfc", "gelu_rounded": "erfc"}
    if solver == "scip":
        without["tan"] = "tan"
    assert {(n, f"it has no {f}") for n, f in without.items()} <= refused
    assert {n for n, _ in refused} <= {*without, "gelu_tanh", "gelu_tanh_rounded", "tan"}  # a cube inside, or a pole


# ---- models that are not finished soon


def tanh_network(rng: np.random.Generator) -> Model:
    """Two layers of 16 tanh, with a start at 0."""
    builder = ModelBuilder()
    values, reach = np.zeros(8), np.ones(8)
    before = builder.variables(-reach, reach, start=values)
    for _ in range(2):
        weight, bias = rng.normal(0, 1.5 / len(values) ** 0.5, (16, len(values))), rng.normal(0, 0.3, 16)
        inner = weight @ values + bias
        wide = np.abs(weight) @ reach + np.abs(bias)
        argument = builder.variables(-wide, wide, start=inner)
        values, reach = np.tanh(inner), np.ones(16)
        after = builder.variables(-reach, reach, start=values)
        for i in range(16):
            builder.row([argument[i], *before], [1.0, *-weight[i]], bias[i], bias[i], error=1e-14)
            builder.function(after[i], argument[i], "tanh", parse("(tanh x)"))
        before = after
    top = rng.normal(0, 1, 16)
    t = int(builder.variables(-np.abs(top).sum(), np.abs(top).sum(), centred=False, start=float(top @ values))[0])
    builder.row([t, *before], [1.0, *-top], 0.0, error=1e-14)
    return builder.build({t: 1.0})


def box_quadratic(rng: np.random.Generator) -> Model:
    """A dense quadratic over a box of 30 dimensions, with a start."""
    builder = ModelBuilder()
    x = builder.variables(-np.ones(30), np.ones(30), start=0.5)
    q = rng.normal(0, 1, (30, 30))
    t = int(builder.variables(-np.abs(q).sum(), np.abs(q).sum(), centred=False, start=float(0.25 * q.sum()) + 1e-9)[0])
    builder.row([t], [1.0], 0.0, products=[(i, j, -q[i, j]) for i in range(30) for j in range(30)])
    assert len(x) == 30
    return builder.build({t: 1.0})


HARD = {"functions": tanh_network, "products": box_quadratic}


@pytest.mark.parametrize("solver", ABLE[Capability.FUNCTIONS])
@pytest.mark.parametrize("kind", HARD)
def test_limits_targets_and_starts(solver: str, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    hard = HARD[kind](np.random.default_rng(0))
    assert hard.start is not None and hard.violation(hard.start) < 1e-12
    start, run = float(hard.objective @ hard.start), load(solver).solve
    stopped = run(hard, Limits(0.0), lambda _: False)
    assert stopped.status is Status.TIME_LIMIT and safe_dual_bound(stopped, hard) <= start
    short = run(hard, Limits(0.4), lambda _: False)
    assert short.status is Status.TIME_LIMIT and short.seconds < 3
    assert safe_dual_bound(short, hard) <= short.primal <= start + 1e-6  # the start was taken
    asked = run(hard, Limits(30), lambda _: True)
    assert asked.status is Status.INTERRUPTED and asked.seconds < 10
    found = run(hard, Limits(30, primal_target=start + 1e-6), lambda _: False)
    assert found.status is Status.TARGET and found.primal <= start + 1e-6
    bounded = run(hard, Limits(30, dual_target=-1e6), lambda _: False)
    assert bounded.status is Status.TARGET and bounded.dual_bound >= -1e6
    counted = run(hard, Limits(30, nodes=2), lambda _: False)
    assert counted.status is Status.UNKNOWN and counted.nodes <= 4
    assert not capfd.readouterr().out  # Ipopt is silent, too


@pytest.mark.parametrize("solver", ABLE[Capability.FUNCTIONS])
def test_a_process_ends_a_nonlinear_solve_when_asked(solver: str) -> None:
    hard = tanh_network(np.random.default_rng(0))
    asked: list[float] = []

    def watch(progress: Progress) -> bool:
        if progress.seconds > 0.3 and not asked:
            asked.append(time.monotonic())
        return bool(asked)

    with SolverProcess(solver) as process:
        outcome = process.solve(hard, Limits(30.0), Deadline(60.0), watch)
    assert outcome.status is Status.INTERRUPTED and time.monotonic() - asked[0] < 3
    assert math.isfinite(outcome.dual_bound) and safe_dual_bound(outcome, hard) <= outcome.primal


def test_gurobi_over_its_licence_for_nonlinear_terms_is_unavailable() -> None:
    if not load("gurobi").licence().startswith("size-limited"):
        pytest.skip("this Gurobi has a full licence")
    builder = ModelBuilder()
    x = builder.variables(-np.ones(400), np.ones(400))
    for i in range(200):
        builder.function(x[200 + i], x[i], "tanh", parse("(tanh x)"))
    with pytest.raises(SolverUnavailable, match=r"products or functions.* too large for its licence"):
        load("gurobi").solve(builder.build({}), Limits(30), lambda _: False)


# ---- how such models are made


def test_scaling_only_relaxes_products() -> None:
    """A point with exact values stays in the model, whatever is centred, rounded or dropped."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        n, builder = 5, ModelBuilder()
        far = 10.0 ** rng.integers(-2, 4, n) * (rng.random(n) < 0.6)
        point = far + rng.uniform(-0.01, 0.01, n)
        x = builder.variables(far - rng.uniform(0.02, 1, n), far + rng.uniform(0.02, 1, n), start=point)
        products = [
            (int(i), int(j), float(c * 10.0**k))
            for i, j, c, k in zip(*rng.integers(0, n, (2, 6)), rng.normal(0, 1, 6), rng.integers(-9, 3, 6), strict=True)
        ]
        values = rng.normal(0, 1, n) * 10.0 ** rng.integers(-9, 3, n)
        p = [Fraction(v) for v in point.tolist()]
        at = sum((Fraction(c) * v for c, v in zip(values.tolist(), p, strict=True)), Fraction(0))
        at += sum((Fraction(c) * p[i] * p[j] for i, j, c in products), Fraction(0))
        builder.row(x, values, float(at), float(at) + abs(float(at)), error=float(abs(at - Fraction(float(at)))), products=products)
        built = builder.build({})
        centre, unit = ([Fraction(v) for v in part.tolist()] for part in (builder.centre, builder.unit))
        v = [(a - c) / u for a, c, u in zip(p, centre, unit, strict=True)]
        columns, coefficients = built.row(0)
        first, second, kept = built.products(0)
        activity = sum((Fraction(c) * v[j] for j, c in zip(columns.tolist(), coefficients.tolist(), strict=True)), Fraction(0))
        activity += sum(
            (Fraction(c) * v[i] * v[j] for i, j, c in zip(first.tolist(), second.tolist(), kept.tolist(), strict=True)), Fraction(0)
        )
        slack = Fraction(2) ** -33 if built.row_lower[0] == built.row_upper[0] else 0  # an equality, for tolerances to carry
        assert Fraction(built.row_lower[0]) - slack <= activity <= Fraction(built.row_upper[0]) + slack
        sizes = np.abs(np.concatenate([coefficients, kept]))
        assert 0.5 < sizes.max() <= 1.0 and sizes.min() >= SMALLEST_COEFFICIENT and (first <= second).all()
        assert built.start is not None and built.violation(built.start) < 1e-12
        assert elastic(built).violation(elastic(built).start) < 1e-12


def _too_wide(builder: ModelBuilder) -> None:
    x, y = (int(v) for v in builder.variables([-3e4, -1.0], [3e4, 1.0]))
    builder.function(y, x, "sin", parse("(sin x)"))


def _too_fine(builder: ModelBuilder) -> None:
    x, y = (int(v) for v in builder.variables([20.0, 1 - 1e-8], [21.0, 1.0]))
    builder.function(y, x, "tanh", parse("(tanh x)"))


def _not_finite(builder: ModelBuilder) -> None:
    x = int(builder.variables(-1.0, 1.0)[0])
    builder.row([x], [1.0], 0.0, products=[(x, x, INF)])


@pytest.mark.parametrize("add", [_too_wide, _too_fine, _not_finite])
def test_what_no_tolerance_carries_is_refused(add: Callable[[ModelBuilder], None]) -> None:
    builder = ModelBuilder()
    add(builder)
    with pytest.raises(NumericallyUnfit):
        builder.build({})


@pytest.mark.parametrize("solver", ABLE[Capability.QUADRATIC])
def test_the_emptiness_model_keeps_products_and_drops_functions(solver: str) -> None:
    def emptiness(model: Model) -> SolveOutcome:
        assert not elastic(model).functions
        outcome = load(solver).solve(elastic(model), Limits(30), lambda _: False)
        assert isinstance(outcome, SolveOutcome) and outcome.status is Status.OPTIMAL
        return outcome

    empty, full, smooth = (MODELS[name][0] for name in ("no point", "saddle", "tanh"))
    assert safe_dual_bound(emptiness(empty), elastic(empty)) == pytest.approx(1 / 6, abs=1e-5)  # x^2 + y^2 <= 0.5 + s, x y >= 0.5 - s
    assert safe_dual_bound(emptiness(full), elastic(full)) <= 0.0
    assert safe_dual_bound(emptiness(smooth), elastic(smooth)) <= 0.0
