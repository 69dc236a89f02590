"""How far a network's own runtime may be from real arithmetic on a whole box: a-priori error bounds.

A runtime that forms sums of n products in whatever order, with a type of unit roundoff u, is wrong by at most gamma(n) sum |w||x|, with
gamma(n) = n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, section 3); errors of x enter multiplied by W, and
by the slope of a nonlinearity. From node to node that gives bounds by |W|, with which each node's own error is known. What these come to
at the outputs is then added up backwards, by the slopes of an output in each node, in intervals: where neurons are stable, what cancels
cancels. The graph computes what the network does in as many operations or more, where its operators are those named here: of others
nothing is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
import torch
from torch import Tensor

from milpverify.arithmetic.interval import Interval
from milpverify.bounding import bounds
from milpverify.frontends.lowering.comparison import FUNCTION_ULPS, SLACK_TERMS
from milpverify.functions.steepness import secants
from milpverify.graph import Pullback
from milpverify.operators import Affine, Concat, Elementwise, Input, Permute, Product, Reshape, Select
from milpverify.spec import Box
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.frontends.onnx.reading import Source
    from milpverify.functions.function import Function
    from milpverify.graph import Graph
    from milpverify.spec import Array

Errors = tuple[list[float], list[float]]
"""Per output, what it may come to, and how far it may be from its value in the reals."""
_Multipliers = tuple[Tensor, Tensor]
"""Centres and radii, (ny, *shape)."""

_OPERATORS = frozenset(
    "Abs Add And AveragePool BatchNormalization Cast Clip Concat Conv Div Dropout Equal Erf Exp Expand Flatten Gather Gemm "
    "GlobalAveragePool Greater GreaterOrEqual HardSigmoid Identity LeakyRelu Less LessOrEqual Log MatMul Max MaxPool Min Mul Neg Not Or "
    "PRelu Pad Pow Reciprocal ReduceMean ReduceSum Relu Reshape Sigmoid Sign Slice Split Sqrt Squeeze Sub Sum Tanh Transpose Unsqueeze "
    "Where".split()
)
_MOVES = frozenset("Concat Expand Flatten Gather Identity Reshape Slice Split Squeeze Transpose Unsqueeze".split())
"""What may be applied to constants alone: it rounds nothing. So do those that need no constants:"""
_SOURCES = frozenset("Constant ConstantOfShape Shape".split())
_EXACT = frozenset({"abs", "heaviside", "nonzero", "relu", "sign"})
_LINES = frozenset({"clip", "hard_sigmoid", "hard_tanh", "leaky_relu", "prelu", "relu6"})
_CURVES = frozenset({"cube", "erf", "exp", "log", "pow_even", "pow_odd", "reciprocal", "sigmoid", "sqrt", "square", "tanh"})
_OUTWARD: Final = 1 + 2.0**-30
"""What the rounding of these bounds themselves is covered by, amply: they are sums of at most 2^20 numbers >= 0 per node in float64."""
_LONGEST: Final = 1 << 20
"""Terms of a sum, at most."""


class RoundingTuning(Tuning):
    """How far what rounding costs is followed."""

    most: int = 1 << 26
    """Entries of multipliers with which errors are added up backwards, at most."""
    wider: float = 2.0**-8
    """By which share of their width boxes are widened, in which errors are bounded: assertions on inputs are weakened, too."""


def errors(graph: Graph, source: Source, lower: Array, upper: Array, tuning: RoundingTuning = RoundingTuning()) -> Errors | None:
    """Bounds over the box [lower, upper], whose inputs are numbers of the network's type; None where nothing is known.

    Args:
        graph: as it was lowered, in float64.
        source: the network's file.
        lower: (nx,).
        upper: (nx,).
        tuning: how far errors are followed.
    """
    kinds = {spec.dtype for spec in (*graph.inputs, *graph.outputs)}
    shifts = _shifts(source, *kinds) if len(kinds) == 1 else None
    if shifts is None:
        return None
    info = np.finfo(kinds.pop())
    unit, tiny, largest = float(info.eps) / 2, float(info.tiny), float(info.max)
    state = bounds(graph, Box(lower, upper))
    found: dict[int, Tensor] = {}
    sizes: dict[int, Tensor] = {}
    slopes: dict[int, tuple[Interval, ...]] = {}
    own: dict[int, Tensor] = {}
    for node in graph.nodes:
        known = state[node.id]
        reach = torch.maximum(known.lower.abs(), known.upper.abs())
        match node.op:
            case Input():
                moved = local = torch.zeros_like(reach)
            case Reshape() | Permute() | Concat() | Select(bias=None):
                moved, local = _moved(node.op, [found[i] for i in node.inputs], reach), torch.zeros_like(reach)
            case Affine():
                terms = node.op.terms + SLACK_TERMS
                if terms > _LONGEST or terms * unit > 0.25:
                    return None
                absolute = graph.absolutes[node.id]
                size = _moved(absolute, [sizes[i] for i in node.inputs], reach)
                size = size + shifts.pop(node.name, 0.0) + (0.0 if absolute.bias is None else absolute.bias)
                moved = _moved(absolute, [found[i] for i in node.inputs], reach)
                local = terms * unit / (1 - terms * unit) * size + terms * tiny
            case Elementwise(function):
                inner, wrong = state[node.inputs[0]], found[node.inputs[0]]
                ends = secants(function, inner.lower - wrong, inner.upper + wrong)
                ends = Interval(*(torch.where(wrong > 0, end, 0.0) for end in (ends.lower, ends.upper)))
                slopes[node.id] = (ends,)
                moved = torch.where(wrong > 0, torch.maximum(ends.lower.abs(), ends.upper.abs()) * wrong, 0.0)
                of_function = _local(function, reach + moved, unit)
                if of_function is None:
                    return None
                local = of_function
            case Product():
                (a, b), (da, db) = ([part[i] for i in node.inputs] for part in (sizes, found))
                moved, local = a * db + b * da, unit * a * b * 4 + tiny
                slopes[node.id] = Interval(-b, b), Interval(-a, a)  # a b - a' b' = (a - a') b + a' (b - b')
            case _:
                return None
        own[node.id] = local * _OUTWARD
        found[node.id] = (moved + local) * _OUTWARD
        sizes[node.id] = (reach + found[node.id]) * _OUTWARD
        if not bool((sizes[node.id] < largest / 2).all()):
            return None
    if shifts:  # the map of a normalisation has become part of another
        return None
    error = torch.minimum(found[graph.output][0], _backwards(graph, own, slopes, tuning.most))
    return sizes[graph.output][0].tolist(), error.tolist()


def _backwards(graph: Graph, own: dict[int, Tensor], slopes: dict[int, tuple[Interval, ...]], most: int) -> Tensor:
    """The errors of all nodes, each times the slope of every output in it, added up: (ny,); infinite where that is too dear.

    With z' - z = W (x' - x) + e and f(z') - f(z) = s (z' - z), s a slope of f between z and z', the difference of the outputs is the sum
    of what each e is multiplied with on its way. These multipliers are kept as centres and radii.

    Args:
        own: what every node's own operation is wrong by at most.
        slopes: of the nonlinear nodes, one for each input.
    """
    ny = graph.ny
    total = torch.zeros(ny, dtype=torch.float64)
    if ny * max(node.size for node in graph.nodes) > most:
        return total + torch.inf
    start = torch.eye(ny, dtype=torch.float64)
    walk = Pullback(graph, {graph.output: (start, torch.zeros_like(start))}, _sum)
    for node, (centre, radius) in walk:
        total = total + ((centre.abs() + radius) * own[node.id]).flatten(1).sum(1)
        if isinstance(node.op, Affine):
            apart = graph.absolutes[node.id].adjoint(radius * _OUTWARD + centre.abs() * (_OUTWARD - 1))
            walk.send(node, zip(node.op.adjoint(centre), apart, strict=True))
        elif node.inputs:
            walk.send(node, (_times(centre, radius, s.lower, s.upper) for s in slopes[node.id]))
    return torch.where(total.isnan(), torch.inf, total * _OUTWARD)


def _sum(known: _Multipliers, more: _Multipliers) -> _Multipliers:
    centre = known[0] + more[0]
    return centre, (known[1] + more[1] + centre.abs() * 2.0**-50) * _OUTWARD


def _times(centre: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Multipliers centre -+ radius (ny, *node) times slopes (1, *node) between lower and upper."""
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower) * _OUTWARD
    moved = centre * middle
    steep = torch.maximum(lower.abs(), upper.abs())
    return moved, (radius * steep + centre.abs() * (half + steep * 2.0**-40)) * _OUTWARD


def _moved(op: Affine, parts: list[Tensor], like: Tensor) -> Tensor:
    return op.linear(parts).expand_as(like)


def _local(function: Function, reach: Tensor, unit: float) -> Tensor | None:
    """What a runtime's function is wrong by at the argument that it gets, where its value comes to `reach` at most."""
    if function.name in _EXACT:
        return torch.zeros_like(reach)
    if function.name in _LINES:
        return SLACK_TERMS * unit * (reach + 1)
    if function.name in _CURVES:  # as the comparison with the runtime demands
        return FUNCTION_ULPS * unit * reach.clamp(min=1.0)
    return None


def _shifts(source: Source, dtype: str) -> dict[str, float] | None:
    """By the tensors that normalisations with constants compute, how large their two shifts are that add up to one.

    None where an operator is not among those named, or a constant is computed and rounded.
    """
    model = onnx.load_model_from_string(source.data)
    if model.functions:
        return None
    floating, found = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dict[str, float]()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    constant = set(weights)
    for node in model.graph.node:
        settled = constant.issuperset(name for name in node.input if name)
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in _SOURCES or (settled and node.op_type in _MOVES):
            constant.update(node.output)
        elif settled or node.op_type not in _OPERATORS:
            return None
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant" and isinstance(given.get("value"), onnx.TensorProto):
            weights[node.output[0]] = given["value"]
        if node.op_type == "Cast" and given.get("to") not in (floating, onnx.TensorProto.BOOL):
            return None
        if node.op_type == "BatchNormalization":
            if not all(name in weights for name in node.input[1:]):
                return None
            factor, shift, mean, variance = (onnx.numpy_helper.to_array(weights[n]).astype(np.float64) for n in node.input[1:])
            found[node.output[0]] = float(
                np.max(abs(factor * mean) / np.sqrt(variance + given.get("epsilon", 1e-5)) + abs(shift)) * _OUTWARD
            )
    return found
