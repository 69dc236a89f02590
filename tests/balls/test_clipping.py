"""What linear bounds say of parts of a box: they lead on from their minima over the box, which a ball's are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import milpverify as mv
from milpverify.balls.ball import Ball
from milpverify.balls.points import project
from milpverify.graph import evaluate, evaluate_all
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.optimised.alpha import optimise
from milpverify.propagation.optimised.beta import Relaxations
from milpverify.propagation.optimised.halfspaces import HalfspaceForms
from milpverify.propagation.request import BoundRequest
from milpverify.search.bounding import bound_batch
from milpverify.search.groups import groups
from milpverify.search.input_split.conjunctions import combined, weights


def network(seed: int, inputs: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight *= 2.0
    return net


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_rows_rise_from_their_minimum_over_the_box(norm: str) -> None:
    """A row is at least `over_box` + sum |a_i| d_i, with d_i the distance from the end that minimises it."""
    random = np.random.default_rng(0)
    for seed in range(5):
        ball = Ball(random.normal(size=4), 1.0, norm)
        graph = mv.Problem(network(seed, 4), ball, unsafe=mv.Rows.on_outputs([[1.0, -1.0]], [0.0], 4)).graph
        lower, upper = (torch.from_numpy(end)[None] for end in ball.ends)
        rows = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64)
        state, table = crown(graph, lower, upper, torch.float64)
        for found in (bound_rows(graph, state, table, rows), optimise(graph, state, table, rows)[0]):
            assert bool((found.over_box < found.lower).all())
            points = torch.from_numpy(np.stack([ball.pulled(ball.centre + random.normal(size=4)) for _ in range(200)]))
            values = evaluate(graph, points) @ rows[0].T
            slope = found.coefficients[0]
            away = torch.where(slope > 0, points.unsqueeze(1) - lower, upper - points.unsqueeze(1))
            assert bool((values >= found.over_box[0] + (slope.abs() * away).sum(2) - 1e-9).all())
            assert bool((values >= found.lower[0]).all())


def rises(
    coefficients: torch.Tensor, over_box: torch.Tensor, box: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor, values: torch.Tensor
) -> bool:
    """Whether values (N, r) at points are at least `over_box` (r,) + sum |a_i| d_i, d_i away from the end where a_i x_i is least."""
    away = torch.where(coefficients > 0, x.unsqueeze(1) - box[0], box[1] - x.unsqueeze(1))
    return bool((values >= over_box + (coefficients.abs().double() * away).sum(2) - 1e-9).all())


def inputs_of(ball: Ball, random: np.random.Generator) -> torch.Tensor:
    """Points of the ball, half of them at the rim."""
    moved = [random.normal(size=ball.size) * scale for scale in (0.3, 3.0) for _ in range(200)]
    return torch.from_numpy(np.stack([ball.pulled(ball.centre + step) for step in moved]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_every_node_stays_within_its_bounds_in_boxes_beside_the_centre(norm: str, dtype: torch.dtype) -> None:
    random = np.random.default_rng(0)
    for seed in range(3):
        graph = mv.Problem(network(seed, 4), Ball(np.full(4, 0.5), 1.0, norm), unsafe=mv.Rows.on_outputs([[1.0, -1.0]], [0.0], 4)).graph
        assert graph.ball is not None
        first, last = map(torch.from_numpy, graph.ball.ends)
        lower = torch.stack([first, first + 0.8 * (last - first), first + torch.from_numpy(random.uniform(0.0, 0.6, 4))])
        upper = torch.stack([last, last, last])
        state, _ = crown(graph, lower, upper, dtype)
        x, checked = inputs_of(graph.ball, random), 0
        for box in range(3):
            inside = np.clip(x.numpy(), lower[box].numpy(), upper[box].numpy())
            inside = np.stack([graph.ball.centre, *(v for v in inside if graph.ball.contains(v))])[1:]
            checked += len(inside)
            for i, value in enumerate(evaluate_all(graph, torch.from_numpy(inside.reshape(-1, 4)))):
                bounds = state[i].bounds
                assert bool((value >= bounds.lower[box] - 1e-12).all()) and bool((value <= bounds.upper[box] + 1e-12).all())
        assert checked > 400


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_boxes_that_the_ball_does_not_reach_are_closed(norm: str) -> None:
    problem = mv.Problem(network(0, 3), Ball(np.zeros(3), 1.0, norm), unsafe=mv.Rows.on_outputs([[1.0, -1.0]], [0.0], 3))
    (group,) = groups(problem, torch.device("cpu"))
    lower = torch.tensor([[0.9, 0.9, 0.9], [0.0, 0.0, 0.9]], dtype=torch.float64)
    margins = bound_batch(problem.graph, group, lower, lower + 0.1, torch.float64).margins
    assert margins[:, 0].isposinf().tolist() == [True, False]


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_forms_combined_rows_and_second_order_lead_on_from_the_box(norm: str) -> None:
    random = np.random.default_rng(0)
    for seed in range(4):
        ball = Ball(random.normal(size=3), 0.7, norm)
        unsafe = mv.Rows.on_outputs(random.normal(size=(3, 2)), [0.0] * 3, 3)
        problem = mv.Problem(Products(seed), ball, unsafe=unsafe)
        graph, (group,) = problem.graph, groups(problem, torch.device("cpu"))
        lower, upper = (torch.from_numpy(end)[None] for end in ball.ends)
        found = bound_batch(graph, group, lower, upper, torch.float64, BoundRequest(second_order=True))
        x = inputs_of(ball, random)
        values = evaluate_all(graph, x)
        residual = values[graph.output] @ group.y_rows.T - group.rhs
        assert found.forms is not None
        for rows in (found.rows, found.forms.bound(group.y_rows[None])[0]):
            assert rises(rows.coefficients[0], rows.over_box[0], (lower, upper), x, residual)
            assert bool((residual >= rows.lower[0] - 1e-9).all())
        place, one = group.places[:1], torch.zeros(1, dtype=torch.long)
        minima, slopes = found.rows.over_box, found.rows.coefficients
        value, slope = combined(graph, group, found, one, place, minima, slopes)
        weight = weights(minima, slopes.double(), found.state[0].deviation)
        assert rises(slope[0], value[0], (lower, upper), x, (residual * weight).sum(1, keepdim=True))
        forms = HalfspaceForms(Relaxations(graph, found.state))
        forms.make(one, torch.arange(forms.count)[None])
        entries = torch.cat([values[z].flatten(1)[:, forms.of.entries[z]] for z in forms.of.slots], 1)
        width = (upper - lower)[0]
        assert rises((forms.matrix[0].T / width), forms.least[0], (lower, upper), x, torch.cat([entries, -entries], 1))


class Products(nn.Module):
    """Products of linear forms, and ReLUs of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.other, self.last = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.one(x)) * self.other(x))


def near_optimum(net: nn.Module, ball: Ball, random: np.random.Generator) -> float:
    """The least y_0 - y_1 that a local search finds in the ball."""
    points = np.stack([ball.pulled(ball.centre + random.normal(size=ball.size)) for _ in range(200)])
    for k in range(14):
        moved = points + 0.5**k * random.normal(size=(20, *points.shape)) * (random.random((20, *points.shape)) < 0.6)
        inner = project(ball, torch.from_numpy(moved.reshape(-1, ball.size)))
        inner = torch.from_numpy(ball.centre) + (1 - 1e-12) * (inner - torch.from_numpy(ball.centre))
        every = torch.cat([torch.from_numpy(points), inner])
        with torch.no_grad():
            y = net(every)
        points = every[(y[:, 0] - y[:, 1]).argsort()[:20]].numpy()
    assert ball.contains(points[0])
    with torch.no_grad():
        y = net(torch.from_numpy(points[:1]))[0]
    return float(y[0] - y[1])


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_unsafe_sets_little_larger_than_a_point_are_not_clipped_away(norm: str, activation: type[nn.Module]) -> None:
    random = np.random.default_rng(1)
    for seed in range(2):
        net = network(seed, 3, activation).double()
        ball = Ball(random.normal(size=3), 0.6, norm)
        unsafe = mv.Rows.on_outputs([[1.0, -1.0]], [near_optimum(net, ball, random) + 1e-7], 3)
        problem = mv.Problem(net, ball, unsafe=unsafe)
        for attack in (True, False):
            found = mv.verify(problem, method="bab", timeout=0.3, options=mv.Options(attack=attack))
            assert found.verdict is not mv.Verdict.VERIFIED, seed
