"""The lowering rules of ONNX's recurrent operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering import recurrent
from milpverify.frontends.lowering.builder import Builder, entries
from milpverify.frontends.lowering.constants import Array, Constant
from milpverify.frontends.onnx.node import Operation, Value, rule
from milpverify.graph import Node

COMMON = "direction hidden_size layout activations"
DIRECTIONS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}


def _refuse_variants(op: Operation, activations: list[str], peepholes: int = 7) -> None:
    if op.attributes.get("layout"):
        raise op.refuse("layout 1 has no rule; export it with layout 0")
    given = [a.lower() for a in op.attributes.get("activations") or []]
    wanted = activations * len(_directions(op))
    if given and given[: len(wanted)] != wanted:  # RNN's default lists two for one direction, too
        raise op.refuse(f"the activations {', '.join(given)} have no rule; {', '.join(activations)} have")
    lengths = op.constant(4)
    if lengths is not None and np.any(lengths != op.node().shape[0]):
        raise op.refuse("sequences shorter than the input have no rule; leave sequence_lens out")
    if op.optional(peepholes) is not None:
        raise op.refuse("peepholes have no rule")


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


def _outputs(g: Builder, states: list[list[Node]], backwards: list[bool], last: list[Node] | None = None) -> list[Value]:
    """Y (steps, directions, batch, hidden), Y_h and, from the `last` cells, Y_c (directions, batch, hidden)."""

    def stack(nodes: Sequence[Node], axis: int) -> Node:
        return g.concat([g.reshape(n, (*n.shape[:axis], 1, *n.shape[axis:])) for n in nodes], axis)

    ends = [s[0] if back else s[-1] for s, back in zip(states, backwards, strict=True)]
    results: list[Value] = [stack([stack(s, 0) for s in states], 1), stack(ends, 0)]
    return results if last is None else [*results, stack(last, 0)]


@rule("LSTM", attributes=COMMON)
def _lstm(g: Builder, op: Operation) -> Sequence[Value]:
    _refuse_variants(op, ["sigmoid", "tanh", "tanh"])
    x, w, r, b = op.node(), op.weight(1), op.weight(2), op.constant(3)
    order = (0, 2, 1, 3)  # ONNX has i, o, f, g
    states, cells = [], []
    for d, backwards in enumerate(_directions(op)):
        bias = _bias(None if b is None else b[d])
        bias = None if bias is None else bias.moved(_reordered(bias.value, order))
        h, c = _state(g, op, 5, d), _state(g, op, 6, d)
        run, cell = recurrent.lstm(g, x, _reordered(w[d], order), _reordered(r[d], order), bias, h, c, backwards)
        states.append(run)
        cells.append(cell)
    return _outputs(g, states, _directions(op), cells)


@rule("GRU", attributes=f"{COMMON} linear_before_reset")
def _gru(g: Builder, op: Operation) -> Sequence[Value]:
    _refuse_variants(op, ["sigmoid", "tanh"])
    x, w, r, b = op.node(), op.weight(1), op.weight(2), op.constant(3)
    after = bool(op.attributes["linear_before_reset"])
    states = []
    for d, backwards in enumerate(_directions(op)):
        first, second = (None, None) if b is None else np.split(b[d], 2)
        bias = None if first is None or second is None else (first, second)
        states.append(recurrent.gru(g, x, w[d], r[d], bias, _state(g, op, 5, d), backwards, after))
    return _outputs(g, states, _directions(op))


@rule("RNN", attributes=COMMON)
def _rnn(g: Builder, op: Operation) -> Sequence[Value]:
    names = op.attributes.get("activations") or ["Tanh"]
    name = names[0].lower()
    if name not in ("tanh", "relu", "sigmoid"):
        raise op.refuse(f"the activation {name} has no rule; tanh, relu and sigmoid have")
    _refuse_variants(op, [name])
    x, w, r, b = op.node(), op.weight(1), op.weight(2), op.constant(3)
    states = []
    for d, backwards in enumerate(_directions(op)):
        bias = _bias(None if b is None else b[d])
        states.append(recurrent.rnn(g, x, w[d], r[d], bias, _state(g, op, 5, d), name, backwards))
    return _outputs(g, states, _directions(op))
