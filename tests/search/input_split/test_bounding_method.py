"""The choice between ways to bound: by what they close for their time, by counts alone where a run must repeat, or none at all."""

from __future__ import annotations

import pytest
import torch
from bisections import bisection
from random_nets import CONTINUOUS, enumerated_minimum, random_problem

from milpverify.config import SearchOptions
from milpverify.counterexamples.validate import Validity
from milpverify.search.bounding import Method, bound_batch
from milpverify.search.input_split import bisection as input_split
from milpverify.search.input_split import bounding_method
from milpverify.search.input_split.bounding_method import MethodChoice
from milpverify.spec import Problem, Rows

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
        not choice.due(bounding_method.FIRST - 1, 10_000)
        and choice.due(bounding_method.FIRST, 10_000)
        and not choice.due(bounding_method.FIRST, 10)
    )
    assert not MethodChoice(forward=False).due(10**9, 10_000)
    for count in (200, 256, 700, 5000):
        sample = choice.sample(count, torch.device("cpu"))
        assert len(sample.unique()) == len(sample) == min(count, bounding_method.SAMPLE) and int(sample.max()) < count


@pytest.mark.parametrize("way", list(Method))
@pytest.mark.parametrize("seed", range(6))
def test_every_method_decides_what_enumeration_decides(way: Method, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    least = enumerated_minimum(graph, disjunct)
    used: set[Method] = set()

    def counted(*args: object) -> object:
        used.add(args[7])  # type: ignore[arg-type]
        return bound_batch(*args)  # type: ignore[arg-type]

    size = 1e-2 * max(1.0, abs(least))
    for by, safe in ((least - size, True), (least + size, False)):
        unsafe = Rows(disjunct.unsafe.x_rows, disjunct.unsafe.y_rows, disjunct.unsafe.rhs + by, disjunct.unsafe.strict)
        near = Problem(graph, (type(disjunct)(disjunct.box, unsafe, disjunct.domain),))
        with torch.no_grad():
            search = bisection(near, 20, SearchOptions(forward=False))
            monkeypatch.setattr(input_split, "bound_batch", counted)
            search.method.now = way
            outcome = search.run()
            monkeypatch.undo()
        assert outcome.closed is safe
        assert safe or (outcome.judgement is not None and outcome.judgement.status is Validity.HOLDS)
    assert used <= {way}
