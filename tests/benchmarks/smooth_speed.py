"""What smooth functions cost, in units of ReLU: a 784-4x100-10 network with each function, in one process, by turns.

Boxes around uniform random inputs, radius 0.005; torch's default initialisation with seed 0; one core; float32 with the two-sided
passes in float64, as `milpverify.propagation` does. Each ratio is the median over rounds of time with the function / time with ReLU.
Run: python tests/benchmarks/smooth_speed.py [--rounds N] [--functions sigmoid,tanh,...] [--parts crown,alpha]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a plain checkout is enough

from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node
from milpverify.operators import Elementwise, Input, Linear
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.optimised.alpha import AlphaOptions, optimise
from milpverify.propagation.request import BoundRequest

SIZES, BOXES, RADIUS = (784, *[100] * 4, 10), 64, 0.005
FUNCTIONS = "sigmoid,tanh,sin,gelu"
ITERATIONS = 20


def network(function: str) -> Graph:
    """The graph in float64, with the same weights for every function."""
    torch.manual_seed(0)
    nodes = [Node(0, Input(), (), (SIZES[0],))]
    for m, n in itertools.pairwise(SIZES):
        layer = nn.Linear(m, n)
        if len(nodes) > 1:
            nodes.append(Node(len(nodes), Elementwise(catalogue()[function].bind()), (len(nodes) - 1,), nodes[-1].shape))
        op = Linear(layer.weight.detach().double(), layer.bias.detach().double())
        nodes.append(Node(len(nodes), op, (len(nodes) - 1,), (n,)))
    return Graph(tuple(nodes), len(nodes) - 1)


def whole(graph: Graph, lower: Tensor, upper: Tensor) -> Callable[[], object]:
    """CROWN with all intermediate bounds, and the outputs."""
    wide = graph.to(torch.float32, graph.device, torch.float64)
    unit = torch.eye(graph.ny, dtype=torch.float64)
    sides = torch.cat([unit, -unit]).expand(len(lower), -1, -1)

    def task() -> object:
        state, table = crown(graph, lower, upper, torch.float32, BoundRequest(inner=torch.float64))
        return bound_rows(wide, state, table, sides).lower

    return task


def slopes(graph: Graph, lower: Tensor, upper: Tensor) -> Callable[[], object]:
    """alpha-CROWN of nine margins, on given intermediate bounds."""
    fast = graph.to(torch.float32)
    unit = torch.eye(graph.ny, dtype=torch.float64)
    margins = (unit[:1] - unit[1:]).expand(len(lower), -1, -1)
    with torch.no_grad():
        state, table = crown(graph, lower, upper, torch.float32)
    return lambda: optimise(fast, state, table, margins, options=AlphaOptions(iterations=ITERATIONS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--functions", default=FUNCTIONS)
    parser.add_argument("--parts", default="crown,alpha")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ["relu", *options.functions.split(",")]
    for part, (title, make) in {"crown": ("CROWN", whole), "alpha": (f"alpha-CROWN, {ITERATIONS} iterations", slopes)}.items():
        for boxes in (BOXES, 1) if part in options.parts.split(",") else ():
            torch.manual_seed(1)
            centres = torch.rand(boxes, SIZES[0]).double()
            tasks = {name: make(network(name), centres - RADIUS, centres + RADIUS) for name in names}
            times: dict[str, list[float]] = {name: [] for name in names}
            for turn in range(options.rounds + 1):
                for name, task in tasks.items():
                    began = time.process_time()
                    with torch.no_grad():
                        task()
                    if turn:
                        times[name].append(1e3 * (time.process_time() - began))
            base = times["relu"]
            print(f"{title}, {boxes} boxes")
            for name in names:
                ratio = statistics.median(a / b for a, b in zip(times[name], base, strict=True))
                print(f"  {name:10s} {statistics.median(times[name]):9.1f} ms   {ratio:6.2f} x ReLU")


if __name__ == "__main__":
    main()
