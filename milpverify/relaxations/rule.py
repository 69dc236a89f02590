"""How nonlinear operators are relaxed: what bound propagation asks of one, whatever the number of its inputs.

A relaxation is a lower and an upper line (a plane, for two inputs), one slope per input. Slopes come first: every slope gives a sound
line, so that slopes are free parameters, and whatever they are, the intercepts make the lines sound. For a slope k the best lower line
of a function on [l, u] is k x + min over [l, u] of (f(x) - k x). The default slope supports the convex envelope at the midpoint, which
minimises the area under the lower line; for ReLU that is the adaptive slope of CROWN (arXiv 1811.00866).

A line that is worth optimising has one free parameter per entry, from which its slopes follow: the slope itself for a function of one
input, the place between the two McCormick planes of its side for a product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.functions.catalogue import Function

PerInput = tuple[Tensor, ...]
"""One tensor per input of an operator."""
Side = Callable[[Tensor], tuple[PerInput, Tensor]]
"""From parameters (n, r, U) to the slopes and the intercepts, (n, r, U) or (n, 1, U), of one side's lines in deviations."""


class RelaxationTuning(Tuning):
    """How closely relaxations are fitted: what is proved of their lines holds whatever these are.

    Rules are made with them; no options of a search tell them others.
    """

    of_runs = False

    critical_steps: int = 3
    """Of the search for a critical point: what is left of its error costs the line next to nothing."""
    support_rounds: int = 4
    """Of the search for the supporting lines at the midpoint, each of which finds the extreme points of a slope."""
    tangents: int = 7
    """Of a function over an interval, for models: with fewer, linear programs are looser; with more, larger for next to nothing."""
    pace: float = 1 / 16
    """Steps of slopes in units of those that a function has on the interval: default lines of smooth functions are close to the best."""
    nodes: int = 1024
    nearest: float = 2.0**-10
    farthest: float = 2.0**20
    """Of the table of a function's slopes, and the scales between which they are spread."""
    cells: int = 16
    """Stretches of slopes, for each part of an interval, between which critical points are taken to move linearly."""
    samples: int = 33
    pair_samples: int = 5
    """Points of one input, and of each of two, at which a line of an envelope may be the tightest."""
    better: float = 0.95
    """A plane no more than so much of its distance from the product at the midpoint farther away than a line in one factor is taken."""
    edge: float = 2.0**-7
    """A branching point keeps this share of the width to either end."""
    grid: int = 16
    zooms: int = 3
    """Points in which a branching point is searched at a time, and how often."""


class Rule(ABC):
    """The relaxation of an operator.

    Bounds `lower`, `upper` of the inputs are float64, of one shape; so are results, but where another shape is named.
    """

    @property
    @abstractmethod
    def matters(self) -> tuple[bool, bool]:
        """Whether the lower and the upper line are worth optimising."""

    @property
    @abstractmethod
    def span(self) -> tuple[float, float]:
        """The interval that useful parameters lie in."""

    @abstractmethod
    def spans(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor, Tensor]:
        """`span` on given bounds of the inputs, in their shape: its ends, and what the optimiser's steps are multiplied with."""

    @abstractmethod
    def is_exact(self, lower: PerInput, upper: PerInput) -> Tensor:
        """Where the relaxation is the operator itself, but for rounding: bool, in the shape of the bounds."""

    @abstractmethod
    def default_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        """The slopes of the lower and of the upper line where nothing is optimised, float64."""

    @abstractmethod
    def parallel_slopes(self, lower: PerInput, upper: PerInput) -> PerInput:
        """One slope per input for both lines, as zonotopes use them."""

    @abstractmethod
    def parameters(self, lower: PerInput, upper: PerInput, which: int, slopes: PerInput) -> Tensor:
        """The parameters of the lines of a side (0 lower, 1 upper) whose slopes are the given, in their precision and shape."""

    @abstractmethod
    def slopes(self, lower: PerInput, upper: PerInput, parameters: tuple[Tensor | None, Tensor | None]) -> tuple[PerInput, PerInput]:
        """The slopes of both lines, float64, with given parameters (broadcastable against the bounds); None where they do not matter."""

    @abstractmethod
    def intercepts(self, lower: PerInput, upper: PerInput, k_lower: PerInput, k_upper: PerInput) -> tuple[Tensor, Tensor]:
        """The largest intercept of a lower line and the smallest of an upper one, with outward margins.

        Args:
            lower, upper: broadcastable against the slopes.
            k_lower, k_upper: float64; the results are differentiable in them, with gradient -x* at the extreme points x*.
        """

    @abstractmethod
    def sides(
        self, lower: PerInput, upper: PerInput, center: PerInput, value: Tensor, dtype: torch.dtype, once: bool = False
    ) -> tuple[Side, Side]:
        """The lower and the upper line, differentiable in their parameters and without margins, in deviations.

        Args:
            lower, upper, center, value: (n, U) float64: bounds and reference values of the inputs, and that of the output.
            dtype: of the parameters.
            once: whether they are called only once, so that nothing is worth preparing.
        """

    @abstractmethod
    def hull_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        """Slopes (J, R) of the few lines of either side that a small model of the operator over boxes (R,) consists of."""

    def envelope_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        """Slopes (J, R) of lines that come close to the envelopes over boxes (R,)."""
        return self.hull_slopes(lower, upper)

    @abstractmethod
    def range(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor]:
        """Bounds of the values, float64, in the shape of the inputs' bounds."""

    @abstractmethod
    def split_point(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Where to split an input with bounds of any one shape, whatever the others are: in that shape."""

    def gap(self, lower: PerInput, upper: PerInput, slopes: PerInput) -> Tensor:
        """How far the operator strays from some slopes: the height of the parallel lines around it, in the slopes' shape."""
        low, high = self.intercepts(lower, upper, slopes, slopes)
        return high - low


@dataclass(frozen=True)
class Univariate(Rule):
    """A function of the catalogue; the parameter of a line is its slope. Each kind of function says in plain tensors how it is relaxed."""

    function: Function

    @abstractmethod
    def is_affine(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Where the function is affine on [lower, upper], so that its relaxation is the function itself: bool, elementwise."""

    @abstractmethod
    def supporting_slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The slopes of the lines that support the convex and the concave envelope at the midpoint of [lower, upper].

        Args:
            lower, upper: float64, any one shape.

        Returns:
            the slopes of the lower and of the upper line, float64, of that shape.
        """

    @abstractmethod
    def chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        """The slope between the ends, elementwise, float64; that of the function where it is affine."""

    @abstractmethod
    def lower_intercept(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """The largest intercept with slope * x + intercept <= f(x) on [lower, upper], less an outward margin.

        Args:
            lower, upper: float64, broadcastable against `slope`.
            slope: float64, of the shape that the intercepts have; they are differentiable in it, with gradient -x* at the minimiser x*.
        """

    @abstractmethod
    def upper_intercept(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """The smallest intercept with f(x) <= slope * x + intercept on [lower, upper], plus an outward margin, elementwise."""

    def both_intercepts(self, lower: Tensor, upper: Tensor, k_lower: Tensor, k_upper: Tensor) -> tuple[Tensor, Tensor]:
        """`lower_intercept` for one slope and `upper_intercept` for another, of the same shape.

        Where an end is infinite, what is infinite or NaN (the latter from functions made of lines alone) says nothing.
        """
        return self.lower_intercept(lower, upper, k_lower), self.upper_intercept(lower, upper, k_upper)

    def heights(
        self, lower: Tensor, upper: Tensor, center: Tensor, value: Tensor, dtype: torch.dtype, once: bool
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Of the lower and the upper line the best intercepts of slopes (n, r, U), without margins, in deviations: see `sides`.

        Args:
            lower, upper, center, value: (n, U) float64.
            dtype: of the intercepts, (n, r, U).
        """
        low, high, z, y = (t.unsqueeze(1) for t in (lower, upper, center, value))

        def height(intercept: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def of(slope: Tensor) -> Tensor:
                k = slope.double()
                return (intercept(low, high, k) + k * z - y).to(dtype)

            return of

        return height(self.lower_intercept), height(self.upper_intercept)

    def fixed_slopes(self, lower: Tensor, upper: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
        """The supporting slopes, at least where the function is affine (`exact`) and they are not for the optimiser to choose.

        All of one shape; elsewhere they may be 0.
        """
        return self.supporting_slopes(lower, upper)

    @property
    def matters(self) -> tuple[bool, bool]:
        return True, True

    def spans(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor, Tensor]:
        least, most = self.span
        return torch.full_like(lower[0], least), torch.full_like(lower[0], most), torch.ones_like(lower[0])

    def is_exact(self, lower: PerInput, upper: PerInput) -> Tensor:
        return self.is_affine(lower[0], upper[0])

    def default_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        below, above = self.supporting_slopes(lower[0], upper[0])
        return (below,), (above,)

    def parallel_slopes(self, lower: PerInput, upper: PerInput) -> PerInput:
        return (self.chord(lower[0], upper[0]),)

    def parameters(self, lower: PerInput, upper: PerInput, which: int, slopes: PerInput) -> Tensor:
        return slopes[0]

    def slopes(self, lower: PerInput, upper: PerInput, parameters: tuple[Tensor | None, Tensor | None]) -> tuple[PerInput, PerInput]:
        exact = self.is_affine(lower[0], upper[0])
        own = self.fixed_slopes(lower[0], upper[0], exact)
        below, above = (k if t is None else torch.where(exact, k, t.double()) for k, t in zip(own, parameters, strict=True))
        return (below,), (above,)

    def hull_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        below, above = self.supporting_slopes(lower[0], upper[0])
        return (below.unsqueeze(0),), (above.unsqueeze(0),)

    def intercepts(self, lower: PerInput, upper: PerInput, k_lower: PerInput, k_upper: PerInput) -> tuple[Tensor, Tensor]:
        return self.both_intercepts(lower[0], upper[0], k_lower[0], k_upper[0])

    def sides(
        self, lower: PerInput, upper: PerInput, center: PerInput, value: Tensor, dtype: torch.dtype, once: bool = False
    ) -> tuple[Side, Side]:
        (low,), (high,), (z,) = lower, upper, center
        exact = self.is_affine(low, high)
        slopes = self.fixed_slopes(low, high, exact)
        exact = exact.unsqueeze(1)
        fixed = slopes if all(self.matters) else self.both_intercepts(low, high, *slopes)
        heights = self.heights(low, high, z, value, dtype, once)

        def side(which: int) -> Side:
            own, height = slopes[which].to(dtype).unsqueeze(1), heights[which]
            if not self.matters[which]:
                base = (fixed[which] + slopes[which] * z - value).to(dtype).unsqueeze(1)
                return lambda _: ((own,), base)

            def line(t: Tensor) -> tuple[PerInput, Tensor]:
                k = torch.where(exact, own, t)
                return (k,), height(k)

            return line

        return side(0), side(1)

    def range(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor]:
        low, high = self.function.interval(lower[0], upper[0])
        return low, high

    def split_point(self, lower: Tensor, upper: Tensor) -> Tensor:
        return 0.5 * (lower + upper)


def finite(slope: Tensor) -> Tensor:
    """A slope, of any shape, and 0 where it is infinite or undefined."""
    return torch.where(slope.isfinite(), slope, 0.0)
