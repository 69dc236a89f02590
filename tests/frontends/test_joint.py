"""Networks side by side: their own values, each of its part of the input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from networks import absolute_value, write_relu_network

from milpverify.frontends.joint import JointRuntime, side_by_side
from milpverify.frontends.onnx.reading import read_network
from milpverify.graph import evaluate


def test_values_are_those_of_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=(5, 3)), rng.normal(size=5)), (rng.normal(size=(2, 5)), rng.normal(size=2))]
    f, f_source = read_network(absolute_value(tmp_path / "f.onnx"))
    g, g_source = read_network(write_relu_network(tmp_path / "g.onnx", layers))
    both = side_by_side([f, g, f])
    x = torch.from_numpy(rng.normal(size=(20, 7)).astype(np.float32).astype(np.float64))
    apart = torch.cat([evaluate(f, x[:, :2]), evaluate(g, x[:, 2:5]), evaluate(f, x[:, 5:])], dim=1)
    assert torch.equal(evaluate(both, x), apart)
    assert [spec.size for spec in both.inputs] == [2, 3, 2]
    assert [spec.size for spec in both.outputs] == [1, 2, 1]
    runtime = JointRuntime((f_source.runtime(), g_source.runtime(), f_source.runtime()), (2, 3, 2))
    np.testing.assert_allclose(runtime.run(x[0].numpy()), apart[0].numpy(), rtol=1e-5)


def test_one_stays_as_it_is(tmp_path: Path) -> None:
    graph, _ = read_network(absolute_value(tmp_path / "f.onnx"))
    assert side_by_side([graph]) is graph
