"""Small ONNX networks and VNN-LIB properties that the command-line tests are run on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Layers = Sequence[tuple[np.ndarray, np.ndarray]]


def write_relu_network(path: Path, layers: Layers) -> Path:
    """Write y = W_k relu(... relu(W_1 x + b_1) ...) + b_k as ONNX in float32."""
    nodes, weights, value = [], [], "x"
    for i, (w, b) in enumerate(layers):
        weights += [numpy_helper.from_array(np.asarray(a, dtype=np.float32), f"{n}{i}") for n, a in (("w", w), ("b", b))]
        last = i + 1 == len(layers)
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], ["y" if last else f"z{i}"], name=f"gemm{i}", transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [f"z{i}"], [f"h{i}"], name=f"relu{i}"))
            value = f"h{i}"
    return write_graph(path, nodes, len(layers[0][0][0]), len(layers[-1][1]), weights)


def write_graph(path: Path, nodes: list[object], nx: int, ny: int, weights: Sequence[object] = ()) -> Path:
    """Write ONNX nodes that lead from "x" (1, nx) to "y" (1, ny)."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, nx])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, ny])
    graph = helper.make_graph(nodes, "test", [x], [y], list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def write_property(path: Path, lower: Sequence[float], upper: Sequence[float], unsafe: str, ny: int = 1) -> Path:
    """Write a box and an unsafe set, as a VNN-LIB term over X_i and Y_i."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))] + [f"(declare-const Y_{i} Real)" for i in range(ny)]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {low!r}))", f"(assert (<= X_{i} {high!r}))"]
    path.write_text("\n".join([*lines, f"(assert {unsafe})"]) + "\n")
    return path


def absolute_value(path: Path) -> Path:
    """y = |x_0| + |x_1|, exact in float32."""
    hidden = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    return write_relu_network(path, [(hidden, np.zeros(4)), (np.ones((1, 4)), np.zeros(1))])


def hard_pair(folder: Path) -> tuple[Path, Path]:
    """What no solver decides within minutes: a wide random network, and a threshold just below what descent attains."""
    rng = np.random.default_rng(0)
    sizes = [24, 64, 64, 64, 1]
    layers = [(rng.normal(0, (2 / n) ** 0.5, (m, n)), rng.normal(0, 0.3, m)) for n, m in pairwise(sizes)]
    x = rng.uniform(-1, 1, (256, sizes[0]))
    for _ in range(60):  # projected gradient descent with signs
        values, masks = x, []
        for w, b in layers[:-1]:
            z = values @ w.T + b
            masks.append(z > 0)
            values = np.maximum(z, 0)
        gradient = np.broadcast_to(layers[-1][0], (len(x), sizes[-2]))
        for (w, _), mask in zip(reversed(layers[:-1]), reversed(masks), strict=True):
            gradient = (gradient * mask) @ w
        x = np.clip(x - 0.05 * np.sign(gradient), -1, 1)
    for w, b in layers[:-1]:
        x = np.maximum(x @ w.T + b, 0)
    minimum = float((x @ layers[-1][0].T + layers[-1][1]).min())
    network = write_relu_network(folder / "hard.onnx", layers)
    box = [1.0] * sizes[0]
    return network, write_property(folder / "hard.vnnlib", [-b for b in box], box, f"(<= Y_0 {minimum - 0.3 * abs(minimum) - 0.3!r})")
