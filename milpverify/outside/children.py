"""The processes that this one has started and not yet ended: whoever ends it at once ends them first."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from subprocess import Popen

_alive: WeakSet[Popen[bytes]] = WeakSet()  # a handle that is forgotten sees to its own end


def born(child: Popen[bytes]) -> None:
    """Note a process that leads a group of its own."""
    _alive.add(child)


def gone(child: Popen[bytes]) -> None:
    """Forget a process that is dead, or being killed."""
    _alive.discard(child)


def kill(child: Popen[bytes]) -> None:
    """Kill a process and its group; once it is reaped, its number may be another's, and nothing is done."""
    if child.returncode is not None:
        return
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):  # no such platform; a group that is gone, on macOS also a dead one
        with suppress(OSError):
            child.kill()


def kill_all() -> None:
    """Kill them all; none is waited for."""
    for child in list(_alive):
        kill(child)
