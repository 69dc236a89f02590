"""Layers whose rows are dear are tried by a sample first where forward forms have bounded them; what is left out keeps bounds that hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_nets import relu_network

from milpverify.graph import evaluate_all
from milpverify.propagation.crown import crown
from milpverify.propagation.forward import Carried, forward
from milpverify.propagation.request import BoundRequest, BoundTuning, CostTuning

DTYPE = torch.float32


@pytest.mark.parametrize("gains", [0.0, 2.0])
def test_a_sample_decides_about_the_rest(gains: float) -> None:
    request = BoundRequest(tuning=BoundTuning(sample=4, dear=0.0, gains=gains), cost=CostTuning(cheap=0.0))
    graph = relu_network([3, 40, 40, 40, 2], seed=1)
    lower, upper = torch.full((2, 3), -1.0, dtype=torch.float64), torch.tensor([[1.0] * 3, [0.5] * 3], dtype=torch.float64)
    cheap, _ = forward(graph, lower, upper, DTYPE)
    whole, _ = crown(graph, lower, upper, DTYPE, request, Carried(graph, lower, upper, DTYPE))
    points = lower.unsqueeze(1) + torch.rand(2, 500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * (
        upper - lower
    ).unsqueeze(1)
    for box in range(2):
        for node, values in enumerate(evaluate_all(graph, points[box])):
            bounds = whole[node].bounds
            assert bool((values >= bounds.lower[box]).all()) and bool((values <= bounds.upper[box]).all())
    better = [int((whole[z].bounds.width < 0.999 * cheap[z].bounds.width).sum()) for z in graph.readers]
    size = [whole[z].bounds.width.numel() for z in graph.readers]
    assert better[2] > 0.5 * size[2] if gains == 0.0 else 0 < better[1] < 0.5 * size[1], (better, np.array(size))
