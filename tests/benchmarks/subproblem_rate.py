"""How many subproblems of an input-splitting search are bounded per second, and where the time goes.

The frontier after 1000 splits of the property's box is bounded in batches in float32: CROWN for every pre-activation with the
parents' bounds inherited, then the rows of the margin. The acceptance figure is for ACAS Xu 1_1 and property 3 on one core:
    python tests/benchmarks/subproblem_rate.py ACASXU_run2a_1_1_batch_2000.onnx prop_3.vnnlib
With --device cuda the same runs there, is compared with the CPU, and the best batch is looked for.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a plain checkout is enough

from milpverify import load
from milpverify.graph import Graph
from milpverify.propagation.relevance import refinable
from milpverify.propagation.request import BoundRequest
from milpverify.propagation.state import Bounds
from milpverify.search.bounding import BatchBounds, bound_batch
from milpverify.search.groups import Group, groups

Known = dict[int, Bounds]
PRODUCTS = ("::mm", "::addmm", "::bmm", "::baddbmm", "gemm", "gemv")
TOLERANCE = 1e-3
"""Between devices, of the width of a row's bounds: each is rigorous, they differ by their own rounding charges."""


def frontier(graph: Graph, group: Group, splits: int, together: int = 64) -> tuple[Tensor, Tensor, Known]:
    """The halves of the boxes that are open after a number of splits, worst margins first, with the bounds they inherit."""
    lower, upper = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
    found = bound_batch(graph, group, lower, upper, torch.float32)
    margins, known, done = found.margins.amin(1), _known(graph, found), 0
    moves = found.rows.coefficients.double().abs().sum(1)
    while True:
        order = margins.argsort()[: min(together, splits - done) or None]
        rest = torch.ones(len(margins), dtype=torch.bool).index_fill(0, order, False)
        axis = (moves * (upper - lower))[order].argmax(1, keepdim=True)
        middle = (0.5 * (lower + upper))[order].gather(1, axis)
        low = torch.cat([lower[order], lower[order].scatter(1, axis, middle)])
        high = torch.cat([upper[order].scatter(1, axis, middle), upper[order]])
        halves = {i: Bounds(torch.cat([b.lower[order]] * 2), torch.cat([b.upper[order]] * 2)) for i, b in known.items()}
        if done == splits:
            return low, high, halves
        done += len(order)
        found = bound_batch(graph, group, low, high, torch.float32, BoundRequest(halves))
        fresh = ~group.closed(found.margins).all(1)
        lower, upper = torch.cat([lower[rest], low[fresh]]), torch.cat([upper[rest], high[fresh]])
        margins = torch.cat([margins[rest], found.margins.amin(1)[fresh]])
        moves = torch.cat([moves[rest], found.rows.coefficients.double().abs().sum(1)[fresh]])
        now = _known(graph, found)
        known = {
            i: Bounds(torch.cat([b.lower[rest], now[i].lower[fresh]]), torch.cat([b.upper[rest], now[i].upper[fresh]]))
            for i, b in known.items()
        }
        if not len(lower):
            sys.exit(f"the property is proved after {done} splits: choose a harder one")


def _known(graph: Graph, found: BatchBounds) -> Known:
    return {node.id: found.state[node.id].bounds for node in refinable(graph)}


class Batch:
    """So many subproblems of the frontier, which is repeated as needed, on a device."""

    def __init__(self, graph: Graph, group: Group, boxes: tuple[Tensor, Tensor, Known], size: int, device: str) -> None:
        chosen = torch.arange(size) % len(boxes[0])
        self.graph, self.device, self.size = graph.to(torch.float64, device), device, size
        self.group = Group.of(group.members, group.disjuncts, torch.device(device))
        self.lower, self.upper = (side[chosen].to(device) for side in boxes[:2])
        self.known = {i: Bounds(b.lower[chosen].to(device), b.upper[chosen].to(device)) for i, b in boxes[2].items()}

    def bound(self) -> BatchBounds:
        """Bound them; the device has finished when this returns."""
        found = bound_batch(self.graph, self.group, self.lower, self.upper, torch.float32, BoundRequest(self.known))
        if self.device != "cpu":
            torch.cuda.synchronize()
        return found

    def rate(self, repeats: int) -> float:
        """Subproblems per second in the quickest of some runs."""
        self.bound()
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            self.bound()
            times.append(time.perf_counter() - began)
        return self.size / min(times)

    def profile(self, rows: int = 12) -> None:
        """Print the share of matrix products in the time, and what the rest is."""
        on_gpu = self.device != "cpu"
        activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
        with torch.profiler.profile(activities=activities) as profiler:
            began = time.perf_counter()
            self.bound()
            wall = 1e6 * (time.perf_counter() - began)
        events = profiler.key_averages()
        spent = {e.key: (e.self_device_time_total if on_gpu else e.self_cpu_time_total, e.count) for e in events}
        total = sum(t for t, _ in spent.values())
        products = sum(t for name, (t, _) in spent.items() if any(word in name for word in PRODUCTS))
        share = 100 * products / total
        print(f"matrix products: {share:.0f} % of the operators' {total / 1e3:.1f} ms ({wall / 1e3:.1f} ms while profiling)")
        for name, (t, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:rows]:
            print(f"  {name[:60]:<60} {100 * t / total:5.1f} % {count:6d} calls")


def parity(mine: BatchBounds, other: BatchBounds) -> float:
    """The largest difference of two devices' bounds of the rows, and of every node, in units of the width of a node's bounds."""
    worst = 0.0
    for i, known in mine.state.items():
        theirs = other.state[i].bounds
        scale = known.bounds.width.flatten(1).amax(1).clamp(min=1e-6)
        for a, b in ((known.bounds.lower, theirs.lower), (known.bounds.upper, theirs.upper)):
            worst = max(worst, float(((a - b.cpu()).flatten(1).abs().amax(1) / scale).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path)
    parser.add_argument("property", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem = load(options.network, options.property)
    with torch.no_grad():
        group = groups(problem)[0]
        boxes = frontier(problem.graph, group, options.splits)
        batch = Batch(problem.graph, group, boxes, options.batch, options.device)
        print(
            f"{len(boxes[0])} halves of the boxes open after {options.splits} splits; {options.batch} at once on {options.device}, float32"
        )
        print(f"{batch.rate(options.repeats):.0f} subproblems per second")
        batch.profile()
        if options.device != "cpu":
            found, reference = batch.bound(), Batch(problem.graph, group, boxes, options.batch, "cpu").bound()
            difference = parity(reference, found)
            print(f"bounds differ from the CPU's by at most {difference:.1e} of a node's widest bounds")
            rates = {size: Batch(problem.graph, group, boxes, size, options.device).rate(3) for size in (2**k for k in range(8, 18))}
            for size, rate in rates.items():
                print(f"  batch {size:6d}: {rate:9.0f} per second")
            print(f"best batch: {max(rates, key=lambda size: rates[size])}")
            if difference > TOLERANCE:
                sys.exit("the devices disagree")


if __name__ == "__main__":
    main()
