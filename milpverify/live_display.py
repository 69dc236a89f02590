"""Progress of a run as a live line on standard error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from milpverify.config import Deadline
    from milpverify.events import Event


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


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
