"""Lines around floor and round: sound in exact arithmetic, exact between jumps, and as good as the hull over a grid."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from milpverify.functions.catalogue import catalogue
from milpverify.relaxations.registry import univariate

RULES = {name: univariate(catalogue()[name].bind()) for name in ("floor", "round")}
RULE = RULES["floor"]


def intervals(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(300, generator=generator, dtype=torch.float64) * 5
    low[::3] = low[::3].round()
    width = 10 ** (torch.rand(300, generator=generator, dtype=torch.float64) * 12 - 10)
    high = low + width
    high[::4] = high[::4].ceil()
    return low, high


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", RULES)
def test_lines_hold_in_exact_arithmetic(name: str, seed: int) -> None:
    low, high = intervals(seed)
    if name == "round":
        low, high = (torch.where(x == x.round(), x + 0.5, x) for x in (low, high))
    exact, shift = {"floor": (math.floor, Fraction(0)), "round": (round, Fraction(1, 2))}[name]
    below, above = RULES[name].supporting_slopes(low, high)
    for k_low, k_high in ((below, above), (0 * low, 0 * low), (-0.7 + 0 * low, 1.3 + 0 * low)):
        under, over = RULES[name].both_intercepts(low, high, k_low, k_high)
        for a, b, *line in zip(*(t.tolist() for t in (low, high, k_low, under, k_high, over)), strict=True):
            k, c, m, d = map(Fraction, line)
            ends, tiny = (Fraction(a), Fraction(b)), Fraction(1, 10**30)
            jumps = [j + shift for j in range(math.floor(a) - 1, math.floor(b) + 2)]
            for x in (*ends, *(j + side for j in jumps for side in (0, -tiny, tiny) if ends[0] <= j + side <= ends[1])):
                assert k * x + c <= exact(x) <= m * x + d


def test_the_function_is_its_own_relaxation_between_jumps() -> None:
    low = torch.tensor([0.0, 0.25, -1.0, -0.5, 3.0], dtype=torch.float64)
    high = torch.tensor([0.5, 0.75, -0.25, -0.5, 3.5], dtype=torch.float64)
    assert RULE.is_affine(low, high).all()
    for k, c in zip(RULE.supporting_slopes(low, high), RULE.both_intercepts(low, high, 0 * low, 0 * low), strict=True):
        assert k.tolist() == [0.0] * 5
        assert c.tolist() == [0.0, 0.0, -1.0, -1.0, 3.0]
    assert not RULE.is_affine(low, high + 1.0).any()


def test_default_lines_are_the_hull_at_the_midpoint() -> None:
    low, high = intervals(7)
    wide = high - low > 1e-3
    low, high = low[wide], high[wide]
    middle = 0.5 * (low + high)
    slopes = RULE.supporting_slopes(low, high)
    lines = [c + k * middle for k, c in zip(slopes, RULE.both_intercepts(low, high, *slopes), strict=True)]
    for k in torch.linspace(0, 4, 201, dtype=torch.float64).tolist():
        under, over = RULE.both_intercepts(low, high, *[torch.full_like(low, k)] * 2)
        assert (under + k * middle <= lines[0] + 1e-9).all()
        assert (over + k * middle >= lines[1] - 1e-9).all()


def test_gradients_lead_to_the_extreme_points_and_infinite_ends_have_no_line() -> None:
    low, high = torch.tensor([-0.5, -math.inf, 0.5]), torch.tensor([2.5, 1.0, math.inf])
    low, high = low.double(), high.double()
    k = torch.tensor([0.4, 0.0, 0.1], dtype=torch.float64, requires_grad=True)
    under, over = RULE.both_intercepts(low, high, k, k)
    assert under[1].item() == -math.inf and over[2].item() == math.inf
    (gradient,) = torch.autograd.grad(under[0], k, retain_graph=True)
    assert gradient[0].item() == 0.0  # at the jump at 0


def test_at_a_half_the_limits_of_round_count_on_the_side_of_the_box() -> None:
    low, high = (torch.tensor(v, dtype=torch.float64) for v in ([2.5, 1.5, 2.5, 1.5], [2.75, 1.75, 2.5, 2.5]))
    under, over = RULES["round"].both_intercepts(low, high, 0 * low, 0 * low)
    assert ((under <= torch.tensor([2.0, 2.0, 2.0, 2.0])) & (under > 1.99)).all()
    assert ((over >= torch.tensor([3.0, 2.0, 2.0, 2.0])) & (over < torch.tensor([3.01, 2.01, 2.01, 2.01]))).all()
