"""beta-CROWN: slopes and multipliers of split constraints optimised together (arXiv 2103.06624).

Any slopes and any multipliers >= 0 give a sound bound, so nothing depends on the optimiser: the best bound seen is kept per row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.bounds import relaxation
from milpverify.bounds.alpha import AlphaOptions, Slopes
from milpverify.bounds.backward import LineTable, SplitTable, lines
from milpverify.bounds.crown import bound_rows
from milpverify.bounds.state import LinearBound, State
from milpverify.operators import Elementwise

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.graph import Graph

BETA_STEP = 0.2
"""The optimiser's step for multipliers, as a share of that for slopes."""


@dataclass(frozen=True, eq=False)
class Multipliers:
    """The parameters of a bound: slopes per nonlinear node, and the split constraints with their multipliers."""

    slopes: Slopes
    splits: SplitTable


@dataclass(eq=False)
class _Free:
    """The slopes of one node under optimisation; where the relaxation is exact they are the function's own."""

    low: Tensor
    high: Tensor
    fixed: Tensor
    own: Tensor
    span: tuple[float, float]

    def slopes(self) -> tuple[Tensor, Tensor]:
        return torch.where(self.fixed, self.own, self.low), torch.where(self.fixed, self.own, self.high)

    def parameters(self) -> list[Tensor]:
        return [k for k in (self.low, self.high) if k.requires_grad]


def relaxed(graph: Graph, state: State, multipliers: Multipliers) -> LineTable:
    """The lines that some slopes give on a state (exact relaxations keep the function's own slopes)."""
    free = _free(graph, state, multipliers)
    return {i: lines(graph, i, state, graph.dtype, *f.slopes()) for i, f in free.items()}


def optimise(
    graph: Graph,
    state: State,
    rows: Tensor,
    start: Multipliers,
    options: AlphaOptions,
    x_rows: Tensor | None = None,
    stop_above: Tensor | None = None,
    deadline: Deadline | None = None,
) -> tuple[LinearBound, Multipliers]:
    """Lower bounds of `rows . y + x_rows . x` where the split constraints hold, and the multipliers that give them.

    Args:
        graph: in the precision of the matrices.
        state: with the split pre-activations' bounds clamped.
        rows: (batch, r, ny) float64.
        start: slopes (batch, r, *shape) and multipliers to start from.
        stop_above: (batch, r) float64: stop once every box has a row above it.
    """
    free = _free(graph, state, start)
    betas = {i: s.beta.detach().clone().requires_grad_() for i, s in start.splits.items()}
    slopes = [p for f in free.values() for p in f.parameters()]
    groups = [{"params": slopes, "lr": options.step}, {"params": list(betas.values()), "lr": BETA_STEP * options.step}]
    optimiser = torch.optim.Adam([g for g in groups if g["params"]] or [{"params": [torch.zeros(1)]}])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, options.decay)
    best: LinearBound | None = None
    kept = start
    for iteration in range(options.iterations + 1):
        last = iteration == options.iterations
        with torch.set_grad_enabled(not last):
            table = {i: lines(graph, i, state, graph.dtype, *f.slopes()) for i, f in free.items()}
            splits = {i: replace(s, beta=betas[i]) for i, s in start.splits.items()}
            found = bound_rows(graph, state, table, rows, x_rows=x_rows, splits=splits)
            loss = -torch.where(torch.isfinite(found.lower), found.lower, 0.0).sum()
        best, kept = _keep_better(best, found, kept, free, splits)
        if (
            last
            or not loss.requires_grad
            or (deadline is not None and deadline.expired())
            or (stop_above is not None and bool((best.lower > stop_above).any(1).all()))
        ):
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for f in free.values():
                for k in f.parameters():
                    k.clamp_(*f.span)
            for beta in betas.values():
                beta.clamp_(min=0.0)
    assert best is not None
    return best, kept


def _free(graph: Graph, state: State, start: Multipliers) -> dict[int, _Free]:
    free = {}
    for i, (low, high) in start.slopes.items():
        op = graph.nodes[i].op
        assert isinstance(op, Elementwise)
        bounds = state[graph.nodes[i].inputs[0]].bounds
        fixed = relaxation.is_exact(op.function, bounds.lower, bounds.upper)
        own_low, own_high = (k.to(low.dtype).unsqueeze(1) for k in relaxation.default_slopes(op.function, bounds.lower, bounds.upper))
        below, above = relaxation.slopes_matter(op.function)
        # Where one chord is the whole envelope on a side, its slope follows the bounds.
        low = low.detach().clone().requires_grad_() if below else own_low.expand_as(low)
        high = high.detach().clone().requires_grad_() if above else own_high.expand_as(high)
        free[i] = _Free(low, high, fixed.unsqueeze(1), own_low, relaxation.slope_range(op.function))
    return free


def _keep_better(
    best: LinearBound | None, found: LinearBound, kept: Multipliers, free: dict[int, _Free], splits: SplitTable
) -> tuple[LinearBound, Multipliers]:
    found = LinearBound(found.coefficients.detach(), found.constant.detach(), found.lower.detach())
    now = Multipliers(
        {i: (f.low.detach().clone(), f.high.detach().clone()) for i, f in free.items()},
        {i: replace(s, beta=s.beta.detach().clone()) for i, s in splits.items()},
    )
    if best is None:
        return found, now
    better = found.lower > best.lower

    def pick(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(better.reshape(*better.shape, *[1] * (new.dim() - 2)), new, old)

    slopes = {i: (pick(low, kept.slopes[i][0]), pick(high, kept.slopes[i][1])) for i, (low, high) in now.slopes.items()}
    betas = {i: replace(s, beta=pick(s.beta, kept.splits[i].beta)) for i, s in now.splits.items()}
    merged = LinearBound(pick(found.coefficients, best.coefficients), pick(found.constant, best.constant), pick(found.lower, best.lower))
    return merged, Multipliers(slopes, betas)
