"""The balls of all radii around an input: as sets of inputs to be proved about, and as exact distances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from milpverify.balls.ball import Ball
from milpverify.balls.norm import Norm
from milpverify.errors import InvalidInput
from milpverify.spec import Array, Box

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    Clip = tuple[ArrayLike, ArrayLike]
    """The ends of the range that inputs have anyway: numbers, or one per feature."""

FAR: Final = 2.0**20
"""Without a clip, inputs further away than so many times the largest entry of the centre (or 1) are not looked at."""


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The balls of all radii around a point: (x - centre) / weight has a norm of at most the radius, and low <= x <= high.

    All (nx,) float64, which are the exact problem; `low` and `high` may be infinite. A feature of weight 0 does not change.
    """

    centre: Array
    weight: Array
    low: Array
    high: Array
    shape: tuple[int, ...]
    norm: Norm = Norm.LINF

    @staticmethod
    def around(centre: Array, features: Any = None, clip: Clip | None = None, norm: str | Norm = Norm.LINF) -> Neighbourhood:
        """Checked parts as a neighbourhood.

        Args:
            features: which features may change (a mask), or by how much more than others (a weight each).

        Raises:
            InvalidInput: numbers that are NaN or infinite, weights below 0 or all 0, a centre outside the clip.
            InvalidProperty: an unknown norm.
        """
        x = centre.reshape(-1)
        if (bad := np.flatnonzero(~np.isfinite(x))).size:
            raise InvalidInput(f"the input's entry {bad[0]} is no finite number: {x[bad[0]]}")
        weight = _per_feature(1.0 if features is None else features, centre.shape, "features")
        if not (np.isfinite(weight) & (weight >= 0)).all():
            raise InvalidInput("features must be a mask, or weights that are numbers >= 0")
        if not weight.any():
            raise InvalidInput("features leaves no feature that may change")
        low, high = (_per_feature(end, centre.shape, "clip") for end in ((-math.inf, math.inf) if clip is None else clip))
        if np.isnan(low).any() or np.isnan(high).any():
            raise InvalidInput("the ends of clip must be numbers")
        if (bad := np.flatnonzero(~((low <= x) & (x <= high)))).size:
            i = bad[0]
            raise InvalidInput(f"the input's entry {i} is {x[i]:.9g}, outside clip, which is [{low[i]:.9g}, {high[i]:.9g}] there")
        found = Neighbourhood(x, weight, low, high, centre.shape, Norm.of(norm))
        with np.errstate(over="ignore"):
            if not np.isfinite(found.reach * weight).all():
                raise InvalidInput("the input, or the weights of its features, are too large or too small for radii to be numbers")
        return found

    def ball(self, radius: float) -> Ball:
        """The ball of a radius."""
        return Ball(self.centre.reshape(self.shape), radius, self.norm, self.low, self.high, self.weight)

    def box(self, radius: float) -> Box:
        """The smallest box of float64 numbers that is sure to contain the ball."""
        return Box(*(end.reshape(self.shape) for end in self.ball(radius).ends))

    @property
    def bounded(self) -> bool:
        """Whether the clip ends the ball in every direction."""
        moves = self.weight > 0
        return bool(np.isfinite(self.low[moves]).all() and np.isfinite(self.high[moves]).all())

    @cached_property
    def reach(self) -> float:
        """A radius whose ball is all of the clip; where that has no end, the one beyond which nothing is looked at."""
        moves = self.weight > 0
        x, weight = self.centre[moves], self.weight[moves]
        if not self.bounded:
            return FAR * max(1.0, float(np.abs(self.centre).max())) / float(weight.max())
        far = np.maximum(np.nextafter(x - self.low[moves], math.inf), np.nextafter(self.high[moves] - x, math.inf))
        share = np.nextafter(far / weight, math.inf)
        match self.norm:
            case Norm.LINF:
                return float(share.max())
            case Norm.L1:
                return float(share.sum()) * (1.0 + len(share) * 2.0**-52)
            case Norm.L2:
                return float(np.sqrt((share * share).sum())) * (1.0 + (len(share) + 4) * 2.0**-52)

    def distance(self, x: Array) -> float:
        """The radius of the smallest ball that contains x (nx,), in rationals, rounded up; infinite where none does."""
        within = ((self.low <= x) & (x <= self.high)).all()
        return self.ball(0.0).distance(x) if within else math.inf


def _per_feature(values: Any, shape: tuple[int, ...], name: str) -> Array:
    """One number per feature, flat."""
    try:
        given = np.asarray(values, dtype=np.float64)
        return np.array(np.broadcast_to(given, shape) if given.size != math.prod(shape) else given, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} must be a number, or one per feature; the input has the shape {shape}") from None
