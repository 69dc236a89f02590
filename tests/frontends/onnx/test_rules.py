"""Every ONNX operator that is lowered is in the manual, and in a case of these tests."""

from __future__ import annotations

import re

import onnx
import pytest
from onnx import TensorProto, helper
from onnx_cases import agrees, build, single
from support import ROOT

from milpverify.frontends.onnx.lowering import RULES
from milpverify.functions.catalogue import catalogue

OPERATORS = sorted(RULES.keys() | {op for entry in catalogue().values() for op in entry.onnx})

CASES = {
    "Tan": single("Tan", (2, 3)),
    "Atanh": build([helper.make_node("Sigmoid", ["x"], ["a"]), helper.make_node("Atanh", ["a"], ["y"])], {"x": (4,)}, ["y"]),
    "IsInf": build(
        [
            helper.make_node("IsInf", ["x"], ["a"]),
            helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["x", "b"], ["y"]),
        ],
        {"x": (4,)},
        ["y"],
    ),
}


@pytest.mark.parametrize("model", CASES.values(), ids=CASES)
def test_operators_agree_with_onnx_runtime(model: onnx.ModelProto) -> None:
    agrees(model)


MANUAL = (ROOT / "README.md").read_text().partition("\n## What is supported\n")[2].partition("\n### Not there yet\n")[0]
TESTS = "\n".join(
    path.read_text() for path in (ROOT / "tests" / "frontends").rglob("*.py") if path.name not in ("test_doors.py", "test_adding.py")
)


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_is_in_the_manual_and_in_a_case(op: str) -> None:
    name = op.rpartition(".")[2]
    assert re.search(rf"\b{name}\b", MANUAL), f"the README's list of what is supported does not have {name}"
    assert re.search(rf"""["' ]{name}["' ]""", TESTS), f"no test lowers {name}"
