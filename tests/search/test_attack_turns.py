from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_nets import disjunct_of, relu_network
from trees import boxes_of, context_of

from milpverify.config import Options, SearchOptions
from milpverify.graph import evaluate
from milpverify.search.attack_turns import AttackTurns, AttackTurnTuning
from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.context import SearchContext
from milpverify.search.effort import Effort, EffortTuning
from milpverify.search.ledger import Part
from milpverify.spec import Box, Problem
from milpverify.tuning import Tuning


def turns_of(context: SearchContext, clock: list[float]) -> AttackTurns:
    problem, graph, options = context.problem, context.graph, context.options
    return AttackTurns(problem, graph, options, context.deadline, context.reporter, lambda: clock[0], context.points)


def hidden(deterministic: bool, *tuning: Tuning) -> tuple[SearchContext, float]:
    """A problem whose counterexamples are rare, with nothing known of where they are."""
    graph, box = relu_network([4, 30, 30, 3], 7), Box(-np.ones(4), np.ones(4))
    x = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    y = evaluate(graph, x).numpy()
    least = float(np.maximum(y[:, 0] - y[:, 1], y[:, 1] - y[:, 2]).min())
    problem = Problem(graph, (disjunct_of(box, least + 0.02),))
    context = context_of(problem, 60.0, SearchOptions(deterministic=deterministic, tuning=tuning))
    return replace(context, points={}), least


def test_attacks_have_their_share_of_the_time() -> None:
    context, _ = hidden(deterministic=False)
    context.reporter.floor, clock = -1.0, [0.0]
    turns, tuning = turns_of(context, clock), AttackTurnTuning()
    first, large = tuning.seconds / tuning.share, tuning.seconds / tuning.large_share
    assert not turns.due(-1.0, 1e9)
    clock[0] = max(large, tuning.patience) + 0.1
    assert turns.due(-1.0, 0.0) and not turns.due(-0.5, 0.0)  # half of the gap is closed
    clock[0] = first + 0.1
    assert turns.due(-0.5, 0.0)
    turns.spent = tuning.seconds
    assert not turns.due(-0.5, 0.0) and turns.due(-0.9, 0.0)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_turn_finds_what_the_search_has_not_come_to(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With bounds alone, and no points tried, the tree does not find it as long as it is small."""
    context, _ = hidden(deterministic, AttackTurnTuning(seconds=0.2 if not deterministic else 1e-6, share=1e9))
    results = []
    for _ in range(2):
        attacked = replace(context, attacks=turns_of(context, [0.0]))
        if not deterministic:
            attacked.attacks.began = -1.0  # type: ignore[union-attr]
        space, tree = boxes_of(attacked)
        monkeypatch.setattr(space, "try_points", lambda *_: None)
        branch_and_bound(tree, space, Budget(context.deadline, 1000))
        assert tree.falsified and attacked.attacks is not None and attacked.attacks.turns == 1
        assert context.ledger.seconds[Part.ATTACK] > 0
        example = tree.incumbents.counterexample
        assert example is not None
        results.append(example.x.tolist())
    assert results[0] == results[1]


def test_nothing_attacks_where_attacks_are_off() -> None:
    from milpverify.search import strategy

    context, _ = hidden(deterministic=False)
    assert strategy._attacked(replace(context, options=Options(attack=False))).attacks is None
    assert strategy._attacked(context).attacks is not None


def test_trials_begin_the_earlier_the_dearer_subproblems_are() -> None:
    small, large = relu_network([4, 10, 2], 0), relu_network([4, 2000, 2000, 2000, 2], 0)
    for of in (Effort.of_boxes, lambda graph: Effort.of_splits(graph, 18)):
        cheap, dear = of(small), of(large)
        assert cheap.subproblems(0.6) > 20 * dear.subproblems(0.6) >= 20
    tuning = EffortTuning()
    assert Effort.of_boxes(small).each == tuning.box and Effort.of_splits(small, 18).each == tuning.split
    assert Effort.of_boxes(large, 2.0).subproblems(0.6) == 1.0
