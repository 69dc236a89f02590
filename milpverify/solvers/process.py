"""The parent's handle of a solver process: started on first use, kept between models, killed at the deadline.

A crash, a leak or a hang of native code costs one model, never the run: whatever goes wrong ends as an outcome that proves no
more than the last progress report did.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, overload

from milpverify.encode.model import Model, SmtScript
from milpverify.solvers.base import Answer, Limits, Progress, SmtOutcome, SolveOutcome, Status
from milpverify.solvers.worker import BrokenProtocol, receive, send

if TYPE_CHECKING:
    from milpverify.config import Deadline

GRACE = 0.5  # seconds that a solver may overrun its time limit before it is killed
POLL = 0.02  # seconds between looks at the deadline

_Message = tuple[Any, ...]


class SolverProcess:
    """A worker process for one solver; a context manager that leaves no child behind.

    On Linux the worker is killed when the *thread* that started it ends, so use one from the thread that first solves with it.

    Args:
        solver: "scip", "highs", "gurobi" or "z3".
        memory_mb: MiB of address space that the worker may take.
    """

    def __init__(self, solver: str, memory_mb: int = 8192) -> None:
        self.solver = solver
        self.memory_mb = memory_mb
        self._child: subprocess.Popen[bytes] | None = None
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._writing = threading.Lock()

    def __enter__(self) -> SolverProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The worker's process id (and process group), None while there is none."""
        return None if self._child is None else self._child.pid

    @overload
    def solve(
        self, model: Model, limits: Limits, deadline: Deadline, on_progress: Callable[[Progress], bool] | None = None
    ) -> SolveOutcome: ...

    @overload
    def solve(
        self, model: SmtScript, limits: Limits, deadline: Deadline, on_progress: Callable[[Progress], bool] | None = None
    ) -> SmtOutcome: ...

    def solve(
        self,
        model: Model | SmtScript,
        limits: Limits,
        deadline: Deadline,
        on_progress: Callable[[Progress], bool] | None = None,
    ) -> SolveOutcome | SmtOutcome:
        """Solve in the worker and wait, at most until the deadline plus GRACE; a true return of `on_progress` ends the solve.

        The limits' seconds and the deadline both hold. Never raises for what the worker does: see `Status`.
        """
        began = time.monotonic()
        seconds = min(limits.seconds, deadline.remaining())
        last = Progress(-float("inf"), float("inf"), 0, 0.0)

        def failed(status: Status, message: str) -> SolveOutcome | SmtOutcome:
            spent = time.monotonic() - began
            if not isinstance(model, Model):
                return SmtOutcome(Answer.UNKNOWN, (), status, spent, message)
            return SolveOutcome(status, last.dual_bound, last.primal, last.point, last.nodes, spent, message)

        if seconds <= 0.0:
            return failed(*_expired(deadline))
        stopping = float("inf")
        try:
            self._start()
            self._post(("solve", self.solver, model, replace(limits, seconds=seconds)))
            while True:
                try:
                    kind, content = self._inbox.get(timeout=POLL)
                except queue.Empty:
                    kind, content = "nothing", None
                if kind == "progress":
                    point = last.point if content.point is None else content.point
                    dual = max(last.dual_bound, content.dual_bound)
                    last = replace(content, dual_bound=dual, primal=min(last.primal, content.primal), point=point)
                    if stopping == float("inf") and on_progress is not None and on_progress(content):
                        self._post(("stop",))
                        stopping = time.monotonic() + GRACE
                elif kind == "outcome":
                    outcome: SolveOutcome | SmtOutcome = content
                    return outcome
                elif kind in _ENDINGS:
                    if kind == "dead":
                        content = f"{self.solver}: {content}{self._burial()}"
                    return failed(_ENDINGS[kind], content)
                now = time.monotonic()
                if deadline.cancelled or now > stopping:
                    self.kill()
                    return failed(Status.INTERRUPTED, f"{self.solver}: interrupted")
                if now > began + seconds + GRACE:
                    self.kill()
                    return failed(Status.TIME_LIMIT, f"{self.solver}: killed at the deadline")
        except BaseException:  # Ctrl-C above all, and errors of the callback: leave no child behind, then pass it on
            self.kill()
            raise

    def close(self) -> None:
        """End the worker; it holds nothing that needs a farewell."""
        self.kill()

    def kill(self) -> None:
        """Kill the worker and whatever it started, and reap it. The next solve starts a fresh one."""
        child, self._child = self._child, None
        if child is None:
            return
        if hasattr(os, "killpg"):
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                child.kill()  # the group is gone already; on macOS a dead group gives PermissionError
        else:
            child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                _close(stream)

    def _start(self) -> None:
        if self._child is not None and self._child.poll() is None:
            return
        self.kill()
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-P", "-m", "milpverify.solvers.worker", str(self.memory_mb), str(os.getpid())]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        self._inbox, self._writing = queue.SimpleQueue(), threading.Lock()
        assert self._child.stdout is not None
        threading.Thread(target=_listen, args=(self._child.stdout, self._inbox), daemon=True).start()

    def _post(self, message: _Message) -> None:
        """Send from a thread of its own: a worker that does not read must not hold us beyond the deadline."""
        assert self._child is not None and self._child.stdin is not None
        threading.Thread(target=_write, args=(self._child.stdin, self._writing, message), daemon=True).start()

    def _burial(self) -> str:
        """Reap a worker that is dead or talks garbage; returns how it ended."""
        assert self._child is not None
        child = self._child
        try:
            code = child.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            code = 0
        self.kill()
        return f" (signal {-code})" if code < 0 else f" (exit status {code})" if code else ""


_ENDINGS = {
    "unavailable": Status.UNAVAILABLE,
    "memory": Status.MEMORY_LIMIT,
    "failed": Status.UNKNOWN,
    "dead": Status.CRASHED,
}


def _expired(deadline: Deadline) -> tuple[Status, str]:
    return (Status.INTERRUPTED, "interrupted") if deadline.cancelled else (Status.TIME_LIMIT, "no time left")


def _listen(source: IO[bytes], inbox: queue.SimpleQueue[_Message]) -> None:
    while True:
        try:
            inbox.put(receive(source))
        except EOFError:
            return inbox.put(("dead", "the solver process died"))
        except (BrokenProtocol, OSError, ValueError) as error:
            return inbox.put(("dead", f"the solver process broke the protocol: {error}"))


def _write(target: IO[bytes], lock: threading.Lock, message: _Message) -> None:
    try:
        with lock:
            send(target, message)
    except (OSError, ValueError):
        return  # the worker is gone, which the listening side reports


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except OSError:
        return  # unflushed bytes for a dead worker
