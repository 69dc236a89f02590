"""CROWN and its parts: sound, as tight as the plain algorithm, and independent of how the work is cut."""

from __future__ import annotations

import pytest
import torch
from product_networks import attention_network, product_network
from random_graphs import FUNCTIONS, boxes, crown_in_float64, dense_network, mixed_network, sample

from milpverify.arithmetic.rounding import ieee
from milpverify.graph import Graph, affine_form, evaluate_all
from milpverify.operators import Affine
from milpverify.propagation.backward import lines
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.interval import input_state, propagate
from milpverify.propagation.request import BoundRequest, BoundTuning
from milpverify.propagation.screening import Gram, grouped
from milpverify.relaxations.registry import univariate

GRAPHS = [dense_network((5, 12, 12, 12, 3), f, k) for k, f in enumerate(FUNCTIONS)] + [mixed_network(seed) for seed in range(4)]
GRAPHS += [product_network(0), product_network(1), attention_network(0, sharp=0.3)]
PRECISIONS = (torch.float32, torch.float64)
COPIES = ((torch.float32, None), (torch.float32, torch.float64), (torch.float64, None))
"""Precisions of the matrices: at the front, and behind the first nonlinear nodes where it differs."""


pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("graph", GRAPHS, ids=map(str, range(len(GRAPHS))))
@pytest.mark.parametrize(("dtype", "inner"), COPIES)
@pytest.mark.parametrize("radius", [0.0, 1e-4, 0.3, 3.0])
def test_samples_lie_within_the_bounds_of_every_node(graph: Graph, dtype: torch.dtype, inner: torch.dtype | None, radius: float) -> None:
    lower, upper = boxes(graph, 5, radius, 7)
    points = sample(lower, upper, 400)
    values = evaluate_all(graph, points.flatten(0, 1))
    slack = 1e-12  # of the evaluation itself, which rounds too
    interval = propagate(graph, lower, upper, dtype)
    state, table = crown(graph, lower, upper, dtype, BoundRequest(inner=inner))
    for known in (interval, state):
        for i, value in enumerate(values):
            value = value.reshape(*points.shape[:2], *value.shape[1:])
            size = slack * (1 + value.abs())
            assert (known[i].bounds.lower.unsqueeze(1) <= value + size).all()
            assert (known[i].bounds.upper.unsqueeze(1) >= value - size).all()
    rows = torch.randn(5, 4, graph.ny, dtype=torch.float64)
    x_rows = torch.randn(5, 4, graph.nx, dtype=torch.float64)
    found = bound_rows(graph.to(dtype, inner=inner), state, table, rows, x_rows=x_rows)
    truth = values[graph.output].reshape(*points.shape[:2], -1) @ rows.mT + points @ x_rows.mT
    assert (found.lower.unsqueeze(1) <= truth + 100 * slack * (1 + truth.abs())).all()


@pytest.mark.parametrize("sizes", [(6, 15, 15, 15, 4), (90, 20, 20, 20, 5)], ids=["few inputs", "Gram matrix"])
@pytest.mark.parametrize("radius", [0.01, 0.1])
def test_undecided_neurons_get_the_bounds_of_the_plain_algorithm(sizes: tuple[int, ...], radius: float) -> None:
    graph = dense_network(sizes, "relu", 3)
    lower, upper = boxes(graph, 9, radius, 5)
    plain = crown_in_float64(graph, lower, upper)
    for (dtype, inner), charge in zip(COPIES, (2e-3, 1e-4, 1e-9), strict=True):
        state, _ = crown(graph, lower, upper, dtype, BoundRequest(inner=inner))
        undecided = 0
        for i, (low, high) in zip(graph.nonlinear, plain[:-1], strict=True):
            bounds = state[graph.nodes[i].inputs[0]].bounds
            ours, theirs = ((a < 0) & (b > 0) for a, b in ((bounds.lower, bounds.upper), (low, high)))
            near = charge * (high - low)
            assert not (ours & ~theirs & (low < -near) & (high > near)).any()
            assert (bounds.lower >= low - near)[ours].all()
            assert (bounds.upper <= high + near)[ours].all()
            undecided += int(ours.sum())
        assert undecided > 0


@pytest.mark.parametrize("graph", [GRAPHS[0], GRAPHS[6], dense_network((90, 20, 20, 20, 5), "relu", 3)], ids=["dense", "mixed", "Gram"])
def test_the_size_of_the_chunks_does_not_matter(graph: Graph) -> None:
    lower, upper = boxes(graph, 7, 0.1, 2)
    found = []
    for size in (16, 1 << 14, 1 << 26):
        found.append(crown(graph, lower, upper, torch.float64, BoundRequest(tuning=BoundTuning(chunk_cpu=size)))[0])
    for other in found[1:]:
        for i, known in found[0].items():
            for mine, theirs in ((known.bounds.lower, other[i].bounds.lower), (known.bounds.upper, other[i].bounds.upper)):
                torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_inherited_bounds_are_kept_and_never_lost() -> None:
    graph = GRAPHS[0]
    lower, upper = boxes(graph, 4, 0.3, 2)
    state, _ = crown(graph, lower, upper, torch.float64)
    middle = 0.5 * (lower + upper)
    again, _ = crown(graph, lower, middle, torch.float32, BoundRequest({i: s.bounds for i, s in state.items()}))
    for i, known in state.items():
        assert (again[i].bounds.lower >= known.bounds.lower).all()
        assert (again[i].bounds.upper <= known.bounds.upper).all()


@pytest.mark.parametrize("graph", GRAPHS, ids=map(str, range(len(GRAPHS))))
def test_adjoints_are_adjoint_and_rows_are_theirs(graph: Graph) -> None:
    for node in graph.nodes:
        if isinstance(node.op, Affine):
            xs = [torch.randn(3, *graph.nodes[i].shape, dtype=torch.float64) for i in node.inputs]
            y = torch.randn(3, *node.shape, dtype=torch.float64)
            forth = (node.op.linear(xs).expand(3, *node.shape) * y).flatten(1).sum(1)
            back = sum((x * part.reshape(x.shape)).flatten(1).sum(1) for x, part in zip(xs, node.op.adjoint(y), strict=True))
            torch.testing.assert_close(forth, back)
            index = torch.tensor([0, node.size - 1, 0])
            unit = torch.zeros(3, node.size, dtype=torch.float64).scatter(1, index.unsqueeze(1), 1.0).reshape(3, *node.shape)
            for row, part in zip(node.op.rows(index, node.shape), node.op.adjoint(unit), strict=True):
                torch.testing.assert_close(row.double(), part)


@pytest.mark.parametrize("graph", GRAPHS, ids=map(str, range(len(GRAPHS))))
def test_what_affine_operators_say_of_themselves_is_what_they_do(graph: Graph) -> None:
    for node in graph.nodes:
        if isinstance(node.op, Affine):
            every = torch.arange(node.size)
            matrices = [part.flatten(1).double() for part in node.op.rows(every, node.shape)]
            magnitudes = [part.flatten(1).double() for part in node.op.absolute().rows(every, node.shape)]
            assert all(torch.equal(w.abs(), m) for w, m in zip(matrices, magnitudes, strict=True))
            for w, direction in zip(matrices, node.op.directions, strict=True):
                assert direction == 0 or bool((direction * w >= 0).all())
            assert node.op.length >= int(sum((w != 0).sum(1) for w in matrices).max())
            assert node.op.adjoint_length >= max(int((w != 0).sum(0).max()) for w in matrices)


def test_an_affine_operator_has_to_say_all_that_rounding_bounds_rest_on() -> None:
    assert Affine.__abstractmethods__ == {"linear", "adjoint", "length", "directions", "absolute"}


def test_the_gram_matrix_bounds_the_reach_of_rows() -> None:
    graph = dense_network((90, 20, 20, 3), "relu", 1)
    lower, upper = boxes(graph, 1, 0.5, 3)
    radius = input_state(lower, upper).deviation.amax(0)
    for dtype in PRECISIONS:
        gram = Gram.of(graph, graph.to(dtype), radius)
        assert gram is not None and gram.node == 1
        matrix = affine_form(graph, 1, torch.eye(20, dtype=torch.float64)).coefficients[0]
        for scale in (1e-30, 1e-3, 1.0, 1e10):
            # Rows whose reach is the norm inequality's: of one sign pattern with equal products.
            alike = torch.linalg.lstsq((matrix * radius).T, (radius > 0).double().unsqueeze(1)).solution.T
            rows = scale * torch.cat([torch.randn(500, 20, dtype=torch.float64), alike]).to(dtype)
            reach = (rows.double() @ (matrix * radius)).abs().sum(1)
            bound = gram.reach(rows.unsqueeze(0))[0]
            assert (bound >= reach).all()
            assert (bound <= 2 * reach + 1e-12).float().mean() > 0.9


def test_groups_hold_every_entry_once_and_one_owner_each() -> None:
    owner = torch.tensor([0] * 7 + [2] + [3] * 20 + [9] * 2)
    for most in (1, 2, 5, 8, 1000):
        seen = []
        for box, place in grouped(owner, most):
            assert place.numel() <= most
            assert (owner[place] == box.unsqueeze(1)).all()
            seen += [set(row) for row in place.tolist()]
        assert sorted(k for row in seen for k in row) == list(range(len(owner)))
    assert list(grouped(owner[:0], 4)) == []


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs", "hard_tanh"])
def test_the_gradient_of_an_intercept_is_minus_the_supporting_point(name: str) -> None:
    graph = dense_network((4, 30, 2), name, 2)
    lower, upper = boxes(graph, 3, 2.0, 4)
    state = propagate(graph, lower, upper)
    known, function = state[1], graph.nodes[2].op.function  # type: ignore[attr-defined]
    span = univariate(function).span
    slopes = torch.empty(3, 30, dtype=torch.float64).uniform_(*span, generator=torch.Generator().manual_seed(0))
    for side in (0, 1):
        with torch.enable_grad():
            k = slopes.clone().requires_grad_()
            around = lines(graph, 2, state, torch.float64, (k,), (k,))
            (gradient,) = torch.autograd.grad((around.b_lower, around.b_upper)[side].sum(), k)
        point = known.center - gradient
        assert (point >= known.bounds.lower - 1e-9).all()
        assert (point <= known.bounds.upper + 1e-9).all()
        grid = known.bounds.lower.unsqueeze(2) + torch.linspace(0, 1, 401, dtype=torch.float64) * known.bounds.width.unsqueeze(2)
        gap = function(grid) - slopes.unsqueeze(2) * grid
        best = gap.amin(2) if side == 0 else gap.amax(2)
        attained = function(point) - slopes * point
        assert ((attained <= best + 1e-9) if side == 0 else (attained >= best - 1e-9)).all()


def test_reduced_precision_that_a_user_chose_is_suspended_and_restored() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with ieee():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.enabled and not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.enabled
    finally:
        torch.set_float32_matmul_precision("highest")
