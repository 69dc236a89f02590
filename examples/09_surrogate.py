"""Train a surrogate of a reactor, embed it in a SCIP model, and choose the cheapest settings that the surrogate accepts.

    python examples/09_surrogate.py

The yield depends on temperature, hours and catalyst in a way that only measurements tell. A small tanh network learns it from 500 noisy
ones; the model buys catalyst in whole packages, heats, and waits, at least cost, so that the predicted yield is 80 % or more.
"""

from __future__ import annotations

import pyscipopt
import torch
from torch import nn

import milpverify as mv

LOW, HIGH = [300.0, 0.5, 0.0], [400.0, 8.0, 5.0]  # kelvin, hours, kilograms


def reactor(x: torch.Tensor) -> torch.Tensor:
    """What is measured: conversion that grows with all three, less what decomposes when it is hot for long."""
    heat, hours, catalyst = (x - torch.tensor(LOW)).div(torch.tensor(HIGH) - torch.tensor(LOW)).unbind(1)
    grown = 1 - torch.exp(-3.0 * (0.2 + heat) * (0.2 + hours) * (0.5 + catalyst))
    return (grown - 0.4 * heat**3 * hours).unsqueeze(1)


class Surrogate(nn.Module):
    """A small tanh layer on scaled inputs."""

    def __init__(self) -> None:
        super().__init__()
        low, high = torch.tensor(LOW), torch.tensor(HIGH)
        self.scale, self.shift = nn.Buffer(2 / (high - low)), nn.Buffer(-(high + low) / (high - low))
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x * self.scale + self.shift)


def trained() -> Surrogate:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, low, high = Surrogate(), torch.tensor(LOW), torch.tensor(HIGH)
    x = low + (high - low) * torch.rand(500, 3)
    y = reactor(x) + 0.01 * torch.randn(500, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    return net.eval()


def main() -> None:
    net = trained()
    model = pyscipopt.Model()
    model.hideOutput()
    settings = [model.addVar(name, lb=low, ub=high) for name, low, high in zip(("kelvin", "hours", "catalyst"), LOW, HIGH, strict=True)]
    kelvin, hours, catalyst = settings
    packages = model.addVar("packages", vtype="I", lb=0, ub=10)
    model.addCons(catalyst == 0.5 * packages)
    surrogate = mv.embed(model, net, settings)
    model.addCons(surrogate.outputs[0] >= 0.8)
    model.setObjective(0.2 * (kelvin - 300) + 4 * hours + 9 * packages)

    model.optimize()
    while surrogate.error().largest > 1e-6 and surrogate.tighten():
        model.optimize()
    found = surrogate.error()
    print(f"cost {model.getObjVal():.3f}: {found.x[0]:.1f} K, {found.x[1]:.2f} h, {model.getVal(packages):.0f} packages")
    true = float(reactor(torch.tensor(found.x)[None]))
    print(f"yield: {found.outputs[0]:.6f} in the model, {found.runtime[0]:.6f} by the network, {true:.4f} true")
    print(f"error of the embedding: {found}")

    cheapest = float("inf")  # what a search at random finds
    for step in torch.rand(20, 5000, 3, generator=torch.Generator().manual_seed(1)):
        x = torch.tensor(LOW) + (torch.tensor(HIGH) - torch.tensor(LOW)) * step
        x[:, 2] = 0.5 * torch.round(x[:, 2] / 0.5)
        cost = 0.2 * (x[:, 0] - 300) + 4 * x[:, 1] + 18 * x[:, 2]
        with torch.no_grad():
            cheapest = min(cheapest, float(cost[net(x).squeeze(1) >= 0.8].min()))
    print(f"100000 settings at random: cost {cheapest:.3f}")


if __name__ == "__main__":
    main()
