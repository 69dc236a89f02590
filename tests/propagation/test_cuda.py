"""CPU and CUDA agree within the closing margins; and where there is no GPU: no tensor is made on another device than the graph's."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from product_networks import attention_network, product_network
from random_graphs import FUNCTIONS, boxes, dense_network, mixed_network, sample
from random_nets import relu_network
from torch import Tensor
from trees import EVERYTHING, PLAIN, context_of, grown

import milpverify as mv
from milpverify.arithmetic.rounding import ieee
from milpverify.config import Deadline
from milpverify.graph import Graph, evaluate_all
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.optimised.alpha import AlphaOptions, alpha_crown
from milpverify.propagation.request import BoundRequest
from milpverify.propagation.state import State
from milpverify.search.bounding import bound_batch, refine
from milpverify.search.choose_space import SpaceTuning
from milpverify.search.groups import Group, GroupTuning, groups
from milpverify.search.input_split.space import BoxSpace
from milpverify.search.neuron_split.bounder import Bounder, NeuronTuning
from milpverify.search.neuron_split.branching import children
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.spec import Box, Disjunct, Problem, Rows

GRAPHS = [dense_network((5, 12, 12, 12, 3), f, k) for k, f in enumerate(FUNCTIONS)] + [mixed_network(seed) for seed in range(4)]
GRAPHS += [product_network(0), product_network(1), attention_network(0, sharp=0.3)]
CLOSE = {torch.float32: 2e-3, torch.float64: 1e-9}
"""Between devices, of the width of a node's bounds: each is rigorous, they differ by their own rounding charges."""
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.fixture(autouse=True)
def _as_in_a_run() -> Iterator[None]:
    with torch.no_grad(), ieee():
        yield


def problem(nx: int = 6, slack: float = 0.0, seed: int = 3) -> Problem:
    """A conjunction and a single row over one box; the unsafe set is `slack` below what sampling sees."""
    graph, box = relu_network([nx, 16, 16, 2], seed), Box(np.full(nx, -0.6), np.full(nx, 0.6))
    x = torch.rand(20_000, nx, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.2 - 0.6
    y = evaluate_all(graph, x)[-1]
    low = float((y[:, 0] - y[:, 1]).min()) - slack
    rows = Rows.on_outputs([[1.0, -1.0], [1.0, 0.0]], [low, 100.0], nx), Rows.on_outputs([[1.0, -1.0]], [low], nx)
    return Problem(graph, tuple(Disjunct(box, r, Rows.none(nx, 2)) for r in rows))


def on(device: str, made: Problem) -> tuple[Graph, Group, Tensor, Tensor]:
    """The graph, the group and the ends of the box on a device."""
    (group,) = groups(made, device)
    lower, upper = (torch.tensor(side, device=device)[None] for side in (group.box.lower, group.box.upper))
    return made.graph.to(torch.float64, device), group, lower, upper


def apart(mine: State, theirs: State) -> float:
    """The largest difference of two states' bounds, in units of the width of a node's."""
    worst = 0.0
    for i, node in mine.items():
        scale = node.bounds.width.flatten(1).amax(1).clamp(min=1e-6)
        for a, b in ((node.bounds.lower, theirs[i].bounds.lower), (node.bounds.upper, theirs[i].bounds.upper)):
            worst = max(worst, float(((a - b.cpu()).flatten(1).abs().amax(1) / scale).max()))
    return worst


# -- on a GPU -----------------------------------------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("graph", GRAPHS, ids=map(str, range(len(GRAPHS))))
def test_crown_and_alpha_agree_and_hold(graph: Graph, dtype: torch.dtype) -> None:
    lower, upper = boxes(graph, 5, 0.3, 7)
    there, ends = graph.to(torch.float64, "cuda"), (lower.cuda(), upper.cuda())
    mine, theirs = crown(graph, lower, upper, dtype), crown(there, *ends, dtype)
    assert apart(mine[0], theirs[0]) < CLOSE[dtype]
    options = AlphaOptions(5)
    refined = alpha_crown(graph, mine[0], dtype, options, BoundRequest(deadline=Deadline()))
    again = alpha_crown(there, theirs[0], dtype, options, BoundRequest(deadline=Deadline()))
    # A gradient step may turn on the last bit: optimised bounds agree less, and must still hold.
    assert apart(refined[0], again[0]) < 0.05
    points = sample(lower, upper, 200)
    for i, value in enumerate(evaluate_all(graph, points.flatten(0, 1))):
        value = value.reshape(*points.shape[:2], *value.shape[1:])
        size = 1e-12 * (1 + value.abs())
        assert (again[0][i].bounds.lower.cpu().unsqueeze(1) <= value + size).all()
        assert (again[0][i].bounds.upper.cpu().unsqueeze(1) >= value - size).all()


@gpu
def test_beta_agrees_and_holds() -> None:
    """Bounds of subproblems with the same splits, with the root's multipliers and after some steps of the optimiser."""
    made = problem(slack=0.5)
    bounds = []
    for device in ("cpu", "cuda"):
        graph, group, lower, upper = on(device, made)
        bounder = Bounder(
            graph, group, bound_batch(graph, group, lower, upper, torch.float64).state, Deadline(), NeuronTuning(candidates=1)
        )
        root, domain, _ = bounder.bound(bounder.first(), 0)
        if device == "cpu":
            widest = (domain.high - domain.low).argmax(1)
        both = children(bounder, root, widest.to(device))
        bounds.append([bounder.bound(both, iterations)[0].bound.cpu() for iterations in (0, 10)])
    for mine, theirs, close in zip(*bounds, (CLOSE[torch.float32], 0.05), strict=True):
        assert float(((mine - theirs).abs() / mine.abs().clamp(min=1.0)).max()) < close


@gpu
@pytest.mark.parametrize("kind", ["inputs", "neurons", "trial"])
@pytest.mark.parametrize("slack", [0.3, -0.05])
def test_whole_searches_agree(kind: str, slack: float) -> None:
    few, many = {"inputs": (99, 99), "neurons": (-1, -1), "trial": (-1, 99)}[kind]
    search = mv.SearchOptions(tuning=(GroupTuning(few_inputs=few), SpaceTuning(few=few, many=many)))
    made = problem(slack=slack)
    results = [mv.verify(made, 120, options=mv.Options(device=device, attack=False, search=search)) for device in ("cpu", "cuda")]
    assert {r.verdict for r in results} == {mv.Verdict.VERIFIED if slack > 0 else mv.Verdict.FALSIFIED}
    for result in results:
        assert math.isfinite(result.lower_bound) and result.lower_bound <= abs(slack) + 1e-6


# -- without one --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("graph", GRAPHS, ids=map(str, range(len(GRAPHS))))
def test_bounds_make_their_tensors_where_the_graph_is(graph: Graph, dtype: torch.dtype) -> None:
    """Tensors made without a device would land on another one here, and could not be combined with the graph's."""
    lower, upper = boxes(graph, 5, 0.3, 7)
    rows = torch.randn(5, 4, graph.ny, dtype=torch.float64)
    with torch.device("meta"):
        state, table = crown(graph, lower, upper, dtype)
        state, table = alpha_crown(graph, state, dtype, AlphaOptions(3), BoundRequest(deadline=Deadline()))
        found = bound_rows(graph.to(dtype), state, table, rows)
    assert {t.device.type for t in (found.lower, found.coefficients, found.constant)} == {"cpu"}


@pytest.mark.parametrize("single", [True, False])
def test_searches_make_their_tensors_where_the_graph_is(single: bool) -> None:
    graph, group, lower, upper = on("cpu", problem(12))
    slack = -0.6 * float(bound_batch(graph, group, lower, upper, torch.float64).margins.amin())  # of the first bound, which is too low
    made = problem(12, slack)
    made = Problem(made.graph, made.disjuncts[1:] if single else made.disjuncts)
    graph, group, lower, upper = on("cpu", made)
    with torch.device("meta"):
        root = bound_batch(graph, group, lower, upper, torch.float32)
        neurons = [NeuronSpace(context_of(made, options=options), group, root.state) for options in (PLAIN, EVERYTHING)]
        for space, limit in ((neurons[0], 60), (neurons[1], 60), (BoxSpace(context_of(made), group), 300)):
            assert grown(space.tree(), space, limit).detail["subproblems"] >= 5
        assert refine(graph, group, root, BoundRequest(), GroupTuning(slopes=3)).margins.device.type == "cpu"
