"""round: to the even neighbour from halfway, exactly at points, both sides over boxes that touch a jump."""

from __future__ import annotations

from fractions import Fraction

import flint
import torch

from milpverify.functions.catalogue import catalogue

ROUND = catalogue()["round"].bind()


def test_values_and_ranges_at_halves_are_those_of_the_reals() -> None:
    x = torch.cat(
        [
            torch.arange(-50, 51, dtype=torch.float64) / 4,
            torch.tensor([0.49999999999999994, 4503599627370497.5, 1e300], dtype=torch.float64),
        ]
    )
    expected = torch.tensor([float(round(Fraction(v))) for v in x.tolist()], dtype=torch.float64)
    assert torch.equal(ROUND(x), expected)
    least, most = ROUND.interval(x, x)
    assert (least <= expected).all() and (most >= expected).all() and (most - least <= 1e-15 * expected.abs() + 1e-300).all()
    lower, upper = ROUND.interval(x - 0.5, x + 0.5)
    assert (lower <= expected).all() and (upper >= expected).all()
    assert all(ROUND.ball(flint.arb(v)).contains(flint.arb(w)) for v, w in zip(x.tolist()[:101], expected.tolist(), strict=False))
    low, high = ROUND.ball(flint.arb(2.5)), ROUND.ball(flint.arb(2.25))
    assert low.contains(2) and low.contains(3) and high == 2
