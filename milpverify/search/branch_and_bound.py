"""The search: pop, split, bound, try points, prune, share with the solver, report (GenBaB, arXiv 2405.21063, algorithm 1).

`branch_and_bound` knows neither boxes nor neurons: what is split, how it is bounded and what becomes of leaves is a `Space`'s.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from milpverify.errors import OutOfTime
from milpverify.result import Event
from milpverify.search.bounding import is_out_of_memory
from milpverify.search.context import SearchTuning
from milpverify.search.frontier import B

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from milpverify.config import Deadline
    from milpverify.search.batch_size import BatchSize
    from milpverify.search.context import SearchContext
    from milpverify.search.effort import Effort
    from milpverify.search.sharing import Sharing
    from milpverify.search.tree import Tree

F = TypeVar("F")


@dataclass(frozen=True)
class Budget:
    """How long a search may go on: until the deadline, or until the tree has bounded so many subproblems, or `seconds` of the clock.

    The last two are looked at between batches, and do not end a search that only waits for the solver.
    """

    deadline: Deadline
    subproblems: float = math.inf
    seconds: float = math.inf


class Space(ABC, Generic[B, F]):
    """What is split: inputs or neurons. F is what bounding some subproblems finds beside their bounds.

    `batch` says how many subproblems are bounded at a time, `effort` what one is estimated to cost.
    """

    context: SearchContext
    batch: BatchSize
    effort: Effort

    @abstractmethod
    def split(self, tree: Tree[B], parents: B, deadline: Deadline) -> B | None:
        """The children of some subproblems, less those that are known to be closed; None where the deadline comes first."""

    @abstractmethod
    def bound(self, tree: Tree[B], children: B) -> tuple[B, F]:
        """Bound subproblems; what is known of the parents stays."""

    @abstractmethod
    def try_points(self, tree: Tree[B], children: B, found: F) -> None:
        """Try points of bounded subproblems as counterexamples."""

    @abstractmethod
    def prune(self, tree: Tree[B], children: B, found: F) -> B:
        """Bounded subproblems that are still open; what is closed is counted in the tree."""

    @abstractmethod
    def open_disjuncts(self, tree: Tree[B]) -> list[int]:
        """The places in the group of the disjuncts that are open somewhere."""

    @abstractmethod
    def detail(self, tree: Tree[B]) -> dict[str, Any]:
        """Counts for the ledger."""

    def renew(self, tree: Tree[B], deadline: Deadline) -> bool:
        """Begin anew with tighter bounds of everything open, once that pays; whether it was done."""
        return False

    def leaves(self, tree: Tree[B], children: B, deadline: Deadline) -> B:
        """Decide open subproblems without a split left; returns the others."""
        return children

    def finish(self, tree: Tree[B], deadline: Deadline) -> None:
        """Close by other means than splits what these suit better."""


class Chunks(Generic[B]):
    """Subproblems in parts that memory holds: `for part in chunks: with chunks: ...`, where a part that it does not hold is halved.

    `complete`: every part was worked on; otherwise the deadline came first, or the loop was left.

    Args:
        share: how many times the memory of a bounded subproblem one takes.
    """

    def __init__(self, batch: B, size: BatchSize, deadline: Deadline, share: int = 1) -> None:
        self.batch, self.size, self.deadline = batch, size, deadline
        self.most = max(1, size.memory // share)
        self.start = self.now = 0

    @property
    def complete(self) -> bool:
        """Whether nothing is left."""
        return self.start >= len(self.batch)

    def __iter__(self) -> Iterator[B]:
        while not self.complete and not self.deadline.expired():
            self.now = min(self.most, len(self.batch) - self.start)
            yield self.batch.take(torch.arange(self.start, self.start + self.now, device=self.batch.proved.device))

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            self.start += self.now
            return False
        if not isinstance(error, MemoryError | RuntimeError) or not is_out_of_memory(error) or self.now == 1:
            return False
        self.most = self.now // 2
        self.size.memory_holds(self.most)
        return True


def branch_and_bound(tree: Tree[B], space: Space[B, F], budget: Budget, sharing: Sharing[B] | None = None) -> Tree[B]:
    """Search until everything is closed or unsplittable, a counterexample holds, or the budget is spent; can be called again.

    Args:
        tree: changed, and returned. Roots that it begins with are bounded whatever the budget, but for its deadline.
        sharing: both ways to the solver beside the tree, if there is one.
    """
    clock, deadline = space.context.clock, budget.deadline
    end = clock() + budget.seconds
    try:
        tree.reopen()
        while not tree.decided and not deadline.expired():
            if not tree.unfinished:
                if _waited(tree, sharing):
                    continue
                break
            roots = tree.unbounded
            if roots is None and (tree.counts.bounded >= budget.subproblems or clock() >= end):
                break
            if space.renew(tree, deadline):
                continue
            began, before = clock(), tree.counts.bounded
            children = space.split(tree, tree.pop(max(1, space.batch.size // 2)), deadline) if roots is None else roots
            if children is None:
                break
            still_open: list[B] = []
            chunks = Chunks(children, space.batch, deadline)
            for part in chunks:
                with chunks:
                    bounded, found = space.bound(tree, part)
                    space.try_points(tree, bounded, found)
                    still_open.append(space.prune(tree, bounded, found))
                if tree.falsified:
                    break
            if not chunks.complete:
                break  # what is in progress stays open
            tree.push(space.leaves(tree, still_open[0].join(*still_open[1:]) if still_open else children, deadline))
            if roots is not None:
                continue
            space.batch.took(tree.counts.bounded - before, clock() - began)
            if not tree.decided and not deadline.expired():
                space.finish(tree, deadline)
            if sharing is not None:
                sharing.share(tree)
            _attack(tree, space)
            report(tree, space.context)
        if not tree.unfinished and not tree.decided and not deadline.expired():
            space.finish(tree, deadline)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        tree.out_of_memory = True
    except OutOfTime:
        pass  # what is in progress stays open
    tree.proved = max(tree.proved, tree.lower_bound)
    return tree


def _waited(tree: Tree[B], sharing: Sharing[B] | None) -> bool:
    """Wait a moment for what the solver makes of all that the tree cannot split; whether there is anything to wait for."""
    if sharing is None or not sharing.awaited(tree):
        return False
    time.sleep(0.01)
    sharing.share(tree)
    return True


def _attack(tree: Tree[B], space: Space[B, F]) -> None:
    """Attack what is open, when it is time."""
    attacks = space.context.attacks
    if attacks is None or not tree.unfinished or tree.decided:
        return
    if attacks.due(tree.lower_bound, tree.counts.bounded * space.effort.each):
        points = tree.incumbents
        outcome = attacks.take(tree.group, space.open_disjuncts(tree), {k: x for k, (_, x) in points.best.items()})
        points.counterexample = outcome.counterexample
        points.note(outcome.disagreement)


def report(tree: Tree[B], context: SearchContext) -> None:
    """Tell the bound of a tree, which is proved, and whoever watches how far it is."""
    reporter = context.reporter
    if not reporter.due(context.tuned(SearchTuning).reports):
        return
    reporter.prove(tree.lower_bound, tree.trust_of_bound)
    count, bounded = len(tree.frontier), tree.counts.bounded
    rate = bounded / max(1e-9, time.monotonic() - tree.counts.began)
    data = {"open": count, "subproblems": bounded, "bound": tree.lower_bound, "trust": tree.trust_of_bound.value}
    reporter(Event("search", f"{count} open, {bounded} bounded, {rate:.0f}/s", data))
