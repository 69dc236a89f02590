"""The lowering rules of ONNX's recurrent operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering import recurrent
from milpverify.frontends.lowering.builder import Builder, Index, entries
from milpverify.frontends.lowering.constants import Array, Constant
from milpverify.frontends.lowering.recurrent import Activation
from milpverify.frontends.onnx.node import Operation, Value, rule
from milpverify.graph import Node

COMMON = "direction hidden_size layout activations activation_alpha activation_beta"
DIRECTIONS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}

_FUNCTIONS: dict[str, tuple[str, dict[str, float]]] = {
    "relu": ("relu", {}),
    "tanh": ("tanh", {}),
    "sigmoid": ("sigmoid", {}),
    "softsign": ("softsign", {}),
    "softplus": ("softplus", {}),
    "leakyrelu": ("leaky_relu", {"alpha": 0.01}),
    "elu": ("elu", {"alpha": 1.0}),
    "affine": ("", {"alpha": 1.0, "beta": 0.0}),
    "scaledtanh": ("tanh", {"alpha": 1.0, "beta": 1.0}),
    "hardsigmoid": ("clip", {"alpha": 0.2, "beta": 0.5}),
}
"""By ONNX's names in small letters: the function of the catalogue and the defaults of its parameters, as ONNX Runtime has them."""


def _activations(op: Operation, default: str) -> list[list[Activation]]:
    """The functions of each direction. Parameters are taken, in order, by those functions that have some."""
    count = len(default.split())
    names = [a.lower() for a in op.attributes.get("activations") or default.split()]
    directions = len(_directions(op))
    names = (names[:count] * directions if len(names) < count * directions else names)[: count * directions]
    given = {key: iter(op.attributes.get(f"activation_{key}") or []) for key in ("alpha", "beta")}
    found = []
    for name in names:
        if name not in _FUNCTIONS:
            raise op.refuse(f"the activation {name} has no rule; {', '.join(_FUNCTIONS)} have")
        own, parameters = _FUNCTIONS[name]
        found.append(_function(name, own, {key: next(given[key], value) for key, value in parameters.items()}))
    return [found[i : i + count] for i in range(0, len(found), count)]


def _function(name: str, own: str, parameters: dict[str, float]) -> Activation:
    alpha, beta = parameters.get("alpha", 1.0), parameters.get("beta", 0.0)
    match name:
        case "affine":
            return lambda g, x: g.scale(x, alpha, beta)
        case "scaledtanh":
            return lambda g, x: g.scale(g.function("tanh", g.scale(x, beta)), alpha)
        case "hardsigmoid":
            return lambda g, x: g.clip(g.scale(x, alpha, beta), 0.0, 1.0)
        case _:
            return recurrent.activation(own, **parameters)


def _lengths(op: Operation) -> Index | None:
    """How long each sequence of the batch is, where some are shorter than the input."""
    if op.attributes.get("layout"):
        raise op.refuse("layout 1 has no rule, nor does ONNX Runtime run it; export it with layout 0")
    steps, lengths = op.node().shape[0], op.constant(4)
    if lengths is None or np.all(lengths == steps):
        return None
    if lengths.shape != (op.node().shape[1],) or lengths.min() < 1 or lengths.max() > steps:
        raise InvalidModel(f"{op} has sequence_lens {lengths.tolist()} for an input of shape {op.node().shape}")
    return lengths.astype(np.int64)


@dataclass(frozen=True)
class _Sequences:
    """Sequences (steps, batch, features) of lengths of their own, each worked from its first step to its last.

    Args:
        order: (steps, batch), the step of the input that is worked in each turn; beyond a sequence's end it does not matter.
        lengths: (batch,).
    """

    order: Index
    lengths: Index

    @staticmethod
    def of(steps: int, lengths: Index, backwards: bool) -> _Sequences:
        turns = np.arange(steps)[:, None] + 0 * lengths
        return _Sequences(np.where(turns < lengths, lengths - 1 - turns, turns) if backwards else turns, lengths)

    def taken(self, g: Builder, x: Node) -> Node:
        return g.select(x, np.take_along_axis(entries(x.shape), self.order[:, :, None], 0))

    def put_back(self, g: Builder, states: list[Node]) -> list[Node]:
        """The states of every turn, in the order of the input; 0 beyond a sequence's end."""
        joined = g.concat([g.reshape(s, (1, *s.shape)) for s in states], 0)
        places = np.take_along_axis(entries(joined.shape), self.order[:, :, None], 0)
        places = np.where((np.arange(len(states))[:, None] < self.lengths)[:, :, None], places, -1)
        return [g.select(joined, row) for row in places]

    def last(self, g: Builder, states: list[Node]) -> Node:
        joined = g.concat([g.reshape(s, (1, *s.shape)) for s in states], 0)
        return g.select(joined, np.take_along_axis(entries(joined.shape), (self.lengths - 1)[None, :, None], 0)[0])


Run = Callable[[int, Node, bool], tuple[list[Node], ...]]
"""Works a direction's sequence, backwards or not: the states after every step, in the order of the input, and the cells."""


def _worked(g: Builder, op: Operation, run: Run) -> list[Value]:
    """Y (steps, directions, batch, hidden), then Y_h and of an LSTM Y_c (directions, batch, hidden)."""
    x, lengths = op.node(), _lengths(op)
    outputs, ends = [], []
    for d, backwards in enumerate(_directions(op)):
        if lengths is None:
            found = run(d, x, backwards)
            outputs.append(found[0])
            ends.append([s[0] if backwards else s[-1] for s in found])
        else:
            sequences = _Sequences.of(x.shape[0], lengths, backwards)
            found = run(d, sequences.taken(g, x), False)
            outputs.append(sequences.put_back(g, found[0]))
            ends.append([sequences.last(g, s) for s in found])
    steps = _stacked(g, [_stacked(g, s, 0) for s in outputs], 1)
    return [steps, *(_stacked(g, list(last), 0) for last in zip(*ends, strict=True))]


def _stacked(g: Builder, nodes: Sequence[Node], axis: int) -> Node:
    return g.concat([g.reshape(n, (*n.shape[:axis], 1, *n.shape[axis:])) for n in nodes], axis)


def _directions(op: Operation) -> list[bool]:
    """Whether each direction runs backwards."""
    direction = op.attributes["direction"]
    if direction not in DIRECTIONS:
        raise InvalidModel(f"{op} has the direction '{direction}'")
    return DIRECTIONS[direction]


def _state(g: Builder, op: Operation, i: int, direction: int) -> Node | None:
    """An initial state (directions, batch, hidden) at input i; None where it is zero."""
    value = op.optional(i)
    if value is None or (not isinstance(value, Node) and not np.any(value[direction])):
        return None
    return g.select(value, entries(value.shape)[direction]) if isinstance(value, Node) else g.constant(value[direction])


def _bias(array: Array | None) -> Constant | None:
    """The biases beside both products, which enter as their sum."""
    if array is None:
        return None
    first, second = np.split(array, 2)
    return Constant(first) + second


def _reordered(array: Array, order: Sequence[int]) -> Array:
    """The stacked gates in another order."""
    return np.concatenate([np.split(array, len(order))[i] for i in order])


@rule("LSTM", attributes=f"{COMMON} input_forget")
def _lstm(g: Builder, op: Operation) -> Sequence[Value]:
    w, r, b, p = op.weight(1), op.weight(2), op.constant(3), op.constant(7)
    functions = _activations(op, "sigmoid tanh tanh")
    order = (0, 2, 1, 3)  # ONNX has i, o, f, g

    def run(d: int, x: Node, backwards: bool) -> tuple[list[Node], ...]:
        bias = _bias(None if b is None else b[d])
        bias = None if bias is None else bias.moved(_reordered(bias.value, order))
        peepholes = None if p is None else np.stack([np.split(p[d], 3)[i] for i in (0, 2, 1)])  # ONNX has i, o, f here, too
        weights, coupled = (_reordered(w[d], order), _reordered(r[d], order), bias), bool(op.attributes["input_forget"])
        cell = recurrent.LstmCell(*weights, peepholes, coupled, functions[d])
        return recurrent.lstm(g, x, cell, _state(g, op, 5, d), _state(g, op, 6, d), backwards)

    return _worked(g, op, run)


@rule("GRU", attributes=f"{COMMON} linear_before_reset")
def _gru(g: Builder, op: Operation) -> Sequence[Value]:
    w, r, b = op.weight(1), op.weight(2), op.constant(3)
    functions = _activations(op, "sigmoid tanh")
    after = bool(op.attributes["linear_before_reset"])

    def run(d: int, x: Node, backwards: bool) -> tuple[list[Node], ...]:
        first, second = (None, None) if b is None else np.split(b[d], 2)
        bias = None if first is None or second is None else (first, second)
        cell = recurrent.GruCell(w[d], r[d], bias, after, functions[d])
        return (recurrent.gru(g, x, cell, _state(g, op, 5, d), backwards),)

    return _worked(g, op, run)


@rule("RNN", attributes=COMMON)
def _rnn(g: Builder, op: Operation) -> Sequence[Value]:
    w, r, b = op.weight(1), op.weight(2), op.constant(3)
    functions = _activations(op, "tanh")

    def run(d: int, x: Node, backwards: bool) -> tuple[list[Node], ...]:
        bias = _bias(None if b is None else b[d])
        return (recurrent.rnn(g, x, w[d], r[d], bias, _state(g, op, 5, d), backwards, functions[d][0]),)

    return _worked(g, op, run)
