"""Processes that run a module of this package: in groups of their own, with the package that this one has, known to whoever ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

from milpverify.outside import children


def started(module: str, *arguments: str, complaints: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start `python -m MODULE ARGUMENTS PID`, PID being this process, with pipes for its input and output.

    Args:
        complaints: where its standard error goes.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]))
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    children.born(child)
    return child
