"""Pictures: the network with what is violated or binding, and how far every constraint is from its limits.

Figures are matplotlib's own objects, made without pyplot: no display and no global state.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from milpverify import pictures
from milpverify.acopf.case import Case
from milpverify.acopf.points.judgement import (
    ACTIVE_BALANCE,
    ACTIVE_GENERATION,
    ANGLE_DIFFERENCE,
    FLOW_FROM,
    FLOW_TO,
    REACTIVE_BALANCE,
    REACTIVE_GENERATION,
    VOLTAGE,
    flows,
)
from milpverify.acopf.result import TOLERANCE, Feasibility, Outcome
from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from milpverify.acopf.case import Array
    from milpverify.acopf.points.judgement import Constraint
    from milpverify.acopf.points.point import Point

BINDING: Final = 1e-4
"""A limit is called binding where the margin is less than that (p.u., rad)."""

RED, ORANGE, INK, GREY, BLUE, GREEN = "#d62728", "#ff9f1c", "#2b2d42", "#9aa0a6", "#2a6fdb", "#3a9d5d"
PINK, PALE = "#fbd0d0", "#bcd0ee"
TEXT = {RED: RED, ORANGE: "#b36b00"}  # what is thin is darker
LOADING_COLOURS = ("#c9dcea", "#7fb2d3", "#2f7fb6", "#0b3d6b")  # no red: that is what violations have
BALANCES = (ACTIVE_BALANCE, REACTIVE_BALANCE)
AT_GENERATORS = (ACTIVE_GENERATION, REACTIVE_GENERATION)
AT_BRANCHES = (FLOW_FROM, FLOW_TO, ANGLE_DIFFERENCE)


@dataclass(frozen=True)
class _Subject:
    """What a picture is of."""

    case: Case
    point: Point | None
    constraints: Sequence[Constraint]
    tolerance: float
    title: str

    def colour(self, one: Constraint) -> str | None:
        """RED where it is violated, ORANGE where it binds; a balance, which has no room, does not bind."""
        if one.margin < -self.tolerance:
            return RED
        return ORANGE if one.margin < BINDING and one.kind not in BALANCES else None

    def marked(self, colour: str, *kinds: str) -> set[int]:
        """Indices of what is violated or binds in these kinds of constraints."""
        return {one.index for one in self.constraints if one.kind in kinds and self.colour(one) == colour}

    def shows(self, colour: str) -> bool:
        """Whether any limit is marked by it."""
        return any(one.kind not in BALANCES and self.colour(one) == colour for one in self.constraints)


def _subject(of: Outcome | Point | Case) -> _Subject:
    if isinstance(of, Outcome):
        tolerance = of.tolerance if isinstance(of, Feasibility) else TOLERANCE
        if of.point is None:
            return _Subject(of.case, None, (), tolerance, of.headline)
        violation, title = of.point.violation, of.headline
        if violation > tolerance:
            title += f"\nshown: a point whose largest violation is {violation:.3g} p.u. (rad)"
        return _Subject(of.point.case, of.point, of.constraints, tolerance, title)
    if isinstance(of, Case):
        return _Subject(of, None, (), TOLERANCE, of.name)
    return _Subject(of.case, of, of.constraints(), TOLERANCE, f"{of.case.name}: largest violation {of.violation:.3g} p.u. (rad)")


def _save(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        pictures.save(figure, path)
    return figure


# -- the network ----------------------------------------------------------------------------------------------------------------


def draw(of: Outcome | Point | Case, path: str | Path | None = None) -> Figure:
    """The network: limits that are violated in red, those that bind in orange; lines as wide and as dark as they are loaded.

    A bus whose balance is violated is filled in pink.

    Args:
        of: a result, an operating point, or a case alone, which has no loading.
        path: a file to write, too (.png, .svg, .pdf).
    """
    subject = _subject(of)
    case = subject.case
    at = layout(case)
    crowd = min(1.0, 24.0 / case.num_buses) ** 0.3  # marks shrink where there are many, and the page grows
    width, height = np.ptp(at, axis=0).clip(1e-9)
    side = 9.5 / crowd**0.8
    figure = pictures.figure(side, side * float(np.clip(height / width, 0.45, 0.8)) + 0.4)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(subject.title, fontsize=11 / crowd**0.6, color=INK, wrap=True)
    _draw_branches(figure, axes, subject, at, crowd)
    _draw_buses(axes, subject, at, crowd)
    _draw_units(figure, axes, subject, at, crowd)
    axes.margins(0.06)
    _legend(axes, subject, 9 / crowd**0.6)
    return _save(figure, path)


def layout(case: Case) -> Array:
    """(n, 2) places of the buses: those of Kamada and Kawai, the length of a branch growing with its impedance, always the same."""
    import networkx as nx

    impedance = np.hypot(case.branches.r, case.branches.x)
    length = (impedance / np.median(impedance)).clip(0.2, 3.0) ** 0.5 if len(impedance) else impedance
    graph = nx.Graph()
    graph.add_nodes_from(range(case.num_buses))
    for f, t, reach in zip(case.branches.f.tolist(), case.branches.t.tolist(), length.tolist(), strict=True):
        if not graph.has_edge(f, t) or reach < graph[f][t]["length"]:
            graph.add_edge(f, t, length=reach)
    try:
        places = nx.kamada_kawai_layout(graph, weight="length")
    except ImportError as error:
        raise InvalidInput("plots need scipy: pip install 'milpverify[acopf]'") from error
    at: Array = np.array([places[i] for i in range(case.num_buses)])
    middle = at - at.mean(axis=0)
    turned: Array = middle @ np.linalg.svd(middle, full_matrices=False)[2].T  # the longest extent lies across
    return turned


def apparent(point: Point) -> Array:
    """(m,) the larger |S| of a branch's two ends, p.u., as float64 computes it."""
    pf, qf, pt, qt = flows(point.case, point.vm, point.va)
    larger: Array = np.maximum(np.hypot(pf, qf), np.hypot(pt, qt))
    return larger


def _draw_branches(figure: Figure, axes: Axes, subject: _Subject, at: Array, crowd: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    br, point = subject.case.branches, subject.point
    segments = _segments(subject.case, at)
    widths, colours = np.full(len(br), 1.6), [GREY] * len(br)
    if point is not None:
        flow, limited = apparent(point), np.isfinite(br.rate)
        widths = 1.1 + 4.2 * flow / max(float(flow.max(initial=0.0)), 1e-9)
        shades = LinearSegmentedColormap.from_list("loading", LOADING_COLOURS)
        colours = [
            shades(min(s / rate, 1.0)) if math.isfinite(rate) else GREY for s, rate in zip(flow.tolist(), br.rate.tolist(), strict=True)
        ]
        if limited.any():
            bar = figure.colorbar(ScalarMappable(Normalize(0, 100), shades), ax=axes, shrink=0.45, pad=0.01)
            bar.set_label("loading of lines, % of their limit", fontsize=9 / crowd**0.6)
            bar.ax.tick_params(labelsize=8 / crowd**0.6)
    widths *= max(crowd, 0.7)
    for colour in (ORANGE, RED):  # an edge around the line, which keeps its own colour
        marked = sorted(subject.marked(colour, *AT_BRANCHES))
        if marked:
            edges = LineCollection(
                [segments[k] for k in marked], linewidths=widths[marked] + 5.0 * max(crowd, 0.7), colors=colour, zorder=1
            )
            edges.set_gid("violated branches" if colour == RED else "binding branches")
            axes.add_collection(edges)
    lines = LineCollection(segments, linewidths=widths, colors=colours, zorder=2, capstyle="round")
    lines.set_gid("branches")
    axes.add_collection(lines)


def _segments(case: Case, at: Array) -> list[Array]:
    """The lines of the branches; parallel ones lie side by side, as bends."""
    seen: dict[tuple[int, int], list[int]] = defaultdict(list)
    for k, (f, t) in enumerate(zip(case.branches.f.tolist(), case.branches.t.tolist(), strict=True)):
        seen[min(f, t), max(f, t)].append(k)
    segments: list[Array] = [np.empty(0)] * len(case.branches)
    along = np.linspace(0.0, 1.0, 15)[:, None]
    for (a, b), parallel in seen.items():
        across = np.array([at[a][1] - at[b][1], at[b][0] - at[a][0]])
        for place, k in enumerate(parallel):
            bend = 0.12 * (place - (len(parallel) - 1) / 2)
            segments[k] = at[a] + along * (at[b] - at[a]) + 4 * bend * along * (1 - along) * across
    return segments


def _draw_buses(axes: Axes, subject: _Subject, at: Array, crowd: float) -> None:
    case = subject.case
    violated, binding, unbalanced = (subject.marked(*what) for what in ((RED, VOLTAGE), (ORANGE, VOLTAGE), (RED, *BALANCES)))
    edges = [RED if i in violated else ORANGE if i in binding else INK for i in range(case.num_buses)]
    size = 330.0 * crowd**2
    strong = [(3.0 if i in violated | binding else 1.2) * max(crowd, 0.6) for i in range(case.num_buses)]
    faces = [PINK if i in unbalanced else "white" for i in range(case.num_buses)]
    places = axes.scatter(at[:, 0], at[:, 1], s=size, c=faces, edgecolors=edges, linewidths=strong, zorder=4)
    places.set_gid("buses")
    ring = axes.scatter(
        at[case.reference, 0],
        at[case.reference, 1],
        s=2.1 * size,
        facecolors="none",
        edgecolors=INK,
        linewidths=1.2 * max(crowd, 0.7),
        zorder=3,
    )
    ring.set_gid("reference")
    for i, place in enumerate(at):
        axes.annotate(str(int(case.buses.number[i])), place, ha="center", va="center", fontsize=max(9.5 * crowd, 5.0), color=INK, zorder=5)


def _draw_units(figure: Figure, axes: Axes, subject: _Subject, at: Array, crowd: float) -> None:
    """Generators above the right of their bus, loads below it."""
    from matplotlib.transforms import offset_copy

    case, point = subject.case, subject.point
    step = 11.0 * crowd
    beside = {up: offset_copy(axes.transData, figure, x=step, y=step if up else -step, units="points") for up in (True, False)}
    hosts = sorted(set(case.generators.bus.tolist()))
    violated, binding = ({int(case.generators.bus[g]) for g in subject.marked(colour, *AT_GENERATORS)} for colour in (RED, ORANGE))
    edges = [RED if i in violated else ORANGE if i in binding else "white" for i in hosts]
    strong = [(2.4 if i in violated | binding else 0.8) * max(crowd, 0.6) for i in hosts]
    units = axes.scatter(
        at[hosts, 0], at[hosts, 1], s=105.0 * crowd**2, marker="D", c=GREEN, edgecolors=edges, linewidths=strong, zorder=6,
        transform=beside[True],
    )  # fmt: skip
    units.set_gid("generators")
    load = np.hypot(case.buses.pd, case.buses.qd) if point is None else np.hypot(point.pd, point.qd)
    loaded = np.flatnonzero(load > 0)
    share = load[loaded] / max(float(load.max(initial=0.0)), 1e-9)
    loads = axes.scatter(
        at[loaded, 0], at[loaded, 1], s=(40.0 + 95.0 * share) * crowd**2, marker="v", c=BLUE, edgecolors="white", linewidths=0.5, zorder=6,
        transform=beside[False],
    )  # fmt: skip
    loads.set_gid("loads")


def _legend(axes: Axes, subject: _Subject, size: float) -> None:
    from matplotlib.lines import Line2D

    def mark(label: str, **look: Any) -> Line2D:
        return Line2D([], [], linestyle=look.pop("linestyle", ""), label=label, **look)

    handles = [
        mark("bus", marker="o", markerfacecolor="white", markeredgecolor=INK, markersize=10),
        mark("reference bus", marker="o", markerfacecolor="none", markeredgecolor=INK, markersize=14),
        mark("generator", marker="D", color=GREEN, markersize=7),
        mark("load", marker="v", color=BLUE, markersize=8),
    ]
    if subject.point is not None:
        if not np.isfinite(subject.case.branches.rate).all():
            handles.append(mark("branch without limit", linestyle="-", color=GREY, linewidth=3))
        if subject.shows(ORANGE):
            label = f"binding limit (margin < {BINDING:g})"
            handles.append(mark(label, linestyle="-", color=ORANGE, linewidth=4, marker="o", markerfacecolor="white"))
        if subject.shows(RED):
            handles.append(mark("violated limit", linestyle="-", color=RED, linewidth=4, marker="o", markerfacecolor="white"))
        if subject.marked(RED, *BALANCES):
            handles.append(mark("violated balance", marker="o", markerfacecolor=PINK, markeredgecolor=INK, markersize=10))
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles), frameon=False, fontsize=size, handletextpad=0.5
    )


# -- margins --------------------------------------------------------------------------------------------------------------------


def plot_margins(of: Outcome | Point, path: str | Path | None = None) -> Figure:
    """The distance of every constraint from its nearer limit, one row for each kind, the worst of it named; balances have none to spare.

    Pale lines are the margins between which the proved ranges leave it.

    Args:
        of: a result with a point, or a point.
        path: a file to write, too (.png, .svg, .pdf).
    """
    subject = _subject(of)
    if subject.point is None:
        raise InvalidInput("there is no operating point, and so there are no margins to plot")
    kinds: dict[str, list[Constraint]] = defaultdict(list)
    for one in subject.constraints:
        if np.isfinite(one.margin):
            kinds[one.kind].append(one)
    figure = pictures.figure(10.0, 1.7 + 0.68 * max(len(kinds), 1))
    axes = figure.add_subplot()
    axes.set_title(subject.title, fontsize=11, color=INK, wrap=True)
    axes.set_xscale("symlog", linthresh=BINDING, linscale=0.6)
    axes.axvspan(0.0, BINDING, color=ORANGE, alpha=0.15, linewidth=0)
    axes.axvline(0.0, color=INK, linewidth=1.0)
    for row, members in enumerate(kinds.values()):
        _plot_kind(axes, subject, row, members)
    least = min((one.margin for one in subject.constraints), default=0.0)
    greatest = max((one.margin for members in kinds.values() for one in members), default=1.0)
    axes.set_xlim(min(3.0 * least, -BINDING), max(3.0 * greatest, 1.0))
    axes.set_yticks(range(len(kinds)), [f"{kind} ({len(members)})" for kind, members in kinds.items()], fontsize=9)
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.set_xlabel("margin to the nearer limit: p.u., rad for angles; negative: violated", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#e4e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return _save(figure, path)


def proved_margins(one: Constraint) -> tuple[float, float] | None:
    """The least and the largest margin that a constraint's proved range leaves it; None where that is no narrower than its limits."""
    low, high = one.proved
    floor = 0.0 if one.kind in (FLOW_FROM, FLOW_TO) else one.lower
    if not (low <= high and high - low < 0.99 * (one.upper - floor)):
        return None

    def margin(value: float) -> float:
        return min(value - one.lower, one.upper - value)

    best = min(max((one.lower + one.upper) / 2, low), high)  # the middle, or an end where one limit is infinite
    return min(margin(low), margin(high)), margin(best)


def _plot_kind(axes: Axes, subject: _Subject, row: int, members: list[Constraint]) -> None:
    worst = min(members, key=lambda one: one.margin)
    margins = np.array([one.margin for one in members])
    colours = [subject.colour(one) or BLUE for one in members]
    spread = (0.618034 * np.arange(len(members)) + 0.5) % 1.0 - 0.5  # evenly, and always the same
    heights = row + 0.42 * spread * (len(members) > 1)
    left = [(height, *margin) for height, one in zip(heights, members, strict=True) if (margin := proved_margins(one)) is not None]
    if left:
        at, least, most = zip(*left, strict=True)
        bars = axes.hlines(at, least, most, colors=PALE, linewidth=1.2 if len(left) < 60 else 0.6, zorder=2)
        bars.set_gid(f"proved {worst.kind}")
    dots = axes.scatter(margins, heights, s=16, c=colours, alpha=0.75, linewidths=0, zorder=3)
    dots.set_gid(worst.kind)
    axes.annotate(
        f"{worst.element}: {worst.margin:.3g} {worst.unit}", (worst.margin, row), xytext=(3, 12.5), textcoords="offset points",
        ha="left" if worst.margin < 0.01 else "right", fontsize=7.5, color=TEXT.get(subject.colour(worst) or "", INK), zorder=4,
    )  # fmt: skip
