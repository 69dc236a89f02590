"""What a run is told: the deadline that every phase shares, and the options."""

from __future__ import annotations

import math
import numbers
import os
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from threading import Event as _Flag
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from milpverify.errors import InvalidInput, OutOfTime
from milpverify.result import Trust
from milpverify.tuning import AnyTuning, Tuning, tuned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Deadline:
    """The one time limit of a run, passed through every phase; it also carries the request to stop (Ctrl-C).

    Args:
        seconds: seconds from when the run began, `math.inf` for none.
        clock: what measures them: wall clock by default; `time.process_time` makes runs comparable that others slow down.
        began: when that was, by the clock; now by default.
    """

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic, began: float | None = None) -> None:
        given: object = seconds
        if isinstance(given, bool) or not isinstance(given, numbers.Real) or not seconds >= 0:
            raise InvalidInput(f"a time limit is a number of seconds >= 0, not {seconds!r}")
        self._clock = clock
        self.start = clock() if began is None else began
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

    def check(self) -> None:
        """Go on only where there is time.

        Raises:
            OutOfTime: there is none.
        """
        if self.expired():
            raise OutOfTime(
                "the run was interrupted" if self.cancelled else "the time limit was reached before there was a problem to decide"
            )

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


_in_force: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def in_force(deadline: Deadline) -> Iterator[None]:
    """What runs inside is left where it asks `check_time` and the time is over."""
    token = _in_force.set(deadline)
    try:
        yield
    finally:
        _in_force.reset(token)


def check_time() -> None:
    """Go on only where the run has time: asked between steps, deep inside, that each may take long in large networks.

    Raises:
        OutOfTime: the deadline in force is over.
    """
    if (deadline := _in_force.get()) is not None:
        deadline.check()


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


MOST_BYTES: Final = 2**30
"""What a file may hold, unpacked, unless another limit is asked for: of a network's weights in files of their own, all together."""
MOST_ENTRIES: Final = 2**27
"""The most entries of a tensor of a network, whatever computes it, unless another limit is asked for; of more, bounds fill the memory."""


class SearchMethod(Enum):
    """What decides what bounds and attack leave open."""

    AUTO = "auto"  # branch-and-bound with a solver beside it
    BAB = "bab"  # branch-and-bound alone
    MILP = "milp"  # whole mixed-integer models
    SMT = "smt"  # whole models in exact arithmetic

    @property
    def branches(self) -> bool:
        """Whether it is branch-and-bound."""
        return self in (SearchMethod.AUTO, SearchMethod.BAB)


HEURISTICS = "milpverify.search.neuron_split.branching"
"""The package of what scores splits of neurons."""


class Branching(Enum):
    """How splits of neurons are scored: the one list of heuristics, by name.

    `place` says where in `HEURISTICS` the class is, which is loaded where it is used.
    """

    _value_: str
    place: str

    BBPS = "bbps", "bbps:BBPS"  # bound propagation cut short
    FIRST_ORDER = "first-order", "first_order:FirstOrder"  # the children's relaxations at the point that attains the bound
    BABSR = "babsr", "first_order:BaBSR"  # the same at the reference values
    WIDEST = "widest", "intervals:Widest"
    RANDOM = "random", "intervals:Random"
    NONE = "none", ""  # nothing is searched

    def __new__(cls, name: str, place: str) -> Branching:
        """A member of this name."""
        found = object.__new__(cls)
        found._value_, found.place = name, place
        return found


class SplitPoints(Enum):
    """Where smooth functions are split."""

    OPTIMISED = "optimised"  # where their children are tightest
    MIDPOINT = "midpoint"


class CurveEncoding(Enum):
    """How models hold what is curved."""

    PIECES = "pieces"  # functions as proved piecewise-linear enclosures; products as they are where the solver takes them
    NATIVE = "native"  # functions, too, as they are where the solver takes them


_E = TypeVar("_E", bound=Enum)


class _Choice(Generic[_E]):
    """A field of a dataclass that is one of an enum, and may be given by its value.

    Raises:
        InvalidInput: what is given is none of them.
    """

    def __init__(self, default: _E) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> _E:
        if instance is None:
            return self._default
        value: _E = instance.__dict__[self._name]
        return value

    def __set__(self, instance: object, value: _E | str) -> None:
        known = type(self._default)
        try:
            instance.__dict__[self._name] = known(value)
        except ValueError:
            raise InvalidInput(f"unknown {self._name} {value!r}; there are {', '.join(e.value for e in known)}") from None


class _HeuristicChoice(_Choice[Any]):
    """The heuristic of branching: a `Branching`, or a class of one's own.

    Raises:
        InvalidInput: what is given is none of them.
    """

    def __get__(self, instance: object, owner: type | None = None) -> Branching | type[Any]:
        found: Branching | type[Any] = super().__get__(instance, owner)
        return found

    def __set__(self, instance: object, value: Branching | str | type[Any]) -> None:
        if not isinstance(value, type):
            super().__set__(instance, value)
            return
        bases = {f"{base.__module__}.{base.__qualname__}" for base in value.__mro__[1:]}  # the base loads torch, as this module does not
        name, missing = getattr(value, "name", None), getattr(value, "__abstractmethods__", None)
        if f"{HEURISTICS}.heuristic.Heuristic" not in bases or missing:
            raise InvalidInput(f"a heuristic derives from {HEURISTICS}.Heuristic and has a `score`, unlike {value.__name__}")
        if not isinstance(name, str) or name in {known.value for known in Branching}:
            raise InvalidInput(f"a heuristic of one's own has a `name` of its own, a text, not {name!r}")
        instance.__dict__[self._name] = value


@dataclass(frozen=True)
class Milp:
    """Decide by one mixed-integer model per disjunct, handed whole to a solver.

    `solver` is "scip", "highs", "gurobi", or "module:Class": an adapter of your own, a subclass of `milpverify.solvers.base.Solver` in a
    module that new processes can import. What it proves counts once SCIP proves it too, unless its `needs_second` says otherwise.
    `threads` and `memory_mb` bound the worker process; `encoding`, which may be given by its value, says how the model holds what is
    curved.
    """

    solver: str = "scip"
    threads: int = 1
    memory_mb: int = 8192
    encoding: _Choice[CurveEncoding] = _Choice(CurveEncoding.PIECES)


@dataclass(frozen=True)
class SearchOptions:
    """What the branch-and-bound may use. Everything is on by default; an ablation turns parts off, and no part changes what is proved.

    `branching` and `points` may be given by their values, `branching` also as a class of one's own, a `Heuristic` of
    `milpverify.search.neuron_split.branching`. `tuning` holds numbers other than the defaults, one dataclass per theme (`Tuning`).

    Raises:
        InvalidInput: `tuning` holds something else, two of one kind, or what no run reads.
    """

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
    programs: bool = True  # linear programs of subproblems of smooth networks that are nearly closed
    refining: bool = True  # slopes optimised before the search, where inputs are many
    filtering: bool = True  # the best few splits are bounded before one is taken, in piecewise-linear networks
    fresh_lines: bool = True  # lines begin anew where splits or clipping make intervals much narrower
    filtering_smooth: bool = False  # in smooth networks too, where bounding children takes as long as several subproblems
    deterministic: bool = False  # choices by counts, never by clocks; repeats exactly
    branching: _HeuristicChoice = _HeuristicChoice(Branching.FIRST_ORDER)
    points: _Choice[SplitPoints] = _Choice(SplitPoints.OPTIMISED)
    tuning: tuple[Tuning, ...] = ()

    def __post_init__(self) -> None:
        asked = "tuning is a tuple of dataclasses of tuning numbers"
        if not isinstance(self.tuning, tuple):
            raise InvalidInput(f"{asked}, not a {type(self.tuning).__name__}")
        kinds = [type(numbers) for numbers in self.tuning]
        if wrong := next((k for k in kinds if not issubclass(k, Tuning) or kinds.count(k) > 1), None):
            raise InvalidInput(f"{asked}, one of a kind; {wrong.__name__} is none, or is there twice")
        if unread := next((k.__name__ for k in kinds if not k.of_runs), None):
            raise InvalidInput(f"no run reads a {unread}: it is handed to the functions that do")

    def tuned(self, kind: type[AnyTuning]) -> AnyTuning:
        """The tuning numbers of a kind: those in `tuning`, or else the defaults."""
        return tuned(self.tuning, kind)

    @property
    def both_ways(self) -> bool:
        """Whether the tree and the oracle tell each other what they know."""
        return self.oracle_to_tree and self.tree_to_oracle

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
    """The options of `verify`; every one of them is in the result's JSON. `method`, `encoding` and `trust` may be given by their values.

    Raises:
        InvalidInput: a value that an option does not have.
    """

    method: _Choice[SearchMethod] = _Choice(SearchMethod.AUTO)
    solver: str = "scip"  # scip | highs | gurobi | z3 | cvc5 | module:Class
    encoding: _Choice[CurveEncoding] = _Choice(CurveEncoding.PIECES)
    trust: _Choice[Trust] = _Choice(Trust.SOLVER)  # the weakest that may decide
    delta: float = 1e-6  # the margin up to which smooth networks are decided
    device: str = "auto"  # auto | cpu | cuda
    seed: int = 0
    attack: bool = True
    threads: int = 1
    memory_mb: int = 8192
    search: SearchOptions = field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        if not (isinstance(self.seed, int) and 0 <= self.seed < 2**64):
            raise InvalidInput(f"a seed is an integer from 0 to 2^64 - 1, not {self.seed!r}")

    @property
    def believes_solvers(self) -> bool:
        """Whether a solver's bounds may decide."""
        return self.trust is Trust.SOLVER

    def to_dict(self) -> dict[str, Any]:
        """As in the result's JSON: choices by their values, a heuristic of one's own by its name, tuning numbers by their dataclasses'."""
        found = asdict(self, dict_factory=lambda items: {name: _told(value) for name, value in items})
        found["search"]["tuning"] = {
            type(kind).__name__: of for kind, of in zip(self.search.tuning, found["search"]["tuning"], strict=True)
        }
        return found


def _told(value: Any) -> Any:
    return getattr(value, "value" if isinstance(value, Enum) else "name") if isinstance(value, Enum | type) else value
