"""Networks in all forms, wherever one is taken."""

from __future__ import annotations

import copy
import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import milpverify as mv
from milpverify.frontends.torch.runtime import TorchRuntime, check
from milpverify.frontends.torch.trace import lower_module

BOX = mv.Box([0.0, 0.0], [1.0, 1.0])
SPEC = """
(declare-const X_0 Real) (declare-const X_1 Real) (declare-const Y_0 Real) (declare-const Y_1 Real) (declare-const Y_2 Real)
(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1))) (assert (>= Y_0 9))
"""


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def model(net: nn.Module) -> onnx.ModelProto:
    tensors = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    nodes = [
        helper.make_node("Gemm", ["x", "0.weight", "0.bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "2.weight", "2.bias"], ["y"], transB=1),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, n)) for name, n in (("x", 2), ("y", 3)))
    graph = helper.make_graph(nodes, "net", [x], [y], [numpy_helper.from_array(t, name) for name, t in tensors.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def forms(tmp_path: Path) -> list[Any]:
    net = module()
    proto = model(net)
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    return [
        net,
        path,
        proto,
        proto.SerializeToString(),
        gzip.compress(proto.SerializeToString()),
        torch.export.export(net, (torch.zeros(1, 2),)),
    ]


def test_all_calls_take_all_networks(forms: list[Any], tmp_path: Path) -> None:
    (spec := tmp_path / "p.vnnlib").write_text(SPEC)
    x0 = torch.tensor([0.5, 0.5])
    with torch.no_grad():
        label = module()(x0[None]).argmax()
    wanted = mv.bounds(forms[0], BOX).output
    top = mv.maximize(forms[0], BOX, [1, 0, 0]).upper_bound
    for net in forms:
        assert torch.allclose(mv.bounds(net, BOX).output.upper, wanted.upper, atol=1e-6)
        assert mv.maximize(net, BOX, torch.tensor([1.0, 0, 0])).upper_bound == pytest.approx(top, abs=1e-5)
        assert mv.minimize(net, BOX, ([0, 0], [-1, 0, 0])).lower_bound == pytest.approx(-top, abs=1e-5)
        assert mv.verify((net, spec)).verdict is mv.Verdict.VERIFIED
        assert mv.verify(pickle.loads(pickle.dumps(mv.load(net, spec)))).verdict is mv.Verdict.VERIFIED
        assert mv.verify(mv.robustness(net, x0, label, 1e-3)).verdict is mv.Verdict.VERIFIED
    assert mv.robustness_radius(forms[3], x0, label, clip=(0, 1), timeout=5, gap=0.5).lower_bound > 1e-3
    results = dict(mv.verify_many([(net, spec) for net in (forms[0], forms[2], forms[1])], workers=1))
    assert [results[k].verdict for k in range(3)] == [mv.Verdict.VERIFIED] * 3
    table = mv.compare([(forms[2], spec)], methods=["crown"])
    assert [row.verdict.value for row in table.rows] == ["unsat"]


def test_a_model_says_what_was_decided(forms: list[Any], tmp_path: Path) -> None:
    (spec := tmp_path / "p.vnnlib").write_text(SPEC)
    of_path, of_model, of_bytes, of_packed = (list(mv.load(net, spec).files.values()) for net in forms[1:5])
    assert of_path == of_model == of_bytes == of_packed


def test_what_was_derived_is_not_sent() -> None:
    problem = mv.Problem(module(), BOX, unsafe="(>= Y_0 Y_1)")
    size = len(pickle.dumps(problem))
    mv.verify(problem, timeout=5)
    assert len(pickle.dumps(problem)) == size


def test_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    proto = model(module())
    onnx.save(proto, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="weights")
    apart = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    with pytest.raises(mv.InvalidModel, match=r"files of their own.*onnx\.load\(path\)"):
        mv.bounds(apart, BOX)
    assert mv.bounds(onnx.load(tmp_path / "net.onnx"), BOX).output.lower.shape == (1, 3)


@pytest.mark.parametrize("label", [torch.tensor(1), torch.tensor([1]), np.int64(1), np.array([1]), [1]])
def test_labels_are_whole_numbers_of_any_kind(label: Any) -> None:
    problem = mv.robustness(module(), [0.5, 0.5], label, 0.1)
    assert (problem.disjuncts[0].unsafe.y_rows[0] == [-1, 1, 0]).all()
    (radius,) = mv.robustness_radii(module(), [[0.5, 0.5]], torch.tensor([1]), targets=torch.tensor([0, 2]), clip=(0, 1), gap=0.9)
    assert radius.lower_bound >= 0


@pytest.mark.parametrize("label", [1.0, True, torch.tensor(True), torch.tensor(1.0), torch.tensor([0, 1]), "1", 3, -1])
def test_others_are_refused(label: Any) -> None:
    with pytest.raises(mv.InvalidInput, match=r"there is no label .* outputs 0 to 2"):
        mv.robustness(module(), [0.5, 0.5], label, 0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_is_compared_in_its_own_precision(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 40), nn.Tanh(), nn.LayerNorm(40), nn.Linear(40, 3))
    torch.manual_seed(0)
    net = net.eval().to(dtype)
    problem = mv.robustness(net, torch.rand(1, 5, 5), 0, 0.5)
    result = mv.verify(problem, timeout=20)
    assert result.counterexample is not None
    (x,) = result.counterexample.inputs.values()
    given = torch.from_numpy(x).to(dtype)
    assert (given.double().flatten().numpy() == result.counterexample.x).all()  # the point is one of the network's own numbers
    with torch.no_grad():
        assert torch.equal(net(given).double().flatten(), torch.from_numpy(result.counterexample.y))
    graph, wrong = lower_module(net, (1, 1, 5, 5), dtype), copy.deepcopy(net)
    check(graph, TorchRuntime(wrong, (1, 1, 5, 5)), problem.disjuncts[0].box)
    wrong[3].weight.data *= 1 + 128 * torch.finfo(dtype).eps
    with pytest.raises(mv.InvalidModel, match=r"differs from the torch module at submodule '3' \(Linear\)"):
        check(graph, TorchRuntime(wrong, (1, 1, 5, 5)), problem.disjuncts[0].box)


def test_radii_around_several_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.cat([a.flatten(1).sum(1, keepdim=True), b], 1)

    found = mv.robustness_radius(Sum().eval(), (torch.zeros(2, 1), torch.ones(1)), norm="l1", clip=(-2, 2), gap=0.01, timeout=20)
    assert found.lower_bound <= 1.0 <= found.upper_bound
    assert found.upper_bound - found.lower_bound < 0.05


def test_shapes_are_asked_for() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 2), nn.Flatten(), nn.Linear(1, 2)).eval()
    box = mv.Box([0.0] * 4, [1.0] * 4)
    with pytest.raises(mv.InvalidModel, match=r"say shape=\(1, ...\)"):
        mv.bounds(net, box)
    assert mv.bounds(net, box, shape=(1, 1, 2, 2)).output.lower.shape == (1, 2)
    with pytest.raises(mv.InvalidModel, match=r"exported for inputs of shapes \(3, 1, 2, 2\): export it for a batch of one"):
        mv.bounds(torch.export.export(net, (torch.zeros(3, 1, 2, 2),)), mv.Box(np.zeros((1, 2, 2)), np.ones((1, 2, 2))))


def test_several_inputs() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, n)) for name, n in (("a", 2), ("b", 1), ("y", 2))]
    proto = helper.make_model(
        helper.make_graph(nodes, "sum", infos[:2], infos[2:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    a, b = mv.Box([0, 1], [1, 2]), mv.Box([3], [4])
    assert mv.bounds(proto, (a, b)).output.upper[0].tolist() == pytest.approx([5.0, 6.0])
    assert mv.bounds(proto, [(a, b), (a, mv.Box([0], [0]))]).output.lower[1].tolist() == pytest.approx([0.0, 1.0])
    with pytest.raises(mv.InvalidProperty, match="boxes have 1, 2 entries; the network's inputs are 'a'"):
        mv.bounds(proto, (b, a))
    problem = mv.robustness(proto, (np.array([0.0, 1.0]), np.array([0.5])), 1, (0.25, 3.0), clip=(0, 2))
    assert problem.disjuncts[0].box.upper.tolist() == [0.25, 1.25, 2.0]
    assert mv.verify(problem).verdict is mv.Verdict.VERIFIED
    for wrong, message in (({"norm": "l2"}, "with several inputs norm='linf'"), ({"eps": [0.1]}, "2 inputs and 1 radii")):
        with pytest.raises(mv.InvalidInput, match=message):
            mv.robustness(proto, (np.zeros(2), np.zeros(1)), 1, **{"eps": 0.1, **wrong})
