"""The lowering rules of ONNX operators that slide a window: convolution, average and max pooling."""

from __future__ import annotations

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering import norms
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.windows import Axis, average_pool, convolve, max_pool
from milpverify.frontends.onnx.node import Operation, Value, rule
from milpverify.graph import Node
from milpverify.operators import Shape

WINDOW = "auto_pad dilations kernel_shape pads strides"


def window_axes(op: Operation, x: Node, kernel: Shape) -> list[Axis]:
    """The window of a convolution or pooling along every spatial axis.

    Raises:
        InvalidModel: attributes contradict each other or the input's shape.
        UnsupportedOperator: there are more than 3 spatial axes, or the window is padded in a way that has no rule.
    """
    space = x.shape[2:]
    n = len(space)
    if not 1 <= n <= 3:
        raise op.refuse(f"its input has shape {x.shape}; 1 to 3 spatial axes have a rule")
    strides, dilations = (op.attributes.get(key) or [1] * n for key in ("strides", "dilations"))
    pads = op.attributes.get("pads") or [0] * (2 * n)
    auto, ceil = op.attributes["auto_pad"], bool(op.attributes.get("ceil_mode"))
    if not len(kernel) == len(strides) == len(dilations) == len(pads) // 2 == n:
        raise InvalidModel(f"{op} has a kernel, strides, dilations or pads that do not fit its input of shape {x.shape}")
    if min(*kernel, *strides, *dilations) < 1:
        raise InvalidModel(f"{op} has a kernel, strides or dilations that are not positive")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise InvalidModel(f"{op} has auto_pad '{auto}', which the standard does not know")
    if min(pads) < 0:
        raise op.refuse("negative pads have no rule; crop with a Slice instead")
    axes = []
    for a in range(n):
        size, k, stride, dilation, begin, end = space[a], kernel[a], strides[a], dilations[a], pads[a], pads[a + n]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            if dilation != 1:
                # The standard pads for the dilated kernel. ONNX Runtime refuses such a Conv and pads poolings as if they were not dilated.
                raise op.refuse(
                    f"auto_pad {auto} with dilations is padded by ONNX Runtime otherwise than the standard says; export explicit pads"
                )
            padding = max(0, (-(-size // stride) - 1) * stride + k - size)
            begin = padding // 2 if auto == "SAME_UPPER" else padding - padding // 2
            end = padding - begin
        elif auto == "VALID":
            begin = end = 0
        axis = Axis.padded(size, k, stride, dilation, begin, end, ceil)
        if axis.windows < 1:
            raise InvalidModel(f"{op} has a window larger than its padded input of shape {x.shape}")
        axes.append(axis)
    return axes


@rule("Conv", attributes=f"{WINDOW} group", linear_in_constants=True)
def _conv(g: Builder, op: Operation) -> Value:
    x, weight, bias = op.node(), op.weight(1), op.constant(2)
    kernel = tuple(op.attributes.get("kernel_shape") or weight.shape[2:])
    if kernel != weight.shape[2:]:
        raise InvalidModel(f"{op} has a kernel_shape {kernel} that is not that of its weight {weight.shape}")
    return convolve(g, x, weight, window_axes(op, x, kernel), op.attributes["group"], bias)


@rule("AveragePool", attributes=f"{WINDOW} ceil_mode count_include_pad")
def _average_pool(g: Builder, op: Operation) -> Value:
    x = op.node()
    return average_pool(g, x, window_axes(op, x, tuple(op.attributes["kernel_shape"])), bool(op.attributes["count_include_pad"]))


@rule("MaxPool", attributes=f"{WINDOW} ceil_mode storage_order")
def _max_pool(g: Builder, op: Operation) -> Value:
    x = op.node()
    return max_pool(g, x, window_axes(op, x, tuple(op.attributes["kernel_shape"])))


@rule("LpPool", attributes=f"{WINDOW} ceil_mode p")
def _lp_pool(g: Builder, op: Operation) -> Value:
    x = op.node()
    return norms.pool(g, x, window_axes(op, x, tuple(op.attributes["kernel_shape"])), op.attributes["p"])
