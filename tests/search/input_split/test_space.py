"""Bisection of the inputs decides random problems as enumeration does, with small boxes finished by neuron splits from the start."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from product_networks import Grower
from random_nets import CONTINUOUS, Stack, enumerated_minimum, function, random_problem, relu_network, shifted
from trees import EVERYTHING, box_sharing, boxes_of, context_of, split

from milpverify.config import Deadline, SearchOptions
from milpverify.graph import Graph, evaluate
from milpverify.operators import Elementwise, Linear
from milpverify.result import Reason
from milpverify.search import frontier
from milpverify.search.bounding import BatchBounds
from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.context import SearchContext, SearchTuning
from milpverify.search.groups import groups
from milpverify.search.input_split import finish
from milpverify.search.input_split import space as input_split
from milpverify.search.input_split.bounding_method import BoxTuning
from milpverify.search.input_split.boxes import Boxes
from milpverify.search.input_split.finish import FinishTuning
from milpverify.search.ledger import Part
from milpverify.search.neuron_split.bounder import NeuronTuning
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.outcome import SearchOutcome
from milpverify.search.solver.leaves import Leaves
from milpverify.search.tree import Tree
from milpverify.spec import Box, Disjunct, Problem, Rows

AT_ONCE = FinishTuning(first=0, boxes=4)
"""Neuron splits are tried on every small box."""
FINISHED = SearchOptions(tuning=(AT_ONCE,))


def searched(context: SearchContext, root: BatchBounds | None = None, limit: float = math.inf) -> tuple[SearchOutcome, Tree[Boxes]]:
    """What bisection makes of a problem, and what is left of its tree."""
    space, boxes = boxes_of(context, root)
    with torch.no_grad():
        branch_and_bound(boxes, space, Budget(context.deadline, limit), box_sharing(space))
    return boxes.outcome(space.detail(boxes)), boxes


def run(problem: Problem, seconds: float = 20.0, options: SearchOptions = EVERYTHING) -> SearchOutcome:
    return searched(context_of(problem, seconds, options))[0]


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The boxes that neuron splits close are counted."""
    closed: list[int] = []
    original = finish.Finisher.run

    def counting(self: finish.Finisher, *args: object) -> object:
        found = original(self, *args)  # type: ignore[arg-type]
        closed.append(int(found.proved.sum()))
        return found

    monkeypatch.setattr(finish.Finisher, "run", counting)
    return closed


@pytest.mark.parametrize("seed", range(30))
def test_verdicts_are_those_of_enumeration(seed: int, finished: list[int]) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    least = enumerated_minimum(graph, disjunct)
    if not math.isfinite(least):
        pytest.skip("the input set is empty")
    size = 1e-2 * max(1.0, abs(least))
    for by, safe in ((least - size, True), (least + size, False)):
        outcome = run(Problem(graph, (shifted(disjunct, by),)), options=FINISHED)
        assert outcome.lower_bound <= (least - by) + 1e-6 * max(1.0, abs(least))
        found = outcome.counterexample is not None
        assert not (safe and found)
        assert not (outcome.closed and not safe)
        assert outcome.closed or found


@pytest.mark.parametrize("seed", range(4))
def test_neuron_splits_close_boxes_that_bisection_left_open(seed: int, finished: list[int]) -> None:
    graph = relu_network([3, 16, 16, 2], seed)
    box = Box(-np.ones(3), np.ones(3))
    disjunct = Disjunct(box, Rows.on_outputs([[1.0, -1.0]], [0.0], 3), Rows.none(3, 2))
    generator = torch.Generator().manual_seed(seed)
    points = 2 * torch.rand(20_000, 3, generator=generator, dtype=torch.float64) - 1
    outputs = evaluate(graph, points)
    seen = float((outputs[:, 0] - outputs[:, 1]).min())
    outcome = run(Problem(graph, (shifted(disjunct, seen - 0.05),)), 30, FINISHED)
    assert outcome.closed or outcome.counterexample is not None
    assert not outcome.closed or sum(finished) > 0


def test_a_run_without_time_proves_nothing() -> None:
    graph = relu_network([3, 16, 16, 2], 0)
    disjunct = Disjunct(Box(-np.ones(3), np.ones(3)), Rows.on_outputs([[1.0, -1.0]], [0.0], 3), Rows.none(3, 2))
    outcome = run(Problem(graph, (shifted(disjunct, -0.5),)), 0.0)
    assert not outcome.closed
    space, _ = boxes_of(context_of(Problem(graph, (disjunct,))))
    with torch.no_grad():
        found = space.finisher.run(space.whole, {}, Deadline(0.0))
    assert not bool(found.proved.any())


def decided(graph: Graph, near: Disjunct, options: SearchOptions = EVERYTHING) -> tuple[SearchOutcome, Tree[Boxes]]:
    problem, deadline = Problem(graph, (near,)), Deadline(30.0)
    with Leaves(problem, deadline) as leaves:
        return searched(context_of(problem, deadline, options, leaves=leaves))


@pytest.mark.parametrize("seed", range(16))
def test_ties_end_in_a_verdict_or_a_disagreement_of_semantics(seed: int, finished: list[int]) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    least = enumerated_minimum(graph, disjunct)
    if not math.isfinite(least):
        pytest.skip("the input set is empty")
    for by in (-1e-15, 0.0, 1e-15):
        outcome, left = decided(graph, shifted(disjunct, least + by * max(1.0, abs(least))), FINISHED)
        found = outcome.counterexample is not None
        assert outcome.closed or found or (len(left.unsplittable) and not len(left.left))
        if not outcome.closed and not found:
            assert outcome.reason is Reason.FLOAT_SEMANTICS or outcome.disagreement, (outcome.reason, outcome.note)
            assert outcome.lower_bound <= 0


def test_a_box_of_one_point_is_decided_in_rationals() -> None:
    """At the only point the margin is less than a unit of float64's rounding, which only rationals tell from 0."""
    graph = relu_network([2, 3, 1], 1)
    point = np.array([0.3, -0.7])
    exact = [[Fraction(v) for v in point]]
    for node in graph.nodes[1:]:
        if isinstance(node.op, Linear):
            weight, bias = node.op.weight.tolist(), node.op.bias.tolist()  # type: ignore[union-attr]
            products = [sum(Fraction(w) * x for w, x in zip(row, exact[-1], strict=True)) for row in weight]
            exact.append([p + Fraction(b) for p, b in zip(products, bias, strict=True)])
        else:
            exact.append([max(x, Fraction(0)) for x in exact[-1]])
    value = exact[-1][0]
    rhs = float(value)
    if Fraction(rhs) >= value:
        rhs = math.nextafter(rhs, -math.inf)
    safe = Disjunct(Box(point, point), Rows.on_outputs([[1.0]], [rhs], 2), Rows.none(2, 1))
    assert 0 < value - Fraction(rhs) < Fraction(1, 2**50)
    outcome, _ = decided(graph, safe)
    assert outcome.closed and 0 <= outcome.lower_bound <= float(value - Fraction(rhs))
    assert not decided(graph, safe, SearchOptions(leaves=False))[0].closed


def quadratic_problem(by: float) -> Problem:
    """The least value of a quadratic form with a bent part, outside an ellipsoid: safe with `by` to spare, two rows with products."""
    g = Grower(3, 5)
    x = g.nodes[0]
    m = np.array([[3.0, 1.0, -2.0], [0.0, 2.0, 1.0], [0.5, 0.0, 4.0]])
    q = np.array([[2.0, -1.0, 0.0], [-1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
    first = g.sum([g.reduce_sum(g.product(x, g.matmul(x, m.T)), [0]), g.layer(g.relu(g.layer(x, 4)), 1)])
    graph = g.finished(first, g.reduce_sum(g.product(x, g.matmul(x, q.T)), [0]))
    points = 2 * torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    y = evaluate(graph, points)
    least = float(y[y[:, 1] >= 1.0, 0].min())
    rows = Rows.on_outputs([[1.0, 0.0], [0.0, -1.0]], [least - by, -1.0], 3)
    return Problem(graph, (Disjunct(Box(-np.ones(3), np.ones(3)), rows, Rows.none(3, 2)),))


def test_second_order_bounds_save_subproblems() -> None:
    counts = {}
    for on in (True, False):
        options = SearchOptions(deterministic=True, second_order=on)
        for by, safe in ((0.02, True), (-0.02, False)):
            outcome = run(quadratic_problem(by), 60, options)
            found = outcome.counterexample is not None
            assert (outcome.closed, found) == (safe, not safe)
            if safe:
                counts[on] = outcome.detail["subproblems"]
    assert 3 * counts[True] < counts[False]


@pytest.mark.parametrize("off", ["clipping", "finishing", "leaves"])
@pytest.mark.parametrize("seed", range(8))
def test_parts_can_be_left_out(off: str, seed: int, finished: list[int]) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    least = enumerated_minimum(graph, disjunct)
    if not math.isfinite(least):
        pytest.skip("the input set is empty")
    size = 1e-2 * max(1.0, abs(least))
    for by, safe in ((least - size, True), (least + size, False)):
        outcome, _ = decided(graph, shifted(disjunct, by), FINISHED.without(off))
        assert outcome.closed is safe
        assert safe or outcome.counterexample is not None
        assert off != "finishing" or not finished


def harder(sizes: list[int], seed: int) -> tuple[Problem, float]:
    """A network with many boxes to go through, and an upper bound of its margin, which is positive."""
    graph, n = relu_network(sizes, seed), sizes[0]
    points = 2 * torch.rand(20_000, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    outputs = evaluate(graph, points)
    seen = float((outputs[:, 0] - outputs[:, 1]).min())
    disjunct = Disjunct(Box(-np.ones(n), np.ones(n)), Rows.on_outputs([[1.0, -1.0]], [0.0], n), Rows.none(n, 2))
    return Problem(graph, (shifted(disjunct, seen - 0.05),)), 0.05


def test_the_frontier_stops_growing_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, margin = harder([4, 20, 20, 20, 2], 2)
    widest: list[int] = []
    original = frontier.Frontier.push

    def watched(self: frontier.Frontier[Boxes], boxes: Boxes) -> None:
        original(self, boxes)
        widest.append(len(self))

    monkeypatch.setattr(frontier.Frontier, "push", watched)
    options = SearchOptions(finishing=False)
    free = run(problem, 60, options)
    most = max(widest)
    widest.clear()
    diving = run(problem, 60, replace(options, deterministic=True, tuning=(BoxTuning(batch=32), SearchTuning(frontier_bytes=20_000))))
    assert free.closed and diving.closed and diving.lower_bound <= margin
    assert max(widest) < 0.4 * most


@pytest.mark.parametrize("safe", [True, False])
def test_short_memory_never_gives_a_wrong_verdict(safe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relaxer runs out of memory on more than some boxes, at random, from some time on, or on everything."""
    problem, margin = harder([3, 16, 16, 16, 2], 0)
    if not safe:
        problem = Problem(problem.graph, (shifted(problem.disjuncts[0], 0.2),))
        margin = -0.15
    (group,) = groups(problem)
    plain, random, sizes = input_split.bound_batch, np.random.default_rng(0), []

    def failing(when: object) -> None:
        def short(graph: object, group: object, lower: torch.Tensor, *rest: object) -> object:
            sizes.append(len(lower))
            if when(len(lower)):  # type: ignore[operator]
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            return plain(graph, group, lower, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(input_split, "bound_batch", short)
        monkeypatch.setattr(finish, "bound_batch", short)

    def outcome() -> tuple[SearchOutcome, Tree[Boxes]]:
        sizes.clear()
        return searched(context_of(problem), root)

    with torch.no_grad():
        lower, upper = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
        root = plain(problem.graph, group, lower, upper, torch.float32)
    for when in (lambda n: n > 3, lambda n: n > 1 and random.random() < 0.3):
        failing(when)
        found, _ = outcome()
        assert found.closed is safe and found.lower_bound <= margin + 0.01
        assert safe or found.counterexample is not None
    for when in (lambda _: True, lambda _: len(sizes) > 6):
        failing(when)
        found, left = outcome()
        assert not found.closed and found.lower_bound <= min(margin, 0.0) + 0.01
        if found.counterexample is None:
            assert found.reason is Reason.MEMORY and len(left.left) > 0


def along_a_diagonal(shift: float) -> tuple[Graph, Disjunct]:
    """y = |x_0 - x_1| + shift, unsafe where y <= 0: where the minimum is taken, 2^k boxes remain open after k bisections."""
    first, last = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    stack = Stack(3)
    stack.add(Linear(first.double(), torch.zeros(3, dtype=torch.float64)), 0, size=3)
    stack.add(Elementwise(function("relu")), 1, size=3)
    stack.add(Linear(last.double(), torch.tensor([shift], dtype=torch.float64)), 2, size=1)
    return stack.graph(), Disjunct(Box([-1, -1, -1], [1, 0.75, 1]), Rows.on_outputs([[1.0]], [0.0], 3), Rows.none(3, 1))


def test_what_is_closer_to_a_tie_than_bisection_can_tell_is_decided_by_linear_programs() -> None:
    graph, near = along_a_diagonal(2.0**-100)
    outcome, _ = decided(graph, near)
    assert outcome.closed and 0 <= outcome.lower_bound <= 2.0**-100 and outcome.detail["leaves"] > 0
    without = context_of(Problem(graph, (near,)), options=SearchOptions(leaves=False))
    assert not searched(without, limit=10 * outcome.detail["subproblems"])[0].closed
    violated, _ = decided(*along_a_diagonal(0.0))
    assert not violated.closed and violated.counterexample is not None


def test_a_deterministic_run_repeats() -> None:
    problem, _ = harder([4, 20, 20, 20, 2], 2)
    seen = []
    for _ in range(2):
        outcome = run(problem, 60, SearchOptions(deterministic=True))
        assert outcome.closed
        seen.append((outcome.lower_bound, outcome.detail))
    assert seen[0] == seen[1]


# -- finishing ----------------------------------------------------------------------------------------------------------------


def test_where_nothing_is_open_nothing_is_finished(finished: list[int]) -> None:
    """Whole networks of few unstable neurons are tried at once: what bisection has closed keeps its bound, and its share in the ledger."""
    graph, near = along_a_diagonal(1.0)
    outcome, left = decided(graph, near, FINISHED)
    assert outcome.closed and 0 < outcome.lower_bound <= 1.0 and left.lower_bound == left.closed_bound > 0
    assert not finished and outcome.detail["finished"] == outcome.detail["leaves"] == 0
    assert Part.FINISHING not in left.incumbents.context.ledger.closed


def test_finishing_divides_down_to_the_delta_of_the_run() -> None:
    """A point whose margin is 1e-8 is near to one that does not ask for more, and to no other."""
    g = Grower(1, 0)
    x, y = g.nodes[0], g.scale(g.nodes[0], 1.5)
    graph = g.finished(g.sum([g.call("exp", x), g.scale(g.call("exp", y), -0.5)]))  # on [0, 0.5] at the least 0.5, at 0
    problem = Problem(graph, (Disjunct(Box([0.0], [0.5]), Rows.on_outputs([[1.0]], [0.5 - 1e-8], 1), Rows.none(1, 1)),))
    for delta in (1e-6, 1e-12):
        context = context_of(problem)
        space, _ = boxes_of(replace(context, options=replace(context.options, delta=delta)))
        with torch.no_grad():
            found = space.finisher.run(space.whole, space.inheritance.unpack(space.whole.inherited), Deadline(60))
        assert found.incumbents is not None
        assert (found.incumbents.near is not None) is (delta == 1e-6)


def test_finishing_keeps_the_numbers_that_a_run_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those that say how much a split is worth in small boxes."""
    tuning, made, original = (AT_ONCE, NeuronTuning(entries=99)), list[NeuronTuning](), finish.NeuronSpace

    def recorded(*arguments: Any) -> NeuronSpace:
        space = original(*arguments)
        made.append(space.tuning)
        return space

    monkeypatch.setattr(finish, "NeuronSpace", recorded)
    problem, _ = harder([3, 12, 12, 2], 0)
    space, _ = boxes_of(context_of(problem, options=SearchOptions(tuning=tuning)))
    with torch.no_grad():
        space.finisher.run(space.whole, space.inheritance.unpack(space.whole.inherited), Deadline())
    assert space.finisher.context.switches == replace(finish.PLAIN, tuning=tuning)
    few = dict.fromkeys(("candidates", "iterations", "root_iterations"), 4)
    assert made == [NeuronTuning(**few, entries=99, per_box=AT_ONCE.branchings, batch=4 * AT_ONCE.boxes)]


def test_what_a_round_may_solve_is_no_limit_of_what_comes_after() -> None:
    graph, near = along_a_diagonal(2.0**-100)
    problem, deadline = Problem(graph, (near,)), Deadline(60)
    with Leaves(problem, deadline) as leaves:
        context = context_of(problem, deadline, SearchOptions(tuning=(FinishTuning(leaves=1),)), leaves=leaves)
        space, _ = boxes_of(context)
        with torch.no_grad():
            assert not bool(space.finisher.run(space.whole, space.inheritance.unpack(space.whole.inherited), deadline).proved.any())
        before = leaves.solved
        outcome = split(context)
    assert before == 1 and outcome.closed and leaves.solved - before > 1


@pytest.mark.parametrize("what", ["small", "indivisible", "whole"])
def test_what_a_deadline_cut_short_is_tried_again(what: str, finished: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = replace(AT_ONCE, small=1000 if what == "whole" else -1)
    options = SearchOptions(finishing=what != "indivisible", tuning=(tuning,))
    problem, _ = harder([3, 12, 12, 2], 0)
    genuine, asked, deadline = finish.bound_batch, list[torch.Tensor](), Deadline()

    def watched(graph: Any, group: Any, lower: torch.Tensor, *rest: Any, **named: Any) -> BatchBounds:
        asked.append(lower)
        if len(asked) == 1:
            deadline.cancel()
        return genuine(graph, group, lower, *rest, **named)

    monkeypatch.setattr(finish, "bound_batch", watched)
    with Leaves(problem, Deadline(60)) as leaves, torch.no_grad():
        space, boxes = boxes_of(context_of(problem, leaves=leaves, options=options))
        space.finisher.threshold = -1 if what == "whole" else 1000
        boxes.push(space.whole.halves())
        if what == "indivisible":
            halves = boxes.frontier.all()
            boxes.clear(halves)
            boxes.unsplittable = halves
        space.finish(boxes, deadline)
        assert len(asked) == 1 and deadline.cancelled and not boxes.closed
        space.finish(boxes, Deadline())
        assert len(asked) == 2 and torch.equal(*asked)
        space.finish(boxes, Deadline())
        assert len(asked) == 2
