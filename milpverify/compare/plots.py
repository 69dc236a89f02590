"""Pictures of a comparison: bounds against time, a cactus plot, two methods against each other, verified fraction against radius."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from milpverify import pictures
from milpverify.compare.methods import EXACT
from milpverify.compare.rows import Row, Word, short
from milpverify.errors import InvalidInput
from milpverify.pictures import COLOURS, GREY, INK, MARKS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS: Final = 9
COLUMNS: Final = 3
"""The most problems whose bounds are drawn, and how many side by side."""
INSTANT: Final = 1e-3
"""Seconds below which times are not told apart."""
SPREAD: Final = 8.0
"""Bounds so many times as large as most others have a logarithmic axis."""


class Kind(Enum):
    """What a picture shows."""

    BOUNDS = "bounds"  # the proved bound against time, per method
    CACTUS = "cactus"  # how many problems are decided within so many seconds, per method
    SCATTER = "scatter"  # the seconds of two methods
    SCATTER_BOUNDS = "scatter-bounds"  # the bounds of two methods
    RADIUS = "radius"  # the verified fraction against the radius, per method


SCATTERS = (Kind.SCATTER, Kind.SCATTER_BOUNDS)


def kind_of(name: str | Kind) -> Kind:
    """The kind of a name.

    Raises:
        InvalidInput: there is none.
    """
    try:
        return Kind(name)
    except ValueError:
        raise InvalidInput(f"there is no plot {name!r}; there are {', '.join(kind.value for kind in Kind)}") from None


@dataclass(frozen=True)
class Shown:
    """What is drawn of a comparison: these methods; radii are those of problems of which they are known."""

    rows: tuple[Row, ...]
    methods: tuple[str, ...]
    radii: Mapping[str, float]
    styles: Mapping[str, Style]

    @property
    def problems(self) -> list[str]:
        """Their names, in the order of the rows."""
        return list(dict.fromkeys(row.problem for row in self.rows))

    def of(self, method: str) -> list[Row]:
        """The rows of a method."""
        return [row for row in self.rows if row.method == method]


@dataclass(frozen=True)
class Style:
    """How a method is drawn, in all pictures of a comparison alike."""

    colour: str
    mark: str
    line: str


Target: TypeAlias = "str | Path | Axes | None"


def draw(
    rows: Sequence[Row], kind: Kind, target: Target = None, methods: Sequence[str] = (), radii: Mapping[str, float] | None = None
) -> Figure:
    """Draw rows.

    Args:
        target: a file (.png, .svg, .pdf), or axes to draw into; None for a figure alone.
        methods: those that are drawn; all unless there are any.
        radii: of problems, for `Kind.RADIUS`.

    Raises:
        InvalidInput: there is nothing to draw, not the number of methods that the kind needs, or the file cannot be written.
    """
    names = list(dict.fromkeys(row.method for row in rows))
    checked(kind, names, methods)
    wanted = tuple(name for name in methods or names)
    styles = {
        name: Style(COLOURS[k % len(COLOURS)], MARKS[k % len(MARKS)], "-" if k < len(COLOURS) else "--") for k, name in enumerate(names)
    }
    shown = Shown(tuple(rows), wanted, radii or {}, styles)
    if not shown.rows:
        raise InvalidInput("there is nothing to draw: the comparison has no rows")
    panels = min(len(shown.problems), PANELS) if kind is Kind.BOUNDS else 1
    if target is None or isinstance(target, str | Path):
        figure, places = _paper(kind, panels)
    elif panels > 1:
        raise InvalidInput("bounds against time are drawn per problem: axes can take one, and there are more")
    else:
        figure, places = cast("Figure", target.figure), [target]
    _DRAWN[kind](shown, places)
    for each in places:
        pictures.plain(each)
    _legend(figure, places, target in places)
    if isinstance(target, str | Path):
        pictures.save(figure, target)
    return figure


def _paper(kind: Kind, panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes."""
    across = min(panels, COLUMNS)
    down = -(-panels // across)
    wide = 3.7 if kind in SCATTERS else 4.6 if across == 1 else 3.2 * across
    figure = pictures.figure(1.7 + wide, 0.5 + (3.3 if down == 1 else 2.6 * down))
    return figure, [figure.add_subplot(down, across, k + 1) for k in range(panels)]


def checked(kind: Kind, there: Sequence[str], methods: Sequence[str]) -> None:
    """Refuse methods that a plot cannot be of.

    Raises:
        InvalidInput: a method is not there, or a scatter plot is not of two.
    """
    for name in methods:
        if name not in there:
            raise InvalidInput(f"the comparison has no method {name!r}; it has {', '.join(there)}")
    if kind in SCATTERS and len(set(methods or there)) != 2:
        raise InvalidInput(f"a scatter plot is of two methods, not {len(set(methods or there))}: say which")


def _legend(figure: Figure, places: Sequence[Axes], theirs: bool) -> None:
    """Outside the data; every label once."""
    entries: dict[str, Artist] = {}
    for axes in places:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    handles, labels = list(entries.values()), list(entries)
    if theirs:
        places[0].legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)
    else:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)


# -- bounds against time ----------------------------------------------------------------------------------------------------------


def _bounds(shown: Shown, places: Sequence[Axes]) -> None:
    for place, (axes, problem) in enumerate(zip(places, shown.problems, strict=False)):
        rows = [row for row in shown.rows if row.problem == problem]
        _panel(axes, [row for row in rows if row.method in shown.methods], shown.styles)
        _margin(axes, rows)
        axes.margins(y=0.08)
        axes.set_title(short(problem), fontsize=8, color=INK, wrap=True)
        if place % COLUMNS == 0:
            axes.set_ylabel("proved lower bound of the margin")
        if place + COLUMNS >= len(places):
            axes.set_xlabel("seconds")
    count, notes = len(shown.problems), [only_ends([row for row in shown.rows if row.method in shown.methods])]
    if count > len(places):
        notes.append(f"{len(places)} of {count} problems")
    if any(notes):
        places[0].figure.suptitle("; ".join(filter(None, notes)), fontsize=8, color=GREY)


def only_ends(rows: Sequence[Row]) -> str:
    """What is to be said of rows that were read from a CSV file; nothing where there are none."""
    count = sum(row.steps is None for row in rows)
    return f"{count} of {len(rows)} runs were read from a file, which holds the end of each alone" if count else ""


def _panel(axes: Axes, rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    end = max([1.0, *(1.3 * row.seconds for row in rows)])
    for row in rows:
        if not math.isfinite(row.lower_bound):
            continue
        style, steps = styles[row.method], steps_of(row)
        times, bounds = zip(*steps, strict=True)
        axes.plot([times[-1], end], [bounds[-1]] * 2, color=style.colour, linewidth=0.8, alpha=0.45, linestyle=":", zorder=2)
        axes.step(times, bounds, where="post", color=style.colour, linewidth=1.4, linestyle=style.line, zorder=3)
        axes.plot([], [], color=style.colour, marker=style.mark, linestyle=style.line, markersize=5, label=row.method)
        axes.scatter(times[-1], bounds[-1], s=36, color=style.colour, marker=style.mark, edgecolors="white", linewidths=0.6, zorder=4)
    axes.axhline(0.0, color=INK, linewidth=0.8, zorder=1)
    pictures.logarithmic(axes, "x")
    axes.set_xlim(right=end)
    _signed(axes, "y", [bound for row in rows for _, bound in steps_of(row)])


def _margin(axes: Axes, rows: Sequence[Row]) -> None:
    """A line at the best point that any method has judged."""
    least = min((row.witness.margin for row in rows if row.witness is not None), default=math.inf)
    known = any(row.method.partition(":")[0] == EXACT and row.gap is not None for row in rows)
    if math.isfinite(least):
        label = "margin (exact)" if known else "best known point"
        axes.axhline(least, color=INK, linewidth=1.2, linestyle=(0, (5, 2)), zorder=1, label=label)


def steps_of(row: Row) -> list[tuple[float, float]]:
    """The bounds of a row and when each was proved, the final one last; that one alone where the row was read from a CSV file."""
    on_the_way = [(max(seconds, INSTANT), bound) for seconds, bound in row.steps or () if math.isfinite(bound)]
    return [*on_the_way, (max(row.seconds, INSTANT), row.lower_bound)]


def _signed(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis for both signs where some values are much larger than most."""
    sizes = [abs(v) for v in values if math.isfinite(v) and v != 0.0]
    if sizes and max(sizes) > SPREAD * (middle := statistics.median(sizes)):
        linear = 10.0 ** math.floor(math.log10(middle))
        (axes.set_yscale if which == "y" else axes.set_xscale)("symlog", linthresh=linear, linscale=1.0)


# -- how many are decided ---------------------------------------------------------------------------------------------------------


def _cactus(shown: Shown, places: Sequence[Axes]) -> None:
    (axes,) = places
    end = max([INSTANT, *(row.seconds for method in shown.methods for row in shown.of(method))])
    for method in shown.methods:
        seconds = sorted(max(row.seconds, INSTANT) for row in shown.of(method) if row.verdict in (Word.UNSAT, Word.SAT))
        style = shown.styles[method]
        label = f"{method} ({len(seconds)})"
        every = max(1, len(seconds) // 20)
        axes.step(
            [*seconds, end * 1.1], [*range(1, len(seconds) + 1), len(seconds)], where="post", color=style.colour, linestyle=style.line,
            marker=style.mark, markevery=slice(0, len(seconds), every) if seconds else [], markersize=4.5, linewidth=1.4, label=label,
        )  # fmt: skip
    count = len(shown.problems)
    pictures.logarithmic(axes, "x")
    axes.set_xlim(right=end * 1.1)
    axes.set_ylim(0, count * 1.04)
    axes.locator_params(axis="y", integer=True)
    axes.set(xlabel="seconds per problem", ylabel=f"problems decided, of {count}")


# -- two methods ------------------------------------------------------------------------------------------------------------------

_MARKS = {"unsat": ("o", COLOURS[0]), "sat": ("^", COLOURS[1]), "open": ("s", GREY)}


def _pairs(shown: Shown) -> list[tuple[Row, Row]]:
    first, second = ({row.problem: row for row in shown.of(method)} for method in shown.methods)
    return [(first[problem], second[problem]) for problem in first if problem in second]


def _scatter(shown: Shown, places: Sequence[Axes]) -> None:
    """Seconds; what a method leaves open lies on the edge."""
    (axes,), pairs = places, _pairs(shown)
    seconds = [max(row.seconds, INSTANT) for pair in pairs for row in pair]
    edge = 2.0 * max(seconds, default=1.0)
    decided = (Word.UNSAT, Word.SAT)
    points = [tuple(max(r.seconds, INSTANT) if r.verdict in decided else edge for r in pair) for pair in pairs]
    _crowd(axes, pairs, points)
    low = 0.6 * min(seconds, default=INSTANT)
    axes.plot([low, edge], [low, edge], color=INK, linewidth=0.8, zorder=1)
    for factor in (0.1, 10.0):
        axes.plot([low, edge], [low * factor, edge * factor], color=GREY, linewidth=0.6, linestyle=":", zorder=1)
    if any(edge in point for point in points):
        for line in (axes.axvline, axes.axhline):
            line(edge, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        axes.text(low * 1.1, edge, "not decided", fontsize=7, color=GREY, va="bottom")
    pictures.logarithmic(axes, "x", "y")
    axes.set(xlim=(low, edge * 1.5), ylim=(low, edge * 1.5))
    axes.set_box_aspect(1.0)
    axes.set(xlabel=f"{shown.methods[0]}, seconds", ylabel=f"{shown.methods[1]}, seconds")


def _scatter_bounds(shown: Shown, places: Sequence[Axes]) -> None:
    """Bounds, of problems on which both methods have one."""
    (axes,) = places
    pairs = [pair for pair in _pairs(shown) if all(math.isfinite(row.lower_bound) for row in pair)]
    points = [(a.lower_bound, b.lower_bound) for a, b in pairs]
    if not points:
        raise InvalidInput(f"{' and '.join(shown.methods)} have no bounds of the same problem to draw")
    _crowd(axes, pairs, points)
    values = [v for point in points for v in point]
    for which in "xy":
        _signed(axes, which, values)
    ends = min(values), max(values)
    axes.plot(ends, ends, color=INK, linewidth=0.8, zorder=1)
    axes.axvline(0.0, color=GREY, linewidth=0.6, zorder=1)
    axes.axhline(0.0, color=GREY, linewidth=0.6, zorder=1)
    axes.set_box_aspect(1.0)
    axes.set(xlabel=f"{shown.methods[0]}, lower bound of the margin", ylabel=f"{shown.methods[1]}, lower bound of the margin")


def _crowd(axes: Axes, pairs: Sequence[tuple[Row, Row]], points: Sequence[tuple[float, ...]]) -> None:
    words = ["sat" if Word.SAT in (v := (a.verdict, b.verdict)) else "unsat" if Word.UNSAT in v else "open" for a, b in pairs]
    for word, (mark, colour) in _MARKS.items():
        chosen = [point for point, found in zip(points, words, strict=True) if found == word]
        if chosen:
            xs, ys = zip(*chosen, strict=True)
            axes.scatter(xs, ys, s=24, marker=mark, color=colour, alpha=0.8, linewidths=0, label=f"{word} ({len(chosen)})", zorder=3)


# -- radii ------------------------------------------------------------------------------------------------------------------------


def _radius(shown: Shown, places: Sequence[Axes]) -> None:
    (axes,) = places
    radii = sorted({shown.radii[p] for p in shown.problems if p in shown.radii})
    if len(radii) < 2:
        found = f"these have one, {radii[0]:g}" if radii else "these have none"
        raise InvalidInput(f"the verified fraction against the radius needs problems at several radii, and {found}")
    at = {radius: [p for p in shown.problems if shown.radii.get(p) == radius] for radius in radii}
    for method in shown.methods:
        style, verdicts = shown.styles[method], {row.problem: row for row in shown.of(method)}
        proved = {p for p, row in verdicts.items() if row.verdict is Word.UNSAT}
        share = [_share(at[radius], proved) for radius in radii]
        word = any(row.verdict is Word.UNSAT and row.trust is None for row in verdicts.values())
        label = f"{method} (its word)" if word else method
        axes.plot(radii, share, color=style.colour, marker=style.mark, linestyle=style.line, markersize=5, linewidth=1.4, label=label)
    left = set(shown.problems) - {row.problem for row in shown.rows if row.verdict is Word.SAT}
    axes.plot(radii, [_share(at[radius], left) for radius in radii], color=INK, linewidth=1.0, linestyle="--", label="not refuted")
    counts = sorted({len(problems) for problems in at.values()})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    axes.set(xlabel="radius (largest change of an input)", ylabel=f"verified fraction of {many} inputs", ylim=(-0.03, 1.03))


def _share(problems: Sequence[str], of: set[str]) -> float:
    return len(of.intersection(problems)) / len(problems)


_DRAWN: dict[Kind, Callable[[Shown, Sequence[Axes]], None]] = {
    Kind.BOUNDS: _bounds,
    Kind.CACTUS: _cactus,
    Kind.SCATTER: _scatter,
    Kind.SCATTER_BOUNDS: _scatter_bounds,
    Kind.RADIUS: _radius,
}
