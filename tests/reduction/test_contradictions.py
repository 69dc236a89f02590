"""Contradictory rows: closed exactly where an SMT solver finds no point, with bounds that hold, and never by a hair too much."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import z3
from random_nets import relu_network

from milpverify.config import Deadline
from milpverify.reduction import contradictions
from milpverify.reduction.reducing import contradictory
from milpverify.result import Reason, Trust, Verdict
from milpverify.spec import Box, Disjunct, Problem, Rows
from milpverify.verify import verify

NEVER = Deadline(math.inf)


def rows(*lines: tuple[list[float], float, bool], inputs: int = 1) -> Rows:
    """Inequalities: coefficients of inputs, then of outputs; right-hand side; strictness."""
    a, b, strict = zip(*lines, strict=True)
    matrix = np.array(a, dtype=np.float64)
    return Rows(matrix[:, :inputs], matrix[:, inputs:], np.array(b, dtype=np.float64), np.array(strict))


def disjunct(unsafe: Rows, domain: Rows | None = None) -> Disjunct:
    nx, ny = unsafe.x_rows.shape[1], unsafe.y_rows.shape[1]
    return Disjunct(Box(-np.ones(nx), np.ones(nx)), unsafe, domain or Rows.none(nx, ny))


def closed(*found: Disjunct) -> dict[int, float]:
    return contradictory(found, NEVER)


@pytest.mark.parametrize(
    ("unsafe", "bound"),
    [
        (rows(([0, -1, 1], 0, False), ([0, 1, -1], 0, True)), 0.0),  # Y_0 >= Y_1 and Y_0 < Y_1
        (rows(([0, 1, -1], 0, True), ([0, -1, 1], 0, True)), 0.0),
        (rows(([0, 1, 0], 0, False), ([0, -1, 0], -3, False)), 1.5),  # Y_0 <= 0 and Y_0 >= 3
        (rows(([0, 1, 0], 0, False), ([0, -3, 0], -3, False)), 0.75),
        (rows(([0, 0.1, -0.3], 0.1, True), ([0, -0.1, 0.3], -0.1, False)), 0.0),
        (rows(([0, 0, 0], 0, True), ([0, 1, 1], 0, False)), 0.0),
        (rows(([3, 0, 0], -4, False), ([0, 1, 1], 0, False)), 1.0),
    ],
)
def test_pairs_and_single_rows_are_seen_at_once(unsafe: Rows, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contradictions, "_proposed", lambda systems, *_: {k: math.nan for k, _ in systems})
    assert closed(disjunct(unsafe)) == {0: bound}


CYCLE = [([0, 1, -1, 0], 0, True), ([0, 0, 1, -1], 0, False), ([0, -1, 0, 1], 0, False)]
TENTHS = [([0, 0.1, -0.2, 0], 0, True), ([0, 0, 0.1, -0.7], 0.1, False), ([0, -0.3, 0, 1.3], -0.3, False)]


@pytest.mark.parametrize(
    ("unsafe", "domain"),
    [
        (rows(*CYCLE), None),
        (rows(([0, 1, 1, 0], 0, False), ([0, 0, -1, 0], -1, False), ([0, -1, 0, 1], -1, False), ([0, 0, 0, -1], -2, True)), None),
        (rows(([0, 0, 1, -1], 0, True), ([0, 0, -1, 1], -1, False), ([1, 0, 1, 1], 0, False)), None),
        (rows(([1, 1, 0, 0], -3, False), ([1, -1, 0, 0], 0.5, False)), None),  # with the box
        (
            rows(([1, 0, 1, 0], 0, False), ([-1, 0, -1, 0], 0, False), ([0, 1, 0, 0], 0, False)),
            rows(([1, 0, 0, 0], 0.5, False), ([-1, 0, 0, 0], -0.75, False)),
        ),
    ],
)
def test_rows_that_exclude_each_other_together(unsafe: Rows, domain: Rows | None) -> None:
    assert closed(disjunct(unsafe, domain)).keys() == {0}


@pytest.mark.parametrize(
    "unsafe",
    [
        rows(([0, -1, 1], 0, False), ([0, 1, -1], 0, False)),  # Y_0 = Y_1
        rows(([0, 1, -1], 2.0**-60, True), ([0, -1, 1], 0, False)),
        rows(([0, 0.1, -0.3], 0.1, False), ([0, -0.1, 0.3], -0.1, False)),
        rows(([0, 0.1, -0.3], np.nextafter(0.1, 1), True), ([0, -0.1, 0.3], -0.1, False)),
        rows(([0, 1, 0], 0, True), ([0, 1, 1], 0, True), ([0, 0, -1], 0, True)),
        rows(*((a, b + 2.0**-40, strict) for a, b, strict in CYCLE)),
        rows(*((a, b, False) for a, b, _ in CYCLE)),
    ],
)
def test_what_is_satisfiable_by_a_hair_stays_open(unsafe: Rows) -> None:
    assert closed(disjunct(unsafe)) == {}


def satisfiable(d: Disjunct) -> bool:
    """What an SMT solver says."""

    def number(value: float) -> z3.ArithRef:
        return z3.Q(*Fraction(float(value)).as_integer_ratio())

    solver, x, y = z3.Solver(), z3.RealVector("x", d.box.size), z3.RealVector("y", d.unsafe.y_rows.shape[1])
    for v, low, high in zip(x, d.box.lower, d.box.upper, strict=True):
        solver.add(v >= number(low), v <= number(high))
    for part in (d.unsafe, d.domain):
        for x_row, y_row, rhs, strict in zip(part.x_rows, part.y_rows, part.rhs, part.strict, strict=True):
            total = z3.Sum([number(a) * v for a, v in zip([*x_row, *y_row], [*x, *y], strict=True)])
            solver.add(total < number(rhs) if strict else total <= number(rhs))
    return bool(solver.check() == z3.sat)


@pytest.mark.parametrize("seed", range(2))
def test_random_rows_against_an_smt_solver(seed: int) -> None:
    random = np.random.default_rng(seed)
    some = []
    for _ in range(80):
        count, q = int(random.integers(1, 6)), int(random.integers(0, 3))
        kind = [[-1.0, 0.0, 1.0], [-1.0, 0.0, 0.0, 1.0, 0.1, -0.1, 0.3], [-2.0, 0.0, 3.0]][int(random.integers(3))]
        x_rows = random.choice([-1.0, 0.0, 0.0, 1.0], size=(count, 2)) * (random.random() < 0.4)
        unsafe = Rows(
            x_rows, random.choice(kind, size=(count, 3)), random.choice([0.0, 0.0, 0.1, -0.1], size=count), random.random(count) < 0.4
        )
        domain = Rows(
            random.choice([-1.0, 0.0, 0.1], size=(q, 2)), np.zeros((q, 3)), random.choice([0.0, -0.5], size=q), random.random(q) < 0.4
        )
        some.append(Disjunct(Box([-1.0, -1.0], [1.0, 1.0]), unsafe, domain))
    found = closed(*some)
    truth = [satisfiable(d) for d in some]
    assert not [k for k in found if truth[k]]
    assert not [k for k, yes in enumerate(truth) if not yes and k not in found]
    for k, bound in found.items():  # what was proved of the margin holds wherever the rows on inputs do
        d, x, y = some[k], random.uniform(-1, 1, (200, 2)), random.normal(0, 3, (200, 3))
        excess = x @ d.domain.x_rows.T - d.domain.rhs
        inside = ((excess < 0) | ((excess == 0) & ~d.domain.strict)).all(1)
        margins = (x @ d.unsafe.x_rows.T + y @ d.unsafe.y_rows.T - d.unsafe.rhs).max(1)
        assert bound >= 0 and (margins[inside] >= bound).all()


def test_a_wrong_word_of_the_solver_closes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    open_ = disjunct(rows(*((a, b, False) for a, b, _ in CYCLE)))
    system = contradictions._System.of(open_, np.arange(3))
    assert system.weighed(np.ones(3)) is None and system.weighed(np.array([1.0, 0.5, 0.0])) is None
    assert system.proved({0: Fraction(1), 1: Fraction(2)}) is None


def test_robustness_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contradictions, "_System", None)
    single = [disjunct(rows(([0, 1, -1], 0, False))) for _ in range(3)]
    several = [disjunct(rows(([0, 1, -1, 0], 0, False), ([0, 1, 0, -1], 0, False)))]
    assert closed(*single, *several) == {}


def test_verdicts() -> None:
    graph = relu_network([2, 8, 2], 0)
    box = Box([-1.0, -1.0], [1.0, 1.0])
    against = Rows(np.zeros((2, 2)), np.array([[-1.0, 1.0], [1.0, -1.0]]), np.zeros(2), np.array([False, True]))
    none = Rows.none(2, 2)
    result = verify(Problem(graph, (Disjunct(box, against, none),)), timeout=20)
    assert (result.verdict, result.reason, result.trust, result.lower_bound) == (Verdict.VERIFIED, Reason.PROVED, Trust.EXACT, 0.0)
    assert result.ledger["rows alone"]["closed"] == 1
    empty = Rows(np.array([[1.0, 1.0], [-1.0, -1.0]]), np.zeros((2, 2)), np.array([0.5, -0.75]), np.zeros(2, dtype=bool))
    result = verify(Problem(graph, (Disjunct(box, Rows.on_outputs([1.0, 0.0], [0.0], 2), empty),)), timeout=20)
    assert (result.verdict, result.reason, result.lower_bound) == (Verdict.VERIFIED, Reason.EMPTY_INPUT_SET, math.inf)
    easy = Rows.on_outputs([[1.0, 0.0]], [-100.0], 2)
    result = verify(Problem(graph, (Disjunct(box, against, none), Disjunct(box, easy, none))), timeout=20)
    assert result.verdict is Verdict.VERIFIED and result.lower_bound == 0.0
    certain = Rows.on_outputs([[1.0, 0.0]], [100.0], 2)
    result = verify(Problem(graph, (Disjunct(box, against, none), Disjunct(box, certain, none))), timeout=20)
    assert result.verdict is Verdict.FALSIFIED
