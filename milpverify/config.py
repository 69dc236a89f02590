"""What a run is told: the deadline that every phase shares, and the options."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field, fields, replace
from threading import Event as _Flag
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Deadline:
    """The one time limit of a run, passed through every phase; it also carries the request to stop (Ctrl-C).

    Args:
        seconds: seconds from now, `math.inf` for none.
        clock: what measures them: wall clock by default; `time.process_time` makes runs comparable that others slow down.
    """

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        if math.isnan(seconds) or seconds < 0:
            raise ValueError(f"a time limit must be a number of seconds >= 0, not {seconds}")
        self._clock = clock
        self.start = clock()
        self.end = self.start + seconds
        self._cancelled = _Flag()
        self._memory = _Memory()

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self.start

    def remaining(self) -> float:
        """Seconds left, 0 when over or cancelled, or when the memory limit is reached."""
        return 0.0 if self._cancelled.is_set() or self._memory.exceeded() else max(0.0, self.end - self._clock())

    def expired(self) -> bool:
        """Whether the run must end now."""
        return self.remaining() <= 0.0

    def cancel(self) -> None:
        """Ask every phase to end with what it has (Ctrl-C)."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether the run was asked to stop before its time."""
        return self._cancelled.is_set()

    def watch_memory(self, limit_mb: float) -> None:
        """End the run when this process has taken so many MiB more than it has now (where the platform tells: Linux)."""
        self._memory.watch(limit_mb)

    @property
    def out_of_memory(self) -> bool:
        """Whether the memory limit ended the run."""
        return self._memory.over

    def within(self, seconds: float) -> Deadline:
        """A tighter deadline for one phase, which shares the request to stop and the memory limit."""
        inner = Deadline.__new__(Deadline)
        inner._clock = self._clock
        inner.start = self._clock()
        inner.end = min(self.end, inner.start + seconds)
        inner._cancelled, inner._memory = self._cancelled, self._memory
        return inner


class _Memory:
    """The memory limit of a run; looked at from time to time, for it costs a system call."""

    def __init__(self) -> None:
        self.limit, self.next, self.over = math.inf, 0.0, False

    def watch(self, limit_mb: float) -> None:
        self.limit = _resident() + limit_mb * 2**20

    def exceeded(self) -> bool:
        now = time.monotonic()
        if not self.over and now >= self.next and self.limit < math.inf:
            self.next = now + 0.05
            self.over = _resident() > self.limit
        return self.over


def _resident() -> float:
    """The bytes of memory that this process holds, 0 where the platform does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0.0


DELTA = 1e-6
"""The margin up to which smooth networks are decided, unless the options say otherwise."""


@dataclass(frozen=True)
class Milp:
    """Decide by one mixed-integer model per disjunct, handed whole to a solver.

    `solver` is "scip", "highs" or "gurobi"; `threads` and `memory_mb` bound the worker process.
    """

    solver: str = "scip"
    threads: int = 1
    memory_mb: int = 8192


BRANCHINGS = ("bbps", "first-order", "babsr", "widest", "random", "none")
POINTS = ("optimised", "midpoint")


@dataclass(frozen=True)
class SearchOptions:
    """What the branch-and-bound may use. Everything is on by default; an ablation turns parts off, and no part changes what is proved."""

    oracle: bool = True  # a solver beside the tree
    oracle_to_tree: bool = True  # what it closes and its bounds reach the tree
    tree_to_oracle: bool = True  # what is hardest for the tree reaches it, and what the tree closes stops it
    clipping: bool = True  # boxes and pre-activations clipped by linear bounds of rows, boxes by domain rows too
    output_constraints: bool = True  # "the point is unsafe" used in intermediate bounds
    no_goods: bool = True  # closed leaves shrunk to conflicts
    tightening: bool = True  # intermediate bounds tightened by branching, and by the oracle
    forward: bool = True  # linear forms carried forward where inputs are few
    second_order: bool = True  # what products of linear forms add up to, bounded as a whole where inputs are few
    finishing: bool = True  # small boxes finished by neuron splits
    leaves: bool = True  # linear programs at the leaves, rechecked in rationals
    refining: bool = True  # slopes optimised before the search, where inputs are many
    filtering: bool = True  # the best few splits are bounded before one is taken, in piecewise-linear networks
    fresh_lines: bool = True  # lines begin anew where splits or clipping make intervals much narrower
    filtering_smooth: bool = False  # in smooth networks too, where bounding children takes as long as several subproblems
    deterministic: bool = False  # choices by counts, never by clocks; repeats exactly
    branching: str = "first-order"  # how splits of neurons are scored: bbps | first-order | babsr | widest | random | none
    points: str = "optimised"  # where smooth functions are split: optimised | midpoint

    @property
    def both_ways(self) -> bool:
        """Whether the tree and the oracle tell each other what they know."""
        return self.oracle_to_tree and self.tree_to_oracle

    def __post_init__(self) -> None:
        for name, known in (("branching", BRANCHINGS), ("points", POINTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; there are {', '.join(known)}")

    def without(self, *parts: str) -> SearchOptions:
        """With some parts off.

        Raises:
            ValueError: a name that is no part's.
        """
        for part in parts:
            if part not in PARTS:
                raise ValueError(f"the search has no part {part!r}; there are {', '.join(PARTS)}")
        off: dict[str, Any] = dict.fromkeys(parts, False)
        return replace(self, **off)


PARTS = tuple(f.name for f in fields(SearchOptions) if f.default is True)
"""The names of what can be turned off."""


@dataclass(frozen=True)
class Options:
    """The options of `verify`; every one of them is in the result's JSON."""

    method: str = "auto"  # auto | bab | milp | smt
    solver: str = "scip"  # scip | highs | gurobi | z3
    trust: str = "solver"  # the weakest trust that may decide: exact | rounded | solver
    delta: float = DELTA  # completeness margin of smooth networks
    device: str = "auto"  # auto | cpu | cuda
    seed: int = 0
    attack: bool = True
    threads: int = 1
    memory_mb: int = 8192
    search: SearchOptions = field(default_factory=SearchOptions)
