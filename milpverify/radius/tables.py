"""Inputs and labels from files, and radii into them."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.errors import InvalidInput
from milpverify.result import json_number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from milpverify.radius.curve import Fraction
    from milpverify.radius.result import Radius
    from milpverify.spec import Array

FIELDS = ("input", "label", "lower_bound", "upper_bound", "other", "reason", "trust", "seconds", "searches")
"""The columns of a table of radii."""


def read_numbers(path: Path) -> Array:
    """The array of a .npy file, or the lines of a .csv file (k, n), whose first line may be names.

    Raises:
        InvalidInput: the file holds something else.
    """
    if path.suffix.lower() == ".npy":
        try:
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
        except (ValueError, OSError, TypeError) as error:
            raise InvalidInput(f"cannot read {path}: {error}") from error
    if path.suffix.lower() != ".csv":
        raise InvalidInput(f"cannot read {path}: its name must end in .npy or .csv")
    try:
        lines = [(k, line) for k, line in enumerate(csv.reader(io.StringIO(path.read_text())), 1) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from error
    if lines and not any(_is_number(cell) for cell in lines[0][1]):
        lines = lines[1:]
    if not lines:
        raise InvalidInput(f"{path} holds no numbers")
    for k, line in lines:
        for cell in line:
            if not _is_number(cell):
                raise InvalidInput(f"{path}, line {k}: {cell.strip()!r} is no number")
        if len(line) != len(lines[0][1]):
            raise InvalidInput(f"{path}, line {k}: there are {len(line)} numbers, in the first line {len(lines[0][1])}")
    return np.array([[float(cell) for cell in line] for _, line in lines], dtype=np.float64)


def read_labels(path: Path) -> list[int]:
    """The labels that a file of numbers holds.

    Raises:
        InvalidInput: one of them is no whole number.
    """
    numbers = read_numbers(path).reshape(-1)
    if (bad := np.flatnonzero(~(np.floor(numbers) == numbers) | np.isinf(numbers))).size:
        raise InvalidInput(f"{path}: the label of input {bad[0]} is {numbers[bad[0]]}, not a whole number")
    return [int(v) for v in numbers]


def row(k: int, found: Radius) -> dict[str, Any]:
    """What a table says of input k."""
    return {
        "input": k,
        "label": found.label,
        "lower_bound": json_number(found.lower_bound),
        "upper_bound": json_number(found.upper_bound),
        "other": "" if found.other is None else found.other,
        "reason": found.reason.name,
        "trust": found.trust.value,
        "seconds": round(found.seconds, 3),
        "searches": found.searches,
    }


def line(values: Sequence[object]) -> str:
    """A line of the table for people, of the columns' names or values."""
    cells = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in values]
    widths = (7, 7, 13, 13, 7, 16, 9, 9, 9)
    return "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def curve_text(points: Sequence[Fraction]) -> str:
    """A curve as CSV."""
    return "radius,verified,not_falsified\n" + "".join(f"{p.radius!r},{p.verified!r},{p.not_falsified!r}\n" for p in points)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
