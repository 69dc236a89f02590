"""What linear bounds say of parts of a box: they lead on from their minima over the box, which a ball's are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import milpverify as mv
from milpverify.balls.ball import Ball
from milpverify.balls.points import project
from milpverify.graph import evaluate
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.optimised.alpha import optimise


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
