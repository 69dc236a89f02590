"""Box clipping by linear bounds of the rows (Clip-and-Verify, arXiv 2512.11087): cut off what cannot be unsafe.

In a box, a row is at least L + sum_i |a_i| d_i, where L is its proved minimum over the box, a its linear bound's coefficients, and
d_i the distance of x_i from the end that minimises it. Unsafe points of a disjunct have every row <= 0, so d_i <= -L / |a_i|.
What is cut off is safe, but by an unknown margin: bounds on a clipped box are conditional.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64, down, gamma, up


def least(rows: Tensor, rhs: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Proved minima of rows . x - rhs over boxes: rows (batch, r, nx), rhs (batch, r), ends (batch, nx) -> (batch, r), float64."""
    ends = torch.where(rows > 0, lower.unsqueeze(1), upper.unsqueeze(1))
    terms = torch.where(rows == 0, 0.0, rows * ends)
    size = terms.abs().sum(2) + rhs.abs()
    minimum = terms.sum(2) - rhs - 2 * (rows.shape[2] + 4) * U64 * size
    return torch.where(torch.isnan(minimum), -torch.inf, minimum)


def clip(lower: Tensor, upper: Tensor, minima: Tensor, coefficients: Tensor, rounds: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Clip boxes by all rows of one disjunct each.

    Args:
        lower, upper: (batch, nx) float64.
        minima: (batch, r) float64: proved lower bounds of the rows' residuals over the boxes; +inf rows are impossible, -inf useless.
        coefficients: (batch, r, nx) of the linear bounds that gave the minima.
        rounds: clipping by one row raises the minima of the others.

    Returns:
        the clipped ends, and whether nothing is left, so that the box holds no unsafe point (batch,) bool.
    """
    slope = coefficients.double().abs()
    rising = coefficients > 0  # minimised at the lower end
    low, high, least = lower, upper, minima
    refuted = (least > 0).any(1)
    for _ in range(rounds):
        reach = up((-least.unsqueeze(2)).clamp(min=0.0) / slope)  # inf or NaN where the slope is 0: no cut
        reach = torch.where(slope > 0, reach, torch.inf)
        cut_high = torch.where(rising, up(low.unsqueeze(1) + reach), torch.inf).amin(1)
        cut_low = torch.where(rising, -torch.inf, down(high.unsqueeze(1) - reach)).amax(1)
        new_low, new_high = torch.maximum(low, cut_low), torch.minimum(high, cut_high)
        refuted = refuted | (new_low > new_high).any(1)
        new_low, new_high = torch.where(refuted.unsqueeze(1), low, new_low), torch.where(refuted.unsqueeze(1), high, new_high)
        # Each row's minimum rises with what was cut from its minimising ends.
        gained = torch.where(rising, down(new_low - low).clamp(min=0.0).unsqueeze(1), down(high - new_high).clamp(min=0.0).unsqueeze(1))
        least = least + (slope * gained).sum(2) * (1 - gamma(lower.shape[1]))
        least = torch.where(gained.sum(2) > 0, down(least), least)
        refuted = refuted | (least > 0).any(1)
        if bool(((new_low == low) & (new_high == high)).all()):
            break
        low, high = new_low, new_high
    return low, high, refuted
