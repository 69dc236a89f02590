"""How time and memory grow with the size of a network: convolutional networks of 5 to 320 thousand neurons, radius 1/255.

Strided convolutions with random weights (seed 0) around the smooth random image, of 64, whose label is clearest. Every network runs in a
process of its own, on one core: bounds of the margin and when they were proved, seconds of attacks, the peak of memory. What should stay
about the same is the last column: picoseconds of CPU time that backward bounds of all pre-activations take per multiplication of a
forward pass and row, of those neurons that intervals leave unstable.

    python tests/benchmarks/ladder.py [--sizes 5 20 80] [--timeout 60]
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a plain checkout is enough

import milpverify as mv
from milpverify.config import Deadline
from milpverify.operators import Affine
from milpverify.propagation.crown import crown
from milpverify.propagation.interval import propagate
from milpverify.propagation.relevance import refinable
from milpverify.propagation.request import BoundRequest
from milpverify.propagation.screening import undecided
from milpverify.result import Event

SIZES = {5: (32, 8), 20: (32, 32), 80: (64, 32), 320: (128, 32)}
"""Thousands of neurons -> pixels along an edge of the image, channels of the first convolutions."""


def network(edge: int, channels: int) -> tuple[nn.Module, torch.Tensor]:
    """A network of four layers before its outputs, and an image."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, channels, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * (edge // 4) ** 2, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    ).eval()
    coarse = torch.rand(64, 3, edge // 8, edge // 8)
    images = nn.functional.interpolate(coarse, size=(edge, edge), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        best, second = net(images).topk(2, dim=1).values.T
    return net, images[(best - second).argmax()]


def memory() -> float:
    """The peak so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def run(size: int, timeout: float) -> dict[str, Any]:
    """What one network takes."""
    torch.set_num_threads(1)
    net, image = network(*SIZES[size])
    with torch.no_grad():
        label = int(net(image[None]).argmax())
    began = time.monotonic()
    problem = mv.robustness(net, image, label, 1 / 255, clip=(0, 1))
    row: dict[str, Any] = {"load": time.monotonic() - began, "bounds": []}
    began = time.monotonic()

    def watch(event: Event) -> None:
        bound = event.data.get("bound")
        if isinstance(bound, float) and math.isfinite(bound) and (not row["bounds"] or bound > row["bounds"][-1][1]):
            row["bounds"].append((round(time.monotonic() - began, 2), bound))

    result = mv.verify(problem, timeout, options=mv.Options(threads=1), on_event=watch)
    row["verdict"], row["peak"], row["lower"] = result.verdict.value, memory(), result.lower_bound
    row["attack"] = result.ledger.get("attack", {}).get("seconds", 0.0)
    row["rungs"] = next((phase.detail["rungs"] for phase in result.phases if phase.name == "presolve"), [])
    return row | passes(problem, timeout)


def passes(problem: mv.Problem, timeout: float) -> dict[str, Any]:
    """Backward passes for all pre-activations of the box, and what they are in proportion to."""
    graph = problem.graph
    box = problem.disjuncts[0].box
    lower, upper = (torch.tensor(side)[None] for side in (box.lower, box.upper))
    forward = sum(node.op.products(node.shape) for node in graph.nodes if isinstance(node.op, Affine))
    with torch.no_grad():
        deadline = Deadline(timeout, time.process_time)
        began = time.process_time()
        state, _ = crown(graph, lower, upper, torch.float32, BoundRequest(deadline=deadline))
        seconds = time.process_time() - began
        plain = propagate(graph, lower, upper)
        rows = 0
        for node in refinable(graph):
            low, high = (t.flatten(1) for t in (plain[node.id].bounds.lower, plain[node.id].bounds.upper))
            rows += int(undecided(graph, node.id, plain, low, high).sum())
    kept = sum(int(((b.lower < 0) & (b.upper > 0)).sum()) for b in (state[graph.nodes[i].inputs[0]].bounds for i in graph.nonlinear))
    neurons = sum(graph.nodes[i].size for i in graph.nonlinear)
    return {"neurons": neurons, "forward": forward, "rows": rows, "unstable": kept, "passes": seconds, "cut": deadline.expired()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--one", type=int, choices=SIZES, help="run one network here, and print a line of JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.one, options.timeout)))
        return
    print("| neurons | multiplications | bounds by rungs | bound over time | attack | verdict | GB | rows | passes, CPU s | ps |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size in options.sizes:
        command = [sys.executable, __file__, "--one", str(size), "--timeout", str(options.timeout)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {size}k | failed: {' '.join(done.stderr.strip().splitlines()[-1:])} |", flush=True)
            continue
        print(line(json.loads(done.stdout.splitlines()[-1])), flush=True)


def line(row: dict[str, Any]) -> str:
    """A network's line of the table."""
    rungs, at = [], 0.0
    for rung in row["rungs"]:
        at += rung["seconds"]
        rungs.append(f"{rung['bound']:.3g} at {at:.2f} s" if isinstance(rung["bound"], float) else f"none at {at:.2f} s")
    later = [f"{bound:.3g} at {at} s" for at, bound in row["bounds"]]
    ratio = 1e12 * row["passes"] / max(1, row["forward"] * row["rows"])
    cells = [row["neurons"], f"{row['forward']:.2g}", ", ".join(rungs), ", ".join(later[:: max(1, len(later) // 4)])]
    cells += [f"{row['attack']:.2f} s", f"{row['verdict']} {row['lower']:.3g}", f"{row['peak']:.2f}"]
    cells += [row["rows"], f"{row['passes']:.2f}{' (cut)' * row['cut']}", f"{ratio:.1f}"]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
