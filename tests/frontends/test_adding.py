"""What `CONTRIBUTING.md` says of an operator and of an activation, followed with two that are not in the package, and taken back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_cases
import pytest
import test_doors
import torch
from onnx import helper
from onnx_cases import build, single
from support import ROOT
from torch import nn
from torch_cases import Lambda

import milpverify as mv
from milpverify.errors import InvalidModel, UnsupportedOperator
from milpverify.frontends.lowering.builder import Builder, entries
from milpverify.frontends.onnx import node as onnx_node
from milpverify.frontends.onnx.node import Operation
from milpverify.frontends.torch import call as torch_call
from milpverify.frontends.torch.call import Call
from milpverify.frontends.torch.runtime import TorchRuntime, check
from milpverify.frontends.torch.trace import lower_module
from milpverify.function_table import support
from milpverify.functions.catalogue import Nonlinearity, catalogue, data_folder
from milpverify.graph import Node
from milpverify.relaxations import branching_points
from milpverify.spec import Box

Networks = tuple[onnx.ModelProto, nn.Module]
"""The same one through both doors."""


def decides(networks: Networks, box: Box, least: float) -> None:
    """That Y_0 falls below its least value less 0.02 is refuted, and that it falls below 0.02 more is found, of either network."""
    for network in networks:
        for by, verdict in ((-0.02, mv.Verdict.VERIFIED), (0.02, mv.Verdict.FALSIFIED)):
            problem = mv.Problem(network, box, unsafe=f"(<= Y_0 {least + by})")
            assert mv.verify(problem, timeout=60).verdict is verdict


def agrees_with_torch(module: nn.Module, *shape: int) -> None:
    """As `test_trace` compares every case."""
    runtime = TorchRuntime(module.eval(), (1, *shape))
    check(lower_module(runtime.module, runtime.shape, runtime.dtype), runtime, Box(-2 * np.ones(shape), 2 * np.ones(shape)))


def told_by_doors() -> None:
    """Whoever forgets that both doors take it, and that it is no hole any more, is told."""
    for test in (
        test_doors.test_every_rule_has_its_counterpart_or_a_reason,
        test_doors.test_every_operator_of_the_standard_has_a_rule_or_a_reason,
    ):
        with pytest.raises(AssertionError):
            test()


# An operator


def test_what_the_checklist_names_of_builder_is_there() -> None:
    listed = (ROOT / ".github" / "CONTRIBUTING.md").read_text().partition("`frontends/lowering/builder.py`: ")[2].partition(", ...")[0]
    methods = listed.replace("`", "").split(", ")
    assert len(methods) > 5 and [name for name in methods if not hasattr(Builder, name)] == []


def determinant(g: Builder, x: Node) -> Node:
    """x[..., 0, 0] x[..., 1, 1] - x[..., 0, 1] x[..., 1, 0] of matrices (..., 2, 2): what both doors need."""
    if x.shape[-2:] != (2, 2):
        raise ValueError(f"matrices of shape {x.shape[-2:]}, not (2, 2)")
    places = entries(x.shape)
    a, b, c, d = (g.select(x, places[..., i, j]) for i in (0, 1) for j in (0, 1))
    return g.sum([g.product(a, d), g.product(b, c)], [1, -1])


@pytest.fixture
def determinants() -> Iterator[None]:
    """The rules as `@rule` registers them, for as long as the test lasts."""
    kept = dict(onnx_node.RULES), dict(torch_call.RULES)

    @onnx_node.rule("Det")
    def _of_onnx(g: Builder, op: Operation) -> Node:
        return determinant(g, op.node())

    @torch_call.rule("det", "linalg_det")
    def _of_torch(call: Call, x: Node) -> Node:
        return determinant(call.g, x)

    yield
    for rules, before in zip((onnx_node.RULES, torch_call.RULES), kept, strict=True):
        rules.clear()
        rules.update(before)


def test_an_operator(determinants: None) -> None:
    """The determinant over [1, 2] x [0, 1/2] x [0, 1/2] x [1, 2] is 3/4 at least."""
    onnx_cases.agrees(single("Det", (3, 2, 2)))
    agrees_with_torch(Lambda(lambda x: torch.det(x) + torch.linalg.det(x) + x.det()), 3, 2, 2)
    with pytest.raises(InvalidModel, match=r"linalg_det .* does not fit its arguments: matrices of shape \(3, 3\)"):
        agrees_with_torch(Lambda(torch.linalg.det), 3, 3)
    box = Box(np.array([[[1.0, 0.0], [0.0, 1.0]]]), np.array([[[2.0, 0.5], [0.5, 2.0]]]))
    decides((single("Det", (1, 2, 2)), Lambda(torch.det).eval()), box, 0.75)
    told_by_doors()


def test_what_a_test_adds_is_gone_after_it() -> None:
    assert "Det" not in onnx_node.RULES and "det" not in torch_call.RULES and "asinh" not in catalogue()
    with pytest.raises(UnsupportedOperator, match="Det"):
        onnx_cases.agrees(single("Det", (3, 2, 2)))


# An activation

ASINH = """name = "asinh"
term = "(log (+ x (sqrt (+ 1 (* x x)))))"
domain = ["-inf", "inf"]
range = ["-inf", "inf"]
extrema = []
inflections = ["0"]
curvature = ["convex", "concave"]
derivative = "(/ 1 (sqrt (+ 1 (* x x))))"
onnx = ["Asinh"]
torch = ["torch.asinh"]

[backend]
numeric = "(- (log (+ (max x 0) (sqrt (+ 1 (pow (max x 0) 2))))) (log (+ (max (- x) 0) (sqrt (+ 1 (pow (max (- x) 0) 2))))))"
torch = "(torch.asinh x)"
"""


@pytest.fixture
def asinh(tmp_path: Path) -> Iterator[Nonlinearity]:
    """The file, in the catalogue for as long as the test lasts."""
    path = tmp_path / "asinh.toml"
    path.write_text(ASINH)
    yield mv.register_nonlinearity(path)
    del catalogue()._entries["asinh"]


def test_an_activation(asinh: Nonlinearity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least value of asinh(x) - asinh(x - 1) over [0, 1] is asinh(1), at both ends."""
    monkeypatch.setattr(branching_points, "_STEPS", 16)  # a coarse table, which is made in no time
    path = shutil.copy(data_folder() / branching_points.FILE, tmp_path)
    branching_points.main([], Path(path))
    with np.load(data_folder() / branching_points.FILE) as known, np.load(path) as tables:
        assert {*tables} - {*known} == {"asinh"}
    onnx_cases.agrees(single("Asinh", (2, 3)))
    agrees_with_torch(Lambda(lambda x: torch.asinh(x) + x.asinh()), 4)
    weights = {
        "w": np.array([[1.0, 1.0]], dtype=np.float32),
        "b": np.array([0.0, -1.0], dtype=np.float32),
        "v": np.array([[1.0], [-1.0]], dtype=np.float32),
    }
    steps = [("Gemm", ["x", "w", "b"], "z"), ("Asinh", ["z"], "h"), ("MatMul", ["h", "v"], "y")]
    model = build([helper.make_node(op, read, [made]) for op, read, made in steps], {"x": (1, 1)}, ["y"], weights)
    module = Lambda(lambda x: torch.asinh(x) - torch.asinh(x - 1)).eval()
    decides((model, module), Box([0.0], [1.0]), float(np.arcsinh(1.0)))
    told_by_doors()
    row = support(asinh.bind())
    assert row.bounds and row.milp and (row.name, row.onnx, row.torch) == ("asinh", ("Asinh",), ("torch.asinh",))
    assert "`asinh`" not in (ROOT / "README.md").read_text()  # so that what `milpverify functions` prints is not what stands there
