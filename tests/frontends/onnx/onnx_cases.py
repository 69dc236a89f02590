"""Builds one-operator ONNX networks, and checks what a lowered network must satisfy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from milpverify.frontends.onnx.check import check
from milpverify.frontends.onnx.lowering import lower
from milpverify.frontends.onnx.reading import Source
from milpverify.frontends.onnx.runtime import OnnxRuntime
from milpverify.graph import Graph, evaluate, evaluate_all
from milpverify.operators import Affine
from milpverify.spec import Box

Shape = tuple[int, ...]
FLOAT = TensorProto.FLOAT


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str] | None],
    outputs: Sequence[str],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 13,
    kind: int = FLOAT,
    listed: bool = False,
) -> onnx.ModelProto:
    """A model; `listed` lists the initializers among the inputs, as old exporters do."""
    weights = [numpy_helper.from_array(v, k) for k, v in (constants or {}).items()]
    infos = [helper.make_tensor_value_info(k, kind, v) for k, v in inputs.items()]
    if listed:
        infos = [helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in weights] + infos
    ends = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "test", infos, ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if opset < 9 else 8 if opset < 19 else 10)


def single(op: str, *inputs: Shape | np.ndarray | None, opset: int = 13, outputs: int = 1, **attributes: object) -> onnx.ModelProto:
    """One node: a shape is a variable input, an array an initializer, None an input that is left out."""
    names, variables, constants = [], {}, {}
    for i, value in enumerate(inputs):
        names.append("" if value is None else f"in{i}")
        if isinstance(value, np.ndarray):
            constants[f"in{i}"] = value
        elif value is not None:
            variables[f"in{i}"] = value
    ends = [f"out{i}" for i in range(outputs)]
    # Old opsets list every initializer among the inputs.
    return build([helper.make_node(op, names, ends, name="it", **attributes)], variables, ends, constants, opset, listed=opset < 9)


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def scalar(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def agrees(model: onnx.ModelProto, seed: int = 0, points: int = 5) -> Graph:
    """Lower it; it must do what ONNX Runtime does, and every affine node must have the right adjoint and |W|.

    What is raised says which model.
    """
    try:
        return _agreeing(model, seed, points)
    except Exception as error:
        error.add_note(f"{onnx.printer.to_text(model.graph)} opset {model.opset_import[0].version}")
        raise


def _agreeing(model: onnx.ModelProto, seed: int, points: int) -> Graph:
    graph = lower(model)
    rng = np.random.default_rng(seed)
    x = (2 * rng.normal(size=(points, graph.nx))).astype(np.float32).astype(np.float64)
    session = OnnxRuntime(model.SerializeToString())
    runtime = np.stack([session.run(point) for point in x])
    lowered = evaluate(graph, torch.from_numpy(x)).numpy()
    assert lowered.shape == runtime.shape == (points, graph.ny)
    assert graph.ny == sum(s.size for s in graph.outputs)
    np.testing.assert_allclose(lowered, runtime, rtol=2e-5, atol=2e-5)
    check(graph, Source.of(model), Box(-2 * np.ones(graph.nx), 2 * np.ones(graph.nx)), seed)
    adjoints_hold(graph, seed)
    return graph


def adjoints_hold(graph: Graph, seed: int) -> None:
    """<W x, y> = <x, W^T y> and |W x| <= |W| |x|, at every affine node."""
    generator = torch.Generator().manual_seed(seed)
    values = evaluate_all(graph, torch.randn(1, graph.nx, generator=generator, dtype=torch.float64))
    assert [v.shape[1:] for v in values] == [n.shape for n in graph.nodes]
    for node in graph.nodes:
        if not isinstance(node.op, Affine):
            continue
        xs = [torch.randn(2, *graph.nodes[i].shape, generator=generator, dtype=torch.float64) for i in node.inputs]
        y = torch.randn(2, *node.shape, generator=generator, dtype=torch.float64)
        image = node.op.linear(xs)
        parts = node.op.adjoint(y)
        assert [p.shape for p in parts] == [x.shape for x in xs], node
        torch.testing.assert_close((image * y).flatten(1).sum(1), sum((x * p).flatten(1).sum(1) for x, p in zip(xs, parts, strict=True)))
        assert bool((image.abs() <= node.op.absolute().linear([x.abs() for x in xs]) * (1 + 1e-12) + 1e-12).all()), node
