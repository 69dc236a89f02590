"""What the numbered examples share: scikit-learn's digits, training, a small ReLU network, and its ONNX and VNN-LIB files.

The ONNX file is written with onnx.helper, so that no exporter package is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The images as (1797, 64) float32 with pixels in [0, 1], and their labels."""
    data = load_digits()
    return (data.data / 16).astype(np.float32), data.target


def train(images: np.ndarray, labels: np.ndarray, hidden: int = 24, epochs: int = 40, seed: int = 0) -> nn.Sequential:
    """A 64 - hidden - hidden - 10 ReLU network; a few seconds."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    return fit(net, images, labels, epochs)


def fit(net: nn.Sequential, images: np.ndarray, labels: np.ndarray, epochs: int) -> nn.Sequential:
    """Train a network that gives one score per digit, in place."""
    torch.set_num_threads(1)  # the networks are too small to gain from more
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net


def write_onnx(net: nn.Sequential, path: Path) -> None:
    """Write a chain of Linear and ReLU layers as ONNX."""
    nodes, weights, value = [], [], "x"
    for i, layer in enumerate(net):
        out = f"h{i}" if i + 1 < len(net) else "y"
        if isinstance(layer, nn.Linear):
            weights += [numpy_helper.from_array(p.detach().numpy(), f"{name}{i}") for name, p in layer.named_parameters()]
            nodes.append(helper.make_node("Gemm", [value, f"weight{i}", f"bias{i}"], [out], transB=1))
        else:
            nodes.append(helper.make_node("Relu", [value], [out]))
        value = out
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 64), ("y", 10))]
    graph = helper.make_graph(nodes, "digits", tensors[:1], tensors[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="milpverify-examples")
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def write_robustness(path: Path, image: np.ndarray, label: int, eps: float) -> None:
    """Write "no image within eps of this one, pixel by pixel, gets another label" as VNN-LIB: the unsafe set is that one does."""
    lines = [f"; label {label}, every pixel within {eps} of the image and in [0, 1]"]
    lines += [f"(declare-const X_{i} Real)" for i in range(64)] + [f"(declare-const Y_{i} Real)" for i in range(10)]
    for i, pixel in enumerate(image.astype(float)):
        lines.append(f"(assert (>= X_{i} {max(pixel - eps, 0.0):.9g}))")
        lines.append(f"(assert (<= X_{i} {min(pixel + eps, 1.0):.9g}))")
    others = " ".join(f"(and (>= Y_{k} Y_{label}))" for k in range(10) if k != label)
    path.write_text("\n".join([*lines, f"(assert (or {others}))"]) + "\n")
