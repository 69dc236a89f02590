"""What a graph's output is in real arithmetic: rigorous intervals at a point, and exact rationals for piecewise-linear graphs.

`enclose` carries a centre and a radius through the graph (running error analysis; Higham, Accuracy and Stability of
Numerical Algorithms, section 3.3): it says what is true of the reals whatever the order of summation. It is not meant for boxes.
"""

from __future__ import annotations

import math
from dataclasses import fields
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from milpverify.arithmetic.interval import Interval
from milpverify.arithmetic.rounding import U64, UNDERFLOW, down, up
from milpverify.operators import Affine, Input, Nonlinear, Operator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from milpverify.functions.pieces import Pieces
    from milpverify.graph import Graph, Node

_ENOUGH: Final = 2.0**900
"""Lower ends beyond are moved to where sums of them do not overflow."""


def enclose(graph: Graph, x: Tensor) -> tuple[Tensor, Tensor]:
    """Intervals that contain f(x) in real arithmetic on the stored weights, at the points x (N, nx) float64.

    For an affine node with an inner product of n terms (and as many more as its weights are rounded) and inputs c -+ r,

        centre = fl(W c + b),    radius = |W| r + gamma(n) (|W| |c| + |b|),    gamma(n) = n u / (1 - n u),

    enlarged for the rounding of the radius itself; nonlinearities go through their outward-rounded interval rule. A sum that float64 holds
    exactly, whatever its order, has the radius 0: those of binarised and quantised networks have, whose values lie at jumps.
    Of what overflows upwards, as exponentials behind finite masks do, the lower end is carried on while it enters with no negative
    coefficient, so that its reciprocal is next to nothing.

    Returns:
        lower, upper: (N, ny) float64; infinite where the arithmetic overflows.
    """
    return _finished(*_carried(graph, x)[graph.output])


def enclose_all(graph: Graph, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """`enclose` for every node: lower, upper (N, *shape) each."""
    return [_finished(centre, radius) for centre, radius in _carried(graph, x)]


def _carried(graph: Graph, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Centre and radius of every node."""
    if graph.dtype != torch.float64 or x.dtype != torch.float64:
        raise ValueError("an enclosure needs the float64 graph, whose weights are exact, and float64 points")
    centres: list[Tensor] = []
    radii: list[Tensor] = []
    least: dict[int, Tensor] = {}  # lower ends of nodes of which no more may be known, such as exponentials that overflow
    with torch.no_grad():
        for node in graph.nodes:
            match node.op:
                case Input():
                    centre, radius = x, torch.zeros_like(x)
                case Affine() as op:
                    centre, radius = _affine(op, [centres[i] for i in node.inputs], [radii[i] for i in node.inputs])
                    if any(i in least for i in node.inputs) and all(d > 0 for d in op.directions):
                        lower = [(least[i] if i in least else _finished(centres[i], radii[i])[0]).clamp(max=_ENOUGH) for i in node.inputs]
                        least[node.id] = _finished(*_affine(op, lower, [torch.zeros_like(v) for v in lower]))[0].expand(len(x), *node.shape)
                case Nonlinear() as op:
                    ends = [Interval(*_ends(centres[i], radii[i])) for i in node.inputs]
                    if len(ends) == 1 and (known := least.get(node.inputs[0])) is not None:
                        open_ = ~(ends[0].lower.isfinite() & ends[0].upper.isfinite())
                        ends = [Interval(torch.where(open_, known, ends[0].lower), torch.where(open_, math.inf, ends[0].upper))]
                    lower_end, upper_end = op.interval(ends)
                    centre, radius = _middle(lower_end, upper_end)
                    if len(ends) == 1 and bool((upper_end.isinf() & lower_end.isfinite()).any()):
                        least[node.id] = lower_end.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).expand(len(x), *node.shape)
                    if op.pieces is not None:
                        centre, radius = _at_points(op.pieces, centres[node.inputs[0]], radii[node.inputs[0]], centre, radius)
                case _:
                    raise NotImplementedError(f"no enclosure rule for {type(node.op).__name__} ({node.name})")
            centres.append(centre.expand(len(x), *node.shape))
            radii.append(radius.expand(len(x), *node.shape))
    return list(zip(centres, radii, strict=True))


def _finished(centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The ends, infinite where nothing is known."""
    lower, upper = _ends(centre, radius)
    infinite = {"posinf": math.inf, "neginf": -math.inf}
    return lower.nan_to_num(nan=-math.inf, **infinite), upper.nan_to_num(nan=math.inf, **infinite)


def _affine(op: Affine, centres: list[Tensor], radii: list[Tensor]) -> tuple[Tensor, Tensor]:
    absolute = op.absolute()
    terms = op.terms + 3
    gamma = terms * U64 / (1 - terms * U64)
    size = absolute.forward([c.abs() for c in centres])
    # 4 gamma covers that |W| r, |W| |c| and their sum are rounded too.
    radius = (absolute.linear(radii) + gamma * size) * (1 + 4 * gamma) + terms * UNDERFLOW
    if not any(bool(r.any()) for r in radii) and _is_exact(op, centres, float(size.amax()) if size.numel() else 0.0):
        radius = torch.zeros_like(radius)
    return op.forward(centres), radius


def _is_exact(op: Affine, centres: list[Tensor], size: float) -> bool:
    """Whether float64 holds every partial sum of W c + b: all are multiples of one power of two, and at most 2^53 of these in size.

    Args:
        size: the largest |W| |c| + |b|.
    """
    values = list(_parameters(op))
    if op.rounded or any(isinstance(v, float) for v in values) or not math.isfinite(size):
        return False
    weights = [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point() and v is not op.bias]
    unit = min(map(_unit, centres)) + min([0, *map(_unit, weights)])
    unit = unit if op.bias is None else min(unit, _unit(op.bias))
    return unit > -1000 and size * (1 + 2.0**-20) <= 2.0**53 * 2.0**unit


def _parameters(op: Operator) -> Iterator[object]:
    """The values of an operator's fields, those of the operators that it is made of too."""
    for field in fields(op):  # type: ignore[arg-type]
        value = getattr(op, field.name)
        if isinstance(value, Operator):
            yield from _parameters(value)
        else:
            yield value


def _unit(values: Tensor) -> int:
    """The exponent of the largest power of two, up to 1, that all values are multiples of."""
    mantissa, exponent = torch.frexp(values)
    digits = (mantissa * 2.0**53).long()  # exact
    last = torch.frexp((digits & -digits).double())[1] - 1  # the place of the last digit that is not 0
    places = torch.where(digits == 0, 0, exponent + last - 53)
    return min(0, int(places.amin())) if values.numel() else 0


def _at_points(pieces: Pieces, x: Tensor, width: Tensor, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The values of a piecewise-linear function where its argument is known exactly and the value is no sum; otherwise as they are."""
    points, slopes, intercepts, values = (x.new_tensor(t) for t in (pieces.breakpoints, pieces.slopes, pieces.intercepts, pieces.values))
    place = torch.searchsorted(points, x.contiguous())
    slope, intercept = slopes[place], intercepts[place]
    value, exact = slope * x + intercept, (slope == 0) | ((slope.abs() == 1) & (intercept == 0))
    for point, there in zip(pieces.breakpoints, values, strict=True):
        value, exact = torch.where(x == point, there, value), exact | (x == point)
    exact = exact & (width == 0) & x.isfinite()
    return torch.where(exact, value, centre), torch.where(exact, 0.0, radius)


def _ends(centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(radius == 0, centre, down(centre - radius)), torch.where(radius == 0, centre, up(centre + radius))


def _middle(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    centre = lower + (upper - lower) / 2
    return centre, torch.where(lower == upper, 0.0, up(torch.maximum(upper - centre, centre - lower)))


def exact_outputs(graph: Graph, x: NDArray[np.float64], limit: int = 2_000_000, most: int = 200_000_000) -> list[Fraction] | None:
    """f(x) in rational arithmetic at one point x (nx,), None where that is impossible or too expensive.

    The rows of an affine node are exact unless its weights are rounded, for they are multiplied by ones and zeros only; what is
    evaluated exactly besides are piecewise-linear functions, whose pieces are exact in binary64.

    Args:
        limit: the number of multiplications that are affordable (about a microsecond each).
        most: the entries that the rows of affine nodes may have, zeros included.
    """
    needed = graph.ancestors[graph.output]
    sources = {node.id: [graph.nodes[i] for i in node.inputs] for node in graph.nodes}
    affine = [(node, node.op) for node in graph.nodes if node.id in needed and isinstance(node.op, Affine)]
    products = sum(node.size * op.terms for node, op in affine)
    dense = sum(node.size * source.size for node, _ in affine for source in sources[node.id])
    if any(op.rounded for _, op in affine):
        return None
    if products > limit or dense > most or not np.isfinite(x).all():
        return None
    values: dict[int, list[Fraction]] = {}
    for node in graph.nodes:
        if node.id not in needed:
            continue
        match node.op:
            case Input():
                values[node.id] = [Fraction(v) for v in x.tolist()]
            case Affine():
                values[node.id] = _exact_affine(node, sources[node.id], values)
            case Nonlinear() as op:
                found = [op.exact(entries) for entries in zip(*(values[i] for i in node.inputs), strict=True)]
                values[node.id] = [v for v in found if v is not None]
                if len(values[node.id]) < len(found):
                    return None
            case _:
                return None
    return values[graph.output]


def _exact_affine(node: Node, sources: list[Node], values: dict[int, list[Fraction]]) -> list[Fraction]:
    op = node.op
    assert isinstance(op, Affine)
    bias = [0.0] * node.size if op.bias is None else op.bias.expand(node.shape).reshape(-1).tolist()
    # Integers over one denominator per source: the inner loop has no fractions to reduce.
    denominators = [math.lcm(*(v.denominator for v in values[s.id])) for s in sources]
    integers = [[v.numerator * (d // v.denominator) for v in values[s.id]] for s, d in zip(sources, denominators, strict=True)]
    chunk = max(1, 4_000_000 // max(1, sum(s.size for s in sources)))
    out: list[Fraction] = []
    for start in range(0, node.size, chunk):
        index = torch.arange(start, min(start + chunk, node.size))
        parts = [p.reshape(len(index), -1).numpy() for p in op.rows(index, node.shape)]
        for r in range(len(index)):
            total = Fraction(bias[start + r])
            for part, entries, denominator in zip(parts, integers, denominators, strict=True):
                columns = np.flatnonzero(part[r])
                ratios = [w.as_integer_ratio() for w in part[r, columns].tolist()]
                scale = max((d for _, d in ratios), default=1)  # of powers of two
                product = sum(n * (scale // d) * entries[c] for (n, d), c in zip(ratios, columns.tolist(), strict=True))
                total += Fraction(product, scale * denominator)
            out.append(total)
    return out
