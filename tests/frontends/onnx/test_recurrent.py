"""ONNX's recurrent operators against ONNX Runtime, in every direction and with and without their optional inputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_cases import agrees, build, floats

from milpverify.errors import UnsupportedOperator
from milpverify.frontends.onnx.lowering import lower
from milpverify.operators import Product

RNG = np.random.default_rng(3)
STEPS, BATCH, INPUTS, HIDDEN = 3, 2, 4, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
MANY = {"activation_alpha": [0.3, 0.1, 0.9, 0.7], "activation_beta": [0.4, 0.8]}


def layer(
    op: str,
    direction: str = "forward",
    bias: bool = True,
    state: str = "",
    opset: int = 14,
    outputs: int = 2,
    peepholes: bool = False,
    lengths: tuple[int, ...] = (),
    **attributes: object,
) -> onnx.ModelProto:
    """A layer whose initial state is left out (""), "constant" or the network's "input"."""
    d, n = DIRECTIONS[direction], GATES[op]
    constants = {"w": floats(RNG, d, n * HIDDEN, INPUTS), "r": floats(RNG, d, n * HIDDEN, HIDDEN)}
    inputs: dict[str, tuple[int, ...]] = {"x": (STEPS, BATCH, INPUTS)}
    if bias:
        constants["b"] = floats(RNG, d, 2 * n * HIDDEN)
    states = [f"s{i}" for i in range(2 if op == "LSTM" else 1)] if state else []
    for name in states:
        if state == "constant":
            constants[name] = floats(RNG, d, BATCH, HIDDEN)
        else:
            inputs[name] = (d, BATCH, HIDDEN)
    if peepholes:
        constants["p"] = floats(RNG, d, 3 * HIDDEN)
        states = states or ["", ""]
    if lengths:
        constants["lengths"] = np.array(lengths, dtype=np.int32)
    names = ["x", "w", "r", "b" if bias else "", "lengths" if lengths else "", *states, *(["p"] if peepholes else [])]
    ends = ["y", "h", "c"][:outputs]
    node = helper.make_node(op, names, ends, name="it", hidden_size=HIDDEN, direction=direction, **attributes)
    return build([node], inputs, ends, constants, opset)


def layers() -> Iterator[onnx.ModelProto]:
    for op in GATES:
        for direction in DIRECTIONS:
            for state in ("", "constant", "input"):
                yield layer(op, direction, state != "constant", state, outputs=3 if op == "LSTM" else 2)
    for opset in (7, 14, 22):
        yield layer("LSTM", opset=opset)
    for state in ("", "input"):
        yield layer("GRU", "bidirectional", state=state, linear_before_reset=1)
        yield layer("GRU", bias=False, state=state, linear_before_reset=1)
    yield layer("RNN", "bidirectional", activations=["Relu", "Relu"])
    yield layer("RNN", activations=["Sigmoid"])
    yield layer("LSTM", activations=["Sigmoid", "Tanh", "Tanh"])
    for state in ("", "input"):
        yield layer("LSTM", "bidirectional", state=state, outputs=3, peepholes=True)
    yield layer("LSTM", peepholes=True, input_forget=1, outputs=3)
    yield layer("LSTM", activations=["HardSigmoid", "Softsign", "Relu"])
    yield layer("LSTM", "bidirectional", activations=["HardSigmoid", "LeakyRelu", "Softplus", "Sigmoid", "ScaledTanh", "Elu"], **MANY)
    yield layer("GRU", "reverse", activations=["HardSigmoid", "Affine"], activation_alpha=[0.3, 0.7], activation_beta=[0.4, -0.1])
    for op in GATES:
        for direction in DIRECTIONS:
            yield layer(op, direction, state="input", outputs=3 if op == "LSTM" else 2, lengths=(2, 3))


@pytest.mark.parametrize("model", list(layers()), ids=lambda model: model.graph.node[0].op_type)
def test_layers_agree_with_onnx_runtime(model: onnx.ModelProto) -> None:
    agrees(model, points=3)


def test_a_zero_state_costs_no_products() -> None:
    products = sum(node.size for node in lower(layer("LSTM")).nodes if isinstance(node.op, Product))
    assert products == BATCH * HIDDEN * (3 * STEPS - 1)  # nothing is forgotten in the first step
    products = sum(node.size for node in lower(layer("GRU", linear_before_reset=1)).nodes if isinstance(node.op, Product))
    assert products == BATCH * HIDDEN * (2 * STEPS - 1)


def test_variants_without_a_rule_are_named() -> None:
    for model, word in (
        (layer("LSTM", clip=1.0), "clip"),
        (layer("GRU", clip=1.0), "clip"),
        (layer("LSTM", activations=["Sigmoid", "ThresholdedRelu", "Tanh"]), "thresholdedrelu"),
        (layer("GRU", layout=1), "layout"),
    ):
        with pytest.raises(UnsupportedOperator, match=word):
            lower(model)
