"""What inputs are confined to besides a box: a ball, half-spaces, or both, each with minima of linear functions of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from milpverify.balls.ball import BallTuning
from milpverify.balls.dual import Region

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.balls.ball import Ball
    from milpverify.balls.halfspaces import Halfspaces, Polytopes

    Confined = Region | Polytopes


def confining(
    ball: Ball | None, halfspaces: Halfspaces | None, lower: Tensor, upper: Tensor, reference: Tensor, tuning: BallTuning = BallTuning()
) -> tuple[Confined, ...]:
    """What cuts one of a batch of boxes (batch, nx) float64, for deviations from reference values (batch, nx)."""
    return tuple(region for region in _all(ball, halfspaces, (lower, upper, reference), tuning) if region.cuts())


def without_inputs(ball: Ball | None, halfspaces: Halfspaces | None, lower: Tensor, upper: Tensor) -> Tensor:
    """Which of a batch of boxes (batch, nx) float64 hold no inputs for certain, (batch,) bool."""
    found = torch.zeros(len(lower), dtype=torch.bool, device=lower.device)
    for region in _all(ball, halfspaces, (lower, upper, lower), BallTuning()):
        found |= region.empty()
    return found


def _all(ball: Ball | None, halfspaces: Halfspaces | None, boxes: tuple[Tensor, Tensor, Tensor], tuning: BallTuning) -> list[Confined]:
    regions: list[Confined] = [] if ball is None else [Region.of(ball, *boxes, tuning)]
    if halfspaces is not None:
        from milpverify.balls.halfspaces import Polytopes

        regions.append(Polytopes.of(halfspaces, *boxes, tuning))
    return regions
