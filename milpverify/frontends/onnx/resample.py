"""The lowering rules of ONNX operators that spread, resample or accumulate entries along axes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import onnx.helper

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering.axes import along, cumulative_sum
from milpverify.frontends.lowering.builder import Builder, check_size, entries
from milpverify.frontends.lowering.constants import Array, Constant
from milpverify.frontends.lowering.windows import convolve_transposed
from milpverify.frontends.onnx.folding import check_sizes
from milpverify.frontends.onnx.node import Operation, Value, evaluate, rule
from milpverify.frontends.onnx.ops import FLOATS
from milpverify.graph import Node

# Transposed convolution


def _end_pads(op: Operation, full: list[int]) -> list[tuple[int, int]]:
    """What is cropped from both ends of a transposed convolution with these full lengths, per spatial axis."""
    n = len(full)
    target, auto = op.attributes.get("output_shape"), op.attributes["auto_pad"]
    if auto not in ("NOTSET", "VALID"):
        raise op.refuse(f"auto_pad {auto} has no rule; export explicit pads")
    if target:
        # ONNX Runtime crops less in front where the total is odd, as the standard says of everything but SAME_UPPER.
        totals = [f - t for f, t in zip(full, target[-n:], strict=True)]
        if min(totals) < 0:
            raise op.refuse("an output_shape beyond the full one has no rule; export output_padding")
        return [(total - total // 2, total // 2) for total in totals]
    pads = op.attributes.get("pads") or [0] * (2 * n)
    return [(0, 0)] * n if auto == "VALID" else list(zip(pads[:n], pads[n:], strict=True))


@rule(
    "ConvTranspose", attributes="auto_pad dilations group kernel_shape output_padding output_shape pads strides", linear_in_constants=True
)
def _conv_transpose(g: Builder, op: Operation) -> Value:
    x, weight, bias = op.node(), op.weight(1), op.constant(2)
    n, groups = len(x.shape) - 2, op.attributes["group"]
    kernel, space = weight.shape[2:], x.shape[2:]
    if not 1 <= n <= 3 or len(kernel) != n or weight.shape[0] != x.shape[1]:
        raise InvalidModel(f"{op} has a kernel of shape {weight.shape}, which does not fit its input of shape {x.shape}")
    strides, dilations = (op.attributes.get(key) or [1] * n for key in ("strides", "dilations"))
    extra = op.attributes.get("output_padding") or [0] * n
    if not len(strides) == len(dilations) == len(extra) == n or min(*strides, *dilations, *kernel, groups) < 1:
        raise InvalidModel(f"{op} has strides, dilations or a group that are not positive, or not one per axis")
    rows = zip(space, strides, kernel, dilations, extra, strict=True)
    full = [(size - 1) * step + (k - 1) * spread + 1 + e for size, step, k, spread, e in rows]
    check_size((*x.shape[:2], *full))
    crops = [(begin, end - e) for (begin, end), e in zip(_end_pads(op, full), extra, strict=True)]
    return convolve_transposed(g, x, weight, strides, dilations, crops, groups, bias)


# Resampling


def _coordinates(op: Operation, mode: str, n: int, m: int, scale: Fraction) -> list[Fraction]:
    """Where along an axis of n entries each of m resampled ones lies."""
    half = Fraction(1, 2)
    match mode:
        case "half_pixel":
            return [(i + half) / scale - half for i in range(m)]
        case "pytorch_half_pixel":
            return [(i + half) / scale - half for i in range(m)] if m > 1 else [Fraction(0)]
        case "asymmetric":
            return [i / scale for i in range(m)]
        case "align_corners":
            return [Fraction(i * (n - 1), m - 1) for i in range(m)] if m > 1 else [Fraction(0)]
        case "half_pixel_symmetric":
            return [Fraction(n, 2) * (1 - m / (scale * n)) + (i + half) / scale - half for i in range(m)]
    raise op.refuse(f"coordinate_transformation_mode '{mode}' has no rule")


def _nearest(op: Operation, mode: str, x: Array) -> Array:
    rounded = {"round_prefer_floor": np.ceil(x - 0.5), "round_prefer_ceil": np.floor(x + 0.5), "floor": np.floor(x), "ceil": np.ceil(x)}
    if mode not in rounded:
        raise op.refuse(f"nearest_mode '{mode}' has no rule")
    return rounded[mode]


def _interpolating(n: int, at: list[Fraction]) -> Constant:
    """The matrix (m, n) that interpolates between the two entries around each coordinate."""
    entries = [Fraction(0)] * (len(at) * n)
    for i, place in enumerate(at):
        place = min(max(place, Fraction(0)), Fraction(n - 1))
        low = math.floor(place)
        entries[i * n + low] += 1 - (place - low)
        entries[i * n + min(low + 1, n - 1)] += place - low
    return Constant.nearest(entries, (len(at), n))


def _cubic(n: int, at: list[Fraction], a: Fraction, outside: bool) -> Constant:
    """The matrix (m, n) of the cubic convolution with the coefficient a of the four entries around each coordinate.

    Keys, Cubic convolution interpolation for digital image processing, IEEE Trans. ASSP 1981, equation 4.

    Args:
        outside: the entries at the ends are repeated outside; else those there do not count, and the others' weights sum up to 1.

    Raises:
        ValueError: the weights that count sum up to 0.
    """
    entries = [Fraction(0)] * (len(at) * n)
    for i, place in enumerate(at):
        low = math.floor(place)
        weights = {}
        for j in range(low - 1, low + 3):
            d = abs(place - j)
            near = ((a + 2) * d - (a + 3)) * d * d + 1
            weights[j] = near if d <= 1 else ((d - 5) * d + 8) * d * a - 4 * a
        if not outside:
            weights = {j: w for j, w in weights.items() if 0 <= j < n}
        total = sum(weights.values())
        if not total:
            raise ValueError("the weights of a cubic interpolation sum up to 0")
        for j, w in weights.items():
            entries[i * n + min(max(j, 0), n - 1)] += w / total
    return Constant.nearest(entries, (len(at), n))


def _resample(g: Builder, op: Operation, sizes: list[tuple[int, Fraction]], mode: str, transformation: str, nearest: str) -> Node:
    """Every axis resampled to (length, scale)."""
    x = op.node()
    check_size(m for m, _ in sizes)
    for axis, (m, scale) in enumerate(sizes):
        n = x.shape[axis]
        if m == n and scale == 1:
            continue
        at = _coordinates(op, transformation, n, m, scale)
        if mode == "nearest":
            places = np.array([float(place) for place in at])
            chosen = np.clip(_nearest(op, nearest, places), 0, n - 1).astype(np.int64)
            x = g.select(x, np.take(entries(x.shape), chosen, axis))
        elif mode == "linear":
            x = along(g, x, axis, _interpolating(n, at))
        elif mode == "cubic" and "cubic_coeff_a" in op.attributes:
            matrix = _cubic(n, at, Fraction(op.attributes["cubic_coeff_a"]), not op.attributes["exclude_outside"])
            x = along(g, x, axis, matrix)
        else:
            raise op.refuse(f"mode '{mode}' has no rule; nearest, linear and cubic have")
    return x


def _scaled(op: Operation, n: int, scale: float) -> tuple[int, Fraction]:
    """The length that an axis of length n is resampled to, and the scale."""
    exact = Fraction(scale)
    if exact <= 0:
        raise InvalidModel(f"{op} has a scale of {scale}")
    return _length(op, math.floor(n * exact)), exact


def _length(op: Operation, m: int) -> int:
    if m < 1:
        raise InvalidModel(f"{op} resamples an axis to the length {m}")
    return m


@rule("Upsample", attributes="mode scales")
def _upsample(g: Builder, op: Operation) -> Value:
    given = op.attributes["scales"] if op.opset < 9 else op.weight(1).tolist()
    sizes = [_scaled(op, n, s) for n, s in zip(op.node().shape, given, strict=True)]
    return _resample(g, op, sizes, op.attributes["mode"], "asymmetric", "floor")


@rule("Resize", attributes="axes coordinate_transformation_mode mode nearest_mode cubic_coeff_a exclude_outside extrapolation_value")
def _resize(g: Builder, op: Operation) -> Value:
    x = op.node()
    if op.opset < 11:
        given = op.weight(1).tolist()
        if min(given) < 1:
            raise op.refuse("shrinking has no rule before opset 11")
        sizes = [_scaled(op, n, s) for n, s in zip(x.shape, given, strict=True)]
        return _resample(g, op, sizes, op.attributes["mode"], "asymmetric", "floor")
    axes = [a % len(x.shape) for a in op.attributes.get("axes") or range(len(x.shape))]
    lengths = [(n, Fraction(1)) for n in x.shape]
    scales, targets = op.constant(2), op.constant(3)
    if targets is not None and targets.size:
        for a, m in zip(axes, targets.tolist(), strict=True):
            lengths[a] = (_length(op, m), Fraction(m, x.shape[a]))
    elif scales is not None and scales.size:
        for a, s in zip(axes, scales.tolist(), strict=True):
            lengths[a] = _scaled(op, x.shape[a], s)
    else:
        raise InvalidModel(f"{op} has neither scales nor sizes")
    modes = [op.attributes[key] for key in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    return _resample(g, op, lengths, *modes)


# Accumulation and placement


@rule("CumSum", attributes="exclusive reverse")
def _cumulative_sum(g: Builder, op: Operation) -> Value:
    axis = int(op.weight(1).reshape(()))
    return cumulative_sum(g, op.node(), axis, bool(op.attributes["exclusive"]), bool(op.attributes["reverse"]))


@rule("CumProd", attributes="exclusive reverse")
def _cumulative_product(g: Builder, op: Operation) -> Value:
    axis = int(op.weight(1).reshape(()))
    from milpverify.frontends.lowering.scatter import cumulative_product

    return cumulative_product(g, op.node(), axis, bool(op.attributes["exclusive"]), bool(op.attributes["reverse"]))


@rule("Trilu", attributes="upper", moves=True)
@rule("CenterCropPad", attributes="axes", moves=True)
def _triangle(g: Builder, op: Operation) -> Value:
    """Entries stay, go or become 0: the standard's own definition, run on the places of the entries, says which."""
    x = op.node()
    check_sizes(op, evaluated=True)
    (places,) = evaluate(op.proto, [entries(x.shape) + 1, *(op.constant(i) for i in range(1, len(op.inputs)))], op.opset)
    return g.select(x, places.astype(np.int64) - 1)


@rule("ScatterND", "ScatterElements", "Scatter", attributes="axis reduction", linear_in_constants=True)
def _scatter(g: Builder, op: Operation) -> Value:
    """Entries of the data are replaced, or combined with updates: what gathers entries from the same places says where these are."""
    data, updates = (v if isinstance(v, Node) else g.constant(v) for v in (op.value(0), op.value(2)))
    index: Any = op.weight(1)
    if op.proto.op_type == "ScatterND":
        gather = onnx.helper.make_node("GatherND", ["data", "indices"], ["places"], name=op.proto.name)
        (places,) = evaluate(gather, [entries(data.shape), index], 13)
    else:
        axis = op.attributes["axis"] % len(data.shape)
        rows = entries(data.shape)[tuple(slice(None if a == axis else n) for a, n in enumerate(index.shape))]
        places = np.take_along_axis(rows, index, axis)
    from milpverify.frontends.lowering.scatter import scattered

    return scattered(g, data, updates, places.astype(np.int64), op.attributes.get("reduction", "none"))


@rule("TensorScatter", attributes="axis mode", linear_in_constants=True)
def _tensor_scatter(g: Builder, op: Operation) -> Value:
    """Entries of the cache are replaced: the standard's own definition, run on the places of both, says by which."""
    data, updates = (v if isinstance(v, Node) else g.constant(v) for v in (op.value(0), op.value(1)))
    rest = [op.constant(i) for i in range(2, len(op.inputs))]
    (places,) = evaluate(op.proto, [entries(data.shape), data.size + entries(updates.shape), *rest], op.opset)
    both = g.concat([g.reshape(v, (v.size,)) for v in (data, updates)], 0)
    return g.select(both, places.astype(np.int64))


@rule("Col2Im", attributes="dilations pads strides")
def _windows_put_back(g: Builder, op: Operation) -> Value:
    size, kernel = (op.weight(i).astype(np.int64).tolist() for i in (1, 2))
    n = len(size)
    strides, dilations = (op.attributes.get(key) or [1] * n for key in ("strides", "dilations"))
    pads = op.attributes.get("pads") or [0] * (2 * n)
    from milpverify.frontends.lowering.scatter import folded

    return folded(g, op.node(), size, kernel, strides, dilations, list(zip(pads[:n], pads[n:], strict=True)))


@rule("GridSample", attributes="align_corners mode padding_mode")
def _grid_sample(g: Builder, op: Operation) -> Value:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(op.attributes["mode"], op.attributes["mode"])
    from milpverify.frontends.lowering.scatter import sampled

    return sampled(g, op.node(), op.weight(1), mode, op.attributes["padding_mode"], bool(op.attributes["align_corners"]))


@rule("EyeLike", attributes="dtype k")
def _eye_like(g: Builder, op: Operation) -> Value:
    x = op.node()
    if op.attributes.get("dtype", 1) not in FLOATS:
        raise op.refuse("only real types have a rule")
    found: Array = np.eye(x.shape[0], x.shape[1], k=int(op.attributes["k"]))
    return found
