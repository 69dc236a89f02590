"""Outputs of modules by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import milpverify as mv
from milpverify.frontends.torch.returned import named

BOX = mv.Box([0.0, 0.0], [1.0, 1.0])


class Pair(NamedTuple):
    """A named tuple of two."""

    score: Tensor
    place: Tensor


@dataclass
class Answer:
    """A dataclass of two."""

    logits: Tensor
    hidden: Tensor | None


class Returns(nn.Module):
    """What a function makes of scores (1, 3)."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score, self.make = nn.Linear(2, 3), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.score(x))


def specs(make: Callable[[Tensor], Any], outputs: list[str] | None = None) -> list[tuple[str, tuple[int, ...]]]:
    problem = mv.Problem(Returns(make).eval(), BOX, unsafe="(>= Y_0 100)", outputs=outputs)
    return [(spec.name, spec.shape) for spec in problem.graph.outputs]


def test_names_and_places() -> None:
    assert specs(lambda y: y) == [("output", (1, 3))]
    assert specs(lambda y: (y, [y.sum(1), None])) == [("output 0", (1, 3)), ("output 1.0", (1,))]
    assert specs(lambda y: {"score": y, "top": (y[:, :1],)}) == [("score", (1, 3)), ("top.0", (1, 1))]  # a submodule is called so, too
    assert specs(lambda y: Answer(y, None)) == [("logits", (1, 3))]
    assert specs(lambda y: Pair(y, y.argmax(1))) == [("score", (1, 3))]
    assert [name for name, _ in named({"a": Pair(torch.zeros(1), torch.zeros(1))})] == ["a.score", "a.place"]


def test_outputs_are_chosen_by_name() -> None:
    two = lambda y: {"label": y.argmax(1), "first": y, "second": y * 2}  # noqa: E731
    assert specs(two, ["second"]) == [("second", (1, 3))]
    with pytest.raises(mv.InvalidInput, match=r"'label' is int64, .* outputs=\['first', 'second'\]"):
        specs(two)
    with pytest.raises(mv.InvalidInput, match="'label', which is int64, cannot be chosen; there are 'first', 'second'"):
        specs(two, ["label"])
    with pytest.raises(mv.InvalidInput, match="no output 'third'; there are 'first', 'second'"):
        specs(two, ["third"])
    problem = mv.Problem(Returns(two).eval(), BOX, unsafe="(>= Y_3 -100)", outputs=["second", "first"])
    assert problem.notes == ("outputs left out: 'label' (int64); 'first' is Y_0 to Y_2, 'second' is Y_3 to Y_5",)
    result = mv.verify(problem)
    assert result.counterexample is not None
    outputs = result.counterexample.outputs
    assert list(outputs) == ["first", "second"]
    assert (outputs["second"] == 2 * outputs["first"]).all()


@pytest.mark.parametrize("make", [lambda y: {1: y, "1": 2 * y}, lambda y: {"a.b": y, "a": {"b": 2 * y}}, lambda y: {"a": (y,), "a.0": y}])
def test_outputs_that_are_called_alike_are_refused(make: Callable[[Tensor], Any]) -> None:
    """Neither is left out, which would say something else of Y_0."""
    with pytest.raises(mv.InvalidInput, match=r"two outputs called '(1|a\.b|a\.0)'"):
        specs(make)


def test_what_nobody_asks_about_does_not_block() -> None:
    """An operation without a rule."""
    assert specs(lambda y: {"logits": y, "rank": torch.linalg.det(y.reshape(1, 3, 1) @ y.reshape(1, 1, 3))}, ["logits"]) == [
        ("logits", (1, 3))
    ]
