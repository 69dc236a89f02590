"""Rows in a file: as they come, cut off, gone on from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from milpverify.compare.record import Record
from milpverify.compare.rows import COLUMNS, Row, Word
from milpverify.errors import InvalidInput
from milpverify.result import Trust


def row(problem: str, method: str = "crown", bound: float = 0.1) -> Row:
    return Row(problem, method, bound, None, Word.UNSAT, Trust.ROUNDED, 0.5, 0.25, 100.0)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = [row("a, b"), row('c "d"', bound=1 / 3), Row("e", "t", -math.inf, 0.1 + 0.2, Word.TIMEOUT, None, 0.0, 0.0, 0.0)]
    with Record(path) as record:
        for each in rows:
            record.add(each)
            assert path.read_text().count("\n") == 2 + rows.index(each)  # nothing waits in a buffer
    with Record(path, resume=True) as record:
        assert record.rows == rows
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_that_was_cut_off_is_removed(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.csv"
    with Record(path) as record:
        record.add(row("a"))
        record.add(row("b"))
    path.write_bytes(path.read_bytes()[:-cut])
    with Record(path, resume=True) as record:
        assert [r.problem for r in record.rows] == ["a"]
        record.add(row("b"))
    with Record(path, resume=True) as record:
        assert [r.problem for r in record.rows] == ["a", "b"]


def test_a_header_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("problem,meth")
    with Record(path, resume=True) as record:
        assert record.rows == []
    assert path.read_text() == ",".join(COLUMNS) + "\n"


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for text, words in (("a,b\n1,2\n", "no file of a comparison"), (",".join(COLUMNS) + "\na,b,c\n", "no row")):
        path.write_text(text)
        with pytest.raises(InvalidInput, match=words):
            Record(path, resume=True)
        with pytest.raises(InvalidInput, match="--resume"):
            Record(path)
        assert path.read_text() == text
    with Record(tmp_path / "twice.csv") as record:
        record.add(row("a"))
        record.add(row("a"))
    with pytest.raises(InvalidInput, match="twice"):
        Record(tmp_path / "twice.csv", resume=True)
    with pytest.raises(InvalidInput, match="cannot write"):
        Record(tmp_path / "missing" / "rows.csv")
