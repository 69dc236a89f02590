"""What the tests of the search share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from random_nets import relu_network

from milpverify.config import Deadline
from milpverify.graph import Graph, evaluate
from milpverify.search.solver.leaves import Leaves
from milpverify.spec import Box, Problem


@pytest.fixture(scope="module")
def leaves() -> Iterator[Leaves]:
    """Decides leaves, of the problem that a test gives it, in one process for a module."""
    with Leaves(Problem(relu_network([1, 1], 0), ()), Deadline(300)) as found:
        yield found


@pytest.fixture(scope="session")
def network() -> tuple[Graph, Box, float]:
    """A network that takes the tree seconds and a solver less, with the least margin of `disjunct_of` found by sampling."""
    graph, box = relu_network([6, 24, 24, 3], 5), Box(-np.ones(6), np.ones(6))
    x = torch.rand(20000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    y = evaluate(graph, x).numpy()
    return graph, box, float(np.maximum(y[:, 0] - y[:, 1], y[:, 1] - y[:, 2]).min())
