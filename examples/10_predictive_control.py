"""A network as the dynamics of a pendulum, embedded once per step of a predictive controller's horizon, in a HiGHS model.

    python examples/10_predictive_control.py

A small ReLU network learns by how much angle and speed of a damped pendulum change in a tenth of a second under a torque. The controller
plans four steps ahead with it, exactly, applies the first torque, and plans again. Only the bounds of the first state change from plan to
plan, so that the model is built once.
"""

from __future__ import annotations

import math

import highspy
import torch
from torch import nn

import milpverify as mv

STEPS, ANGLE, SPEED, TORQUE = 4, 1.2, 3.0, 2.0


def change(state: torch.Tensor) -> torch.Tensor:
    """By how much (angle, speed) change in 0.1 s, by small Euler steps, where the torque is held."""
    angle, speed, torque = state.unbind(1)
    a, s = angle, speed
    for _ in range(20):
        a, s = a + 0.005 * s, s + 0.005 * (4 * torch.sin(a) - 0.5 * s + 3 * torque)  # upright is unstable
    return torch.stack([a - angle, s - speed], dim=1)


def trained() -> nn.Sequential:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.tensor([ANGLE, SPEED, TORQUE]) * (2 * torch.rand(4000, 3) - 1)
    y = change(x)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    return net.eval()


def main() -> None:
    net = trained()
    highs = highspy.Highs()
    highs.silent()
    states = [(highs.addVariable(-ANGLE, ANGLE), highs.addVariable(-SPEED, SPEED)) for _ in range(STEPS + 1)]
    torques = [highs.addVariable(-TORQUE, TORQUE) for _ in range(STEPS)]
    sizes = [(highs.addVariable(0, ANGLE), highs.addVariable(0, TORQUE)) for _ in range(STEPS)]
    plans = []
    for now, after, torque, (angle, effort) in zip(states, states[1:], torques, sizes, strict=False):
        plans.append(mv.embed(highs, net, [*now, torque]))
        for before, then, step in zip(now, after, plans[-1].outputs, strict=True):
            highs.addConstr(then == before + step)
        for size, value in ((angle, after[0]), (effort, torque)):
            highs.addConstr(size >= value)
            highs.addConstr(size >= -1 * value)

    state = [0.6, 0.0]
    for t in range(10):
        for variable, value in zip(states[0], state, strict=True):
            highs.changeColBounds(variable.index, value, value)
        highs.minimize(sum(10 * angle + effort for angle, effort in sizes))
        torque = highs.variableValue(torques[0])
        worst = max(plan.error().largest for plan in plans)
        print(f"{t / 10:.1f} s: angle {state[0]:+.3f}, speed {state[1]:+.3f}, torque {torque:+.3f}, largest error of the plan {worst:.1e}")
        state = [a + b for a, b in zip(state, change(torch.tensor([[*state, torque]]))[0].tolist(), strict=True)]
    print(f"in the end {math.hypot(*state):.3f} from rest")


if __name__ == "__main__":
    main()
