"""Numbers that single precision holds badly or not at all: no bound may rest on what underflows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from product_networks import Grower

import milpverify as mv


@pytest.mark.parametrize("method", ["crown", "alpha-crown"])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(("reach", "weight"), [(1e38, 1e-9), (1e36, 1e-9), (1e30, 1e-15)])
def test_slopes_that_vanish_on_huge_intervals_are_charged_for(method: str, twice: bool, reach: float, weight: float) -> None:
    g = Grower(1, 0)
    y = g.call("atan", g.nodes[0])
    graph = g.finished(g.sum([g.scale(y, 2 * weight), g.scale(y, -weight)]) if twice else g.scale(y, weight))
    found = mv.bounds(graph, mv.Box(np.array([-0.7 * reach]), np.array([reach])), method, torch.float32).output
    low, high = found.lower.item(), found.upper.item()
    assert low <= weight * math.atan(-0.7 * reach) * (1 - 1e-12) and high >= weight * math.atan(reach) * (1 - 1e-12)
