"""The parent's side of runs: each is a process of its own, listened to, and killed where it does not keep its limit."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from milpverify.compare.child import own_peak
from milpverify.compare.rows import Answer, Usage, Word
from milpverify.compare.tools import ProcessTuning
from milpverify.errors import InvalidInput
from milpverify.outside import children
from milpverify.outside.starting import started
from milpverify.solvers.worker import BrokenProtocol, receive, send

if TYPE_CHECKING:
    from milpverify.compare.methods import Method
    from milpverify.compare.sources import Instance
    from milpverify.compare.tools import Tool
    from milpverify.config import Deadline


class Interrupted(Exception):
    """The comparison was asked to stop: the run has no row."""


class Processes:
    """What runs come from: processes that have imported everything, kept for the next run as long as all ends well; a context manager.

    Every thread has its own: on Linux a process dies with the thread that has started it.
    """

    def __init__(self, tuning: ProcessTuning = ProcessTuning()) -> None:
        self._tuning = tuning
        self._idle: dict[int, _Child] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._idle:
            self._idle.popitem()[1].end()

    def measured(self, instance: Instance, method: Method | Tool, limit: float, deadline: Deadline) -> tuple[Answer, Usage]:
        """Run a method on a problem in a process of its own; never longer than its limit and a grace, once the problem is loaded.

        Raises:
            Interrupted: the deadline of the comparison was cancelled.
        """
        child, well = self._idle.pop(threading.get_ident(), None) or _Child(self._tuning), False
        try:
            answer, usage, well = child.awaited(instance, method, limit, deadline)
            return answer, usage
        finally:
            if well:
                self._idle[threading.get_ident()] = child
            else:
                child.end()


class _Child:
    """A process, what it complains of and what it tells."""

    def __init__(self, tuning: ProcessTuning) -> None:
        self.tuning = tuning
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `end`)
        self.process = started("milpverify.compare.child", complaints=self.complaints)
        self.inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        assert self.process.stdout is not None
        self.listener = threading.Thread(target=_listen, args=(self.process.stdout, self.inbox), daemon=True)
        self.listener.start()

    def awaited(self, instance: Instance, method: Method | Tool, limit: float, deadline: Deadline) -> tuple[Answer, Usage, bool]:
        """What a run comes to, and whether the process can be used again."""
        assert self.process.stdin is not None
        tuning = self.tuning
        said = os.fstat(self.complaints.fileno()).st_size
        with suppress(BrokenPipeError):
            send(self.process.stdin, (sys.path, pickle.dumps((instance, method, limit, tuning))))
        best, began, spent, until = Answer(Word.TIMEOUT), time.monotonic(), 0.0, time.monotonic() + tuning.loading
        pid, steps = 0, list[tuple[float, float]]()
        while True:
            if deadline.cancelled:
                raise Interrupted
            try:
                message = self.inbox.get(timeout=tuning.poll)
            except queue.Empty:
                message = ()
            match message:
                case ("begun", int(pid)):
                    began, spent = time.monotonic(), _cpu_of(pid)
                    until = began + limit + tuning.grace
                case ("told", Answer() as told, float(seconds)):
                    steps = thinned([*steps, (seconds, told.lower_bound)], tuning.steps)
                    best = told if told.lower_bound >= best.lower_bound else best
                case ("ended", Answer() as answer, Usage() as usage):
                    return replace(answer, steps=tuple(steps)), usage, sys.platform == "linux"
                case ("gone", str(why)):
                    code = self.process.wait()
                    end = f"signal {-code}" if code < 0 else f"exit status {code}"
                    last = self._last_line(said)
                    message_ = f"the process ended without an answer ({end}{why}){': ' + last if last else ''}"
                    answer = replace(best, verdict=Word.ERROR, message=message_, steps=tuple(steps))
                    return answer, Usage(time.monotonic() - began, 0.0, 0.0), False
            if time.monotonic() > until:
                if not pid:
                    usage = Usage(time.monotonic() - began, 0.0, 0.0)
                    return Answer(Word.ERROR, message=f"the problem was not loaded within {tuning.loading:g} s"), usage, False
                usage = Usage(time.monotonic() - began, max(0.0, _cpu_of(pid) - spent), own_peak(pid))
                return replace(best, verdict=Word.TIMEOUT, message="killed at the limit", steps=tuple(steps)), usage, False

    def end(self) -> None:
        """End the process and what it started."""
        process = self.process
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()  # asks an idle one to end
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.tuning.farewell)
        if process.returncode is None:
            children.kill(process)
            process.wait()
        children.gone(process)
        self.listener.join(self.tuning.farewell)
        self.complaints.close()

    def _last_line(self, since: int) -> str:
        self.complaints.seek(since)
        lines = self.complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def measured(instance: Instance, method: Method | Tool, limit: float, deadline: Deadline) -> tuple[Answer, Usage]:
    """One run alone."""
    with Processes() as processes:
        return processes.measured(instance, method, limit, deadline)


def thinned(steps: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Every second step where there are more than so many, the first and the last always."""
    return steps if len(steps) <= most else steps[:-1:2] + steps[-1:]


def _listen(source: IO[bytes], inbox: queue.SimpleQueue[tuple[Any, ...]]) -> None:
    try:
        with source:
            while True:
                inbox.put(receive(source))
    except EOFError:
        inbox.put(("gone", ""))
    except (OSError, BrokenProtocol) as error:
        inbox.put(("gone", f", {error}"))


def _cpu_of(pid: int) -> float:
    """Processor time of a process and of the children that it has waited for, 0 where the platform does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def sendable(method: Method | Tool, instance: Instance) -> None:
    """Refuse before the work what cannot be sent.

    Raises:
        InvalidInput: a tool is asked for a problem without files.
    """
    if hasattr(method, "command") and instance.onnx is None:
        raise InvalidInput(f"{method.name} needs files, and {instance.name} was stated in Python: give a pair of files")
