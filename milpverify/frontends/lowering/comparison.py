"""The comparison of a lowered network with the runtime it comes from, which no misread attribute survives.

Every tensor that a node of the graph is called after is recomputed from the tensors that the runtime itself computed before it, so
that a difference cannot hide behind the rounding errors of earlier layers. Between the two the rounding error of a run is bounded as
usual (Higham, Accuracy and Stability of Numerical Algorithms, section 3): an inner product of n terms differs by at most
gamma(n) sum |w||x|, and gamma(n) = n u / (1 - n u) with the unit roundoff u of the tensor's type.

That costs about as much as a run: tensors are recomputed in the run's own precision, and where they are not equal the error is bounded
by a part of the sum, which is stricter, before it is by all of it and in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering.constants import Array
from milpverify.graph import Graph, evaluate_all, nonlinear_value
from milpverify.operators import Affine, Conv, Elementwise, Input, Linear, Operator, Permute, Product, Reshape, Select, SparseLinear
from milpverify.spec import Box

SLACK_TERMS = 16
"""Operations around an inner product that the graph computes otherwise: a quotient, a folded constant, a bias."""
FUNCTION_ULPS = 32
"""A float32 function of a runtime is good to this many units roundoff of max(1, |f|); piecewise-linear ones are far better."""
TINY = 2.0**-126
"""What underflow can cost an operation, amply."""
PART = 8
"""The part of a sum that is formed first: one channel in so many."""
WORK, FEWEST = 1e8, 2
"""Multiplications of runs at all points together, and how many points there are at least."""
TOGETHER = 2**21
"""Entries of all nodes, at the points that are compared at a time."""

Run = Mapping[str, NDArray[Any]]
"""The tensors that a runtime computed at a point, by the names of nodes and of all outputs."""
Value = tuple[Tensor, Tensor | None]
"""Values (N, *shape), and by how much those of a run may differ; None for not at all."""


def comparable_points(graph: Graph, box: Box, seed: int) -> tuple[Array, float]:
    """Points of the box that the inputs' type holds, (2 to 6, nx), so that the rounding of x is no difference; and its largest number."""
    dtypes = {s.dtype for s in graph.inputs}
    dtype = np.dtype(min(dtypes, key=lambda d: np.dtype(d).itemsize, default="float64"))
    largest = float(np.finfo(dtype).max)
    work = sum(node.size + (node.op.products(node.shape) if isinstance(node.op, Affine) else 0) for node in graph.nodes)
    points = _points(box, seed)[: max(FEWEST, int(WORK / work))]
    return np.clip(points, -largest, largest).astype(dtype).astype(np.float64), largest


def _overflows(graph: Graph, x: Array, largest: float) -> bool:
    """Whether the network's real values at a point are too large for its type."""
    return any(not bool((v.abs() < largest / 2).all()) for v in evaluate_all(graph, torch.from_numpy(x)[None]))


def _points(box: Box, seed: int) -> Array:
    """The centre, three corners, two random points: (6, nx)."""
    random = np.random.default_rng(seed)
    inside = box.lower + random.random((2, box.size)) * (box.upper - box.lower)
    corner = np.where(random.random(box.size) < 0.5, box.lower, box.upper)
    centre = 0.5 * box.lower + 0.5 * box.upper
    return np.stack([centre, corner, box.lower, box.upper, *np.clip(inside, box.lower, box.upper)])


class Comparison:
    """Compares a graph with a runtime, node by node.

    Args:
        runtime: its name.
        describe: how messages call a tensor of the runtime.
    """

    def __init__(self, graph: Graph, runtime: str, describe: Callable[[str], str]) -> None:
        self.graph = graph
        self.runtime = runtime
        self.describe = describe

    def judge_runs(self, points: Array, run: Callable[[Array], Run], largest: float) -> None:
        """Compare with what the runtime computes at the points (N, nx).

        Raises:
            InvalidModel: they differ beyond rounding, or numbers above `largest` occur at every point.
        """
        step, compared = max(1, TOGETHER // self.graph.entries), 0
        for first in range(0, len(points), step):
            pairs = [(x, run(x)) for x in points[first : first + step]]
            kept = [(x, r) for x, r in pairs if all(np.isfinite(t).all() for t in r.values()) or not _overflows(self.graph, x, largest)]
            if kept:
                self.compare(np.stack([x for x, _ in kept]), [r for _, r in kept])
            compared += len(kept)
        if not compared:
            raise InvalidModel(f"the network cannot be compared with {self.runtime}: it overflows everywhere in the box")

    def compare(self, points: Array, runs: Sequence[Run]) -> None:
        """Recompute every tensor of the runs at the points from those before it."""
        self.roundoff = max(float(np.finfo(t.dtype).eps) / 2 for t in runs[0].values())
        unread = Counter(i for node in self.graph.nodes for i in node.inputs)
        values: dict[int, Value] = {}
        for node in self.graph.nodes:
            args = [values[i] for i in node.inputs]
            if isinstance(node.op, Input):
                values[node.id] = _narrow(torch.from_numpy(points)), None
            elif node.name in runs[0]:
                run = _stacked([r[node.name].reshape(node.shape) for r in runs])
                if not self.agrees(node.op, args, run):
                    wide = [(x.double(), None if e is None else e.double()) for x, e in args]
                    value = _value(node.op, wide, node.shape)
                    self.judge(node.name, value, self.error(node.op, wide, value), run)
                values[node.id] = run, None
            else:
                value = _value(node.op, args, node.shape)
                exact = isinstance(node.op, Reshape | Permute | Select) and node.op.bias is None and args[0][1] is None
                values[node.id] = value, None if exact else self.error(node.op, args, value)
            unread.subtract(node.inputs)
            for i in set(node.inputs):
                if not unread[i]:
                    del values[i]
        outputs = [np.concatenate([r[spec.name].reshape(-1) for spec in self.graph.outputs]) for r in runs]
        value, error = values[self.graph.output]
        self.judge(self.graph.outputs[-1].name, value, torch.zeros(()) if error is None else error, _stacked(outputs))

    def agrees(self, op: Operator, args: Sequence[Value], run: Tensor) -> bool:
        """Whether a tensor of the run is as good as the graph's, by a bound that is at most the rounding error's."""
        value = _value(op, args, run.shape[1:])
        return torch.equal(value, run) or _within(value, self.error(op, args, value, PART), run)

    def error(self, op: Operator, args: Sequence[Value], value: Tensor, part: int = 1) -> Tensor:
        """By how much a run may differ from an operator's value, or less: with one in `part` channels only."""
        match op:
            case Affine():
                gamma = (op.terms + SLACK_TERMS) * self.roundoff
                reach = [x.abs() if e is None else x.abs() + (1 + 1 / gamma) * e for x, e in args]
                op, reach = _part(op, reach, part)
                return gamma * _forward(op.absolute(), reach).expand(value.shape) + op.terms * TINY
            case Elementwise(function):
                [(x, e)] = args
                own = FUNCTION_ULPS * self.roundoff * (value.abs() if function.pieces is not None else value.abs().clamp(min=1.0))
                if e is None:
                    return own
                # What lies outside the domain (sqrt a little below 0) is no value.
                sides = [(function(x + d) - value).abs().nan_to_num(0.0, torch.inf) for d in (e, -e)]
                return 2 * torch.maximum(*sides) + own
            case Product():
                (a, b), (da, db) = ([v for v, _ in args], [torch.zeros(()) if e is None else e for _, e in args])
                return da * b.abs() + a.abs() * db + da * db + SLACK_TERMS * self.roundoff * value.abs() + TINY
            case _:
                raise NotImplementedError(f"no rounding-error bound for {type(op).__name__}")

    def judge(self, name: str, value: Tensor, error: Tensor, run: Tensor) -> None:
        """Refuse the network where a tensor of the run differs from the graph's value beyond rounding."""
        if _within(value, error, run):
            return
        value, run, error = value.double(), run.double(), error.expand(value.shape)
        difference = (run - value).abs()
        bad = ~(difference <= 2 * error)
        place = int(torch.where(bad, difference.nan_to_num(torch.inf), -1.0).argmax())
        raise InvalidModel(
            f"the network as read differs from {self.runtime} at {self.describe(name)}: "
            f"{value.reshape(-1)[place].item():.9g} against {run.reshape(-1)[place].item():.9g}, "
            f"beyond a rounding error of {error.reshape(-1)[place].item():.1g}"
        )


def _within(value: Tensor, error: Tensor, run: Tensor) -> bool:
    return bool(((run - value).abs() <= 2 * error).all())  # not where one is NaN


def _stacked(arrays: Sequence[NDArray[Any]]) -> Tensor:
    """Tensors of runs (N, *shape), in float32 at least."""
    stacked = torch.from_numpy(arrays[0][None] if len(arrays) == 1 else np.stack(arrays))
    return stacked.float() if stacked.dtype == torch.float16 else stacked


def _narrow(points: Tensor) -> Tensor:
    """Points in float32 where that holds them."""
    narrow = points.float()
    return narrow if torch.equal(narrow.double(), points) else points


def _value(op: Operator, args: Sequence[Value], shape: Sequence[int]) -> Tensor:
    """An operator's values, (N, *shape)."""
    xs = [x for x, _ in args]
    return _forward(op, xs).expand(-1, *shape) if isinstance(op, Affine) else nonlinear_value(op, xs)


def _forward(op: Affine, xs: Sequence[Tensor]) -> Tensor:
    """An affine map: a convolution, which reads every weight often, in the precision of its input, a matrix in its own."""
    match op:
        case Conv():
            return op.to(xs[0].dtype, xs[0].device).forward(xs)
        case Linear() | SparseLinear():
            return op.forward([x.double() for x in xs])
        case _:
            return op.forward(xs)


def _part(op: Affine, xs: Sequence[Tensor], part: int) -> tuple[Affine, Sequence[Tensor]]:
    """The map of the first channels alone, where it sums over many: of numbers >= 0 no sum is larger."""
    match op:
        case Conv(weight=weight, groups=1) if (kept := weight.shape[1] // part) > 1 < part:
            channels = (op.in_shape[0], kept, *op.in_shape[2:])
            return replace(op, weight=weight[:, :kept], in_shape=channels), [x[:, :, :kept] for x in xs]
        case Linear(weight=weight) if (kept := weight.shape[1] // part) > 1 < part:
            return replace(op, weight=weight[:, :kept]), [x[..., :kept] for x in xs]
        case _:
            return op, xs
