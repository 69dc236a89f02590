"""Coefficients of two affine maps side by side: of one kind, how far apart, row by row."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.operators import Affine, Operator
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.graph import Graph, Node


class DifferenceTuning(Tuning):
    """Where copies of a network are looked for, and for how long."""

    close: float = 0.9
    """How far weights may be from each other, in parts of their size, to be those of copies."""
    most_nodes: int = 400
    most_coefficients: int = 1 << 22
    """Of a network, and of the rows of a layer that are compared entry by entry: beyond, nothing is tried."""
    tries: int = 8
    most_outputs: int = 1 << 10
    """Pairs of outputs that are followed in vain before all others are taken to be no twins, and outputs whose values are compared."""
    closed: int = 400
    domains: int = 8
    """Inputs up to which relations between them are followed through third ones, and different sets of relations that are looked at."""


Places = Tensor
"""Flat places of entries of a node, (n,) int64, in main memory whatever the graph is on: they are read one by one."""
Matched = tuple[Tensor, Tensor, Places, Places]
"""Coefficients (n, m) of two rows on entries that correspond, and which of the inputs' entries these are, (m,) each."""


def alike(first: Node, second: Node, graph: Graph) -> bool:
    """Whether two affine nodes are one operator but for the values of its coefficients, which are no rounded ones."""
    shapes = [[graph.nodes[s].shape for s in node.inputs] for node in (first, second)]
    return shapes[0] == shapes[1] and first.shape == second.shape and _same_kind(first.op, second.op)


def _same_kind(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    for part in dataclasses.fields(a):  # type: ignore[arg-type]
        x, y = getattr(a, part.name), getattr(b, part.name)
        if part.name == "rounded" and (x or y):
            return False
        if isinstance(x, Operator):
            if not _same_kind(x, y):
                return False
        elif part.name == "bias":
            continue
        elif isinstance(x, Tensor) and isinstance(y, Tensor):
            if x.shape != y.shape or (not x.is_floating_point() and not torch.equal(x, y)):
                return False
        elif isinstance(x, Tensor) or isinstance(y, Tensor) or x != y:
            return False
    return True


def apart(a: Affine, b: Affine) -> tuple[Affine | None, bool]:
    """The map by which two affine maps of one kind differ, without constants (None: by nothing), and whether it is exact."""
    changes: dict[str, object] = {}
    exact, any_ = True, False
    for part in dataclasses.fields(a):  # type: ignore[arg-type]
        x, y = getattr(a, part.name), getattr(b, part.name)
        if part.name == "bias":
            changes[part.name] = None
        elif isinstance(x, Affine):
            inner, fine = apart(x, y)
            exact, any_ = exact and fine, any_ or inner is not None
            changes[part.name] = x if inner is None else inner
        elif isinstance(x, Tensor) and x.is_floating_point():
            difference, fine = less(x, y)
            exact, any_ = exact and fine, any_ or bool(difference.any())
            changes[part.name] = difference
    return (replace(a, **changes) if any_ else None), exact  # type: ignore[type-var]


def size_of(op: Affine) -> float:
    """The norm of the coefficients."""
    values = (getattr(op, part.name) for part in dataclasses.fields(op) if part.name != "bias")  # type: ignore[arg-type]
    return math.hypot(*(size_of(v) if isinstance(v, Affine) else float(v.norm()) for v in values if isinstance(v, Affine) or _numbers(v)))


def _numbers(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def without_bias(op: Affine) -> Affine:
    """The map without its constants."""
    return op if op.bias is None else replace(op, bias=None)  # type: ignore[type-var]


def bias_of(node: Node) -> Tensor:
    """The constant of every entry of an affine node, flat: (size,) float64, in main memory."""
    assert isinstance(node.op, Affine)
    if node.op.bias is None:
        return torch.zeros(node.size, dtype=torch.float64, device="cpu")
    return node.op.bias.expand(node.shape).flatten().double().cpu()


def bias_between(first: Node, second: Node) -> tuple[Tensor | None, bool]:
    """By how much the constants of two affine nodes of one shape differ, (size,) float64 (None: not at all), and whether that is exact."""
    difference, exact = less(bias_of(first), bias_of(second))
    return (difference if bool(difference.any()) else None), exact


def less(a: Tensor, b: Tensor) -> tuple[Tensor, bool]:
    """a - b, elementwise, and whether all of it is exact: what the larger operand and the result leave of the other is 0."""
    d = a - b
    return d, bool(((a - d == b) & (b + d == a)).all())


def row_by_row(u: Tensor, w: Tensor) -> Matched | None:
    """Rows of two matrices, (n, columns) each, with at most one coefficient a row correspond one by one, whatever columns they share.

    None where the rows without a coefficient differ. Whoever calls knows that no row has more than one.
    """
    rows = (u != 0).any(1)
    if not torch.equal(rows, (w != 0).any(1)):
        return None
    at = rows.nonzero().flatten()
    columns = torch.stack([u[at].abs().argmax(1), w[at].abs().argmax(1)], 1)
    pairs, place = torch.unique(columns, dim=0, return_inverse=True)
    own, other = u.new_zeros(len(u), len(pairs)), u.new_zeros(len(u), len(pairs))
    own[at, place], other[at, place] = u[at, columns[:, 0]], w[at, columns[:, 1]]
    return own, other, pairs[:, 0], pairs[:, 1]
