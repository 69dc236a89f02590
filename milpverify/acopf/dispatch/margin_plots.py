"""Certified against sampled margins of a dispatch or a proxy, as a picture."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np

from milpverify import pictures
from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from milpverify.acopf.dispatch.result import Checked, Margin

RED, GREEN, INK, PALE, BLUE = "#d62728", "#3a9d5d", "#2b2d42", "#bcd0ee", "#2a6fdb"
LINEAR: Final = 1e-3  # p.u. and rad: margins below it are drawn to scale, others logarithmically


def plot_certified(of: Checked, path: str | Path | None = None) -> Figure:
    """The least margin of every limit over all loads: not below the certified one (bar), not above the attacked one (dot).

    One row for each kind of limits, the closest of which is named; red where loads were found that violate the limit.

    Args:
        of: a result of `check_dispatch` or `check_proxy`.
        path: a file to write, too (.png, .svg, .pdf).
    """
    kinds: dict[str, list[Margin]] = defaultdict(list)
    for one in of.margins:
        if math.isfinite(one.attacked):
            kinds[one.limit.kind + (" (set)" if one.limit.given else "")].append(one)
    if not kinds:
        raise InvalidInput("there are no margins to plot: no power flow was found")
    figure = pictures.figure(10.0, 1.7 + 0.7 * len(kinds))
    axes = figure.add_subplot()
    axes.set_title(of.headline, fontsize=11, color=INK, wrap=True)
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=0.6)
    axes.axvline(0.0, color=INK, linewidth=1.0)
    for row, members in enumerate(kinds.values()):
        _draw(axes, row, members, of.tolerance)
    values = [each.attacked for members in kinds.values() for each in members]
    values += [each.certified for members in kinds.values() for each in members if math.isfinite(each.certified)]
    axes.set_xlim(min(3.0 * min(values), -LINEAR), max(3.0 * max(values), LINEAR))
    axes.set_yticks(range(len(kinds)), [f"{kind} ({len(members)})" for kind, members in kinds.items()], fontsize=9)
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.set_xlabel(
        "least margin over all loads: p.u., rad for angles; bars begin at what is certified, dots are what was found", fontsize=9
    )
    axes.grid(axis="x", color="#e4e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if path is not None:
        pictures.save(figure, path)
    return figure


def _draw(axes: Axes, row: int, members: list[Margin], tolerance: float) -> None:
    order = sorted(members, key=lambda each: each.attacked)
    heights = row + 0.6 * (np.arange(len(order)) / max(len(order) - 1, 1) - 0.5) * (len(order) > 1)
    known = [(height, each) for height, each in zip(heights, order, strict=True) if math.isfinite(each.certified)]
    if known:
        at, bars = zip(*known, strict=True)
        lines = axes.hlines(at, [each.certified for each in bars], [each.attacked for each in bars], colors=PALE, linewidth=2.5, zorder=2)
        lines.set_gid(f"certified {members[0].limit.kind}")
    colours = [RED if each.attacked < -tolerance else GREEN if each.certified >= -tolerance else BLUE for each in order]
    dots = axes.scatter([each.attacked for each in order], heights, s=12, c=colours, linewidths=0, zorder=3)
    dots.set_gid(members[0].limit.kind)
    worst = order[0]
    text = f"{worst.limit.element}: {worst.certified:.3g} .. {worst.attacked:.3g} {worst.limit.unit}"
    axes.annotate(
        text, (worst.attacked, row - 0.3), xytext=(3, 3), textcoords="offset points", fontsize=7.5, zorder=4,
        color=RED if worst.attacked < -tolerance else INK,
    )  # fmt: skip
