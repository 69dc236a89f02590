"""Subproblems of the neuron search, compactly: plain tensors over n, and a frontier that takes and gives without copying the rest."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from milpverify.counterexamples.validate import Validation
    from milpverify.result import Reason, Trust

_PER_SPLIT = ("slot", "index", "side", "point", "beta")
Literal = tuple[int, int, float, float]
"""A split decision as (slot, index, side, point)."""


@dataclass(eq=False)
class Subproblems:
    """Subproblems as arrays over n. K is the largest number of splits, C of candidates, U of neurons with slopes of their own.

    `box` (n,) the place in the root's batch of boxes; `disjunct` (n,) the place in the group; `bound` (n,) float64, proved;
    `slot`, `index`, `side`, `point`, `beta` (n, K) (`beta` (n, r, K)) the split decisions, side 0 where there is none; `best`
    (n, C) the flat numbers of the splits to consider, -1 where there is none left; `slopes` (n, r, P) of the lines; `low`, `high` (n, T)
    float32 bounds of the open entries besides the root's and the decisions, inherited by what is split off, or (n, 0) for none;
    `narrower` (n, T) bool which entries have become much narrower since the lines were optimised, or (n, 0) where that does not matter.
    """

    box: Tensor
    disjunct: Tensor
    bound: Tensor
    slot: Tensor
    index: Tensor
    side: Tensor
    point: Tensor
    beta: Tensor
    best: Tensor
    slopes: Tensor
    low: Tensor
    high: Tensor
    narrower: Tensor

    def __len__(self) -> int:
        return len(self.disjunct)

    def take(self, chosen: Tensor) -> Subproblems:
        """Some of them, in the order given (repetition allowed), by number or by mask."""
        return Subproblems(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def join(self, *others: Subproblems) -> Subproblems:
        """All together; shorter lists of splits are padded."""
        width = max(s.slot.shape[1] for s in (self, *others))
        parts = [s.padded(width) for s in (self, *others)]
        return Subproblems(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(self)))

    def padded(self, width: int) -> Subproblems:
        """With room for `width` splits, and no more."""
        more = width - self.slot.shape[1]
        return replace(self, **{name: pad(getattr(self, name), (0, more)) for name in _PER_SPLIT}) if more else self

    @property
    def newest(self) -> Tensor:
        """The place of the last split decision of each, (n,); 0 where there is none. Only where K > 0."""
        return ((self.side != 0) * torch.arange(1, self.side.shape[1] + 1, device=self.side.device)).argmax(1)

    @property
    def depth(self) -> Tensor:
        """The number of splits of each, (n,)."""
        return (self.side != 0).sum(1)

    def under(self, disjunct: int, literals: tuple[Literal, ...]) -> Tensor:
        """Which belong to a disjunct and hold all the decisions given, (n,) bool."""
        inside = self.disjunct == disjunct
        for slot, index, side, point in literals:
            inside = inside & ((self.slot == slot) & (self.index == index) & (self.side == side) & (self.point == point)).any(1)
        return inside

    def literals(self, n: int) -> tuple[Literal, ...]:
        """The split decisions of one."""
        columns = [getattr(self, name)[n].tolist() for name in ("slot", "index", "side", "point")]
        return tuple(literal for literal in zip(*columns, strict=True) if literal[2])

    @property
    def bytes_each(self) -> int:
        """The storage of one, in bytes."""
        return sum(t[:1].numel() * t.element_size() for t in (getattr(self, f.name) for f in fields(self)))


class Frontier:
    """The open subproblems, in arrays with room to grow: taking some out and putting some in costs what these are, not what waits.

    Args:
        like: subproblems of the shapes to come.
    """

    def __init__(self, like: Subproblems) -> None:
        self.store = like.take(torch.zeros(0, dtype=torch.long, device=like.bound.device))
        self.alive = torch.zeros(0, dtype=torch.bool, device=like.bound.device)

    def __len__(self) -> int:
        return int(self.alive.sum())

    @property
    def bounds(self) -> Tensor:
        """The bounds of the open ones, (n,)."""
        return self.store.bound[self.alive]

    @property
    def lowest(self) -> float:
        """The lowest bound, inf if nothing is open."""
        return float(self.bounds.amin()) if bool(self.alive.any()) else torch.inf

    def push(self, subs: Subproblems) -> None:
        """Put some in."""
        if not len(subs):
            return
        free = (~self.alive).nonzero(as_tuple=True)[0]
        if len(free) < len(subs):
            self._grow(max(len(self.alive), len(subs) - len(free)))
            free = (~self.alive).nonzero(as_tuple=True)[0]
        width, given = self.store.slot.shape[1], subs.slot.shape[1]
        if given > width:
            self.store = self.store.padded(given + 8)
        place = free[: len(subs)]
        subs = subs.padded(self.store.slot.shape[1])
        for f in fields(subs):
            getattr(self.store, f.name)[place] = getattr(subs, f.name)
        self.alive[place] = True

    def pop(self, count: int, nearest: bool = False) -> Subproblems:
        """Take out those of lowest bound, or with `nearest` those of highest, which are the nearest to being closed."""
        place = self.alive.nonzero(as_tuple=True)[0]
        chosen = self.store.bound[place].topk(min(count, len(place)), largest=nearest).indices
        return self._remove(place[chosen])

    def all(self) -> Subproblems:
        """All that are open."""
        return self.store.take(self.alive)

    def remove(self, mask: Tensor) -> None:
        """Take out those of a mask over the places, (capacity,) bool."""
        self.alive &= ~mask

    def under(self, disjunct: int, literals: tuple[Literal, ...]) -> Tensor:
        """The open ones of a disjunct that hold all the decisions given, (capacity,) bool."""
        return self.store.under(disjunct, literals) & self.alive

    def hardest(self, mask: Tensor | None = None) -> Subproblems:
        """The one of lowest bound, left where it is."""
        bound = torch.where(self.alive if mask is None else self.alive & mask, self.store.bound, torch.inf)
        return self.store.take(bound.argmin().unsqueeze(0))

    def _remove(self, place: Tensor) -> Subproblems:
        taken = self.store.take(place)
        taken = taken.padded(int(taken.depth.max()) if len(taken) else 0)
        self.alive[place] = False  # at last, so that nothing is lost where memory ends
        return taken

    def _grow(self, more: int) -> None:
        old = [getattr(self.store, f.name) for f in fields(self.store)]
        self.store = Subproblems(*(torch.cat([t, t.new_zeros(more, *t.shape[1:])]) for t in old))
        self.alive = torch.cat([self.alive, self.alive.new_zeros(more)])


@dataclass(eq=False)
class NeuronOutcome:
    """How the search ended. `open` is what is left to split, `stuck` what cannot be split and nothing closed.

    `lower_bound` and a closure rest on `trust`. A counterexample is in `judgement`, or else the last disagreement of semantics.
    """

    closed: bool
    lower_bound: float
    judgement: Validation | None
    open: Subproblems
    stuck: Subproblems
    trust: Trust
    reason: Reason
    note: str
    detail: dict[str, Any]
