"""What a user's own library might hold: an activation as a function and as a module, with a parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def dome(x: Tensor, height: float = 1.0) -> Tensor:
    """height / (1 + x^2)"""
    return height / (1 + x * x)


class Dome(nn.Module):
    def __init__(self, height: float = 1.0) -> None:
        super().__init__()
        self.height = height

    def forward(self, x: Tensor) -> Tensor:
        return dome(x, self.height)


class Calls(nn.Module):
    """Calls the function in each of the ways that Python knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.dome = nn.Linear(2, 6), nn.Linear(6, 6), Dome(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = dome(self.first(x), 2.0)
        return dome(self.dome(self.second(h)), height=1.5) + dome(h)
