import itertools
import math
import random

import flint
import pytest
import torch
from operands import BINARY, DOMAINS, samples

from milpverify.arithmetic.interval import OPERATORS, Interval, point
from milpverify.functions.algebras import ball_algebra, interval_algebra
from milpverify.functions.terms import evaluate, parse

UNARY = tuple(sorted(set(OPERATORS) - {*BINARY, "pow"}))
PRECISION = 300  # bits: sums of 1e300 and 1e-300 are not exact even so, but their balls are narrow enough


def intervals(rng: random.Random, count: int, least: float = -math.inf) -> tuple[Interval, list[float]]:
    """Intervals, half of them degenerate or a few ulps wide, and a point in each."""
    lower, upper, inner = [], [], []
    for x in samples(rng, count, least):
        width = rng.choice((0.0, 0.0, abs(x) * 1e-15, 1e-9, 1.0, abs(x)))
        lower.append(x)
        upper.append(x + width)
        inner.append(min(max(x + rng.random() * width, x), x + width))
    return Interval(torch.tensor(lower, dtype=torch.float64), torch.tensor(upper, dtype=torch.float64)), inner


def assert_encloses(found: Interval, values: list[flint.arb]) -> None:
    assert not found.lower.isnan().any()
    assert not found.upper.isnan().any()
    for low, high, value in zip(found.lower.tolist(), found.upper.tolist(), values, strict=True):
        # Refuted only by a certified comparison; infinite ends hold everything.
        assert low == -math.inf or not value < low
        assert high == math.inf or not value > high


@pytest.mark.parametrize("op", BINARY)
def test_binary_operations_enclose_the_real_result(op: str) -> None:
    rng = random.Random(op)
    a, xs = intervals(rng, 600)
    for shift in (0, 1, 3, 100):
        order = [(i + shift) % len(xs) for i in range(len(xs))]
        b, ys = Interval(a.lower[order], a.upper[order]), [xs[i] for i in order]
        found = OPERATORS[op](a, b)
        with flint.ctx.workprec(PRECISION):
            pairs = [(i, x, y) for i, (x, y) in enumerate(zip(xs, ys, strict=True)) if not (op == "/" and y == 0)]
            exact = [ball_algebra().operator(op)(flint.arb(x), flint.arb(y)) for _, x, y in pairs]  # type: ignore[misc]
        keep = [i for i, _, _ in pairs]
        assert_encloses(Interval(found.lower[keep], found.upper[keep]), exact)


@pytest.mark.parametrize("op", UNARY)
def test_unary_operations_enclose_the_real_result(op: str) -> None:
    rng = random.Random(op)
    a, xs = intervals(rng, 1500, DOMAINS.get(op, -math.inf))
    found = OPERATORS[op](a)
    with flint.ctx.workprec(PRECISION):
        exact = [evaluate(parse(f"(- {0} x)" if op == "neg" else f"({op} x)"), ball_algebra(), {"x": flint.arb(x)}) for x in xs]
    assert_encloses(found, exact)


@pytest.mark.parametrize("exponent", [-3, -2, -1, 0, 1, 2, 3, 4, 7])
def test_powers_enclose_the_real_result(exponent: int) -> None:
    a, xs = intervals(random.Random(exponent), 400)
    found = OPERATORS["pow"](a, exponent)
    keep = [i for i, x in enumerate(xs) if x or exponent >= 0]
    with flint.ctx.workprec(PRECISION):
        exact = [evaluate(parse(f"(pow x {exponent})"), ball_algebra(), {"x": flint.arb(xs[i])}) for i in keep]
    assert_encloses(Interval(found.lower[keep], found.upper[keep]), exact)


@pytest.mark.parametrize("op", sorted(set(UNARY) - {"neg", "abs", "sign"}))
def test_the_margin_covers_the_library_and_is_narrow(op: str) -> None:
    least = DOMAINS.get(op, -30.0)
    x = torch.linspace(least, 30.0, 4001, dtype=torch.float64)
    lower, upper = OPERATORS[op](Interval(x, x))
    with flint.ctx.workprec(200):
        exact = [evaluate(parse(f"({op} x)"), ball_algebra(), {"x": flint.arb(v)}) for v in x[1:].tolist()]
    assert_encloses(Interval(lower[1:], upper[1:]), exact)
    assert ((upper - lower)[1:] <= 1e-14 * (1 + lower.abs()[1:] + upper.abs()[1:])).all()


@pytest.mark.parametrize(("op", "a", "b"), [("+", 0.1, 0.25), ("+", 3.0, -3.0), ("*", 0.1, 1.0), ("*", -0.3, 0.0), ("-", 1.5, 0.5)])
def test_exact_results_are_not_widened(op: str, a: float, b: float) -> None:
    x, y = (point(torch.tensor(v, dtype=torch.float64)) for v in (a, b))
    lower, upper = OPERATORS[op](x, y)
    widened = op == "+" and a == 0.1  # 0.35 is not a float
    assert (lower == upper) != widened


def whole(lower: float, upper: float) -> Interval:
    return Interval(torch.tensor(lower, dtype=torch.float64), torch.tensor(upper, dtype=torch.float64))


ENDS = (-math.inf, -2.0, -0.0, 0.0, 1e-310, 3.0, 1.7e308, math.inf)


@pytest.mark.parametrize("op", BINARY)
def test_infinite_and_zero_ends_enclose_the_real_results(op: str) -> None:
    pairs = [(a, b) for a, b in itertools.product(ENDS, ENDS) if a <= b and not (a == b and math.isinf(a))]
    inside = (-1e308, -7.0, -2.0, -1e-320, 0.0, 1e-310, 0.5, 3.0, 1e300, 1.7e308)
    with flint.ctx.workprec(PRECISION):
        apply = ball_algebra().operator(op)
        assert apply is not None
        for first, second in itertools.product(pairs, pairs):
            low, high = (float(v) for v in OPERATORS[op](whole(*first), whole(*second)))
            assert not math.isnan(low)
            assert not math.isnan(high)
            for x in (v for v in inside if first[0] <= v <= first[1]):
                for y in (v for v in inside if second[0] <= v <= second[1] and (v or op != "/")):
                    exact = apply(flint.arb(x), flint.arb(y))
                    assert low == -math.inf or not exact < low, (first, second, x, y)
                    assert high == math.inf or not exact > high, (first, second, x, y)


@pytest.mark.parametrize("op", UNARY)
def test_unbounded_arguments_give_no_nan(op: str) -> None:
    for ends in ((-math.inf, math.inf), (-math.inf, -math.inf), (math.inf, math.inf), (-math.inf, -1.0), (1.0, math.inf)):
        lower, upper = OPERATORS[op](whole(*ends))
        assert not lower.isnan()
        assert not upper.isnan()


def test_overflow_says_only_beyond_the_largest_float() -> None:
    lower, upper = OPERATORS["exp"](whole(1000.0, 1000.0))
    assert 1.7e308 < lower < math.inf
    assert upper == math.inf
    lower, upper = OPERATORS["*"](whole(1e300, 1e300), whole(1e300, 1e300))
    assert math.isfinite(lower)
    assert upper == math.inf


def test_constants_are_enclosed() -> None:
    for text in ("1/3", "0.1", "-2/7", "pi", "1e-320", "(/ pi 3)", "(sqrt 2)", "12345678901234567891"):
        lower, upper = evaluate(parse(text), interval_algebra(), {})
        with flint.ctx.workprec(PRECISION):
            exact = evaluate(parse(text), ball_algebra(), {})
            assert exact > float(lower)
            assert exact < float(upper)
    lower, upper = evaluate(parse("3/8"), interval_algebra(), {})
    assert lower == upper == 0.375
