"""The frontier of the bisection, and the choice of the batch size."""

from __future__ import annotations

import pytest
import torch
from random_nets import relu_network

from milpverify.functions.catalogue import catalogue
from milpverify.propagation.crown import crown
from milpverify.propagation.relevance import refinable
from milpverify.propagation.screening import inexact
from milpverify.search.batch_size import BatchSize
from milpverify.search.input_split.boxes import Boxes, BoxFrontier, Inheritance


def made(margins: list[float]) -> Boxes:
    """Boxes that are told apart by their margins."""
    n = len(margins)
    at = torch.tensor(margins, dtype=torch.float64).unsqueeze(1)
    whole = torch.zeros(n, dtype=torch.int32)
    return Boxes(at - 1, at + 1, at, torch.ones(n, 1), whole, torch.zeros(n, dtype=torch.bool), whole.long(), torch.zeros(n, 2, 3))


def test_a_batch_that_takes_long_is_halved_and_stays_so() -> None:
    batch = BatchSize(size=256, smallest=16)
    for _ in range(20):
        batch.took(batch.size, 0.05 * batch.size)
    assert 16 <= batch.size <= 2.0 / 0.05
    fixed = BatchSize(size=256, fixed=256)
    fixed.took(256, 100.0)
    assert fixed.size == 256


def test_the_frontier_gives_back_what_it_took_in_the_order_asked_for() -> None:
    frontier = BoxFrontier(made([0.0]))
    assert len(frontier) == 0 and frontier.lowest == torch.inf
    waiting: set[float] = set()
    random = torch.Generator().manual_seed(0)
    for k in range(60):
        fresh = torch.randn(k % 7, generator=random, dtype=torch.float64).tolist()
        frontier.push(made(fresh))
        waiting |= set(fresh)
        taken = frontier.pop(k % 5, nearest=k % 2 == 1)
        expected = sorted(waiting, reverse=k % 2 == 1)[: k % 5]
        assert sorted(taken.margins.flatten().tolist()) == sorted(expected)
        assert (taken.lower == taken.margins - 1).all()
        waiting -= set(expected)
        assert len(frontier) == len(waiting) and frontier.lowest == min(waiting, default=torch.inf)
        assert frontier.bytes == len(waiting) * frontier.bytes_each
    assert sorted(frontier.all().margins.flatten().tolist()) == sorted(waiting)
    assert len(frontier.alive) < 4 * len(waiting)


def test_halves_cover_their_box_and_overlap_in_a_face_only() -> None:
    lower, upper = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
    upper[3] = lower[3]
    upper[5] = torch.nextafter(lower[5], torch.full((3,), torch.inf, dtype=torch.float64))
    boxes = made([0.0] * 20)
    boxes = Boxes(lower, upper, boxes.margins, torch.rand(20, 3), boxes.unstable, boxes.tried, boxes.age, boxes.ends)
    divisible = boxes.divisible()
    assert (~divisible).nonzero().flatten().tolist() == [3, 5]
    parents = boxes.take(divisible)
    halves = parents.halves()
    n = len(parents)
    differs = halves.upper[:n] != parents.upper
    assert (differs.sum(1) == 1).all() and (halves.upper[:n] == halves.lower[n:])[differs].all()
    assert (halves.lower[:n] == parents.lower).all() and (halves.upper[n:] == parents.upper).all()
    assert ((halves.lower[n:] != parents.lower) == differs).all()
    assert (halves.lower <= halves.upper).all()


def test_inherited_bounds_are_outside_those_of_the_parent_and_not_by_much() -> None:
    graph = relu_network([3, 20, 20, 20, 2], 0)
    lower, upper = -torch.ones(9, 3, dtype=torch.float64), torch.ones(9, 3, dtype=torch.float64)
    lower[1:] = 0.3 * torch.rand(8, 3, dtype=torch.float64)
    relu = catalogue()["relu"].trial()
    with torch.no_grad():
        root, _ = crown(graph, lower[:1], upper[:1])
        state, _ = crown(graph, lower, upper)
        inheritance = Inheritance(graph, root)
        known = inheritance.unpack(inheritance.pack(state, torch.arange(9)))
    assert set(known) == {node.id for node in refinable(graph)} and len(known) == 2
    for z, bounds in known.items():
        here, whole = state[z].bounds, root[z].bounds
        free = inexact([relu], whole.lower, whole.upper)[0]
        assert (bounds.lower <= here.lower)[:, free].all() and (bounds.upper >= here.upper)[:, free].all()
        assert torch.allclose(bounds.lower[:, free], here.lower[:, free], rtol=1e-6, atol=1e-30)
        assert (bounds.lower[:, ~free] == whole.lower[:, ~free]).all() and (bounds.upper[:, ~free] == whole.upper[:, ~free]).all()


@pytest.mark.parametrize("best", [16, 64, 512, 4096])
def test_the_batch_settles_where_the_rate_is_best(best: int) -> None:
    def seconds(size: int) -> float:  # up to the best size a batch costs the same however many are in it
        return max(size, best) / 10000 * (1.2 if size > best else 1.0)

    batch = BatchSize(largest=4096)
    for k in range(400):
        batch.took(batch.size, seconds(batch.size) * (1.0 if k % 3 else 3.0))
    assert batch.settled or batch.size in (best // 2, best, 2 * best)
    while not batch.settled:
        batch.took(batch.size, seconds(batch.size))
    assert batch.size == best


def test_batches_that_are_not_full_say_nothing() -> None:
    batch = BatchSize()
    for _ in range(50):
        batch.took(5, 1.0)
    assert batch.size == 32 and not batch.rates


def test_a_fixed_schedule_heeds_counts_alone() -> None:
    sizes = []
    for pace in (1e-6, 10.0):
        batch = BatchSize(fixed=256)
        seen = []
        for k in range(8):
            seen.append(batch.size)
            batch.took(batch.size, pace * (k + 1) ** 3)
        sizes.append(seen)
    assert sizes[0] == sizes[1] == [32, 64, 128, 256, 256, 256, 256, 256]


def test_short_memory_caps_the_batch() -> None:
    batch = BatchSize()
    batch.at_most(8)
    for _ in range(100):
        batch.took(batch.size, 1.0)
        assert batch.size <= 8
