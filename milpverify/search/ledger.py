"""The ledger of a run: who closed how many subproblems, how many were bounded, and where the time went, without a profiler.

Times are exclusive: while an inner part runs, the outer one's clock stands still, so that the parts add up; not every run has every
part. A subproblem is a disjunct on a box with its split decisions; of the bisection, a box.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from milpverify.result import Event, Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Part(Enum):
    """The parts of a run. The values are their names in results and events."""

    ROWS = "rows alone"
    PRESOLVE = "presolve bounds"
    ATTACK = "attack"
    ALPHA_CROWN = "alpha-CROWN"
    BISECTION = "bisection bounds"
    CLIPPING = "clipping"
    FINISHING = "finishing"  # small boxes, by neuron splits
    NEURON_SPLITS = "neuron-split bounds"
    BRANCHING = "branching"
    RIGOROUS_PASS = "rigorous pass"  # what proves in neuron splits, beside the optimiser; bisection's only passes are rigorous
    TIGHTENING = "bound tightening"
    NO_GOODS = "no-goods"
    LEAVES = "LP leaves"
    ORACLE = "oracle"  # talking with the solver beside the tree
    WHOLE_MODELS = "whole models"
    SOLVER_PROCESS = "the solver's process"  # beside the tree: its seconds are its own, what it bounds are its nodes


@dataclass(eq=False)
class Ledger:
    """Counts and seconds per part: `closed` subproblems, `bounded` subproblems, wall-clock `seconds`."""

    closed: dict[Part, int] = field(default_factory=dict)
    bounded: dict[Part, int] = field(default_factory=dict)
    seconds: dict[Part, float] = field(default_factory=dict)
    _running: list[Part] = field(default_factory=list)
    _since: float = 0.0

    def close(self, part: Part, count: int = 1) -> None:
        """Note that a part closed so many."""
        if count:
            self.closed[part] = self.closed.get(part, 0) + count

    def bound(self, part: Part, count: int = 1) -> None:
        """Note that a part bounded so many."""
        self.bounded[part] = self.bounded.get(part, 0) + count

    @contextmanager
    def spent(self, part: Part) -> Iterator[None]:
        """Charge what runs inside to a part, less what parts inside of it take."""
        self._charge()
        self._running.append(part)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        """Charge the time since the last change to the part that was running."""
        now = time.perf_counter()
        if self._running:
            part = self._running[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Per part, by name, what it closed and bounded, and its seconds."""
        parts = dict.fromkeys([*self.seconds, *self.bounded, *self.closed])
        return {
            part.value: {"closed": self.closed.get(part, 0), "bounded": self.bounded.get(part, 0), "seconds": self.seconds.get(part, 0.0)}
            for part in parts
        }


@dataclass(eq=False)
class Reporter:
    """Keeps the proved lower bound of the whole run, which never falls, and passes events on with it and with who closed what.

    `trust` is what that bound rests on. Only `prove` raises it; events prove nothing. A search proves bounds of the group that it works
    on: `others` is a proved bound of everything else, which rests on `trust_of_others`, `floor` what is proved of the group anyway.
    """

    on_event: Callable[[Event], None] | None
    ledger: Ledger = field(default_factory=Ledger)
    lower_bound: float = -math.inf
    trust: Trust = Trust.ROUNDED
    others: float = math.inf
    trust_of_others: Trust = Trust.ROUNDED
    floor: float = -math.inf
    told: float = 0.0

    def due(self, seconds: float) -> bool:
        """Whether a search is to report again: its last report was so many seconds ago."""
        now = time.monotonic()
        if now - self.told < seconds:
            return False
        self.told = now
        return True

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        if self.on_event is not None:
            closed = {part.value: count for part, count in self.ledger.closed.items()}
            known = {"lower_bound": self.lower_bound, "bound_trust": self.trust.value, "closed": closed}
            self.on_event(Event(event.phase, event.message, {**event.data, **known}))

    def prove(self, bound: float, trust: Trust = Trust.ROUNDED) -> None:
        """Note a proved lower bound of the margin over the group, or over everything as long as there is no group; it rests on `trust`.

        Whoever watches is told of a better one at once.
        """
        bound, trust = min(self.others, max(self.floor, bound)), Trust.weakest(self.trust_of_others, trust)
        if bound > self.lower_bound or (bound == self.lower_bound and trust.rank > self.trust.rank):
            self.lower_bound, self.trust = bound, trust
            self(Event("bound", f"margin >= {bound:.6g}"))
