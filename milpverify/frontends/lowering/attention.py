"""Attention for every frontend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from milpverify.frontends.lowering import composites, elementwise
from milpverify.frontends.lowering.builder import Builder, entries
from milpverify.frontends.lowering.constants import Constant
from milpverify.frontends.lowering.einsum import Value, einsum
from milpverify.graph import Node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.frontends.lowering.constants import Array


def attention(
    g: Builder, query: Value, key: Value, value: Value, factor: Constant, masks: Sequence[Node | Array] = (), cap: float = 0.0
) -> Node:
    """softmax(cap tanh(factor q k^T / cap) + masks) v (Vaswani et al., Attention is all you need, NeurIPS 2017, equation 1).

    Args:
        query, key, value: (..., heads, queries, features), (..., groups, keys, features), (..., groups, keys, values): every group of keys
            is for heads / groups heads, one after the other.
        masks: that broadcast to the scores (..., heads, queries, keys), -inf where a key is hidden.
        cap: 0 for none.

    Raises:
        ValueError: groups of keys or values do not fit the heads.
    """
    heads, *groups = ((1, *v.shape)[-3] for v in (query, key, value))
    if heads % groups[0] or groups[0] != groups[1]:
        raise ValueError(f"{groups[0]} groups of keys and {groups[1]} of values do not fit {heads} heads")
    key, value = (repeated(g, v, heads // groups[0]) for v in (key, value))
    if not isinstance(query, Node) and not isinstance(key, Node):
        query = g.constant(query)
    scores = g.scale(einsum(g, "...qd,...kd->...qk", [query, key]), factor)
    if cap:
        scores = g.scale(g.function("tanh", g.scale(scores, 1.0 / Constant.of(cap))), cap)
    if masks:
        scores = elementwise.total(g, [scores, *masks], [1] * (1 + len(masks)))
    return einsum(g, "...qk,...kd->...qd", [composites.softmax(g, scores, -1), value])


def repeated(g: Builder, x: Value, times: int) -> Value:
    """Every head of (..., heads, length, features) so often, one after the other."""
    if times == 1:
        return x
    places = np.repeat(entries(tuple(x.shape)), times, axis=-3)
    return g.select(x, places) if isinstance(x, Node) else np.repeat(x, times, axis=-3)


def rotary(g: Builder, x: Node, cosine: Array, sine: Array, interleaved: bool) -> Node:
    """Pairs of features turned by the angle of their position (Su et al., RoFormer, Neurocomputing 2024, equation 34).

    Args:
        x: (batch, length, heads, features), of which the first 2 n are turned.
        cosine, sine: (batch, length, n).
        interleaved: neighbours are a pair; else those of the first and of the second half.
    """
    batch, length, _, features = x.shape
    n = cosine.shape[-1]
    places = np.arange(2 * n)
    first, second = (places[::2], places[1::2]) if interleaved else (places[:n], places[n:])
    partner, own, other = np.arange(features), np.ones((batch, length, 1, features)), np.zeros((batch, length, 1, features))
    partner[first], partner[second] = second, first
    own[..., first] = own[..., second] = cosine[:, :, None]
    other[..., first], other[..., second] = -sine[:, :, None], sine[:, :, None]
    return g.sum([g.scale(x, own), g.scale(g.select(x, entries(x.shape)[..., partner]), other)])
