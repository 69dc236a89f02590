"""What every command of the command line does alike: errors as one line, signals, options, columns, a live line of progress.

Standard output holds the answer and nothing else; progress, summary and errors go to standard error. Exit status: 0 for any
verdict, 2 for unusable input or arguments, 1 for an internal error.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milpverify.errors import InvalidInput, SolverUnavailable
from milpverify.outside.ending import ending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from milpverify.config import Deadline
    from milpverify.result import Event


def number(value: float | None) -> float | None:
    """The value of an option, which is not NaN: typer's limits let that pass."""
    if value is not None and value != value:
        raise typer.BadParameter("not a number")
    return value


Timeout = Annotated[float | None, typer.Option(min=0.0, metavar="S", callback=number, help="Wall-clock limit in seconds.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the whole result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on standard error.")]
Outputs = Annotated[
    list[str] | None,
    typer.Option("--output", metavar="NAME", help="An output of the network that Y_0, Y_1, ... number (repeatable); else all real ones."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")]


def room(**settings: Any) -> typer.Typer:
    """An empty set of commands, which shows help and errors as all of them do."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **settings)


def complain(message: str) -> None:
    """One line on standard error."""
    remark(f"milpverify: error: {' '.join(message.split())}")


def answer(text: str) -> None:
    """Lines of standard output; to whoever has closed it nothing is written.

    Raises:
        InvalidInput: it cannot be written to, as to a full disk.
    """
    if sys.stdout is None:
        return
    try:
        ending.say(lambda: typer.echo(text))
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing shall be flushed there again
        if not isinstance(error, BrokenPipeError):  # the reader has seen enough (`| head -1`)
            raise InvalidInput(f"cannot write to standard output: {error.strerror}") from error


def remark(text: str) -> None:
    """Lines of standard error, lost where it cannot be written to."""
    with suppress(OSError):
        typer.echo(text, err=True)


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Turn exceptions into one line on standard error and an exit status."""
    try:
        yield
    except (InvalidInput, SolverUnavailable) as error:
        status, message = 2, str(error)
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001  (the edge of the program: whatever it was ends as one line and a status)
        status = 1
        message = f"internal error: {type(error).__name__}: {error}" + ("" if debug else " (run again with --debug for the traceback)")
    else:
        return
    if debug:
        import traceback

        traceback.print_exc()
    complain(message)
    raise typer.Exit(status)


def columns(rows: Sequence[Sequence[object]]) -> str:
    """Rows as left-aligned columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


@contextmanager
def live(deadline: Deadline, quiet: bool = False) -> Iterator[Callable[[Event], None] | None]:
    """Show the events that the yielded callback receives; yields None where standard error is no terminal or `quiet` is set."""
    if quiet:
        yield None
        return

    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return

    from rich.live import Live
    from rich.markup import escape
    from rich.spinner import Spinner
    from rich.text import Text

    spinner = Spinner("dots")
    latest = ["starting"]

    def line() -> Spinner:
        spinner.update(text=Text.from_markup(f"[bold]{deadline.elapsed():6.1f} s[/]  {latest[0]}"))
        return spinner

    def show(event: Event) -> None:
        numbers = "  ".join(f"[dim]{name}[/] {_number(value)}" for name, value in event.data.items() if isinstance(value, (int, float)))
        closed = event.data.get("closed")
        if isinstance(closed, dict) and closed:
            numbers += "  [dim]closed by[/] " + ", ".join(f"{escape(part)} {count}" for part, count in closed.items())
        latest[0] = f"[cyan]{escape(event.phase)}[/]  {escape(event.message)}  {numbers}"

    with Live(get_renderable=line, console=console, refresh_per_second=8, transient=True, redirect_stdout=False, redirect_stderr=False):
        console.show_cursor(True)  # a second Ctrl-C ends the process at once, and would leave the cursor hidden
        yield show


@contextmanager
def bar(quiet: bool) -> Iterator[Callable[[str, int], None] | None]:
    """A bar of progress on standard error: the yielded function is told what was done last, and how much is left to do.

    Yields None where standard error is no terminal or `quiet` is set.
    """
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    parts = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*parts, console=Console(stderr=True), transient=True) as progress:
        task, done = progress.add_task("starting", total=None), [0]

        def show(text: str, left: int) -> None:
            done[0] += 1
            progress.update(task, description=escape(text), total=done[0] + left, completed=done[0])

        yield show


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
