"""A process that decides problems, one after the other: `python -m milpverify.many.child PARENT_PID`.

From the parent come ("settings", its module path, keyword arguments of `verify`, limits of files, seconds between reports),
("network", graph, runtime) and ("verify", seconds, problem), where the problem is a pair of files, or disjuncts, files and notes of a
problem of the network that came last. To the parent go ("ready",), ("told", bound, trust) for what is proved on the way, and
("ended", Result). SIGTERM asks the run under way to conclude. A network that is named again at once is not read again.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from milpverify.config import Deadline
from milpverify.solvers.worker import die_with, receive, send

if TYPE_CHECKING:
    from typing import IO

    from milpverify.result import Event, Result
    from milpverify.spec import Problem

    Stated = tuple[tuple[Any, ...], dict[str, str], tuple[str, ...]]
    """Disjuncts, files and notes of a problem whose network is known."""


def main() -> None:
    """Receive problems, decide them."""
    die_with(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no message
    _, path, settings, limits, often = receive(sys.stdin.buffer)
    sys.path += [entry for entry in path if entry not in sys.path]
    worker = _Worker(out, pickle.loads(settings), limits, often)
    signal.signal(signal.SIGTERM, lambda signum, frame: worker.deadline.cancel())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when it is over
    send(out, ("ready",))
    while True:
        try:
            kind, *content = receive(sys.stdin.buffer)
        except EOFError:
            return
        if kind == "network":
            worker.keep(content[0])
        else:
            send(out, ("ended", worker.decided(*content)))


class _Worker:
    """What the process keeps between problems."""

    def __init__(self, out: IO[bytes], settings: dict[str, Any], limits: dict[str, Any], often: float) -> None:
        from milpverify.frontends.load import Loader

        self.out, self.settings, self.often = out, settings, often
        self.loader = Loader(**limits, tuning=settings["options"].search.tuning)
        self.network: tuple[Any, object] | None = None
        self.why = "there is none"
        self.deadline = Deadline()

    def decided(self, seconds: float, asked: tuple[str, str] | bytes) -> Result:
        """The result of a problem; a broken one's says what is wrong with it."""
        from milpverify.errors import MilpverifyError, OutOfTime
        from milpverify.run import unread
        from milpverify.verify import verify

        self.deadline = Deadline(seconds)
        options = self.settings["options"]
        try:
            problem = self._stated(asked) if isinstance(asked, bytes) else self.loader.load(*asked, self.deadline)
            return verify(problem, deadline=self.deadline, on_event=self._teller(), **self.settings)
        except OutOfTime:
            return unread(self.deadline, options)
        except MilpverifyError as error:
            return failed(str(error), self.deadline.elapsed())

    def _stated(self, asked: bytes) -> Problem:
        from milpverify.errors import InvalidInput
        from milpverify.spec import Problem

        if self.network is None:
            raise InvalidInput(f"the network cannot be read in another process ({self.why}): define its classes in a module of their own")
        disjuncts, files, notes = pickle.loads(asked)
        return Problem(self.network[0], disjuncts, self.network[1], files, notes=notes)

    def keep(self, packed: bytes) -> None:
        """Keep a network, if it is one here."""
        try:
            self.network = pickle.loads(packed)
        except (pickle.UnpicklingError, AttributeError, ImportError, TypeError, KeyError, ValueError, RuntimeError) as error:
            self.network, self.why = None, " ".join(str(error).split())

    def _teller(self) -> Any:
        best, said = float("-inf"), 0.0

        def hear(event: Event) -> None:
            nonlocal best, said
            bound = event.data.get("lower_bound")
            if isinstance(bound, float) and bound > best and time.monotonic() > said + self.often:
                best, said = bound, time.monotonic()
                send(self.out, ("told", bound, event.data["bound_trust"]))

        return hear


def failed(why: str, seconds: float) -> Result:
    """The result of a problem that could not be worked on."""
    from milpverify.result import Reason, Result, Trust, Verdict

    return Result(Verdict.UNKNOWN, Reason.FAILED, Trust.ROUNDED, float("-inf"), note=" ".join(why.split()), seconds=seconds)


if __name__ == "__main__":
    main()
