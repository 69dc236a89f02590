"""The lowering rule of torch's multi-head attention, whose own Python runs on tensors alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from milpverify.frontends.lowering import composites, elementwise
from milpverify.frontends.lowering.constants import Array, Constant
from milpverify.frontends.torch.call import Call, rule
from milpverify.graph import Node


@rule("multi_head_attention_forward")
def _multi_head_attention(
    call: Call,
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Node, Node | None]:
    """Queries, keys and values (length, batch, features), or without the batch: what attention makes of them, and its weights if asked."""
    if add_zero_attn or any(v is not None for v in (bias_k, bias_v, static_k, static_v)):
        raise call.refuse("add_zero_attn, bias_k, bias_v, static_k and static_v have no rule")
    if training and dropout_p:
        raise call.invalid("drops entries at random; set the network to evaluation mode: net.eval()")
    g = call.g
    batched = len(query.shape) == 3
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_proj_weight.chunk(3)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)

    def projected(x: Node, weight: Any, bias: Any) -> Node:
        return g.scale(g.matmul(x, call.array(weight).T), bias=call.optional(bias))

    def head(x: Any, weight: Any, bias: Any) -> Node:
        """One head after the other, (batch, heads, length, features)."""
        x = call.node(x)
        length, batch = x.shape[0], x.shape[1] if batched else 1
        y = projected(g.reshape(x, (length, batch, x.shape[-1])), weight, bias)
        return g.permute(g.reshape(y, (length, batch, num_heads, y.shape[-1] // num_heads)), [1, 2, 0, 3])

    q, k, v = map(head, (query, key, value), weights, biases)
    batch, _, length, width = q.shape
    if is_causal and key_padding_mask is None and not need_weights:  # torch: a hint that what the mask says need not be read
        attn_mask = torch.ones(length, k.shape[2], dtype=torch.bool).triu(1)
    terms: list[Node | Array] = [g.scale(g.matmul_nodes(q, g.transpose(k)), 1.0 / Constant.of(width).sqrt())]
    if attn_mask is not None:
        mask = _additive(call, attn_mask)
        terms.append(mask.reshape(-1, num_heads, *mask.shape[1:]) if mask.ndim == 3 else mask)
    if key_padding_mask is not None:
        terms.append(_additive(call, key_padding_mask).reshape(batch, 1, 1, -1))
    attention = composites.softmax(g, elementwise.total(g, terms, [1] * len(terms)), -1)
    y = g.reshape(g.permute(g.matmul_nodes(attention, v), [2, 0, 1, 3]), (length, batch, num_heads * v.shape[-1]))
    y = projected(y, out_proj_weight, out_proj_bias)
    y = y if batched else g.reshape(y, (length, y.shape[-1]))
    if not need_weights:
        return y, None
    shown = composites.mean(g, attention, [1], keepdims=False) if average_attn_weights else attention
    return y, shown if batched else g.reshape(shown, shown.shape[1:])


def _additive(call: Call, mask: Any) -> Array:
    """A mask that is added: of a boolean one, -inf where it is True."""
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        return np.where(mask.numpy(), -np.inf, 0.0)
    return call.array(mask, masks=True)
