"""Leaves in rationals: a bound is exact only where every neuron that matters is on one piece."""

from __future__ import annotations

import numpy as np
import torch
from random_nets import Stack, function

from milpverify.bounds.crown import crown
from milpverify.config import Deadline
from milpverify.operators import Elementwise, Linear
from milpverify.search.lp_leaf import Leaves, _Leaf
from milpverify.spec import Box, Disjunct, Problem, Rows


def test_a_neuron_on_two_pieces_has_no_exact_bound_unless_nothing_depends_on_it() -> None:
    stack = Stack(2)
    stack.add(Linear(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)), 0, size=2)
    stack.add(Elementwise(function("relu")), 1, size=2)
    graph, box = stack.graph(), Box(np.array([-1.0, 0.25]), np.array([1.0, 1.0]))
    with torch.no_grad():
        state, _ = crown(graph, torch.tensor(box.lower)[None], torch.tensor(box.upper)[None], torch.float64)
    for output, exact in ((0, None), (1, -0.5)):
        row = -np.eye(2)[[output]]  # unsafe: relu(x) >= 0.5; on the first piece of the first neuron, that cannot be
        disjunct = Disjunct(box, Rows.on_outputs(row, [-0.5], 2), Rows.none(2, 2))
        with Leaves(Problem(graph, (disjunct,)), Deadline(60)) as leaves, torch.no_grad():
            leaf = _Leaf(graph, disjunct, state, ())
            assert leaf.exact_bound(leaves._solve(leaf.model(elastic=False)), elastic=False) == exact
