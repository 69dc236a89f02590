"""verify_many(): results as they come."""

from __future__ import annotations

import math
import os
import queue
import time
from collections.abc import Sized
from dataclasses import dataclass
from functools import cached_property
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from milpverify.config import MOST_BYTES, MOST_ENTRIES, Deadline, Options
from milpverify.errors import InvalidInput, OutOfTime
from milpverify.many.child import failed
from milpverify.many.workers import Asked, Inbox, Worker, WorkerTuning
from milpverify.result import Reason
from milpverify.run_info import settings_of
from milpverify.spec import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from milpverify.config import Milp, SearchMethod
    from milpverify.frontends.load import Loader
    from milpverify.frontends.network import Network
    from milpverify.result import Result


def verify_many(
    problems: Iterable[Problem | tuple[Network, str | Path]],
    timeout: float | None = None,
    method: str | SearchMethod | Milp = "auto",
    *,
    workers: int | None = None,
    options: Options | None = None,
    deadline: Deadline | None = None,
    margin: bool = False,
    gap: float = 1e-4,
    outputs: Sequence[str] | None = None,
    max_bytes: int = MOST_BYTES,
    max_entries: int = MOST_ENTRIES,
) -> Iterator[tuple[int, Result]]:
    """Decide many problems in processes of their own: yields the number of a problem and its result, in the order in which they end.

    A process is started once and keeps the network that it has: problems of one network are best given one after the other. What is wrong
    with one problem, and a process that dies, is that problem's result (`Reason.FAILED`) and no other's. Processes end with the iteration,
    however it ends.

    Args:
        problems: problems, or pairs of what `load` takes, a network and the path of a property; where both are paths the processes read
            them, others are read here. They are taken as they are needed.
        timeout: seconds per problem, reading included; None for no limit.
        method: as of `verify`.
        workers: how many processes; as many as there are processors by default.
        options: as of `verify`.
        margin, gap: as of `verify`.
        deadline: of all together; once it is over or cancelled what is under way ends with the bounds that are known, and nothing begins.
        outputs, max_bytes, max_entries: as of `load`.

    Raises:
        InvalidInput: what is neither a problem nor a pair of paths, an unknown method, a number of workers below 1, a heuristic's class
            that processes cannot import.
    """
    count = workers if workers is not None else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count < 1:
        raise InvalidInput(f"workers is how many processes decide problems, at least 1, not {count}")
    Deadline(math.inf if timeout is None else timeout)  # refused now, not in every process
    given = settings_of(options or Options(), method)
    own = given.search.branching
    if isinstance(own, type) and (own.__module__ == "__main__" or "<locals>" in own.__qualname__):
        raise InvalidInput(f"the heuristic {own.__name__} cannot be read in another process: define it in a module of its own")
    settings = {"options": given, "margin": margin, "gap": gap}
    limits = {"outputs": outputs, "max_bytes": max_bytes, "max_entries": max_entries}
    if isinstance(problems, Sized):
        count = min(count, len(problems))
    seconds, tuning = math.inf if timeout is None else timeout, given.search.tuned(WorkerTuning)
    work = _Work(problems, seconds, count, deadline or Deadline(), settings, limits, tuning)
    return work.results()


class _Work:
    """What is to be decided, and by whom."""

    def __init__(
        self,
        problems: Iterable[Any],
        seconds: float,
        count: int,
        deadline: Deadline,
        settings: dict[str, Any],
        limits: dict[str, Any],
        tuning: WorkerTuning = WorkerTuning(),
    ) -> None:
        self.waiting = enumerate(problems)
        self.seconds, self.count, self.deadline, self.settings, self.limits = seconds, count, deadline, settings, limits
        self.tuning = tuning
        self.inbox: Inbox = queue.SimpleQueue()
        self.workers: list[Worker] = []
        self.next: tuple[int, Asked | Pair] | None = None

    @cached_property
    def loader(self) -> Loader:
        """What reads networks that are no files."""
        from milpverify.frontends.load import Loader

        return Loader(**self.limits, tuning=self.settings["options"].search.tuning)

    def results(self) -> Iterator[tuple[int, Result]]:
        """Problems go to whoever is idle."""
        try:
            self.take()
            if self.next is not None:
                self.workers += [Worker(self.inbox, self.settings, self.limits, self.tuning) for _ in range(self.count)]
            concluding = False
            while self.next is not None or any(w.number >= 0 for w in self.workers):
                if not concluding and self.deadline.expired():
                    concluding, self.next = True, None
                    for worker in self.workers:
                        worker.conclude()
                    continue
                yield from self.hand_out()
                yield from self.heard()
                yield from self.late()
        finally:
            for worker in self.workers:
                worker.end()

    def take(self) -> None:
        """Look at the next problem."""
        number, asked = next(self.waiting, (-1, None))
        self.next = None if asked is None else (number, _checked(asked, number))

    def hand_out(self) -> Iterator[tuple[int, Result]]:
        """The next problems to idle processes, and to new ones in place of those that are gone; what cannot be sent has its result."""
        if self.next is not None and len(self.workers) < self.count and all(w.number >= 0 for w in self.workers):
            self.workers.append(Worker(self.inbox, self.settings, self.limits, self.tuning))
        for worker in self.workers:
            if self.next is not None and not worker.busy:
                number, asked = self.next
                self.take()
                limit = self.deadline.within(self.seconds)
                try:
                    if isinstance(asked, Pair):
                        asked = self.loader.load(asked.network, asked.spec, limit)  # loads torch, as paths do not
                    worker.ask(number, asked, limit.remaining())
                except OutOfTime:
                    from milpverify.run import unread

                    yield number, unread(limit, self.settings["options"])
                except InvalidInput as error:
                    yield number, failed(str(error), 0.0)

    def heard(self) -> Iterator[tuple[int, Result]]:
        """What one process says next, if any does so soon."""
        try:
            worker, message = self.inbox.get(timeout=self.tuning.poll)
        except queue.Empty:
            return
        if worker not in self.workers:  # it was ended: its problem has its result
            return
        match message:
            case ("ready",):
                worker.busy = False
            case ("told", float(bound), str(trust)):
                worker.told(bound, trust)
            case ("ended", result):
                number, worker.number, worker.busy, worker.until = worker.number, -1, False, math.inf
                yield number, result
            case ("gone", str(why)):
                yield from self.lost(worker, worker.crashed(why))

    def late(self) -> Iterator[tuple[int, Result]]:
        """End runs that do not keep their limit."""
        for worker in [w for w in self.workers if time.monotonic() > w.until]:
            worker.end()
            reason = Reason.INTERRUPTED if self.deadline.cancelled else Reason.TIMEOUT
            yield from self.lost(worker, worker.cut_short(reason))

    def lost(self, worker: Worker, result: Result) -> Iterator[tuple[int, Result]]:
        """A process is gone, with its problem if it had one.

        Raises:
            RuntimeError: it ended before it was ready: such processes cannot be started here.
        """
        self.workers.remove(worker)
        worker.end()
        if worker.number >= 0:
            yield worker.number, result
        elif worker.busy and not self.deadline.expired():
            raise RuntimeError(result.note)


@dataclass(frozen=True, eq=False)
class Pair:
    """A network that is no file, and a property."""

    network: Any
    spec: str | Path


def _checked(asked: Any, number: int) -> Asked | Pair:
    if isinstance(asked, Problem):
        return asked
    if isinstance(asked, tuple | list) and len(asked) == 2 and isinstance(asked[1], str | PathLike):
        return (fspath(asked[0]), fspath(asked[1])) if isinstance(asked[0], str | PathLike) else Pair(*asked)
    raise InvalidInput(f"problem {number} is neither a Problem nor a pair (network, path of a property): {type(asked).__name__}")
