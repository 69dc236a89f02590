"""What all questions share: checked arguments, the clock, when to look for points again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from milpverify.acopf.result import Reason
from milpverify.config import Deadline
from milpverify.errors import InvalidInput
from milpverify.result import Event

if TYPE_CHECKING:
    from milpverify.acopf.loads import Loads

OnEvent = Callable[[Event], None]
NOTHING: Final = 1e-6  # of the cost of everything at its most: what is less is no larger than 0
LARGEST_TOLERANCE: Final = 1e-3  # p.u. and rad: what is violated by more is no operating point in any sense


class Clock:
    """The seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what runs within as that phase."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


def deadline_of(timeout: float | None, deadline: Deadline | None) -> Deadline:
    """The deadline given, or one so many seconds from now.

    Raises:
        InvalidInput: a time limit that is negative or no number.
    """
    if deadline is not None:
        return deadline
    if timeout is not None and not timeout >= 0.0:
        raise InvalidInput(f"timeout: must be at least 0 s, not {timeout}")
    return Deadline(math.inf if timeout is None else timeout)


def check_gap(gap: float) -> None:
    """Refuse a gap that no bounds have."""
    if not 0.0 < gap < math.inf:
        raise InvalidInput(f"gap: must be above 0, not {gap}")


def closing(upper: float, gap: float, unit: float) -> float:
    """The lower bound that closes a relative gap, or one of a `unit`'s NOTHING share where the optimum is as good as 0; $/h."""
    return upper - gap * max(abs(upper), NOTHING * unit) if math.isfinite(upper) else math.inf


def check_tolerance(tolerance: float) -> None:
    """Refuse a tolerance that says nothing, or that no float64 point meets."""
    if not 0.0 < tolerance <= LARGEST_TOLERANCE:
        raise InvalidInput(f"tolerance: must be above 0 and at most {LARGEST_TOLERANCE} p.u., not {tolerance}")


def refuse_box(loads: Loads, question: str) -> None:
    """Refuse a box of loads where one load is meant."""
    if loads.is_box:
        raise InvalidInput(f"{question} is about one load, not a box of them: use acopf.scaled")


def why_ended(deadline: Deadline, out_of_time: bool) -> Reason:
    """Why a run that did not get what it wanted is over."""
    if deadline.cancelled:
        return Reason.INTERRUPTED
    return Reason.TIMEOUT if out_of_time or deadline.expired() else Reason.UNDECIDED


def is_power_of_two(count: int) -> bool:
    """When points are looked for again: after so many boxes."""
    return count & (count - 1) == 0
