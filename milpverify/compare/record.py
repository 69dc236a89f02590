"""Rows in a CSV file, written as they come; what is there already is gone on from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.compare.rows import COLUMNS, Row
from milpverify.outside.appended import AppendedTable

if TYPE_CHECKING:
    from pathlib import Path


class Record(AppendedTable[Row]):
    """The file of a comparison: one row per problem and method.

    Raises:
        InvalidInput: the file cannot be written, or it holds something else.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        super().__init__(path, COLUMNS, "a comparison", Row.read, lambda row: (row.problem, row.method), resume)

    def add(self, row: Row) -> None:
        """Append a row."""
        self.append(row.cells)
