"""How many subproblems are bounded at a time: measured on the device, or by counts alone where a run must repeat exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

from milpverify.search.effort import EffortTuning


@dataclass(eq=False)
class BatchSize:
    """The number of subproblems to bound at a time; `size` is the present one.

    Doubled while the measured rate rises, halved where it does not, until neither neighbour is better. With `fixed` it doubles with
    every batch up to that many, whatever is measured. Memory holds `memory` at once: larger batches are bounded in parts.
    """

    size: int = 32
    smallest: int = 16
    largest: int = EffortTuning.largest_cpu
    fixed: int | None = None
    memory: int = EffortTuning.largest_cpu
    rates: dict[int, float] = field(default_factory=dict)  # subproblems per second by size, the best seen
    settled: bool = False
    tuning: EffortTuning = field(default_factory=EffortTuning)
    _rounds: int = 0

    def expect(self, seconds: float) -> None:
        """Begin with no more than can be bounded in time, where one is estimated to take so long."""
        while self.size > 1 and self.size * seconds > self.tuning.slowest:
            self.size //= 2
        self.smallest = min(self.smallest, self.size)
        if self.fixed is not None:
            self.fixed = max(1, min(self.fixed, int(self.tuning.slowest / seconds)))

    def took(self, count: int, seconds: float) -> None:
        """Learn that a batch of `count` took so long, and choose the size of the next."""
        if self.fixed is not None:
            self.size = min(2 * self.size, self.fixed)
            return
        if seconds > self.tuning.slowest and count > self.smallest:
            self.at_most(max(self.smallest, count // 2))
            return
        if 4 * count < 3 * self.size:  # too few were left: it says nothing of the size
            return
        self.rates[self.size] = here = max(self.rates.get(self.size, 0.0), count / max(seconds, 1e-9))
        self._rounds += 1
        if self.settled and self._rounds >= self.tuning.again:
            self.rates, self.settled, self._rounds = {}, False, 0
        elif not self.settled and (self._rounds >= self.tuning.rounds or here > self.tuning.plain * self.rates.get(self.size // 2, here)):
            self._rounds = 0
            self._move(here)

    def at_most(self, count: int) -> None:
        """Memory, or patience, holds no more than so many."""
        self.largest = max(1, count)
        self.smallest = min(self.smallest, self.largest)
        self.size = min(self.size, self.largest)

    def memory_holds(self, count: int) -> None:
        """Memory holds no more than so many at once."""
        self.memory = min(self.memory, count)
        self.at_most(max(2, count))

    def _move(self, here: float) -> None:
        below, above, pays = self.rates.get(self.size // 2), self.rates.get(2 * self.size), self.tuning.pays
        if below is not None and here <= pays * below:
            self.size //= 2
        elif (above is None and 2 * self.size <= self.largest) or (above is not None and above > pays * here):
            self.size *= 2
        elif below is None and self.size // 2 >= self.smallest:
            self.size //= 2
        else:
            self.settled = True
