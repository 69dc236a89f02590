"""The comparison of a lowered network with the runtime it comes from, which no misread attribute survives.

Every tensor that a node of the graph is called after is recomputed from the tensors that the runtime itself computed before it, so
that a difference cannot hide behind the rounding errors of earlier layers. Between the two the rounding error of a run is bounded as
usual (Higham, Accuracy and Stability of Numerical Algorithms, section 3): an inner product of n terms differs by at most
gamma(n) sum |w||x|, and gamma(n) = n u / (1 - n u) with the unit roundoff u of the tensor's type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milpverify.config import check_time
from milpverify.errors import InvalidModel
from milpverify.frontends.lowering.constants import Array
from milpverify.graph import Graph, Node, evaluate_all
from milpverify.operators import Affine, Elementwise, Input, Product
from milpverify.spec import Box

SLACK_TERMS = 16
"""Operations around an inner product that the graph computes otherwise: a quotient, a folded constant, a bias."""
FUNCTION_ULPS = 32
"""A float32 function of a runtime is good to this many units roundoff of max(1, |f|); piecewise-linear ones are far better."""
TINY = 2.0**-126
"""What underflow can cost an operation, amply."""


def comparable_points(graph: Graph, box: Box, seed: int) -> tuple[Array, float]:
    """Points of the box that the inputs' type holds, (6, nx), so that the rounding of x is no difference; and its largest number."""
    dtypes = {s.dtype for s in graph.inputs}
    dtype = np.dtype(min(dtypes, key=lambda d: np.dtype(d).itemsize, default="float64"))
    largest = float(np.finfo(dtype).max)
    return np.clip(_points(box, seed), -largest, largest).astype(dtype).astype(np.float64), largest


def _overflows(graph: Graph, x: Array, largest: float) -> bool:
    """Whether the network's real values at a point are too large for its type."""
    return any(not bool((v.abs() < largest / 2).all()) for v in evaluate_all(graph, torch.from_numpy(x)[None]))


def _points(box: Box, seed: int) -> Array:
    """The centre, three corners, two random points: (6, nx)."""
    random = np.random.default_rng(seed)
    share = random.random((2, box.size))
    inside = box.lower * (1.0 - share) + share * box.upper  # the difference of two numbers may be beyond the largest
    corner = np.where(random.random(box.size) < 0.5, box.lower, box.upper)
    centre = 0.5 * box.lower + 0.5 * box.upper
    return np.stack([centre, box.lower, box.upper, corner, *np.clip(inside, box.lower, box.upper)])


class Comparison:
    """Values and rounding-error bounds of every node, both (N, *shape), as the tensors of a runtime come in.

    Args:
        runtime: its name.
        describe: how messages call a tensor of the runtime.
    """

    def __init__(self, graph: Graph, runtime: str, describe: Callable[[str], str]) -> None:
        self.graph = graph
        self.runtime = runtime
        self.describe = describe

    def judge_runs(self, points: Array, runs: Sequence[Mapping[str, NDArray[Any]]], largest: float) -> None:
        """Compare with the tensors that the runtime computed at the points (N, nx), by the names of nodes and of all outputs.

        Raises:
            InvalidModel: they differ beyond rounding, or numbers above `largest` occur at every point.
        """
        kept = [
            n
            for n, run in enumerate(runs)
            if all(np.isfinite(t).all() for t in run.values()) or not _overflows(self.graph, points[n], largest)
        ]
        if not kept:
            raise InvalidModel(f"the network cannot be compared with {self.runtime}: it overflows everywhere in the box")
        self.tensors = {name: np.stack([runs[n][name] for n in kept]) for name in runs[kept[0]]}
        self.roundoff = max(float(np.finfo(t.dtype).eps) / 2 for t in self.tensors.values())
        self.compare(torch.from_numpy(points[kept]))

    def compare(self, points: Tensor) -> None:
        values: list[tuple[Tensor, Tensor]] = []
        for node in self.graph.nodes:
            check_time()
            value, error = self.step(node, [values[i] for i in node.inputs], points)
            if node.name in self.tensors and not isinstance(node.op, Input):
                run = torch.from_numpy(self.tensors[node.name].astype(np.float64)).reshape(len(points), *node.shape)
                self.judge(node.name, value, error, run)
                value, error = run, torch.zeros_like(run)
            values.append((value, error))
        outputs = [self.tensors[spec.name].astype(np.float64).reshape(len(points), -1) for spec in self.graph.outputs]
        self.judge(self.graph.outputs[-1].name, *values[self.graph.output], torch.from_numpy(np.concatenate(outputs, 1)))

    def step(self, node: Node, args: list[tuple[Tensor, Tensor]], points: Tensor) -> tuple[Tensor, Tensor]:
        """A node's value, and by how much a run's may differ from it."""
        xs, errors = [v for v, _ in args], [e for _, e in args]
        match node.op:
            case Input():
                return points, torch.zeros_like(points)
            case Affine():
                size = node.op.absolute()
                value = node.op.forward(xs).expand(-1, *node.shape)
                magnitude = size.forward([x.abs() + e for x, e in args])
                gamma = (node.op.terms + SLACK_TERMS) * self.roundoff
                return value, size.linear(errors) + gamma * magnitude + node.op.terms * TINY
            case Elementwise(function):
                value = function(xs[0])
                # What lies outside the domain (sqrt a little below 0) is no value.
                sides = [(function(xs[0] + e) - value).abs().nan_to_num(0.0, torch.inf) for e in (errors[0], -errors[0])]
                moved = torch.maximum(*sides)
                own = value.abs() if function.pieces is not None else value.abs().clamp(min=1.0)
                return value, 2 * moved + FUNCTION_ULPS * self.roundoff * own
            case Product():
                (a, b), (da, db) = xs, errors
                value = a * b
                return value, da * b.abs() + a.abs() * db + da * db + SLACK_TERMS * self.roundoff * value.abs() + TINY
            case _:
                raise NotImplementedError(f"no rounding-error bound for {type(node.op).__name__} ({node.name})")

    def judge(self, name: str, value: Tensor, error: Tensor, run: Tensor) -> None:
        """Refuse the network where a tensor of the run differs from the graph's value beyond rounding."""
        difference = (run - value).abs()
        bad = ~(difference <= 2 * error)  # NaN too
        if bad.any():
            place = int(torch.where(bad, difference.nan_to_num(torch.inf), -1.0).argmax())
            raise InvalidModel(
                f"the network as read differs from {self.runtime} at {self.describe(name)}: "
                f"{value.reshape(-1)[place].item():.9g} against {run.reshape(-1)[place].item():.9g}, "
                f"beyond a rounding error of {error.reshape(-1)[place].item():.1g}"
            )
