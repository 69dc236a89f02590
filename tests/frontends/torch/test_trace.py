"""torch modules: every layer and operation lowered to what the module computes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx_cases import adjoints_hold
from torch import Tensor, nn
from torch_cases import FUNCTIONS, LAYERS, Lambda

from milpverify.errors import InvalidInput, InvalidModel, UnsupportedOperator
from milpverify.frontends.network import load_network
from milpverify.frontends.torch import trace
from milpverify.frontends.torch.runtime import TorchRuntime, check
from milpverify.frontends.torch.trace import lower_module
from milpverify.graph import Graph, evaluate
from milpverify.operators import Linear
from milpverify.spec import Box

CASES = [*LAYERS.items(), *((name, (lambda f=f, c=c: Lambda(f, *c), shape)) for name, (f, c, shape) in FUNCTIONS.items())]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated:UserWarning"),
]


def unit_box(*shape: int) -> Box:
    return Box(-2 * np.ones(shape), 2 * np.ones(shape))


def agrees(module: nn.Module, shape: tuple[int, ...], lower: Callable[..., Graph] = lower_module) -> Graph:
    """Lower it in float32; in float64 the graph must do what the module does, and it must pass the check at load."""
    runtime = TorchRuntime(module.eval(), (1, *shape))
    graph = lower(runtime.module, runtime.shape, runtime.dtype)
    check(graph, runtime, unit_box(*shape))
    adjoints_hold(graph, 0)
    points = 2 * torch.randn(4, graph.nx, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        outputs = [runtime.outputs(x.numpy()) for x in points]
    assert [s.shape for s in graph.outputs] == [tuple(t.shape) for t in outputs[0]]
    expected = torch.stack([torch.cat([t.reshape(-1) for t in parts]).double() for parts in outputs])
    torch.testing.assert_close(evaluate(graph, points), expected, rtol=3e-5, atol=3e-5)
    return graph


@pytest.mark.parametrize(("make", "shape"), [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_operations(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    agrees(make(), shape)


EXPORTED = ("conv2d", "conv_transpose1d", "batch_norm2d", "max_pool2d", "avg_pool2d", "upsample_bilinear", "prelu", "slices", "extrema")


@pytest.mark.parametrize("name", EXPORTED)
def test_export_agrees_where_fx_would_do(name: str) -> None:
    torch.manual_seed(0)
    make, shape = dict(CASES)[name]
    agrees(make(), shape, trace._export)


# Weights and types


def test_weights_are_those_of_the_module_to_the_last_bit() -> None:
    for dtype in (torch.float32, torch.float64):
        net = nn.Linear(3, 2).to(dtype).eval()
        graph = lower_module(net, (1, 3), dtype)
        (op,) = (node.op for node in graph.nodes if isinstance(node.op, Linear))
        assert op.bias is not None
        assert torch.equal(op.weight, net.weight.detach().double())
        assert torch.equal(op.bias.reshape(-1), net.bias.detach().double())
        assert graph.inputs[0].dtype == graph.outputs[0].dtype == str(dtype).removeprefix("torch.")


def test_constants_fold_in_float64() -> None:
    """(w + 1) - 1 of a float32 weight is w, where float32 would round it."""
    net = nn.Linear(2, 1).eval()

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, (self.inner.weight + 1024.0) - 1024.0)

    graph = lower_module(Shifted().eval(), (1, 2), torch.float32)
    (op,) = (node.op for node in graph.nodes if isinstance(node.op, Linear))
    assert torch.equal(op.weight, net.weight.detach().double())


def test_numbers_are_rounded_as_torch_rounds_them() -> None:
    net = Lambda(lambda x: 0.1 * x).eval()
    x = torch.ones(1, 2, dtype=torch.float64)
    assert float(evaluate(lower_module(net, (1, 2), torch.float32), x)[0, 0]) == float(np.float32(0.1))
    assert float(evaluate(lower_module(net, (1, 2), torch.float64), x)[0, 0]) == 0.1


def test_float64_modules_are_compared_in_float64() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double().eval()
    loaded = load_network(net, unit_box(3))
    x = torch.rand(5, 3, dtype=torch.float64)
    torch.testing.assert_close(evaluate(loaded.graph, x), net(x).detach(), rtol=1e-13, atol=1e-13)


# Writing in place


def test_what_is_overwritten_reads_as_overwritten() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x * 1.5
        z = F.relu(y, inplace=True)
        y.add_(1.0)
        y *= 2.0
        return z + y

    agrees(Lambda(forward), (3,))


# What the check at load sees


def test_a_difference_is_found_and_its_submodule_named() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    runtime = TorchRuntime(net, (1, 3))
    net[2].weight.data[1, 1] += 1e-3
    graph = lower_module(net, (1, 3), torch.float32)
    with pytest.raises(InvalidModel, match=r"differs from the torch module at submodule '2' \(Linear\)"):
        check(graph, runtime, unit_box(3))


def test_views_of_what_is_overwritten_are_refused_rather_than_misread() -> None:
    """The view sees the change, which no rule follows."""

    def forward(x: Tensor) -> Tensor:
        y = x * 1.5
        view = y[:, :2]
        y.mul_(3.0)
        return view + 0

    with pytest.raises(InvalidModel, match="differs from the torch module"):
        load_network(Lambda(forward).eval(), unit_box(3))


def test_the_runtime_is_a_copy() -> None:
    net = nn.Linear(2, 1).eval()
    runtime = TorchRuntime(net, (1, 2))
    before = runtime.run(np.ones(2))
    net.weight.data.mul_(3)
    net.train()
    assert np.array_equal(runtime.run(np.ones(2)), before)


# Shapes


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 1, 4, 4)])
def test_bounds_come_with_and_without_a_batch_axis(shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()
    assert load_network(net, unit_box(*shape)).graph.inputs[0].shape == (1, 1, 4, 4)


def test_flat_bounds_need_a_shape() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).eval()
    with pytest.raises(InvalidModel, match=r"cannot be run on an input of shape \(1, 16\)"):
        load_network(net, unit_box(16))
    assert load_network(net, unit_box(16), shape=(1, 1, 4, 4)).graph.ny == 8
    with pytest.raises(InvalidInput, match=r"an input of shape \(1, 1, 5, 4\) has 20 entries, the box 16"):
        load_network(net, unit_box(16), shape=(1, 1, 5, 4))


# What is refused


def test_training_mode_is_refused_by_name() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    with pytest.raises(InvalidModel, match=r"the network \(Sequential\) is in training mode.*net\.eval\(\)"):
        load_network(net, unit_box(2))
    net.eval()
    net[1].train()
    with pytest.raises(InvalidModel, match=r"submodule '1' \(Dropout\) is in training mode.*net\.eval\(\)"):
        load_network(net, unit_box(2))


def test_functions_that_ignore_the_mode_are_refused() -> None:
    with pytest.raises(InvalidModel, match="drops entries at random"):
        lower_module(Lambda(F.dropout).eval(), (1, 2), torch.float32)
    with pytest.raises(InvalidModel, match="statistics of its batch"):
        lower_module(Lambda(lambda x: F.batch_norm(x, None, None, training=True)).eval(), (2, 3), torch.float32)


class Block(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner = Lambda(function)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) + 1


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (torch.digamma, r"digamma.*submodule 'inner'.*no rule; express it by"),
        (lambda x: x if x.sum() > 0 else -x, r"control flow in the submodule 'inner'.*torch\.where"),
        (lambda x: x[x > 0], r"which entries are read depends.*torch\.where"),
        (lambda x: x.gather(1, x.sort(1).indices), "gather.*places"),
        (lambda x: x + x.max(1)[1].float(), "places"),
        (lambda x: x.to(torch.uint8).float(), r"torch\.uint8"),
        (lambda x: torch.bitwise_not(x.long()) + x, "bits of numbers"),
        (lambda x: x + torch.argmax(x, 1), "argmax.*places"),
        (lambda x: x**x, "exponent that depends on the network's input"),
        (lambda x: torch.fft.fft(x).real, "fft"),
        (lambda x: x.topk(2, sorted=False)[0], "sorted=False"),
    ],
)
def test_unsupported_operations_are_named(function: Callable[[Tensor], Any], complaint: str) -> None:
    with pytest.raises(UnsupportedOperator, match=complaint) as error:
        load_network(Block(function).eval(), unit_box(3))
    assert "\n" not in str(error.value)


def test_bad_weights_and_types_are_refused() -> None:
    net = nn.Linear(2, 1).eval()
    with pytest.raises(InvalidModel, match=r"of type torch\.float32, torch\.float64;.*net\.float\(\)"):
        load_network(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()).eval(), unit_box(2))
    net.weight.data[0, 0] = torch.nan
    with pytest.raises(InvalidModel, match="computes with nan; weights must be finite"):
        load_network(net, unit_box(2))


def test_a_network_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(InvalidModel, match="no tensor of real numbers: 'logits' is int64"):
        load_network(Lambda(lambda x: {"logits": x.int().long()}).eval(), unit_box(2))
    with pytest.raises(InvalidInput, match="not a function"):
        load_network(lambda x: x, unit_box(2))  # type: ignore[arg-type]
