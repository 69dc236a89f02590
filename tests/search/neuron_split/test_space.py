"""The search over neurons decides random piecewise-linear problems as enumeration does, and its bounds hold whenever it stops."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from random_nets import CONTINUOUS, enumerated_minimum, random_problem, relu_network, shifted
from short_memory import ShortMemory
from trees import PLAIN, context_of, grown, neurons_of

from milpverify.config import Deadline, SearchOptions
from milpverify.graph import Graph, evaluate
from milpverify.propagation.optimised.beta import Domain, Relaxations
from milpverify.result import Reason
from milpverify.search.frontier import Frontier
from milpverify.search.neuron_split import space as neuron_split
from milpverify.search.neuron_split.branching import children
from milpverify.search.neuron_split.conditional import conditional_root
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.search.solver.leaves import Leaves
from milpverify.search.tree import Tree
from milpverify.spec import Box, Disjunct, Problem, Rows

ON = SearchOptions()


def searching(
    graph: Graph, disjunct: Disjunct, leaves: Leaves | None = None, deadline: Deadline | float = 60.0, options: SearchOptions = PLAIN
) -> tuple[NeuronSpace, Tree[Subproblems]]:
    if leaves is not None:
        leaves.problem = Problem(graph, (disjunct,))
    return neurons_of(context_of(Problem(graph, (disjunct,)), deadline, options, leaves=leaves))


@pytest.mark.parametrize("options", [PLAIN, ON], ids=["plain", "on"])
@pytest.mark.parametrize("seed", range(40))
def test_the_search_decides_what_enumeration_decides(seed: int, options: SearchOptions, leaves: Leaves) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    least = enumerated_minimum(graph, disjunct)
    if not np.isfinite(least):
        pytest.skip("the input set is empty")
    size = 1e-3 * max(1.0, abs(least))
    for by, safe in ((least - size, True), (least + size, False)):
        near = shifted(disjunct, by)
        space, tree = searching(graph, near, leaves, options=options)
        if options.output_constraints:
            space.patience = seed % 3  # at the root, before or after the first splits
        outcome = grown(tree, space)
        assert outcome.lower_bound <= least - by + 1e-6 * max(1.0, abs(least))
        if safe:
            assert outcome.closed, (outcome.note, outcome.detail)
        else:
            assert not outcome.closed
            assert outcome.counterexample is not None or outcome.disagreement


def test_leaves_closer_to_a_tie_than_float64_can_tell_are_decided_in_rationals(leaves: Leaves) -> None:
    solved = []
    for seed in range(6):
        graph, disjunct = random_problem(seed, CONTINUOUS)
        least = enumerated_minimum(graph, disjunct)
        if not np.isfinite(least):
            continue
        for by in (least - 1e-15 * max(1.0, abs(least)), least + 1e-15 * max(1.0, abs(least))):
            near = shifted(disjunct, by)
            space, tree = searching(graph, near, leaves)
            outcome = grown(tree, space)
            solved.append(outcome.closed)
            if outcome.closed:
                assert outcome.lower_bound >= 0
            elif outcome.counterexample is None and not outcome.disagreement:
                bounds = tree.unsplittable.bound.tolist()
                assert bounds and not len(tree.left)
                assert all(-1e-9 * max(1.0, abs(least)) <= bound <= 0 for bound in bounds)
    assert any(solved) and not all(solved)


def hard(seed: int = 3, by: float = 0.0) -> tuple[Graph, Disjunct]:
    """A conjunction over a network that takes thousands of subproblems."""
    graph, box = relu_network([16, 40, 40, 3], seed), Box(-np.ones(16), np.ones(16))
    return graph, Disjunct(box, Rows.on_outputs([[1, -1, 0], [0, 1, -1]], [by, by], 16), Rows.none(16, 3))


def test_the_deadline_is_kept_and_the_bound_holds() -> None:
    graph, disjunct = hard()
    points = torch.rand(2000, 16, dtype=torch.float64) * 2 - 1
    least = float(disjunct.unsafe.residual(points[0].numpy(), evaluate(graph, points[:1])[0].numpy()).max())
    deadline = Deadline(1.5)
    space, tree = searching(graph, shifted(disjunct, -20.0), deadline=deadline)
    outcome = grown(tree, space)
    assert deadline.elapsed() < 10
    assert outcome.lower_bound <= least + 20.0
    space, tree = searching(graph, shifted(disjunct, least - 1e-3), deadline=0.0)
    again = grown(tree, space)
    assert again.lower_bound == -np.inf and not again.closed


def test_what_a_search_begins_with_is_bounded_whatever_the_limit() -> None:
    graph, disjunct = hard()
    space, tree = searching(graph, shifted(disjunct, -10.0))
    first, again = grown(tree, space, 0), grown(tree, space, 0)
    assert tree.counts.bounded == 1 and tree.unbounded is None and len(tree.frontier) == 1
    assert -np.inf < first.lower_bound == again.lower_bound


def test_short_memory_halves_the_batch_and_at_worst_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, disjunct = random_problem(4, CONTINUOUS)
    near = shifted(disjunct, enumerated_minimum(graph, disjunct) - 0.05)
    plain, sizes = Relaxations.certify, []

    def short(self: Relaxations, domain: Domain, *rest: Any) -> object:
        sizes.append(len(domain))
        if len(domain) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return plain(self, domain, *rest)

    monkeypatch.setattr(Relaxations, "certify", short)
    with Leaves(Problem(graph, (near,)), Deadline(60)) as leaves:
        space, tree = searching(graph, near, leaves)
        outcome = grown(tree, space)
    assert outcome.closed and max(sizes) > 2

    def never(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr(Relaxations, "certify", never)
    space, tree = searching(graph, near)
    outcome = grown(tree, space)
    assert not outcome.closed and outcome.reason is Reason.MEMORY and outcome.lower_bound == -np.inf
    monkeypatch.setattr(Relaxations, "certify", plain)
    space, tree = searching(graph, near)
    grown(tree, space, 1)
    monkeypatch.setattr(Relaxations, "certify", never)
    known = tree.frontier.lowest
    outcome = grown(tree, space)
    assert not outcome.closed and outcome.reason is Reason.MEMORY and outcome.lower_bound == known


@pytest.mark.parametrize(
    "options", [ON, replace(ON, clipping=False), replace(ON, no_goods=False)], ids=["on", "no clipping", "no no-goods"]
)
def test_where_memory_ends_in_beginning_again_everything_is_open(options: SearchOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any time all that was open is open with the bounder that it had, or the roots of the new bounder stand for it."""
    graph, box = relu_network([4, 12, 12, 2], 1), Box(-np.ones(4), np.ones(4))
    y = evaluate(graph, 2 * torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)
    least = float((y[:, 0] - y[:, 1]).min())
    unsafe = (Rows.on_outputs([[1.0, -1.0]], [least - by], 4) for by in (0.02, 0.05))
    problem = Problem(graph, tuple(Disjunct(box, rows, Rows.none(4, 2)) for rows in unsafe))
    space, tree = neurons_of(context_of(problem, options=options))
    known = grown(tree, space, 8).lower_bound
    old, still, forever = space.bounder, tree.left.bound.tolist(), Deadline()
    assert len(still) > 1

    def renewed(place: int) -> bool:
        """Whether memory did not end at a place, counted from 0."""
        memory, space.patience = ShortMemory(place), 0
        with torch.no_grad(), suppress(MemoryError), memory:
            assert space.renew(tree, forever)
        helpers = (space.clipper.bounder, space.brancher.bounder, *([] if space.conflicts is None else [space.conflicts.bounder]))
        assert all(bounder is space.bounder for bounder in helpers) and (space.conflicts is not None) is options.no_goods
        if space.bounder is old:
            assert memory.hit and tree.left.bound.tolist() == still and tree.unbounded is None
        else:
            assert tree.conditional and tree.unbounded is not None and set(tree.left.disjunct.tolist()) == {0, 1}
        assert not tree.closed and tree.lower_bound <= 0.02
        return not memory.hit

    assert not any(renewed(place) for place in range(0, 2000, 181))  # where the new root is bounded
    with torch.no_grad():
        root = conditional_root(space.plain, [0, 1], forever, by_counts=True)
    assert root is not None and root.disjuncts == [0, 1]
    monkeypatch.setattr(neuron_split, "conditional_root", lambda *_: root)
    places = next(place for place in count() if renewed(place))
    assert places > 30 and space.bounder is not old and tree.lower_bound >= min(known, 0.0)
    assert grown(tree, space, 20_000).lower_bound <= 0.02


def test_the_frontier_gives_back_what_it_took() -> None:
    graph, disjunct = hard()
    space, tree = searching(graph, disjunct)
    with torch.no_grad():
        root, _ = space.bound(tree, space.bounder.first())
        both = children(space.bounder, root, root.best[:, 0])
        four = children(space.bounder, both, root.best[:1, 1].expand(2))
    frontier = Frontier(root)
    frontier.push(both)
    frontier.push(four)
    assert len(frontier) == 6
    literals, store = both.literals(0), frontier.store
    assert [int((store.under(*of) & frontier.alive).sum()) for of in ((0, literals), (0, ()), (1, ()))] == [3, 6, 0]
    frontier.remove(store.under(0, literals))
    taken = frontier.pop(10)
    assert sorted(taken.depth.tolist()) == [1, 2, 2] and len(frontier) == 0
    assert all(literals[0] not in taken.literals(n) for n in range(3))


def test_the_optimiser_raises_bounds_and_subproblems_without_it_keep_theirs() -> None:
    graph, disjunct = hard()
    space, _ = searching(graph, disjunct)
    bounder = space.bounder
    with torch.no_grad():
        plain, _, _ = bounder.bound(bounder.first(), 0)
        root, domain, found = bounder.bound(bounder.first(), 30)
        assert float(root.bound) > float(plain.bound) + 0.01 * abs(float(plain.bound))
        best = space.brancher.rank(root, domain, found)
        both = children(bounder, root, best[:, 0])
        bare, optimised = (bounder.bound(both, iterations)[0].bound for iterations in (0, 20))
    assert bool((optimised >= bare).all()) and bool((optimised > bare).any())
    assert bool((optimised >= root.bound).all())
    assert float((bounder.estimate(root) - root.bound).abs()) < 1e-3 * abs(float(root.bound))  # what rounding charges


def test_the_split_that_helps_most_is_found() -> None:
    graph, disjunct = hard()
    space, _ = searching(graph, disjunct)
    bounder = space.bounder
    bounder.tuning = replace(bounder.tuning, candidates=bounder.relaxations.count)
    with torch.no_grad():
        root, domain, found = bounder.bound(bounder.first(), 30)
        every = space.brancher.rank(root, domain, found)[0]
        every = every[every >= 0]
        both = children(bounder, root.take(torch.zeros(len(every), dtype=torch.long)), every)
        worst = bounder.estimate(both).reshape(2, -1).amin(0)
        bounder.tuning = replace(bounder.tuning, candidates=8)
        few = space.brancher.rank(root, domain, found)[0]
    assert len(every) > 40
    assert float(worst.amax()) > float(root.bound)
    assert int(every[worst.argmax()]) in few.tolist()
