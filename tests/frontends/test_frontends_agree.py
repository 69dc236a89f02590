"""A network is the same through either door: as a torch module and as the ONNX file that torch exports of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import milpverify as mv
from milpverify.counterexamples.validate import Validity, validate
from milpverify.errors import InvalidInput, InvalidModel, InvalidProperty
from milpverify.frontends.torch.runtime import TorchRuntime
from milpverify.graph import evaluate


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(h + torch.relu(self.second(h)))


def dense(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 10), activation(), nn.Linear(10, 8), activation(), nn.Linear(8, 3))


def convolutional() -> nn.Module:
    pools = nn.MaxPool2d(2), nn.AvgPool2d(2)
    return nn.Sequential(
        nn.Linear(2, 16),
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        pools[0],
        nn.Conv2d(3, 2, 1),
        nn.LeakyReLU(0.2),
        pools[1],
        nn.Flatten(),
        nn.Linear(2, 3),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: dense(nn.ReLU),
    "residual": Residual,
    "convolutional": convolutional,
    "sigmoid": lambda: dense(nn.Sigmoid),
    "tanh": lambda: dense(nn.Tanh),
    "elu": lambda: dense(nn.ELU),
    "softplus": lambda: dense(nn.Softplus),
    "clamp": lambda: dense(nn.Hardtanh),
}


def trained(make: Callable[[], nn.Module]) -> nn.Module:
    """Three classes in the plane, by the angle; a second of training."""
    torch.manual_seed(0)
    net = make()
    x = torch.rand(256, 2) * 2 - 1
    label = ((torch.atan2(x[:, 1], x[:, 0]) + torch.pi) / (2 * torch.pi) * 3).long().clamp(max=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), label).backward()
        optimizer.step()
    return net.eval()


def exported(net: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the exporter that needs no further package
        torch.onnx.export(net, (torch.zeros(1, 2),), str(path), dynamo=False, opset_version=17)
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_and_verdicts_are_the_same(name: str, tmp_path: Path) -> None:
    net = trained(NETWORKS[name])
    path = exported(net, tmp_path / "net.onnx")
    x0 = np.array([0.5, 0.55])
    label = int(net(torch.tensor(x0[None]).float()).argmax())
    box = mv.Box(x0 - 0.1, x0 + 0.1)
    for method in ("ibp", "crown"):
        here, there = (mv.bounds(source, box, method).output for source in (net, path))
        torch.testing.assert_close(here.lower, there.lower, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(here.upper, there.upper, rtol=1e-4, atol=1e-5)
    seen = set()
    for eps in (0.02, 0.15, 0.8):
        here, there = (mv.verify(mv.robustness(source, x0, label, eps), timeout=20) for source in (net, path))
        assert here.verdict is there.verdict
        assert here.verdict is not mv.Verdict.UNKNOWN
        seen.add(here.verdict)
        for result in (here, there):
            if result.counterexample is not None:
                x, y = result.counterexample.x, result.counterexample.y
                assert (np.abs(x - x0) <= eps * (1 + 1e-12)).all()
                np.testing.assert_allclose(y, net(torch.tensor(x[None]).float()).detach().numpy()[0], rtol=1e-4, atol=1e-5)
                assert y.argmax() != label
    assert seen == {mv.Verdict.VERIFIED, mv.Verdict.FALSIFIED}


def test_alpha_crown_on_a_module_contains_what_it_computes() -> None:
    net = trained(NETWORKS["tanh"])
    box = mv.Box([-0.2, 0.1], [0.3, 0.4])
    found = mv.bounds(net, box, "alpha-crown")
    x = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([0.5, 0.3]) + torch.tensor([-0.2, 0.1])
    y = evaluate(found.graph, x)
    assert bool((found.output.lower <= y).all())
    assert bool((y <= found.output.upper).all())
    assert {"0", "1", "4"} <= {node.name for node in found.graph.nodes}
    first, second = mv.bounds(net, [box, mv.Box([-0.1, 0.2], [0.1, 0.3])], "crown").output.upper
    assert bool((second <= first).all())


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.TransformerEncoderLayer(2, 1, 4, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x).flatten(1))


@pytest.mark.parametrize("make", [Sequence, Attention])
def test_layers_that_only_export_traces_are_bounded_and_decided(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = make().eval()
    x0 = torch.randn(3, 2)
    label = int(net(x0[None]).argmax())
    box = mv.Box(x0 - 0.01, x0 + 0.01)
    found = mv.bounds(net, box, "crown").output
    x = x0 + (torch.rand(200, 3, 2) * 2 - 1) * 0.0099
    with torch.no_grad():
        y = net(x).double()
    assert bool(((found.lower - 1e-6 <= y) & (y <= found.upper + 1e-6)).all())
    assert mv.verify(mv.robustness(net, x0, label, 0.005), timeout=30).verdict is mv.Verdict.VERIFIED


# The module itself has a say


def test_a_violation_of_the_reals_alone_is_no_counterexample() -> None:
    """In float32 x + 2^30 - 2^30 is 0; in the reals it is x."""

    class Lost(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 2.0**30) - 2.0**30

    problem = mv.Problem(Lost().eval(), mv.Box([0.25], [0.75]), unsafe="(>= Y_0 0.5)")
    assert isinstance(problem.runtime, TorchRuntime)
    judgement = validate(problem, problem.disjuncts[0], np.array([0.7]))
    assert judgement.status is Validity.FLOAT_SEMANTICS
    assert judgement.margin_runtime == 0.5
    result = mv.verify(problem, timeout=1)
    assert (result.verdict, result.reason) == (mv.Verdict.UNKNOWN, mv.Reason.FLOAT_SEMANTICS)


def test_the_counterexample_is_the_modules_own_output() -> None:
    net = trained(NETWORKS["relu"])
    result = mv.verify(mv.robustness(net, np.zeros(2), 0, 0.5), timeout=20)
    assert result.counterexample is not None
    with torch.no_grad():
        y = net(torch.from_numpy(result.counterexample.x).float()[None])[0].double().numpy()
    assert np.array_equal(result.counterexample.y, y)


# Problems


def test_problems_state_the_unsafe_set_in_three_ways() -> None:
    net = nn.Linear(2, 2).eval()
    net.weight.data.copy_(torch.eye(2))
    net.bias.data.zero_()
    box = mv.Box([0.0, 0.0], [1.0, 1.0])

    def verdict(unsafe: object) -> mv.Verdict:
        return mv.verify(mv.Problem(net, box, unsafe=unsafe), timeout=10).verdict  # type: ignore[arg-type]

    beyond = mv.Rows.on_outputs([[-1.0, 0.0]], [-1.5], 2)  # y_0 >= 1.5
    reached = mv.Rows.on_outputs([[-1.0, 0.0], [0.0, -1.0]], [-0.5, -0.5], 2)  # both >= 0.5
    assert verdict(beyond) is mv.Verdict.VERIFIED
    assert verdict(reached) is mv.Verdict.FALSIFIED
    assert verdict([beyond, reached]) is mv.Verdict.FALSIFIED
    assert verdict("(or (>= Y_0 1.5) (>= Y_1 1.5))") is mv.Verdict.VERIFIED
    assert verdict("(and (>= Y_0 0.5) (>= (+ Y_1 X_0) 1.25))") is mv.Verdict.FALSIFIED
    within = mv.Rows(
        np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [-1.0, 0.0]]), np.array([0.25, -0.5]), np.zeros(2, dtype=bool)
    )
    assert verdict(within) is mv.Verdict.VERIFIED  # where x_0 <= 0.25, y_0 >= 0.5 does not happen
    problem = mv.Problem(net, box, unsafe=within)
    assert [len(problem.disjuncts[0].unsafe), len(problem.disjuncts[0].domain)] == [1, 1]
    assert isinstance(mv.Problem(problem.graph, problem.disjuncts), mv.Problem)


def test_robustness_clips_and_takes_tensors() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    x0 = torch.tensor([[0.0, 0.5], [0.98, 1.0]], requires_grad=True)
    problem = mv.robustness(net, x0, 1, 0.05, clip=(0, 1))
    (box,) = {d.box for d in problem.disjuncts}
    assert np.array_equal(box.lower, np.maximum(x0.detach().numpy().ravel().astype(float) - 0.05, 0))
    assert np.array_equal(box.upper, np.minimum(x0.detach().numpy().ravel().astype(float) + 0.05, 1))
    assert [d.unsafe.y_rows.tolist() for d in problem.disjuncts] == [[[-1, 1, 0]], [[0, 1, -1]]]


def test_what_makes_no_sense_is_refused() -> None:
    net = nn.Linear(2, 3).eval()
    box = mv.Box([0.0, 0.0], [1.0, 1.0])
    for eps in (-0.1, np.nan, np.inf):
        with pytest.raises(InvalidInput, match="eps must be a number >= 0"):
            mv.robustness(net, [0.0, 0.0], 0, eps)
    with pytest.raises(InvalidInput, match="no label 3: the network has the outputs 0 to 2"):
        mv.robustness(net, [0.0, 0.0], 3, 0.1)
    with pytest.raises(InvalidInput, match="one output"):
        mv.robustness(nn.Linear(2, 1).eval(), [0.0, 0.0], 0, 0.1)
    with pytest.raises(InvalidModel, match=r"net\.eval\(\)"):
        mv.robustness(nn.Linear(2, 3), [0.0, 0.0], 0, 0.1)
    with pytest.raises(InvalidInput, match="unsafe"):
        mv.Problem(net, box)
    with pytest.raises(InvalidProperty, match="about 2 inputs and 2 outputs; the network has 2 and 3"):
        mv.Problem(net, box, unsafe=mv.Rows.on_outputs([[1.0, 0.0]], [0.0], 2))
    with pytest.raises(InvalidProperty, match="Y_3"):
        mv.Problem(net, box, unsafe="(<= Y_3 0)")
    with pytest.raises(InvalidModel, match="no network file"):
        mv.robustness("missing.onnx", [0.0, 0.0], 0, 0.1)
