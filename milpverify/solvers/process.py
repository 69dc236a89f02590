"""The parent's handle of a solver process: started on first use, kept between models, killed at the deadline.

A crash, a leak or a hang of native code costs one model, never the run: whatever goes wrong ends as an outcome that proves no
more than the last progress report did.
"""

from __future__ import annotations

import math
import os
import queue
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, overload

import numpy as np

from milpverify.outside import children
from milpverify.outside.starting import started
from milpverify.solvers.base import Answer, Limits, Manner, Progress, SmtOutcome, SolveOutcome, SolverStatus, SweepOutcome
from milpverify.solvers.model import Model, SmtScript, Sweep
from milpverify.solvers.registry import SWEEPS
from milpverify.solvers.worker import NO_MEMORY, BrokenProtocol, receive, send
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.config import Deadline


class SolverTuning(Tuning):
    """How long a solver's process is waited for, and how its adapter goes about a solve."""

    grace: float = 0.5
    """Seconds that a solver may overrun its time limit before it is killed."""
    early: float = 0.1
    """Seconds before the deadline, when it is killed, that it is to end by itself."""
    poll: float = 0.02
    """Seconds between looks at the deadline."""
    reap: float = 5.0
    """Seconds that a killed worker may take to die; one that is stuck in the kernel is left to it."""
    manner: Manner = Manner()
    """What the adapter is told."""


_Message = tuple[Any, ...]
Question = Model | Sweep | SmtScript
"""What a worker can be sent."""
Reply = SolveOutcome | SweepOutcome | SmtOutcome


class SolverProcess:
    """A worker process for one solver; a context manager that leaves no child behind.

    On Linux the worker is killed when the *thread* that started it ends, so use one from the thread that first solves with it.

    Args:
        solver: one of `names.SOLVERS`.
        memory_mb: MiB of address space that the worker may take.
        niceness: how far the worker stands back for others, where the platform knows that (POSIX).
        tuning: how long it is waited for; its `manner` is that of all solves, whatever their limits say.
    """

    def __init__(self, solver: str, memory_mb: int = 8192, niceness: int = 0, tuning: SolverTuning = SolverTuning()) -> None:
        self.solver = solver
        self.memory_mb = memory_mb
        self.niceness = niceness
        self.tuning = tuning
        self._task: _Task | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()
        self._farewell = weakref.finalize(self, self._outbox.put, None)  # a handle that is forgotten ends its worker, too
        self._number = 0  # of the last solve

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
        self, model: Sweep, limits: Limits, deadline: Deadline, on_progress: Callable[[Progress], bool] | None = None
    ) -> SweepOutcome: ...

    @overload
    def solve(
        self, model: SmtScript, limits: Limits, deadline: Deadline, on_progress: Callable[[Progress], bool] | None = None
    ) -> SmtOutcome: ...

    def solve(
        self,
        model: Question,
        limits: Limits,
        deadline: Deadline,
        on_progress: Callable[[Progress], bool] | None = None,
    ) -> Reply:
        """Solve in the worker and wait, at most until the deadline, or the limit plus `tuning.grace`.

        The limits' seconds and the deadline both hold. A true return of `on_progress` ends the solve. Never raises for what the worker
        does: see `SolverStatus`.
        """
        try:
            self.start(model, limits, deadline, on_progress)
            while (outcome := self.poll(self.tuning.poll)) is None:
                pass
            return outcome
        except BaseException:  # Ctrl-C above all, and errors of the callback: leave no child behind, then pass it on
            self.kill()
            raise

    def start(self, model: Question, limits: Limits, deadline: Deadline, on_progress: Callable[[Progress], bool] | None = None) -> None:
        """Begin to solve without waiting; `poll` has the outcome. A solve that is still under way is dropped. Sweeps go to `SWEEPS`."""
        if self._task is not None:
            self.kill()
        left = deadline.remaining()
        seconds = min(limits.seconds, left - min(self.tuning.early, left / 10) if left < math.inf else left)
        self._task = _Task(model, deadline, on_progress, seconds)
        if seconds > 0.0:
            self._start()
            self._number += 1
            told = replace(limits, seconds=seconds, manner=self.tuning.manner)
            self._outbox.put(("solve", SWEEPS if isinstance(model, Sweep) else self.solver, model, told, self._number))

    def poll(self, wait: float = 0.0) -> Reply | None:
        """Pass on what the worker reported; its outcome once there is one, None while the solve goes on.

        Args:
            wait: seconds to wait for a first report.

        Raises:
            ValueError: nothing was started.
        """
        task = self._task
        if task is None:
            raise ValueError("no solve was started")
        outcome = self._next(task, wait)
        if outcome is not None:
            self._task = None
        return outcome

    def stop(self) -> None:
        """Ask for the end of the solve under way; `poll` still has its outcome, within `tuning.grace`."""
        if self._task is not None and self._task.stopping == math.inf:
            self._task.stopping = time.monotonic() + self.tuning.grace
            self._outbox.put(("stop", self._number))

    def _next(self, task: _Task, wait: float) -> Reply | None:
        if task.seconds <= 0.0:
            return task.failed(*_expired(task.deadline))
        while True:
            try:
                message = self._inbox.get(timeout=wait)
            except queue.Empty:
                message = None
            if message is not None and (outcome := self._receive(task, message)) is not None:
                return outcome
            now = time.monotonic()
            if task.deadline.cancelled or now > task.stopping:
                self.kill()
                return task.failed(SolverStatus.INTERRUPTED, f"{self.solver}: interrupted")
            if now > task.began + task.seconds + self.tuning.grace or task.deadline.expired():
                self.kill()
                return task.failed(SolverStatus.TIME_LIMIT, f"{self.solver}: killed at the deadline")
            if message is None:
                return None
            wait = 0.0

    def _receive(self, task: _Task, message: object) -> Reply | None:
        """What one message means; one that means nothing ends the worker."""
        match message:
            case ("progress", Progress() as progress) if _well_formed(progress, task.model):
                task.note(progress)
                if task.stopping == math.inf and task.on_progress is not None and task.on_progress(progress):
                    self.stop()
                return None
            case ("outcome", SolveOutcome() as solved) if _well_formed(solved, task.model):
                return solved
            case ("outcome", SweepOutcome() as swept) if isinstance(task.model, Sweep) and _fits(swept, task.model):
                return swept
            case ("outcome", SmtOutcome() as answer) if isinstance(task.model, SmtScript):
                return answer
            case ("dead", str(text)):
                code = self._burial()
                if code == NO_MEMORY:
                    return task.failed(SolverStatus.MEMORY_LIMIT, f"{self.solver}: out of memory")
                end = f" (signal {-code})" if code < 0 else f" (exit status {code})" if code else ""
                return task.failed(SolverStatus.CRASHED, f"{self.solver}: {text}{end}")
            case (str(kind), str(text)) if kind in _ENDINGS:
                return task.failed(_ENDINGS[kind], text)
        self.kill()
        return task.failed(SolverStatus.CRASHED, f"{self.solver}: the solver process broke the protocol: a malformed message")

    def close(self) -> None:
        """End the worker; it holds nothing that needs a farewell."""
        self.kill()

    def kill(self) -> None:
        """Kill the worker and whatever it started, and reap it. The next solve starts a fresh one."""
        child, self._child = self._child, None
        if child is None:
            return
        self._farewell()
        if child.returncode is None:  # once it is reaped, its number may be another process's
            children.kill(child)
        children.gone(child)
        try:
            child.wait(timeout=self.tuning.reap)
        except subprocess.TimeoutExpired:
            return  # its pipes are still open at the other end: closing ours could wait for it

    def _start(self) -> None:
        if self._child is not None and not _ended(self._child):
            return
        self.kill()
        self._child = child = started("milpverify.solvers.worker", str(self.memory_mb))
        if self.niceness and hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, child.pid, self.niceness)
        self._inbox, self._outbox = queue.SimpleQueue(), queue.SimpleQueue()
        self._farewell = weakref.finalize(self, self._outbox.put, None)
        assert child.stdout is not None and child.stdin is not None
        # Threads of their own: a worker that does not read, or writes half a message, must not hold us beyond the deadline.
        threading.Thread(target=_listen, args=(child.stdout, self._inbox), daemon=True).start()
        threading.Thread(target=_write, args=(child.stdin, self._outbox, self._inbox), daemon=True).start()

    def _burial(self) -> int:
        """Reap a worker that is dead or talks garbage; returns its exit status, 0 for one that was still alive."""
        assert self._child is not None
        child, end = self._child, time.monotonic() + self.tuning.grace
        while not _ended(child) and time.monotonic() < end:
            time.sleep(self.tuning.poll / 4)
        dead = _ended(child)
        self.kill()
        return child.returncode if dead and child.returncode is not None else 0


@dataclass(eq=False)
class _Task:
    """A solve under way: what it is, when it must end, and the best that was reported."""

    model: Question
    deadline: Deadline
    on_progress: Callable[[Progress], bool] | None
    seconds: float
    began: float = field(default_factory=time.monotonic)
    last: Progress = field(default_factory=lambda: Progress(-math.inf, math.inf, 0, 0.0))
    stopping: float = math.inf  # when it is killed after a request to stop

    def note(self, now: Progress) -> None:
        """Keep the best of the reports."""
        point = self.last.point if now.point is None else now.point
        dual, primal = max(self.last.dual_bound, now.dual_bound), min(self.last.primal, now.primal)
        self.last = replace(now, dual_bound=dual, primal=primal, point=point)

    def failed(self, status: SolverStatus, message: str) -> Reply:
        """The outcome of a solve that ended without one."""
        spent = time.monotonic() - self.began
        if isinstance(self.model, SmtScript):
            return SmtOutcome(Answer.UNKNOWN, (), status, spent, message)
        if isinstance(self.model, Sweep):
            return SweepOutcome(status, -math.inf, None, np.full(len(self.model.column), -math.inf), spent, message)
        return SolveOutcome(status, self.last.dual_bound, self.last.primal, self.last.point, self.last.nodes, spent, message)


def _fits(swept: SweepOutcome, sweep: Sweep) -> bool:
    """Whether a sweep's answer has a bound for every question, -inf where there is none; the rest is as in a solve of the model."""
    bounds = swept.bounds
    if not isinstance(bounds, np.ndarray) or bounds.dtype != np.float64 or bounds.shape != sweep.column.shape:
        return False
    if swept.solved is not None:
        if not isinstance(swept.solved, np.ndarray):
            return False
        shapes = {"points": (len(swept.solved), sweep.model.num_variables), "multipliers": (len(swept.solved), sweep.model.num_rows)}
        if not sweep.certified or not all(_is_finite_array(getattr(swept, name), shape) for name, shape in shapes.items()):
            return False
        if swept.solved.dtype != np.int64 or swept.solved.ndim != 1 or not ((swept.solved >= 0) & (swept.solved < len(bounds))).all():
            return False
    own = SolveOutcome(swept.status, swept.dual_bound, swept.dual_bound, swept.point)
    return not bool((np.isnan(bounds) | (bounds == math.inf)).any()) and _well_formed(own, sweep.model)


def _is_finite_array(value: object, shape: tuple[int, ...]) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float64 and value.shape == shape and bool(np.isfinite(value).all())


def _well_formed(report: Progress | SolveOutcome, question: Question) -> bool:
    """Whether a report's fields are what they should be; whether they are true is another question."""
    model = question.model if isinstance(question, Sweep) and isinstance(report, Progress) else question
    if not isinstance(model, Model) or not all(isinstance(v, float) and not math.isnan(v) for v in (report.dual_bound, report.primal)):
        return False
    point = report.point
    if point is None:
        return True
    return _is_finite_array(point, (model.num_variables,))


_ENDINGS = {
    "unavailable": SolverStatus.UNAVAILABLE,
    "memory": SolverStatus.MEMORY_LIMIT,
    "failed": SolverStatus.UNKNOWN,
}


def _expired(deadline: Deadline) -> tuple[SolverStatus, str]:
    return (SolverStatus.INTERRUPTED, "interrupted") if deadline.cancelled else (SolverStatus.TIME_LIMIT, "no time left")


def _ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether a child has ended. It is not reaped where the platform allows that: until then its number, and its group's, is its own."""
    if child.returncode is not None:
        return True
    if not hasattr(os, "waitid"):
        return child.poll() is not None
    try:
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # a process that ignores SIGCHLD never sees its children end


def _listen(source: IO[bytes], inbox: queue.SimpleQueue[_Message]) -> None:
    """Pass on what comes until the other end is closed; the only one to read, and to close, this end."""
    with source:
        while True:
            try:
                inbox.put(receive(source))
            except EOFError:
                return inbox.put(("dead", "the solver process died"))
            except (BrokenProtocol, OSError, ValueError, MemoryError) as error:
                return inbox.put(("dead", f"the solver process broke the protocol: {error}"))


def _write(target: IO[bytes], outbox: queue.SimpleQueue[_Message | None], inbox: queue.SimpleQueue[_Message]) -> None:
    """Send messages in their order until None comes; the only one to write to, and to close, this end."""
    try:
        with target:
            while (message := outbox.get()) is not None:
                send(target, message)
    except OSError:
        return  # the worker is gone, which the listening side reports
    except MemoryError:
        inbox.put(("dead", "the model does not fit into memory"))
