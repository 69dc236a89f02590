"""The comparison of a lowered network with the runtime it comes from, which no misread attribute survives.

Every tensor that a node of the graph is called after is recomputed from the tensors that the runtime itself computed before it, so
that a difference cannot hide behind the rounding errors of earlier layers. Between the two the rounding error of a run is bounded as
usual (Higham, Accuracy and Stability of Numerical Algorithms, section 3): an inner product of n terms differs by at most
gamma(n) sum |w||x|, and gamma(n) = n u / (1 - n u) with the unit roundoff u of the tensor's type.

That costs about as much as a run: tensors are recomputed in the run's own precision, and where they are not equal the error is bounded
by a part of the sum, which is stricter, before it is by all of it and in float64.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milpverify.config import check_time
from milpverify.errors import InvalidModel
from milpverify.frontends.lowering.constants import Array, all_finite
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.functions.catalogue import Function
from milpverify.functions.piecewise import PIECEWISE
from milpverify.graph import Graph, Node, evaluate_all
from milpverify.operators import (
    Affine,
    Conv,
    Elementwise,
    Input,
    Linear,
    Nonlinear,
    Operator,
    Permute,
    Product,
    Reshape,
    Select,
    SparseLinear,
    Transposed,
)
from milpverify.spec import Box

SLACK_TERMS: Final = 16
"""Operations around an inner product that the graph computes otherwise: a quotient, a folded constant, a bias."""
FUNCTION_ULPS: Final = 32
"""A float32 function of a runtime is good to this many units roundoff of max(1, |f|); piecewise-linear ones are far better."""
TINY: Final = 2.0**-126
"""What underflow can cost an operation, amply."""
TINY_HALF: Final = 2.0**-24
"""The same in float16, whose smallest number it is."""
FEWEST: Final = 2
"""Points that a network is compared at, at least: all that is proved rests on it."""

Run = Mapping[str, NDArray[Any]]
"""The tensors that a runtime computed at a point, by the names of nodes and of all outputs."""
Value = tuple[Tensor, Callable[[], Tensor] | None]
"""Values (N, *shape), and by how much those of a run may differ, which is asked for where it matters; None for not at all."""
MOVES = Reshape | Permute | Select


def comparable_points(graph: Graph, box: Box, seed: int, tuning: LoweringTuning = LoweringTuning()) -> tuple[Array, float]:
    """Points of the box that the inputs' type holds, (2 to 6, nx), so that the rounding of x is no difference; and its largest number."""
    kinds = [getattr(torch, spec.dtype) for spec in graph.inputs] or [torch.float64]
    kind = min(kinds, key=lambda dtype: torch.finfo(dtype).max)  # of which the others hold all numbers, but of bfloat16
    largest = float(torch.finfo(kind).max)
    work = sum(_products(node) for node in graph.nodes)
    points = _points(box, seed)[: max(FEWEST, int(tuning.work / work))]
    held = torch.from_numpy(np.clip(points, -largest, largest))
    for dtype in dict.fromkeys(kinds):
        held = held.to(dtype).double()
    return held.numpy(), largest


def _products(node: Node) -> int:
    """Multiplications of a runtime, which knows no sparse matrices."""
    match node.op:
        case Conv() | Linear():
            return node.op.products(node.shape)
        case SparseLinear(size=size):
            return math.prod(node.shape[:-1]) * math.prod(size)
        case _:
            return node.size


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
    return np.stack([centre, corner, box.lower, box.upper, *np.clip(inside, box.lower, box.upper)])


class Comparison:
    """Compares a graph with a runtime, node by node.

    Args:
        runtime: its name.
        describe: how messages call a tensor of the runtime.
        roundoff: of the type that it computes in, where what it hands out is of a wider one.
    """

    def __init__(
        self,
        graph: Graph,
        runtime: str,
        describe: Callable[[str], str],
        roundoff: float = 0.0,
        tuning: LoweringTuning = LoweringTuning(),
    ) -> None:
        self.graph, self.tuning = graph, tuning
        self.runtime = runtime
        self.describe = describe
        self.least, self.tiny = roundoff, TINY

    def judge_runs(self, points: Array, run: Callable[[Array], Run], largest: float) -> None:
        """Compare with what the runtime computes at the points (N, nx).

        Raises:
            InvalidModel: they differ beyond rounding, or numbers above `largest` occur at every point.
        """
        together = max(1, self.tuning.together // self.graph.entries)
        if not sum(self.compare_at(points[i : i + together], run, largest) for i in range(0, len(points), together)):
            raise InvalidModel(f"the network cannot be compared with {self.runtime}: it overflows everywhere in the box")

    def compare_at(self, points: Array, run: Callable[[Array], Run], largest: float) -> int:
        """Compare at those points where no numbers above `largest` occur; returns how many these are."""
        pairs = [(x, run(x)) for x in points]
        kept = [(x, r) for x, r in pairs if all(map(all_finite, r.values())) or not _overflows(self.graph, x, largest)]
        if kept:
            self.compare(np.stack([x for x, _ in kept]), [r for _, r in kept])
        return len(kept)

    def compare(self, points: Array, runs: Sequence[Run]) -> None:
        """Recompute every tensor of the runs at the points from those before it."""
        self.roundoff = max(self.least, *(float(np.finfo(t.dtype).eps) / 2 for t in runs[0].values()))
        self.tiny = TINY_HALF if any(t.dtype == np.float16 for t in runs[0].values()) else TINY
        unread = Counter(i for node in self.graph.nodes for i in node.inputs)
        values: dict[int, Value] = {}
        for node in self.graph.nodes:
            check_time()
            args = [values[i] for i in node.inputs]
            if isinstance(node.op, Input):
                values[node.id] = _narrow(torch.from_numpy(points)), None
            elif node.name in runs[0]:
                run = _stacked([r[node.name].reshape(node.shape) for r in runs])
                if not any(self.agrees(node.op, args, run, in_part) for in_part in (True, False)):
                    wide = _wide(args)
                    value = _value(node.op, wide, node.shape)
                    self.judge(node.name, value, self.error(node.op, wide, value), run)
                values[node.id] = run, None
            elif isinstance(node.op, MOVES) and node.op.bias is None and args[0][1] is None:
                values[node.id] = _value(node.op, args, node.shape), None
            else:
                args = args if isinstance(node.op, Conv | Transposed) else _wide(args)
                value = _value(node.op, args, node.shape)
                values[node.id] = value, cache(partial(self.error, node.op, args, value))
            unread.subtract(node.inputs)
            for i in set(node.inputs):
                if not unread[i]:
                    del values[i]
        outputs = [np.concatenate([r[spec.name].reshape(-1) for spec in self.graph.outputs]) for r in runs]
        value, error = values[self.graph.output]
        self.judge(self.graph.outputs[-1].name, value, error() if error else torch.zeros(()), _stacked(outputs))

    def agrees(self, op: Operator, args: Sequence[Value], run: Tensor, in_part: bool) -> bool:
        """Whether a tensor (N, *shape) of the run is as good as the graph's, computed in the run's precision."""
        value = _value(op, args, run.shape[1:])
        return torch.equal(value.to(run.dtype), run) or _within(value, self.error(op, args, value, in_part), run)

    def error(self, op: Operator, args: Sequence[Value], value: Tensor, in_part: bool = False) -> Tensor:
        """By how much a run may differ from an operator's value (N, *shape), broadcastable to it; or less, by a part of a long sum."""
        xs, errors = [x for x, _ in args], [e and e() for _, e in args]
        match op:
            case Affine():
                terms = SLACK_TERMS + (1 + op.rounded if isinstance(op, MOVES) else op.terms)
                gamma = terms * self.roundoff
                reach = [x.abs() if e is None else x.abs() + (1 + 1 / gamma) * e for x, e in zip(xs, errors, strict=True)]
                size, some = _part(op, reach, self.tuning.long) if in_part else (op, reach)
                return gamma * _forward(size.absolute(), some).expand(value.shape) + terms * self.tiny
            case Elementwise(function):
                own = FUNCTION_ULPS * self.roundoff * (value.abs() if function.pieces is not None else value.abs().clamp(min=1.0))
                spread = errors[0]
                if function.name == PIECEWISE:  # the runtime computes it in parts, whose rounding counts
                    own, spread = _of_parts(function, xs[0], FUNCTION_ULPS * self.roundoff, spread)
                if spread is None:
                    return own
                # What lies outside the domain (sqrt a little below 0) is no value.
                sides = [(function(xs[0] + d) - value).abs().nan_to_num(0.0, torch.inf) for d in (spread, -spread)]
                worst = torch.maximum(*sides)
                jumps = function.pieces if function.name == PIECEWISE or function.definition.jumps else None
                for p, there in zip(jumps.breakpoints, jumps.values, strict=True) if jumps else ():
                    worst = torch.where((xs[0] - p).abs() <= spread, worst.maximum((there - value).abs()), worst)
                return 2 * worst + own
            case Product():
                (a, b), (da, db) = xs, [0.0 if e is None else e for e in errors]
                return da * b.abs() + a.abs() * db + da * db + SLACK_TERMS * self.roundoff * value.abs() + self.tiny
            case _:
                raise NotImplementedError(f"no rounding-error bound for {type(op).__name__}")

    def judge(self, name: str, value: Tensor, error: Tensor, run: Tensor) -> None:
        """Refuse the network where a tensor (N, *shape) of the run differs from the graph's value beyond rounding.

        Raises:
            InvalidModel: it does; the message names the entry that differs most.
        """
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


def _of_parts(function: Function, x: Tensor, unit: float, reach: Tensor | None) -> tuple[Tensor, Tensor]:
    """What rounding the parts of a piecewise-linear function may change of its value, and of where its breakpoints are."""
    pieces = function.pieces
    assert pieces is not None
    steep, high = (max(map(abs, numbers)) for numbers in (pieces.slopes, pieces.intercepts))
    far = unit * (x.abs() + max(map(abs, pieces.breakpoints)))
    return unit * (steep * x.abs() + high), far if reach is None else reach + far


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


def _wide(args: Sequence[Value]) -> list[Value]:
    return [(x.double(), e) for x, e in args]


def _value(op: Operator, args: Sequence[Value], shape: Sequence[int]) -> Tensor:
    """An operator's values, (N, *shape)."""
    xs = [x for x, _ in args]
    if isinstance(op, Affine):
        return _forward(op, xs).expand(-1, *shape)
    assert isinstance(op, Nonlinear)
    return op.value(xs)


def _forward(op: Affine, xs: Sequence[Tensor]) -> Tensor:
    """An affine map: a convolution, which reads every weight often, in the precision of its input, a matrix in its own."""
    if isinstance(op, Conv | Transposed):
        kernel, bias = op if isinstance(op, Conv) else op.conv, None if op.bias is None else op.bias.to(xs[0].dtype)
        kernel = replace(kernel, weight=kernel.weight.to(xs[0].dtype))
        op = replace(kernel, bias=bias) if isinstance(op, Conv) else replace(op, conv=kernel, bias=bias)
    elif isinstance(op, Linear | SparseLinear):
        xs = [x.double() for x in xs]
    return op.forward(xs)


def _part(op: Affine, xs: Sequence[Tensor], long: int) -> tuple[Affine, Sequence[Tensor]]:
    """The map of the first channels alone, where it sums over `long` entries or more: of numbers >= 0 no sum is larger.

    Of n terms sqrt(n) / 4 as many will do, as rounding errors mostly add up to sqrt(n) u.
    """
    match op:
        case Conv(weight=weight, groups=1) | Linear(weight=weight) if op.length >= long:
            kept = max(1, 4 * weight.shape[1] // math.isqrt(op.length))
            if isinstance(op, Linear):
                return replace(op, weight=weight[:, :kept]), [x[..., :kept] for x in xs]
            return replace(op, weight=weight[:, :kept], in_shape=(op.in_shape[0], kept, *op.in_shape[2:])), [x[:, :, :kept] for x in xs]
        case _:
            return op, xs
