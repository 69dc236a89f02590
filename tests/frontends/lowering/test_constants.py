"""Arithmetic with constants: real results are within the roundings that a mark states, and there is none where float64 holds them."""

from __future__ import annotations

import operator
from fractions import Fraction
from math import isqrt

import flint
import numpy as np
import pytest

from milpverify.frontends.lowering.constants import Constant

U = Fraction(1, 2**53)
OPERATIONS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}


def numbers(rng: np.random.Generator, kind: str) -> np.ndarray:
    values = rng.normal(size=200) * 2.0 ** rng.integers(-20, 20, size=200)
    if kind == "dyadic":
        return np.round(values * 16) / 16 + 0.03125
    return values.astype(np.float32).astype(np.float64) if kind == "float32" else values


def within(value: float, real: Fraction, rounded: int) -> bool:
    """Whether real = value * (1 + d)^(-+k) for |d| <= u is possible."""
    return abs(Fraction(value) - real) <= rounded * U / (1 - rounded * U) * min(abs(real), abs(Fraction(value)))


@pytest.mark.parametrize("kind", ["dyadic", "float32", "float64"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_results_are_within_their_mark(kind: str, name: str) -> None:
    rng = np.random.default_rng(0)
    a, b = numbers(rng, kind), numbers(rng, kind)
    apply = OPERATIONS[name]
    marks = set()
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        found = apply(Constant.of(x), y)
        real = apply(Fraction(x), Fraction(y))
        assert within(float(found.value), real, found.rounded)
        assert (found.rounded == 0) == (Fraction(float(found.value)) == real)
        marks.add(found.rounded)
    whole = apply(Constant(a), b)
    assert whole.rounded == max(marks)
    assert max(marks) <= 1
    assert max(marks) == 0 if (kind, name) in (("dyadic", "add"), ("dyadic", "sub"), ("dyadic", "mul"), ("float32", "mul")) else 1 in marks


def test_chains_add_their_marks_up() -> None:
    rng = np.random.default_rng(1)
    for a, b, c, d in np.abs(rng.normal(size=(300, 4))).tolist():
        A, B, C, D = (Fraction(v) for v in (a, b, c, d))
        found = (Constant.of(a) / b - Constant.of(c) / d) * 3.0
        assert within(float(found.value), (A / B - C / D) * 3, found.rounded)
        root = (Constant.of(a) / b + c / Constant.of(d)).sqrt()
        with flint.ctx.workprec(300):
            real = Fraction(isqrt(int((A / B + C / D) * 2**400)), 2**200)
        assert within(float(root.value), real, root.rounded)
        assert root.rounded <= 3


def test_exact_roots_and_quotients_have_no_mark() -> None:
    squares = np.array([0.0, 1.0, 4.0, 2.25, 2.0**-40])
    assert Constant(squares).sqrt().rounded == 0
    assert Constant(np.array([2.0])).sqrt().rounded == 1
    assert (1.0 / Constant(np.array([0.5, 8.0, -4.0]))).rounded == 0
    assert (1.0 / Constant(np.array([0.5, 3.0]))).rounded == 1
    assert (np.array([3.0, 0.0]) / Constant(np.array([1.5, 7.0]))).rounded == 0


def test_logarithms() -> None:
    values = np.array([2.0, 1e-30, 1.0 + 2.0**-50, 0.5, 7e100])
    found = Constant(values).log()
    assert found.rounded == 2
    with flint.ctx.workprec(400):
        for value, log in zip(values.tolist(), found.value.tolist(), strict=True):
            assert abs(float(flint.arb(log) / flint.arb(value).log() - 1)) <= 2.0**-53 * 1.0001
    assert Constant(np.ones(3)).log().rounded == 0


def test_rationals() -> None:
    found = Constant.nearest([Fraction(1, 3), Fraction(1, 4), Fraction(0)], (3,))
    assert found.value.tolist() == [1 / 3, 0.25, 0.0]
    assert found.rounded == 1
    assert Constant.nearest([Fraction(3, 8)], ()).rounded == 0


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Constant.of(1e-300) * 1e-300, "too small"),
        (lambda: Constant.of(1e-300) / 1e300, "too small"),
        (lambda: Constant.of(1e300) * 1e300, "no finite number"),
        (lambda: Constant.of(1.0) / 0.0, "no finite number"),
        (lambda: Constant.of(1.0) / 3.0 - 1.0 / 3.0, "cancel"),
        (lambda: Constant.nearest([Fraction(1, 10**320)], ()), "too small"),
    ],
)
def test_what_has_no_relative_error_is_refused(make: object, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()  # type: ignore[operator]


def test_a_sum_that_nearly_cancels_keeps_what_it_lost() -> None:
    found = Constant.of(1.0) / 3.0 - 0.333
    assert found.rounded > 900
    assert within(float(found.value), Fraction(1, 3) - Fraction(0.333), found.rounded)
