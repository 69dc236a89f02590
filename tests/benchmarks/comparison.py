"""Whether the bounds of a comparison are in the order that is a theorem, and below the margins of sampled points.

    PYTHONPATH=.:tests/support python tests/benchmarks/comparison.py digits relu --images 20 --timeout 10
    PYTHONPATH=.:tests/support python tests/benchmarks/comparison.py files INSTANCES.csv --methods ibp,crown,alpha-crown,lp

trains a network on digits (or takes a list of instances in VNN-COMP's form), compares the methods on its first held-out images, and prints
the table, breaks of the order, means over all problems, and by how much the least margin of random points, of corners and of points of the
attack lies above the largest bound of any method.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from digits_networks import ACTIVATIONS, TRAINED, digits, trained

import milpverify as mv
from milpverify.compare.methods import ASCENDING
from milpverify.compare.sources import Instance, instances_of
from milpverify.config import Deadline
from milpverify.graph import evaluate
from milpverify.margin import in_reals, margin_at, seek, shifted

METHODS = "ibp,crown,alpha-crown,lp,exact:0.05"


def problems(network: str, images: int, eps: float) -> list[Instance]:
    """The first held-out images that a trained network reads right."""
    net, (x, y) = trained(network), digits()
    with torch.no_grad():
        right = [k for k in range(TRAINED, len(x)) if int(net(x[k : k + 1]).argmax()) == int(y[k])][:images]
    return [Instance.of(mv.robustness(net, x[k], int(y[k]), eps, clip=(0, 1)), f"{network} {k - TRAINED}", eps) for k in right]


def least_margin(problem: mv.Problem, count: int) -> float:
    """The least margin in real arithmetic among random points, corners, and points of the attack; the best of each judged rigorously."""
    rng, ours, best = np.random.default_rng(1), in_reals(problem), list[np.ndarray]()
    for box in {id(d.box): d.box for d in problem.disjuncts}.values():
        shares = rng.uniform(size=(count, box.size))
        shares[count // 2 :] = np.round(shares[count // 2 :])
        x = np.clip(box.lower + shares * (box.upper - box.lower), box.lower, box.upper)
        with torch.no_grad():
            y = evaluate(ours.graph, torch.from_numpy(x)).numpy()
        for d in problem.disjuncts:
            values = (x @ d.unsafe.x_rows.T + y @ d.unsafe.y_rows.T - d.unsafe.rhs).max(axis=1)
            best += list(x[np.argsort(values)[:3]])
    for seed in range(4):
        best += seek(shifted(ours, -1e6), Deadline(20.0), seed)
    return min(margin_at(ours, x) for x in best)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["digits", "files"])
    parser.add_argument("name", help=f"{', '.join(ACTIVATIONS)}, or a list of instances")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--eps", type=float, default=0.06)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--timeout", type=float, default=20.0)
    parser.add_argument("--points", type=int, default=4000)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    chosen = problems(asked.name, asked.images, asked.eps) if asked.what == "digits" else instances_of(Path(asked.name))
    found = mv.compare(chosen, asked.methods.split(","), asked.timeout, csv=asked.csv)
    print(found, flush=True)
    if asked.plot is not None:
        found.plot(asked.plot)
    room = []
    for one in chosen:
        largest = max((row.lower_bound for row in found if row.problem == one.name), default=-np.inf)
        room.append(least_margin(one.load(), asked.points) - largest)
    order = " <= ".join(name for name in ASCENDING if name in asked.methods.split(","))
    print(f"{len(chosen)} problems; {len(found.breaks)} breaks of {order} <= exact")
    print(f"least margin of sampled points less the largest bound: {min(room):.4g} at least, {np.median(room):.4g} in the middle")
    for s in found.summary():
        mean = np.mean([row.lower_bound for row in found if row.method == s.method])
        print(f"{s.method:14s} mean bound {mean:10.4f}, median {s.median_seconds:6.2f} s, {s.verified} verified, {s.falsified} falsified")


if __name__ == "__main__":
    main()
