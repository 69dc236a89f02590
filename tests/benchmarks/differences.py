"""Twins: how much tighter differences are bounded layer by layer than by separate relaxations.

    python tests/benchmarks/differences.py [--csv FILE]

Every row is one network: two copies of it over [-1, 1], whose inputs differ by at most so much. `separate` and `differences` are the widths
of the bounds of y_a - y_b, `sampled` that of its values at random points, which no bound is below; seconds are of the process's CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from twin_networks import branches, layers

from milpverify.graph import evaluate
from milpverify.search.bounding import Prepared, bound_batch
from milpverify.search.groups import groups
from milpverify.spec import Box, Disjunct, Problem, Rows

SIZES = ((2, 8), (4, 16), (8, 32), (20, 64))
LIPSCHITZ = (0.01, 0.1)


def widths(function: str, nx: int, size: int, reach: float, monotone: bool) -> tuple[float, float, float, float, float]:
    """Widths: separate, differences, sampled; seconds without differences and with them.

    Args:
        reach: by how much inputs may differ; where monotone only upwards, and only the first.
    """
    graph = branches(layers([nx, size, size, 1], [function], 1, monotone))
    low, high = (np.zeros(nx), np.eye(nx)[0] * reach) if monotone else (np.full(nx, -reach), np.full(nx, reach))
    compared = np.concatenate([np.eye(nx), -np.eye(nx)], 1)
    x_rows, rhs = np.concatenate([compared, -compared]), np.concatenate([high, -low])
    domain = Rows(x_rows, np.zeros((len(rhs), 2)), rhs, np.zeros(len(rhs), dtype=bool))
    box = Box(-np.ones(2 * nx), np.ones(2 * nx))
    unsafe = [Rows.on_outputs(row, [0.0], 2 * nx) for row in ([1.0, -1.0], [-1.0, 1.0])]
    problem = Problem(graph, tuple(Disjunct(box, rows, domain) for rows in unsafe))
    (group,) = groups(problem)
    prepared = Prepared.of(graph, group)
    lower, upper = (torch.tensor(side)[None] for side in (box.lower, box.upper))
    found, seconds = [], []
    for one in (replace(prepared, differences=None), prepared):
        began = time.process_time()
        found.append(-float(bound_batch(graph, group, lower, upper, torch.float64, prepared=one).margins.sum()))
        seconds.append(time.process_time() - began)
    random = np.random.default_rng(0)
    b = random.uniform(-1.0, 1.0, (20_000, nx))
    a = np.clip(b + low + random.random(b.shape) * (high - low), -1.0, 1.0)
    y = evaluate(graph, torch.tensor(np.concatenate([a, b], 1)))
    values = y[:, 0] - y[:, 1]
    return found[0], found[1], float(values.amax() - values.amin()), seconds[0], seconds[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    head = "function,inputs,neurons,kind,reach,separate,differences,sampled,seconds_separate,seconds_both"
    lines = [head]
    print(head)
    for function in ("relu", "tanh", "sigmoid"):
        for nx, size in SIZES:
            for kind, reach in (("monotone", 2.0), *(("lipschitz", r) for r in LIPSCHITZ)):
                found = widths(function, nx, size, reach, kind == "monotone")
                lines.append(f"{function},{nx},{size},{kind},{reach}," + ",".join(f"{v:.4g}" for v in found))
                print(lines[-1], flush=True)
    if args.csv:
        args.csv.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
