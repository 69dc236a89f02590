"""Nodes that do not fit: one line that names the node, never a traceback and never a tensor that does not fit into memory."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_cases import agrees, build, ints, single

from milpverify.errors import InvalidInput
from milpverify.frontends.onnx.lowering import lower

IMAGE = (1, 1, 4, 4)
KERNEL = np.ones((1, 1, 2, 2), dtype=np.float32)


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


BAD: dict[str, onnx.ModelProto] = {
    "stride 0 of a pooling": single("MaxPool", IMAGE, kernel_shape=[1, 1], strides=[0, 0]),
    "stride 0 of a convolution": single("Conv", IMAGE, KERNEL, strides=[0, 0]),
    "dilation 0": single("Conv", IMAGE, KERNEL, dilations=[0, 0]),
    "auto_pad unknown": single("Conv", IMAGE, KERNEL, auto_pad="FOO"),
    "dilation 0 of a transposed convolution": single("ConvTranspose", IMAGE, KERNEL, dilations=[0, 0]),
    "group 0": single("ConvTranspose", IMAGE, KERNEL, group=0),
    "no groups": single("GroupNormalization", (1, 2, 3), f32(1, 1), f32(0, 0), num_groups=0, opset=21),
    "a list for a number": single("LeakyRelu", (1, 2), alpha=[1.0, 2.0]),
    "text for a number": single("Softmax", (1, 2), axis="q"),
    "an infinite attribute": single("Gemm", (1, 2), np.eye(2, dtype=np.float32), alpha=float("inf")),
    "NaN": single("LeakyRelu", (1, 2), alpha=float("nan")),
    "an axis twice": single("ReduceSum", (1, 2), ints(1, 1)),
    "an axis twice, once from the end": single("ReduceL2", (1, 2), axes=[1, -1]),
    "a huge expansion": single("Expand", (1, 2), ints(10**7, 10**5, 2)),
    "a huge tiling": single("Tile", (1, 2), ints(10**8, 10**6)),
    "a huge padding": single("Pad", (1, 2), ints(0, 10**13, 0, 0)),
    "a huge resampling": single("Resize", IMAGE, None, None, ints(1, 1, 10**9, 10**9)),
    "a scale of 0": single("Resize", IMAGE, None, f32(1, 1, 0, 2)),
    "a negative scale": single("Resize", IMAGE, None, f32(1, 1, -1, 2)),
    "a huge spread": single("ConvTranspose", IMAGE, KERNEL, strides=[10**6, 10**6]),
    "a huge exponent": single("Pow", (1, 2), f32(1e30)),
    "a huge input": single("Relu", (1, 10**12)),
    "a huge constant": build(
        [helper.make_node("ConstantOfShape", ["s"], ["h"]), helper.make_node("Add", ["x", "h"], ["y"])],
        {"x": (1, 2)},
        ["y"],
        {"s": ints(10**7, 10**6)},
    ),
    "step 0": single("Slice", (1, 2), ints(0), ints(1), ints(1), ints(0)),
    "a place out of range": single("Gather", (1, 2), ints(9), axis=1),
    "a cell's weights": single("LSTM", (2, 1, 2), np.ones((1, 8, 5), np.float32), np.ones((1, 8, 2), np.float32), hidden_size=2),
    "a block of 0": single("DepthToSpace", IMAGE, blocksize=0),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_nodes_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        lower(BAD[name])
    assert "\n" not in str(caught.value)
    assert "input 'in0'" in str(caught.value) or BAD[name].graph.node[0].op_type in str(caught.value)


def test_a_function_that_is_constant() -> None:
    agrees(single("Selu", (1, 3), gamma=0.0))


@pytest.mark.parametrize("ends", [(2.0, 1.0), (1.0, -1.0), (1.0, 1.0)])
def test_clip_takes_its_upper_end_where_the_lower_is_above_it(ends: tuple[float, float]) -> None:
    agrees(single("Clip", (1, 3), np.array(ends[0], np.float32), np.array(ends[1], np.float32)))


@pytest.mark.parametrize("chosen", [True, False])
def test_the_branch_that_a_constant_chooses_is_lowered_in_place(chosen: bool) -> None:
    """Branches read tensors around them, computed and stored ones."""
    node = helper.make_node
    end = [helper.make_tensor_value_info("q", onnx.TensorProto.FLOAT, None)]
    branches = {
        "then_branch": helper.make_graph([node("Mul", ["h", "w"], ["q"])], "then", [], end),
        "else_branch": helper.make_graph(
            [node("Relu", ["h"], ["p"]), node("Add", ["p", "v"], ["q"])],
            "else",
            [],
            [helper.make_tensor_value_info("q", onnx.TensorProto.FLOAT, None)],
        ),
    }
    model = build(
        [node("Neg", ["x"], ["h"]), node("If", ["c"], ["z"], **branches), node("Relu", ["z"], ["y"])],
        {"x": (1, 3)},
        ["y"],
        {"c": np.array(chosen), "w": f32(1, -2, 3), "v": f32(0.5, -0.25, 1)},
    )
    assert agrees(model).ny == 3
