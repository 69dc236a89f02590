"""The open subproblems of a tree, of either kind: they come back as they went in, and nothing is lost where memory ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count

import numpy as np
import pytest
import torch
from random_nets import relu_network
from short_memory import ShortMemory
from trees import context_of, root_of

from milpverify.search.frontier import Batch, Frontier
from milpverify.search.input_split.boxes import Boxes
from milpverify.search.neuron_split.subproblems import Literal, Subproblems
from milpverify.search.tree import Tree
from milpverify.spec import Box, Disjunct, Problem, Rows


def boxes(bounds: list[float]) -> Boxes:
    """Boxes that their margins tell apart."""
    n = len(bounds)
    at = torch.tensor(bounds, dtype=torch.float64).unsqueeze(1)
    whole = torch.zeros(n, dtype=torch.int32)
    return Boxes(
        at - 1, at + 1, at, at.float(), whole, torch.zeros(n, dtype=torch.bool), whole.long(), at.float().unsqueeze(1).expand(-1, 2, 3)
    )


def decisions(bound: float) -> tuple[Literal, ...]:
    """The splits of the subproblem with a bound: up to six, which the bound determines."""
    depth = round(1000 * abs(bound)) % 7
    return tuple((k, 10 * k, 1.0 if k % 2 else -1.0, bound + k) for k in range(depth))


def subproblems(bounds: list[float]) -> Subproblems:
    """Subproblems that their bounds tell apart, with room for as many splits as the deepest has."""
    n, made = len(bounds), [decisions(b) for b in bounds]
    at, width = torch.tensor(bounds, dtype=torch.float64), max(map(len, made), default=0)
    columns = torch.tensor([[*m, *[(0, 0, 0.0, 0.0)] * (width - len(m))] for m in made], dtype=torch.float64).reshape(n, width, 4)
    slot, index, side, point = columns.unbind(2)
    zero, beta = torch.zeros(n, dtype=torch.long), (side * at.unsqueeze(1)).unsqueeze(1).expand(-1, 2, -1)
    some = at.float().unsqueeze(1).expand(-1, 4)
    return Subproblems(
        zero, zero, at, slot.long(), index.long(), side, point, beta, zero.unsqueeze(1), beta[:, :, :0], some, some, some > 0
    )


def same(batch: Batch, bounds: list[float]) -> bool:
    """Whether a batch holds what was made with these bounds, in whatever order, and as it was made."""
    places = [bounds.index(b) for b in batch.proved.tolist()]
    if sorted(places) != list(range(len(bounds))):
        return False
    made = boxes(bounds) if isinstance(batch, Boxes) else subproblems(bounds)
    here, there = batch.aligned(made.take(torch.tensor(places, dtype=torch.long)))
    return all(torch.equal(a, b) for a, b in zip(here.tensors(), there.tensors(), strict=True))


Make = Callable[[list[float]], Batch]
both = pytest.mark.parametrize("make", [boxes, subproblems])


@both
@pytest.mark.parametrize("seed", range(3))
def test_the_frontier_gives_back_what_it_took_in_the_order_asked_for(make: Make, seed: int) -> None:
    frontier = Frontier(make([0.5]))
    assert len(frontier) == 0 and frontier.lowest == torch.inf and frontier.bytes == 0
    waiting: list[float] = []
    random = np.random.default_rng(seed)
    for k in range(80):
        fresh = random.normal(size=random.integers(0, 8)).round(6).tolist()
        frontier.push(make(fresh))
        waiting = sorted(waiting + fresh)
        many, nearest = int(random.integers(0, 6)), bool(k % 2)
        expected = (waiting[::-1] if nearest else waiting)[:many]
        taken = frontier.pop(many, nearest=nearest)
        assert same(taken, expected)
        waiting = [b for b in waiting if b not in expected]
        if k % 5 == 0 and waiting:  # some are closed by others
            gone = set(random.choice(waiting, 1 + len(waiting) // 4, replace=False).tolist())
            mask = torch.tensor([b in gone for b in frontier.store.proved.tolist()]) & frontier.alive
            frontier.remove(mask if k % 2 else mask.nonzero(as_tuple=True)[0])
            waiting = [b for b in waiting if b not in gone]
        assert len(frontier) == len(waiting) and frontier.lowest == min(waiting, default=torch.inf)
        assert frontier.bytes == len(waiting) * frontier.store.bytes_each
        assert same(frontier.all(), waiting)
    assert len(frontier.alive) < 4 * max(len(waiting), 20)


@both
def test_what_waits_is_not_copied_while_there_is_room(make: Make) -> None:
    frontier = Frontier(make([0.5]))
    frontier.push(make([k / 100 for k in range(1, 65)]))
    before = [t.data_ptr() for t in frontier.store.tensors()]
    for _ in range(20):
        frontier.push(frontier.pop(10))
    assert [t.data_ptr() for t in frontier.store.tensors()] == before and len(frontier) == 64
    frontier.push(make([0.9]))
    assert len(frontier.alive) == 96  # half as much again, so that growing costs little for each


@both
def test_what_is_lent_is_taken_last(make: Make) -> None:
    frontier = Frontier(make([0.5]))
    frontier.push(make([0.3, 0.1, 0.2]))
    frontier.lent = 1
    assert same(frontier.pop(1), [0.2]) and same(frontier.pop(5, nearest=True), [0.3])
    assert frontier.lowest == 0.1 and same(frontier.pop(5), [0.1]) and not len(frontier)


def test_split_lists_are_no_wider_than_they_must_be() -> None:
    short, long = 0.001, 0.006  # one split, and six
    frontier = Frontier(subproblems([short]))
    frontier.push(subproblems([short]))
    assert frontier.store.slot.shape[1] == 1
    frontier.push(subproblems([long]))
    width = frontier.store.slot.shape[1]
    assert width == 6 + 8  # with room, for deeper ones follow
    frontier.push(subproblems([0.005, 0.012]))
    assert frontier.store.slot.shape[1] == width and frontier.store.beta.shape[1:] == (2, width)
    assert frontier.pop(1).slot.shape[1] == 1 and frontier.pop(3).slot.shape[1] == 6
    assert frontier.pop(1).slot.shape[1] == 0
    joined = subproblems([short]).join(subproblems([long]), subproblems([0.003]))
    assert joined.slot.shape[1] == 6 and same(joined, [short, long, 0.003])


@both
@pytest.mark.parametrize("room", [True, False])
def test_where_memory_ends_in_push_nothing_has_changed(make: Make, room: bool) -> None:
    old, new = [0.101, 0.302, 0.203], [0.405, 0.506]
    for place in count():
        frontier, batch = Frontier(make(old)), make(new)
        frontier.push(make(old if room else old[:2]))
        frontier.push(make([0.9]))
        if room:
            assert same(frontier.pop(1, nearest=True), [0.9])
        before = sorted(frontier.all().proved.tolist())
        memory = ShortMemory(place)
        with suppress(MemoryError), memory:
            frontier.push(batch)
        if not memory.hit:
            break
        assert same(frontier.all(), before)
        frontier.push(batch)
        assert same(frontier.all(), before + new)
    assert place > 10


@both
def test_where_memory_ends_in_pop_nothing_is_lost(make: Make) -> None:
    bounds = [0.101, 0.302, 0.203]
    for place in count():
        frontier = Frontier(make(bounds))
        frontier.push(make(bounds))
        memory = ShortMemory(place)
        with suppress(MemoryError), memory:
            frontier.pop(2)
        if not memory.hit:
            break
        assert same(frontier.all(), bounds)
    assert place > 5 and same(frontier.all(), [0.302])


@both
def test_where_memory_ends_between_taking_out_and_putting_in_everything_is_open(make: Make) -> None:
    """What was taken out of a tree, or else all of what came of it, is open; so it is in the end, after another attempt."""
    context = context_of(
        Problem(relu_network([1, 1], 0), (Disjunct(Box([0.0], [1.0]), Rows.on_outputs([[1.0]], [0.0], 1), Rows.none(1, 1)),))
    )
    group, _ = root_of(context.problem)
    for place in count():
        tree = Tree.of(context, group, make([0.9]))
        tree.push(make([0.101, 0.302, 0.203]))
        children, memory = make([0.405, 0.506, 0.607]), ShortMemory(place)
        with suppress(MemoryError), memory:
            tree.pop(2)
            tree.push(children)
        if not memory.hit:
            break
        still = set(tree.left.proved.tolist())
        assert still >= {0.302} and (still >= {0.101, 0.203} or still >= {0.405, 0.506, 0.607})
        tree.reopen()
        assert set(tree.frontier.all().proved.tolist()) == still and not len(tree.in_progress)
    assert place > 20 and same(tree.left, [0.302, 0.405, 0.506, 0.607])
