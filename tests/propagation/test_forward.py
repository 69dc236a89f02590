"""Forward linear forms: sound in both precisions, exact in rationals where they can be, and cheap to compare with what they replace."""

from __future__ import annotations

from fractions import Fraction
from math import inf
from pathlib import Path

import pytest
import torch
from product_networks import product_network
from random_graphs import FUNCTIONS, Builder, boxes, dense_network, mixed_network, sample

from milpverify.functions.catalogue import Function, catalogue, load_nonlinearity
from milpverify.graph import Graph, evaluate_all
from milpverify.operators import Affine, Elementwise, Linear, Sum
from milpverify.propagation.backward import default_lines
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.forward import Carried, Forms, forward
from milpverify.propagation.interval import propagate, step
from milpverify.propagation.relevance import refinable
from milpverify.propagation.request import BoundRequest
from milpverify.propagation.state import Bounds
from milpverify.relaxations.registry import univariate

PRECISIONS = (torch.float32, torch.float64)


def chained() -> Graph:
    """Functions of functions and of the input, read twice and late."""
    build = Builder(4, 5)
    first = build.apply("abs")
    build.linear(6)
    inner = build.linear(6)
    build.apply("relu")
    build.apply("hard_tanh")
    outer = build.linear(6)
    both = build.add(Sum((1, -1)), (6,), outer, inner)
    build.apply("leaky_relu")
    build.linear(4)
    build.add(Sum((1, 1)), (4,), len(build.nodes) - 1, first)
    build.apply("abs")
    build.linear(3)
    assert both
    return build.graph()


GRAPHS = [dense_network((5, 12, 12, 12, 3), f, k) for k, f in enumerate(FUNCTIONS)] + [mixed_network(s) for s in range(4)] + [chained()]
GRAPHS += [product_network(0), product_network(1)]


pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("graph", GRAPHS, ids=map(str, range(len(GRAPHS))))
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("radius", [0.0, 1e-5, 0.2, 3.0])
def test_10000_samples_lie_within_the_bounds_of_every_node(graph: Graph, dtype: torch.dtype, radius: float) -> None:
    lower, upper = boxes(graph, 5, radius, 7)
    points = sample(lower, upper, 2000)
    values = evaluate_all(graph, points.flatten(0, 1))
    state, table = forward(graph, lower, upper, dtype)
    both, _ = crown(graph, lower, upper, dtype, carried=Carried(graph, lower, upper, dtype))
    assert set(table) == set(graph.nonlinear)
    for known in (state, both):
        for i, value in enumerate(values):
            value = value.reshape(*points.shape[:2], *value.shape[1:])
            size = 1e-12 * (1 + value.abs())  # of the evaluation itself, which rounds too
            assert (known[i].bounds.lower.unsqueeze(1) <= value + size).all()
            assert (known[i].bounds.upper.unsqueeze(1) >= value - size).all()


def written(term: str, folder: Path) -> Function:
    """A function of one's own that jumps at 0."""
    path = folder / "jumping.toml"
    path.write_text(f'name = "jumping"\nterm = "{term}"\njumps = ["0"]\nonnx = []\ntorch = []\n')
    return load_nonlinearity(path).trial()


@pytest.mark.parametrize("term", ["(* -1 (sign x))", "(- x (sign x))"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_forms_hold_where_a_function_that_rises_elsewhere_falls_in_a_jump(term: str, dtype: torch.dtype, tmp_path: Path) -> None:
    function = written(term, tmp_path)
    for seed in range(12):
        build = Builder(2, seed)
        for size, apply in ((4, "relu"), (4, function), (3, "relu"), (2, None)):
            build.linear(size)
            if isinstance(apply, Function):
                build.add(Elementwise(apply), (size,))
            elif apply:
                build.apply(apply)
        graph = build.graph()
        lower, upper = -torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
        values = evaluate_all(graph, sample(lower, upper, 5000).flatten(0, 1))
        carried = crown(graph, lower, upper, dtype, carried=Carried(graph, lower, upper, dtype))[0]
        for state in (forward(graph, lower, upper, dtype)[0], carried):
            for i, value in enumerate(values):
                slack = 1e-12 * (1 + value.abs())
                assert (state[i].bounds.lower <= value + slack).all() and (state[i].bounds.upper >= value - slack).all()


@pytest.mark.parametrize(("term", "span"), [("(sign x)", (0, inf)), ("(* -1 (sign x))", (-inf, 0)), ("(- x (sign x))", (-inf, 1))])
def test_across_a_jump_any_slope_of_its_direction_is_useful(term: str, span: tuple[float, float], tmp_path: Path) -> None:
    assert univariate(written(term, tmp_path)).span == span


@pytest.mark.parametrize("graph", GRAPHS, ids=map(str, range(len(GRAPHS))))
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_forms_hold_at_every_sample(graph: Graph, dtype: torch.dtype) -> None:
    """Not only the bounds: each form by itself is above or below the node, at every point."""
    lower, upper = boxes(graph, 4, 0.3, 3)
    points = sample(lower, upper, 300)
    values = evaluate_all(graph, points.flatten(0, 1))
    carried, state, table = Carried(graph, lower, upper, dtype), {}, {}
    seen = 0
    reference, lines = forward(graph, lower, upper, dtype)
    for node in graph.nodes:
        state[node.id] = step(graph, node, state, lower, upper, graph.to(dtype))
        state[node.id] = carried.step(node, state, table)
        assert (state[node.id].bounds.lower == reference[node.id].bounds.lower).all()
        if node.id in lines:
            table[node.id] = lines[node.id]
        if node.id not in carried.forms:
            continue
        seen += 1
        forms, deviation = carried.forms[node.id], (points - state[0].center.unsqueeze(1))[:, :, carried.varying]
        value = values[node.id].reshape(*points.shape[:2], -1) - state[node.id].center.flatten(1).unsqueeze(1)
        slack = 1e-12 * (1 + values[node.id].reshape(value.shape).abs())
        low = deviation @ forms.lower.double().flatten(2) + forms.b_lower.flatten(1).unsqueeze(1)
        high = deviation @ forms.upper.double().flatten(2) + forms.b_upper.flatten(1).unsqueeze(1)
        assert (low <= value + slack).all() and (high >= value - slack).all()
    assert seen >= sum(isinstance(n.op, Affine) for n in refinable(graph)) and len(carried.forms) <= 4


@pytest.mark.parametrize("graph", GRAPHS, ids=map(str, range(len(GRAPHS))))
@pytest.mark.parametrize(("inner", "forms"), [(torch.float64, torch.float32), (torch.float64, torch.float64), (None, torch.float64)])
def test_forms_in_another_precision_than_the_backward_passes_hold(graph: Graph, inner: torch.dtype | None, forms: torch.dtype) -> None:
    lower, upper = boxes(graph, 5, 0.2, 7)
    points = sample(lower, upper, 500)
    state, _ = crown(graph, lower, upper, torch.float32, BoundRequest(inner=inner), carried=Carried(graph, lower, upper, forms))
    wide, _ = crown(graph, lower, upper, torch.float64, carried=Carried(graph, lower, upper, torch.float64))
    for i, value in enumerate(evaluate_all(graph, points.flatten(0, 1))):
        value = value.reshape(*points.shape[:2], *value.shape[1:])
        size = 1e-12 * (1 + value.abs())
        known, other = state[i].bounds, wide[i].bounds
        assert (known.lower.unsqueeze(1) <= value + size).all() and (known.upper.unsqueeze(1) >= value - size).all()
        near = 1e-4 * (1 + other.width)
        assert (known.lower >= other.lower - near).all() and (known.upper <= other.upper + near).all()


def exact_values(graph: Graph, lower: list[Fraction], upper: list[Fraction], point: list[Fraction]) -> list[list[Fraction]]:
    """The values of every node of a dense ReLU network at a point, in rationals."""
    values = [point]
    for node in graph.nodes[1:]:
        if isinstance(node.op, Linear):
            assert node.op.bias is not None
            rows = [[Fraction(w) for w in row] for row in node.op.weight.tolist()]
            bias = [Fraction(b) for b in node.op.bias.tolist()]
            values.append([sum((w * x for w, x in zip(row, values[-1], strict=True)), b) for row, b in zip(rows, bias, strict=True)])
        else:
            values.append([max(x, Fraction(0)) for x in values[-1]])
    assert all(a <= x <= b for a, x, b in zip(lower, point, upper, strict=True))
    return values


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("radius", [0.0, 2.0**-40, 2.0**-10, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_no_rational_point_is_outside_by_any_amount(dtype: torch.dtype, radius: float, seed: int) -> None:
    """Without slack: where every neuron is stable the forms are tight to the last bits, so that a missing charge would show."""
    graph = dense_network((3, 6, 6, 6, 2), "relu", seed)
    random = torch.Generator().manual_seed(seed)
    centre = torch.randn(1, 3, generator=random, dtype=torch.float64) * 100
    lower, upper = centre - radius, centre + radius
    found: list[tuple[int, Bounds]] = []
    carried, state, table = Carried(graph, lower, upper, dtype), {}, {}
    for node in graph.nodes:
        state[node.id] = step(graph, node, state, lower, upper, graph.to(dtype))
        state[node.id] = carried.step(node, state, table)
        if node.id in graph.nonlinear:
            table[node.id] = default_lines(graph, node.id, state, dtype)
        found.append((node.id, state[node.id].bounds))
        if node.id in carried.forms:  # by themselves, not met with intervals
            found.append((node.id, carried.forms[node.id].bounds(state[node.id].center)))
    low, high = ([Fraction(v) for v in side[0].tolist()] for side in (lower, upper))
    for corner in range(8):
        point = [b if corner >> i & 1 else a for i, (a, b) in enumerate(zip(low, high, strict=True))]
        values = exact_values(graph, low, high, point)
        for i, bounds in found:
            for v, a, b in zip(values[i], bounds.lower[0].tolist(), bounds.upper[0].tolist(), strict=True):
                assert Fraction(a) <= v <= Fraction(b)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_with_stable_neurons_the_bounds_are_exact_but_for_rounding(dtype: torch.dtype) -> None:
    graph = dense_network((4, 10, 10, 10, 2), "relu", 1)
    lower, upper = boxes(graph, 6, 1e-4, 2)
    state, _ = forward(graph, lower, upper, dtype)
    exact, table = crown(graph, lower, upper, torch.float64)
    intervals = propagate(graph, lower, upper)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for node in refinable(graph):
        unit = torch.eye(node.size, dtype=torch.float64)
        ends = bound_rows(graph, exact, table, torch.cat([unit, -unit]).expand(6, -1, -1), node.id).lower
        width = -ends[:, node.size :] - ends[:, : node.size]
        assert float(state[node.id].bounds.width.mean()) <= float(width.mean()) * (1 + tolerance) + 1e-12
        assert float(width.mean()) < 0.9 * float(intervals[node.id].bounds.width.mean())


def test_known_bounds_are_used_and_nothing_gets_wider_than_intervals() -> None:
    graph = dense_network((5, 14, 14, 14, 3), "relu", 3)
    lower, upper = boxes(graph, 8, 0.5, 1)
    intervals, (plain, _) = propagate(graph, lower, upper, torch.float32), forward(graph, lower, upper)
    tight, _ = crown(graph, lower, upper)
    known = {node.id: tight[node.id].bounds for node in refinable(graph)}
    met, _ = forward(graph, lower, upper, known=known)
    last = refinable(graph)[-1].id
    for i, given in known.items():
        assert (plain[i].bounds.lower >= intervals[i].bounds.lower - 1e-9).all()
        assert (met[i].bounds.lower >= given.lower).all() and (met[i].bounds.upper <= given.upper).all()
    assert (plain[last].bounds.width < intervals[last].bounds.width).all()
    assert float(met[last].bounds.width.mean()) < float(plain[last].bounds.width.mean())


@pytest.mark.parametrize("size", [1e30, 1e200])
def test_overflow_gives_no_bound(size: float) -> None:
    """Beyond the range of float32 the forms say nothing, and the intervals stay."""
    graph = dense_network((2, 5, 5, 5, 1), "relu", 0)
    lower, upper = torch.full((1, 2), -size, dtype=torch.float64), torch.full((1, 2), size, dtype=torch.float64)
    state, _ = forward(graph, lower, upper)
    intervals = propagate(graph, lower, upper, torch.float32)
    for i, value in enumerate(evaluate_all(graph, torch.zeros(1, 2, dtype=torch.float64))):
        bounds = state[i].bounds
        assert (bounds.lower <= value).all() and (bounds.upper >= value).all()
        assert size < 1e100 or (bounds.lower == intervals[i].bounds.lower).all()


def test_forms_that_overflow_bound_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(1000) lies beyond all float64: what is infinite stays so, and is not the largest of them."""
    build = Builder(1, 0)
    build.add(Linear(torch.tensor([[1000.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)), (1,), 0)
    build.add(Elementwise(catalogue()["exp"].trial()), (1,))
    behind = build.linear(1)
    build.apply("tanh")
    everything = Bounds(torch.full((1, 1), -inf, dtype=torch.float64), torch.full((1, 1), inf, dtype=torch.float64))
    monkeypatch.setattr(Forms, "bounds", lambda forms, center: everything)
    state, _ = forward(build.graph(), torch.zeros(1, 1).double(), torch.ones(1, 1).double(), torch.float64)
    assert max(float(state[behind].bounds.upper), -float(state[behind].bounds.lower)) == inf
