"""The full check of a catalogue entry: what its file claims about the term, refuted in ball arithmetic where it is false.

A claim is only ever refuted by certified signs, so a correct file is never refused. The check samples: it finds typing
errors and wrong shapes, it does not prove that there are none.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import flint

from milpverify.errors import InvalidInput
from milpverify.functions.algebras import ball_algebra
from milpverify.functions.function import Curvature
from milpverify.functions.terms import differentiate, evaluate

if TYPE_CHECKING:
    from milpverify.functions.function import Function

_PRECISION: Final = 256  # bits


def sample_points(function: Function) -> list[flint.arb]:
    """Exact points of the domain, ascending: dense around 0 and around every special point, sparse to +-30."""
    special = [end for pair in (*function.extrema, *function.inflections) for end in pair]
    offsets = [sign * 2.0**-k for k in (4, 10, 20) for sign in (-1, 1)]
    grid = [i / 16 for i in range(-480, 481)] + [sign * 2.0**-k for k in range(5, 40, 5) for sign in (-1, 1)]
    (_, start), (end, _) = function.domain if function.domain else ((0.0, -30.0), (30.0, 0.0))
    points = {p for p in (*grid, *(s + o for s in special for o in offsets)) if start < p < end}
    unsure = (*function.poles, *function.extrema, *function.inflections)
    return [flint.arb(p) for p in sorted(points) if not any(low <= p <= high for low, high in unsure)]


def check(function: Function, where: str) -> None:
    """Check what a file claims of a function; `where` names the file in messages.

    Raises:
        InvalidInput: the derivative, the range, the extrema, the curvature or the numeric form contradicts the term.
    """
    with flint.ctx.workprec(_PRECISION):
        points = sample_points(function)
        _check_forms(function, points, where)
        if function.pieces is None:
            _check_shape(function, points, where)


def _check_forms(function: Function, points: list[flint.arb], where: str) -> None:
    """The other forms of the function and of its derivative have the term's values."""
    exact = differentiate(function.term)
    for x in points:
        value = function.ball(x)
        if not value.is_finite():
            raise InvalidInput(f"{where}: the term is not defined at {float(x)}, which is in the domain")
        if not value.overlaps(evaluate(function.numeric, ball_algebra(), {"x": x})):
            raise InvalidInput(f"{where}: backend.numeric differs from the term at {float(x)}")
        if not function.derivative_ball(x).overlaps(evaluate(exact, ball_algebra(), {"x": x})):
            raise InvalidInput(f"{where}: derivative differs from that of the term at {float(x)}")
        if function.range and (value < function.range[0][0] or value > function.range[1][1]):
            raise InvalidInput(f"{where}: range does not contain the value at {float(x)}")


def _check_shape(function: Function, points: list[flint.arb], where: str) -> None:
    """f' keeps its sign between extrema, and rises or falls between inflections as the curvature says."""
    slopes = [function.derivative_ball(x) for x in points]
    extrema, inflections = (_unrolled(function, pairs) for pairs in (function.extrema, function.inflections))
    direction = 0  # of f since the last extremum; 0 while every slope was zero
    for (a, slope_a), (b, slope_b) in pairwise(zip(points, slopes, strict=True)):
        here = f"between {float(a)} and {float(b)}"
        direction = 0 if _between(extrema, a, b) else direction or _sign(slope_a)
        if direction * _sign(slope_b) < 0:
            raise InvalidInput(f"{where}: extrema: the monotonicity changes {here}")
        if _between(inflections, a, b):
            continue
        left = sum(1 for _, high in inflections if a > high)
        index = left if function.period is None else (left - 1) % len(function.curvature)
        wrong = {
            Curvature.CONVEX: slope_b < slope_a,
            Curvature.CONCAVE: slope_b > slope_a,
            Curvature.LINEAR: not slope_a.overlaps(slope_b),
        }[function.curvature[index]]
        if wrong:
            raise InvalidInput(f"{where}: curvature: not {function.curvature[index].value} {here}")


def _sign(x: flint.arb) -> int:
    """The certain sign of a ball, 0 if it is not certain."""
    return 1 if x > 0 else -1 if x < 0 else 0


def _unrolled(function: Function, pairs: tuple[tuple[float, float], ...]) -> list[tuple[flint.arb, flint.arb]]:
    """The enclosures as balls; of a periodic function, repeated over the sampled stretch from a multiple of the whole list on."""
    if function.definition.period is None:
        return [(flint.arb(low), flint.arb(high)) for low, high in pairs]
    length = sum(map(flint.arb, function.period or ())) / 2
    slack = flint.arb(2) ** -40  # of the ends, over the few periods that are sampled
    turns = range(-int(40 / float(length)) - 1, int(40 / float(length)) + 2)
    return [(low + k * length - slack, high + k * length + slack) for k in turns for low, high in pairs]


def _between(pairs: list[tuple[flint.arb, flint.arb]], a: flint.arb, b: flint.arb) -> bool:
    """Whether one of the enclosed numbers may lie in [a, b]."""
    return any(not (high < a or low > b) for low, high in pairs)
