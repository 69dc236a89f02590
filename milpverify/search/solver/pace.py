"""When linear programs of subproblems pay that the tree would close, too, by splitting them."""

from __future__ import annotations

from dataclasses import dataclass, field

from milpverify.tuning import Tuning


class ProgramTuning(Tuning):
    """When linear programs of subproblems pay, and what those of leaves may take."""

    worth: float = 3.0
    """How many closures of the tree one by a program is worth: what it closes would have been split, and its children, too. On a tanh
    network of 32 neurons one saved 3.5."""
    share: float = 0.03
    """Of the tree's time, what programs may take though they do not pay, so that it is known when they do."""
    each: float = 2e-3
    """Seconds per neuron that the first program is expected to take."""
    memory: float = 0.9
    """How much of the weight of what was seen is left after each program."""
    turn: int = 128
    even: float = 0.5
    """By counts: subproblems bounded for each program that may fail, and what part of the programs has to close for more."""
    tangents: int = 12
    outside: float = 1e-9
    """Points at most at which an L2 ball is touched, and by which share of the radius they lie outside."""
    dense: int = 4_000_000
    """Entries of all matrices of a network whose leaves are worth exact arithmetic."""


@dataclass(eq=False)
class Pace:
    """What the programs of a run took and closed. `weight`, `seconds`, `closed` and `gain` are faded sums.

    `total` is all their time, `first` what the first one is expected to take.
    """

    first: float = 0.1
    tried: int = 0
    total: float = 0.0
    weight: float = 0.0
    seconds: float = 0.0
    closed: float = 0.0
    gain: float = 0.0
    tuning: ProgramTuning = field(default_factory=ProgramTuning)

    def note(self, seconds: float, closed: bool, gain: float) -> None:
        """Note a program. The time of the first one, which waits for the solver's process, says nothing of the next."""
        self.tried += 1
        self.total += seconds
        taken = seconds if self.tried > 1 else min(seconds, self.first)
        now = zip((self.weight, self.seconds, self.closed, self.gain), (1.0, taken, float(closed), gain), strict=True)
        self.weight, self.seconds, self.closed, self.gain = (self.tuning.memory * old + new for old, new in now)

    @property
    def mean_gain(self) -> float:
        """By how much programs raise bounds; as far as is known, by anything."""
        return self.gain / self.weight if self.weight else 0.0

    @property
    def mean_seconds(self) -> float:
        """What a program takes."""
        return self.seconds / self.weight if self.weight else self.first

    def pays(self, seconds: float, closed: int) -> bool:
        """Whether closing by programs takes less time than the splits that it saves, where the tree closed so many in so many seconds."""
        return self.closed > 0 and self.seconds * closed <= self.tuning.worth * seconds * self.closed

    def spare(self, seconds: float) -> float:
        """The seconds that programs may take whether they pay or not, after so many of the tree."""
        return self.tuning.share * seconds - self.total

    def pays_by_counts(self) -> bool:
        """Whether most programs close something."""
        return self.closed > 0 and self.closed >= self.tuning.even * self.weight

    def due_by_counts(self, bounded: int) -> bool:
        """Whether one may fail after so many bounded subproblems."""
        return bounded >= self.tuning.turn * (self.tried + 1)
