"""The choice between ways to bound: by what they close for their time, by counts alone where a run must repeat, or none at all."""

from __future__ import annotations

import inspect

import pytest
import torch
from random_nets import CONTINUOUS, enumerated_minimum, random_problem, shifted
from trees import boxes_of, context_of

from milpverify.config import SearchOptions
from milpverify.propagation.request import Method
from milpverify.search.bounding import bound_batch
from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.input_split import space
from milpverify.search.input_split.bounding_method import MethodChoice
from milpverify.spec import Problem

B, F, BOTH = Method.BACKWARD, Method.FORWARD, Method.BOTH


@pytest.mark.parametrize(
    ("seen", "by_time", "by_counts"),
    [
        ({B: (100, 50, 1.0), F: (100, 50, 0.5), BOTH: (100, 55, 1.2)}, F, F),
        ({B: (100, 50, 1.0), F: (100, 46, 0.5), BOTH: (100, 55, 1.2)}, F, B),
        ({B: (100, 50, 1.0), F: (100, 30, 0.1), BOTH: (100, 75, 1.2)}, BOTH, B),
        ({B: (100, 50, 1.0), F: (100, 49, 0.95), BOTH: (100, 52, 1.0)}, B, F),
        ({B: (100, 0, 1.0), F: (100, 0, 0.1), BOTH: (100, 0, 1.0)}, B, B),
    ],
)
def test_the_choice_is_by_what_is_closed_for_the_time(
    seen: dict[Method, tuple[int, int, float]], by_time: Method, by_counts: Method
) -> None:
    for deterministic, expected in ((False, by_time), (True, by_counts)):
        choice = MethodChoice(deterministic=deterministic)
        for way in choice.candidates:
            choice.took(way, *seen[way])
        choice.choose()
        assert choice.now is expected


def test_comparisons_are_few_and_none_where_forms_are_switched_off() -> None:
    choice = MethodChoice()
    assert (
        not choice.due(choice.tuning.first - 1, 10_000)
        and choice.due(choice.tuning.first, 10_000)
        and not choice.due(choice.tuning.first, 10)
    )
    assert not MethodChoice(forward=False).due(10**9, 10_000)
    for count in (200, 256, 700, 5000):
        sample = choice.sample(count, torch.device("cpu"))
        assert len(sample.unique()) == len(sample) == min(count, choice.tuning.sample) and int(sample.max()) < count


@pytest.mark.parametrize("way", list(Method))
@pytest.mark.parametrize("seed", [1, 2, 3, 6, 9, 10])
def test_every_method_decides_what_enumeration_decides(way: Method, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of problems that the bounds of the whole box leave open."""
    graph, disjunct = random_problem(seed, CONTINUOUS)
    least = enumerated_minimum(graph, disjunct)
    used: set[Method] = set()

    def counted(*args: object) -> object:
        used.add(inspect.signature(bound_batch).bind(*args).arguments["request"].method)
        return bound_batch(*args)  # type: ignore[arg-type]

    size = 1e-2 * max(1.0, abs(least))
    for by, safe in ((least - size, True), (least + size, False)):
        context = context_of(Problem(graph, (shifted(disjunct, by),)), 20, SearchOptions(forward=False))
        boxes, tree = boxes_of(context)
        boxes.method.now = way
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(space, "bound_batch", counted)
            branch_and_bound(tree, boxes, Budget(context.deadline))
        assert tree.closed is safe and tree.falsified is not safe
    assert used == {way}
