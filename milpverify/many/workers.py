"""The parent's side of a process that decides problems: what it is sent, what it says, and its end."""

from __future__ import annotations

import math
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from milpverify.errors import InvalidInput
from milpverify.many.child import failed
from milpverify.outside import children
from milpverify.outside.starting import started
from milpverify.result import Reason, Result, Trust, Verdict
from milpverify.solvers.worker import BrokenProtocol, receive, send
from milpverify.spec import Problem
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.graph import Graph

Asked = Problem | tuple[str, str]
"""A problem, or the paths of its network and its property."""
Inbox = queue.SimpleQueue[tuple["Worker", tuple[Any, ...]]]
"""What processes say, and which."""


class WorkerTuning(Tuning):
    """How long processes are waited for, and how often they report."""

    grace: float = 2.0
    """Seconds that a run may overrun its limit, to conclude, before its process is killed."""
    farewell: float = 1.0
    """Seconds that a run has to conclude once it is asked to, and its process to end."""
    poll: float = 0.05
    """Seconds between looks at limits."""
    often: float = 0.2
    """Seconds between two reports of what is proved."""


class Worker:
    """A process, idle or with a problem; on Linux it dies with the thread that has started it.

    Args:
        inbox: where it says what it has to say; ("gone", why) is its last word.
        settings: keyword arguments of `verify`.
        limits: of `Loader`.
        tuning: how long it is waited for.
    """

    def __init__(self, inbox: Inbox, settings: dict[str, Any], limits: dict[str, Any], tuning: WorkerTuning = WorkerTuning()) -> None:
        self.number, self._tuning = -1, tuning
        self.busy = True  # until it says that it is ready
        self.until = math.inf
        self._graph: Graph | None = None
        self._began, self._best, self._trust = time.monotonic(), -math.inf, Trust.ROUNDED
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `end`)
        self._process = started("milpverify.many.child", complaints=self._complaints)
        assert self._process.stdout is not None
        threading.Thread(target=self._listen, args=(self._process.stdout, inbox), daemon=True).start()
        self._send(("settings", sys.path, pickle.dumps(settings), limits, tuning.often))

    def ask(self, number: int, asked: Asked, seconds: float) -> None:
        """Have a problem decided; the network is sent along where it is another than the last one's.

        Raises:
            InvalidInput: the problem cannot be sent.
        """
        messages: list[object] = [("verify", seconds, asked)]
        if isinstance(asked, Problem):
            messages = [("verify", seconds, _packed((asked.disjuncts, dict(asked.files), asked.notes)))]
            if asked.graph is not self._graph:
                messages.insert(0, ("network", _packed((asked.graph, asked.runtime))))
                self._graph = asked.graph
        self.number, self.busy = number, True
        self._began, self._best, self._trust = time.monotonic(), -math.inf, Trust.ROUNDED
        self.until = self._began + seconds + self._tuning.grace
        for message in messages:
            self._send(message)

    def told(self, bound: float, trust: str) -> None:
        """What is proved so far."""
        self._best, self._trust = max(self._best, bound), Trust(trust)

    def conclude(self) -> None:
        """Ask the run under way to end with what it has."""
        self.until = min(self.until, time.monotonic() + self._tuning.farewell)
        if self._process.poll() is None:
            self._process.terminate()

    def cut_short(self, reason: Reason) -> Result:
        """The result of a run that did not end by itself: what it has proved stays."""
        seconds = time.monotonic() - self._began
        return Result(Verdict.UNKNOWN, reason, self._trust, self._best, None, seconds, "ended from outside", bound_trust=self._trust)

    def crashed(self, why: str) -> Result:
        """The result of a run whose process is gone."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._tuning.farewell)
        children.kill(self._process)
        code = self._process.wait()
        end = f"signal {-code}" if code < 0 else f"exit status {code}"
        self._complaints.seek(0)
        last = self._complaints.read().decode(errors="replace").strip().splitlines()[-1:]
        return failed(": ".join([f"its process ended without an answer ({end}{why})", *last]), time.monotonic() - self._began)

    def end(self) -> None:
        """End the process and what it has started."""
        children.kill(self._process)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._tuning.farewell)
        children.gone(self._process)
        with suppress(OSError):  # what was never sent
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._complaints.close()

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # whoever listens to it hears that it is gone
            send(self._process.stdin, message)

    def _listen(self, source: IO[bytes], inbox: Inbox) -> None:
        why = ""
        try:
            with source:
                while True:
                    inbox.put((self, receive(source)))
        except (OSError, BrokenProtocol) as error:
            why = f", {error}"
        except EOFError:
            pass
        inbox.put((self, ("gone", why)))


def _packed(content: object) -> bytes:
    try:
        return pickle.dumps(content)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidInput(f"the problem cannot be sent to another process ({error}): export the network to ONNX") from error
