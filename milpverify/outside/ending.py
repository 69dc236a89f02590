"""How the process of the command line ends: with its answer, or late, by a watchdog that has the last word.

The run itself looks at its deadline between steps, and ends in order nearly always. The watchdog is a thread for the other cases, native
calls above all that do not return: a little after the limit, or after a signal, it prints what can be said without the run, kills the
processes that the run started, and ends this one. Whoever holds the lock speaks: there is one first line, the run's or the watchdog's.

Signals reach the watchdog through a file descriptor that the C handler writes to, so that the main thread need not be there for them.
This module is the first that the process loads, so that nothing is loaded here that takes time.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from milpverify.outside import children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    LastWords = Callable[[Callable[[int, str], None]], None]
    """Says what there is to say, by a function that writes to a stream (1 or 2) and does not wait. Nothing may be imported there."""

# What users are promised of the end of a process: no run is faster or slower for it.
LATE: Final = 0.25
"""Seconds after the limit, and"""
PATIENCE: Final = 0.5
"""after a signal, that the run is given to end in order."""
WRITING: Final = 0.15
"""Seconds after its answer that the process has in any case, for what it writes besides."""
MOMENT: Final = 0.05
"""Seconds to wait for whoever is writing."""
INCOMPLETE: Final = 2
"""The exit status of a process that had to end between its answer and what it writes besides."""
STARTING: Final = 5.0
"""Seconds that Python takes to start at most: a process that is older was another program's before."""
LONGEST: Final = 3600.0
"""Seconds that the watchdog sleeps at a time, which every platform's `select` can."""


class Limit(Protocol):
    """What is needed of a deadline: its `end`, by `time.monotonic`, and the request to stop."""

    end: float

    @property
    def cancelled(self) -> bool:
        """Whether the run was asked to stop before."""

    def cancel(self) -> None:
        """Ask it to."""


class Ending:
    """The end of this process. Until `begin` it is not ours to end: limits and signals are then the caller's, as under test.

    `status` is what the process ends with once the command is through.
    """

    def __init__(self) -> None:
        self.status = 1
        self._began: float | None = None
        self._lock = threading.Lock()
        self._said = False
        self._deadline: Limit | None = None
        self._last_words: LastWords | None = None
        self._patience = PATIENCE
        self._until = math.inf

    def begin(self) -> None:
        """Take over signals, and start the watchdog."""
        self._began = time.monotonic() - _age()
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:  # closed by whoever started us: no file of ours shall take its place
                os.open(os.devnull, os.O_RDWR)
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        for each in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(each) is not signal.SIG_IGN:  # as it is under nohup
                signal.signal(each, lambda signum, frame: None)
        signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @property
    def began(self) -> float:
        """When the process began, by `time.monotonic`; now, where it is not ours to end."""
        return time.monotonic() if self._began is None else self._began

    @contextmanager
    def after(self, deadline: Limit, late: float = LATE, patience: float = PATIENCE, last_words: LastWords | None = None) -> Iterator[None]:
        """End the process if a command goes on for long after its deadline, which a first signal cancels, and at a second signal.

        Args:
            late: seconds after the limit, and
            patience: after a signal, that the run may take to end in order.
            last_words: what the watchdog says.
        """
        self._deadline, self._last_words = deadline, last_words
        self.allow(late, patience)
        self.status = INCOMPLETE
        try:
            yield
            self.status = 0
        except BaseException as error:
            self.status = getattr(error, "exit_code", 1)
            raise
        finally:
            self._last_words = None

    def allow(self, late: float = LATE, patience: float = PATIENCE) -> None:
        """Give the run so long from now on: before it begins there is nothing to conclude."""
        assert self._deadline is not None
        self._until, self._patience = self._deadline.end + late, patience
        self._hear(0)

    def say(self, write: Callable[[], None]) -> None:
        """Write the answer, unless the watchdog has been faster: then this thread does not go on. What follows gets a moment."""
        with self._lock:
            self._said = True
            self._until = max(self._until, time.monotonic() + WRITING)
            write()

    def leave(self, status: int) -> NoReturn:
        """End the process at once, without taking apart what it has built; what it started ends first."""
        children.kill_all()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with suppress(OSError, ValueError):
                    stream.flush()
        os._exit(status)

    def _hear(self, signum: int) -> None:
        if self._began is not None:
            with suppress(BlockingIOError):
                self._mouth.send(bytes([signum]))

    def _watch(self) -> None:
        while True:
            left = self._until - time.monotonic()
            if left <= 0.0:
                self._end()
            elif select.select([self._ear], [], [], min(left, LONGEST))[0]:
                for signum in self._ear.recv(64):
                    self._heed(signum)

    def _heed(self, signum: int) -> None:
        """What a signal means; other numbers are news of a limit."""
        if signum not in (signal.SIGINT, signal.SIGTERM):
            return
        if self._deadline is None:
            self.status = 128 + signum
            self._end()
        if self._deadline.cancelled:
            self._end()
        self._deadline.cancel()
        self._until = min(self._until, time.monotonic() + self._patience)

    def _end(self) -> NoReturn:
        """End a process that is late. No more is said where the answer is being written; a reader who does not read is not waited for."""
        children.kill_all()
        if self._lock.acquire(timeout=MOMENT) and not self._said:
            if self._last_words is not None:
                self.status = 0
                with suppress(Exception):  # whatever stands in its way, the process ends
                    self._last_words(_write_at_once)
            elif self._deadline is not None and self._deadline.cancelled:
                self.status = 128 + signal.SIGINT
        os._exit(self.status)


def _age() -> float:
    """Seconds since this process was started; where the platform does not tell, or it was another program's for long, what it computed."""
    computed = time.process_time()
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return computed
    return age if 0.0 <= age < STARTING else computed


def _write_at_once(number: int, text: str) -> None:
    """Write to a stream where nobody has to be waited for."""
    with suppress(OSError):
        if select.select([], [number], [], 0.0)[1]:
            os.write(number, text.encode())


ending = Ending()
"""Of this process."""
