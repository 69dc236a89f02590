"""What all pictures have in common: figures of matplotlib made without pyplot (no display, no global state), colours, files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, GRID = "#2b2d42", "#8d939b", "#e4e6ea"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#7f5539")
"""Colours that the colour-blind tell apart: those of Okabe and Ito but for yellow and black, and two more."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
SUFFIXES = (".png", ".svg", ".pdf")
NEEDED = "pictures need matplotlib: pip install 'milpverify[plots]'"


def figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches.

    Raises:
        InvalidInput: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInput(NEEDED) from error
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, path: str | Path) -> None:
    """Write a figure (.png, .svg, .pdf).

    Raises:
        InvalidInput: a folder is missing, or the format is unknown.
    """
    from io import BytesIO

    from milpverify.outside.files import write_atomically

    made = BytesIO()
    try:
        drawn.savefig(made, format=Path(path).suffix[1:].lower(), dpi=150)
    except ValueError as error:
        raise InvalidInput(f"cannot write {path}: {error}") from error
    write_atomically(Path(path), made.getvalue())


def check(path: Path) -> None:
    """Refuse before the work a picture that cannot be drawn after it.

    Raises:
        InvalidInput: its name has another ending, or matplotlib is not installed.
    """
    from importlib.util import find_spec

    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(f"cannot draw {path}: its name must end in .png, .svg or .pdf")
    if find_spec("matplotlib") is None:
        raise InvalidInput(NEEDED)


def plain(axes: Axes) -> None:
    """Axes without a frame, over a pale grid."""
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(labelsize=8, color=GREY)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)


def logarithmic(axes: Axes, *which: str) -> None:
    """Logarithmic axes ("x", "y") whose ticks are plain numbers: powers of ten, and 2 and 5 times these where an axis is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in which:
        axes.set(**{f"{name}scale": "log"})
        axis = axes.xaxis if name == "x" else axes.yaxis
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
