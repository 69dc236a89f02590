"""Fit a small tanh network to a surface with several valleys, and find its exact minimum with a solver's mixed-integer models.

    python examples/05_exact_optimum.py

Descent from a random start ends in one of the valleys. `mv.minimize` proves between which bounds the deepest lies.
"""

from __future__ import annotations

import torch
from torch import nn

import milpverify as mv


def surface(x: torch.Tensor) -> torch.Tensor:
    """Six valleys, two of which are the deepest (the six-hump camel function), scaled to about [-1, 1]."""
    a, b = 2.0 * x[:, :1], x[:, 1:]
    return ((4 - 2.1 * a**2 + a**4 / 3) * a**2 + a * b + (4 * b**2 - 4) * b**2).clamp(max=4) / 4


def main() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(400):
        x = 2 * torch.rand(256, 2) - 1
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), surface(x)).backward()
        optimizer.step()
    net.eval()

    box = mv.Box([-1, -1], [1, 1])
    graph = mv.Problem(net, box, unsafe="(<= Y_0 0)").graph
    axis = torch.linspace(-1, 1, 101)
    print(f"grid of 101 x 101 points: least output {float(net(torch.cartesian_prod(axis, axis)).detach().min()):+.6f}")
    for method in ("milp", "bab"):
        best = mv.minimize(graph, box, [1.0], gap=1e-3, timeout=40, method=method)
        print(
            f"{method:<4s}: {best.reason.name}, minimum in [{best.lower_bound:+.6f}, {best.upper_bound:+.6f}], "
            f"trust {best.trust.value}, {best.searches} searches, {best.seconds:.1f} s, at {best.x}"
        )


if __name__ == "__main__":
    main()
