"""Functions' terms as solvers need them: in floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from milpverify.functions.terms import RATIONAL, UNARY, Algebra, Term, evaluate

_FLOATS: Mapping[str, Callable[..., Any]] = {
    **RATIONAL,
    **{name: getattr(math, name) for name in UNARY if hasattr(math, name)},
    "sign": lambda a: float((a > 0) - (a < 0)),
    "floor": lambda a: float(math.floor(a)),
}
_FLOAT_ALGEBRA: Algebra[float] = Algebra(float, _FLOATS.get, lambda: math.pi)


def value_of(term: Term, x: float) -> float:
    """The value of a term in x, up to rounding; NaN where it has none, or none that a float holds."""
    try:
        return evaluate(term, _FLOAT_ALGEBRA, {"x": x})
    except (OverflowError, ValueError, ZeroDivisionError):
        return math.nan
