"""The search itself, over a space made by hand: wherever it stops, all is closed or open, and nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from random_nets import relu_network
from torch import Tensor
from trees import context_of, root_of

from milpverify.config import Deadline
from milpverify.result import Counterexample, Reason
from milpverify.search.batch_size import BatchSize
from milpverify.search.branch_and_bound import Budget, Chunks, Space, branch_and_bound
from milpverify.search.effort import Effort
from milpverify.search.frontier import Batch
from milpverify.search.ledger import Part
from milpverify.search.tree import Tree
from milpverify.spec import Box, Disjunct, Problem, Rows

STEPS = ("split", "bound", "try_points", "prune", "leaves", "finish")
FOREVER = Deadline()


@dataclass(eq=False)
class Spans(Batch):
    """Places [first, end) of a table, with a proved bound of the least value there."""

    first: Tensor
    end: Tensor
    bound: Tensor

    @property
    def proved(self) -> Tensor:
        return self.bound


class Table(Space[Spans, Tensor]):
    """The least value of a table: a span's bound is too low by what a place is worth, for every place but one.

    Args:
        holds: how many spans memory holds at a time.
        on: called with the name of every step, first thing.
    """

    def __init__(self, values: np.ndarray, holds: float = math.inf, on: Callable[[str], None] = lambda step: None) -> None:
        graph, box = relu_network([1, 1], 0), Box([0.0], [1.0])
        self.context = context_of(Problem(graph, (Disjunct(box, Rows.on_outputs([[1.0]], [0.0], 1), Rows.none(1, 1)),)))
        self.effort = Effort(1e-3)
        self.values, self.holds, self.on, self.batch = values, holds, on, BatchSize(size=8, fixed=8)
        self.closed: list[range] = []
        self.sizes: list[int] = []
        self.examples = True  # whether points are tried

    def tree(self) -> Tree[Spans]:
        one = torch.zeros(1, dtype=torch.long)
        whole = Spans(one, one + len(self.values), torch.tensor([-math.inf], dtype=torch.float64))
        return Tree.of(self.context, root_of(self.context.problem)[0], whole)

    def split(self, tree: Tree[Spans], parents: Spans, deadline: Deadline) -> Spans:
        self.on("split")
        middle = (parents.first + parents.end) // 2
        return Spans(parents.first, middle, parents.bound).join(Spans(middle, parents.end, parents.bound))

    def bound(self, tree: Tree[Spans], children: Spans) -> tuple[Spans, Tensor]:
        self.on("bound")
        self.sizes.append(len(children))
        if len(children) > self.holds:
            raise RuntimeError("CUDA out of memory")
        ends = list(zip(children.first.tolist(), children.end.tolist(), strict=True))
        least = torch.tensor([self.values[a:b].min() - (b - a - 1) for a, b in ends], dtype=torch.float64)
        tree.counts.bounded += len(children)
        return Spans(children.first, children.end, torch.maximum(least, children.bound)), children.first

    def try_points(self, tree: Tree[Spans], children: Spans, found: Tensor) -> None:
        self.on("try_points")
        for place in found.tolist():
            if self.examples and self.values[place] <= 0 and not tree.falsified:
                tree.incumbents.counterexample = Counterexample(np.array([float(place)]), np.zeros(1), -1.0, -1.0)

    def prune(self, tree: Tree[Spans], children: Spans, found: Tensor) -> Spans:
        self.on("prune")
        done = children.bound > 0
        if bool(done.any()):
            tree.close(float(children.bound[done].amin()), Part.BISECTION, int(done.sum()))
        self.closed += ranges(children.take(done))
        return children.take(~done)

    def leaves(self, tree: Tree[Spans], children: Spans, deadline: Deadline) -> Spans:
        self.on("leaves")
        final = children.end - children.first == 1
        tree.unsplittable = tree.unsplittable.join(children.take(final))
        return children.take(~final)

    def finish(self, tree: Tree[Spans], deadline: Deadline) -> None:
        self.on("finish")

    def open_disjuncts(self, tree: Tree[Spans]) -> list[int]:
        return [0]

    def detail(self, tree: Tree[Spans]) -> dict[str, Any]:
        return {}


def ranges(spans: Spans) -> list[range]:
    return [range(a, b) for a, b in zip(spans.first.tolist(), spans.end.tolist(), strict=True)]


def accounted(tree: Tree[Spans], space: Table) -> bool:
    """Whether every place is closed or open, no bound is above what it bounds, and what is open does not pass for closed."""
    still = ranges(tree.left.join(tree.unsplittable))
    covered = {place for span in [*space.closed, *still] for place in span}
    bounds = tree.left.join(tree.unsplittable).bound.tolist()
    true = all(bound <= space.values[list(span)].min() for span, bound in zip(still, bounds, strict=True))
    assert tree.closed is (not still and not tree.out_of_memory)
    return covered == set(range(len(space.values))) and true and tree.lower_bound <= tree.proved <= space.values.min()


def safe(seed: int, count: int = 300) -> np.ndarray:
    """A table of positive values, which takes some splits."""
    return np.random.default_rng(seed).uniform(0.25, 3.0, count)


def run(space: Table, tree: Tree[Spans] | None = None, budget: Budget | None = None) -> Tree[Spans]:
    return branch_and_bound(tree or space.tree(), space, budget or Budget(FOREVER))


def ticking(count: int) -> Deadline:
    """A deadline that comes after so many looks at its clock."""
    ticks = iter(range(1 << 30))
    return Deadline(count + 0.5, clock=lambda: float(next(ticks)))


@pytest.mark.parametrize("seed", range(5))
def test_everything_is_closed_once(seed: int) -> None:
    space = Table(safe(seed))
    tree = run(space)
    assert tree.closed and accounted(tree, space)
    assert sorted(place for span in space.closed for place in span) == list(range(300))
    assert 0 < tree.lower_bound == tree.closed_bound <= space.values.min()
    assert space.context.ledger.closed == {Part.BISECTION: len(space.closed)} and len(space.closed) > 20
    outcome = tree.outcome({})
    assert outcome.closed and outcome.detail == {"subproblems": tree.counts.bounded, "open": 0}
    assert max(space.sizes) == 8


@pytest.mark.parametrize("seed", range(3))
def test_what_cannot_be_split_stays_open_and_ends_the_search(seed: int) -> None:
    values = safe(seed)
    values[[17, 18, 250]] = -0.5
    space = Table(values)
    space.examples = False
    tree = run(space)
    assert not tree.closed and not tree.unfinished and accounted(tree, space)
    assert sorted(ranges(tree.unsplittable), key=lambda r: r.start) == [range(17, 18), range(18, 19), range(250, 251)]
    assert tree.lower_bound == -0.5 and tree.outcome({}).reason is Reason.UNDECIDED
    bounded = tree.counts.bounded
    assert run(space, tree).counts.bounded == bounded  # nothing is left to do


@pytest.mark.parametrize("seed", range(3))
def test_a_counterexample_stops_it_at_once(seed: int) -> None:
    values = safe(seed)
    values[[40, 200]] = -0.5
    steps: list[str] = []
    space = Table(values, on=steps.append)
    tree = run(space)
    assert tree.falsified and tree.decided and not tree.closed and accounted(tree, space)
    example = tree.outcome({}).counterexample
    assert example is not None and int(example.x[0]) in (40, 200)
    count = len(steps)
    assert steps[-5:] == ["split", "bound", "try_points", "prune", "leaves"]
    assert run(space, tree).falsified and len(steps) == count


def test_a_counterexample_in_a_part_leaves_the_other_parts_open() -> None:
    values = safe(0)
    values[0] = -0.5  # the first half of any span with it shows it at once
    space = Table(values)
    space.batch.memory = 1
    whole = space.tree()
    space.examples = False
    run(space, whole, Budget(FOREVER, 40))
    space.examples, before = True, len(space.sizes)
    run(space, whole)
    assert whole.falsified and len(space.sizes) - before <= 8 and set(space.sizes) == {1}
    assert accounted(whole, space) and len(whole.in_progress)


@pytest.mark.parametrize("limit", [0, 1, 2, 9, 30, 100, 1000])
def test_the_budget_leaves_open_what_was_open(limit: int) -> None:
    space = Table(safe(1))
    tree = run(space, budget=Budget(FOREVER, limit))
    assert tree.unbounded is None and accounted(tree, space)  # the root is bounded whatever the budget
    assert tree.closed or limit <= tree.counts.bounded < max(limit, 1) + 8
    run(space, tree)
    once = run(Table(safe(1)))
    assert tree.closed and (tree.counts.bounded, tree.lower_bound) == (once.counts.bounded, once.lower_bound)


def test_no_time_for_batches_is_no_time_for_a_second_one() -> None:
    space = Table(safe(1))
    tree = run(space, budget=Budget(FOREVER, seconds=0.0))
    assert tree.counts.bounded == 1 and len(tree.frontier) == 1 and accounted(tree, space)


def test_wherever_the_deadline_comes_everything_is_closed_or_open() -> None:
    """And the bound never falls, in one run from one deadline to the next."""
    for looks in range(0, 400, 7):
        space = Table(safe(2))
        space.batch.memory = 3
        tree = run(space, budget=Budget(ticking(looks)))
        bounds = [tree.proved]
        assert accounted(tree, space)
        if tree.closed:
            break
        assert (tree.unbounded is not None) == (looks < 2)
        for _ in range(3):
            bounds.append(run(space, tree, Budget(ticking(11))).proved)
            assert accounted(tree, space)
        assert run(space, tree).closed and accounted(tree, space)
        assert bounds == sorted(bounds)
    assert looks > 50


@pytest.mark.parametrize("holds", [1, 2, 3, 5])
def test_parts_are_halved_until_memory_holds_them(holds: int) -> None:
    space, once = Table(safe(3), holds), run(Table(safe(3)))
    tree = run(space)
    assert tree.closed and not tree.out_of_memory and accounted(tree, space)
    assert (tree.counts.bounded, tree.lower_bound) == (once.counts.bounded, once.lower_bound)
    assert 1 <= space.batch.memory <= holds
    assert sum(size > holds for size in space.sizes) <= 3  # what was learned is not tried again
    assert sorted(place for span in space.closed for place in span) == list(range(300))


def test_where_memory_does_not_hold_one_everything_is_open_with_the_reason() -> None:
    space = Table(safe(3), 0)
    tree = run(space)
    outcome = tree.outcome(space.detail(tree))
    assert tree.out_of_memory and not outcome.closed and outcome.reason is Reason.MEMORY
    assert tree.unbounded is not None and accounted(tree, space) and outcome.detail["open"] == 1
    space.holds = math.inf
    run(space, tree)
    assert not len(tree.left) and accounted(tree, space)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("seed", range(3))
def test_wherever_memory_ends_nothing_is_lost(step: str, seed: int) -> None:
    """It ends at a step of a kind, now and then; in the end everything is closed, though the tree does not say so."""
    random = np.random.default_rng(seed)

    def fails(now: str) -> None:
        if now == step and random.random() < 0.3:
            raise MemoryError

    space = Table(safe(seed), on=fails)
    tree, runs = space.tree(), 0
    while tree.left.first.numel() and runs < 1000:
        run(space, tree)
        runs += 1
        assert accounted(tree, space)
    assert not len(tree.left) and not len(tree.unsplittable)
    assert tree.out_of_memory or step in ("bound", "try_points", "prune")  # of which the loop may have halved the parts in time
    assert 0 < tree.closed_bound <= space.values.min()


@pytest.mark.parametrize("step", STEPS)
def test_other_errors_are_not_taken_for_short_memory(step: str) -> None:
    calls: list[str] = []

    def fails(now: str) -> None:
        calls.append(now)
        if now == step and calls.count(step) == 3:
            raise RuntimeError("shapes do not match")

    space = Table(safe(0), on=fails)
    tree = space.tree()
    with pytest.raises(RuntimeError, match="shapes"):
        run(space, tree)
    assert not tree.out_of_memory
    assert calls.count(step) == 3


def test_a_space_that_closes_nothing_keeps_the_bound() -> None:
    class Idle(Table):
        def prune(self, tree: Tree[Spans], children: Spans, found: Tensor) -> Spans:
            self.on("prune")
            return children

    space = Idle(safe(4))
    tree, bounds = space.tree(), [-math.inf]
    while tree.unfinished:
        run(space, tree, Budget(FOREVER, tree.counts.bounded + 1))
        bounds.append(tree.proved)
        assert accounted(tree, space) and not tree.closed and tree.closed_bound == math.inf
    assert len(tree.unsplittable) == 300 and bounds == sorted(bounds)
    assert tree.lower_bound == bounds[-1] == space.values.min()
    assert not tree.outcome({}).closed


def test_a_renewal_goes_on_with_what_it_leaves() -> None:
    """A space may begin anew with everything open, of which nothing is forgotten."""

    class Renewing(Table):
        renewed = 0

        def renew(self, tree: Tree[Spans], *_: object) -> bool:
            if self.renewed or tree.counts.bounded < 40:
                return False
            self.renewed += 1
            known = tree.frontier.all()
            tree.clear(known)
            tree.unbounded = known
            return True

    space = Renewing(safe(5))
    tree = run(space)
    assert space.renewed == 1 and tree.closed and accounted(tree, space)
    assert sorted(place for span in space.closed for place in span) == list(range(300))


# -- parts ----------------------------------------------------------------------------------------------------------------


def spans(count: int) -> Spans:
    first = torch.arange(count)
    return Spans(first, first + 1, first.double())


def worked(chunks: Chunks[Spans], work: Callable[[Spans], None] = lambda part: None) -> list[int]:
    """The places that the parts were about, in the order in which they were worked on."""
    done: list[int] = []
    for part in chunks:
        with chunks:
            work(part)
            done += part.first.tolist()
    return done


@pytest.mark.parametrize(("memory", "share", "sizes"), [(4, 1, [4, 4, 3]), (11, 1, [11]), (12, 3, [4, 4, 3]), (2, 5, [1] * 11)])
def test_parts_are_as_large_as_memory_holds(memory: int, share: int, sizes: list[int]) -> None:
    seen: list[int] = []
    chunks = Chunks(spans(11), BatchSize(memory=memory), FOREVER, share)
    assert not chunks.complete
    assert worked(chunks, lambda part: seen.append(len(part))) == list(range(11))
    assert seen == sizes and chunks.complete
    assert Chunks(spans(0), BatchSize(), FOREVER).complete


@pytest.mark.parametrize("holds", [1, 2, 3, 7])
def test_a_part_that_memory_does_not_hold_is_halved(holds: int) -> None:
    def work(part: Spans) -> None:
        if len(part) > holds:
            raise MemoryError

    size = BatchSize(memory=64)
    chunks = Chunks(spans(50), size, FOREVER)
    assert worked(chunks, work) == list(range(50)) and chunks.complete
    assert 1 <= size.memory <= holds and size.size <= max(2, holds)


def test_parts_end_with_errors_the_deadline_or_the_loop() -> None:
    def fails(error: Exception) -> Callable[[Spans], None]:
        def work(part: Spans) -> None:
            raise error

        return work

    for error in (RuntimeError("shapes do not match"), ValueError("out of memory"), MemoryError()):
        chunks = Chunks(spans(5), BatchSize(memory=2), FOREVER)
        with pytest.raises(type(error)):  # of memory only where it does not hold one
            worked(chunks, fails(error))
        assert not chunks.complete and chunks.start == 0
    chunks = Chunks(spans(9), BatchSize(memory=2), ticking(3))
    done = worked(chunks)
    assert 0 < len(done) < 9 and done == list(range(len(done))) and not chunks.complete
    chunks = Chunks(spans(9), BatchSize(memory=2), FOREVER)
    for _ in chunks:
        with chunks:
            pass
        break
    assert chunks.start == 2 and not chunks.complete
