"""The lowering rules of torch's layers: convolution, pooling, normalisation, softmax and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milpverify.frontends.lowering import composites
from milpverify.frontends.lowering.attention import attention
from milpverify.frontends.lowering.constants import Constant
from milpverify.frontends.lowering.windows import (
    Axis,
    adaptive_average_pool,
    adaptive_max_pool,
    average_pool,
    convolve,
    convolve_transposed,
    max_pool,
)
from milpverify.frontends.torch.call import Call, execute, name_of, rule
from milpverify.graph import Node


def per_axis(value: Any, n: int) -> list[int]:
    """An integer or a list with one entry, or n, as n integers."""
    found = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return found * n if len(found) == 1 else found


def batched(call: Call, x: Node, n: int) -> tuple[Node, bool]:
    """The input of a layer with n spatial axes as (batch, channels, *space), and whether the batch axis was added.

    Raises:
        InvalidModel: the input has another number of axes.
    """
    if len(x.shape) == n + 2:
        return x, False
    if len(x.shape) != n + 1:
        raise call.invalid(f"takes {n} spatial axes; its input has shape {x.shape}")
    return call.g.reshape(x, (1, *x.shape)), True


def unbatched(call: Call, y: Node, added: bool) -> Node:
    """The result without the batch axis that `batched` added."""
    return call.g.reshape(y, y.shape[1:]) if added else y


def window(size: int, kernel: int, stride: int, dilation: int, begin: int, end: int, ceil: bool = False) -> Axis:
    """How a window slides along one axis; with `ceil` the last one may reach beyond the padding, but not begin there.

    Raises:
        ValueError: the kernel is larger than its padded input.
    """
    if size + begin + end <= (kernel - 1) * dilation:
        raise ValueError(f"a kernel of length {kernel} is larger than its padded input of length {size + begin + end}")
    return Axis.padded(size, kernel, stride, dilation, begin, end, ceil)


@rule("conv1d", "conv2d", "conv3d", linear_in_constants=True)
def _conv(
    call: Call, x: Node, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Node:
    kernels = call.array(weight)
    n = kernels.ndim - 2
    x, added = batched(call, x, n)
    strides, dilations = per_axis(stride, n), per_axis(dilation, n)
    if isinstance(padding, str):
        spans = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernels.shape[2:], strict=True)]
        pads = [(s // 2, s - s // 2) for s in spans]
    else:
        pads = [(p, p) for p in per_axis(padding, n)]
    rows = zip(x.shape[2:], kernels.shape[2:], strides, dilations, pads, strict=True)
    axes = [window(size, kernel, step, spread, begin, end) for size, kernel, step, spread, (begin, end) in rows]
    return unbatched(call, convolve(call.g, x, kernels, axes, groups, call.optional(bias)), added)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", linear_in_constants=True)
def _transposed(
    call: Call,
    x: Node,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Node:
    kernels = call.array(weight)  # (in, out / groups, *kernel)
    n = kernels.ndim - 2
    x, added = batched(call, x, n)
    strides, paddings, extras, dilations = (per_axis(v, n) for v in (stride, padding, output_padding, dilation))
    crops = [(p, p - extra) for p, extra in zip(paddings, extras, strict=True)]
    return unbatched(call, convolve_transposed(call.g, x, kernels, strides, dilations, crops, groups, call.optional(bias)), added)


@rule("convolution", linear_in_constants=True)
def _convolution(
    call: Call, x: Node, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, flipped: bool, output_padding: Any, groups: int
) -> Node:
    if flipped:
        return _transposed(call, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(call, x, weight, bias, stride, padding, dilation, groups)


# Pooling


def pooled(x: Node, n: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> list[Axis]:
    """The windows of a pooling along its n axes; without a stride they lie side by side."""
    kernel, pads, dilations = per_axis(kernel_size, n), per_axis(padding, n), per_axis(dilation, n)
    strides = per_axis(stride, n) if stride not in (None, [], ()) else kernel
    rows = zip(x.shape[2:], kernel, strides, dilations, pads, strict=True)
    return [window(size, length, step, spread, pad, pad, ceil_mode) for size, length, step, spread, pad in rows]


def _average(n: int) -> Any:
    def lower(
        call: Call,
        x: Node,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Node:
        x, added = batched(call, x, n)
        axes = pooled(x, n, kernel_size, stride, padding, 1, ceil_mode)
        return unbatched(call, average_pool(call.g, x, axes, count_include_pad, divisor_override), added)

    return lower


def _largest(n: int) -> Any:
    def lower(
        call: Call,
        x: Node,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        if return_indices:
            raise call.refuse("return_indices has no rule: the places depend on the network's input")
        x, added = batched(call, x, n)
        axes = pooled(x, n, kernel_size, stride, padding, dilation, ceil_mode)
        return unbatched(call, max_pool(call.g, x, axes), added)

    return lower


def _largest_with_places(lower: Any, call: Call, *args: Any, **kwargs: Any) -> Any:
    return lower(call, *args, **kwargs), None


def targets(x: Node, n: int, output_size: Any) -> list[int]:
    """The lengths that adaptive pooling is asked for; None keeps one."""
    asked = list(output_size) if isinstance(output_size, (list, tuple)) else [output_size] * n
    return [s if a is None else int(a) for a, s in zip(asked, x.shape[2:], strict=True)]


def _adaptive_average(n: int) -> Any:
    def lower(call: Call, x: Node, output_size: Any) -> Node:
        x, added = batched(call, x, n)
        return unbatched(call, adaptive_average_pool(call.g, x, targets(x, n, output_size)), added)

    return lower


def _adaptive_largest(n: int) -> Any:
    def lower(call: Call, x: Node, output_size: Any, return_indices: bool = False) -> Node:
        if return_indices:
            raise call.refuse("return_indices has no rule: the places depend on the network's input")
        x, added = batched(call, x, n)
        return unbatched(call, adaptive_max_pool(call.g, x, targets(x, n, output_size)), added)

    return lower


for _n in (1, 2, 3):
    rule(f"avg_pool{_n}d")(_average(_n))
    rule(f"max_pool{_n}d")(_largest(_n))
    rule(f"max_pool{_n}d_with_indices")(partial(_largest_with_places, _largest(_n)))
    rule(f"adaptive_avg_pool{_n}d", *([f"_adaptive_avg_pool{_n}d"] if _n > 1 else []))(_adaptive_average(_n))
    rule(f"adaptive_max_pool{_n}d")(_adaptive_largest(_n))


@rule("interpolate")
def _interpolate(
    call: Call, x: Node, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None, **kwargs: Any
) -> Node:
    if mode in ("nearest", "nearest-exact"):
        places = torch.arange(x.size, dtype=torch.float64).reshape(x.shape)
        found = execute(call.target, [places, size, scale_factor, mode, align_corners], kwargs)
        return call.g.select(x, found.numpy().astype(np.int64))
    return _planewise(
        call, x, lambda planes: execute(call.target, [planes, size, scale_factor, mode, align_corners], kwargs), mode.endswith("linear")
    )


@rule("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def _upsample_nearest(call: Call, x: Node, *args: Any, **kwargs: Any) -> Node:
    places = torch.arange(x.size, dtype=torch.float64).reshape(x.shape)
    return call.g.select(x, execute(call.target, [places, *args], kwargs).numpy().astype(np.int64))


@rule("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
def _upsample(call: Call, x: Node, *args: Any, **kwargs: Any) -> Node:
    return _planewise(call, x, lambda planes: execute(call.target, [planes, *args], kwargs), "linear" in name_of(call.target))


def _planewise(call: Call, x: Node, resample: Any, linear: bool) -> Node:
    """A linear map of (batch, channels, *space) that treats all planes alike, by its matrix.

    torch computes the matrix in float64. Where interpolation is `linear` and an axis gets m entries, the weights along it are multiples of
    1 / 2 m, or of 1 / (m - 1) with the corners aligned, unless the scale is another than that of the lengths: these are recovered.
    All others count as torch computes them.
    """
    size = math.prod(x.shape[2:])
    images = resample(torch.eye(size, dtype=torch.float64).reshape(size, 1, *x.shape[2:]))
    matrix = Constant(images.reshape(size, -1).numpy())
    for parts in ([2 * m for m in images.shape[2:]], [max(1, m - 1) for m in images.shape[2:]]) if linear else ():
        whole = math.prod(parts)
        multiples = np.round(matrix.value * whole)
        if whole < 2**32 and np.abs(matrix.value * whole - multiples).max() < 2.0**-16:
            matrix = Constant(multiples) / float(whole)
            break
    y = call.g.matmul(call.g.reshape(x, (x.shape[0], x.shape[1], size)), matrix)
    return call.g.reshape(y, (*x.shape[:2], *images.shape[2:]))


# Normalisation


@rule("batch_norm", linear_in_constants=True)
def _batch_norm(
    call: Call,
    x: Node,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
    *_: Any,
) -> Node:
    if training or running_mean is None:
        raise call.invalid("uses the statistics of its batch; set the network to evaluation mode, net.eval(), and keep running statistics")
    return _normalised(call, x, weight, bias, running_mean, running_var, eps)


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm")
def _native_batch_norm(call: Call, x: Node, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any) -> tuple[Any, ...]:
    if len(rest) == 3 and rest[0]:
        raise call.invalid("uses the statistics of its batch; set the network to evaluation mode: net.eval()")
    return _normalised(call, x, weight, bias, mean, variance, rest[-1]), None, None


def _normalised(call: Call, x: Node, weight: Any, bias: Any, mean: Any, variance: Any, eps: Any) -> Node:
    statistics = call.optional(mean), call.optional(variance)
    return composites.batch_norm(call.g, x, *statistics, call.number(eps), call.optional(weight), call.optional(bias))


@rule("layer_norm", linear_in_constants=True)
def _layer_norm(
    call: Call, x: Node, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: Any = 1e-5, *_: Any
) -> Node:
    axes = range(len(x.shape) - len(normalized_shape), len(x.shape))
    return composites.layer_norm(call.g, x, axes, call.number(eps), call.optional(weight), call.optional(bias))


@rule("native_layer_norm")
def _native_layer_norm(call: Call, x: Node, shape: Sequence[int], weight: Any, bias: Any, eps: Any) -> tuple[Any, ...]:
    return _layer_norm(call, x, shape, weight, bias, eps), None, None


@rule("group_norm", linear_in_constants=True)
def _group_norm(call: Call, x: Node, num_groups: int, weight: Any = None, bias: Any = None, eps: Any = 1e-5, *_: Any) -> Node:
    return composites.group_norm(call.g, x, num_groups, call.number(eps), call.optional(weight), call.optional(bias))


@rule("instance_norm")
def _instance_norm(
    call: Call,
    x: Node,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
    *_: Any,
) -> Node:
    if not use_input_stats:
        return _normalised(call, x, weight, bias, running_mean, running_var, eps)
    return _group_norm(call, x, x.shape[1], weight, bias, eps)


@rule("rms_norm")
def _rms_norm(call: Call, x: Node, normalized_shape: Sequence[int], weight: Any = None, eps: Any = None) -> Node:
    axes = range(len(x.shape) - len(normalized_shape), len(x.shape))
    floor = torch.finfo(call.dtype).eps if eps is None else call.number(eps)
    return composites.rms_norm(call.g, x, axes, floor, call.optional(weight))


# Softmax and attention


@rule("softmax", "_safe_softmax")
def _softmax(call: Call, x: Node, dim: int | None = None, *_: Any, **__: Any) -> Node:
    if dim is None:
        raise call.refuse("it leaves its dimension out; name one")
    return composites.softmax(call.g, x, dim)


@rule("log_softmax")
def _log_softmax(call: Call, x: Node, dim: int | None = None, *_: Any, **__: Any) -> Node:
    if dim is None:
        raise call.refuse("it leaves its dimension out; name one")
    return composites.log_softmax(call.g, x, dim)


@rule("softmin")
def _softmin(call: Call, x: Node, dim: int | None = None, *_: Any, **__: Any) -> Node:
    return _softmax(call, call.g.scale(x, -1), dim)


@rule("scaled_dot_product_attention")
def _attention(
    call: Call,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(q k^T / sqrt(d) + mask) v, where a boolean mask says which entries count."""
    if dropout_p:
        raise call.refuse("dropout_p has no rule")
    factor = 1.0 / Constant.of(query.shape[-1]).sqrt() if scale is None else Constant.of(float(scale))
    mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril() if is_causal else attn_mask
    if isinstance(mask, Tensor):
        mask = np.where(mask.numpy(), 0.0, -np.inf) if mask.dtype == torch.bool else call.array(mask, masks=True)
    q, k, v = (v if isinstance(v, Node) else call.array(v) for v in (query, key, value))
    return attention(call.g, q, k, v, factor, [] if mask is None else [mask])
