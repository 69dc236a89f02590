"""Networks trained on scikit-learn's digits with fixed seeds: every activation, an LSTM over rows, a vision transformer over patches.

    PYTHONPATH=. python tests/support/digits_networks.py

trains all of them at full size, in less than three minutes, and prints how many of the held-out images each reads right.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

TRAINED = 1400
"""The first so many images are trained on; the rest are held out."""


class Sine(nn.Module):
    """sin, elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "sin": Sine, "gelu": lambda: nn.GELU(approximate="tanh")}
NAMES = (*ACTIVATIONS, "lstm", "vit")


class Rows(nn.Module):
    """An LSTM that reads an image's rows one after the other."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(8, hidden, batch_first=True), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(x.reshape(-1, 8, 8))
        return self.head(states[:, -1])


class Patches(nn.Module):
    """A transformer block over the four quarters of an image: one head of attention, whose scores are not scaled down."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(16, dim), nn.Parameter(0.1 * torch.randn(4, dim))
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.wide, self.narrow, self.head = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim), nn.Linear(4 * dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 2, 4, 2, 4).transpose(2, 3).reshape(-1, 4, 16)
        x = self.embed(x) + self.place
        weights = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2), dim=-1)
        x = x + weights @ self.value(x)
        x = x + self.narrow(torch.relu(self.wide(x)))
        return self.head(x.flatten(1))


def digits() -> tuple[Tensor, Tensor]:
    """The images as (1797, 64) float32 with pixels in [0, 1], and their labels, shuffled."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return torch.from_numpy((data.data / 16).astype(np.float32)[order]), torch.from_numpy(data.target[order])


def trained(name: str, width: int = 100, depth: int = 4, epochs: int = 60) -> nn.Module:
    """A network by name, trained with a fixed seed, in evaluation mode.

    Args:
        width: of the hidden layers, or of the state; tokens have a quarter of it.
        depth: how many hidden layers a feed-forward network has.
    """
    torch.manual_seed(0)
    if name == "lstm":
        net: nn.Module = Rows(width)
    elif name == "vit":
        net = Patches(max(4, width // 4))
    else:
        sizes = [64, *[width] * depth]
        hidden = [part for k in range(depth) for part in (nn.Linear(sizes[k], sizes[k + 1]), ACTIVATIONS[name]())]
        net = nn.Sequential(*hidden, nn.Linear(width, 10))
    images, labels = digits()
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    with torch.enable_grad():
        for _ in range(epochs):
            for batch in torch.randperm(TRAINED).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
                optimiser.step()
    return net.eval()


def accuracy(net: nn.Module) -> float:
    """The share of the held-out images that a network reads right."""
    images, labels = digits()
    with torch.no_grad():
        return float((net(images[TRAINED:]).argmax(1) == labels[TRAINED:]).float().mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for network in NAMES:
        began = time.perf_counter()
        print(f"{network}: {accuracy(trained(network, 16 if network == 'lstm' else 64 if network == 'vit' else 100)):.3f}", end=", ")
        print(f"{time.perf_counter() - began:.1f} s")
