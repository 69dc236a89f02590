"""The choice between both spaces: whoever goes on, the answer is the one of enumeration, and what either closed stays closed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from product_networks import Grower
from random_nets import CONTINUOUS, enumerated_minimum, random_problem, relu_network, shifted
from trees import boxes_of, context_of, neurons_of, root_of

from milpverify import Options, SearchOptions, Verdict, verify
from milpverify.config import Deadline
from milpverify.graph import evaluate
from milpverify.search import choose_space, strategy
from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.choose_space import Choice, SpaceTuning, SplitSpace
from milpverify.search.gap import doublings, gap_closed
from milpverify.search.input_split.boxes import Boxes
from milpverify.search.input_split.space import BoxSpace
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.search.outcome import SearchOutcome
from milpverify.search.solver.leaves import Leaves
from milpverify.search.tree import Tree
from milpverify.spec import Box, Disjunct, Problem, Rows

TRIED = SpaceTuning(few=-1, boxes=3, splits=2)
"""Everything is tried."""
ONCE = replace(TRIED, rounds=1)
BESIDE = replace(TRIED, head=0.02, far=math.inf, near=-math.inf, least=1)
"""Neurons are tried early beside bisection, whatever the first boxes tell."""


def counted(tuning: SpaceTuning = TRIED) -> SearchOptions:
    return SearchOptions(deterministic=True, tuning=(tuning,))


def decided(problem: Problem, leaves: Leaves, tuning: SpaceTuning = TRIED) -> SearchOutcome:
    leaves.problem = problem
    with torch.no_grad():
        return strategy.search_group(context_of(problem, options=counted(tuning), leaves=leaves), *root_of(problem))


def several(seed: int) -> tuple[Problem, float]:
    """Three disjuncts over one box, two of them easy, and the unit in which they differ from 0."""
    graph, first = random_problem(seed, CONTINUOUS)
    first = replace(first, domain=Rows.none(graph.nx, graph.ny))
    rng = np.random.default_rng(seed)
    least = enumerated_minimum(graph, first)
    disjuncts, size = [shifted(first, least)], 1e-2 * max(1.0, abs(least))
    for share in (3.0, 30.0):
        rows = Rows(np.zeros((1, graph.nx)), rng.normal(0, 1, (1, graph.ny)), np.zeros(1), np.array([False]))
        other = Disjunct(first.box, rows, first.domain)
        disjuncts.append(shifted(other, enumerated_minimum(graph, other) - share * size))
    return Problem(graph, tuple(disjuncts)), size


@pytest.mark.parametrize("seed", range(20))
def test_whoever_goes_on_the_answer_is_the_one_of_enumeration(seed: int, leaves: Leaves) -> None:
    problem, size = several(seed)
    for by, safe in ((-size, True), (size, False)):
        near = replace(problem, disjuncts=(shifted(problem.disjuncts[0], by), *problem.disjuncts[1:]))
        found = decided(near, leaves)
        assert found.lower_bound <= -by + 1e-4 * size
        assert found.closed == safe, found
        assert (found.counterexample is not None) == (not safe)


@pytest.mark.parametrize(("boxes", "splits"), [(64, 16), (8, 1), (512, 1)])
@pytest.mark.parametrize(("nx", "width", "share", "winner"), [(5, 60, 0.2, SplitSpace.INPUTS), (24, 16, 0.4, SplitSpace.NEURONS)])
def test_who_goes_on_depends_on_the_problem(nx: int, width: int, share: float, winner: SplitSpace, boxes: int, splits: int) -> None:
    """And little on how long a first round is, or on what either has closed in it: cheap boxes gain more at first."""
    choice, _, _, _ = tried(part_way(nx, width, share), replace(TRIED, boxes=boxes, splits=splits))
    assert choice.space is winner
    assert choice.rounds or boxes == 512  # many boxes are closed in the first round
    assert not choice.rounds or (choice.rounds[-1][0] < choice.rounds[-1][1]) == (winner is SplitSpace.INPUTS)


def test_doublings_follow_the_rate_seen_so_far() -> None:
    assert doublings(-8.0, -4.0, 15) == 4.0  # four doublings closed half
    assert doublings(-8.0, -6.0, 15) == 12.0
    assert doublings(-8.0, 0.5, 15) == 0.0
    assert doublings(-8.0, -8.0, 15) == math.inf
    assert (gap_closed(-math.inf, -1.0), gap_closed(-math.inf, -math.inf), gap_closed(-2.0, -1.5)) == (1.0, 0.0, 0.25)


def part_way(nx: int, width: int = 16, share: float = 0.5, seed: int = 3) -> Problem:
    """A network whose margin is to be proved above a share of its first bound."""
    graph = relu_network([nx, width, width, 2], seed)
    disjunct = Disjunct(Box(np.full(nx, -0.6), np.full(nx, 0.6)), Rows.on_outputs([[1.0, -1.0]], [0.0], nx), Rows.none(nx, 2))
    problem = Problem(graph, (disjunct,))
    return Problem(graph, (shifted(disjunct, share * float(root_of(problem)[1].margins.amin())),))


Both = tuple[BoxSpace, Tree[Boxes], NeuronSpace, Tree[Subproblems]]


def both_of(problem: Problem, delta: float | None = None, tuning: SpaceTuning = TRIED) -> Both:
    """Both spaces with their trees, over one context that goes by counts."""
    context = context_of(problem, options=counted(tuning))
    if delta is not None:
        context = replace(context, options=replace(context.options, delta=delta))
    return *boxes_of(context, root_of(problem)[1]), *neurons_of(context)


def chosen(both: Both) -> Choice:
    with torch.no_grad():
        return choose_space.choose_space(*both, float(both[0].root.margins.amin()))


def tried(problem: Problem, tuning: SpaceTuning) -> tuple[Choice, Tree[Boxes], Tree[Subproblems], float]:
    """The choice, by counts, with both trees as it leaves them, and the bound that they began with."""
    both = both_of(problem, tuning=tuning)
    return chosen(both), both[1], both[3], float(both[0].root.margins.amin())


def graded(nx: int, width: int, seed: int) -> tuple[Problem, float]:
    """Four disjuncts, whose margins are to be proved above ever more of their first bounds, and an upper bound of the least margin."""
    graph, box = relu_network([nx, width, width, 5], seed), Box(np.full(nx, -0.6), np.full(nx, 0.6))
    rows = -np.diff(np.eye(5), axis=0)
    disjuncts = [Disjunct(box, Rows.on_outputs([row], [0.0], nx), Rows.none(nx, 5)) for row in rows]
    points = 1.2 * torch.rand(20_000, nx, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.6
    seen = (evaluate(graph, points).numpy() @ rows.T).min(0)
    gaps = (seen - root_of(Problem(graph, tuple(disjuncts)))[1].margins[0].numpy()) * [0.25, 0.6, 0.7, 0.9]
    return Problem(graph, tuple(shifted(d, float(s - gap)) for d, s, gap in zip(disjuncts, seen, gaps, strict=True))), float(gaps.min())


def places(boxes: Tree[Boxes], neurons: Tree[Subproblems]) -> tuple[set[int], set[int]]:
    """The disjuncts that are open in each."""
    margins = boxes.left.join(boxes.unsplittable).margins
    of_boxes = (~boxes.group.closed(margins)).any(0).nonzero().flatten().tolist()
    return set(of_boxes), set(neurons.left.join(neurons.unsplittable).disjunct.tolist())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("nx", "width", "boxes", "splits"), [(6, 24, 64, 1), (12, 16, 4, 8)])
def test_what_one_closed_is_closed_for_the_other(nx: int, width: int, boxes: int, splits: int, seed: int) -> None:
    """After a round either has open what both would have open alone, and its bound is below every margin still."""
    problem, margin = graded(nx, width, seed)
    context, (_, root) = context_of(problem, options=counted()), root_of(problem)
    box_space, box_tree = boxes_of(context, root)
    neuron_space, neuron_tree = neurons_of(context)
    with torch.no_grad():
        branch_and_bound(neuron_tree, neuron_space, Budget(context.deadline, 0))
        branch_and_bound(neuron_tree, neuron_space, Budget(context.deadline, neuron_tree.counts.bounded + splits))
        branch_and_bound(box_tree, box_space, Budget(context.deadline, box_tree.counts.bounded + boxes))
    alone = places(box_tree, neuron_tree)
    choice, *both, _ = tried(problem, replace(ONCE, boxes=boxes, splits=splits))
    of_boxes, of_neurons = places(*both)
    assert choice.rounds and of_boxes == of_neurons == set.intersection(*alone) < set.union(*alone)
    assert all(tree.proved <= margin and tree.lower_bound <= margin for tree in both)


@pytest.mark.parametrize("short", ["memory", "time"])
def test_a_box_that_was_never_bounded_is_no_box_that_is_closed(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the boxes' turn before it begins, nothing is closed for the neurons by that."""
    original = choose_space.branch_and_bound

    def ends(tree: Tree[Boxes], space: BoxSpace, budget: Budget, *sharing: object) -> None:
        original(tree, space, Budget(Deadline(0)) if isinstance(space, BoxSpace) else budget, *sharing)
        tree.out_of_memory = isinstance(space, BoxSpace) and short == "memory"

    monkeypatch.setattr(choose_space, "branch_and_bound", ends)
    choice, boxes, neurons, _ = tried(part_way(10), ONCE)
    assert boxes.unbounded is not None and choice.space is SplitSpace.NEURONS
    assert not neurons.closed and len(neurons.left)


@pytest.fixture
def nothing_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both only tell each other what they have."""
    monkeypatch.setattr(choose_space, "branch_and_bound", lambda *_: None)


@pytest.mark.parametrize("where", ["frontier", "unsplittable"])
def test_boxes_count_with_what_they_closed_where_neurons_close_the_rest(where: str, nothing_grows: None) -> None:
    both = _, boxes, _, neurons = both_of(several(0)[0], tuning=ONCE)
    count, roots, whole = boxes.group.count, neurons.unbounded, boxes.unbounded
    assert count == 3 and roots is not None and whole is not None
    one = replace(whole, margins=torch.tensor([[0.3, -0.2, -0.1]], dtype=torch.float64))
    boxes.push(one.none)
    if where == "frontier":
        boxes.push(one)
    else:
        boxes.unsplittable = one
    neurons.push(roots.take(roots.disjunct == 0))
    neurons.closed_bound = 0.5
    choice = chosen(both)
    assert boxes.closed and choice.space is SplitSpace.INPUTS
    assert boxes.lower_bound == 0.3 >= boxes.proved


def test_a_search_that_memory_ended_closes_nothing_for_boxes() -> None:
    """Whatever it has lost: of a violated problem the boxes find that it is violated."""
    problem, size = several(1)
    problem = replace(problem, disjuncts=(shifted(problem.disjuncts[0], size), *problem.disjuncts[1:]))
    both = _, boxes, neuron_space, neurons = both_of(problem)

    def lost(*_: object) -> None:
        if neurons.unbounded is not None:
            neurons.clear(neurons.unbounded)
        raise MemoryError

    neuron_space.bound = lost  # type: ignore[assignment]
    choice = chosen(both)
    assert neurons.out_of_memory and not len(neurons.left)
    assert choice.space is SplitSpace.INPUTS and not boxes.closed and boxes.lower_bound < 0
    with torch.no_grad():
        branch_and_bound(boxes, both[0], Budget(boxes.incumbents.context.deadline))
    assert boxes.falsified


def test_boxes_of_which_nothing_is_left_close_nothing_for_neurons(nothing_grows: None) -> None:
    both = _, boxes, _, neurons = both_of(several(0)[0], tuning=ONCE)
    boxes.push(both[0].whole.none)
    boxes.out_of_memory = True  # otherwise it had ended there
    choice = chosen(both)
    assert choice.space is SplitSpace.NEURONS and len(neurons.left) == 3 and neurons.closed_bound == math.inf


@pytest.mark.parametrize("by", SplitSpace)
def test_what_is_known_up_to_delta_ends_the_choice(by: SplitSpace) -> None:
    """And its point is known to both."""
    g = Grower(3, 0)
    graph = g.finished(g.layer(g.call("tanh", g.layer(g.nodes[0], 6)), 1))
    box = Box(-np.ones(3), np.ones(3))
    disjunct = Disjunct(box, Rows.on_outputs([[1.0]], [0.0], 3), Rows.none(3, 1))
    y = evaluate(graph, 2 * torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)
    both = _, boxes, neuron_space, neurons = both_of(Problem(graph, (shifted(disjunct, float(y.min()) - 1e-2),)), delta=100.0)
    if by is SplitSpace.INPUTS:
        neuron_space.try_points = lambda *_: None  # type: ignore[method-assign]
    choice = chosen(both)
    assert choice == Choice(by) and (boxes.unbounded is None) is (by is SplitSpace.INPUTS)
    assert not boxes.closed and not neurons.closed
    assert boxes.incumbents.near is not None and boxes.incumbents.near is neurons.incumbents.near


@pytest.mark.parametrize("by", SplitSpace)
def test_what_either_found_is_known_to_who_goes_on(by: SplitSpace, nothing_grows: None) -> None:
    both = _, boxes, _, neurons = both_of(part_way(10), tuning=ONCE)
    (neurons if by is SplitSpace.INPUTS else boxes).incumbents.disagreement = "a point"
    (neurons if by is SplitSpace.INPUTS else boxes).out_of_memory = True
    assert chosen(both).space is by
    assert boxes.incumbents.disagreement == neurons.incumbents.disagreement == "a point"


def test_a_search_in_instalments_bounds_what_one_in_a_piece_does() -> None:
    context = context_of(part_way(10), options=counted())
    (space, whole), (again, parts) = (boxes_of(context) for _ in range(2))
    seen = [-math.inf]
    with torch.no_grad():
        branch_and_bound(whole, space, Budget(context.deadline))
        while not parts.closed and len(seen) < 500:
            branch_and_bound(parts, again, Budget(context.deadline, parts.counts.bounded + 300))
            seen.append(parts.lower_bound)
    assert whole.closed and parts.closed and len(seen) > 3
    assert (whole.counts.bounded, whole.lower_bound) == (parts.counts.bounded, parts.lower_bound)
    assert seen == sorted(seen)


def test_groups_in_between_are_tried_and_the_ledger_says_so() -> None:
    options = Options(search=counted(), attack=False)
    result = verify(part_way(10), 60, "bab", options=options)
    search = next(p for p in result.phases if p.name == "search")
    assert result.verdict is Verdict.VERIFIED and search.detail["trial"] > 0


# -- bisection first, and neurons in a small share of its time ------------------------------------------------------------------


class First:
    """Bisection first, by counts; whether neurons were begun."""

    def __init__(self, problem: Problem, tuning: SpaceTuning = TRIED, seconds: float = 60.0) -> None:
        context = context_of(problem, seconds, counted(tuning))
        (self.box_space, self.boxes), self.begun = boxes_of(context, root_of(problem)[1]), False
        self.neurons = neurons_of(context)
        with torch.no_grad():
            self.space = choose_space.bisect_first(self.box_space, self.boxes, self.begin, float(self.box_space.root.margins.amin()))

    def begin(self) -> tuple[NeuronSpace, Tree[Subproblems]]:
        self.begun = True
        return self.neurons


def test_what_bisection_closes_at_once_is_tried_on_no_neurons() -> None:
    found = First(part_way(2, 8, 0.9))
    assert found.space is SplitSpace.INPUTS and found.boxes.closed and not found.begun


def test_what_is_far_after_the_first_boxes_is_tried_in_turns() -> None:
    found = First(part_way(24, 16, 0.4))
    assert found.space is None and not found.begun
    assert not found.boxes.closed and found.boxes.counts.bounded >= TRIED.first


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_time_that_is_over_closes_nothing_and_begins_nothing(share: float) -> None:
    found = First(part_way(10, 16, share), seconds=0.0)
    assert found.space is SplitSpace.INPUTS and not found.begun and not found.boxes.closed


def test_neurons_that_are_ahead_go_on() -> None:
    """And what they have proved is the boxes' too."""
    found = First(part_way(24, 16, 0.4), BESIDE)
    assert found.space is SplitSpace.NEURONS and found.begun
    assert found.boxes.proved == found.neurons[1].proved


def test_neurons_have_a_small_share_of_the_boxes_time() -> None:
    """Where they are never ahead they get no more than that, and whoever closes the rest, the answer is right."""
    found = First(part_way(5, 24, 0.3), replace(BESIDE, ahead=math.inf))
    space, tree = found.neurons
    assert found.begun and found.boxes.closed is (found.space is SplitSpace.INPUTS)
    allowed = BESIDE.trial * found.boxes.counts.bounded * found.box_space.effort.each / space.effort.each
    assert tree.counts.bounded <= 2 * allowed + 64  # the last batch is not cut


@pytest.mark.parametrize("seed", range(8))
def test_with_neurons_beside_the_answer_is_the_one_of_enumeration(seed: int, leaves: Leaves) -> None:
    tuning = replace(BESIDE, few=math.inf, first=2)
    problem, size = several(seed)
    for by, safe in ((-size, True), (size, False)):
        near = replace(problem, disjuncts=(shifted(problem.disjuncts[0], by), *problem.disjuncts[1:]))
        found = decided(near, leaves, tuning)
        assert found.lower_bound <= -by + 1e-4 * size
        assert found.closed == safe and (found.counterexample is not None) == (not safe)
