"""How distances are measured."""

from __future__ import annotations

from enum import Enum
from fractions import Fraction
from typing import TYPE_CHECKING

from milpverify.errors import InvalidProperty

if TYPE_CHECKING:
    from collections.abc import Sequence


class Norm(Enum):
    """How distances are measured."""

    LINF = "linf"
    L1 = "l1"
    L2 = "l2"

    @staticmethod
    def of(name: str | Norm) -> Norm:
        """The norm of a name.

        Raises:
            InvalidProperty: there is none.
        """
        try:
            return Norm(name)
        except ValueError:
            raise InvalidProperty(f"unknown norm {name!r}; there are {', '.join(n.value for n in Norm)}") from None

    def total(self, away: Sequence[Fraction]) -> Fraction:
        """Distances by feature, >= 0, as one; for L2 its square."""
        match self:
            case Norm.LINF:
                return max(away, default=Fraction(0))
            case Norm.L1:
                return sum(away, start=Fraction(0))
            case Norm.L2:
                return sum((a * a for a in away), start=Fraction(0))
