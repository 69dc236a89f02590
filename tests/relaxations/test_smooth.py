"""Lines around smooth functions: proved in ball arithmetic, nearly as tight as any, and differentiable in their slopes."""

from __future__ import annotations

import zlib

import flint
import pytest
import torch
from torch import Tensor

from milpverify.functions.catalogue import Function, catalogue
from milpverify.relaxations.registry import univariate

LINEAR = {name for name, entry in catalogue().items() if not entry.domain}
CURVED = {name: entry.trial() for name, entry in catalogue().items() if name not in LINEAR and name not in ("floor", "round")}
BITS = 220
BOXES = 4000  # of a subdivision, before it counts as failed
SPARE = -(flint.arb(2) ** -150)  # what the balls' own rounding may take of an exact 0


def intervals(function: Function, count: int, widths: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Random intervals within the domain: of these widths, at random places and around every inflection, also starting or ending there."""
    random = torch.Generator().manual_seed(zlib.crc32(function.name.encode()))
    special = torch.tensor([end for pair in (*function.inflections, *function.extrema) for end in pair] or [0.0], dtype=torch.float64)
    lower, upper = [], []
    for width in widths:
        centre = 4 * torch.randn(count, generator=random, dtype=torch.float64)
        centre[::2] = special[torch.randint(len(special), (len(centre[::2]),), generator=random)]
        left, right = width * torch.rand(2, count, generator=random, dtype=torch.float64)
        left[::5], right[1::5] = 0.0, 0.0
        lower.append(centre - left)
        upper.append(centre + right)
    low, high = torch.cat(lower), torch.cat(upper)
    (_, start), (end, _) = function.domain
    inside = (low > start) & (high < end)
    for left_pole, right_pole in function.poles:
        inside &= (high < left_pole) | (low > right_pole)
    return low[inside], high[inside]


def holds(function: Function, lower: float, upper: float, slope: float, intercept: float, side: int) -> bool:
    """Whether side * (f(x) - slope x - intercept) >= 0 is proved on [lower, upper], by mean values on ever smaller balls.

    At a kink the ball of the derivative holds both sides (sign is then a ball around 0), so that mean values hold there too.
    """
    k, c = flint.arb(slope), flint.arb(intercept)
    waiting, boxes = [(flint.arb(lower), flint.arb(upper))], 0
    while waiting:
        a, b = waiting.pop()
        boxes += 1
        if boxes > BOXES:
            return False
        middle = (a + b) / 2
        x = a.union(b)
        gap = function.ball(x) - k * x - c
        steep = function.derivative_ball(x) - k
        if steep.is_finite():
            gap = (function.ball(middle) - k * middle - c + steep * (x - middle)).intersection(gap)
        proved = side * gap >= SPARE
        if not proved and (steep >= 0 or steep <= 0):  # then the gap is monotone on the ball, and its ends decide
            proved = all(side * (function.ball(end) - k * end - c) >= SPARE for end in (a, b))
        if not proved:
            if side * gap < 0 or not a < b:
                return False
            waiting += [(a, middle.mid()), (middle.mid(), b)]
    return True


@pytest.mark.parametrize("name", CURVED)
def test_lines_are_proved_in_ball_arithmetic(name: str) -> None:
    function = CURVED[name]
    low, high = intervals(function, 3, (1e-9, 1e-3, 0.5, 4.0, 30.0))
    random = torch.Generator().manual_seed(1)
    own = univariate(function).supporting_slopes(low, high)
    parallel = univariate(function).chord(low, high)
    free = torch.randn(2, len(low), generator=random, dtype=torch.float64)
    proved = 0
    with flint.ctx.workprec(BITS):
        for below, above in (own, (parallel, parallel), tuple(free)):
            for dtype in (torch.float32, torch.float64):
                k_low, k_high = below.to(dtype).double(), above.to(dtype).double()
                found = univariate(function).both_intercepts(low, high, k_low, k_high)
                for slopes, lines, side in ((k_low, found[0], 1), (k_high, found[1], -1)):
                    for a, b, k, c in zip(*(t.tolist() for t in (low, high, slopes, lines)), strict=True):
                        if abs(c) != float("inf"):
                            assert holds(function, a, b, k, c, side), (a, b, k, c, side)
                            proved += 1
    assert proved >= 3 * len(low)


@pytest.mark.parametrize("name", CURVED)
def test_lines_over_huge_intervals_hold_at_points(name: str) -> None:
    """At both ends, close to them and to every special point, and in between."""
    function = CURVED[name]
    low, high = intervals(function, 10, (1e3, 1e6))
    random = torch.Generator().manual_seed(2)
    near = 10.0 ** torch.linspace(-12, 5.9, 60, dtype=torch.float64)
    special = torch.tensor([0.0, *(end for pair in (*function.inflections, *function.extrema) for end in pair)], dtype=torch.float64)
    own, free = univariate(function).supporting_slopes(low, high), torch.randn(2, len(low), generator=random, dtype=torch.float64)
    with flint.ctx.workprec(BITS):
        for below, above in (own, tuple(free)):
            under, over = univariate(function).both_intercepts(low, high, below, above)
            for a, b, *lines in zip(*(t.tolist() for t in (low, high, below, under, above, over)), strict=True):
                some = torch.cat([a + near, b - near, *(special + sign * d for d in near[::4] for sign in (-1, 1)), special])
                for x in map(flint.arb, [a, b, *(x for x in some.tolist() if a <= x <= b)]):
                    value = function.ball(x)
                    for k, c, side in ((*lines[:2], 1), (*lines[2:], -1)):
                        assert not side * (value - flint.arb(k) * x - flint.arb(c)) < 0, (a, b, k, c, side, x)


@pytest.mark.parametrize("name", CURVED)
def test_default_lines_lose_next_to_no_area(name: str) -> None:
    function = CURVED[name]
    low, high = intervals(function, 150, (0.1, 1.0, 5.0, 20.0))
    below, above = univariate(function).supporting_slopes(low, high)
    under, over = univariate(function).both_intercepts(low, high, below, above)
    middle = 0.5 * (low + high)
    grid = low.unsqueeze(1) + (high - low).unsqueeze(1) * torch.linspace(0, 1, 201, dtype=torch.float64)
    values = function(grid)
    assert under.isfinite().all() and over.isfinite().all()
    for line, sign in ((under + below * middle, 1.0), (over + above * middle, -1.0)):
        y = sign * values
        best = y[:, 100].clone()  # the convex envelope at the midpoint, over the grid: never below the true one by more than its spacing
        for i in range(100):
            rise = (y[:, 101:] - y[:, i : i + 1]) / (grid[:, 101:] - grid[:, i : i + 1])
            best = torch.minimum(best, (y[:, i : i + 1] + rise * (middle - grid[:, i]).unsqueeze(1)).amin(1))
        area = y.mean(1) - best
        matters = area > 1e-9 * (1 + y.abs().amax(1))
        lost = ((best - sign * line) / area)[matters]
        assert matters.any()
        assert float(lost.quantile(0.99)) <= 0.02


@pytest.mark.parametrize("name", CURVED)
def test_the_gradient_of_an_intercept_is_minus_the_extreme_point(name: str) -> None:
    function = CURVED[name]
    low, high = intervals(function, 40, (1.0, 5.0))
    grid = low.unsqueeze(1) + (high - low).unsqueeze(1) * torch.linspace(0, 1, 2001, dtype=torch.float64)
    for slopes in (*univariate(function).supporting_slopes(low, high), 0.3 * torch.ones_like(low)):
        k = slopes.clone().requires_grad_()
        for side, line in zip((1.0, -1.0), univariate(function).both_intercepts(low, high, k, k), strict=True):
            (gradient,) = torch.autograd.grad(line.sum(), k, retain_graph=True)
            point = -gradient
            assert ((point >= low - 1e-12) & (point <= high + 1e-12)).all()
            gap = side * (function(grid) - slopes.unsqueeze(1) * grid)
            spread = gap.amax(1) - gap.amin(1)
            assert (side * (function(point) - slopes * point) - gap.amin(1) <= 1e-3 * spread + 1e-9).all()


@pytest.mark.parametrize("name", ["log", "sqrt", "reciprocal", "tan"])
def test_a_box_that_leaves_the_domain_has_no_line(name: str) -> None:
    function = CURVED[name]
    low, high = torch.tensor([-3.0, -1.0], dtype=torch.float64), torch.tensor([3.0, 2.0], dtype=torch.float64)
    below, above = univariate(function).supporting_slopes(low, high)
    under, over = univariate(function).both_intercepts(low, high, below, above)
    assert below.isfinite().all() and above.isfinite().all()
    assert (under == -torch.inf).all() and (over == torch.inf).all()


def test_unbounded_intervals_have_flat_lines() -> None:
    inf = torch.tensor([torch.inf], dtype=torch.float64)
    for name, (least, most) in {"tanh": (-1.0, 1.0), "sin": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}.items():
        zero = torch.zeros_like(inf)
        under, over = univariate(CURVED[name]).both_intercepts(-inf, inf, zero, zero)
        assert least - 1e-12 <= float(under) <= least and most <= float(over) <= most + 1e-12


def test_a_proof_can_fail() -> None:
    tanh = CURVED["tanh"]
    low, high = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    slope = torch.tensor([0.3], dtype=torch.float64)
    under, over = univariate(tanh).both_intercepts(low, high, slope, slope)
    with flint.ctx.workprec(BITS):
        assert holds(tanh, -1.0, 2.0, 0.3, float(under), 1) and holds(tanh, -1.0, 2.0, 0.3, float(over), -1)
        assert not holds(tanh, -1.0, 2.0, 0.3, float(under) + 1e-12, 1)
        assert not holds(tanh, -1.0, 2.0, 0.3, float(over) - 1e-12, -1)
