"""A nonlinearity that a user registers, through both doors, bounded, split and decided."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from own_functions import Calls, Dome
from torch import nn
from torch_cases import Lambda

import milpverify as mv
from milpverify.errors import InvalidInput, UnsupportedOperator
from milpverify.frontends.network import load_network
from milpverify.frontends.onnx.lowering import lower
from milpverify.frontends.torch.trace import lower_module
from milpverify.functions import catalogue as catalogue_module
from milpverify.functions.catalogue import Catalogue
from milpverify.graph import Graph, evaluate
from milpverify.operators import Elementwise
from milpverify.spec import Box

DOME = """name = "dome"
term = "(/ height (+ 1 (* x x)))"
domain = ["-inf", "inf"]
range = ["0", "height"]
extrema = ["0"]
inflections = ["(- (sqrt 1/3))", "(sqrt 1/3)"]
curvature = ["convex", "concave", "convex"]
onnx = ["own.library.Dome"]
torch = ["own_functions.dome", "own_functions.Dome"]

[parameters]
height = { default = 1.0, minimum = 1e-3 }
"""


@pytest.fixture
def dome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The dome, registered in a catalogue that lasts as long as the test."""
    own = Catalogue()
    for entry in catalogue_module.catalogue().values():
        own._entries[entry.name] = entry
    for module in [m for name, m in sys.modules.items() if name.startswith("milpverify") and hasattr(m, "catalogue")]:
        if callable(module.catalogue):
            monkeypatch.setattr(module, "catalogue", lambda: own)
    path = tmp_path / "dome.toml"
    path.write_text(DOME)
    mv.register_nonlinearity(path)
    assert "dome" in own
    yield "dome"


def functions(graph: Graph) -> list[str]:
    return [str(node.op.function) for node in graph.nodes if isinstance(node.op, Elementwise)]


def test_functions_and_modules_of_a_users_library_are_leaves(dome: str) -> None:
    net = Calls().eval()
    graph = load_network(net, Box([-2.0, -2.0], [2.0, 2.0])).graph
    assert functions(graph) == ["dome(height=2.0)", "dome(height=0.5)", "dome(height=1.5)", "dome(height=1.0)"]
    x = torch.randn(20, 2)
    torch.testing.assert_close(evaluate(graph, x.double()), net(x).detach().double(), rtol=1e-5, atol=1e-6)


NDTR = """name = "ndtr"
term = "(* 1/2 (erfc (/ (- x) (sqrt 2))))"
domain = ["-inf", "inf"]
range = ["0", "1"]
extrema = []
inflections = ["0"]
curvature = ["convex", "concave"]
onnx = []
torch = ["torch.special.ndtr"]
"""


def test_functions_of_torch_special_are_named_as_torch_names_them(dome: str, tmp_path: Path) -> None:
    """In either form of tracing."""
    path = tmp_path / "ndtr.toml"
    path.write_text(NDTR)
    mv.register_nonlinearity(path)
    for function in (torch.special.ndtr, torch.ops.aten.special_ndtr):
        assert functions(lower_module(Lambda(function).eval(), (1, 2), torch.float32)) == ["ndtr"]


def test_without_its_file_a_function_is_what_it_is_made_of() -> None:
    graph = lower_module(nn.Sequential(nn.Linear(2, 3), Dome(2.0)).eval(), (1, 2), torch.float32)
    assert functions(graph) == ["square", "reciprocal"]


def test_an_activation_by_name_trains_and_is_refined(dome: str) -> None:
    """What the bounds of the root leave open is closed by optimised slopes or by splits of the dome's inputs."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(70, 6), mv.Activation("dome", height=2.0), nn.Linear(6, 2))
    loss = net(torch.randn(8, 70)).square().sum()
    loss.backward()
    assert net[0].weight.grad is not None
    assert bool(net[0].weight.grad.abs().sum() > 0)
    net.eval()
    box = mv.Box(-0.1 * np.ones(70), 0.1 * np.ones(70))
    loose = mv.bounds(net, box, "ibp").output
    tight = mv.bounds(net, box, "crown").output
    assert bool((tight.upper <= loose.upper).all())
    assert bool((tight.upper - tight.lower < loose.upper - loose.lower).any())
    x = (torch.rand(2000, 70, generator=torch.Generator().manual_seed(0)).double() * 2 - 1) * 0.1
    y = evaluate(load_network(net, box).graph, x)
    assert bool(((tight.lower <= y) & (y <= tight.upper)).all())
    corners = 0.1 * torch.sign(torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6) @ net[0].weight.detach())
    with torch.no_grad():
        attained = float((net(corners)[:, 0] - net(corners)[:, 1]).max())
    root = float((tight.upper[:, 0] - tight.lower[:, 1]).max())
    assert attained + 0.185 < root  # hence the network's bounds alone do not prove what follows
    result = mv.verify(mv.Problem(net, box, unsafe=f"(>= (- Y_0 Y_1) {attained + 0.185!r})"), timeout=60)
    assert result.verdict is mv.Verdict.VERIFIED
    assert result.ledger["presolve bounds"]["closed"] == 0


def onnx_network(opset: int = 17) -> onnx.ModelProto:
    """y = v . dome(W x), the dome a function of the model's own."""
    body = [
        helper.make_node("Mul", ["x", "x"], ["s"]),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Add", ["s", "one"], ["d"]),
        helper.make_node("Div", ["one", "d"], ["y"]),
    ]
    own = helper.make_function("own.library", "Dome", ["x"], ["y"], body, [helper.make_opsetid("", opset)])
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in (("w", (2, 5)), ("v", (5, 1)))]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Dome", ["z"], ["h"], domain="own.library"),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, size]) for n, size in (("x", 2), ("y", 1))]
    graph = helper.make_graph(nodes, "test", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own.library", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[own], ir_version=8)


def test_functions_of_an_onnx_model_are_leaves_by_domain_and_name(dome: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_network().SerializeToString())
    box = mv.Box([-1.0, -1.0], [1.0, 1.0])
    assert functions(load_network(path, box).graph) == ["dome(height=1.0)"]
    assert mv.verify(mv.Problem(path, box, unsafe="(>= Y_0 100)"), timeout=10).verdict is mv.Verdict.VERIFIED


def test_without_its_file_an_onnx_function_is_written_out() -> None:
    assert functions(lower(onnx_network())) == ["square", "reciprocal"]
    model = onnx_network()
    del model.functions[:]
    with pytest.raises(UnsupportedOperator, match=r"own\.library"):
        lower(model)


def test_a_second_file_for_the_same_function_is_refused(dome: str, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(DOME.replace('"dome"', '"other"'))
    with pytest.raises(InvalidInput, match="already belongs to the nonlinearity dome"):
        mv.register_nonlinearity(path)
