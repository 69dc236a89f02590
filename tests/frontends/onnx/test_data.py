"""Operators that compare, choose, order and quantise data, against ONNX Runtime; what their lowering finds, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_cases import agrees, build, floats, ints, scalar, single

from milpverify.errors import InvalidModel, UnsupportedOperator
from milpverify.frontends.onnx.lowering import lower
from milpverify.frontends.onnx.node import evaluate, evaluate_in_runtime
from milpverify.operators import Elementwise, Product

RNG = np.random.default_rng(5)
node = helper.make_node


def f(*shape: int) -> np.ndarray:
    return floats(RNG, *shape)


def graph(*steps: tuple, opset: int = 17, shape: tuple[int, ...] = (2, 3), **constants: np.ndarray) -> onnx.ModelProto:
    """Operators one after the other, (name, inputs, output, attributes), from x to y."""
    nodes = [node(name, ins.split(), outs.split(), **(rest[0] if rest else {})) for name, ins, outs, *rest in steps]
    return build(nodes, {"x": shape}, ["y"], constants, opset)


HALF, TENTH, ZERO, ONE = scalar(0.5), scalar(0.1), scalar(0), scalar(1)


def masked(*steps: tuple, **constants: np.ndarray) -> onnx.ModelProto:
    return graph(*steps, ("Cast", "m", "y", {"to": TensorProto.FLOAT}), **constants)


def models() -> Iterator[onnx.ModelProto]:
    for opset in (9, 12, 17, 24):
        for op in ("Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"):
            if opset > 9 or op in ("Greater", "Less"):
                yield masked(("Neg", "x", "a"), (op, "x a", "m"), opset=opset)
                yield masked((op, "c x", "m"), opset=opset, c=f(3))
    for op in ("And", "Or", "Xor"):
        yield masked(("Greater", "x c", "p"), ("Less", "x d", "q"), ("Not", "q", "r"), (op, "p r", "m"), c=f(3), d=f(2, 1))
        yield masked(("Greater", "x c", "p"), (op, "t p", "m"), c=f(3), t=np.array([True, False, True]))
    yield graph(("Greater", "x c", "m"), ("Neg", "x", "a"), ("Exp", "x", "b"), ("Where", "m a b", "y"), c=f(2, 1))
    yield graph(("Transpose", "x", "t", {"perm": [1, 0]}), ("Less", "t c", "m"), ("Where", "m x d", "y"), shape=(3, 3), c=f(3), d=f(3))
    yield graph(("Greater", "x c", "m"), ("Where", "m d e", "y"), c=f(3), d=f(2, 1), e=f(3))
    yield graph(
        ("Greater", "x c", "m"), ("Cast", "m", "n", {"to": TensorProto.INT64}), ("ReduceSum", "n", "s"), ("CastLike", "s x", "y"), c=f(3)
    )
    yield graph(("Cast", "x", "n", {"to": TensorProto.INT32}), ("Cast", "n", "y", {"to": TensorProto.FLOAT}))
    yield masked(("Relu", "x", "r"), ("Cast", "r", "m", {"to": TensorProto.BOOL}))
    yield masked(("Greater", "x c", "b"), ("CastLike", "x b", "m"), c=ZERO)
    yield masked(("IsNaN", "x", "n"), ("Less", "x c", "b"), ("Or", "n b", "m"), c=ZERO)
    for opset in (9, 10, 11, 24):
        for axis, largest, k in ((-1, 1, 2), (0, 0, 3), (1, 1, 1), (1, 0, 4)):
            if opset > 10 or largest:
                attributes = {"axis": axis, **({"largest": largest, "sorted": 1} if opset > 10 else {}), **({"k": k} if opset < 10 else {})}
                read, known = ("x k", {"k": ints(k)}) if opset >= 10 else ("x", {})
                yield graph(("TopK", read, "y i", attributes), shape=(3, 4, 2), opset=opset, **known)
    yield graph(("TopK", "x k", "y i"), shape=(2, 13), k=ints(5))
    for alpha in (1.0, 0.3, -0.7, 0.0):
        yield single("ThresholdedRelu", (2, 3), alpha=alpha)
    yield single("Shrink", (2, 3), lambd=0.7, bias=0.2)
    yield single("Shrink", (2, 3))
    yield single("Round", (2, 3))
    yield single("Mod", (2, 3), np.array([0.5, -0.25, 2.0], dtype=np.float32), fmod=1)
    yield graph(("Clip", "x a b", "y"), ("Neg", "x", "u"), shape=(2, 3), a=scalar(-0.5), b=scalar(0.5))
    yield build(
        [
            node("ReduceMean", ["x"], ["m"], keepdims=0),
            node("Abs", ["m"], ["b"]),
            node("Neg", ["b"], ["a"]),
            node("Clip", ["x", "a", "b"], ["y"]),
        ],
        {"x": [2, 3]},
        ["y"],
        {},
        13,
    )
    for scale, offset in (([2.0], [0.5]), ([1.0, 2.0, -0.3], [0.1, 0.2, 0.3])):
        yield pipeline("Scaler", scale=scale, offset=offset)
    yield pipeline("Binarizer", threshold=0.3)


def pipeline(op: str, **attributes: object) -> onnx.ModelProto:
    model = build([node(op, ["x"], ["y"], domain="ai.onnx.ml", **attributes)], {"x": [2, 3]}, ["y"])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


@pytest.mark.parametrize("index", range(len(list(models()))))
def test_lowered_as_the_runtime_computes(index: int) -> None:
    agrees(list(models())[index])


def functions(model: onnx.ModelProto) -> list[str]:
    lowered = agrees(model)
    assert not any(isinstance(n.op, Product) for n in lowered.nodes)
    return [str(n.op.function).split("(")[0] for n in lowered.nodes if isinstance(n.op, Elementwise)]


def test_choices_of_one_variable_are_found() -> None:
    tenth = ("Mul", "x k", "s")
    assert functions(graph(tenth, ("Greater", "x z", "m"), ("Where", "m x s", "y"), k=TENTH, z=ZERO)) == ["leaky_relu"]
    assert functions(graph(tenth, ("LessOrEqual", "x z", "m"), ("Where", "m s x", "y"), k=TENTH, z=ZERO)) == ["leaky_relu"]
    assert functions(graph(tenth, ("Less", "x z", "p"), ("Not", "p", "m"), ("Where", "m x s", "y"), k=TENTH, z=ZERO)) == ["leaky_relu"]
    gate = ("Greater", "x z", "m"), ("Cast", "m", "g", {"to": TensorProto.FLOAT}), ("Mul", "x g", "y")
    assert functions(graph(*gate, z=ZERO)) == ["relu"]
    clamp = ("Greater", "x b", "m"), ("Less", "x a", "p"), ("Where", "p a x", "u"), ("Where", "m b u", "y")
    assert functions(graph(*clamp, a=scalar(-0.5), b=HALF)) == ["clip"]
    inside = ("Greater", "x a", "p"), ("Less", "x b", "q"), ("And", "p q", "m"), ("Where", "m x z", "y")
    assert functions(graph(*inside, a=scalar(-0.5), b=ONE, z=ZERO)) == ["piecewise"]
    flip = ("Neg", "x", "n"), ("Less", "x z", "m"), ("Where", "m n x", "y")
    assert functions(graph(*flip, z=ZERO)) == ["abs"]


def test_choices_with_a_line_per_entry_need_no_product() -> None:
    steps = ("Mul", "x k", "s"), ("Greater", "x z", "m"), ("Where", "m x s", "y")
    assert functions(graph(*steps, k=f(3), z=ZERO)) == ["relu"]
    steps = ("Sub", "x k", "d"), ("Greater", "d z", "m"), ("Where", "m d z", "y")
    assert functions(graph(*steps, k=f(3), z=ZERO)) == ["relu"]
    steps = ("Mul", "x k", "s"), ("Greater", "x c", "m"), ("Where", "m x s", "y")
    assert sorted(functions(graph(*steps, k=f(3), c=f(3)))) == ["heaviside", "relu"]


def test_a_pair_costs_one_comparison() -> None:
    model = graph(("Reshape", "x s", "p"), ("TopK", "p k", "t i"), ("Flatten", "t", "y"), shape=(1, 8), s=ints(1, 4, 2), k=ints(2))
    assert functions(model) == ["relu"] and sum(n.size for n in lower(model).nodes if isinstance(n.op, Elementwise)) == 4


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graph(("TopK", "x k", "v i"), ("Cast", "i", "y", {"to": 1}), k=ints(2)), "output 'i' has no rule"),
        (graph(("TopK", "x k", "y i"), shape=(1, 4000), k=ints(100)), "more than 4096 comparisons"),
        (graph(("TopK", "x k", "y i"), k=ints(4)), "4 entries of 3"),
        (graph(("TopK", "x k", "y i", {"sorted": 0}), k=ints(2)), "sorted = 0"),
        (
            graph(("Cast", "x", "n", {"to": 6}), ("Div", "n c", "d"), ("Cast", "d", "y", {"to": 1}), c=np.array(2, np.int32)),
            "reads integers",
        ),
        (graph(("Cast", "x", "n", {"to": 2}), ("Cast", "n", "y", {"to": 1})), "UINT8"),
    ],
)
def test_what_has_no_rule_is_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises((UnsupportedOperator, InvalidModel), match=message):
        lower(model)


# Integers that stand for real numbers


def stored(dtype: type, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return RNG.integers(max(info.min, -(2**31)), min(info.max, 2**31 - 1), shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("opset", [10, 13, 19, 23])
def test_stored_integers_are_what_they_stand_for(opset: int) -> None:
    scale = np.abs(f(3)) / 50 + np.float32(0.01)
    weights = {np.int8: np.array(3, np.int8), np.uint8: np.array(128, np.uint8), np.int32: None}
    for dtype, zero in weights.items():
        w = stored(dtype, 3, 3) if dtype is not np.int32 else stored(np.int16, 3, 3).astype(np.int32)
        for per_axis in (False, True) if opset > 10 else (False,):
            names = "w s z" if zero is not None else "w s"
            known = {
                "w": w,
                "s": scale if per_axis else scale[0],
                **({"z": np.full(3, zero) if per_axis else zero} if zero is not None else {}),
            }
            known = {k: np.asarray(v) for k, v in known.items()}
            attributes = {"axis": 0} if per_axis else {}
            lowered = agrees(graph(("DequantizeLinear", names, "v", attributes), ("MatMul", "x v", "y"), opset=opset, **known))
            exact = (w.astype(float) - (0 if zero is None else float(zero))) * np.float64(scale[:, None] if per_axis else scale[0])
            found = lowered.nodes[-1].op.weight if hasattr(lowered.nodes[-1].op, "weight") else lowered.nodes[-2].op.weight
            np.testing.assert_array_equal(found.numpy().T, exact)


def test_blocks_and_constants_that_are_quantised() -> None:
    w, s = stored(np.int8, 4, 3), np.abs(f(2, 3)) + np.float32(0.1)
    steps = ("DequantizeLinear", "w s", "v", {"axis": 0, "block_size": 2}), ("MatMul", "x v", "y")
    agrees(graph(*steps, opset=21, shape=(2, 4), w=w, s=s))
    steps = ("QuantizeLinear", "w s z", "q"), ("DequantizeLinear", "q s z", "v"), ("MatMul", "x v", "y")
    halves = np.array([[0.25, 0.35, -0.45], [12.75, -40.0, 0.05], [0.15, 1.25, 2.35]], dtype=np.float32)
    for opset in (10, 13, 21):
        agrees(graph(*steps, opset=opset, w=halves, s=TENTH, z=np.array(2, np.int8)))


def test_data_is_quantised_and_back() -> None:
    for z in (np.array(7, np.int8), np.array(100, np.uint8)):
        agrees(graph(("QuantizeLinear", "x s z", "q"), ("Transpose", "q", "p"), ("DequantizeLinear", "p s z", "y"), s=scalar(0.03), z=z))
    with pytest.raises(UnsupportedOperator, match="reads integers"):
        lower(graph(("QuantizeLinear", "x s z", "q"), ("Reciprocal", "q", "y"), s=TENTH, z=np.array(0, np.int8)))


@pytest.mark.parametrize(
    ("op", "arrays", "attributes"),
    [
        ("MatMul", [f(2, 3), f(3, 4)], {}),
        ("Exp", [f(2, 3)], {}),
        ("Where", [f(3) > 0, f(2, 3), f(2, 3)], {}),
        ("Gather", [f(4, 3), ints(2, 0)], {"axis": 0}),
        ("Conv", [f(1, 2, 5), f(3, 2, 3)], {}),
        ("CumSum", [f(2, 3), np.array(1)], {}),
        ("ReduceMax", [f(2, 3)], {"axes": [1]}),
    ],
)
def test_constants_fold_alike_by_the_reference_and_by_the_runtime(op: str, arrays: list, attributes: dict) -> None:
    wide = [v.astype(np.float64) if v.dtype == np.float32 else v for v in arrays]
    proto = node(op, [str(i) for i in range(len(wide))], ["y"], **attributes)
    for a, b in zip(evaluate(proto, wide, 13), evaluate_in_runtime(proto, wide, 13), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_neither_knows_is_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="does not define it"):
        evaluate(node("Nowhere", ["a"], ["y"]), [f(2)], 13)
