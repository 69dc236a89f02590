"""Masks of -inf, in torch modules and ONNX files: what the runtimes compute, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from onnx_cases import agrees as onnx_agrees
from onnx_cases import build, ints, scalar
from torch import Tensor, nn
from torch_cases import Lambda

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.frontends.onnx.lowering import lower
from milpverify.frontends.torch.runtime import TorchRuntime, check
from milpverify.frontends.torch.trace import lower_module
from milpverify.graph import evaluate
from milpverify.spec import Box

LENGTH, WIDTH = 4, 4
KEEP = torch.ones(LENGTH, LENGTH).tril() > 0
CAUSAL = torch.zeros(LENGTH, LENGTH).masked_fill(~KEEP, -math.inf)
BAND = CAUSAL.masked_fill(torch.ones(LENGTH, LENGTH).tril(-3) > 0, -math.inf)
PADDING = torch.tensor([[False, False, True, False]])


class Attention(nn.Module):
    """Attention, whose scores and values `finish` puts together; or of torch's own attention, on queries, keys and values."""

    def __init__(self, finish: Callable[..., Tensor], fused: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.finish, self.fused = finish, fused
        self.register_buffer("causal", CAUSAL)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).reshape(-1, LENGTH, 2, WIDTH // 2).transpose(1, 2) for part in (self.query, self.key, self.value))
        return self.finish(q, k, v) if self.fused else self.finish(q @ k.mT / math.sqrt(WIDTH // 2), v)


class Layer(nn.Module):
    """A layer that calls torch's multi-head attention."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


def by_exponentials(a: Tensor, v: Tensor) -> Tensor:
    a = a.masked_fill(~KEEP, -math.inf)
    powers = (a - a.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True) @ v


SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "added": lambda a, v: (a + CAUSAL).softmax(-1) @ v,
    "a band": lambda a, v: (a + BAND).softmax(-1) @ v,
    "masked_fill": lambda a, v: a.masked_fill(~KEEP, -math.inf).softmax(-1) @ v,
    "where": lambda a, v: torch.where(KEEP, a, torch.tensor(-math.inf)).softmax(-1) @ v,
    "two masks": lambda a, v: (a + CAUSAL).masked_fill(torch.tensor([False, True, False, False]), -math.inf).softmax(-1) @ v,
    "keys": lambda a, v: a.masked_fill(PADDING, -math.inf).softmax(-1) @ v,
    "written out": by_exponentials,
    "another axis": lambda a, v: (a + CAUSAL.mT).softmax(-2) @ v,
    "scaled": lambda a, v: ((a + CAUSAL) * 0.5).softmax(-1) @ v,
    "log": lambda a, v: (a + CAUSAL).log_softmax(-1).masked_fill(~KEEP, 0.0) @ v,
    "logsumexp": lambda a, v: torch.logsumexp(a + CAUSAL, -1),
    "largest": lambda a, v: (a + CAUSAL).amax(-1),
    "maximum": lambda a, v: torch.maximum(a + CAUSAL, a.mT),
    "maximum with a number": lambda a, v: torch.maximum(a + CAUSAL, torch.tensor(-1.0)),
    "maximum with a mask": lambda a, v: torch.maximum(a, CAUSAL + 0.5),
    "relu": lambda a, v: torch.relu(a + CAUSAL),
    "sigmoid": lambda a, v: torch.sigmoid(a + CAUSAL),
    "joined": lambda a, v: torch.cat([a, torch.full((1, 2, LENGTH, 2), -math.inf)], -1).softmax(-1)[..., :LENGTH] @ v,
    "padded": lambda a, v: F.pad(a, (1, 1), value=-math.inf).softmax(-1)[..., 1:-1] @ v,
    "no numbers are found": lambda a, v: torch.where(torch.isnan(a), 0.0, (a + CAUSAL).softmax(-1)) @ v,
    "pooled": lambda a, v: F.max_pool2d(F.pad(a, (1, 0, 1, 0), value=-math.inf), 2, 1),
}
FUSED: dict[str, Callable[..., Tensor]] = {
    "is_causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "boolean": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=KEEP),
    "additive": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=CAUSAL),
    "of fewer queries": lambda q, k, v: F.scaled_dot_product_attention(q[..., :2, :], k, v, is_causal=True),
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "multihead": (lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True), lambda m, x: m(x, x, x, attn_mask=CAUSAL)[0]),
    "its weights": (lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True), lambda m, x: m(x, x, x, attn_mask=~KEEP)[1]),
    "a hint": (
        lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        lambda m, x: m(x, x, x, attn_mask=CAUSAL, is_causal=True, need_weights=False)[0],
    ),
    "keys that pad": (
        lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        lambda m, x: m(x, x, x, attn_mask=~KEEP, key_padding_mask=PADDING, need_weights=False)[0],
    ),
    "without a batch, other widths": (
        lambda: nn.MultiheadAttention(WIDTH, 2, kdim=2, vdim=3),
        lambda m, x: m(x[0], x[0, :, :2], x[0, :, 1:], attn_mask=CAUSAL)[0],
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 6, batch_first=True), 2, enable_nested_tensor=False),
        lambda m, x: m(x, mask=CAUSAL),
    ),
    "decoder": (lambda: nn.TransformerDecoderLayer(WIDTH, 2, 6, batch_first=True), lambda m, x: m(x, x, tgt_mask=CAUSAL)),
}


def agrees(module: nn.Module, tuning: LoweringTuning = LoweringTuning()) -> None:
    """The graph computes what the module does, which may be no number nowhere, and passes the comparison at load."""
    runtime = TorchRuntime(module.eval(), (1, LENGTH, WIDTH))
    graph = lower_module(runtime.module, runtime.shape, runtime.dtype, tuning=tuning)
    check(graph, runtime, Box(-np.ones((LENGTH, WIDTH)), np.ones((LENGTH, WIDTH))))
    points = torch.randn(4, graph.nx, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        expected = torch.stack([runtime.outputs(x.numpy())[0].reshape(-1).double() for x in points])
    torch.testing.assert_close(evaluate(graph, points), expected, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("tuning", [LoweringTuning(), LoweringTuning(pairs=0)], ids=["pairs", "shared"])
def test_scores_that_are_masked(name: str, tuning: LoweringTuning) -> None:
    torch.manual_seed(0)
    agrees(Attention(SCORES[name]), tuning)


@pytest.mark.parametrize("name", FUSED)
def test_attention_in_one_operation(name: str) -> None:
    torch.manual_seed(0)
    agrees(Attention(FUSED[name], fused=True))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_attention(name: str) -> None:
    torch.manual_seed(0)
    make, call = LAYERS[name]
    agrees(Layer(make(), call))


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a row altogether": (lambda a: a.masked_fill(torch.tensor([True, False, False, False])[:, None], -math.inf).softmax(-1), "all entries"),
    "a sum": (lambda a: (a + CAUSAL).sum(-1), "entries that are -inf may be"),
    "a product": (lambda a: (a + CAUSAL) @ a, "entries that are -inf may be"),
    "a difference": (lambda a: a - CAUSAL, "weights must be finite numbers"),
    "its opposite": (lambda a: -(a + CAUSAL), "by positive numbers only"),
    "nothing": (lambda a: (a + CAUSAL) * 0.0, "by positive numbers only"),
    "the smallest": (lambda a: (a + CAUSAL).amin(-1), "entries that are -inf may be"),
    "no limit": (lambda a: torch.sin(a + CAUSAL), "has no limit"),
    "inf": (lambda a: a + math.inf, "computes with inf; weights must be finite numbers"),
    "a weight": (lambda a: a * CAUSAL, "computes with -inf; weights must be finite numbers"),
    "no number": (lambda a: a + CAUSAL * 0.0, "computes with nan; weights must be finite numbers"),
    "an output": (lambda a: a + CAUSAL, "an output of the network holds -inf"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_read_masked_entries_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(InvalidModel, match=message) as raised:
        lower_module(Lambda(make).eval(), (LENGTH, LENGTH), torch.float32)
    assert "\n" not in str(raised.value)


def network(
    *nodes: tuple[str, list[str], dict[str, object]], shape: tuple[int, ...] = (1, 2, 4, 4), **constants: np.ndarray
) -> onnx.ModelProto:
    """A network of nodes, the n-th of which computes the tensor tn; `x` is the input."""
    protos = [helper.make_node(op, inputs, [f"t{i}"], name=f"n{i}", **attributes) for i, (op, inputs, attributes) in enumerate(nodes)]
    return build(protos, {"x": shape}, [f"t{len(nodes) - 1}"], constants, 18)


INFINITE = scalar(-math.inf)
SOFTMAX = "Softmax", ["t0"], {"axis": -1}
LOWER = {"one": np.ones((4, 4), np.float32), "zero": scalar(0.0), "hidden": np.full((4, 4), -np.inf, np.float32), "k": ints(1).reshape(())}
MODELS = {
    "Add": network(("Add", ["x", "mask"], {}), SOFTMAX, mask=CAUSAL.numpy()),
    "Where": network(("Where", ["keep", "x", "mask"], {}), SOFTMAX, keep=KEEP.numpy(), mask=INFINITE),
    "Trilu": network(("Trilu", ["hidden", "k"], {}), ("Add", ["x", "t0"], {}), ("Softmax", ["t1"], {"axis": -1}), **LOWER),
    "Trilu of the scores": network(
        ("Trilu", ["x"], {"upper": 0}), ("Add", ["t0", "mask"], {}), ("Softmax", ["t1"], {}), mask=CAUSAL.numpy()
    ),
    "of zeros and ones": network(
        ("Trilu", ["one"], {"upper": 0}),
        ("Equal", ["t0", "zero"], {}),
        ("Where", ["t1", "mask", "x"], {}),
        ("Softmax", ["t2"], {"axis": -1}),
        **LOWER,
        mask=INFINITE,
    ),
    "a logarithm": network(("Log", ["one"], {}), ("Add", ["x", "t0"], {}), ("Softmax", ["t1"], {}), one=KEEP.numpy().astype(np.float32)),
    "a Constant": network(
        ("Constant", [], {"value_float": -math.inf}), ("Where", ["keep", "x", "t0"], {}), ("Softmax", ["t1"], {}), keep=KEEP.numpy()
    ),
    "safe": network(
        ("Add", ["x", "mask"], {}),
        SOFTMAX,
        ("IsNaN", ["t1"], {}),
        ("Where", ["t2", "zero", "t1"], {}),
        mask=CAUSAL.numpy(),
        zero=scalar(0.0),
    ),
    "Pad before MaxPool": network(
        ("Pad", ["x", "pads", "mask"], {}),
        ("MaxPool", ["t0"], {"kernel_shape": [3, 3], "strides": [2, 2]}),
        pads=ints(0, 0, 1, 1, 0, 0, 1, 1),
        mask=INFINITE,
    ),
    "LogSoftmax": network(
        ("Add", ["x", "mask"], {}),
        ("LogSoftmax", ["t0"], {}),
        ("Where", ["keep", "t1", "zero"], {}),
        keep=KEEP.numpy(),
        mask=CAUSAL.numpy(),
        zero=scalar(0.0),
    ),
    "two masks": network(
        ("Add", ["mask", "other"], {}),
        ("Add", ["t0", "x"], {}),
        ("Softmax", ["t1"], {}),
        mask=CAUSAL.numpy(),
        other=CAUSAL.numpy() + np.float32(0.1),
    ),
    "Max": network(("Max", ["x", "mask"], {}), mask=CAUSAL.numpy()),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_networks_with_masks(name: str) -> None:
    onnx_agrees(MODELS[name])


BAD = {
    "a row altogether": (
        network(("Where", ["keep", "mask", "x"], {}), SOFTMAX, keep=np.ones((4, 1), bool), mask=INFINITE),
        "a mask must leave one",
    ),
    "a weight": (
        network(("Mul", ["x", "mask"], {}), SOFTMAX, mask=CAUSAL.numpy()),
        "initializer 'mask' holds -inf; weights must be finite numbers",
    ),
    "inf": (
        network(("Add", ["x", "mask"], {}), SOFTMAX, mask=-CAUSAL.numpy()),
        "initializer 'mask' holds inf; weights must be finite numbers",
    ),
    "no number": (
        network(("Add", ["x", "mask"], {}), SOFTMAX, mask=np.full((4, 4), np.nan, np.float32)),
        "initializer 'mask' holds nan; weights must be finite",
    ),
    "a matrix": (
        network(("MatMul", ["x", "mask"], {}), SOFTMAX, mask=CAUSAL.numpy()),
        "initializer 'mask' holds -inf; weights must be finite numbers",
    ),
    "read by a product": (
        network(("Add", ["x", "mask"], {}), ("MatMul", ["t0", "x"], {}), mask=CAUSAL.numpy()),
        "entries that are -inf may be",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_networks_that_read_infinite_entries_are_refused_in_a_line(name: str) -> None:
    model, message = BAD[name]
    with pytest.raises(InvalidModel, match=message) as raised:
        lower(model)
    assert "\n" not in str(raised.value)
