"""Where things are, for every test, and what a result says of the search."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import milpverify as mv

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT.parent / "shared" / "benchmarks"

Run = Callable[..., subprocess.CompletedProcess[str]]


def detail(result: mv.Result) -> dict[str, Any]:
    """What the search counted."""
    return next(p.detail for p in result.phases if p.name == "search")
