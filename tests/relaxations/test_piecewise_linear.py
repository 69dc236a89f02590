"""Lines around functions made of lines: sound in exact arithmetic, also next to breakpoints, with any slope and in both precisions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from milpverify.functions.catalogue import catalogue
from milpverify.relaxations.registry import univariate

PRECISIONS = [torch.float32, torch.float64]


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs", "hard_tanh"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_lines_with_any_slope_hold_in_exact_arithmetic(name: str, dtype: torch.dtype) -> None:
    function = catalogue()[name].trial()
    assert function.pieces is not None
    random = torch.Generator().manual_seed(5)
    scale = 10.0 ** torch.randint(-6, 7, (400,), generator=random).double()
    ends = (scale * torch.randn(2, 400, generator=random, dtype=torch.float64)).sort(0).values
    lower, upper = ends
    span = univariate(function).span
    free = torch.empty(2, 400, dtype=torch.float64).uniform_(span[0] - 0.5, span[1] + 0.5, generator=random)
    default, parallel = univariate(function).supporting_slopes(lower, upper), univariate(function).chord(lower, upper)
    for below, above in (free, default, (parallel, parallel)):
        below, above = below.to(dtype).double(), above.to(dtype).double()
        low, high = univariate(function).both_intercepts(lower, upper, below, above)
        for k in range(400):
            inside = [p for p in function.pieces.breakpoints if lower[k] < p < upper[k]]
            for x in (lower[k].item(), *inside, upper[k].item()):
                piece = sum(x > p for p in function.pieces.breakpoints)
                f = Fraction(function.pieces.slopes[piece]) * Fraction(x) + Fraction(function.pieces.intercepts[piece])
                assert Fraction(below[k].item()) * Fraction(x) + Fraction(low[k].item()) <= f
                assert Fraction(above[k].item()) * Fraction(x) + Fraction(high[k].item()) >= f


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs", "hard_tanh", "relu6", "clip", "sign"])
def test_lines_hold_next_to_a_breakpoint(name: str) -> None:
    function = catalogue()[name].trial()
    assert function.pieces is not None
    for i, (p, value) in enumerate(zip(function.pieces.breakpoints, function.pieces.values, strict=True)):
        neighbours = math.nextafter(p, -math.inf), math.nextafter(p, math.inf)
        lines = list(zip(function.pieces.slopes[i : i + 2], function.pieces.intercepts[i : i + 2], strict=True))
        truth = [(x, Fraction(k) * Fraction(x) + Fraction(b)) for x, (k, b) in zip(neighbours, lines, strict=True)]
        left, right = (torch.tensor([x], dtype=torch.float64) for x in neighbours)
        at = torch.tensor([p], dtype=torch.float64)
        for lower, upper, inside in ((left, at, truth[:1]), (at, right, truth[1:]), (left, right, truth), (at, at, [])):
            slope = univariate(function).chord(lower, upper)
            own = (torch.tensor([k], dtype=torch.float64) for k, _ in lines)
            for below, above in (univariate(function).supporting_slopes(lower, upper), (slope, slope), *((k, k) for k in own)):
                low, high = univariate(function).both_intercepts(lower, upper, below, above)
                if below.isinf() or above.isinf():  # across a jump
                    continue
                for x, f in (*inside, (p, Fraction(value))):
                    assert Fraction(below.item()) * Fraction(x) + Fraction(low.item()) <= f
                    assert Fraction(above.item()) * Fraction(x) + Fraction(high.item()) >= f


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs"])
def test_few_operations_give_what_the_general_rule_gives(name: str) -> None:
    function = catalogue()[name].trial()
    lower = torch.tensor([-1.0, -3.0, -1.0, 0.0, -2.0, 1.0, 0.0, 0.5], dtype=torch.float64)
    upper = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0, 4.0, 0.0, 0.5], dtype=torch.float64)
    below, above = (torch.linspace(a, b, 8, dtype=torch.float64) for a, b in ((-0.5, 1.2), (1.2, -1.0)))
    low, high = univariate(function).both_intercepts(lower, upper, below, above)
    torch.testing.assert_close(low, univariate(function).lower_intercept(lower, upper, below), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(high, univariate(function).upper_intercept(lower, upper, above), rtol=1e-14, atol=1e-14)
