"""How mixed-integer rows choose the piece of a curved neuron: multiple choice, incremental and logarithmic form, on the same models.

    python tests/benchmarks/piece_forms.py --solvers highs,scip --seconds 30

minimises tanh and sigmoid networks with their neurons in equal pieces, whose least value is the same in every form (each is the hull of
the same pieces), and prints the seconds and the nodes of each, or the bound where time ran out. The incremental form is what
`encode/curves.py` has; the others stand here.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a plain checkout is enough

import milpverify as mv
from milpverify.encode import encoding, neurons
from milpverify.encode.curves import ROUNDING, Cut, Sides, add_incremental
from milpverify.encode.milp import encode
from milpverify.encode.model import ModelBuilder
from milpverify.frontends.network import load_network
from milpverify.graph import Graph
from milpverify.solvers.base import Limits
from milpverify.solvers.registry import load
from milpverify.spec import Box, Disjunct, Rows

Form = Callable[[ModelBuilder, np.ndarray, list[Sides], int, int, float], None]
NETWORKS = {"tanh 3-10-10-1": (nn.Tanh, (3, 10, 10, 1), 1.0), "sigmoid 8-16-16-1": (nn.Sigmoid, (8, 16, 16, 1), 0.5)}


def _parts(builder: ModelBuilder, ends: np.ndarray, pieces: list[Sides], x: int, y: int, z: np.ndarray) -> None:
    """x = sum d_k within z_k times the piece's ends, y between the sums of the pieces' lines; the z_k add up to 1."""
    m, size = len(ends) - 1, float(np.abs(ends).max())
    d = builder.variables(np.minimum(ends[:-1], 0.0), np.maximum(ends[1:], 0.0), least=float(builder.unit[x]), centred=False)
    builder.row(z, np.ones(m), 1.0, 1.0)
    builder.row([*d, x], [*np.ones(m), -1.0], 0.0, 0.0, error=ROUNDING * m * size)
    for k in range(m):
        builder.row([d[k], z[k]], [1.0, -ends[k]], lower=0.0)
        builder.row([d[k], z[k]], [1.0, -ends[k + 1]], upper=0.0)
    for which, sign in ((0, 1.0), (1, -1.0)):
        a, c = (np.array(part) for part in zip(*((s[which][0][0][0], s[which][0][1]) for s in pieces), strict=True))
        builder.row([y, *d, *z], [sign, *(-sign * a), *(-sign * c)], lower=0.0, error=ROUNDING * m * float(np.abs(a).max() * size + 1.0))


def multiple_choice(builder: ModelBuilder, ends: np.ndarray, pieces: list[Sides], x: int, y: int, at: float) -> None:
    """One binary per piece."""
    _parts(builder, ends, pieces, x, y, builder.binaries(len(ends) - 1))


def logarithmic(builder: ModelBuilder, ends: np.ndarray, pieces: list[Sides], x: int, y: int, at: float) -> None:
    """Weights of pieces, numbered by a Gray code whose bits are binaries (Vielma and Nemhauser, Mathematical Programming 2011)."""
    m = len(ends) - 1
    z = builder.variables(np.zeros(m), np.ones(m))
    _parts(builder, ends, pieces, x, y, z)
    code = [k ^ (k >> 1) for k in range(m)]
    for bit in range(max(1, math.ceil(math.log2(m)))):
        b = int(builder.binaries(1)[0])
        builder.row([*z, b], [*(float(c >> bit & 1) for c in code), -1.0], 0.0, 0.0)


FORMS: dict[str, Form] = {"multiple choice": multiple_choice, "incremental": add_incremental, "logarithmic": logarithmic}


def network(kind: type[nn.Module], sizes: tuple[int, ...], radius: float) -> tuple[Graph, Box]:
    """torch's default initialisation with seed 0, weights doubled."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for m, n in itertools.pairwise(sizes):
        layers += [nn.Linear(m, n), kind()]
        layers[-2].weight.data.mul_(2.0)  # type: ignore[union-attr, operator]
    box = Box(-radius * np.ones(sizes[0]), radius * np.ones(sizes[0]))
    return load_network(nn.Sequential(*layers[:-1]).eval(), box).graph, box


def main(solvers: list[str], divisions: list[int], seconds: float) -> None:
    """Print the table."""
    print(f"{'network':18s} {'pieces':>6s} {'solver':>7s}  " + "  ".join(f"{form:>22s}" for form in FORMS))
    for name, (kind, sizes, radius) in NETWORKS.items():
        graph, box = network(kind, sizes, radius)
        found = mv.bounds(graph, box, "alpha-crown")
        ranges = [(found[i].lower[0], found[i].upper[0]) for i in range(len(graph.nodes))]
        disjunct = Disjunct(box, Rows.on_outputs([[1.0]], [0.0], graph.nx), Rows.none(graph.nx, 1))
        for m, solver in itertools.product(divisions, solvers):
            cuts = {}
            for i in graph.nonlinear:
                low, high = (t.flatten().tolist() for t in ranges[graph.nodes[i].inputs[0]])
                cuts |= {(i, k): Cut(0, tuple(np.linspace(low[k], high[k], m + 1)[1:-1].tolist())) for k in range(graph.nodes[i].size)}
            cells = []
            for form in FORMS.values():
                neurons.add_incremental = form  # type: ignore[assignment]
                model = encode(graph, ranges, disjunct, form=encoding.ModelForm(cuts)).model
                outcome = load(solver).solve(model, Limits(seconds), lambda _: False)
                cells.append(f"{outcome.dual_bound:9.5f} {outcome.seconds:5.1f} s {outcome.nodes:5d}")
            neurons.add_incremental = add_incremental
            print(f"{name:18s} {m:6d} {solver:>7s}  " + "  ".join(f"{cell:>22s}" for cell in cells), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvers", default="highs,scip")
    parser.add_argument("--pieces", default="2,4,8")
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    main(given.solvers.split(","), [int(m) for m in given.pieces.split(",")], given.seconds)
