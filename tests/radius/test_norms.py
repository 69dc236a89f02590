"""Radii in L1 and L2: against enumeration, dense samples, planted counterexamples and attacks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from digits_networks import TRAINED, digits, trained
from torch import nn

import milpverify as mv
from milpverify.balls.ball import Ball
from milpverify.balls.points import project, steepest

Layers = list[tuple[np.ndarray, np.ndarray]]
CLIP = (0.0, 1.0)


def network(sizes: list[int], seed: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    parts = [part for m, n in pairwise(sizes) for part in (nn.Linear(m, n), activation())]
    net = nn.Sequential(*parts[:-1]).eval()
    with torch.no_grad():  # the labels meet near the middle
        parts[0].weight *= 3.0
        parts[-2].bias -= net(torch.full((1, sizes[0]), 0.5))[0]
    return net


def norm_of(norm: str, away: np.ndarray) -> np.ndarray:
    return np.linalg.norm(away, 1 if norm == "l1" else 2, axis=-1)


def check(net: nn.Module, x0: np.ndarray, found: mv.Radius, norm: str, weight: np.ndarray | float = 1.0) -> None:
    """The counterexample is one in float32, and lies where it is said to."""
    assert 0.0 <= found.lower_bound <= found.upper_bound and found.norm == norm
    if found.counterexample is None:
        assert found.upper_bound == math.inf
        return
    x = found.counterexample.x
    assert Ball(x0, found.upper_bound, norm, weight=weight).contains(x)
    with torch.no_grad():
        y = net(torch.tensor(x, dtype=torch.float32)[None])[0]
    assert found.other is not None and y[found.other] > y[found.label]


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_small_networks_against_dense_samples(norm: str, activation: type[nn.Module]) -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 1201)] * 2), axis=-1).reshape(-1, 2)
    compared = 0
    for seed in range(4):
        net = network([2, 6, 6, 2], seed, activation)
        x0 = np.random.default_rng(seed).uniform(0.2, 0.8, 2).astype(np.float32).astype(float)
        with torch.no_grad():
            y = net(torch.from_numpy(grid).float()).numpy()
            label = int(net(torch.from_numpy(x0).float()[None]).argmax())
        others = grid[y.argmax(1) != label]
        weight = np.array([1.0, 0.5]) if seed % 2 else np.ones(2)
        found = mv.robustness_radius(net, x0, label, norm, CLIP, gap=0.01, timeout=60.0, features=weight)
        check(net, x0, found, norm, weight)
        assert found.reason is mv.Reason.PROVED, found
        brute = norm_of(norm, (others - x0) / weight).min() if len(others) else math.inf
        assert found.lower_bound <= brute * (1 + 1e-9)
        if math.isfinite(brute):
            assert abs(found.upper_bound - brute) <= 0.01 * brute + 5e-3
            compared += 1
    assert compared


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("attack", [True, False])
def test_a_narrow_planted_counterexample_is_found(norm: str, attack: bool) -> None:
    """On a stripe of width 0.02 around x_0 = 0.7, to which no gradient leads, and at x_0 >= 0.95."""
    hidden, bias = [[1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, -1]], [0.01 - 0.7, -0.7, -0.01 - 0.7, -0.9, 0.0, 0.0]
    last = [[0, 0, 0, 0, 0, 0], [150.0, -300.0, 150.0, 20.0, 0, 0]]
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    for layer, weight, b in ((net[0], hidden, bias), (net[2], last, [1.0, 0.0])):
        layer.weight.data, layer.bias.data = torch.tensor(weight, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)  # type: ignore[union-attr]
    x0 = np.array([0.25, 0.5])
    found = mv.robustness_radius(net, x0, 0, norm, CLIP, options=mv.Options(attack=attack))
    check(net, x0, found, norm)
    nearest = 0.7 - 0.01 / 3 - 0.25
    assert found.reason is mv.Reason.PROVED
    assert found.lower_bound <= nearest + 1e-6 and abs(found.upper_bound - nearest) <= 0.01 * nearest + 1e-4


def pgd(net: nn.Module, ball: Ball, label: int, starts: int = 64, steps: int = 60) -> np.ndarray:
    """Points of the ball, within the clip, that projected gradient descent on the margin to every label ends at."""
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.from_numpy(t) for t in ball.ends)
    x = project(ball, low + (high - low) * torch.rand(starts, len(low), generator=generator, dtype=torch.float64))
    x[0] = torch.from_numpy(ball.centre)
    for step in range(steps):
        x = x.detach().clamp(*CLIP).requires_grad_()
        y = net(x.float()).double()
        others = y.masked_fill(torch.nn.functional.one_hot(torch.tensor(label), y.shape[1]).bool(), -math.inf)
        (gradient,) = torch.autograd.grad((y[:, label] - others.amax(1)).sum(), x)
        x = project(ball, x.detach() - 0.5 * 0.95**step * steepest(ball, gradient)).clamp(*CLIP)
    return np.stack([ball.pulled(v) for v in x.numpy()])


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_no_attack_succeeds_inside_the_proved_radius(norm: str) -> None:
    net = trained("relu", width=24, depth=2, epochs=20)
    images, labels = (part[TRAINED : TRAINED + 3] for part in digits())
    for x0, label in zip(images, labels.tolist(), strict=True):
        found = mv.robustness_radius(net, x0, label, norm, CLIP, gap=0.3, timeout=3.0)
        check(net, x0, found, norm)
        assert found.lower_bound > 0.0
        points = pgd(net, Ball(x0, found.lower_bound, norm, *CLIP), label)
        with torch.no_grad():
            assert bool((net(torch.from_numpy(points).float()).argmax(1) == label).all())
