"""How time and memory grow with the size of a network: convolutional networks of 5 to 320 thousand neurons, radius 1/255.

Strided convolutions with random weights (seed 0) around a smooth random image; the label is the network's own, the margin that to the
other outputs. Every network runs in a process of its own, on one core: seconds and peak memory to the first bound of the margin that is
a number, to the end of the first attack, and the bound over time. What should stay about the same is the last column: CPU seconds of
backward bounds for all pre-activations per multiplication of a forward pass times rows of unstable neurons.

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
from milpverify.events import Event
from milpverify.operators import Affine
from milpverify.propagation.crown import crown
from milpverify.propagation.interval import propagate
from milpverify.propagation.relevance import refinable
from milpverify.propagation.screening import undecided

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
    coarse = torch.rand(1, 3, edge // 8, edge // 8)
    image = nn.functional.interpolate(coarse, size=(edge, edge), mode="bicubic").clamp(0, 1)
    return net, (image + 0.02 * torch.randn_like(image)).clamp(0, 1)[0]


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
    row: dict[str, Any] = {"load": time.monotonic() - began, "before": memory(), "bounds": []}
    began = time.monotonic()

    def watch(event: Event) -> None:
        bound = event.data.get("bound")
        if isinstance(bound, float) and math.isfinite(bound) and (not row["bounds"] or bound > row["bounds"][-1][1]):
            row["bounds"].append((round(time.monotonic() - began, 2), bound))
            row.setdefault("memory", memory())

    result = mv.verify(problem, timeout, options=mv.Options(threads=1), on_event=watch)
    row["verdict"], row["peak"], row["lower"] = result.verdict.value, memory(), result.lower_bound
    row["phases"] = [(phase.name, round(phase.seconds, 2)) for phase in result.phases]
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
        state, _ = crown(graph, lower, upper, torch.float32, deadline=deadline)
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
    print("| neurons | multiplications | first bound | GB | first attack | bound over time | verdict, GB | rows | passes, CPU s | ns |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size in options.sizes:
        command = [sys.executable, __file__, "--one", str(size), "--timeout", str(options.timeout)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"| {size}k | failed: {done.stderr.strip().splitlines()[-1:]} |")
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        bounds = ", ".join(f"{bound:.3g} at {at} s" for at, bound in row["bounds"][:1] + row["bounds"][1:][-3:])
        first = f"{row['bounds'][0][0]} s" if row["bounds"] else "none"
        ratio = 1e9 * row["passes"] / max(1, row["forward"] * row["rows"]) * 1e3
        attack = next((f"{seconds} s" for name, seconds in row["phases"] if name == "attack"), "before")
        print(
            f"| {row['neurons']} | {row['forward']:.2g} | {first} | {row.get('memory', 0):.2f} | {attack} | {bounds} "
            f"| {row['verdict']}, {row['peak']:.2f} | {row['rows']} | {row['passes']:.2f}{' (cut)' if row['cut'] else ''} | {ratio:.3g}e-3 |",
            flush=True,
        )


if __name__ == "__main__":
    main()
