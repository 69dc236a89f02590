"""Bounds by the linear relaxation: as good as the program's optimum, and proved whatever multipliers come back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from product_networks import product_network
from random_nets import random_problem, relu_network
from torch import nn

import milpverify as mv
from milpverify.config import Deadline
from milpverify.encode.curves import Relaxed
from milpverify.encode.encoding import ModelForm
from milpverify.encode.milp import encode_layer
from milpverify.frontends.network import load_network
from milpverify.graph import Graph, evaluate, evaluate_all
from milpverify.linear_relaxation import margin_bound, output_bounds, settled
from milpverify.propagation.crown import crown
from milpverify.propagation.optimised.alpha import optimise
from milpverify.propagation.state import Bounds, NodeState, State, node_ranges
from milpverify.solvers.base import Limits, SolveOutcome, SolverStatus
from milpverify.solvers.process import SolverProcess
from milpverify.spec import Array, Box, Disjunct, Rows


def smooth_network(activation: type[nn.Module], seed: int) -> tuple[Graph, Box]:
    """A small network with doubled weights."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 6), activation(), nn.Linear(6, 6), activation(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight *= 2
    box = Box(np.full(3, -0.8), np.full(3, 0.8))
    return load_network(net, box).graph.to(torch.float64, "cpu"), box


def mixed(seed: int, *names: tuple[str, ...]) -> tuple[Graph, Box]:
    """A random network of piecewise-linear functions."""
    graph, disjunct = random_problem(seed, *names)
    return graph, disjunct.box


CASES: dict[str, Callable[[], tuple[Graph, Box]]] = {
    "tanh": lambda: smooth_network(nn.Tanh, 0),
    "sigmoid": lambda: smooth_network(nn.Sigmoid, 1),
    "gelu": lambda: smooth_network(nn.GELU, 2),
    "relu": lambda: (relu_network([3, 6, 6, 2], 0), Box(np.full(3, -1.0), np.full(3, 1.0))),
    "products": lambda: (product_network(0), Box(np.full(4, -0.5), np.full(4, 0.5))),
    "products, shared": lambda: (product_network(1), Box(np.full(4, -0.5), np.full(4, 0.5))),
    **{f"mixed {seed}": partial(mixed, seed) for seed in (0, 1, 4)},
    "jumps": partial(mixed, 3, ("sign", "step", "floor", "relu")),
}


@pytest.fixture(scope="module")
def highs() -> Iterator[SolverProcess]:
    with SolverProcess("highs") as process:
        yield process


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Graph, Box, State]:
    graph, box = CASES[request.param]()
    with torch.no_grad():
        state, _ = crown(graph, torch.tensor(box.lower)[None], torch.tensor(box.upper)[None], torch.float64)
    return graph, box, state


def sampled(graph: Graph, box: Box, count: int = 4000) -> Array:
    """The outputs of points of a box, its corners among them, (count, ny)."""
    unit = np.random.default_rng(0).random((count, box.size))
    unit[: count // 2] = unit[: count // 2].round()
    x = box.lower + unit * (box.upper - box.lower)
    return evaluate(graph, torch.from_numpy(x)).numpy()


def test_bounds_are_the_optima_of_the_programs_and_never_worse_than_those_of_optimised_slopes(
    case: tuple[Graph, Box, State], highs: SolverProcess
) -> None:
    graph, box, state = case
    with torch.no_grad():
        low, high = output_bounds(graph, state, highs, Deadline())
        unit = torch.eye(graph.ny, dtype=torch.float64)
        _, table = crown(graph, state[0].bounds.lower, state[0].bounds.upper, torch.float64)
    alpha = optimise(graph, state, table, torch.cat([unit, -unit])[None])[0].lower[0].detach().numpy()
    layer = encode_layer(
        graph, node_ranges(settled(graph, state)), box, graph.output, np.arange(graph.ny), form=ModelForm(relaxed=Relaxed())
    )
    assert not layer.binaries
    found = np.concatenate([low, -high])
    optima = [
        highs.solve(layer.task(r, side), Limits(), Deadline()).dual_bound + side * layer.constant[r]
        for side in (1, -1)
        for r in range(graph.ny)
    ]
    size = 1 + np.abs(alpha)
    assert (found >= np.array(optima) - 1e-8 * size).all()
    assert (found >= alpha - 1e-6 * size).all()
    ys = sampled(graph, box)
    assert (low <= ys.min(0) + 1e-9 * size[: graph.ny]).all() and (high >= ys.max(0) - 1e-9 * size[: graph.ny]).all()


class Liar(SolverProcess):
    """A solver whose multipliers are changed on the way."""

    def __init__(self, honest: SolverProcess, change: Callable[[Array], Array]) -> None:
        super().__init__("highs")
        self.honest, self.change = honest, change

    def solve(self, *args: object) -> SolveOutcome:  # type: ignore[override]
        outcome = self.honest.solve(*args)  # type: ignore[call-overload]
        assert outcome.multipliers is not None
        return SolveOutcome(SolverStatus.OPTIMAL, multipliers=self.change(outcome.multipliers), dual_bound=1e9)


RNG = np.random.default_rng(0)
LIES: dict[str, Callable[[Array], Array]] = {
    "flipped": lambda m: -m,
    "some flipped": lambda m: m * RNG.choice([-1.0, 1.0], m.shape),
    "scaled": lambda m: 1e6 * m,
    "some scaled": lambda m: m * RNG.choice([1.0, 1e6], m.shape),
    "NaN": lambda m: np.full_like(m, math.nan),
    "some infinite": lambda m: np.where(RNG.random(m.shape) < 0.2, RNG.choice([math.nan, math.inf, -math.inf, 1e300], m.shape), m),
    "random": lambda m: RNG.normal(0.0, 10.0, m.shape),
}


@pytest.mark.parametrize("lie", LIES)
def test_no_multipliers_give_a_wrong_bound(case: tuple[Graph, Box, State], highs: SolverProcess, lie: str) -> None:
    graph, box, state = case
    with torch.no_grad():
        low, high = output_bounds(graph, state, Liar(highs, LIES[lie]), Deadline())
    ys = sampled(graph, box)
    size = 1e-12 * (1 + np.abs(ys).max())
    assert (low <= ys.min(0) + size).all() and (high >= ys.max(0) - size).all()


@pytest.mark.parametrize("lie", [None, *LIES])
def test_margins_hold_where_decisions_and_domain_rows_do(case: tuple[Graph, Box, State], highs: SolverProcess, lie: str | None) -> None:
    graph, box, state = case
    process = highs if lie is None else Liar(highs, LIES[lie])
    node = graph.nodes[graph.nonlinear[-1]].inputs[0]
    bounds = state[node].bounds
    middle = float(0.5 * (bounds.lower + bounds.upper).flatten()[0])
    domain = Rows(np.ones((1, graph.nx)), np.zeros((1, graph.ny)), np.array([float((box.lower + box.upper).sum() / 2)]), np.array([False]))
    rows = np.vstack([np.ones(graph.ny), np.arange(graph.ny) - 0.5])
    disjunct = Disjunct(box, Rows(np.zeros((2, graph.nx)), rows, np.array([0.1, -0.2]), np.zeros(2, dtype=bool)), domain)
    unit = np.random.default_rng(1).random((4000, box.size))
    x = box.lower + unit * (box.upper - box.lower)
    values = [v.numpy().reshape(len(x), -1) for v in evaluate_all(graph, torch.from_numpy(x))]
    inside = x.sum(1) <= domain.rhs[0]
    margins = (values[graph.output] @ rows.T - disjunct.unsafe.rhs).max(1)
    for side in (1.0, -1.0):
        some = inside & (side * (values[node][:, 0] - middle) >= 0)
        clamped = dict(state)
        low, high = (t.clone() for t in (bounds.lower, bounds.upper))
        (low if side > 0 else high).flatten()[0] = middle
        clamped[node] = NodeState(Bounds(low, high), state[node].center, state[node].charge)
        for known in (state, clamped):
            with torch.no_grad():
                found = margin_bound(graph, known, disjunct, ((node, 0, side, middle),), process, Deadline())
            if some.any():
                assert found <= margins[some].min() + 1e-12 * (1 + np.abs(values[graph.output]).max())
                assert lie is not None or found > -math.inf


def test_decisions_that_exclude_each_other_leave_nothing(highs: SolverProcess) -> None:
    graph, box = smooth_network(nn.Tanh, 0)
    with torch.no_grad():
        state, _ = crown(graph, torch.tensor(box.lower)[None], torch.tensor(box.upper)[None], torch.float64)
        disjunct = Disjunct(box, Rows.on_outputs([[1.0, 0.0]], [0.0], 3), Rows.none(3, 2))
        node = graph.nodes[graph.nonlinear[0]].inputs[0]
        wide = [(node, 0, 1.0, 0.2), (node, 0, -1.0, 0.1)]
        assert margin_bound(graph, state, disjunct, tuple(wide), highs, Deadline()) == math.inf
        assert -math.inf < margin_bound(graph, state, disjunct, (wide[0],), highs, Deadline()) < 0


def test_what_there_is_no_time_for_keeps_the_bounds_of_crown() -> None:
    graph, box = smooth_network(nn.Tanh, 0)
    late, crown_, lp = (mv.bounds(graph, box, method, timeout=t).output for method, t in (("lp", 0.0), ("crown", None), ("lp", None)))
    assert torch.equal(late.lower, crown_.lower) and torch.equal(late.upper, crown_.upper)
    assert (lp.lower > crown_.lower).all() and (lp.upper < crown_.upper).all()
