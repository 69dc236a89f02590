"""What a run is told: the deadline that every phase shares, and the options."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, fields, replace
from threading import Event as _Flag


class Deadline:
    """The one time limit of a run, passed through every phase; it also carries the request to stop (Ctrl-C).

    Args:
        seconds: wall-clock seconds from now, `math.inf` for none.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        if math.isnan(seconds) or seconds < 0:
            raise ValueError(f"a time limit must be a number of seconds >= 0, not {seconds}")
        self.start = time.monotonic()
        self.end = self.start + seconds
        self._cancelled = _Flag()

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.start

    def remaining(self) -> float:
        """Seconds left, 0 when over or cancelled."""
        return 0.0 if self._cancelled.is_set() else max(0.0, self.end - time.monotonic())

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

    def within(self, seconds: float) -> Deadline:
        """A tighter deadline for one phase, which shares the request to stop."""
        inner = Deadline.__new__(Deadline)
        inner.start = time.monotonic()
        inner.end = min(self.end, inner.start + seconds)
        inner._cancelled = self._cancelled
        return inner


@dataclass(frozen=True)
class Milp:
    """Decide by one mixed-integer model per disjunct, handed whole to a solver.

    `solver` is "scip", "highs" or "gurobi"; `threads` and `memory_mb` bound the worker process.
    """

    solver: str = "scip"
    threads: int = 1
    memory_mb: int = 8192


@dataclass(frozen=True)
class SearchOptions:
    """What the branch-and-bound may use. Everything is on by default; an ablation turns parts off, and no part changes what is proved."""

    oracle: bool = True  # a solver beside the tree
    oracle_to_tree: bool = True  # its bounds and points reach the tree
    tree_to_oracle: bool = True  # subproblems and bounds of the tree reach it, and what the tree closes stops it
    clipping: bool = True  # boxes clipped by linear bounds of rows, domain rows and split constraints
    output_constraints: bool = True  # "the point is unsafe" used in intermediate bounds
    no_goods: bool = True  # closed leaves shrunk to conflicts
    forward: bool = True  # linear forms carried forward where inputs are few
    finishing: bool = True  # small boxes finished by neuron splits
    leaves: bool = True  # linear programs at the leaves, rechecked in rationals
    deterministic: bool = False  # choices by counts, never by clocks; repeats exactly

    def without(self, *parts: str) -> SearchOptions:
        """With some parts off.

        Raises:
            ValueError: a name that is no part's.
        """
        for part in parts:
            if part not in PARTS:
                raise ValueError(f"the search has no part {part!r}; there are {', '.join(PARTS)}")
        return replace(self, **dict.fromkeys(parts, False))


EVERYTHING = SearchOptions()
"""All parts on, choices by the clock."""
PARTS = tuple(f.name for f in fields(SearchOptions) if f.default is True)
"""The names of what can be turned off."""


@dataclass(frozen=True)
class Options:
    """The options of `verify`; every one of them is in the result's JSON."""

    method: str = "auto"  # auto | bab | milp | smt
    solver: str = "scip"  # scip | highs | gurobi | z3
    trust: str = "solver"  # the weakest trust that may decide: exact | rounded | solver
    delta: float = 1e-6  # completeness margin of smooth networks
    device: str = "auto"  # auto | cpu | cuda
    seed: int = 0
    attack: bool = True
    threads: int = 1
    memory_mb: int = 8192
    search: SearchOptions = field(default_factory=SearchOptions)
