"""What a frontend knows of an operator: how it is lowered, and what becomes of constants among its arguments that are rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Lower = TypeVar("Lower")


@dataclass(frozen=True)
class Rule(Generic[Lower]):
    """How an operator is lowered.

    Constants that are not exact (see `constants.Constant`) become nodes first, which stand for the real numbers whatever is made of them,
    unless the rule is known to hand their mark on.

    Args:
        lower: adds nodes to a builder.
        moves: the results are entries of the arguments, but for signs: what is made of constants alone is rounded as they are.
        linear_in_constants: the weights on x are products and quotients of the constants.
        masks: constants among the arguments may hold -inf.
        attributes: that the rule heeds; None: all that there are.
    """

    lower: Lower
    moves: bool = False
    linear_in_constants: bool = False
    masks: bool = False
    attributes: frozenset[str] | None = None
