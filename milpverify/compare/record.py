"""Rows in a CSV file, written as they come; what is there already is gone on from."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from types import TracebackType

from milpverify.compare.rows import COLUMNS, Row
from milpverify.errors import InvalidInput


def line_of(cells: tuple[str, ...]) -> str:
    """Cells as a line of CSV."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


class Record:
    """A CSV file that rows are appended to, each in one write; a context manager.

    `rows` are those that it holds, of which there is one per problem and method. A last line that was cut off is removed.

    Args:
        resume: go on with a file that is there; otherwise one that holds anything is refused.

    Raises:
        InvalidInput: the file cannot be written, or it holds something else.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path = path
        try:
            held = path.read_bytes() if path.exists() else b""
            if held and not resume:
                raise InvalidInput(f"{path} is there already: --resume goes on with it")
            whole = held[: held.rfind(b"\n") + 1]
            self.rows = self._read(whole.decode()) if whole else []
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._file, len(whole))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
        if not whole:
            self._write(line_of(COLUMNS))

    def __enter__(self) -> Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)

    def add(self, row: Row) -> None:
        """Append a row."""
        self._write(line_of(row.cells))

    def _write(self, line: str) -> None:
        left = line.encode()
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            raise InvalidInput(f"cannot write {self.path}: {error.strerror}") from error

    def _read(self, text: str) -> list[Row]:
        lines = list(csv.reader(io.StringIO(text, newline="")))
        if tuple(lines[0]) != COLUMNS:
            raise InvalidInput(f"{self.path} is no file of a comparison: its first line is not {','.join(COLUMNS)}")
        rows = [Row.read(line) for line in lines[1:] if line]
        keys = [(row.problem, row.method) for row in rows]
        if len(set(keys)) < len(keys):
            raise InvalidInput(f"{self.path} holds a problem with the same method twice")
        return rows
