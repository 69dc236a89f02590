"""Entries that are put into a tensor at constant places, or combined with what is there, and windows put back, for every frontend."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from milpverify.frontends.lowering import composites
from milpverify.frontends.lowering.builder import Builder, Index, check_size, entries
from milpverify.frontends.lowering.constants import Constant
from milpverify.graph import Node

if TYPE_CHECKING:
    from collections.abc import Sequence


def scattered(g: Builder, data: Node, updates: Node, places: Index, reduction: str) -> Node:
    """The data with every update taken to its place, one after the other.

    Args:
        places: of the flattened data, one for each update.
        reduction: what an update does to the entry there: "none" replaces it, "add", "mul", "max" and "min" combine both.

    Raises:
        ValueError: another reduction.
    """
    if reduction not in ("none", "add", "mul", "max", "min"):
        raise ValueError(f"the reduction '{reduction}' has no rule; none, add, mul, max and min have")
    targets = places.reshape(-1)
    if len(targets) != updates.size or (len(targets) and not 0 <= targets.min() <= targets.max() < data.size):
        raise ValueError(f"{updates.size} updates do not fit {len(targets)} places among {data.size} entries")
    update, y = g.reshape(updates, (updates.size,)), g.reshape(data, (data.size,))
    if reduction == "none":  # of several the last remains
        source = np.full(data.size, -1, dtype=np.int64)
        source[targets] = np.arange(len(targets))
        return g.reshape(_combined(g, y, update, source, reduction), data.shape)
    # The n-th updates of all entries are one node.
    order = np.argsort(targets, kind="stable")
    first = np.searchsorted(targets[order], targets[order])
    turns = np.empty(len(targets), dtype=np.int64)
    turns[order] = np.arange(len(targets)) - first
    count = int(turns.max(initial=-1)) + 1
    if reduction == "add" and count * data.size <= g.tuning.room * (data.size + updates.size):
        rows = np.full((data.size, count), -1, dtype=np.int64)
        rows[targets, turns] = np.arange(len(targets))
        return g.reshape(g.sum([y, g.reduce_sum(g.select(update, rows), [1], keepdims=False)]), data.shape)
    for turn in range(count):
        now = np.flatnonzero(turns == turn)
        source = np.full(data.size, -1, dtype=np.int64)
        source[targets[now]] = now
        y = _combined(g, y, update, source, reduction)
    return g.reshape(y, data.shape)


def _combined(g: Builder, y: Node, update: Node, source: Index, reduction: str) -> Node:
    """y with the update that `source` names for each entry; -1 for none."""
    if reduction == "add":
        return g.sum([y, g.select(update, source)])
    if reduction == "mul":
        return composites.multiply(g, y, g.select(update, source, np.where(source < 0, 1.0, 0.0)))
    other = g.select(g.concat([y, update], 0), np.where(source < 0, np.arange(y.size), y.size + source))
    return other if reduction == "none" else g.larger(y, other, 1 if reduction == "max" else -1)


def folded(
    g: Builder,
    x: Node,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> Node:
    """The sum of windows (batch, channels * kernel, windows), each at its place, (batch, channels, *size): the adjoint of cutting.

    Raises:
        ValueError: x has not as many windows as fit.
    """
    channels = x.shape[1] // math.prod(kernel)
    rows = zip(size, kernel, strides, dilations, pads, strict=True)
    counts = [(n + begin + end - d * (k - 1) - 1) // s + 1 for n, k, s, d, (begin, end) in rows]
    if x.shape[1] != channels * math.prod(kernel) or math.prod(counts) != x.shape[2]:
        raise ValueError(f"windows of shape {x.shape} do not fit a tensor with the axes {tuple(size)}")
    check_size((x.shape[0], channels, *size))
    shape = [n + begin + end for n, (begin, end) in zip(size, pads, strict=True)]
    place: Index = np.zeros((), dtype=np.int64)
    for n, k, s, d, count in zip(shape, kernel, strides, dilations, counts, strict=True):
        along = np.arange(k)[:, None] * d + np.arange(count) * s
        place = place[..., None, None] * n + along
    # (k1, c1, k2, c2, ...) -> (k1, k2, ..., c1, c2, ...)
    order = [*range(0, 2 * len(counts), 2), *range(1, 2 * len(counts), 2)]
    place = np.transpose(place, order).reshape(math.prod(kernel), -1)
    whole = (x.shape[0], channels, math.prod(shape))
    blocks = entries(whole[:2])[:, :, None, None] * whole[2] + place
    zeros = g.constant(np.zeros(whole))
    y = g.reshape(scattered(g, zeros, x, blocks, "add"), (x.shape[0], channels, *shape))
    inner = tuple(slice(begin, begin + n) for n, (begin, _) in zip(size, pads, strict=True))
    return g.select(y, entries(y.shape)[(slice(None), slice(None), *inner)])


def cumulative_product(g: Builder, x: Node, axis: int, exclusive: bool = False, reverse: bool = False) -> Node:
    """The products of the entries up to each along an axis; `exclusive` without the entry itself, `reverse` of those behind."""
    axis %= len(x.shape)
    places = np.moveaxis(entries(x.shape), axis, 0)
    steps = [g.select(x, p) for p in (places[::-1] if reverse else places)]
    products = steps[:1]
    for step in steps[1:]:
        products.append(composites.multiply(g, products[-1], step))
    if exclusive:
        products = [g.constant(np.ones(products[0].shape)), *products[:-1]]
    joined = g.concat([g.reshape(p, (1, *p.shape)) for p in (reversed(products) if reverse else products)], 0)
    order = list(range(1, len(x.shape)))
    order.insert(axis, 0)
    return g.permute(joined, order)


def sampled(g: Builder, x: Node, grid: np.ndarray, mode: str, padding: str, align_corners: bool) -> Node:
    """Entries of x (batch, channels, *space) read between its places, at those that a constant grid (batch, *places, axes) names.

    Linear in x, by a matrix for each member of the batch, whose weights are what torch computes in float64.

    Args:
        mode, padding: as torch calls them: "bilinear", "nearest", "bicubic"; "zeros", "border", "reflection".
    """
    import torch

    places = math.prod(x.shape[2:])
    reached = math.prod(grid.shape[1:-1])
    check_size((x.shape[0], places, reached))
    images = torch.eye(places, dtype=torch.float64).reshape(1, places, *x.shape[2:])
    matrices = [
        torch.nn.functional.grid_sample(images, torch.from_numpy(one)[None], mode, padding, align_corners).reshape(places, reached)
        for one in np.array(grid, dtype=np.float64)
    ]
    y = g.matmul(g.reshape(x, (x.shape[0], x.shape[1], places)), Constant(torch.stack(matrices).numpy()))
    return g.reshape(y, (*x.shape[:2], *grid.shape[1:-1]))
