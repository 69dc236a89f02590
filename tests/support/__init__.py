"""Where things are, for every test, and what a result says of the search."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import milpverify as mv

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT.parent / "shared" / "benchmarks"

Run = Callable[..., subprocess.CompletedProcess[str]]


def detail(result: mv.Result) -> dict[str, Any]:
    """What the search counted."""
    return next(p.detail for p in result.phases if p.name == "search")


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 2, nothing on standard output, one line on standard error that says what is wrong."""
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (2, "", 1), done.stderr
    assert lines[0].startswith("milpverify: error: ")
    for word in words:
        assert word in lines[0]


def strictly(path: Path) -> dict[str, Any]:
    """A JSON file without the words that JSON does not have."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path} holds {word}")

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert isinstance(found, dict)
    return found
