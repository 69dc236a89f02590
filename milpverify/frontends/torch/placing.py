"""The lowering rules of torch operations that put entries at constant places, combine them with what is there, or read between places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milpverify.frontends.lowering.builder import entries
from milpverify.frontends.lowering.scatter import cumulative_product, folded, sampled, scattered
from milpverify.frontends.torch.call import Call, name_of, rule
from milpverify.frontends.torch.layers import batched, per_axis, unbatched
from milpverify.frontends.torch.ops import times
from milpverify.graph import Node

_REDUCTIONS = {None: "none", "add": "add", "sum": "add", "multiply": "mul", "prod": "mul", "amax": "max", "amin": "min"}


def _places(x: Any) -> Tensor:
    return torch.from_numpy(entries(tuple(x.shape)))


def _source(call: Call, source: Any, index: Tensor) -> Node:
    """The part of a tensor, or the number, that goes to as many places as the index has."""
    if not isinstance(source, (Node, Tensor)):
        return call.g.constant(np.full(tuple(index.shape), call.number(source)))
    node = call.node(source)
    return call.g.select(node, entries(node.shape)[tuple(slice(n) for n in index.shape)])


@rule("scatter", "scatter_add", "scatter_reduce")
def _scatter(
    call: Call,
    x: Any,
    dim: int,
    index: Any,
    src: Any = None,
    reduce: str | None = None,
    *,
    value: Any = None,
    include_self: bool = True,
) -> Node:
    if not include_self or isinstance(index, Node) or reduce not in _REDUCTIONS:
        raise call.refuse(f"include_self=False, reduce={reduce!r} and places that depend on the network's input have no rule")
    reduction = "add" if name_of(call.target) == "scatter_add" else _REDUCTIONS[reduce]
    updates = _source(call, value if src is None else src, index)
    rows = _places(x)[tuple(slice(None if a == dim % len(x.shape) else n) for a, n in enumerate(index.shape))]
    places = torch.gather(rows, dim, index)
    return scattered(call.g, call.node(x), updates, places.numpy(), reduction)


@rule("index_add", "index_fill")
def _index_add(call: Call, x: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> Node:
    places = torch.index_select(_places(x), dim, index)
    updates = times(call, _source(call, source, places), alpha)
    return scattered(call.g, call.node(x), updates, places.numpy(), "add" if name_of(call.target) == "index_add" else "none")


@rule("cumprod")
def _cumulative_product(call: Call, x: Node, dim: int, *, dtype: Any = None) -> Node:
    return cumulative_product(call.g, x, dim)


@rule("fold", "col2im")
def _fold(call: Call, x: Node, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Node:
    x, added = batched(call, x, 1)
    size, kernel, dilations, pads, strides = (per_axis(v, 2) for v in (output_size, kernel_size, dilation, padding, stride))
    return unbatched(call, folded(call.g, x, size, kernel, strides, dilations, [(p, p) for p in pads]), added)


@rule("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def _grid_sample(
    call: Call, x: Node, grid: Any, mode: Any = "bilinear", padding_mode: Any = "zeros", align_corners: bool | None = None
) -> Node:
    if not isinstance(mode, str):  # aten has numbers
        mode, padding_mode = ("bilinear", "nearest", "bicubic")[mode], ("zeros", "border", "reflection")[padding_mode]
    return sampled(call.g, x, call.array(grid), mode, padding_mode, bool(align_corners))


@rule("trace")
def _trace(call: Call, x: Node) -> Node:
    return call.g.reduce_sum(call.g.select(x, np.diagonal(entries(x.shape)).copy()), [0], keepdims=False)


@rule("diff")
def _differences(call: Call, x: Node, n: int = 1, dim: int = -1) -> Node:
    axis = dim % len(x.shape)
    for _ in range(n):
        places = np.moveaxis(entries(x.shape), axis, 0)
        ends = [np.moveaxis(p, 0, axis) for p in (places[1:], places[:-1])]
        x = call.g.sum([call.g.select(x, p) for p in ends], [1, -1])
    return x


@rule("rrelu")
def _random_relu(call: Call, x: Node, lower: Any = 1 / 8, upper: Any = 1 / 3, training: bool = False) -> Node:
    if training:
        raise call.invalid("draws slopes at random: set the network to evaluation mode: net.eval()")
    slope = (float(lower) + float(upper)) / 2
    return call.g.function("leaky_relu", x, alpha=call.number(slope) if math.isfinite(slope) else slope)
