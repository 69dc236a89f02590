"""Files as they are decided: read once, unpacked where they are compressed, hashed, and never more than a limit of them.

Whatever can be read once will do: a regular file, a pipe, standard input.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from milpverify.config import MOST_BYTES

UNREADABLE = (OSError, EOFError, ValueError, zlib.error)
"""What `read` raises."""

_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Contents:
    """The bytes of a file, and their SHA-256."""

    data: bytes
    sha256: str


def read(path: str | Path, most: int = MOST_BYTES, packed: bool = True) -> Contents:
    """The bytes of a file, unpacked where they are compressed with gzip, unless it cannot be (`packed`).

    Raises:
        OSError, EOFError, zlib.error: it cannot be read or unpacked.
        ValueError: it holds more than `most` bytes, before or after it is unpacked.
    """
    with Path(path).open("rb") as file:
        return _contents(file, most, packed)


def held(data: bytes, most: int = MOST_BYTES) -> Contents:
    """What bytes in memory hold, as `read` does a file's.

    Raises:
        OSError, EOFError, zlib.error, ValueError: as `read`.
    """
    return _contents(io.BytesIO(data), most, True)


def _contents(source: BinaryIO, most: int, packed: bool) -> Contents:
    data = _at_most(source, most)
    if packed and data[:2] == _MAGIC:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
            data = _at_most(unpacked, most)
    return Contents(data, hashlib.sha256(data).hexdigest())


def _at_most(source: BinaryIO | gzip.GzipFile, most: int, at_a_time: int = 2**20) -> bytes:
    """All of a source, in pieces of so many bytes at most: how much there is it need not know, or say truly."""
    held = io.BytesIO()
    while piece := source.read(min(at_a_time, most + 1 - held.tell())):
        held.write(piece)
        if held.tell() > most:
            raise ValueError(f"it holds more than {most} bytes; if that is meant, raise the limit (max_bytes, --max-bytes)")
    return held.getvalue()
