"""Combined rows: sound for any weights, and no looser than the linear bounds that they combine."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from random_nets import relu_network

from milpverify.enclosure import enclose
from milpverify.search.bounding import bound_batch
from milpverify.search.groups import Group
from milpverify.search.input_split.clip import least
from milpverify.search.input_split.conjunctions import combined, weights
from milpverify.spec import Box, Disjunct, Rows


def _group(seed: int, with_inputs: bool) -> tuple[object, Group]:
    rng = np.random.default_rng(seed)
    graph = relu_network([3, 12, 12, 4], seed)
    x_rows = rng.normal(size=(3, 3)) if with_inputs else np.zeros((3, 3))
    rows = Rows(x_rows, rng.normal(size=(3, 4)), rng.normal(size=3), np.zeros(3, dtype=bool))
    box = Box(-np.ones(3), np.ones(3))
    return graph, Group.of([0], [Disjunct(box, rows, Rows.none(3, 4))], torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_inputs", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_points_respect_the_combination(seed: int, with_inputs: bool, dtype: torch.dtype) -> None:
    graph, group = _group(seed, with_inputs)
    generator = torch.Generator().manual_seed(seed)
    centre = 2 * torch.rand(6, 3, generator=generator, dtype=torch.float64) - 1
    lower, upper = (centre - 0.2).clamp(min=-1), (centre + 0.2).clamp(max=1)
    with torch.no_grad():
        found = bound_batch(graph, group, lower, upper, dtype)
        box = torch.arange(6)
        rows = group.places[torch.zeros(6, dtype=torch.long)]
        minima = found.rows.lower - group.rhs
        value, _ = combined(graph.to(dtype), group, found, box, rows, minima, found.rows.coefficients)
    weight = weights(minima, found.rows.coefficients.double(), found.state[0].deviation)
    assert bool((weight >= 0).all())
    # The best row alone is one of the combinations; the weights come close to the best of all.
    assert bool((value.squeeze(1) >= minima.amax(1) - 0.05 * minima.abs().amax(1)).all())
    for k in range(6):
        points = lower[k] + (upper[k] - lower[k]) * torch.rand(400, 3, generator=generator, dtype=torch.float64)
        low, high = enclose(graph, points)
        residual_high = torch.where(group.y_rows > 0, high.unsqueeze(1) * group.y_rows, low.unsqueeze(1) * group.y_rows).sum(2) - group.rhs
        if group.x_rows is not None:
            residual_high = residual_high + points @ group.x_rows.T
        assert bool(((residual_high * weight[k]).sum(1) + 1e-12 >= value[k]).all())


def test_weights_find_the_combination_that_no_row_is() -> None:
    # max(x, -x) + 0.5 >= 0.5 on [-1, 1]: each row alone reaches -0.5, their mean does not go below 0.5.
    minima = torch.tensor([[-0.5, -0.5]], dtype=torch.float64)
    coefficients = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    weight = weights(minima, coefficients, torch.ones(1, 1, dtype=torch.float64))
    assert weight.tolist() == [[pytest.approx(0.5)] * 2]


def test_least_bounds_rows_between_inputs_exactly() -> None:
    rng = np.random.default_rng(0)
    rows, rhs = torch.tensor(rng.normal(size=(5, 2, 4))), torch.tensor(rng.normal(size=(5, 2)))
    lower = torch.tensor(rng.normal(size=(5, 4)))
    upper = lower + torch.tensor(rng.uniform(0, 2, size=(5, 4)))
    found = least(rows, rhs, lower, upper)
    for b in range(5):
        for r in range(2):
            ends = [
                (low if c > 0 else high, c) for c, low, high in zip(rows[b, r].tolist(), lower[b].tolist(), upper[b].tolist(), strict=True)
            ]
            exact = sum((Fraction(c) * Fraction(e) for e, c in ends), start=-Fraction(float(rhs[b, r])))
            assert Fraction(float(found[b, r])) <= exact <= Fraction(float(found[b, r])) + Fraction(1, 10**12)
