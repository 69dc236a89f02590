from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import absolute_value, write_property
from torch import nn

from milpverify.config import Deadline
from milpverify.counterexamples.attack import attack
from milpverify.counterexamples.validate import Validity, validate
from milpverify.errors import InvalidModel, InvalidProperty, OutOfTime
from milpverify.frontends.load import load
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.frontends.vnnlib.alternatives import PropertyTuning
from milpverify.graph import evaluate
from milpverify.operators import Product


def packed(path: Path) -> Path:
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


def test_a_problem_from_files(tmp_path: Path) -> None:
    network, prop = absolute_value(tmp_path / "abs.onnx"), write_property(tmp_path / "p.vnnlib", [-1.0, 0.25], [1.0, 2.0], "(<= Y_0 0.5)")
    for paths in ((network, prop), (str(packed(network)), packed(prop))):
        problem = load(*paths)
        assert (problem.graph.nx, problem.graph.ny) == (2, 1)
        assert list(problem.files) == list(map(str, paths))
        (disjunct,) = problem.disjuncts
        assert disjunct.box.lower.tolist() == [-1.0, 0.25]
        assert validate(problem, disjunct, np.array([0.25, 0.25])).status is Validity.HOLDS
        assert validate(problem, disjunct, np.array([-0.25, 0.5])).status is Validity.NOT_A_COUNTEREXAMPLE
        example = attack(problem, problem.graph, problem.disjuncts, Deadline(10.0)).counterexample
        assert example is not None
        assert abs(example.x).sum() <= 0.5


def test_loading_heeds_its_time(tmp_path: Path) -> None:
    files = absolute_value(tmp_path / "abs.onnx"), write_property(tmp_path / "p.vnnlib", [-1.0, 0.25], [1.0, 2.0], "(<= Y_0 0.5)")
    deadline = Deadline()
    load(*files, deadline=deadline)
    deadline.cancel()
    with pytest.raises(OutOfTime, match="interrupted"):
        load(*files, deadline=deadline)
    with pytest.raises(TimeoutError, match="time limit"):
        load(*files, timeout=0.0)


def test_numbers_of_reading_are_handed_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Softmax(1)).eval()
    prop = write_property(tmp_path / "p.vnnlib", [0.0, 0.0], [1.0, 1.0], "(or (<= Y_0 0.5) (<= Y_0 0.25))", ny=3)
    plain, other = load(net, prop), load(net, prop, tuning=(LoweringTuning(pairs=0), PropertyTuning(comparisons=0)))
    assert len(plain.disjuncts) == 1 and len(other.disjuncts) == 2
    kinds = [[type(node.op) for node in problem.graph.nodes] for problem in (plain, other)]
    assert Product not in kinds[0] and Product in kinds[1]
    x = torch.rand(5, 2, dtype=torch.float64)
    torch.testing.assert_close(*(evaluate(problem.graph, x) for problem in (plain, other)))


def test_what_does_not_fit_together(tmp_path: Path) -> None:
    network = absolute_value(tmp_path / "abs.onnx")
    three = write_property(tmp_path / "three.vnnlib", [0.0] * 3, [1.0] * 3, "(<= Y_0 0.5)")
    with pytest.raises(InvalidProperty, match=r"three\.vnnlib, line 3: the property names input X_2, but the network has 2 inputs"):
        load(network, three)
    one = write_property(tmp_path / "one.vnnlib", [0.0], [1.0], "(<= Y_0 0.5)")
    with pytest.raises(InvalidProperty, match="declares 1 inputs, but the network has 2"):
        load(network, one)
    output = write_property(tmp_path / "output.vnnlib", [0.0] * 2, [1.0] * 2, "(<= Y_7 0.5)", ny=1)
    with pytest.raises(InvalidProperty, match="names output Y_7, but the network has 1 outputs"):
        load(network, output)
    with pytest.raises(InvalidProperty, match=r"missing\.vnnlib"):
        load(network, tmp_path / "missing.vnnlib")
    with pytest.raises(InvalidModel, match=r"missing\.onnx"):
        load(tmp_path / "missing.onnx", one)
