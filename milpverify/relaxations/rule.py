"""How nonlinear operators are relaxed: what bound propagation asks of one, whatever the number of its inputs.

A relaxation is a lower and an upper line (a plane, for two inputs), one slope per input. Slopes come first: whatever they are, the
intercepts make the lines sound. A line that is worth optimising has one free parameter per entry, from which its slopes follow: the
slope itself for a function of one input, the place between the two McCormick planes of its side for a product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.relaxations import relaxation
from milpverify.relaxations.slope_tables import SlopeTable, slope_tables

if TYPE_CHECKING:
    from milpverify.functions.catalogue import Function

Ends = tuple[Tensor, ...]
"""One tensor per input of an operator."""
Side = Callable[[Tensor], tuple[Ends, Tensor]]
"""From parameters (n, r, U) to the slopes and the intercepts, (n, r, U) or (n, 1, U), of one side's lines in deviations."""


class Rule(ABC):
    """The relaxation of an operator. Bounds `lower`, `upper` of the inputs are float64, of one shape."""

    @property
    @abstractmethod
    def matters(self) -> tuple[bool, bool]:
        """Whether the lower and the upper line are worth optimising."""

    @property
    @abstractmethod
    def span(self) -> tuple[float, float]:
        """The interval that useful parameters lie in."""

    @abstractmethod
    def spans(self, lower: Ends, upper: Ends) -> tuple[Tensor, Tensor, Tensor]:
        """`span` on given bounds of the inputs: its ends, and what the optimiser's steps are multiplied with."""

    @property
    @abstractmethod
    def bilinear(self) -> bool:
        """Whether the operator is the product of its first and its last input, which may be the same one."""

    @abstractmethod
    def is_exact(self, lower: Ends, upper: Ends) -> Tensor:
        """Where the relaxation is the operator itself, but for rounding (bool)."""

    @abstractmethod
    def default_slopes(self, lower: Ends, upper: Ends) -> tuple[Ends, Ends]:
        """The slopes of the lower and of the upper line where nothing is optimised, float64."""

    @abstractmethod
    def parallel_slopes(self, lower: Ends, upper: Ends) -> Ends:
        """One slope per input for both lines, as zonotopes use them."""

    @abstractmethod
    def parameters(self, lower: Ends, upper: Ends, which: int, slopes: Ends) -> Tensor:
        """The parameters of the lines of a side (0 lower, 1 upper) whose slopes are the given, in their precision."""

    @abstractmethod
    def slopes(self, lower: Ends, upper: Ends, parameters: tuple[Tensor | None, Tensor | None]) -> tuple[Ends, Ends]:
        """The slopes of both lines, float64, with given parameters (broadcastable against the bounds); None where they do not matter."""

    @abstractmethod
    def intercepts(self, lower: Ends, upper: Ends, k_lower: Ends, k_upper: Ends) -> tuple[Tensor, Tensor]:
        """The largest intercept of a lower line and the smallest of an upper one, with outward margins.

        Args:
            lower, upper: broadcastable against the slopes.
            k_lower, k_upper: float64; the results are differentiable in them, with gradient -x* at the extreme points x*.
        """

    @abstractmethod
    def sides(self, lower: Ends, upper: Ends, center: Ends, value: Tensor, dtype: torch.dtype, once: bool = False) -> tuple[Side, Side]:
        """The lower and the upper line, differentiable in their parameters and without margins, in deviations.

        Args:
            lower, upper, center, value: (n, U) float64: bounds and reference values of the inputs, and that of the output.
            dtype: of the parameters.
            once: whether they are called only once, so that nothing is worth preparing.
        """

    @abstractmethod
    def range(self, lower: Ends, upper: Ends) -> tuple[Tensor, Tensor]:
        """Bounds of the values."""

    @abstractmethod
    def split_point(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Where to split an input, whatever the others are."""

    def gap(self, lower: Ends, upper: Ends, slopes: Ends) -> Tensor:
        """How far the operator strays from some slopes: the height of the parallel lines around it."""
        low, high = self.intercepts(lower, upper, slopes, slopes)
        return high - low


@dataclass(frozen=True)
class Univariate(Rule):
    """A function of the catalogue; the parameter of a line is its slope."""

    function: Function

    @property
    def matters(self) -> tuple[bool, bool]:
        return relaxation.slopes_matter(self.function)

    @property
    def span(self) -> tuple[float, float]:
        return relaxation.slope_range(self.function)

    def spans(self, lower: Ends, upper: Ends) -> tuple[Tensor, Tensor, Tensor]:
        low, high = relaxation.slope_span(self.function, lower[0], upper[0])
        return low, high, _SMOOTH_PACE * (high - low) if relaxation.is_smooth(self.function) else torch.ones_like(low)

    @property
    def bilinear(self) -> bool:
        return self.function.name == "square"

    def is_exact(self, lower: Ends, upper: Ends) -> Tensor:
        return relaxation.is_exact(self.function, lower[0], upper[0])

    def default_slopes(self, lower: Ends, upper: Ends) -> tuple[Ends, Ends]:
        below, above = relaxation.default_slopes(self.function, lower[0], upper[0])
        return (below,), (above,)

    def parallel_slopes(self, lower: Ends, upper: Ends) -> Ends:
        return (relaxation.parallel_slope(self.function, lower[0], upper[0]),)

    def parameters(self, lower: Ends, upper: Ends, which: int, slopes: Ends) -> Tensor:
        return slopes[0]

    def slopes(self, lower: Ends, upper: Ends, parameters: tuple[Tensor | None, Tensor | None]) -> tuple[Ends, Ends]:
        exact = self.is_exact(lower, upper)
        own = self._fixed_slopes(lower[0], upper[0], exact)
        below, above = (k if t is None else torch.where(exact, k, t.double()) for k, t in zip(own, parameters, strict=True))
        return (below,), (above,)

    def _fixed_slopes(self, lower: Tensor, upper: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
        """The default slopes, at least where they are not for the optimiser to choose."""
        if not all(self.matters) or not relaxation.is_smooth(self.function):
            return relaxation.default_slopes(self.function, lower, upper)
        place = exact.flatten().nonzero(as_tuple=True)[0]
        slopes = torch.zeros(2, lower.numel(), dtype=lower.dtype, device=lower.device)
        if len(place):
            some = relaxation.default_slopes(self.function, lower.flatten()[place], upper.flatten()[place])
            slopes[:, place] = torch.stack(some)
        below, above = slopes.reshape(2, *lower.shape)
        return below, above

    def intercepts(self, lower: Ends, upper: Ends, k_lower: Ends, k_upper: Ends) -> tuple[Tensor, Tensor]:
        return relaxation.intercepts(self.function, lower[0], upper[0], k_lower[0], k_upper[0])

    def sides(self, lower: Ends, upper: Ends, center: Ends, value: Tensor, dtype: torch.dtype, once: bool = False) -> tuple[Side, Side]:
        (low,), (high,), (z,) = lower, upper, center
        exact = relaxation.is_exact(self.function, low, high)
        slopes = self._fixed_slopes(low, high, exact)
        exact = exact.unsqueeze(1)
        fixed = slopes if all(self.matters) else relaxation.intercepts(self.function, low, high, *slopes)
        touched = relaxation.touched(self.function, low, high)
        smooth = relaxation.is_smooth(self.function) and not once
        tables = slope_tables(self.function, low, high, z, value, dtype) if smooth else None
        wide = tuple(t.unsqueeze(1) for t in (low, high, z, value))

        def side(which: int) -> Side:
            own = slopes[which].to(dtype).unsqueeze(1)
            if not self.matters[which]:
                base = (fixed[which] + slopes[which] * z - value).to(dtype).unsqueeze(1)
                return lambda _: ((own,), base)
            if touched is not None:  # every such line touches a vertex that is known
                base, reach = (touched[1] - value).to(dtype).unsqueeze(1), (z - touched[0]).to(dtype).unsqueeze(1)

                def through(t: Tensor) -> tuple[Ends, Tensor]:
                    k = torch.where(exact, own, t)
                    return (k,), torch.addcmul(base, reach, k)

                return through
            if tables is not None:
                return partial(_read, exact, own, tables[which])
            intercept = (relaxation.lower_intercept, relaxation.upper_intercept)[which]

            def supporting(t: Tensor) -> tuple[Ends, Tensor]:
                k = torch.where(exact, own, t)
                free = k.double()
                return (k,), (intercept(self.function, wide[0], wide[1], free) + free * wide[2] - wide[3]).to(dtype)

            return supporting

        return side(0), side(1)

    def range(self, lower: Ends, upper: Ends) -> tuple[Tensor, Tensor]:
        low, high = self.function.interval(lower[0], upper[0])
        return low, high

    def split_point(self, lower: Tensor, upper: Tensor) -> Tensor:
        return relaxation.split_point(self.function, lower, upper)


_SMOOTH_PACE = 1 / 16
"""Steps of slopes in units of those that a function has on the interval: default lines of smooth functions are close to the best."""


def _read(exact: Tensor, own: Tensor, table: SlopeTable, slopes: Tensor) -> tuple[Ends, Tensor]:
    """A side of a smooth function, with the intercepts of a table."""
    k = torch.where(exact, own, slopes)
    return (k,), table.intercept(k)


def _finite(slope: Tensor) -> Tensor:
    return torch.where(slope.isfinite(), slope, 0.0)
