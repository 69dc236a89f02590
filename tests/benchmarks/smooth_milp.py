"""Whole models of smooth networks: pieces refined where they matter, against equal pieces everywhere and the own search.

    python tests/benchmarks/smooth_milp.py --seconds 60

Random networks (torch.manual_seed(0), the default initialisation of nn.Linear, weights doubled), their one output minimised over a box
around 0. Equal pieces begin with bounds by alpha-CROWN and are one model each, in HiGHS, whose bound is taken at its word
here, and in SCIP. Prints a table in Markdown: by way, its bounds, the gap to the best value that any way attains, and seconds.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / folder) for folder in ("", "support", "soundness"))]

import highspy  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from smooth_graphs import Bounds, Case, Form, by_search  # noqa: E402

import milpverify as mv  # noqa: E402
from milpverify.encode.curves import Cut  # noqa: E402
from milpverify.encode.encoding import Encoding, ModelForm  # noqa: E402
from milpverify.encode.milp import encode  # noqa: E402
from milpverify.frontends.lowering.builder import Builder  # noqa: E402
from milpverify.solvers.base import Limits  # noqa: E402
from milpverify.solvers.highs import _lp  # noqa: E402
from milpverify.solvers.process import SolverProcess  # noqa: E402
from milpverify.solvers.trusted_bound import safe_dual_bound  # noqa: E402
from milpverify.spec import Box, Rows  # noqa: E402

NETWORKS = {
    "tanh 3-10-10-1": ("tanh", (3, 10, 10, 1), 1.0),
    "tanh 8-16-16-1": ("tanh", (8, 16, 16, 1), 0.5),
    "sigmoid 3-10-10-1": ("sigmoid", (3, 10, 10, 1), 1.0),
    "sigmoid 8-16-16-1": ("sigmoid", (8, 16, 16, 1), 0.5),
}


def network(name: str) -> Case:
    """A network and its box by its name."""
    function, sizes, radius = NETWORKS[name]
    torch.manual_seed(0)
    layers = [torch.nn.Linear(m, n) for m, n in pairwise(sizes)]
    build = Builder(sizes[0])
    x = build.nodes[0]
    for k, layer in enumerate(layers):
        weight, bias = (t.detach().double().numpy() for t in (2.0 * layer.weight, layer.bias))
        x = build.scale(build.matmul(x, weight.T), bias=bias)
        x = build.function(function, x) if k + 1 < len(layers) else x
    graph, ends = build.graph([x], (), ()), radius * np.ones(sizes[0])
    return Case(name, graph, Box(-ends, ends), Rows.none(graph.nx, 1))


def divided(case: Case, pieces: int) -> Encoding:
    """One model with so many equal pieces for every neuron."""
    found = mv.bounds(case.graph, case.box, "alpha-crown")
    ranges = [(found[i].lower[0], found[i].upper[0]) for i in range(len(case.graph.nodes))]
    cuts = {}
    for i in case.graph.nonlinear:
        low, high = (t.reshape(-1).numpy() for t in ranges[case.graph.nodes[i].inputs[0]])
        for k in range(case.graph.nodes[i].size):
            cuts[i, k] = Cut(0, tuple(np.linspace(low[k], high[k], pieces + 1)[1:-1].tolist()))
    return encode(case.graph, ranges, case.disjunct(), form=ModelForm(cuts))


def equal(pieces: int, solver: str) -> Form:
    """Equal pieces everywhere."""

    def form(case: Case, seconds: float) -> Bounds:
        began = time.monotonic()
        encoding = divided(case, pieces)
        left = seconds - (time.monotonic() - began)
        if solver == "scip":
            with SolverProcess("scip") as process:
                outcome = process.solve(encoding.model, Limits(left), mv.Deadline(left + 10.0))
            point, bound = outcome.point, safe_dual_bound(outcome, encoding.model)
        else:
            highs = highspy.Highs()
            for option, value in {"output_flag": False, "threads": 1, "time_limit": left, "mip_rel_gap": 0.0}.items():
                highs.setOptionValue(option, value)
            highs.passModel(_lp(highspy, encoding.model))
            highs.run()
            known = highs.getInfo().primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
            point = np.array(highs.getSolution().col_value) if known else None
            bound = float(highs.getInfo().mip_dual_bound)
        return Bounds(bound, math.inf if point is None else case.value(encoding.x_of(point)))

    return form


def linear(case: Case, seconds: float) -> Bounds:
    """alpha-CROWN alone."""
    found = mv.bounds(case.graph, case.box, "alpha-crown").output
    return Bounds(float(found.lower[0, 0]), case.sampled())


def ways(gap: float) -> dict[str, Form]:
    """What is compared; a gap at which searches end."""
    return {
        "alpha-CROWN": linear,
        "own search": by_search("bab", gap),
        "refined, SCIP": by_search(mv.Milp("scip"), gap),
        "refined, HiGHS": by_search(mv.Milp("highs"), gap),
        "functions in SCIP": by_search(mv.Milp("scip", encoding="native"), gap),
        **{f"{n} equal pieces, {name}": equal(n, solver) for n in (2, 6, 16) for name, solver in (("HiGHS", "highs"), ("SCIP", "scip"))},
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--way", action="append", choices=list(ways(1.0)))
    parser.add_argument("--gap", type=float, default=1e-3, help="at which searches and refinement end")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = ways(given.gap)
    print("| network | way | lower bound | attained | gap | seconds |\n|---|---|--:|--:|--:|--:|")
    for name in given.network or NETWORKS:
        case, rows = network(name), []
        for way in given.way or known:
            began = time.monotonic()
            rows.append((way, known[way](case, given.seconds), time.monotonic() - began))
        best = min([case.sampled(), *(bounds.upper for _, bounds, _ in rows)])
        for way, bounds, seconds in rows:
            numbers = f"{bounds.lower:.5f} | {bounds.upper:.5f} | {best - bounds.lower:.2e} | {seconds:.1f}"
            print(f"| {name} | {way} | {numbers} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
