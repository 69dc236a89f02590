"""The open subproblems of a tree, compactly: plain tensors over n, and a frontier that takes and gives without copying what waits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor


@dataclass(eq=False)
class Batch(ABC):
    """Subproblems as arrays over n: every field of a subclass is a tensor whose first axis is n."""

    @property
    @abstractmethod
    def proved(self) -> Tensor:
        """The proved lower bound of the margin of each, (n,) float64."""

    def __len__(self) -> int:
        return len(self.tensors()[0])

    def tensors(self) -> list[Tensor]:
        """The fields in their order, (n, ...) each."""
        return [getattr(self, f.name) for f in fields(self)]

    @property
    def lowest(self) -> float:
        """The lowest proved bound of all, inf where there is none."""
        return float(self.proved.amin()) if len(self) else torch.inf

    @property
    def bytes_each(self) -> int:
        """The storage of one, in bytes."""
        return sum(t[:1].numel() * t.element_size() for t in self.tensors())

    @property
    def none(self) -> Self:
        """No subproblems of these shapes."""
        return self.take(torch.zeros(0, dtype=torch.long, device=self.tensors()[0].device))

    def take(self, chosen: Tensor) -> Self:
        """Some of them, in the order given (repetition allowed), by number (m,) or by mask (n,)."""
        return type(self)(*(t[chosen] for t in self.tensors()))

    def join(self, *others: Self) -> Self:
        """All together."""
        if not others:
            return self
        parts = self.aligned(*others)
        return type(self)(*(torch.cat(columns) for columns in zip(*(p.tensors() for p in parts), strict=True)))

    def aligned(self, *others: Self, room: int = 0) -> list[Self]:
        """All with the same shapes; where they must grow for that, by `room` more."""
        return [self, *others]

    def trimmed(self) -> Self:
        """With no more room than they need."""
        return self


B = TypeVar("B", bound=Batch)


class Frontier(Generic[B]):
    """The open subproblems, in arrays with room to grow: taking some out and putting some in costs what these are, not what waits.

    `store` has a place for every one, those in use are `alive` (capacity,) bool; `lent` is the place of one that a solver works on, to be
    taken last.

    Args:
        like: subproblems of the shapes to come.
    """

    def __init__(self, like: B) -> None:
        self.store = like.none
        self.alive = torch.zeros(0, dtype=torch.bool, device=self.store.proved.device)
        self.lent: int | None = None

    def __len__(self) -> int:
        return int(self.alive.sum())

    @property
    def bytes(self) -> int:
        """The storage of what is open."""
        return len(self) * self.store.bytes_each

    @property
    def lowest(self) -> float:
        """The lowest bound, inf if nothing is open."""
        return float(self.store.proved[self.alive].amin()) if bool(self.alive.any()) else torch.inf

    def push(self, batch: B) -> None:
        """Put some in. Where memory is short nothing has changed."""
        if not len(batch):
            return
        free = (~self.alive).nonzero(as_tuple=True)[0]
        if len(free) < len(batch):
            self._grow(max(len(self.alive) // 2, len(batch) - len(free)))
            free = (~self.alive).nonzero(as_tuple=True)[0]
        self.store, batch = self.store.aligned(batch, room=8)
        place = free[: len(batch)]
        for target, source in zip(self.store.tensors(), batch.tensors(), strict=True):
            target[place] = source
        self.alive[place] = True

    def pop(self, count: int, nearest: bool = False) -> B:
        """Take out those of lowest bound, or with `nearest` those of highest, which are the nearest to being closed."""
        place = self.alive.nonzero(as_tuple=True)[0]
        if self.lent is not None and len(place) > 1:
            place = place[place != self.lent]
        chosen = place[self.store.proved[place].topk(min(count, len(place)), largest=nearest).indices]
        taken = self.store.take(chosen).trimmed()
        self.alive[chosen] = False  # at last, so that nothing is lost where memory ends
        return taken

    def all(self) -> B:
        """All that are open."""
        return self.store.take(self.alive)

    def remove(self, place: Tensor) -> None:
        """Take out those at some places, or of a mask over the places, (capacity,) bool."""
        self.alive[place] = False

    def _grow(self, more: int) -> None:
        store = type(self.store)(*(torch.cat([t, t.new_zeros(more, *t.shape[1:])]) for t in self.store.tensors()))
        self.store, self.alive = store, torch.cat([self.alive, self.alive.new_zeros(more)])
