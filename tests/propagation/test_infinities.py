"""Softmax of logits far apart, with and without masks: every method bounds it, no bound is NaN, and rows lose nothing to zeros."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from milpverify.frontends.torch.trace import lower_module
from milpverify.graph import Graph, evaluate_all
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.forward import Carried, forward
from milpverify.propagation.interval import propagate
from milpverify.propagation.optimised.alpha import AlphaOptions, alpha_crown
from milpverify.propagation.row_intervals import RowIntervals
from milpverify.propagation.second_order import SecondOrder
from milpverify.propagation.state import State

LENGTH, WIDTH, INPUTS = 4, 3, 2
MASKS = (0.0, -1e4, -1e9, float(np.finfo(np.float32).min), -math.inf)


class Attention(nn.Module):
    """Causal attention over a sequence that few inputs make, with scores of any size."""

    def __init__(self, scale: float, mask: float, log: bool) -> None:
        super().__init__()
        self.make, self.scale, self.log = nn.Linear(INPUTS, 3 * LENGTH * WIDTH), scale, log
        self.register_buffer("mask", torch.zeros(LENGTH, LENGTH).masked_fill(torch.ones(LENGTH, LENGTH).triu(1) > 0, mask))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.make(x).reshape(-1, 3, LENGTH, WIDTH).unbind(1)
        scores = self.scale * (q @ k.mT) + self.mask
        if self.log:
            return scores.log_softmax(-1)[..., 0]  # which no mask hides
        return scores.softmax(-1) @ v


def network(scale: float, mask: float, log: bool, seed: int) -> tuple[Graph, Attention]:
    torch.manual_seed(seed)
    module = Attention(scale, mask, log).eval()
    return lower_module(module, (1, INPUTS), torch.float32), module.double()


def boxes(seed: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    centre, radius = torch.from_numpy(random.uniform(-1, 1, (3, INPUTS))), torch.tensor([[1.0], [0.1], [1e-3]])
    return centre - radius, centre + radius


def contains(graph: Graph, state: State, values: list[Tensor]) -> None:
    for node in graph.nodes:
        low, high = state[node.id].bounds.lower.unsqueeze(1), state[node.id].bounds.upper.unsqueeze(1)
        assert not bool(low.isnan().any() or high.isnan().any()), node
        value = values[node.id].reshape(len(low), -1, *node.shape)
        slack = 1e-9 * (1 + value.abs())
        finite = value.isfinite()
        assert bool(((low <= value + slack) & (value - slack <= high))[finite].all()), node


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("log", [False, True])
def test_every_method_bounds_softmax_of_any_logits(scale: float, mask: float, log: bool) -> None:
    graph, module = network(scale, mask, log, 0)
    lower, upper = boxes(1)
    random = np.random.default_rng(2)
    inside = lower.unsqueeze(1) + torch.from_numpy(random.uniform(0, 1, (3, 60, INPUTS))) * (upper - lower).unsqueeze(1)
    values = evaluate_all(graph, inside.reshape(-1, INPUTS))
    rows = torch.from_numpy(random.normal(size=(3, 2 * graph.ny, graph.ny)))
    rows[:, : graph.ny] = torch.eye(graph.ny)
    with torch.no_grad():  # the graph's own values may overflow
        outputs = module(inside.reshape(-1, INPUTS)).reshape(3, -1, graph.ny)
    truth = torch.einsum("brn,bsn->brs", rows, outputs).amin(2)
    contains(graph, propagate(graph, lower, upper), values)
    for dtype in (torch.float32, torch.float64):
        fast = graph.to(dtype, graph.device)
        for state, table in (
            forward(graph, lower, upper, dtype),
            crown(graph, lower, upper, dtype),
            crown(graph, lower, upper, dtype, carried=Carried(graph, lower, upper, dtype)),
        ):
            contains(graph, state, values)
            found = [bound_rows(fast, state, table, rows).lower, SecondOrder(graph, state, table, dtype).bound(rows)[0].lower]
            found.append(RowIntervals.of(graph, rows[0]).lower(state)[:1])
            for bound in found:
                assert not bool(bound.isnan().any())
                assert bool((bound <= truth[: len(bound)] + 1e-9 * (1 + truth[: len(bound)].abs())).all())
            if not log:  # whatever the logits, the first and the last row of attention lie within the values
                assert bool(found[0].isfinite().all())


@pytest.mark.parametrize("mask", MASKS)
def test_optimised_slopes_survive_infinite_lines(mask: float) -> None:
    graph, _ = network(100.0, mask, False, 3)
    lower, upper = boxes(4)
    state, _ = crown(graph, lower, upper, torch.float32)
    better, _ = alpha_crown(graph, state, torch.float32, AlphaOptions(iterations=3))
    contains(graph, better, evaluate_all(graph, lower))


def test_a_row_that_needs_no_infinite_end_is_bounded() -> None:
    """log p <= 0 of one class, whatever another's lower end; and the probability of a masked entry next to nothing."""
    graph, _ = network(1e4, 0.0, True, 5)
    lower, upper = torch.full((1, INPUTS), -1.0, dtype=torch.float64), torch.full((1, INPUTS), 1.0, dtype=torch.float64)
    rows = -torch.eye(graph.ny, dtype=torch.float64).unsqueeze(0)
    state, _ = crown(graph, lower, upper)
    assert bool((RowIntervals.of(graph, rows[0]).lower(state) > -1e-6).all())
