"""A network learns optimal power flow: what it predicts keeps all limits, and what follows from its set points may not.

    python examples/12_learned_dispatch.py [FOLDER] [LESSONS]

The teacher is pypower's optimal power flow of 14 buses at loads within 10 %. The network reads all loads and predicts active powers,
reactive powers and voltage magnitudes of the generators; its last layer keeps them within their limits, so that the prediction is always
allowed. The power flow at its set points has reactive powers and a slack power of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pypower.api import case14, ppoption, runopf
from torch import nn

from milpverify import acopf
from milpverify.acopf.points.power_flow import pypower_case

WIDTH, LESSONS = 0.1, 40


def network() -> dict[str, Any]:
    """Case 14 of pypower, with limits of all flows."""
    tables = case14()
    tables["branch"][:, 5] = 130.0
    return {**tables, "name": "case14"}


def lessons(case: acopf.Case, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Loads (count, nx), active and reactive ones of buses that have any, and what is cheapest there (count, 3 g): pg, qg and vm, p.u."""
    loaded = np.flatnonzero((case.buses.pd != 0) | (case.buses.qd != 0))
    random, inputs, outputs = np.random.default_rng(0), [], []
    while len(inputs) < count:
        factor = 1 + WIDTH * (2 * random.random((2, case.num_buses)) - 1)
        tables = pypower_case(case)
        tables["bus"][:, 2] *= factor[0]
        tables["bus"][:, 3] *= factor[1]
        found = runopf(tables, ppoption(VERBOSE=0, OUT_ALL=0))
        if found["success"]:
            inputs.append(np.concatenate([case.buses.pd * factor[0], case.buses.qd * factor[1]]).reshape(2, -1)[:, loaded].reshape(-1))
            powers = found["gen"][:, [1, 2]].T.reshape(-1) / case.base_mva
            outputs.append(np.concatenate([powers, found["bus"][case.generators.bus, 7]]))
    return np.array(inputs), np.array(outputs)


class Proxy(nn.Module):
    """Loads to pg, qg and vm of every generator; a clamp between the limits, made of two ReLUs, is the last layer."""

    def __init__(self, case: acopf.Case, hidden: int = 16) -> None:
        super().__init__()
        gens, buses = case.generators, case.buses
        low = np.concatenate([gens.pmin, gens.qmin, buses.vmin[gens.bus]])
        high = np.concatenate([gens.pmax, gens.qmax, buses.vmax[gens.bus]])
        inputs = 2 * int(((buses.pd != 0) | (buses.qd != 0)).sum())
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, len(low)))
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32))
        self.register_buffer("width", torch.tensor(high - low, dtype=torch.float32))

    def forward(self, loads: torch.Tensor) -> torch.Tensor:
        share = self.layers(loads)
        return self.low + self.width * (torch.relu(share) - torch.relu(share - 1))

    def loss(self, loads: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Of the shares before the clamp, so that what is clamped still learns."""
        width = torch.where(self.width > 0, self.width, torch.ones_like(self.width))
        return nn.functional.mse_loss(self.layers(loads), (wanted - self.low) / width)


def trained(case: acopf.Case, count: int = LESSONS) -> Proxy:
    """A proxy that has learned from the teacher."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loads, wanted = (torch.tensor(part, dtype=torch.float32) for part in lessons(case, count))
    proxy = Proxy(case)
    optimizer = torch.optim.Adam(proxy.parameters(), lr=0.01)
    for _ in range(1000):
        optimizer.zero_grad()
        proxy.loss(loads, wanted).backward()
        optimizer.step()
    return proxy.eval()


def main(folder: Path, count: int) -> None:
    case = acopf.load_case(network())
    proxy = trained(case, count)
    g = len(case.generators)
    outputs = {"pg": slice(0, g), "qg": slice(g, 2 * g), "vm": slice(2 * g, 3 * g)}
    for relative in (0.01, 0.05):
        for limits in ("predicted", "after_power_flow"):
            found = acopf.check_proxy(case, proxy, loads=acopf.box(relative), limits=limits, outputs=outputs, timeout=30)
            worst = found.worst_margin
            print(f"{limits:16s} {found.headline}; certified {worst.certified:.4g}, found {found.attacked_margin.attacked:.4g}")
            if found.violation is not None:
                print(f"  {found.violation}")
            if limits == "after_power_flow":
                acopf.plot_certified(found, folder / f"proxy_{100 * relative:.0f}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), int(sys.argv[2]) if len(sys.argv) > 2 else LESSONS)
