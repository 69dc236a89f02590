"""Linear relaxations, slope first: every slope gives a sound line, so that slopes are free parameters (DESIGN.md, section 6).

For a slope k the best lower line on [l, u] is k x + min over [l, u] of (f(x) - k x). The default slope supports the convex
envelope at the midpoint, which minimises the area under the lower line; for ReLU that is the adaptive slope of CROWN
(arXiv 1811.00866). `piecewise` knows the functions made of lines, `steps` floor, `curved` all others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from milpverify.relaxations import piecewise_linear, smooth, staircase

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.functions.catalogue import Function


def is_smooth(function: Function) -> bool:
    """Whether `curved` relaxes the function, which then has a slope at every point but for kinks."""
    return not function.pieces and not function.staircase


def is_exact(function: Function, lower: Tensor, upper: Tensor) -> Tensor:
    """Where the function is affine on [lower, upper], so that its relaxation is the function itself (bool)."""
    if function.staircase:
        return staircase.is_exact(lower, upper)
    return piecewise_linear.is_exact(function.pieces, lower, upper) if function.pieces else smooth.is_exact(function, lower, upper)


def default_slopes(function: Function, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes of the lines that support the convex and the concave envelope at the midpoint of [lower, upper].

    Args:
        lower, upper: float64, any one shape.

    Returns:
        the slopes of the lower and of the upper line, float64.
    """
    if function.pieces:
        return piecewise_linear.default_slopes(function.pieces, lower, upper)
    if function.staircase:
        return staircase.default_slopes(lower, upper)
    return smooth.default_slopes(function, lower, upper)


def parallel_slope(function: Function, lower: Tensor, upper: Tensor) -> Tensor:
    """One slope for both lines, as zonotopes use it: the chord's. One backward matrix then bounds both sides."""
    if function.staircase:
        return staircase.chord(lower, upper)
    return piecewise_linear.parallel_slope(function.pieces, lower, upper) if function.pieces else smooth.chord(function, lower, upper)


def slope_range(function: Function) -> tuple[float, float]:
    """The interval that useful slopes lie in: that of the function's chords where it is known."""
    if function.staircase:
        return 0.0, math.inf
    return piecewise_linear.slope_range(function.pieces) if function.pieces else (-math.inf, math.inf)


def slope_span(function: Function, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """`slope_range` on intervals: that of the function's own slopes there, nearly, where the function is smooth."""
    if is_smooth(function):
        return smooth.slope_span(function, lower, upper)
    least, most = slope_range(function)
    return torch.full_like(lower, least), torch.full_like(lower, most)


def slopes_matter(function: Function) -> tuple[bool, bool]:
    """Whether the lower and the upper slope are worth optimising: not where the envelope on that side is one chord."""
    return piecewise_linear.slopes_matter(function.pieces) if function.pieces else (True, True)


def intercepts(function: Function, lower: Tensor, upper: Tensor, k_lower: Tensor, k_upper: Tensor) -> tuple[Tensor, Tensor]:
    """The largest intercept with k_lower x + intercept <= f(x) on [lower, upper], the smallest one above f, with outward margins.

    Args:
        lower, upper: float64, broadcastable against the slopes.
        k_lower, k_upper: float64; the results are differentiable in them, with gradient -x* at the extreme points x*.

    Returns:
        the intercepts; where an end is infinite, what is infinite or NaN (the latter from functions made of lines alone) says nothing.
    """
    if function.pieces:
        return piecewise_linear.intercepts(function.pieces, lower, upper, k_lower, k_upper)
    if function.staircase:
        return staircase.lower_intercept(lower, upper, k_lower), staircase.upper_intercept(lower, upper, k_upper)
    return smooth.intercepts(function, lower, upper, k_lower, k_upper)


def touched(function: Function, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor] | None:
    """A point of the function, as x and f(x), that the best line of every slope within `slope_range` touches on its convex side.

    For one breakpoint that is the breakpoint, moved to the nearer end where it is outside. None for other functions.
    """
    return piecewise_linear.touched(function.pieces, lower, upper) if function.pieces else None


def lower_intercept(function: Function, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
    """The first of `intercepts`."""
    if function.staircase:
        return staircase.lower_intercept(lower, upper, slope)
    return (
        piecewise_linear.lower_intercept(function.pieces, lower, upper, slope)
        if function.pieces
        else smooth.lower_intercept(function, lower, upper, slope)
    )


def upper_intercept(function: Function, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
    """The second of `intercepts`."""
    if function.staircase:
        return staircase.upper_intercept(lower, upper, slope)
    return (
        piecewise_linear.upper_intercept(function.pieces, lower, upper, slope)
        if function.pieces
        else smooth.upper_intercept(function, lower, upper, slope)
    )


def gap(function: Function, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
    """How far a function strays from a slope on [lower, upper]: the height of the parallelogram around it."""
    low, high = intercepts(function, lower, upper, slope, slope)
    return high - low


def split_point(function: Function, lower: Tensor, upper: Tensor) -> Tensor:
    """Where to split [lower, upper]: the breakpoint inside that is nearest to the middle (the middle where there is none)."""
    return piecewise_linear.split_point(function.pieces, lower, upper) if function.pieces else 0.5 * (lower + upper)
