"""What is known of a radius while it is looked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milpverify.errors import Contradiction
from milpverify.result import Event, Trust

if TYPE_CHECKING:
    from milpverify.radius.question import Question, Witness
    from milpverify.run import OnEvent
    from milpverify.spec import Array


@dataclass(eq=False)
class Bracket:
    """The largest radius proved, with what that rests on, and the nearest counterexample.

    `tied` is the least distance known of a point where a target is as large as the label: from there on nothing can be proved.
    """

    question: Question
    gap: float
    on_event: OnEvent | None = None
    lower: float = 0.0
    trust: Trust = Trust.ROUNDED
    witness: Witness | None = None
    tied: float = math.inf

    @property
    def upper(self) -> float:
        """The distance of the nearest counterexample."""
        return math.inf if self.witness is None else self.witness.distance

    @property
    def top(self) -> float:
        """The radius whose proof closes the gap."""
        end = min(self.upper, self.tied)
        return self.question.around.reach if math.isinf(end) else end * (1.0 - self.gap)

    @property
    def closed(self) -> bool:
        """Whether no radius is left to be proved."""
        return self.lower >= self.top

    def prove(self, radius: float, trust: Trust) -> None:
        """Take note of a proved radius; that of all of the clip proves all others.

        Raises:
            Contradiction: a counterexample lies within it.
        """
        if radius >= self.question.around.reach and self.question.around.bounded:
            radius = math.inf
        if radius > self.lower:
            self.lower, self.trust = radius, trust
            self._tell()

    def refute(self, x: Array) -> bool:
        """Judge a candidate; whether it is a counterexample nearer than all before.

        Raises:
            Contradiction: it lies within what was proved.
        """
        if (witness := self.question.witness(x, self.upper)) is None:
            return False
        self.witness = witness
        self._tell()
        return True

    def _tell(self) -> None:
        if self.witness is not None and self.lower >= self.upper:
            proved = f"the radius {self.lower:.17g} was proved (trust {self.trust.value})"
            raise Contradiction(f"{proved}, but a counterexample has the distance {self.upper:.17g}")
        if self.on_event is not None:
            self.on_event(Event("radius", "", {"lower_bound": self.lower, "upper_bound": self.upper}))
