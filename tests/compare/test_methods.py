"""Names of methods, and lists of problems."""

from __future__ import annotations

from pathlib import Path

import pytest
from networks import absolute_value, write_property

from milpverify.compare.methods import DEFAULT, Exact, Search, Splits, method_of, methods_of
from milpverify.compare.sources import Instance, instances_of, read_instances
from milpverify.compare.tools import Tool
from milpverify.config import Milp, SearchMethod
from milpverify.errors import InvalidInput


def test_names() -> None:
    assert [m.name for m in methods_of(DEFAULT)] == list(DEFAULT)
    assert method_of("milp") == Search("milp", Milp("scip"))
    assert method_of("milp:highs") == Search("milp:highs", Milp("highs"))
    assert method_of("bab") == Search("bab", SearchMethod.BAB)
    assert method_of("beta-crown:7") == Splits("beta-crown:7", 7)
    assert method_of("exact:1e-6") == Exact("exact:1e-6", 1e-6)


def test_tools_have_names() -> None:
    assert method_of("other=run -x {onnx} {vnnlib} {timeout}") == Tool("other", "run -x {onnx} {vnnlib} {timeout}")
    assert method_of("/opt/a/run.sh v1 {onnx} {vnnlib} --limit={timeout}").name == "run.sh"
    for text, words in (("run {onnx}", "needs"), ("x='{onnx} {vnnlib}", "cannot be read"), ("={onnx} {vnnlib}", "name")):
        with pytest.raises(InvalidInput, match=words):
            method_of(text)


@pytest.mark.parametrize("name", ["crwn", "beta-crown:x", "beta-crown:1.5", "exact:0", "exact:nan", "milp:z3", "lp:1", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(InvalidInput, match="unknown method"):
        method_of(name)


def test_lists_of_methods() -> None:
    with pytest.raises(InvalidInput, match="twice"):
        methods_of(["lp", "lp"])
    with pytest.raises(InvalidInput, match="no method"):
        methods_of([])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return absolute_value(tmp_path / "net.onnx"), write_property(tmp_path / "p.vnnlib", [-1, -1], [1, 1], "(<= Y_0 -0.5)")


def test_lists_of_instances(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    net, spec = pair
    path = tmp_path / "instances.csv"
    path.write_text("net.onnx,p.vnnlib,12.5\n")
    assert read_instances(path) == [Instance("net p", net, spec, 12.5)]
    path.write_text("family,onnx,vnnlib,timeout_s,expected\nx,net.onnx,p.vnnlib,3,unsat\n")
    assert instances_of(path) == [Instance("net p", net, spec, 3.0)]
    (tmp_path / "more").mkdir()
    other = write_property(tmp_path / "more" / "p.vnnlib", [-1, -1], [1, 1], "(<= Y_0 -0.6)")
    names = [i.name for i in instances_of([(net, spec), (net, other)])]
    assert len(set(names)) == 2 and str(other) in names[1]
    bad = {
        "net.onnx\n": "line 1",
        "net.onnx,p.vnnlib,1,2\n": "line 1",
        "net.onnx,p.vnnlib,x\n": "time limit",
        "net.onnx,no.vnnlib,1\n": "no file",
        "net.onnx,p.vnnlib,1\nnet.onnx,p.vnnlib,1\n": "twice",
        "": "no problem",
    }
    for text, words in bad.items():
        path.write_text(text)
        with pytest.raises(InvalidInput, match=words):
            instances_of(path)
    with pytest.raises(InvalidInput, match="pair of files"):
        instances_of([3])  # type: ignore[list-item]
