"""Every ONNX operator that has a rule, in its forms through the opsets, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_cases import agrees, build, floats, ints, scalar, single

from milpverify.errors import InvalidModel, UnsupportedOperator
from milpverify.frontends.onnx.runtime import OnnxRuntime
from milpverify.operators import Conv, Elementwise, Linear, Permute, Reshape, Scale, Select

RNG = np.random.default_rng(1)
W = floats(RNG, 4, 3)
NEWEST = 26
ALL = (7, 9, 11, 13, 18, NEWEST)


def f(*shape: int) -> np.ndarray:
    return floats(RNG, *shape)


def nonzero(*shape: int) -> np.ndarray:
    return np.sign(floats(RNG, *shape)) * np.float32(0.5) + floats(RNG, *shape) * np.float32(0.1)


def arithmetic() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        for op in ("Add", "Sub", "Mul"):
            yield single(op, (2, 4), f(4), opset=opset)
            yield single(op, f(3, 1, 4), (2, 4), opset=opset)
            yield single(op, (1, 4), f(3, 1), opset=opset)
            yield single(op, (2, 4), scalar(0.3), opset=opset)
        yield single("Add", (2, 4), (3, 2, 1), opset=opset)
        yield single("Sub", (3, 1, 1), (2, 4), opset=opset)
        yield single("Div", (2, 4), nonzero(2, 1), opset=opset)
        yield single("Div", (2, 1), nonzero(1, 3), opset=opset)
        yield single("Neg", (2, 4), opset=opset)
        yield single("Identity", (2, 4), opset=opset)
        if opset >= 8:
            yield single("Sum", (2, 4), f(4), (1, 4), f(2, 1), opset=opset)
            yield single("Sum", (2, 4), opset=opset)
        yield single("Where", RNG.random((3, 1, 4)) < 0.5, (2, 4), f(2, 1), opset=max(9, opset))
        yield single("Where", RNG.random((2, 4)) < 0.5, f(1), (2, 4), opset=max(9, opset))
        yield single("Where", RNG.random((2, 4)) < 0.5, (4,), (2, 4), opset=max(9, opset))


def products() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        yield single("MatMul", (1, 4), f(4, 3), opset=opset)
        yield single("MatMul", (5, 2, 4), f(4, 3), opset=opset)
        yield single("MatMul", f(3, 4), (4, 2), opset=opset)
        yield single("MatMul", f(3, 4), (5, 4, 2), opset=opset)
    yield single("MatMul", (4,), f(4, 3))
    yield single("MatMul", (2, 4), f(4))
    yield single("MatMul", f(4), (4, 3))
    yield single("MatMul", f(4), (2, 4, 3))
    yield single("MatMul", f(3, 4), (4,))
    yield single("MatMul", (4,), f(4))
    yield single("MatMul", f(5, 3, 4), (4,))
    yield single("MatMul", (4,), f(5, 4, 3))
    yield single("MatMul", (5, 2, 4), f(5, 4, 3))
    yield single("MatMul", (2, 4), f(5, 4, 3))
    yield single("MatMul", (2, 4), f(1, 4, 3))
    yield single("MatMul", (2, 1, 2, 4), f(5, 4, 3))
    yield single("MatMul", f(5, 3, 4), (4, 2))
    yield single("MatMul", f(2, 1, 3, 4), (5, 4, 2))
    shapes = {0: (2, 4), 1: (4, 2)}, {0: (4, 3), 1: (3, 4)}
    for opset in ALL:
        for a in (0, 1):
            for b in (0, 1):
                attributes = {"transA": a, "transB": b, "alpha": 0.7, "beta": -1.3, "opset": opset}
                yield single("Gemm", shapes[0][a], f(*shapes[1][b]), f(3), **attributes)
                yield single("Gemm", f(*shapes[0][a]), shapes[1][b], f(2, 1), **attributes)
                yield single("Gemm", shapes[0][a], f(*shapes[1][b]), (1, 3), **attributes)
        yield single("Gemm", f(2, 4), f(4, 3), (2, 3), beta=0.5, opset=opset)
        yield single("Gemm", (2, 4), f(4, 3), scalar(2.0), opset=opset)
        if opset >= 11:
            yield single("Gemm", (2, 4), f(4, 3), opset=opset)


def normalisation() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        for shape in ((2, 3), (1, 3, 5), (2, 3, 4, 4), (1, 3, 2, 2, 2)):
            yield single("BatchNormalization", shape, f(3), f(3), f(3), np.abs(f(3)) + scalar(0.1), opset=opset)
        yield single("BatchNormalization", (1, 3, 4), f(3), f(3), f(3), np.abs(f(3)), opset=opset, epsilon=0.3, momentum=0.5)
        yield single("Dropout", (2, 4), opset=opset)
        yield single("Dropout", (2, 4), opset=opset, **({"ratio": 0.3} if opset < 12 else {"seed": 3}))
    yield single("Dropout", (2, 4), scalar(0.3), np.array(False), opset=13)


def moving() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        for axis in (0, 1, 2, 3) if opset < 11 else (0, 1, 2, 3, -1, -2):
            yield single("Flatten", (2, 3, 4), opset=opset, axis=axis)
        yield single("Flatten", (2, 3, 4), opset=opset)
        for target in ((4, 6), (-1,), (0, -1), (2, 0, 2, 2), (0, 0, 0), (1, -1, 4)):
            yield single("Reshape", (2, 3, 4), ints(*target), opset=opset)
        yield single("Transpose", (2, 3, 4), opset=opset)
        yield single("Transpose", (2, 3, 4), opset=opset, perm=[0, 2, 1])
        yield single("Transpose", (1, 3, 1, 4), opset=opset, perm=[2, 1, 0, 3])
        one = opset < 13
        for axes in ([0], [2], [0, 2]) + (([-1],) if opset >= 11 else ()):
            yield single("Squeeze", (1, 3, 1), *(() if one else (ints(*axes),)), opset=opset, **({"axes": axes} if one else {}))
        yield single("Squeeze", (1, 3, 1), opset=opset)
        for axes in ([0], [1, 3], [3, 0]) + (([-1], [-1, 0]) if opset >= 11 else ()):
            yield single("Unsqueeze", (3, 2), *(() if one else (ints(*axes),)), opset=opset, **({"axes": axes} if one else {}))
        for starts, ends, axes in (([1], [3], [1]), ([0, -2], [2, 1000], [0, 2]), ([-1], [-3], [1]), ([0, 1], [2, -1], None)):
            if opset < 10:
                if starts != [-1]:
                    yield single("Slice", (2, 3, 4), opset=opset, starts=starts, ends=ends, **({"axes": axes} if axes else {}))
                continue
            named = ints(*axes) if axes else None
            if starts != [-1]:
                yield single("Slice", (2, 3, 4), ints(*starts), ints(*ends), named, opset=opset)
        if opset >= 10:
            yield single("Slice", (2, 5, 4), ints(-1), ints(-1000), ints(1), ints(-2), opset=opset)
            yield single("Slice", (2, 5, 4), ints(4, 1), ints(0, 4), ints(-2, 2), ints(-1, 2), opset=opset)
        if opset < 13:
            yield single("Split", (2, 6), opset=opset, outputs=3, axis=1)
            yield single("Split", (2, 6), opset=opset, outputs=2, axis=1, split=[2, 4])
        else:
            yield single("Split", (2, 6), ints(2, 4), opset=opset, outputs=2, axis=-1)
            yield (
                single("Split", (2, 7), opset=opset, outputs=3, axis=1, num_outputs=3)
                if opset >= 18
                else single("Split", (2, 6), opset=opset, outputs=3, axis=1)
            )
        yield single("Gather", (3, 4), ints(2, 0, 0), opset=opset)
        yield single("Gather", (3, 4), np.array(1), opset=opset, axis=1)
        yield single("Gather", (3, 4), np.array([[0, 3], [1, 1]]), opset=opset, axis=1)
        if opset >= 11:
            yield single("Gather", (3, 4), ints(-1), opset=opset, axis=1)
            yield single("GatherElements", (3, 4), np.array([[0, 2, 1, -1]]), opset=opset, axis=0)
            yield single("GatherND", (3, 4), np.array([[0, 2], [1, 1]]), opset=opset)
        yield single("Concat", (2, 3), (2, 1), opset=opset, axis=1)
        yield single("Concat", (2, 3), f(1, 3), (1, 3), opset=opset, axis=0)
        if opset >= 8:
            yield single("Expand", (3, 1), ints(2, 3, 4), opset=opset)
            yield single("Expand", (3, 4), ints(1), opset=opset)
            yield single("Expand", (1, 4), ints(3, 1), opset=opset)
        yield single("Tile", (2, 3), ints(2, 1), opset=opset)
        yield single("SpaceToDepth", (1, 2, 4, 6), opset=opset, blocksize=2)
        yield single("DepthToSpace", (1, 8, 2, 3), opset=opset, blocksize=2, **({"mode": "CRD"} if opset >= 11 else {}))
        yield single("Cast", (2, 3), opset=opset, to=1)
    yield single("Reshape", (2, 3, 4), ints(0, 12), opset=14)
    yield single("Reshape", (2, 3, 4), ints(2, 12), opset=14, allowzero=1)


def padding() -> Iterator[onnx.ModelProto]:
    cases = [([0, 1, 2, 0], 0.0), ([1, 0, 1, 3], -0.5), ([0, -1, 1, 2], 0.25), ([0, -1, -1, 0], 0.0), ([0, 0, 0, 0], 1.0)]
    for opset in ALL:
        for pads, value in cases:
            if opset < 11:
                yield single("Pad", (2, 4), opset=opset, pads=pads, value=value)
                continue
            yield single("Pad", (2, 4), ints(*pads), scalar(value), opset=opset)
            yield single("Pad", (2, 4), ints(*pads), opset=opset)
        for mode in ("reflect", "edge", *(("wrap",) if opset >= 19 else ())):
            pads = [0, 1, 2, 0, 2, 3]
            if opset < 11:
                yield single("Pad", (1, 4, 5), opset=opset, mode=mode, pads=pads)
            else:
                yield single("Pad", (1, 4, 5), ints(*pads), opset=opset, mode=mode)
        if opset >= 18:
            yield single("Pad", (1, 4, 5), ints(1, 2, 3, 0), scalar(0.5), ints(-1, 1), opset=opset)


def reductions() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"):
            as_input = opset >= (13 if op == "ReduceSum" else 18)
            for axes in ([0], [1, 2], [2]) + (([-1],) if opset >= 11 else ()):
                for keepdims in (0, 1):
                    given = {} if as_input else {"axes": axes}
                    yield single(op, (2, 3, 4), *((ints(*axes),) if as_input else ()), opset=opset, keepdims=keepdims, **given)
            yield single(op, (2, 3), opset=opset)
            if as_input:
                yield single(op, (2, 3), opset=opset, noop_with_empty_axes=1)
                yield single(op, (2, 3), None, opset=opset, keepdims=0)
        for shape in ((2, 3, 5), (1, 2, 3, 4), (1, 2, 3, 2, 2)):
            yield single("GlobalAveragePool", shape, opset=opset)
            yield single("GlobalMaxPool", shape, opset=opset)


def piecewise_linear() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        for op in ("Relu", "Abs"):
            yield single(op, (2, 5), opset=opset)
        yield single("Sign", (2, 5), opset=max(9, opset))
        yield single("LeakyRelu", (2, 5), opset=opset)
        yield single("LeakyRelu", (2, 5), opset=opset, alpha=0.3)
        yield single("HardSigmoid", (2, 5), opset=opset)
        yield single("HardSigmoid", (2, 5), opset=opset, alpha=0.5, beta=0.1)
        for slope in (f(5), scalar(0.2).reshape(1), f(3, 1, 1), f(2, 3, 4, 5)):
            yield single("PRelu", (2, 3, 4, 5), slope, opset=opset)
        if opset < 11:
            yield from (
                single("Clip", (2, 5), opset=opset, **bounds) for bounds in ({}, {"min": 0.0}, {"max": 0.5}, {"min": -0.3, "max": 6.0})
            )
        else:
            yield single("Clip", (2, 5), opset=opset)
            yield single("Clip", (2, 5), scalar(-0.5), opset=opset)
            yield single("Clip", (2, 5), scalar(0.0), opset=opset)
            yield single("Clip", (2, 5), scalar(0.0), scalar(np.inf), opset=opset)
            yield single("Clip", (2, 5), None, scalar(0.4), opset=opset)
            yield single("Clip", (2, 5), scalar(-0.25), scalar(1.5), opset=opset)
            yield single("Clip", (2, 5), scalar(0.5), scalar(0.5), opset=opset)
        for op in ("Max", "Min"):
            if opset < 8:
                yield single(op, (2, 3), (2, 3), (2, 3), opset=opset)
                continue
            yield single(op, (2, 3), opset=opset)
            yield single(op, (2, 3), (3, 1, 3), opset=opset)
            yield single(op, (2, 3), scalar(0.0), opset=opset)
            yield single(op, (2, 3), f(4, 1, 3), opset=opset)
            yield single(op, f(3), (2, 1), (1, 3), scalar(0.2), (2, 3), opset=opset)


FAMILIES = {g.__name__: list(g()) for g in (arithmetic, products, normalisation, moving, padding, reductions, piecewise_linear)}


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_agree_with_onnx_runtime(family: str) -> None:
    for model in FAMILIES[family]:
        agrees(model)


def draw_window(rng: np.random.Generator) -> tuple[tuple[int, ...], dict[str, object]]:
    """Spatial sizes and attributes of a random window that ONNX Runtime may or may not accept."""
    n = int(rng.integers(1, 4))
    space = tuple(int(s) for s in rng.integers(3, 9 if n < 3 else 6, n))
    attributes: dict[str, object] = {"kernel_shape": rng.integers(1, 4, n).tolist()}
    if rng.random() < 0.7:
        attributes["strides"] = rng.integers(1, 4, n).tolist()
    match rng.integers(4):
        case 0:
            attributes["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        case 1 | 2:
            attributes["pads"] = [int(rng.integers(0, max(1, k))) for k in attributes["kernel_shape"] * 2]  # type: ignore[operator]
    return space, attributes


def fuzz(seed: int, count: int) -> Iterator[tuple[onnx.ModelProto, str]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        space, attributes = draw_window(rng)
        channels, batch = 2 * int(rng.integers(1, 3)), int(rng.integers(1, 3))
        match rng.integers(3):
            case 0:
                group = int(rng.choice([1, 2, channels]))
                if rng.random() < 0.5:
                    attributes["dilations"] = rng.integers(1, 3, len(space)).tolist()
                weight = floats(rng, 2 * group, channels // group, *attributes["kernel_shape"])  # type: ignore[misc]
                biases = (floats(rng, 2 * group),) if rng.random() < 0.5 else ()
                opset = int(rng.choice([7, 11, NEWEST]))
                yield single("Conv", (batch, channels, *space), weight, *biases, opset=opset, group=group, **attributes), "Conv"
            case 1:
                attributes["count_include_pad"] = int(rng.integers(2))
                opset = int(rng.choice([7, 10, 11, 19, NEWEST]))
                if opset >= 10 and rng.random() < 0.5:
                    attributes["ceil_mode"] = 1
                if opset >= 19 and rng.random() < 0.3:
                    attributes["dilations"] = rng.integers(1, 3, len(space)).tolist()
                yield single("AveragePool", (batch, channels, *space), opset=opset, **attributes), "AveragePool"
            case 2:
                opset = int(rng.choice([7, 8, 10, 12, NEWEST]))
                if opset >= 10 and rng.random() < 0.5:
                    attributes["ceil_mode"] = 1
                if opset >= 10 and rng.random() < 0.5:
                    attributes["dilations"] = rng.integers(1, 3, len(space)).tolist()
                yield single("MaxPool", (batch, channels, *space), opset=opset, **attributes), "MaxPool"


def test_random_windows_agree_with_onnx_runtime() -> None:
    """Convolutions and poolings of random shape, stride, padding, dilation, group and rounding."""
    agreed = dict.fromkeys(("Conv", "AveragePool", "MaxPool"), 0)
    for model, op in fuzz(seed=5, count=160):
        try:
            OnnxRuntime(model.SerializeToString()).run(
                np.zeros(np.prod([d.dim_value for d in model.graph.input[-1].type.tensor_type.shape.dim]))
            )
        except InvalidModel:
            continue  # ONNX Runtime itself refuses the combination
        try:
            agrees(model, points=2)
        except (UnsupportedOperator, InvalidModel) as error:
            assert "auto_pad" in str(error) or "window" in str(error), error
            continue
        agreed[op] += 1
    assert min(agreed.values()) > 35, agreed


def chain(*steps: tuple[str, list[str], dict[str, object]], constants: dict[str, np.ndarray], shape: tuple[int, ...]) -> onnx.ModelProto:
    nodes, value = [], "x"
    for i, (op, rest, attributes) in enumerate(steps):
        nodes.append(helper.make_node(op, [value, *rest], [f"t{i}"], **attributes))
        value = f"t{i}"
    return build(nodes, {"x": shape}, [value], constants)


def kinds(model: onnx.ModelProto) -> list[type]:
    return [type(node.op) for node in agrees(model).nodes[1:]]


def test_a_constant_added_to_a_layer_becomes_its_bias() -> None:
    dense = chain(("MatMul", ["w"], {}), ("Add", ["b"], {}), ("Relu", [], {}), constants={"w": f(4, 3), "b": f(3)}, shape=(1, 4))
    assert kinds(dense) == [Reshape, Linear, Elementwise, Reshape]
    conv = chain(("Conv", ["w"], {}), ("Add", ["b"], {}), constants={"w": f(2, 1, 3), "b": f(2, 1)}, shape=(1, 1, 5))
    assert kinds(conv) == [Reshape, Conv, Reshape]
    # A bias that differs between rows, or a second one, stays a node of its own: a sum of two biases would round.
    rows = chain(("MatMul", ["w"], {}), ("Add", ["b"], {}), constants={"w": f(4, 3), "b": f(2, 1)}, shape=(2, 4))
    assert kinds(rows) == [Reshape, Linear, Scale, Reshape]
    twice = chain(("MatMul", ["w"], {}), ("Add", ["b"], {}), ("Add", ["b"], {}), constants={"w": f(4, 3), "b": f(3)}, shape=(1, 4))
    assert kinds(twice) == [Reshape, Linear, Scale, Reshape]
    # So does one whose unbiased layer is read elsewhere.
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    assert Scale in kinds(build(nodes, {"x": [1, 4]}, ["y", "m"], {"w": f(4, 3), "b": f(3)}))


def test_reshapes_and_moves_that_change_nothing_vanish() -> None:
    constants = {"flat": ints(1, -1), "cube": ints(1, 2, 2, 3), "w": f(12, 2), "none": ints(0, 0)}
    steps = [("Reshape", ["flat"], {}), ("Reshape", ["cube"], {}), ("Flatten", [], {}), ("Identity", [], {}), ("MatMul", ["w"], {})]
    assert kinds(chain(*steps, constants=constants, shape=(2, 6))) == [Reshape, Linear, Reshape]
    moves = [("Transpose", [], {"perm": [0, 2, 1]}), ("Reshape", ["flat"], {}), ("MatMul", ["w"], {})]
    assert kinds(chain(*moves, constants=constants, shape=(1, 1, 12))) == [Reshape, Linear, Reshape]
    assert Permute in kinds(chain(*moves, constants=constants, shape=(1, 3, 4)))
    assert Select not in kinds(chain(("Pad", ["none"], {}), constants={"none": ints(0, 0, 0, 0)}, shape=(2, 3)))


@pytest.mark.parametrize(("kernel", "stages"), [(1, 0), (2, 2), (3, 4), (4, 4), (6, 6)])
def test_a_max_pool_costs_logarithmically_many_nodes(kernel: int, stages: int) -> None:
    model = single("MaxPool", (1, 2, 12, 12), kernel_shape=[kernel, kernel], strides=[2, 2])
    assert kinds(model).count(Elementwise) == stages


def test_overlapping_windows_share_comparisons() -> None:
    model = single("MaxPool", (1, 1, 16, 16), kernel_shape=[3, 3])
    comparisons = sum(node.size for node in agrees(model).nodes if isinstance(node.op, Elementwise))
    assert comparisons < 6 * 14 * 14  # one window alone takes 8
