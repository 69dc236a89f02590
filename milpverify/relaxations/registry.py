"""Which rule relaxes what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.operators import Elementwise, Product
from milpverify.relaxations.mccormick import McCormick
from milpverify.relaxations.piecewise_linear import PiecewiseLinear
from milpverify.relaxations.smooth import Smooth
from milpverify.relaxations.staircase import Staircase

if TYPE_CHECKING:
    from milpverify.functions.catalogue import Function
    from milpverify.operators import Operator
    from milpverify.relaxations.rule import Rule, Univariate


def rule_of(op: Operator) -> Rule:
    """The relaxation of a nonlinear operator.

    Raises:
        NotImplementedError: there is none.
    """
    match op:
        case Elementwise(function):
            return univariate(function)
        case Product(norm):
            if norm is None:
                return McCormick()
            from milpverify.relaxations.normalised import Normalised

            return Normalised(norm)
        case _:
            raise NotImplementedError(f"no relaxation of {type(op).__name__}")


def univariate(function: Function) -> Univariate:
    """The relaxation of a function of the catalogue."""
    if function.pieces:
        return PiecewiseLinear(function)
    return Staircase(function) if function.staircase else Smooth(function)
