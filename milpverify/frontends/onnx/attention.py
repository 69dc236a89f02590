"""The lowering rules of ONNX's attention and of its rotary embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.constants import Array, Constant
from milpverify.frontends.onnx.node import Operation, Value, rule
from milpverify.graph import Node


@rule("RotaryEmbedding", attributes="interleaved num_heads rotary_embedding_dim", linear_in_constants=True)
def _rotary_embedding(g: Builder, op: Operation) -> Value:
    from milpverify.frontends.lowering.attention import rotary

    x, cosine, sine, positions = op.node(), op.weight(1), op.weight(2), op.constant(3)
    if positions is not None:
        cosine, sine = cosine[positions], sine[positions]
    if len(x.shape) == 4:
        return g.permute(rotary(g, g.permute(x, [0, 2, 1, 3]), cosine, sine, bool(op.attributes["interleaved"])), [0, 2, 1, 3])
    heads = op.attributes.get("num_heads") or 0
    if heads < 1 or len(x.shape) != 3 or x.shape[2] % heads:
        raise InvalidModel(f"{op} has {heads} heads, which do not fit its input of shape {x.shape}")
    split = g.reshape(x, (*x.shape[:2], heads, x.shape[2] // heads))
    return g.reshape(rotary(g, split, cosine, sine, bool(op.attributes["interleaved"])), x.shape)


def _heads(g: Builder, op: Operation, i: int, heads: str) -> Value:
    """An input as (batch, heads, length, features)."""
    x = op.value(i)
    if len(x.shape) == 4:
        return x
    count = op.attributes.get(heads) or 0
    if len(x.shape) != 3 or count < 1 or x.shape[2] % count:
        raise InvalidModel(f"{op} has {count} heads, which do not fit an input of shape {tuple(x.shape)}")
    shape = (*x.shape[:2], count, x.shape[2] // count)
    return g.permute(g.reshape(x, shape), [0, 2, 1, 3]) if isinstance(x, Node) else x.reshape(shape).transpose(0, 2, 1, 3)


def _with_past(g: Builder, op: Operation, i: int, now: Value) -> Value:
    """What is cached at input i, before what comes now."""
    past = op.optional(i)
    if past is None:
        return now
    if not isinstance(past, Node) and not isinstance(now, Node):
        return np.concatenate([past, now], axis=2)
    return g.concat([v if isinstance(v, Node) else g.constant(v) for v in (past, now)], 2)


@rule(
    "Attention",
    attributes="is_causal kv_num_heads left_window_size q_num_heads qk_matmul_output_mode right_window_size scale softcap "
    "softmax_precision",
)
def _attention(g: Builder, op: Operation) -> Sequence[Value]:
    q = _heads(g, op, 0, "q_num_heads")
    k, v = (_with_past(g, op, i + 3, _heads(g, op, i, "kv_num_heads")) for i in (1, 2))
    past = 0 if (cached := op.optional(4)) is None else cached.shape[2]
    scale = op.attributes.get("scale")
    factor = 1.0 / Constant.of(float(q.shape[3])).sqrt() if scale is None else Constant.of(scale)
    masks = _masks(g, op, q.shape[2], k.shape[2], past)
    from milpverify.frontends.lowering.attention import attention

    y = attention(g, q, k, v, factor, masks, op.attributes["softcap"])
    if len(op.value(0).shape) == 3:
        y = g.reshape(g.permute(y, [0, 2, 1, 3]), (y.shape[0], y.shape[2], y.shape[1] * y.shape[3]))
    return [y, k, v] if len(op.proto.output) > 1 else [y]


def _masks(g: Builder, op: Operation, queries: int, keys: int, past: int) -> list[Node | Array]:
    """What is added to the scores (batch, heads, queries, keys): -inf where a key is hidden."""
    found: list[Node | Array] = []
    given = op.optional(3)
    if given is not None:
        if not isinstance(given, Node) and given.dtype == bool:
            given = np.where(given, 0.0, -np.inf)
        if (lacking := keys - given.shape[-1]) > 0:
            rest = np.full((*given.shape[:-1], lacking), -np.inf)
            given = (
                g.concat([given, g.constant(rest)], len(given.shape) - 1)
                if isinstance(given, Node)
                else np.concatenate([given, rest], axis=-1)
            )
        found.append(given)
    lengths = op.constant(6)
    place, offset = np.arange(keys), np.array(past)
    visible = np.ones((1, 1, queries, keys), dtype=bool)
    if lengths is not None:
        lengths = lengths.reshape(-1, 1, 1, 1)
        visible = visible & (place < lengths)
        offset = lengths - queries
    at = np.arange(queries)[:, None] + offset
    left, right = (op.attributes.get(f"{side}_window_size", -1) for side in ("left", "right"))
    if op.attributes["is_causal"]:
        visible = visible & (place <= at)
    if left >= 0:
        visible = visible & (place >= at - left)
    if right >= 0:
        visible = visible & (place <= at + right)
    return found if visible.all() else [*found, np.where(visible, 0.0, -np.inf)]
