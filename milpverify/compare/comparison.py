"""The table of a comparison, and the forms that it can be written in."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from milpverify.compare.rows import COLUMNS, Row, Word, short
from milpverify.errors import MilpverifyError
from milpverify.result import csv_text, json_number, json_text
from milpverify.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure
    from rich.table import Table

    from milpverify.compare.plots import Kind, Target
    from milpverify.compare.sources import Instance

TITLES = ("problem", "method", "lower bound", "gap", "verdict", "trust", "seconds", "CPU s", "MB")
WIDTH: Final = 200
"""Columns of a text that no terminal limits."""


class NoPandas(MilpverifyError, ImportError):
    """pandas is not installed."""


@dataclass(frozen=True)
class Summary:
    """One method over all problems: how many it decided, its mean gap where that is known, the median and the sum of its seconds."""

    method: str
    verified: int
    falsified: int
    open: int
    errors: int
    gap: float | None
    median_seconds: float
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Rows by problem and method, in the order that was asked for.

    `breaks` says in words where bounds are out of an order that is a theorem, and where a tool contradicts what is proved. `complete`: no
    run is missing; otherwise the comparison was interrupted. `problems` are what was compared on.
    """

    rows: tuple[Row, ...]
    breaks: tuple[str, ...] = ()
    complete: bool = True
    problems: tuple[Instance, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def summary(self) -> list[Summary]:
        """Every method over all its problems."""
        found = []
        for method in dict.fromkeys(row.method for row in self.rows):
            rows = [row for row in self.rows if row.method == method]
            words = [row.verdict for row in rows]
            gaps = [row.gap for row in rows if row.gap is not None]
            decided, seconds = (words.count(Word.UNSAT), words.count(Word.SAT)), [row.seconds for row in rows]
            errors = words.count(Word.ERROR)
            rest = len(rows) - sum(decided) - errors
            gap = statistics.fmean(gaps) if gaps else None
            found.append(Summary(method, *decided, rest, errors, gap, statistics.median(seconds), math.fsum(seconds)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON form."""
        return {
            "versions": {"milpverify": __version__},
            "complete": self.complete,
            "breaks": list(self.breaks),
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The JSON text; written to `path` too where one is given."""
        return json_text(self.to_dict(), path)

    def to_csv(self, path: str | Path | None = None) -> str:
        """The columns of the rows as CSV; written to `path` too where one is given. What is unknown is empty."""
        return csv_text([COLUMNS, *(row.cells for row in self.rows)], path)

    def to_pandas(self) -> Any:
        """A data frame with the columns of the rows and their messages.

        Raises:
            NoPandas: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise NoPandas("to_pandas() needs pandas: pip install pandas") from error
        names = (*COLUMNS, "message")
        numbers = [{**row.to_dict(), "lower_bound": row.lower_bound} for row in self.rows]
        return pandas.DataFrame([{name: row[name] for name in names} for row in numbers], columns=names)

    def plot(self, target: Target = None, kind: str | Kind | None = None, methods: Sequence[str] = ()) -> Figure:
        """Draw it with matplotlib.

        Args:
            target: a file (.png, .svg, .pdf), or axes of matplotlib; None for the figure alone.
            kind: "bounds" (the bound against time per method, of up to nine problems), "cactus" (how many problems are decided within so
                many seconds), "scatter" (the seconds of two methods; what one leaves open lies on its edge), "scatter-bounds" (their
                bounds), "radius" (the verified fraction against the radius of problems); bounds of one problem and else a cactus unless
                it is said.
            methods: those that are drawn; unless any are named, all.

        Raises:
            InvalidInput: there is nothing to draw, matplotlib is missing, or the file cannot be written.
        """
        from milpverify.compare import plots

        wanted = self.obvious if kind is None else plots.kind_of(kind)
        return plots.draw(self.rows, wanted, target, methods, self.radii() if wanted is plots.Kind.RADIUS else None)

    @property
    def obvious(self) -> Kind:
        """The plot for those who do not say which."""
        from milpverify.compare.plots import Kind

        return Kind.CACTUS if len({row.problem for row in self.rows}) > 1 else Kind.BOUNDS

    @property
    def only_ends(self) -> str:
        """What a plot of bounds against time lacks, in words; empty where nothing."""
        from milpverify.compare.plots import only_ends

        return only_ends(self.rows)

    def radii(self) -> dict[str, float]:
        """How far inputs may change in each problem of which that is known."""
        return {one.name: radius for one in self.problems if (radius := one.reach()) is not None}

    def table(self) -> Table:
        """The rows as a table of rich; equal problems are named once."""
        found = _table(TITLES)
        before = ""
        for row in self.rows:
            name, before = ("" if row.problem == before else short(row.problem)), row.problem
            trust = "" if row.trust is None else row.trust.value
            costs = f"{row.seconds:.2f}", f"{row.cpu_seconds:.2f}", f"{row.memory_mb:.0f}"
            bound = "" if row.trust is None and math.isinf(row.lower_bound) else _number(row.lower_bound)
            found.add_row(*map(_plain, (name, row.method, bound, _number(row.gap), row.verdict.value, trust, *costs)))
        return found

    def summary_table(self) -> Table:
        """The summary as a table of rich."""
        found = _table(("method", "", "verified", "falsified", "open", "errors", "mean gap", "median s", "sum s"))
        for s in self.summary():
            counts = map(str, (s.verified, s.falsified, s.open, s.errors))
            found.add_row(_plain(s.method), "", *counts, _number(s.gap), f"{s.median_seconds:.2f}", f"{s.seconds:.1f}")
        return found

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int | None = None) -> str:
        """Both tables (the second where there are several problems), messages, and what is out of order."""
        from rich.console import Console

        console = Console(width=width or WIDTH, no_color=True, highlight=False)
        with console.capture() as captured:
            console.print(self.table())
            if len({row.problem for row in self.rows}) > 1:
                console.print(self.summary_table())
        notes = _notes(self.rows)
        notes += [f"out of order: {text}" for text in self.breaks]
        notes += [] if self.complete else ["interrupted: runs are missing"]
        return "\n".join([line.rstrip() for line in captured.get().splitlines()] + notes)


def _notes(rows: Sequence[Row]) -> list[str]:
    """The messages of rows; what a method says of several problems is said once."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.message:
            said.setdefault((row.method, row.message), []).append(short(row.problem))
    whose = (method if len(of) > 1 else f"{of[0]}, {method}" for (method, _), of in said.items())
    counts = (f" ({len(of)} problems)" if len(of) > 1 else "" for of in said.values())
    return [f"{who}{count}: {message}" for who, count, (_, message) in zip(whose, counts, said, strict=True)]


def _table(titles: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, title in enumerate(titles):
        table.add_column(title, justify="left" if place < 2 or title in ("verdict", "trust") else "right", no_wrap=place > 0)
    return table


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _number(value: float | None) -> str:
    return "" if value is None else str(json_number(value)) if math.isinf(value) else f"{value:.6g}"
