"""What rows depend on: no less than gradients show; and where nothing else is bounded, no bound of theirs changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from product_networks import attention_network, product_network
from random_graphs import Builder, boxes, dense_network, mixed_network, sample
from torch import Tensor
from trees import PLAIN, context_of, grown, neurons_of, root_of

import milpverify as mv
from milpverify.config import SearchOptions
from milpverify.graph import Graph, evaluate, evaluate_all
from milpverify.operators import Affine, Linear
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.interval import propagate
from milpverify.propagation.optimised.alpha import AlphaOptions, alpha_crown, optimise
from milpverify.propagation.optimised.beta import Relaxations
from milpverify.propagation.relevance import EVERYTHING, Needed, needed
from milpverify.propagation.request import BoundRequest
from milpverify.propagation.screening import undecided
from milpverify.propagation.state import State
from milpverify.search.neuron_split.bounder import NeuronTuning
from milpverify.spec import Box, Disjunct, Problem, Rows

DTYPES = [torch.float32, torch.float64]
FIRST = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


def two_halves(function: str, seed: int) -> Graph:
    """Two networks of the same six inputs side by side, with an output each."""
    build = Builder(6, seed)
    for depth in range(3):
        weight = 0.8 * build.normal(10, build.nodes[-1].size)
        if depth:
            weight[:5, 5:] = weight[5:, :5] = 0.0
        build.add(Linear(weight, 0.3 * build.normal(10)), (10,))
        build.apply(function)
    weight = build.normal(2, 10)
    weight[0, 5:] = weight[1, :5] = 0.0
    build.add(Linear(weight, build.normal(2)), (2,))
    return build.graph()


def values_with_gradients(graph: Graph, x: Tensor) -> list[Tensor]:
    values: list[Tensor] = []
    for node in graph.nodes:
        part = Graph((*graph.nodes[: node.id], node), node.id)
        value = x if node.id == 0 else _step(part, values)
        values.append(value.detach().requires_grad_() if node.id == 0 else value)
        if node.id:
            values[-1].retain_grad()
    return values


def _step(part: Graph, values: list[Tensor]) -> Tensor:
    node = part.nodes[-1]
    args = [values[i] for i in node.inputs]
    if isinstance(node.op, Affine):
        return node.op.forward(args).expand(len(args[0]), *node.shape).clone()
    return node.op.function(args[0]) if len(args) == 1 else args[0] * args[1]


GRAPHS = {
    "halves": two_halves("tanh", 0),
    "dense": dense_network((5, 8, 8, 4), "sigmoid", 1),
    "mixed": mixed_network(2),
    "products": product_network(0),
    "attention": attention_network(1),
}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_gradients_reach_only_what_is_needed(graph: Graph) -> None:
    lower, upper = boxes(graph, 40, 2.0, 3)
    for k in range(graph.ny):
        row = torch.zeros(1, graph.ny, dtype=torch.float64)
        row[0, k] = 1.0
        parts = needed(graph, row)
        with torch.enable_grad():
            values = values_with_gradients(graph, torch.lerp(lower, upper, torch.rand(lower.shape, dtype=torch.float64)))
            (values[graph.output] @ row.T).sum().backward()
        for i, value in enumerate(values):
            felt = torch.zeros(graph.nodes[i].size, dtype=torch.bool)
            if value.grad is not None:
                felt = (value.grad.flatten(1) != 0).any(0)
            mine = parts.get(i, torch.ones_like(felt))
            assert not bool((felt & ~mine).any()), i
            assert i not in parts or not bool(mine.all())


def test_halves_need_half() -> None:
    graph = two_halves("tanh", 0)
    parts = needed(graph, FIRST)
    assert sorted(parts) == list(range(1, len(graph.nodes)))
    for i in range(1, len(graph.nodes) - 1):
        assert parts[i].tolist() == [True] * 5 + [False] * 5
    assert not needed(graph, torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64))


def bounded(graph: Graph, ends: tuple[Tensor, Tensor], rows: Tensor, dtype: torch.dtype, parts: Needed) -> tuple[State, Tensor, Tensor]:
    state, table = crown(graph, *ends, dtype, BoundRequest(needed=parts))
    plain = bound_rows(graph.to(dtype), state, table, rows).lower
    state, table = alpha_crown(graph, state, dtype, AlphaOptions(iterations=4), BoundRequest(needed=parts))
    return state, plain, optimise(graph.to(dtype), state, table, rows, AlphaOptions(iterations=4), BoundRequest(needed=parts))[0].lower


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", ["relu", "tanh", "sin", "square"])
def test_rows_are_bounded_as_before(function: str, dtype: torch.dtype) -> None:
    graph = two_halves(function, 3)
    ends = boxes(graph, 4, 0.5, 7)
    rows = FIRST.expand(4, 1, 2)
    parts = needed(graph, FIRST)
    whole, plain, best = bounded(graph, ends, rows, dtype, EVERYTHING)
    state, less_plain, less_best = bounded(graph, ends, rows, dtype, parts)
    near = 1e-3 if dtype is torch.float32 else 1e-9
    assert torch.allclose(plain, less_plain, rtol=near, atol=near)
    assert torch.allclose(best, less_best, rtol=near, atol=near)
    interval, loose = propagate(graph, *ends, dtype), 0
    for z in graph.readers:
        mine = parts[z]
        low, high = state[z].bounds.lower, state[z].bounds.upper
        assert torch.allclose(low[:, mine], whole[z].bounds.lower[:, mine], rtol=near, atol=near)
        assert torch.equal(low[:, ~mine], interval[z].bounds.lower[:, ~mine])
        assert torch.equal(high[:, ~mine], interval[z].bounds.upper[:, ~mine])
        loose += int(undecided(graph, z, state, low, high)[:, ~mine].sum())
    assert loose > 0
    every, some = Relaxations(graph, state), Relaxations(graph, state, needed=parts)
    assert 0 < some.count < every.count
    assert all(bool(parts[z][entries].all()) for z, entries in some.entries.items())


def test_what_has_infinite_bounds_is_bounded_though_nothing_needs_it() -> None:
    build = Builder(3, 0)
    weight, bias = 0.1 * build.normal(4, 3), torch.full((4,), 3.0, dtype=torch.float64)
    build.add(Linear(weight, bias), (4,))
    build.apply("relu")
    again = 0.5 * torch.eye(4, dtype=torch.float64)
    build.add(Linear(torch.cat([again, again])), (8,))
    build.apply("relu")
    # Twice the same, a thousandfold: the difference is 0 for linear bounds, not for intervals.
    build.add(Linear(1e3 * torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1e-3], [1, 1, 1, 1, -1, -1, -1, -1]], dtype=torch.float64)), (2,))
    build.apply("exp")
    graph = build.graph()
    ends = torch.full((1, 3), -1.0, dtype=torch.float64), torch.full((1, 3), 1.0, dtype=torch.float64)
    assert bool(torch.isinf(propagate(graph, *ends)[graph.output].bounds.upper[0, 1]))
    parts = needed(graph, FIRST)
    assert not bool(parts[graph.output][1])
    state, table = crown(graph, *ends, torch.float64, BoundRequest(needed=parts))
    assert float(state[5].bounds.upper[0, 1]) < 1.0
    found = bound_rows(graph, state, table, FIRST.expand(1, 1, 2)).lower
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_bounds_hold_though_what_is_needed_is_left_out(graph: Graph, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(9)
    wrong = {node.id: torch.rand(node.size, generator=random) < 0.5 for node in graph.nodes}
    ends = boxes(graph, 4, 0.4, 7)
    rows = torch.randn(4, 3, graph.ny, generator=random, dtype=torch.float64)
    state, plain, best = bounded(graph, ends, rows, dtype, wrong)
    points = sample(*ends, 400)
    values = [v.reshape(4, 400, -1) for v in evaluate_all(graph, points.flatten(0, 1))]
    for i, value in enumerate(values):
        low, high = (side.flatten(1).unsqueeze(1) for side in (state[i].bounds.lower, state[i].bounds.upper))
        assert bool((low <= value + 1e-12 * (1 + value.abs())).all()) and bool((high >= value - 1e-12 * (1 + value.abs())).all())
    truth = values[graph.output] @ rows.mT
    for found in (plain, best):
        assert bool((found.unsqueeze(1) <= truth + 1e-11 * (1 + truth.abs())).all())


def test_splits_are_spent_on_what_is_needed_alone() -> None:
    graph = two_halves("relu", 5)
    box = Box(np.full(6, -1.0), np.full(6, 1.0))
    corners = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=6)), dtype=torch.float64)
    least = float(evaluate(graph, corners)[:, 0].amin())
    disjunct = Disjunct(box, Rows.on_outputs(np.array([[1.0, 0.0]]), [least - 0.1], 6), Rows.none(6, 2))
    problem = Problem(graph, (disjunct,))
    _, found = root_of(problem)
    space, tree = neurons_of(context_of(problem, options=PLAIN), NeuronTuning(iterations=4))
    grown(tree, space, 100)
    parts, split = needed(graph, FIRST), set()
    for part in (tree.frontier.all(), tree.unsplittable):
        for n in range(len(part)):
            split |= {(space.bounder.slots[slot], index) for slot, index, _, _ in part.literals(n)}
    assert split and all(bool(parts[z][index]) for z, index in split)
    left = [
        undecided(graph, z, found.state, found.state[z].bounds.lower, found.state[z].bounds.upper)[0] & ~parts[z] for z in graph.readers
    ]
    assert sum(int(u.sum()) for u in left) > 5  # that a search over everything might have split
    answer = mv.verify(problem, timeout=120, options=mv.Options(attack=False, search=SearchOptions(oracle=False)))
    assert answer.verdict is mv.Verdict.FALSIFIED and answer.counterexample is not None
    assert float(evaluate(graph, torch.as_tensor(answer.counterexample.x)[None].double())[0, 0]) <= least - 0.1
    deeper = replace(disjunct, unsafe=Rows.on_outputs(np.array([[1.0, 0.0]]), [least - 1.5], 6))
    answer = mv.verify(Problem(graph, (deeper,)), timeout=120, options=mv.Options(search=SearchOptions(oracle=False)))
    assert answer.verdict is mv.Verdict.VERIFIED
