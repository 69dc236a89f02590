"""What a frontend knows of an operator: how it is lowered, and what becomes of constants among its arguments that are rounded.

The numbers that choose between equal forms are here, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from milpverify.tuning import Tuning

Lower = TypeVar("Lower")


class LoweringTuning(Tuning):
    """Which of several forms a network is lowered to, how far rewrites are looked for, and what its comparison with a runtime takes.

    All forms are equal in the reals.
    """

    pairs: int = 200_000
    """Softmax compares every two entries of a row while that takes no more exponentials than this; a longer one shares them."""
    room: int = 16
    """Entries of a sum for each that is added or added to, for which all updates of a scatter are added at once."""
    cancelling: int = 2**20
    """A square whose constants exceed those of the product that it stands for by more than this factor is left a product."""
    depth: int = 12
    breakpoints: int = 32
    lines: int = 4096
    """Choices between tensors as functions of one: nodes on the way to it, breakpoints of the function that is found, and different lines
    of the entries."""
    coefficients: int = 2**18
    """Of all matrices together, beyond which no repeated entries are looked for: what would be found is rarely worth the time."""
    work: float = 5e7
    """Multiplications of a runtime at all points that it is compared at together, where these are more than the fewest."""
    together: int = 2**27
    """Entries of all nodes, at the points that are compared at a time."""
    long: int = 256
    """Terms of a sum whose rounding errors are bounded by a part of it first, which is stricter."""


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
