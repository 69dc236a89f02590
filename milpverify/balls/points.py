"""Batches of points and balls, for attacks: projections and steepest descent. Floats throughout; nothing is proved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.balls.ball import BallTuning
from milpverify.balls.norm import Norm

if TYPE_CHECKING:
    from milpverify.balls.ball import Ball


def _parts(ball: Ball, like: Tensor) -> tuple[Tensor, Tensor]:
    centre, weight = (torch.from_numpy(t).to(like.device, like.dtype) for t in (ball.centre, ball.weight))
    return centre, weight


def distances(ball: Ball, x: Tensor) -> Tensor:
    """The radii of the smallest balls around the centre that contain x (N, nx): (N,)."""
    centre, weight = _parts(ball, x)
    away = ((x - centre).abs() / weight.clamp(min=1e-30)).masked_fill(weight == 0, 0.0)
    match ball.norm:
        case Norm.LINF:
            return away.amax(-1)
        case Norm.L1:
            return away.sum(-1)
        case Norm.L2:
            return away.square().sum(-1).sqrt()


def project(ball: Ball, x: Tensor) -> Tensor:
    """The point of the ball nearest to each x (N, nx) for L1, on the way to the centre for L2."""
    centre, weight = _parts(ball, x)
    d = torch.where(weight > 0, x - centre, 0.0)
    if ball.norm is Norm.L2:
        far = distances(ball, x)
        return centre + d * (ball.radius / far.clamp(min=1e-30)).clamp(max=1.0).unsqueeze(1)
    # Soft thresholds (Duchi et al., Efficient Projections onto the l1-Ball, 2008), here with weights: |d| - t / w.
    inverse = torch.where(weight > 0, 1.0 / weight.clamp(min=1e-30), 0.0)
    size = d.abs()
    edge, order = (size * weight).sort(dim=1, descending=True)
    cost, share = ((size * inverse).gather(1, order).cumsum(1), (inverse * inverse).expand_as(size).gather(1, order).cumsum(1))
    threshold = (cost - ball.radius) / share.clamp(min=1e-30)
    last = (edge > threshold).sum(1).clamp(min=1) - 1
    t = threshold.gather(1, last.unsqueeze(1)).clamp(min=0.0)
    return centre + d.sign() * (size - t * inverse).clamp(min=0.0)


def steepest(ball: Ball, gradient: Tensor, tuning: BallTuning = BallTuning()) -> Tensor:
    """Ascents (N, nx) as long as the radius, along which functions with these gradients rise most (for L1, sparse ones near to that)."""
    _, weight = _parts(ball, gradient)
    pull = gradient * weight
    if ball.norm is Norm.L2:
        return ball.radius * weight * pull / pull.square().sum(1, keepdim=True).sqrt().clamp(min=1e-30)
    largest = pull.abs().amax(1, keepdim=True)
    kept = torch.where(pull.abs() >= (1.0 - tuning.sparse) * largest, pull, 0.0)
    return ball.radius * weight * kept / kept.abs().sum(1, keepdim=True).clamp(min=1e-30)
