"""The rules of functions of one input, with the function as an argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.relaxations.registry import univariate

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.functions.catalogue import Function


def default_slopes(function: Function, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    return univariate(function).supporting_slopes(lower, upper)


def parallel_slope(function: Function, lower: Tensor, upper: Tensor) -> Tensor:
    return univariate(function).chord(lower, upper)


def intercepts(function: Function, lower: Tensor, upper: Tensor, k_lower: Tensor, k_upper: Tensor) -> tuple[Tensor, Tensor]:
    return univariate(function).both_intercepts(lower, upper, k_lower, k_upper)
