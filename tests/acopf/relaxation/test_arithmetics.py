"""What is irrational is rounded to the safe side, in both arithmetics; sectors contain their angles."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import flint
import numpy as np
import pytest
from power_networks import precise

from milpverify.acopf.relaxation.arithmetics import FLOATS, RATIONALS, Floats, Numbers, Rationals, Sector, ball_end
from milpverify.acopf.relaxation.ranges import ANGLE

BOTH = pytest.mark.parametrize("numbers", [FLOATS, RATIONALS], ids=["floats", "rationals"])


def random_angles(rng: np.random.Generator, numbers: Numbers) -> tuple[Any, Any]:
    """Ranges of all widths, at 0, at large angles and at half a turn; of rationals also such as no float64 is the end of."""
    count = 300
    width = 10.0 ** rng.uniform(-17, 0.3, count) * rng.choice([0.0, 1.0, 1.0, 1.0], count)
    middle = np.where(rng.random(count) < 0.2, 0.0, rng.uniform(-ANGLE, ANGLE, count))
    middle = np.where(rng.random(count) < 0.1, rng.choice([-ANGLE, ANGLE], count), middle)
    lower, upper = (numbers.of(np.clip(end, -ANGLE, ANGLE)) for end in (middle - width, middle + width))
    if numbers is RATIONALS:
        more = numbers.of(10.0 ** rng.uniform(-12, -2, count)) / 3 * numbers.of(rng.choice([0.0, 1.0], count))
        lower, upper = lower - more, upper + more
    return lower, upper


def wrong_sectors(rng: np.random.Generator, numbers: Numbers) -> list[str]:
    """What of a sector is not as `Sector` says."""
    lower, upper = random_angles(rng, numbers)
    sector, found = numbers.sector(lower, upper), []
    with precise():
        for k in np.flatnonzero(sector.narrow).tolist():
            quarter, turn, slip, cosine, tangent, slope, error = (
                ball(getattr(sector, name)[k]) for name in ("quarter", "turn", "slip", "cosine", "tangent", "slope", "error")
            )
            real = 2 * quarter.atan()
            if abs(real - turn) > slip:
                found.append(f"slip of {lower[k]}, {upper[k]}")
            low, high = ball(lower[k]) - real, ball(upper[k]) - real
            half = max(high, -low)
            peak = (1 / slope).sqrt().acos() if slope > 1 else flint.arb(0)  # where the tangent's slope is that of the line
            for x in (low, high, half, -half, *(share * half for share in (0.2, 0.5, 0.58, 0.9)), peak if peak < half else half):
                if x.cos() < cosine or abs(x.tan()) > tangent or abs(x.tan() - slope * x) > error:
                    found.append(f"{lower[k]}, {upper[k]} at {x}")
    return found


def ball(value: Any) -> Any:
    return flint.arb(value) if isinstance(value, flint.fmpq) else flint.arb(float(value))


@BOTH
def test_sectors_contain_their_angles(numbers: Numbers) -> None:
    assert not [wrong for seed in range(5) for wrong in wrong_sectors(np.random.default_rng(seed), numbers)]


@BOTH
def test_most_sectors_are_as_narrow_as_their_angles(numbers: Numbers) -> None:
    lower, upper = (numbers.of(np.array(ends)) for ends in ([-0.3, 2.9, -3.1], [0.1, 3.1, 3.1]))
    sector = numbers.sector(lower, upper)
    assert sector.narrow.tolist() == [True, True, False]
    assert [float(v) for v in sector.cosine[:2]] == pytest.approx([math.cos(0.2), math.cos(0.1)], rel=1e-12)
    assert [float(v) for v in sector.tangent[:2]] == pytest.approx([math.tan(0.2), math.tan(0.1)], rel=1e-12)
    assert float(sector.error[0]) < 0.2**3 / 3


def test_an_angle_just_beyond_half_a_turn_is_no_angle_on_the_other_side() -> None:
    """tan of a quarter of both ends' sum changes its sign there."""
    end = RATIONALS.of(np.array([ANGLE]))
    sector = RATIONALS.sector(end, end)
    assert abs(float(sector.turn[0]) - ANGLE) < 1e-9 or not sector.narrow[0]


def test_a_range_that_no_float64_ends_is_not_cut_to_one() -> None:
    third = RATIONALS.of(np.array([1e-9])) / 3
    lower, upper = RATIONALS.of(np.array([2.7])) - third, RATIONALS.of(np.array([2.7])) + third
    sector = RATIONALS.sector(lower, upper)
    with precise():
        real = 2 * ball(sector.quarter[0]).atan()
        assert max(ball(upper[0]) - real, real - ball(lower[0])).tan() <= ball(sector.tangent[0])


@BOTH
@pytest.mark.parametrize("name", ["sqrt", "cos", "sin", "tan", "atan"])
def test_functions_are_rounded_outwards(numbers: Numbers, name: str) -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([10.0 ** rng.uniform(-300, 0, 100), rng.uniform(-1.5, 1.5, 200), [0.0, 1.0]])
    values = numbers.of(np.abs(values) if name == "sqrt" else values)
    low, high = numbers.apply(name, values, False), numbers.apply(name, values, True)
    with precise():
        for value, below, above in zip(values, low, high, strict=True):
            real = getattr(ball(value), name)()
            assert not real < ball(below) and not real > ball(above)
            assert above - below <= abs(below) * 2.0**-47 + 2.0**-900 if numbers is FLOATS else float(above - below) <= 1e-13


@pytest.mark.parametrize("precision", [10, 53, 200])
def test_the_precision_of_balls_does_not_matter(precision: int) -> None:
    before, flint.ctx.prec = flint.ctx.prec, precision
    try:
        third = flint.arb(1) / 3
        assert ball_end(third, False) < 1 / 3 < ball_end(third, True)
        assert ball_end(flint.arb("nan"), True) == math.inf and ball_end(flint.arb("nan"), False) == -math.inf
        low, high = (RATIONALS.apply("tan", RATIONALS.of(np.array([1.2])), up)[0] for up in (False, True))
    finally:
        flint.ctx.prec = before
    with precise():
        assert ball(low) < flint.arb(1.2).tan() < ball(high)


def test_what_is_no_number_has_no_rational() -> None:
    with pytest.raises(ValueError, match="not a number"):
        RATIONALS.of(np.array([math.nan]))


def _changed(name: str, by: float) -> Any:
    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        made = Numbers.sector

        def sector(self: Numbers, lower: Any, upper: Any) -> Sector:
            right = made(self, lower, upper)
            return replace(right, **{name: getattr(right, name) + self.of(np.full(len(right.narrow), by))})

        monkeypatch.setattr(Numbers, "sector", sector)

    return mutate


def _no_slip(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Floats, Rationals):
        monkeypatch.setattr(kind, "slip", lambda self, quarter, turn: self.of(np.zeros(len(turn))))


def _rounded_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Numbers.sector
    monkeypatch.setattr(
        Numbers, "sector", lambda self, low, high: made(self, *(self.of(np.asarray(end, dtype=np.float64)) for end in (low, high)))
    )


@pytest.mark.parametrize(
    "mutate",
    [
        *(_changed(name, by) for name, by in (("cosine", 1e-12), ("tangent", -1e-13), ("error", -1e-13), ("turn", 1e-12), ("slope", 1e-3))),
        _no_slip,
        _rounded_ends,
    ],
    ids=["cosine", "tangent", "error", "turn", "slope", "no slip", "ends rounded to float64"],
)
def test_a_wrong_sector_is_noticed(mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    assert any(wrong_sectors(np.random.default_rng(seed), RATIONALS) for seed in range(5))
