"""Inputs that equations eliminate: the same network at the same points, exactly, and counterexamples of the problem as it was given."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from random_nets import relu_network

from milpverify.balls.ball import Ball
from milpverify.config import Deadline
from milpverify.counterexamples.validate import exact_residuals, holds, inside
from milpverify.graph import evaluate
from milpverify.operators import Linear, Select
from milpverify.reduction.equations import without_equations
from milpverify.reduction.reducing import reduced
from milpverify.result import Verdict
from milpverify.spec import Box, Disjunct, Problem, Rows
from milpverify.verify import verify


def equations(*lines: tuple[list[float], float], ny: int = 2) -> Rows:
    """Equations sum a_i x_i = b as two rows each."""
    a, b = (np.array(part, dtype=np.float64) for part in zip(*lines, strict=True))
    return Rows(np.concatenate([a, -a]), np.zeros((2 * len(b), ny)), np.concatenate([b, -b]), np.zeros(2 * len(b), dtype=bool))


def both(*parts: Rows) -> Rows:
    return Rows(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("x_rows", "y_rows", "rhs", "strict")))


def problem(domain: Rows, box: Box | None = None, unsafe: Rows | None = None, seed: int = 0) -> Problem:
    nx = domain.x_rows.shape[1]
    graph = relu_network([nx, 8, 2], seed)
    unsafe = unsafe or Rows.on_outputs([[1.0, -1.0]], [-0.5], nx)
    return Problem(graph, (Disjunct(box or Box(-np.ones(nx), np.ones(nx)), unsafe, domain),))


def exact(matrix: np.ndarray, offset: np.ndarray, z: np.ndarray) -> list[Fraction]:
    return [
        sum((Fraction(a) * Fraction(v) for a, v in zip(row.tolist(), z.tolist(), strict=True)), start=Fraction(c))
        for row, c in zip(matrix, offset.tolist(), strict=True)
    ]


SYSTEMS = {
    "a copy": equations(([0, 1, 0, -1], 0)),
    "copies of one": equations(([1, -1, 0, 0], 0), ([0, 1, -1, 0], 0), ([0, 0, 1, -1], 0)),
    "an opposite": equations(([1, 0, 0, 1], 0)),
    "shifted": equations(([1, -1, 0, 0], 0.25)),
    "a sum": equations(([1, 1, -1, 0], 0), ([0, 0, 1, -2], 0.5)),
    "powers of two": equations(([0.5, 0.25, -1, 2], 0.125)),
    "other scales": equations(([3, 0, -6, 0], 9)),
    "two redundant ones": equations(([1, -1, 0, 0], 0), ([-2, 2, 0, 0], 0)),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_network_behind_is_the_network(name: str) -> None:
    given = problem(
        both(SYSTEMS[name], Rows(np.array([[1.0, 0.0, 0.5, -1.0]]), np.zeros((1, 2)), np.array([0.75]), np.array([True]))),
        Box(-4 * np.ones(4), 4 * np.ones(4)),
    )
    found = without_equations(given)
    substitution, (old,), (new,) = found.substitution, given.disjuncts, found.disjuncts
    assert substitution is not None and found.graph.nx < 4 and len(new.domain) < len(old.domain) + 2
    generator = np.random.default_rng(0)
    for _ in range(200):
        z = np.round(generator.uniform(-5, 5, found.graph.nx) * 8) / 8
        x = substitution.lift(z)
        assert x is not None and exact(substitution.matrix, substitution.offset, z) == [Fraction(v) for v in x.tolist()]
        assert inside(found.graph, new, z) == inside(given.graph, old, x)
        y, y_new = (evaluate(g, torch.from_numpy(p)[None]) for g, p in ((given.graph, x), (found.graph, z)))
        assert torch.allclose(y, y_new, rtol=0, atol=1e-12)
        if inside(found.graph, new, z):
            assert ((new.box.lower <= z) & (z <= new.box.upper)).all()
            assert holds(old.domain, exact_residuals(old.domain, x, [0.0, 0.0]))


def test_copies_are_copied_and_one_input_is_left() -> None:
    copied = without_equations(problem(SYSTEMS["a copy"])).graph
    assert isinstance(copied.nodes[1].op, Select) and copied.nodes[1].op.copies and copied.nx == 3
    assert isinstance(without_equations(problem(SYSTEMS["a sum"])).graph.nodes[1].op, Linear)
    assert without_equations(problem(equations(([1, -1], 0), ([1, 1], 0.5)))).graph.nx == 1


def test_limits_of_an_eliminated_input_stay() -> None:
    box = Box([-1.0, -0.5, -1.0, -1.0], [1.0, 2.0, 1.0, 0.25])
    (new,) = without_equations(problem(SYSTEMS["a copy"], box)).disjuncts
    assert (new.box.lower.tolist(), new.box.upper.tolist(), len(new.domain)) == ([-1.0, -0.5, -1.0], [1.0, 0.25, 1.0], 0)
    (new,) = without_equations(problem(equations(([1, 1, -1, 0], 0)), Box(-np.ones(4), np.ones(4)))).disjuncts
    assert len(new.domain) == 2  # -1 <= the sum <= 1
    apart = Box([-1.0, 0.5, -1.0, -1.0], [1.0, 1.0, 1.0, 0.25])
    assert without_equations(problem(SYSTEMS["a copy"], apart)).disjuncts == ()


@pytest.mark.parametrize(
    "domain",
    [
        equations(([3, -1.1, 0, 0], 0.7)),  # no quotient is a float64
        Rows(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.zeros((2, 2)), np.array([0.5, 0.5]), np.zeros(2, dtype=bool)),  # |x_0 - x_1| <= 0.5
        Rows(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.zeros((2, 2)), np.zeros(2), np.array([True, False])),
    ],
)
def test_what_cannot_be_solved_exactly_stays(domain: Rows) -> None:
    given = problem(domain)
    assert without_equations(given) is given


def test_only_what_all_disjuncts_share_is_used() -> None:
    given = problem(both(SYSTEMS["a copy"], SYSTEMS["an opposite"]))
    (first,) = given.disjuncts
    second = Disjunct(first.box, first.unsafe, SYSTEMS["a copy"])
    found = without_equations(Problem(given.graph, (first, second)))
    assert found.graph.nx == 3 and [len(d.domain) for d in found.disjuncts] == [2, 0]
    third = Disjunct(first.box, first.unsafe, Rows.none(4, 2))
    alone = Problem(given.graph, (first, third))
    assert without_equations(alone) is alone
    ball = Problem(given.graph.confined(Ball(np.zeros(4), 1.0)), (first,))
    assert without_equations(ball) is ball


def test_rows_of_one_table_stay_so_and_inputs_in_them_are_replaced() -> None:
    table = Rows(np.array([[0.0, 1, 0, 0], [0, 0, 0, 2]]), np.array([[1.0, 0], [0, 1]]), np.array([0.5, 0.25]), np.zeros(2, dtype=bool))
    parts = Rows.parts(table, np.array([0, 1, 1]), [1, 3])
    given = problem(SYSTEMS["a copy"])
    found = without_equations(Problem(given.graph, tuple(Disjunct(given.disjuncts[0].box, p, given.disjuncts[0].domain) for p in parts)))
    origins = [d.unsafe.origin for d in found.disjuncts]
    assert origins[0] is not None and origins[1] is not None and origins[0][0] is origins[1][0]
    assert found.disjuncts[0].box is found.disjuncts[1].box
    assert [d.unsafe.x_rows.tolist() for d in found.disjuncts] == [[[0.0, 1, 0]], [[0, 2, 0], [0, 2, 0]]]


@pytest.mark.parametrize("name", ["a copy", "shifted", "a sum"])
def test_counterexamples_satisfy_what_was_asked(name: str) -> None:
    given = problem(SYSTEMS[name], unsafe=Rows.on_outputs([[1.0, -1.0]], [10.0], 4))
    result = verify(given, timeout=30)
    assert result.verdict is Verdict.FALSIFIED and result.counterexample is not None
    x = result.counterexample.x
    assert x.shape == (4,) and inside(given.graph, given.disjuncts[0], x)


@pytest.mark.parametrize("seed", range(3))
def test_verdicts_are_those_of_the_problem_with_all_inputs(seed: int) -> None:
    given = problem(both(SYSTEMS["a copy"], equations(([1, 0, -1, 0], 0.25))), seed=seed)
    smt = verify(given, method="smt", timeout=60)
    found = verify(given, timeout=60)
    assert found.verdict is smt.verdict
    exactly = verify(given, timeout=60, margin=True)
    assert exactly.verdict is smt.verdict and exactly.lower_bound <= exactly.upper_bound <= exactly.lower_bound + 1.1e-4 * max(
        1.0, abs(exactly.upper_bound)
    )
    assert exactly.nearest is not None and inside(given.graph, given.disjuncts[0], exactly.nearest)


def test_a_row_without_inputs_disturbs_nobody() -> None:
    nothing = Rows(np.zeros((1, 4)), np.zeros((1, 2)), np.ones(1), np.zeros(1, dtype=bool))
    assert verify(problem(nothing), timeout=30).verdict is verify(problem(Rows.none(4, 2)), timeout=30).verdict


def test_numbers_that_overflow_are_scaled() -> None:
    """x_0 = x_1 makes of two coefficients one that float64 does not hold, and ranges of boxes overflow."""
    row = Rows(np.array([[1.5e308, 1.5e308, 1e300]]), np.zeros((1, 2)), np.zeros(1), np.array([False]))
    given = problem(both(equations(([1.0, -1.0, 0.0], 0)), row), Box(-1e308 * np.ones(3), 1e308 * np.ones(3)))
    with np.errstate(all="raise"):
        (left,) = reduced(given, Deadline(30.0)).problem.disjuncts
    assert left.box.size == 2 and np.isfinite(left.domain.x_rows).all() and len(left.domain) == 1
