"""Composite and smooth ONNX operators, in their forms through the opsets, against ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_cases import agrees, build, floats, ints, single

from milpverify.operators import Elementwise, Product

RNG = np.random.default_rng(2)
NEWEST = 26
ALL = (7, 9, 11, 13, 18, NEWEST)


def f(*shape: int) -> np.ndarray:
    return floats(RNG, *shape)


def scalar(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


Step = tuple[str, Sequence[str], dict[str, object]]


def steps(*nodes: Step, shape: Sequence[int] = (2, 4), opset: int = 13, **constants: np.ndarray) -> onnx.ModelProto:
    """A network given as (operator, inputs, attributes), the n-th of which computes the tensor tn; `x` is the input."""
    protos = [helper.make_node(op, list(inputs), [f"t{i}"], **attributes) for i, (op, inputs, attributes) in enumerate(nodes)]
    return build(protos, {"x": shape}, [f"t{len(nodes) - 1}"], constants, opset)


def positive(op: str, opset: int = 13, **attributes: object) -> onnx.ModelProto:
    """One operator, on the positive numbers |x| + 1/2."""
    return steps(("Abs", "x", {}), ("Add", ["t0", "half"], {}), (op, ["t1"], attributes), opset=opset, half=scalar(0.5))


def smooth() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        for op in ("Sigmoid", "Tanh", "Exp", "Softplus", "Softsign", "Elu", "Selu", "Sin", "Cos", "Atan", "Erf"):
            yield single(op, (2, 4), opset=max(9, opset))
        yield single("Elu", (2, 4), opset=opset, alpha=0.3)
        yield single("Selu", (2, 4), opset=opset, alpha=1.5, gamma=0.7)
        yield single("Celu", (2, 4), opset=max(12, opset), alpha=0.6)
        yield single("Mish", (2, 4), opset=max(18, opset))
        yield single("HardSwish", (2, 4), opset=max(14, opset))
        yield from (positive(op, opset) for op in ("Log", "Sqrt", "Reciprocal"))


def two_variables() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        yield single("Mul", (2, 4), (3, 1, 4), opset=opset)
        yield steps(("Mul", ["x", "x"], {}), opset=opset)
        yield steps(("Exp", "x", {}), ("Mul", ["x", "t0"], {}), ("Mul", ["t1", "t0"], {}), opset=opset)
        yield single("MatMul", (2, 3, 4), (4, 5), opset=opset)
        yield single("Gemm", (4, 3), (2, 4), (1, 1), alpha=0.7, beta=-0.3, transA=1, transB=1, opset=opset)
        yield steps(("Exp", "x", {}), ("Add", ["t0", "one"], {}), ("Div", ["x", "t1"], {}), opset=opset, one=scalar(1.0))
        yield steps(("Abs", "x", {}), ("Add", ["t0", "w"], {}), ("Div", ["w", "t1"], {}), opset=opset, w=np.abs(f(3, 1, 4)) + scalar(1))
    yield single("MatMul", (4,), (4,))
    yield single("MatMul", (4,), (2, 4, 3))
    yield single("MatMul", (2, 3, 4), (4,))


def powers() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        for n in (0, 1, 2, 3, 4, 5):
            yield single("Pow", (2, 4), scalar(n), opset=opset)
        yield single("Pow", (2, 4), np.full((3, 1, 4), 2, np.float32), opset=opset)
        for n in (-3, -2, -1, -0.5, 0.5, 1.5, 0.3):
            yield steps(("Abs", "x", {}), ("Add", ["t0", "half"], {}), ("Pow", ["t1", "n"], {}), opset=opset, half=scalar(0.5), n=scalar(n))
        yield single("Pow", np.array([0.3, 1.0, 2.0, 3.0], np.float32), (2, 4), opset=opset)
        nodes: list[Step] = [("Abs", "x", {}), ("Add", ["t0", "half"], {}), ("Pow", ["t1", "x"], {})]
        yield steps(*nodes, opset=opset, half=scalar(0.5))


def softmaxes() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        for op in ("Softmax", "LogSoftmax"):
            yield single(op, (2, 5), opset=opset)
            for axis in (0, 1, 2) if opset < 11 else (0, 1, -1, -2):
                yield single(op, (2, 3, 4), opset=opset, axis=axis)
            yield single(op, (4, 2), opset=opset)
            yield single(op, (4, 1), opset=opset)
    for op in ("Softmax", "LogSoftmax"):
        yield single(op, (1, 700))  # too long for all pairs


def reductions() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        for op in ("ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceProd"):
            as_input = opset >= 18
            for axes in ([0], [1, 2]):
                for keepdims in (0, 1):
                    given = {} if as_input else {"axes": axes}
                    yield single(op, (2, 3, 4), *((ints(*axes),) if as_input else ()), opset=opset, keepdims=keepdims, **given)
            yield single(op, (2, 3), opset=opset)
        yield steps(("Abs", "x", {}), ("Add", ["t0", "half"], {}), ("ReduceLogSum", ["t1"], {}), opset=opset, half=scalar(0.5))


def normalisation() -> Iterator[onnx.ModelProto]:
    for opset in ALL:
        yield single("InstanceNormalization", (2, 3, 5), f(3), f(3), opset=opset, epsilon=0.01)
        yield single("InstanceNormalization", (1, 3, 2, 4), f(3), f(3), opset=opset)
        yield single("LayerNormalization", (2, 3, 4), f(4), f(4), opset=max(17, opset))
        yield single("LayerNormalization", (2, 3, 4), f(3, 4), opset=max(17, opset), axis=1, epsilon=0.1)
    yield single("GroupNormalization", (2, 4, 3), f(4), f(4), opset=21, num_groups=2)
    yield single("RMSNormalization", (2, 3, 4), f(4), opset=23)


FAMILIES = {g.__name__: list(g()) for g in (smooth, two_variables, powers, softmaxes, reductions, normalisation)}


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_agree_with_onnx_runtime(family: str) -> None:
    for model in FAMILIES[family]:
        try:
            agrees(model)
        except Exception as error:
            error.add_note(f"{onnx.printer.to_text(model.graph)} opset {model.opset_import[0].version}")
            raise


def neurons(model: onnx.ModelProto) -> dict[str, int]:
    """The entries of each nonlinearity of a network that does what ONNX Runtime does."""
    counts: Counter[str] = Counter()
    for node in agrees(model).nodes:
        if isinstance(node.op, (Elementwise, Product)):
            counts[node.op.function.name if isinstance(node.op, Elementwise) else "product"] += node.size
    return dict(counts)


def test_rewrites_take_the_tightest_functions() -> None:
    assert neurons(single("Pow", (1, 3), scalar(2))) == {"square": 3}
    assert neurons(steps(("Mul", ["x", "x"], {}), shape=(1, 3))) == {"square": 3}
    assert neurons(single("Softmax", (2, 3))) == {"exp": 2 * 3 * 2, "reciprocal": 2 * 3}
    assert neurons(single("Softmax", (2, 2))) == {"sigmoid": 4}
    assert neurons(single("Softmax", (1, 700))) == {"exp": 700, "reciprocal": 1, "product": 700}
    assert neurons(single("LayerNormalization", (2, 3), f(3), opset=17)) == {"square": 6, "rsqrt": 2, "product": 6}
