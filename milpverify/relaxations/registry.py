"""Which rule relaxes what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from milpverify.operators import Elementwise, Product
from milpverify.relaxations.mccormick import McCormick
from milpverify.relaxations.piecewise_linear import PiecewiseLinear
from milpverify.relaxations.smooth import Smooth
from milpverify.relaxations.staircase import Staircase

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.functions.catalogue import Function
    from milpverify.operators import Operator
    from milpverify.relaxations.rule import Rule, Univariate


def univariate(function: Function) -> Univariate:
    """The relaxation of a function of the catalogue."""
    if function.pieces:
        return PiecewiseLinear(function)
    return Staircase(function) if function.staircase else Smooth(function)


def _product(op: Product) -> Rule:
    if op.norm is None:
        return McCormick()
    from milpverify.relaxations.normalised import Normalised

    return Normalised(op.norm)


RULES: dict[type[Operator], Callable[[Any], Rule]] = {Elementwise: lambda op: univariate(op.function), Product: _product}
"""By the kind of a nonlinear operator, what makes the rule for one."""


def rule_of(op: Operator) -> Rule:
    """The relaxation of a nonlinear operator.

    Raises:
        NotImplementedError: there is none.
    """
    made = RULES.get(type(op))
    if made is None:
        raise NotImplementedError(f"no relaxation of {type(op).__name__}")
    return made(op)
