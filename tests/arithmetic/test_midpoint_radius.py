"""Midpoint-radius arithmetic contains the exact results, of ends and of numbers between them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from milpverify.arithmetic.midpoint_radius import Array, Balls, exactly, reach, sin_cos, stacked


def balls(random: np.random.Generator, *shape: int, scale: float = 1.0) -> Balls:
    middle = random.normal(size=shape) * 10.0 ** random.integers(-6, 6, shape)
    return Balls(middle, np.abs(random.normal(size=shape)) * scale * np.abs(middle))


def members(random: np.random.Generator, one: Balls) -> Array:
    """Numbers of the balls as fractions, ends often."""
    share = np.clip(2 * random.normal(size=one.shape), -1, 1)
    pairs = zip(one.middle.flatten().tolist(), one.radius.flatten().tolist(), share.flatten().tolist(), strict=True)
    found = np.empty(one.shape, dtype=object)
    found.flat = [Fraction(m) + Fraction(r) * Fraction(s) for m, r, s in pairs]
    return found


def contains(one: Balls, exact: Array) -> bool:
    pairs = zip(one.middle.flatten().tolist(), one.radius.flatten().tolist(), exact.flatten().tolist(), strict=True)
    return all(abs(value - Fraction(m)) <= Fraction(r) for m, r, value in pairs)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.0, 1e-12, 0.1])
def test_operations_contain_exact_results(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    a, b, c = balls(random, 5, 7, scale=scale), balls(random, 5, 7, scale=scale), balls(random, 7, 3, scale=scale)
    x, y, z = (members(random, one) for one in (a, b, c))
    assert contains(a + b, x + y) and contains(a - b, x - y) and contains(a * b, x * y) and contains(-a, -x)
    assert contains(a @ c, x @ z) and contains(a @ c[:, 0], x @ z[:, 0])
    assert contains(stacked([a, b]), np.concatenate([x, y]))
    for one, exact in ((a, x), (a @ c, x @ z)):
        low, high, size = one.lower.flatten().tolist(), one.upper.flatten().tolist(), one.size.flatten().tolist()
        for value, below, above, most in zip(exact.flatten().tolist(), low, high, size, strict=True):
            assert Fraction(below) <= value <= Fraction(above) and abs(value) <= Fraction(most)
    radius = np.abs(random.normal(size=7))
    limit = x @ np.array([Fraction(r) * int(s) for r, s in zip(radius.tolist(), np.sign(random.normal(size=7)), strict=True)])
    assert all(abs(value) <= Fraction(most) for value, most in zip(limit, reach(a, radius).tolist(), strict=True))


def test_sines_and_cosines_contain_those_of_ball_arithmetic() -> None:
    import flint

    random = np.random.default_rng(0)
    angle = Balls(random.normal(size=200) * 3, np.abs(random.normal(size=200)) * 1e-9)
    for end in (-1, 0, 1):
        at = angle.middle + end * angle.radius * (1 - 1e-6)
        for one, exact in zip(sin_cos(angle), (flint.arb.sin, flint.arb.cos), strict=True):
            for m, r, value in zip(one.middle.tolist(), one.radius.tolist(), at.tolist(), strict=True):
                assert abs(exact(flint.arb(value)) - m) <= r


def test_a_product_that_is_rounded_has_a_radius() -> None:
    product = exactly(np.array([[0.1, 0.2]])) @ exactly(np.array([[0.3], [0.7]]))
    assert 0 < product.radius[0, 0] < 1e-14


def test_what_underflows_is_charged() -> None:
    tiny = exactly(np.array([1e-200]))
    assert (tiny * tiny).middle[0] == 0.0 < (tiny * tiny).radius[0] < 1e-300
