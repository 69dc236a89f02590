"""Speed of CROWN with all intermediate bounds on a 784-6x100-10 ReLU network, and a check against a dense two-sided pass.

64 boxes around uniform random inputs, radius 0.005; torch's default initialisation with seed 0; one core; float32.
Run: python tests/benchmarks/crown_speed.py [--repeats N] [--device cuda]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a plain checkout is enough
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from random_graphs import crown_in_float64

from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node
from milpverify.operators import Elementwise, Input, Linear
from milpverify.propagation.backward import LineTable
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.interval import propagate
from milpverify.propagation.optimised.alpha import optimise
from milpverify.propagation.request import BoundRequest
from milpverify.propagation.state import State

SIZES, BOXES, RADIUS = (784, *[100] * 6, 10), 64, 0.005
LOOSER = {torch.float32: 1e-4, torch.float64: 1e-8}
"""How much looser than the plain dense pass a bound may be, by its rounding charges, in units of its width."""


def network() -> tuple[Graph, Tensor, Tensor]:
    """The graph and the boxes (64, 784), in float64."""
    torch.manual_seed(0)
    layers = [nn.Linear(m, n) for m, n in itertools.pairwise(SIZES)]
    nodes = [Node(0, Input(), (), (SIZES[0],))]
    for layer in layers:
        if len(nodes) > 1:
            nodes.append(Node(len(nodes), Elementwise(catalogue()["relu"].bind()), (len(nodes) - 1,), nodes[-1].shape))
        op = Linear(layer.weight.detach().double(), layer.bias.detach().double())
        nodes.append(Node(len(nodes), op, (len(nodes) - 1,), (layer.out_features,)))
    centres = torch.rand(BOXES, SIZES[0]).double()
    return Graph(tuple(nodes), len(nodes) - 1), centres - RADIUS, centres + RADIUS


def clock(task: Callable[[], object], repeats: int, device: str) -> float:
    """The shortest of some runs, in milliseconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        task()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    graph, lower, upper = network()
    reference = crown_in_float64(graph, lower, upper)
    graph, lower, upper = graph.to(torch.float64, options.device), lower.to(options.device), upper.to(options.device)
    fast, wide = graph.to(torch.float32, options.device), graph.to(torch.float32, options.device, torch.float64)
    unit = torch.eye(graph.ny, dtype=torch.float64, device=options.device)
    sides = torch.cat([unit, -unit]).expand(BOXES, -1, -1)
    margins = (unit[:1] - unit[1:]).expand(BOXES, -1, -1)

    def whole() -> tuple[State, LineTable, Tensor]:
        state, table = crown(graph, lower, upper, torch.float32, BoundRequest(inner=torch.float64))
        return state, table, bound_rows(wide, state, table, sides).lower

    with torch.no_grad():
        whole()
        interval = clock(lambda: propagate(graph, lower, upper, torch.float32), options.repeats, options.device)
        print(f"interval bounds          {interval:8.1f} ms")
        print(f"CROWN with outputs       {clock(whole, options.repeats, options.device):8.1f} ms")
        one = clock(
            lambda: crown(graph, lower[:1], upper[:1], torch.float32, BoundRequest(inner=torch.float64)), options.repeats, options.device
        )
        print(f"CROWN, one box           {one:8.1f} ms")
        state, table = crown(graph, lower, upper, torch.float32)
        alpha = clock(lambda: optimise(fast, state, table, margins), max(1, options.repeats // 5), options.device)
        print(f"alpha-CROWN, 9 margins   {alpha:8.1f} ms")
        plain, best = bound_rows(fast, state, table, margins).lower, optimise(fast, state, table, margins)[0].lower
        print(f"mean margin bound        {float(plain.mean()):8.5f} CROWN, {float(best.mean()):.5f} alpha-CROWN")

        for dtype, looser in LOOSER.items():
            state, table = crown(graph, lower, upper, dtype, BoundRequest(inner=torch.float64))
            found = bound_rows(graph.to(dtype, options.device, torch.float64), state, table, sides).lower
            compare(graph, state, found, reference, looser)


def compare(graph: Graph, state: State, found: Tensor, reference: list[tuple[Tensor, Tensor]], looser: float) -> None:
    """Print how the bounds compare with those of the dense pass; exit where they are looser by more than is allowed."""
    total = kept = extra = 0
    for node, (low, high) in zip((i - 1 for i in graph.nonlinear), reference[:-1], strict=True):
        bounds = state[node].bounds
        ours, theirs = ((b[0] < 0) & (b[1] > 0) for b in ((bounds.lower.cpu(), bounds.upper.cpu()), (low, high)))
        near = looser * (high - low)
        total, kept = total + ours.numel(), kept + int(ours.sum())
        extra += int((ours & ~theirs & (low < -near) & (high > near)).sum())
    low, high = reference[-1]
    worst = float((torch.maximum(low - found[:, : graph.ny].cpu(), -found[:, graph.ny :].cpu() - high) / (high - low)).max())
    name = f"float{32 if looser > 1e-5 else 64}"
    print(f"{name}: {100 * kept / total:.2f} % of the neurons unstable; outputs looser than the dense pass by {worst:.1e} of their width")
    if extra or worst > looser:
        sys.exit(f"looser than the dense pass ({extra} neurons)")


if __name__ == "__main__":
    main()
