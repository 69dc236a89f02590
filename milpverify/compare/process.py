"""The parent's side of a method's process: started, listened to, and killed where it does not keep its limit."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from milpverify.compare.child import own_peak
from milpverify.compare.rows import Answer, Usage, Word
from milpverify.errors import InvalidInput
from milpverify.solvers.worker import BrokenProtocol, receive, send

if TYPE_CHECKING:
    from milpverify.compare.methods import Method
    from milpverify.compare.sources import Instance
    from milpverify.compare.tools import Tool
    from milpverify.config import Deadline

LOADING = 600.0  # seconds that a process may take to load a problem
GRACE = 2.0  # seconds that a method may overrun its limit, to conclude, before it is killed
FAREWELL = 1.0  # seconds between the request to end and the kill, for a tool's group to be ended first
POLL = 0.05
STEPS = 400  # so many bounds are kept of those proved on the way


class Interrupted(Exception):
    """The comparison was asked to stop: the run has no row."""


def measured(instance: Instance, method: Method | Tool, limit: float, deadline: Deadline) -> tuple[Answer, Usage]:
    """Run a method on a problem in a process of its own; never longer than its limit and a grace, once the problem is loaded.

    Raises:
        InvalidInput: the method cannot be sent to another process.
        Interrupted: the deadline of the comparison was cancelled.
    """
    with tempfile.TemporaryFile() as complaints, _started(complaints) as child:
        try:
            return _awaited(child, instance, method, limit, deadline, complaints)
        finally:
            _end(child)


def _started(complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "milpverify.compare.child", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


def _awaited(
    child: subprocess.Popen[bytes], instance: Instance, method: Method | Tool, limit: float, deadline: Deadline, complaints: IO[bytes]
) -> tuple[Answer, Usage]:
    assert child.stdin is not None and child.stdout is not None
    inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(child.stdout, inbox), daemon=True).start()
    with suppress(BrokenPipeError):
        send(child.stdin, (sys.path, pickle.dumps((instance, method, limit))))
    best, began, spent, until = Answer(Word.TIMEOUT), time.monotonic(), 0.0, time.monotonic() + LOADING
    begun, steps = False, list[tuple[float, float]]()
    while True:
        if deadline.cancelled:
            raise Interrupted
        try:
            message = inbox.get(timeout=POLL)
        except queue.Empty:
            message = ()
        match message:
            case ("begun",):
                begun, began, spent = True, time.monotonic(), _cpu_of(child.pid)
                until = began + limit + GRACE
            case ("told", Answer() as told, float(seconds)):
                steps = thinned([*steps, (seconds, told.lower_bound)])
                best = told if told.lower_bound >= best.lower_bound else best
            case ("ended", Answer() as answer, Usage() as usage):
                return replace(answer, steps=tuple(steps)), usage
            case ("gone", str(why)):
                code = child.wait()
                end = f"signal {-code}" if code < 0 else f"exit status {code}"
                last = _last_line(complaints)
                message_ = f"the process ended without an answer ({end}{why}){': ' + last if last else ''}"
                return replace(best, verdict=Word.ERROR, message=message_, steps=tuple(steps)), Usage(time.monotonic() - began, 0.0, 0.0)
        if time.monotonic() > until:
            usage = Usage(time.monotonic() - began, max(0.0, _cpu_of(child.pid) - spent), own_peak(child.pid))
            if not begun:
                return Answer(Word.ERROR, message=f"the problem was not loaded within {LOADING:g} s"), usage
            return replace(best, verdict=Word.TIMEOUT, message="killed at the limit", steps=tuple(steps)), usage


def thinned(steps: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every second step where there are many, the first and the last always."""
    return steps if len(steps) <= STEPS else steps[:-1:2] + steps[-1:]


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and what it started."""
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(FAREWELL)
    if child.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _listen(source: IO[bytes], inbox: queue.SimpleQueue[tuple[Any, ...]]) -> None:
    try:
        while True:
            inbox.put(receive(source))
    except EOFError:
        inbox.put(("gone", ""))
    except (OSError, ValueError, BrokenProtocol) as error:  # ValueError: closed under our hands
        inbox.put(("gone", f", {error}"))


def _cpu_of(pid: int) -> float:
    """Processor time of a process and of the children that it has waited for, 0 where the platform does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _last_line(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    lines = complaints.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def sendable(method: Method | Tool, instance: Instance) -> None:
    """Refuse before the work what cannot be sent.

    Raises:
        InvalidInput: a tool is asked for a problem without files.
    """
    if hasattr(method, "command") and instance.onnx is None:
        raise InvalidInput(f"{method.name} needs files, and {instance.name} was stated in Python: give a pair of files")
