"""Which space a group is searched in, by how many inputs move its rows, and copies of a network that `auto` decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_nets import relu_network, shifted
from trees import boxes_of, context_of, neurons_of, root_of
from twin_networks import Layers, branches, layers

from milpverify import Options, SearchOptions, verify
from milpverify.config import Deadline
from milpverify.result import Verdict
from milpverify.search import choose_space, strategy
from milpverify.search.attack_turns import AttackTurnTuning
from milpverify.search.choose_space import Choice, SplitSpace
from milpverify.search.effort import EffortTuning
from milpverify.search.outcome import SearchOutcome
from milpverify.search.solver.leaves import Leaves
from milpverify.search.solver.oracle import Oracle
from milpverify.search.solver.pace import ProgramTuning
from milpverify.search.tightening import restarts
from milpverify.search.tightening.tighten import RootTuning, Tightening
from milpverify.spec import Box, Disjunct, Problem, Rows

COUNTED = SearchOptions(deterministic=True)


def wide(nx: int, share: float = 0.9) -> Problem:
    """A network all of whose inputs move the row, and its margin to be proved above a share of its first bound."""
    graph = relu_network([nx, 8, 8, 2], 3)
    disjunct = Disjunct(Box(np.full(nx, -0.3), np.full(nx, 0.3)), Rows.on_outputs([[1.0, -1.0]], [0.0], nx), Rows.none(nx, 2))
    return Problem(graph, (shifted(disjunct, share * float(root_of(Problem(graph, (disjunct,)))[1].margins.amin())),))


def searched(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, first: SplitSpace | None = SplitSpace.INPUTS
) -> tuple[list[str], SearchOutcome]:
    """What was called of the choice and of the searches, in order, where bisection at first ends so."""
    calls: list[str] = []
    whole, neurons = strategy.branch_and_bound, strategy.search_with_restarts

    def told(name: str, answer: object) -> object:
        return lambda *_: (calls.append(name), answer)[1]

    def noted(name: str, function: object) -> object:
        return lambda *a: (calls.append(name), function(*a))[1]  # type: ignore[operator]

    monkeypatch.setattr(strategy, "bisect_first", told("first", first))
    monkeypatch.setattr(strategy, "choose_space", told("trial", Choice(SplitSpace.NEURONS)))
    monkeypatch.setattr(strategy, "branch_and_bound", noted("boxes", whole))
    monkeypatch.setattr(strategy, "search_with_restarts", noted("neurons", neurons))
    with torch.no_grad():
        return calls, strategy.search_group(context_of(problem, options=COUNTED), *root_of(problem))


@pytest.mark.parametrize(
    ("nx", "first", "expected"),
    [
        (3, SplitSpace.INPUTS, ["first", "boxes"]),
        (3, SplitSpace.NEURONS, ["first", "neurons"]),
        (3, None, ["first", "trial", "neurons"]),
        (16, None, ["trial", "neurons"]),
        (100, None, ["neurons"]),
    ],
)
def test_few_inputs_are_bisected_first_and_many_never(
    nx: int, first: SplitSpace | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, outcome = searched(wide(nx), monkeypatch, first)
    assert calls == expected
    assert outcome.closed


def test_inputs_that_move_nothing_do_not_count() -> None:
    """As many inputs vary as are too many, and three move the row; where none does, all that vary count."""
    nx = 100
    group, root = root_of(wide(nx))
    many = choose_space.moving_inputs(group, root)
    linear = root.rows.coefficients[0].clone()
    linear[:, 3:] = 0.0
    only = replace(root, rows=replace(root.rows, coefficients=(linear, *root.rows.coefficients[1:])))
    assert many > choose_space.SpaceTuning().many
    assert 1.0 <= choose_space.moving_inputs(group, only) <= 3.0 + 1e-9
    nothing = replace(root, rows=replace(root.rows, coefficients=(torch.zeros_like(linear), *root.rows.coefficients[1:])))
    assert choose_space.moving_inputs(group, nothing) == nx


def test_the_solver_is_beside_both_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is one, the first bisection and the trial are told how to share."""
    problem, seen = wide(3), list[object]()

    def first(*arguments: object) -> None:
        seen.append(arguments[-1])

    def trial(*arguments: object) -> Choice:
        seen.extend(arguments[-2:])
        return Choice(SplitSpace.NEURONS)

    monkeypatch.setattr(strategy, "bisect_first", first)
    monkeypatch.setattr(strategy, "choose_space", trial)
    deadline = Deadline(60)
    with torch.no_grad(), Oracle(problem, Options(search=COUNTED), deadline) as oracle:
        found = strategy.search_group(context_of(problem, deadline, COUNTED, oracle=oracle), *root_of(problem))
    assert found.closed and len(seen) == 3 and None not in seen and seen[0] is seen[1]


def test_whoever_reads_numbers_is_handed_those_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    efforts, root = EffortTuning(box=0.5, split=0.25, largest_cpu=64), RootTuning(batch=32, candidates=3)
    tuning = efforts, root, ProgramTuning(each=7.0), AttackTurnTuning(seconds=9.0)
    options, seen, problem = SearchOptions(deterministic=True, tuning=tuning), list[object](), wide(100)
    context = context_of(problem, options=options)
    boxes, neurons = boxes_of(context)[0], neurons_of(context)[0]
    assert (boxes.effort.each, neurons.effort.each, boxes.batch.largest, neurons.batch.largest) == (0.5, 0.25, 64, 64)
    attacks = strategy._attacked(context).attacks
    assert attacks is not None and attacks.tuning.seconds == 9.0
    leaves, tightening = strategy.Leaves, restarts.Tightening

    def noted(made: Leaves | Tightening) -> object:
        seen.append(made.pace.tuning if isinstance(made, Leaves) else (made.tuning, made.bounding.candidates))
        return made

    monkeypatch.setattr(strategy, "Leaves", lambda *a, **k: noted(leaves(*a, **k)))
    monkeypatch.setattr(restarts, "Tightening", lambda *a: noted(tightening(*a)))
    with torch.no_grad():
        assert strategy.decide(context, [root_of(problem)]).closed
    assert seen == [ProgramTuning(each=7.0), (root, 3)]


# -- copies of one network ------------------------------------------------------------------------------------------------------


def largest_step(f: Layers, monotone: bool) -> float:
    """The most by which a larger first input, all others equal, made the output smaller at points of a sample."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(50_000, f.nx, generator=generator, dtype=torch.float64) - 1
    other = x.clone()
    other[:, 0] += (1 - x[:, 0]) * torch.rand(len(x), generator=generator, dtype=torch.float64)
    fall = float((f.values(x) - f.values(other)).max())
    assert fall <= 1e-9 or not monotone
    return max(0.0, fall)


def twins(f: Layers, threshold: float) -> Problem:
    """Whether f(a) <= f(c) + threshold where a_0 <= c_0 and all other inputs are equal."""
    nx = f.nx
    equal = np.concatenate([np.eye(nx)[1:], -np.eye(nx)[1:]], 1)
    order = np.zeros((1, 2 * nx))
    order[0, 0], order[0, nx] = 1.0, -1.0
    x_rows = np.concatenate([order, equal, -equal])
    domain = Rows(x_rows, np.zeros((len(x_rows), 2)), np.zeros(len(x_rows)), np.zeros(len(x_rows), dtype=bool))
    unsafe = Rows.on_outputs([[-1.0, 1.0]], [-threshold], 2 * nx, strict=True)
    return Problem(branches(f), (Disjunct(Box(-np.ones(2 * nx), np.ones(2 * nx)), unsafe, domain),))


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("monotone", [True, False])
def test_copies_with_four_inputs_are_decided(name: str, monotone: bool) -> None:
    """24 neurons of each copy; of the others than the monotone ones how much the output falls at most, from both sides."""
    f = layers([4, 12, 12, 1], [name], 1, monotone)
    fall = largest_step(f, monotone)
    sound = verify(twins(f, 0.0 if monotone else 1.3 * fall + 0.01), 60)
    assert sound.verdict is Verdict.VERIFIED, sound
    if not monotone:
        assert verify(twins(f, 0.8 * fall), 60).verdict is Verdict.FALSIFIED
