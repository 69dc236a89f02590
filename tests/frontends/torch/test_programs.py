"""TorchScript modules and exported programs are read, run and sent to other processes as the modules that they were made of."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import milpverify as mv
from milpverify.frontends.torch.programs import Program

EXAMPLES = torch.zeros(1, 3), torch.zeros(1, 2, 2)
BOXES = mv.Box([0.0] * 3, [1.0] * 3), mv.Box(np.zeros((2, 2)), np.ones((2, 2)))


class Two(nn.Module):
    """Of two inputs; dropout and normalisation have a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm, self.drop = nn.Linear(3, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()

    def forward(self, image: Tensor, state: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(image)) + self.second(state.flatten(1)))
        return self.drop(hidden)[:, :3] * 2.0


def two() -> Two:
    torch.manual_seed(0)
    return Two().eval()


FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda net: net,
    "traced": lambda net: torch.jit.trace(net, EXAMPLES),
    "scripted": torch.jit.script,
    "frozen": lambda net: torch.jit.freeze(torch.jit.script(net)),
    "exported": lambda net: torch.export.export(net, EXAMPLES),
    "exported, free batch": lambda net: torch.export.export(
        net, tuple(x.repeat(2, *[1] * (x.dim() - 1)) for x in EXAMPLES), dynamic_shapes=[{0: torch.export.Dim("n", min=1)}] * 2
    ),
    "exported module": lambda net: torch.export.export(net, EXAMPLES).module(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", list(FORMS))
def test_all_forms_are_one_network(form: str) -> None:
    net = two()
    given = FORMS[form](net)
    problem = mv.Problem(given, BOXES, unsafe="(>= Y_0 Y_1)")
    expected = mv.bounds(net, BOXES).output
    found = mv.bounds(given, BOXES).output
    assert torch.allclose(found.lower, expected.lower, atol=1e-6)
    assert torch.allclose(found.upper, expected.upper, atol=1e-6)
    for read in (problem, pickle.loads(pickle.dumps(problem))):
        result = mv.verify(read, timeout=20)
        assert result.counterexample is not None
        inputs = [torch.from_numpy(t) for t in result.counterexample.inputs.values()]
        assert [t.shape for t in inputs] == [(1, 3), (1, 2, 2)]
        (output,) = result.counterexample.outputs.values()
        with torch.no_grad():
            assert torch.allclose(net(*inputs), torch.from_numpy(output), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_read_is_refused_with_advice() -> None:
    training = torch.jit.script(Two())
    with pytest.raises(mv.InvalidModel, match=r"training mode; .* net\.eval\(\)"):
        mv.bounds(training, BOXES)
    dropping = torch.export.export(nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train(), EXAMPLES[:1])
    with pytest.raises(mv.InvalidInput, match=r"drops entries|training|dropout"):
        mv.bounds(dropping, BOXES[0])
    with pytest.raises(mv.InvalidModel, match=r"torch\.jit\.script\(module\)"):
        mv.bounds(torch.jit.script(_function), BOXES[0])
    with pytest.raises(mv.InvalidInput, match=r"reads|cannot be run|takes"):
        mv.bounds(torch.export.export(two(), EXAMPLES), BOXES[0])


def _function(x: Tensor) -> Tensor:
    return x + 1.0


def test_an_export_is_a_copy() -> None:
    net = two()
    exported = torch.export.export(net, EXAMPLES)
    module = Program(exported)
    with torch.no_grad():
        before = module(*EXAMPLES)
        net.first.bias.add_(1.0)
        assert torch.equal(module(*EXAMPLES), before)
    assert module.shapes == ((1, 3), (1, 2, 2))
    assert module.names == ("image", "state")


def test_classes_that_no_other_process_knows_are_exported() -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(x))

    torch.manual_seed(0)
    problem = mv.Problem(Local().eval(), BOXES[0], unsafe="(>= Y_0 2.0)")
    results = dict(mv.verify_many([problem, (Local().eval(), "there-is-none.vnnlib")], workers=1))
    assert results[0].verdict is mv.Verdict.VERIFIED
    assert "there-is-none.vnnlib" in results[1].note


def test_what_cannot_be_sent_is_one_error() -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock = _Unsendable()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.lock.seen()
            return self.linear(x)

    problem = mv.Problem(Local().eval(), BOXES[0], unsafe="(>= Y_0 2.0)")
    with pytest.raises(mv.InvalidInput, match=r"cannot be sent to another process .* or export it to ONNX") as error:
        pickle.dumps(problem)
    assert "\n" not in str(error.value)


class _Unsendable:
    """Neither pickled nor exported, but copied."""

    runs = 0

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("cannot pickle it")

    def __deepcopy__(self, memo: object) -> _Unsendable:
        return self

    def seen(self) -> None:
        """Fails where torch.export looks."""
        if torch.compiler.is_compiling():
            raise ValueError("not for export")
