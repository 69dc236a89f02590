"""Every operation against points inside its operands, and against its own ends."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from milpverify.arithmetic.rational_range import OPERATORS, UNBOUNDED, Number, Range, between, floats, point
from milpverify.functions.terms import RATIONAL

INF = math.inf


def rational(rng: random.Random) -> Fraction:
    return Fraction(rng.randint(-12, 12), rng.choice([1, 2, 3, 7]))


def some_range(rng: random.Random) -> Range:
    low, high = sorted((rational(rng), rational(rng)))
    return Range(low if rng.random() < 0.85 else -INF, high if rng.random() < 0.85 else INF)


def inside(rng: random.Random, a: Range) -> Fraction:
    low, high = (Fraction(end) if math.isfinite(end) else Fraction(100 if end > 0 else -100) for end in a)
    return rng.choice([low, high, low + (high - low) * Fraction(rng.randint(0, 8), 8)])


@pytest.mark.parametrize("op", sorted(set(OPERATORS) - {"sqrt", "pow"}))
def test_values_lie_in_the_range(op: str) -> None:
    rng = random.Random(op)
    for _ in range(400):
        operands = [some_range(rng) for _ in range(1 if op in ("neg", "abs", "sign") else 2)]
        found = OPERATORS[op](*operands)
        for _ in range(8):
            values = [inside(rng, a) for a in operands]
            if op != "/" or values[1]:
                assert RATIONAL[op](*values) in found, (op, operands, values)


@pytest.mark.parametrize("n", [-3, -2, -1, 0, 1, 2, 3, 4, 5])
def test_powers(n: int) -> None:
    rng = random.Random(n)
    for _ in range(200):
        a = some_range(rng)
        found = OPERATORS["pow"](a, n)
        values = [v for v in (inside(rng, a) for _ in range(8)) if v or n >= 0]
        assert all(v**n in found for v in values), (a, n)
        if a.bounded and n > 0:
            attained = [Fraction(end) ** n for end in a] + [Fraction(0)] * (0 in a)
            assert found == Range(min(attained), max(attained))


def test_products_and_sums_are_tight() -> None:
    a, b = Range(Fraction(-1, 3), Fraction(2)), Range(Fraction(-5), Fraction(1, 7))
    assert OPERATORS["*"](a, b) == Range(Fraction(-10), Fraction(5, 3))
    assert OPERATORS["+"](a, b) == Range(Fraction(-16, 3), Fraction(15, 7))
    assert OPERATORS["*"](Range(Fraction(0), INF), point(Fraction(0))) == point(Fraction(0))


def test_quotients_at_zero() -> None:
    inverse = OPERATORS["pow"]
    assert inverse(Range(Fraction(0), Fraction(4)), -1) == Range(Fraction(1, 4), INF)
    assert inverse(Range(Fraction(-4), Fraction(0)), -1) == Range(-INF, Fraction(-1, 4))
    assert inverse(Range(Fraction(-4), Fraction(1)), -1) == inverse(point(Fraction(0)), -1) == UNBOUNDED
    assert inverse(Range(Fraction(2), INF), -1) == Range(Fraction(0), Fraction(1, 2))


def test_roots_enclose_and_are_exact_where_they_can_be() -> None:
    rng = random.Random(0)
    for _ in range(300):
        low, high = sorted(abs(rational(rng)) * Fraction(2) ** rng.randint(-90, 90) for _ in range(2))
        found = OPERATORS["sqrt"](Range(low, high))
        assert found.lower**2 <= low and high <= found.upper**2
        assert found.upper**2 - high <= high / 2**60 and low - found.lower**2 <= low / 2**60
    assert OPERATORS["sqrt"](Range(Fraction(4, 9), Fraction(16))).upper == 4
    assert OPERATORS["sqrt"](Range(Fraction(-1), Fraction(1))) == UNBOUNDED
    assert OPERATORS["sqrt"](Range(Fraction(0), INF)) == Range(Fraction(0), INF)


@pytest.mark.parametrize("bits", [4, 20, 53])
def test_rounding_goes_outwards_and_keeps_short_numbers(bits: int) -> None:
    rng = random.Random(bits)
    for _ in range(300):
        low, high = sorted(rational(rng) * Fraction(3) ** rng.randint(-40, 40) for _ in range(2))
        found = Range(low, high).rounded(bits)
        assert found.lower <= low <= high <= found.upper
        assert low - found.lower <= abs(low) / 2 ** (bits - 2) and found.upper - high <= abs(high) / 2 ** (bits - 2)
        assert found.rounded(bits) == found
    assert Range(Fraction(-3, 8), INF).rounded(bits) == Range(Fraction(-3, 8), INF)
    value = Fraction(0.1)
    assert point(value).rounded(53) == point(value)


def test_floats_around_rationals() -> None:
    huge: Number = Fraction(10) ** 400
    assert floats(Range(-huge, huge)) == (-INF, INF)
    assert floats(point(huge)) == (math.nextafter(INF, 0.0), INF)
    assert floats(Range(Fraction(1, 2), INF)) == (0.5, INF)
    low, high = floats(point(Fraction(1, 3)))
    assert low < Fraction(1, 3) < high and math.nextafter(low, 1.0) == high
    assert between(math.nan, math.nan) == UNBOUNDED and between(0.1, INF) == Range(Fraction(0.1), INF)


def test_ranges_that_contradict_each_other_meet_in_a_point() -> None:
    first, second = Range(Fraction(1), Fraction(2)), Range(Fraction(-1), Fraction(0))
    assert first.meet(second) == point(Fraction(1))
    assert first.meet(Range(Fraction(3, 2), INF)) == Range(Fraction(3, 2), Fraction(2))
