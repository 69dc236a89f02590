"""No-goods are true, belong to their disjunct, and prune and force what they should."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from random_nets import relu_network
from short_memory import ShortMemory
from trees import context_of, grown, neurons_of

from milpverify.config import SearchOptions
from milpverify.graph import Graph, evaluate_all
from milpverify.search.neuron_split.branching import children
from milpverify.search.neuron_split.conflicts import Conflicts
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.spec import Box, Disjunct, Problem, Rows

ON = SearchOptions(output_constraints=False)


def problem_of(seed: int, shifts: tuple[float, ...]) -> tuple[Graph, list[Disjunct]]:
    graph, box = relu_network([5, 20, 20, 2], seed), Box(-np.ones(5), np.ones(5))
    return graph, [Disjunct(box, Rows.on_outputs([[1.0, -1.0]], [by], 5), Rows.none(5, 2)) for by in shifts]


def samples(graph: Graph, seed: int) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    x = (2.6 * torch.rand(40000, graph.nx, generator=g, dtype=torch.float64) - 1.3).clamp(-1, 1)
    return x, evaluate_all(graph, x)


def space_of(graph: Graph, disjuncts: list[Disjunct]) -> NeuronSpace:
    return neurons_of(context_of(Problem(graph, tuple(disjuncts)), options=ON))[0]


@pytest.mark.parametrize("clipping", [False, True])
def test_learned_no_goods_hold_at_every_point_that_satisfies_their_decisions(clipping: bool) -> None:
    # With clipping leaves close that are nearer to a violation, and most no-goods have no sampled point.
    away = (0.02, 0.2) if clipping else (0.05, 0.2)
    checked = [checked_points(seed, clipping, away) for seed in range(2)]
    assert sum(checked) > 0 if clipping else min(checked) > 200


def checked_points(seed: int, clipping: bool, away: tuple[float, float]) -> int:
    """At how many points that satisfy their decisions the no-goods of a search hold."""
    graph, (plain,) = problem_of(seed, (0.0,))
    _, values = samples(graph, seed)
    y = values[graph.output]
    least = float((y[:, 0] - y[:, 1]).amin())
    graph, disjuncts = problem_of(seed, (least - away[0], least - away[1]))
    options = replace(ON, clipping=clipping, deterministic=True)
    space, tree = neurons_of(context_of(Problem(graph, tuple(disjuncts)), options=options))
    outcome, found = grown(tree, space, 1500), space.conflicts
    assert found is not None and found.learned == len(found) > 0
    assert plain.box.size == 5
    pre = torch.cat([values[z][:, space.bounder.relaxations.entries[z]] for z in space.bounder.slots], 1)
    checked = 0
    for signs, (_, disjunct), bound in zip(found.signs, found.scope.tolist(), found.bounds.tolist(), strict=True):
        inside = ((signs == 0) | (pre * signs >= 0)).all(1)
        margin = (y[:, 0] - y[:, 1])[inside] - (least - away[disjunct])
        checked += len(margin)
        assert bound > 0
        assert bool((margin >= bound - 1e-12).all())
    assert outcome.lower_bound <= max(away)
    return checked


def with_splits(space: NeuronSpace, decisions: list[tuple[int, int]], disjunct: int = 0) -> Subproblems:
    subs = space.bounder.first().take(torch.tensor([disjunct]))
    for column, side in decisions:
        subs = children(space.bounder, subs, torch.tensor([column])).take(torch.tensor([side]))
    return subs


def test_a_no_good_closes_what_holds_it_and_forces_what_is_left_of_it() -> None:
    graph, disjuncts = problem_of(0, (0.0, 0.1))
    space = space_of(graph, disjuncts)
    store = Conflicts(space.bounder)
    store.signs = torch.zeros(1, space.bounder.relaxations.count)
    store.signs[0, 3], store.signs[0, 7], store.signs[0, 9] = 1.0, -1.0, 1.0
    store.scope, store.bounds = torch.tensor([[0, 0]]), torch.tensor([0.25], dtype=torch.float64)
    whole = with_splits(space, [(7, 0), (2, 1), (3, 1), (9, 1)])
    assert store.refute(whole).tolist() == [0.25] and store.subsumed(whole).tolist() == [True]
    for other in (
        with_splits(space, [(7, 0), (3, 1), (9, 1)], disjunct=1),
        with_splits(space, [(7, 1), (3, 1), (9, 1)]),
        with_splits(space, [(7, 0), (3, 1), (9, 0)]),
        with_splits(space, [(3, 1)]),
    ):
        assert store.refute(other).tolist() == [-np.inf]
        assert store.implied(other)[0].tolist() == [-1] and store.implied(other)[2] == np.inf
    column, side, bound = store.implied(with_splits(space, [(9, 1), (2, 0), (3, 1)]))
    assert column.tolist() == [7] and side.tolist() == [1.0] and bound == 0.25
    column, side, _ = store.implied(with_splits(space, [(7, 0), (3, 1)]))
    assert column.tolist() == [9] and side.tolist() == [-1.0]


def test_where_memory_ends_conflicts_are_learned_all_or_not_at_all() -> None:
    graph, disjuncts = problem_of(0, (0.0,))
    space = space_of(graph, disjuncts)
    proved = replace(with_splits(space, [(3, 1), (7, 0)]), bound=torch.tensor([0.25], dtype=torch.float64))
    other = replace(with_splits(space, [(2, 1), (9, 0)]), bound=torch.tensor([0.5], dtype=torch.float64))
    for place in count():
        store, memory = Conflicts(space.bounder), ShortMemory(place)
        store.keep(proved)
        with suppress(MemoryError), memory:
            store.keep(other)
        lengths = {len(store.signs), len(store.scope), len(store.bounds)}
        assert lengths == ({1} if memory.hit else {2})
        assert store.refute(proved).tolist() == [0.25]
        if not memory.hit:
            break
    assert place > 10 and store.refute(other).tolist() == [0.5]


def test_contradicting_decisions_close_a_subproblem() -> None:
    graph, disjuncts = problem_of(0, (0.0,))
    space = space_of(graph, disjuncts)
    both = with_splits(space, [(3, 1)]).padded(2)
    twin = replace(both, slot=both.slot.clone(), index=both.index.clone(), side=both.side.clone(), point=both.point.clone())
    twin.slot[:, 1], twin.index[:, 1], twin.side[:, 1], twin.point[:, 1] = twin.slot[:, 0], twin.index[:, 0], -1.0, -0.01
    with torch.no_grad():
        assert float(space.bounder.bound(twin, 0)[0].bound) == np.inf
        assert np.isfinite(float(space.bounder.bound(both, 0)[0].bound))
