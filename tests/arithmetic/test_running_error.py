"""Running errors: no exact value is further away than the error says, at points of every size, for every operator and function."""

from __future__ import annotations

import random

import flint
import pytest
import torch
from operands import BINARY, DOMAINS, samples

from milpverify.arithmetic.running_error import OPERATORS, Near, exactly, known
from milpverify.functions.algebras import ball_algebra, running_algebra
from milpverify.functions.catalogue import catalogue
from milpverify.functions.terms import evaluate, parse

PRECISION = 300
UNARY = sorted(set(OPERATORS) - {*BINARY, "pow"})
CURVED = {name: entry.trial() for name, entry in catalogue().items() if entry.domain}


def assert_near(found: Near, values: list[flint.arb]) -> None:
    assert not found.value.isnan().any()
    assert not found.error.isnan().any()
    for value, error, exact in zip(found.value.tolist(), found.error.tolist(), values, strict=True):
        if exact.is_finite() and error < float("inf"):
            assert not abs(exact - flint.arb(value)) > flint.arb(error), (value, error, exact)


def noisy(rng: random.Random, least: float) -> tuple[Near, list[flint.arb]]:
    """Values with errors, and exact numbers within them."""
    values = samples(rng, 60, least)
    errors = [rng.choice((0.0, 0.0, abs(x) * 1e-15, 1e-12, 1e-3)) for x in values]
    exact = [flint.arb(x) + flint.arb(e) * rng.choice((-1, 0, 1)) for x, e in zip(values, errors, strict=True)]
    return Near(torch.tensor(values, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64)), exact


@pytest.mark.parametrize("op", UNARY)
def test_unary_operators(op: str) -> None:
    rng = random.Random(op)
    algebra = ball_algebra()
    with flint.ctx.workprec(PRECISION):
        a, exact = noisy(rng, DOMAINS.get(op, -float("inf")))
        least = DOMAINS.get(op, -float("inf"))
        inside = [k for k, x in enumerate(exact) if least == -float("inf") or x >= least]
        a, exact = Near(a.value[inside], a.error[inside]), [exact[k] for k in inside]
        assert_near(known(OPERATORS[op](a)), [algebra.operator(op)(x) for x in exact])


@pytest.mark.parametrize("op", BINARY)
def test_binary_operators(op: str) -> None:
    rng = random.Random(op)
    algebra = ball_algebra()
    with flint.ctx.workprec(PRECISION):
        for _ in range(5):
            (a, x), (b, y) = noisy(rng, -float("inf")), noisy(rng, -float("inf"))
            order = list(range(len(y)))
            rng.shuffle(order)
            b, y = Near(b.value[order], b.error[order]), [y[k] for k in order]
            assert_near(known(OPERATORS[op](a, b)), [algebra.operator(op)(p, q) for p, q in zip(x, y, strict=True)])


@pytest.mark.parametrize("name", CURVED)
def test_functions_and_their_derivatives(name: str) -> None:
    function = CURVED[name]
    rng = random.Random(name)
    (_, start), (end, _) = function.domain
    unsure = [*function.poles, *function.inflections]
    points = [x for x in samples(rng, 150) if start < x < end and not any(low <= x <= high for low, high in unsure)]
    x = torch.tensor(points, dtype=torch.float64)
    y = function.near(x)
    slope = function.derivative_near(x, y)
    with flint.ctx.workprec(2 * PRECISION):
        assert_near(y, [function.ball(flint.arb(p)) for p in points])
        assert_near(slope, [function.derivative_ball(flint.arb(p)) for p in points])
    ordinary = (x.abs() < 30) & (x.abs() > 1e-3)
    assert (y.error[ordinary] <= 1e-11 * (1 + y.value[ordinary].abs())).all()
    assert (slope.error[ordinary] <= 1e-9 * (1 + slope.value[ordinary].abs())).all()


def test_what_overflows_in_between_is_next_to_nothing_in_the_end() -> None:
    x = torch.tensor([800.0, -800.0, 5.0], dtype=torch.float64)
    found = evaluate(parse("(/ x (+ 1 (exp (* x x))))"), running_algebra(), {"x": exactly(x)})
    assert (found.error[:2] < 1e-300).all() and (found.value[:2].abs() < 1e-300).all()
    assert (known(evaluate(parse("(log (exp (* x x)))"), running_algebra(), {"x": exactly(x)})).error[:2] == torch.inf).all()


@pytest.mark.parametrize(
    "text",
    ["(/ 1e9 (* 1e-300 (exp x)))", "(/ 1 (+ (exp x) (* -1e-280 (exp x))))", "(/ 1 (max (exp x) (* x (sqrt 2))))", "(- (exp x) (exp x))"],
)
def test_what_overflows_claims_no_more_than_it_knows(text: str) -> None:
    """Products with something small, sums of both signs and maxima may be far below the largest float, or unknown."""
    term, points = parse(text), [720.0, 800.0]
    found = known(evaluate(term, running_algebra(), {"x": exactly(torch.tensor(points, dtype=torch.float64))}))
    with flint.ctx.workprec(PRECISION):
        assert_near(found, [evaluate(term, ball_algebra(), {"x": flint.arb(x)}) for x in points])
