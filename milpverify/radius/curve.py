"""The verified fraction of some inputs against the radius: as data, and as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from milpverify.radius.result import Radius


@dataclass(frozen=True)
class Fraction:
    """At a radius: the fraction of inputs for which it is proved, and that of those for which it is not refuted."""

    radius: float
    verified: float
    not_falsified: float


def curve(found: Sequence[Radius]) -> list[Fraction]:
    """The fractions at every radius at which one of them changes, beginning with 0; the truth lies between both.

    `verified` holds up to a radius and `not_falsified` from it on: for r between two radii of the list, the verified fraction is that
    of the next, and the other that of the one before.
    """
    ends = {0.0, *(r.lower_bound for r in found), *(r.upper_bound for r in found)}
    count = len(found)
    return [
        Fraction(
            radius,
            sum(r.lower_bound >= radius and r.lower_bound > 0.0 for r in found) / count,
            sum(r.upper_bound > radius for r in found) / count,
        )
        for radius in sorted(ends)
        if math.isfinite(radius) and count
    ]


def draw(found: Sequence[Radius], path: Path) -> None:
    """Draw the curve into a .png, .svg or .pdf file.

    Raises:
        InvalidInput: the file cannot be written, or matplotlib is not installed.
    """
    from milpverify import pictures

    points = curve(found)
    figure = pictures.figure(6.5, 3.6)
    axes = figure.add_subplot()
    radii = [p.radius for p in points]
    axes.step(radii, [p.verified for p in points], where="pre", color=pictures.COLOURS[0], label="proved")
    axes.step(radii, [p.not_falsified for p in points], where="post", color=pictures.COLOURS[1], linestyle="--", label="not refuted")
    axes.set(xlabel=f"radius ({found[0].norm if found else 'linf'})", ylabel=f"fraction of {len(found)} inputs", ylim=(-0.02, 1.02))
    axes.set_xlim(left=0.0)
    pictures.plain(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    pictures.save(figure, path)
