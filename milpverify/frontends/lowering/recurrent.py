"""Recurrent layers unrolled over a sequence of static length, for every frontend: LSTM, GRU and plain cells.

The products of the inputs of all steps with their weights are one affine node; each step then adds what comes from the state before it.
Sequences are nodes (steps, batch, features), states (batch, hidden); a state of None is zero, whose products vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from milpverify.frontends.lowering.builder import entries
from milpverify.frontends.lowering.constants import Constant

if TYPE_CHECKING:
    from milpverify.frontends.lowering.builder import Builder
    from milpverify.frontends.lowering.constants import Array
    from milpverify.graph import Node


Activation = Callable[["Builder", "Node"], "Node"]


def activation(name: str, **parameters: float) -> Activation:
    """A function of the catalogue."""
    return lambda g, x: g.function(name, x, **parameters)


SIGMOID, TANH = activation("sigmoid"), activation("tanh")


class LstmCell(NamedTuple):
    """c' = s(f) c + s(i) t(g), h' = s(o) u(c') for the gates i, f, o, g = x w^T + h r^T + bias and functions s, t, u.

    Attributes:
        w, r, bias: (4 hidden, features), (4 hidden, hidden), (4 hidden,), the gates in the order i, f, o, g.
        peepholes: (3, hidden), what c adds to i and f and c' adds to o, each by so much (Gers and Schmidhuber, Recurrent nets that time
            and count, IJCNN 2000).
        coupled: s(f) is 1 - s(i).
        functions: s, t and u.
    """

    w: Array
    r: Array
    bias: Array | Constant | None
    peepholes: Array | None = None
    coupled: bool = False
    functions: Sequence[Activation] = (SIGMOID, TANH, TANH)


def lstm(g: Builder, x: Node, cell: LstmCell, h: Node | None, c: Node | None, backwards: bool = False) -> tuple[list[Node], list[Node]]:
    """An LSTM over a sequence.

    Args:
        x: (steps, batch, features).
        h, c: the initial state, (batch, hidden).
        backwards: begin at the last step.

    Returns:
        h and c after every step, in the order of x.
    """
    w, r, bias, peepholes, coupled, functions = cell
    size, states, cells = r.shape[1], {}, {}
    opened, written, shown = functions
    inner, later = (2 * size, 3 * size) if peepholes is not None else (3 * size, 3 * size)
    for step, given in _steps(g, x, w, bias, backwards):
        gates = _with_state(g, given, h, r)
        first = _gates(g, gates, 0, inner)
        if peepholes is not None and c is not None:
            first = g.sum([first, g.concat([g.scale(c, peepholes[0]), g.scale(c, peepholes[1])], 1)])
        first = opened(g, first)
        taken, new = _gates(g, first, 0, size), written(g, _gates(g, gates, later, later + size))
        kept = g.scale(taken, -1.0, 1.0) if coupled else _gates(g, first, size, 2 * size)
        added = g.product(taken, new)
        c = cells[step] = added if c is None else g.sum([g.product(kept, c), added])
        if peepholes is None:
            seen = _gates(g, first, 2 * size, 3 * size)
        else:
            seen = opened(g, g.sum([_gates(g, gates, 2 * size, 3 * size), g.scale(c, peepholes[2])]))
        h = states[step] = g.product(seen, shown(g, c))
    return [states[step] for step in sorted(states)], [cells[step] for step in sorted(cells)]


class GruCell(NamedTuple):
    """h' = n + s(z) (h - n) with n = t(x w_n^T + b_n + s(r) (h r_n^T + c_n)) for functions s, t; one product for the two of z.

    Attributes:
        w, r: (3 hidden, features) and (3 hidden, hidden), the gates in the order z, r, n.
        bias: (3 hidden,) beside w and beside r.
        reset_after: whether the reset gate acts behind the product with r_n, as above; else on h itself.
        functions: s and t.
    """

    w: Array
    r: Array
    bias: tuple[Array, Array] | None
    reset_after: bool = True
    functions: Sequence[Activation] = (SIGMOID, TANH)


def gru(g: Builder, x: Node, cell: GruCell, h: Node | None, backwards: bool = False) -> list[Node]:
    """A GRU over a sequence.

    Args:
        x: (steps, batch, features).
        h: the initial state, (batch, hidden).
        backwards: begin at the last step.

    Returns:
        h after every step, in the order of x.
    """
    w, r, bias, reset_after, functions = cell
    size, states = r.shape[1], {}
    outer = None if bias is None else Constant(bias[0]) + np.where(np.arange(3 * size) < 2 * size, bias[1], 0.0)
    shift = np.zeros(size) if bias is None else bias[1][2 * size :]
    for step, given in _steps(g, x, w, outer, backwards):
        gates = functions[0](g, _with_state(g, _gates(g, given, 0, 2 * size), h, r[: 2 * size]))
        update, reset = _gates(g, gates, 0, size), _gates(g, gates, size, 2 * size)
        last = r[2 * size :].T
        if reset_after:
            recalled = g.scale(reset, shift) if h is None else g.product(reset, g.scale(g.matmul(h, last), bias=shift))
        else:
            recalled = g.constant(np.broadcast_to(shift, reset.shape))
            recalled = recalled if h is None else g.scale(g.matmul(g.product(reset, h), last), bias=shift)
        new = functions[1](g, g.sum([_gates(g, given, 2 * size, 3 * size), recalled]))
        h = g.sum([new, g.product(update, new if h is None else g.sum([new, h], [1, -1]))], [1, -1])
        states[step] = h
    return [states[step] for step in sorted(states)]


def rnn(
    g: Builder,
    x: Node,
    w: Array,
    r: Array,
    bias: Array | Constant | None,
    h: Node | None,
    backwards: bool = False,
    function: Activation = TANH,
) -> list[Node]:
    """h' = f(x w^T + h r^T + bias) for a function f; h after every step, in the order of x."""
    states = {}
    for step, given in _steps(g, x, w, bias, backwards):
        h = states[step] = function(g, _with_state(g, given, h, r))
    return [states[step] for step in sorted(states)]


def _steps(g: Builder, x: Node, w: Array, bias: Array | Constant | None, backwards: bool) -> Sequence[tuple[int, Node]]:
    """x w^T + bias at every step, (batch, rows of w), in the order in which they are worked."""
    given = g.scale(g.matmul(x, w.T), bias=bias)
    places = entries(given.shape)
    order = range(len(places))
    return [(step, g.select(given, places[step])) for step in (reversed(order) if backwards else order)]


def _with_state(g: Builder, given: Node, h: Node | None, r: Array) -> Node:
    return given if h is None else g.sum([given, g.matmul(h, r.T)])


def _gates(g: Builder, x: Node, start: int, end: int) -> Node:
    """Columns start to end of (batch, columns)."""
    return g.select(x, entries(x.shape)[:, start:end])
