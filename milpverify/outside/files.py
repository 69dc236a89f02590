"""Files that are written: whole or not at all, through links, and never in place of what is no file, or is read from."""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that other programs see either whole or not at all; standard output and FIFOs are written to as they are.

    Raises:
        InvalidInput: it cannot be written, or there is something that is no file.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if is_stream(path):
            with _opened(path) as file:
                file.write(data)
            return
        target = _target(path)
        part = target.with_name(f".{os.getpid()}.{threading.get_ident():x}")  # short: the name itself may be as long as names can be
        try:
            part.write_bytes(data)
            part.replace(target)
        except OSError:
            with suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}") from error


def check_writable(path: Path | None, inputs: Iterable[Path | str | None] = ()) -> None:
    """Refuse, before the work, a file that cannot be written after it, or that is one of the inputs.

    Raises:
        InvalidInput: says why.
    """
    if path is None:
        return
    for each in inputs:
        if each is not None and _same(path, each):
            raise InvalidInput(f"cannot write {path}: it is read from")
    with suppress(OSError):  # what else is wrong with it is said when it is written
        if not is_stream(path) and not os.access(_target(path).parent, os.W_OK):
            raise InvalidInput(f"cannot write {path}: its folder is missing or not writable")


def is_stream(path: Path) -> bool:
    """Whether what is written to the path cannot be replaced, but goes on to who reads it: a FIFO, or standard output."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return stat.S_ISFIFO(there.st_mode) or _is_output(there)


def _is_output(there: os.stat_result) -> bool:
    try:
        return os.path.samestat(there, os.fstat(1))
    except OSError:
        return False


def _opened(path: Path) -> IO[bytes]:
    """The stream for writing. Standard output is not opened anew: that would begin at its start, and a socket cannot be."""
    return os.fdopen(os.dup(1), "wb") if _is_output(path.stat()) else path.open("wb")


def _target(path: Path) -> Path:
    """The file that a path leads to, through links.

    Raises:
        InvalidInput: there is something that is no file.
    """
    target = Path(os.path.realpath(path))
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(target.stat().st_mode):
            raise InvalidInput(f"cannot write {path}: it is no regular file")
    return target


def _same(path: Path, other: Path | str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False
