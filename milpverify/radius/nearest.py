"""Looking for near counterexamples: points are moved to where the margin, linearised, vanishes nearest to the centre.

The projection of the centre onto the linearised decision boundary within the clip, repeated from point to point, after Croce and Hein,
Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack (arXiv 1907.02044). What is found is only a candidate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from milpverify.balls.norm import Norm
from milpverify.balls.points import distances
from milpverify.graph import evaluate
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.radius.neighbourhood import Neighbourhood
    from milpverify.radius.question import Question
    from milpverify.spec import Array

TINY: Final = 1e-30
"""What is not divided by."""


class NearestTuning(Tuning):
    """How points are moved towards the centre."""

    scales: tuple[float, ...] = (0.7, 0.85, 0.93, 0.97, 0.99, 1.0, 1.01, 1.03, 1.1, 1.3)
    """Where on the ray from the centre through a projection a misclassified point is looked for."""
    steps: int = 10
    targets: int = 16
    """Projections of every point, and targets that are aimed at."""
    halvings: int = 40
    """Of the logarithm of a radius, and half as many of a segment to the centre."""
    beyond: float = 2.0**10
    """How much further than to the end of the clip rays go, of which parts are clipped."""
    entries: int = 30_000_000
    """Of all node values of a batch."""


class Descent:
    """Points on their way towards the centre, each misclassified as its own target; `best` (N, nx) are the nearest, at `distance` (N,)."""

    def __init__(self, graph: Graph, around: Neighbourhood, rows: Tensor, x: Tensor, tuning: NearestTuning) -> None:
        self.tuning, self.graph, self.around, self.rows, self.x = tuning, graph, around, rows, x
        parts = (around.centre, around.weight, around.low, around.high)
        self.centre, self.weight, self.low, self.high = (torch.from_numpy(t).to(x.device, x.dtype) for t in parts)
        self.best, self.distance = x.clone(), x.new_full((len(x),), torch.inf)

    def step(self) -> None:
        """Project the centre onto every point's linearised boundary, and keep what is misclassified nearest to it."""
        gradient, margin = self._linearised()
        projected = self._projected(gradient, (gradient * self.x).sum(1) - margin)
        scales = self.x.new_tensor(self.tuning.scales)
        ray = self._clipped(self.centre + scales[:, None, None] * (projected - self.centre))  # (S, N, nx)
        margins = self._margins(ray)
        inside = margins < 0
        first = torch.where(inside.any(0), inside.to(torch.int8).argmax(0), margins.argmin(0))
        each = torch.arange(len(self.x), device=self.x.device)
        self.x = ray[first, each]
        distance = torch.where(inside.any(0), self._distances(self.x), torch.inf)
        self._keep(self.x, distance)

    def shorten(self) -> None:
        """Bisect the segments between the nearest points and the centre."""
        low, high = torch.zeros_like(self.distance), torch.ones_like(self.distance)
        direction = self.best - self.centre
        for _ in range(self.tuning.halvings // 2):
            middle = 0.5 * (low + high)
            inside = self._margins((self.centre + middle[:, None] * direction)[None])[0] < 0
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        x = self.centre + high[:, None] * direction
        self._keep(x, torch.where(self._margins(x[None])[0] < 0, self._distances(x), torch.inf))

    def _keep(self, x: Tensor, distance: Tensor) -> None:
        nearer = distance < self.distance
        self.best, self.distance = torch.where(nearer[:, None], x, self.best), torch.where(nearer, distance, self.distance)

    def _margins(self, x: Tensor) -> Tensor:
        """(S, N) of points (S, N, nx)."""
        y = evaluate(self.graph, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1)
        return (y * self.rows).sum(2).nan_to_num(nan=torch.inf)

    def _distances(self, x: Tensor) -> Tensor:
        return distances(self.around.ball(0.0), x)

    def _clipped(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.low), self.high)

    @torch.enable_grad()
    def _linearised(self) -> tuple[Tensor, Tensor]:
        x = self.x.detach().requires_grad_()
        margin = (evaluate(self.graph, x) * self.rows).sum(1)
        (gradient,) = torch.autograd.grad(margin.sum(), x)
        return gradient.nan_to_num(), margin.detach()

    def _projected(self, gradient: Tensor, level: Tensor) -> Tensor:
        """The point of the smallest ball at which gradient . x <= level, or of the largest where there is none, (N, nx)."""
        pull = gradient * self.weight
        match self.around.norm:
            case Norm.L1:
                return self._filled(gradient, pull, level)
            case Norm.L2:
                pull = pull / pull.square().sum(1, keepdim=True).sqrt().clamp(min=TINY)
                away, furthest = self.weight * pull, self.tuning.beyond * self.around.reach
            case Norm.LINF:
                away, furthest = self.weight * pull.sign(), self.around.reach
        low, high = torch.zeros_like(level), torch.full_like(level, furthest)
        for _ in range(self.tuning.halvings):
            middle = torch.where(low > 0, (low * high).sqrt(), high * 2.0**-10)
            enough = (gradient * self._clipped(self.centre - middle[:, None] * away)).sum(1) <= level
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return self._clipped(self.centre - high[:, None] * away)

    def _filled(self, gradient: Tensor, pull: Tensor, level: Tensor) -> Tensor:
        """For L1: features that gain most per distance move to their ends, one after the other, until there is enough."""
        order = pull.abs().argsort(dim=1, descending=True)
        end = torch.where(gradient > 0, self.low, self.high).clamp(-self.around.reach, self.around.reach)
        room = torch.where((self.weight > 0) & (gradient != 0), end - self.centre, 0.0)
        gain = (room * gradient).abs().gather(1, order)
        missing = (gradient * self.centre).sum(1, keepdim=True) - level.unsqueeze(1)
        before = gain.cumsum(1) - gain
        share = ((missing - before) / gain.clamp(min=TINY)).clamp(0.0, 1.0).masked_fill(gain == 0, 0.0)
        return self._clipped(self.centre + room * torch.zeros_like(room).scatter(1, order, share))


@torch.no_grad()
def nearest(question: Question, graph: Graph, starts: Array, deadline: Deadline, tuning: NearestTuning = NearestTuning()) -> list[Array]:
    """Candidates (nx,) for counterexamples, the nearest first, one per start and target at most.

    Args:
        graph: that of the question, in the precision and on the device to search in.
        starts: (S, nx), the most valuable first, each for the targets that are largest at the first; fewer of both for large networks.
    """
    most = max(1, tuning.entries // (len(tuning.scales) * graph.entries))
    x = torch.from_numpy(starts).to(graph.device, graph.dtype)
    rows = torch.from_numpy(question.rows).to(graph.device, graph.dtype)
    rows = rows[torch.argsort(rows @ evaluate(graph, x[:1])[0])[: min(tuning.targets, most)]]
    x = x[: max(1, most // len(rows))]
    descent = Descent(graph, question.around, rows.repeat(len(x), 1), x.repeat_interleave(len(rows), 0), tuning)
    for _ in range(tuning.steps):
        if deadline.expired():
            break
        descent.step()
    if not deadline.expired():
        descent.shorten()
    order = torch.argsort(descent.distance)
    return list(descent.best[order][torch.isfinite(descent.distance[order])].double().cpu().numpy())
