"""Constants that are computed when a network is read, such as the third in x / 3: no verdict rests on their rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from judging import Lasting
from onnx import helper, numpy_helper

import milpverify as mv
from milpverify import Verdict
from milpverify.enclosure import enclose, exact_outputs
from milpverify.encode.smt import smt_script
from milpverify.graph import Graph
from milpverify.solvers.base import Answer, Limits

F32 = np.float32
METHODS: dict[str, str | mv.Milp] = {"auto": "auto", "bab": "bab", "smt": "smt", **{s: mv.Milp(s) for s in ("scip", "highs")}}
N = helper.make_node


@dataclass
class Case:
    """A network whose only output is a third of its first input, where the others are 0."""

    nodes: list[onnx.NodeProto]
    shape: tuple[int, ...]
    constants: dict[str, np.ndarray]
    opset: int = 17

    def model(self) -> onnx.ModelProto:
        info = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, self.shape)
        ends = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
        weights = [numpy_helper.from_array(v, k) for k, v in self.constants.items()]
        graph = helper.make_graph([*self.nodes, N("Relu", ["a"], ["y"])], "third", [info], ends, weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def one(*values: float) -> np.ndarray:
    return np.array(values, dtype=F32)


NUMBERS = {"one": one(1.0), "three": one(3.0)}
ONNX = {
    "a quotient": Case([N("Div", ["x", "c"], ["a"])], (1, 1), {"c": one(3.0)}),
    "a mean": Case([N("ReduceMean", ["x"], ["a"], axes=[1])], (1, 3), {}),
    "an average pooling": Case([N("AveragePool", ["x"], ["a"], kernel_shape=[3])], (1, 1, 3), {}),
    "a global average pooling": Case([N("GlobalAveragePool", ["x"], ["a"])], (1, 1, 3), {}),
    "a batch normalisation": Case(
        [N("BatchNormalization", ["x", "one", "zero", "zero", "nine"], ["a"], epsilon=0.0)],
        (1, 1),
        {"one": one(1.0), "zero": one(0.0), "nine": one(9.0)},
    ),
    "an interpolation": Case(
        [
            N("Resize", ["x", "", "", "to"], ["r"], mode="linear", coordinate_transformation_mode="asymmetric"),
            N("Slice", ["r", "first", "last", "axis"], ["a"]),
        ],
        (1, 1, 2),
        {"to": np.array([1, 1, 3]), "first": np.array([1]), "last": np.array([2]), "axis": np.array([2])},
    ),
    "a folded quotient": Case([N("Div", ["one", "three"], ["c"]), N("Mul", ["x", "c"], ["a"])], (1, 1), NUMBERS),
    "a folded and moved quotient": Case(
        [N("Reciprocal", ["three"], ["c"]), N("Transpose", ["c"], ["d"]), N("MatMul", ["x", "d"], ["a"])], (1, 1), {"three": one(3.0)[None]}
    ),
    "a folded quotient as a bound": Case([N("Div", ["one", "three"], ["c"]), N("Min", ["x", "c"], ["a"])], (1, 1), NUMBERS),
    "a folded sum": Case(
        [
            N("Div", ["one", "three"], ["c"]),
            N("Add", ["c", "one"], ["d"]),
            N("Sub", ["x", "one"], ["e"]),
            N("Add", ["d", "e"], ["b"]),
            N("Sub", ["b", "one"], ["a"]),
        ],
        (1, 1),
        NUMBERS,
    ),
}


class Third(torch.nn.Module):
    def __init__(self, body: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.body = body
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x, self.one))


F = torch.nn.functional
TORCH: dict[str, tuple[int, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "a quotient": (1, lambda x, one: x / 3),
    "a mean": (3, lambda x, one: x.mean(1, keepdim=True)),
    "an average pooling": (3, lambda x, one: F.avg_pool1d(x[:, None], 3)),
    "an adaptive average pooling": (3, lambda x, one: F.adaptive_avg_pool1d(x[:, None], 1)),
    "an interpolation": (2, lambda x, one: F.interpolate(x[:, None], 4, mode="linear", align_corners=True)[..., 2:3]),
    "a hard sigmoid": (1, lambda x, one: F.hardsigmoid(x - 2)),
    "a folded quotient": (1, lambda x, one: x * (one / 3)),
    "a folded quotient, moved": (1, lambda x, one: F.linear(x, (one / 3)[None])),
    "a folded bound": (1, lambda x, one: torch.minimum(x, one / 3)),
    "a folded constant": (1, lambda x, one: one / 3 + 0 * x),
}


def spec(nx: int, lower: float, unsafe: str) -> str:
    names = "".join(f"(declare-const X_{i} Real)\n" for i in range(nx)) + "(declare-const Y_0 Real)\n"
    bounds = [(lower, 1.0)] + [(0.0, 0.0)] * (nx - 1)
    return (
        names + "".join(f"(assert (>= X_{i} {a}))\n(assert (<= X_{i} {b}))\n" for i, (a, b) in enumerate(bounds)) + f"(assert {unsafe})\n"
    )


def load(name: str, folder: Path, lower: float, unsafe: str) -> mv.Problem:
    case = ONNX[name]
    onnx.save(case.model(), folder / "net.onnx")
    (folder / "spec.vnnlib").write_text(spec(int(np.prod(case.shape)), lower, unsafe))
    return mv.load(folder / "net.onnx", folder / "spec.vnnlib")


@pytest.mark.parametrize("name", ONNX)
@pytest.mark.parametrize("lower", [0.5, 1.0])
def test_a_tie_in_the_reals_is_no_proof(name: str, lower: float, tmp_path: Path, processes: None) -> None:
    """The real output at x = 1 is 1/3, which is unsafe; the float64 next to 1/3 is below it."""
    problem = load(name, tmp_path, lower, "(>= (* 3 Y_0) 1)")
    for label, method in METHODS.items():
        result = mv.verify(problem, 0.5, method, options=mv.Options(attack=False, trust="exact" if label == "smt" else "solver"))
        assert result.verdict is not Verdict.VERIFIED, label
        assert result.lower_bound <= 0, label


@pytest.mark.parametrize("name", ONNX)
def test_what_is_clear_is_proved(name: str, tmp_path: Path, processes: None) -> None:
    problem = load(name, tmp_path, 0.5, "(>= (* 3 Y_0) 1.000001)")
    assert mv.verify(problem, 10.0, options=mv.Options(attack=False, trust="rounded")).verdict is Verdict.VERIFIED


@pytest.mark.parametrize("name", ONNX)
def test_an_smt_script_knows_what_is_exact(name: str, tmp_path: Path, processes: None) -> None:
    for unsafe, answer in (("(>= (* 3 Y_0) 1)", Answer.SAT), ("(>= (* 3 Y_0) 1.000000000001)", Answer.UNSAT)):
        problem = load(name, tmp_path, 0.5, unsafe)
        script = smt_script(problem.graph, problem.disjuncts[0])
        assert Lasting("z3").solve(script, Limits(20.0), mv.Deadline()).answer is answer


def holds_a_third(graph: Graph) -> None:
    x = torch.zeros(1, graph.nx, dtype=torch.float64)
    x[0, 0] = 1.0
    low, high = (Fraction(t.item()) for t in enclose(graph, x))
    assert low < Fraction(1, 3) < high < low + Fraction(1, 2**40)
    assert graph.rounded
    assert exact_outputs(graph, x[0].numpy()) is None
    for dtype in (torch.float32, torch.float64):
        for method in ("ibp", "crown"):
            found = mv.bounds(graph, mv.Box(x[0].numpy(), x[0].numpy()), method=method, dtype=dtype).output
            assert Fraction(found.lower.item()) < Fraction(1, 3) < Fraction(found.upper.item()), (dtype, method)


@pytest.mark.parametrize("name", ONNX)
def test_onnx_bounds_contain_the_reals(name: str, tmp_path: Path) -> None:
    holds_a_third(load(name, tmp_path, 0.5, "(>= Y_0 1)").graph)


@pytest.mark.parametrize("name", TORCH)
def test_torch_bounds_contain_the_reals(name: str) -> None:
    nx, body = TORCH[name]
    box = mv.Box(np.array([0.5] + [0.0] * (nx - 1)), np.array([1.0] + [0.0] * (nx - 1)))
    holds_a_third(mv.Problem(Third(body).eval(), box, unsafe="(>= Y_0 1)").graph)


def test_what_is_exact_has_no_mark(tmp_path: Path) -> None:
    halves = Case([N("Div", ["x", "c"], ["b"]), N("ReduceMean", ["b"], ["a"], axes=[1])], (1, 4), {"c": one(8.0)})
    onnx.save(halves.model(), tmp_path / "net.onnx")
    (tmp_path / "spec.vnnlib").write_text(spec(4, 0.5, "(>= (* 32 Y_0) 1)"))
    problem = mv.load(tmp_path / "net.onnx", tmp_path / "spec.vnnlib")
    assert not problem.graph.rounded
    assert exact_outputs(problem.graph, np.array([1.0, 0.0, 0.0, 0.0])) == [Fraction(1, 32)]
