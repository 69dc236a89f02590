"""Tables in CSV files that are written row by row, and gone on from where a run was ended."""

from __future__ import annotations

import csv
import io
import os
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from pathlib import Path
    from types import TracebackType


R = TypeVar("R")


def line_of(cells: Sequence[str]) -> str:
    """Cells as a line of CSV."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


class AppendedTable(Generic[R]):
    """A CSV file that rows are appended to, each in one write; a context manager.

    `rows` are those that it held when it was opened. A last line that was cut off is removed.

    Args:
        columns: its first line.
        of: what makes such files, for messages.
        read: a row of its cells; raises InvalidInput where they are none.
        key: what is different for all rows.
        resume: go on with a file that is there; otherwise one that holds anything is refused.

    Raises:
        InvalidInput: the file cannot be written, or it holds something else.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        of: str,
        read: Callable[[list[str]], R],
        key: Callable[[R], Hashable],
        resume: bool = False,
    ) -> None:
        self.path = path
        try:
            held = path.read_bytes() if path.exists() else b""
            if held and not resume:
                raise InvalidInput(f"{path} is there already: --resume goes on with it")
            whole = held[: held.rfind(b"\n") + 1]
            lines = list(csv.reader(io.StringIO(whole.decode(), newline="")))
            if lines and lines[0] != list(columns):
                raise InvalidInput(f"{path} is no file of {of}: its first line is not {','.join(columns)}")
            self.rows = [read(line) for line in lines[1:] if line]
            if len({key(row) for row in self.rows}) < len(self.rows):
                raise InvalidInput(f"{path} holds the same row of {of} twice")
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._file, len(whole))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
        if not whole:
            self.append(columns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)

    def append(self, cells: Sequence[str]) -> None:
        """Append a row.

        Raises:
            InvalidInput: the file cannot be written.
        """
        left = line_of(cells).encode()
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            raise InvalidInput(f"cannot write {self.path}: {error.strerror}") from error
