"""Which rule relaxes what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.operators import Elementwise, Product
from milpverify.relaxations.mccormick import McCormick
from milpverify.relaxations.rule import Rule, Univariate

if TYPE_CHECKING:
    from milpverify.operators import Operator


def rule_of(op: Operator) -> Rule:
    """The relaxation of a nonlinear operator.

    Raises:
        NotImplementedError: there is none.
    """
    match op:
        case Elementwise(function):
            return Univariate(function)
        case Product():
            return McCormick()
        case _:
            raise NotImplementedError(f"no relaxation of {type(op).__name__}")
