"""Composite and smooth ONNX operators, in their forms through the opsets, against ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import flint
import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_cases import agrees, build, floats, ints, scalar, single

from milpverify.enclosure import enclose
from milpverify.frontends.onnx.lowering import lower
from milpverify.operators import Elementwise, Product

RNG = np.random.default_rng(2)
NEWEST = 26
ALL = (7, 9, 11, 13, 18, NEWEST)


def f(*shape: int) -> np.ndarray:
    return floats(RNG, *shape)


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
        yield single("Gelu", (2, 4), opset=max(20, opset))
        yield single("Gelu", (2, 4), opset=max(20, opset), approximate="tanh")
        yield single("HardSwish", (2, 4), opset=max(14, opset))
        yield from (single(op, (2, 4), opset=opset) for op in ("Floor", "Ceil"))
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
        agrees(model)


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


def test_gelu_is_found_in_its_arrangements() -> None:
    erf: list[Step] = [("Div", ["x", "c"], {}), ("Erf", ["t0"], {}), ("Add", ["t1", "one"], {})]
    c, one, half = (scalar(v) for v in (np.sqrt(2), 1.0, 0.5))
    exact = {"gelu_rounded": 8}
    for rest in (
        [("Mul", ["x", "t2"], {}), ("Mul", ["t3", "half"], {})],
        [("Mul", ["half", "x"], {}), ("Mul", ["t3", "t2"], {})],
        [("Mul", ["t2", "half"], {}), ("Mul", ["t3", "x"], {})],
    ):
        assert neurons(steps(*erf, *rest, c=c, one=one, half=half)) == exact
    assert neurons(steps(("Mul", ["x", "c"], {}), *erf[1:], ("Mul", ["t2", "x"], {}), c=scalar(-0.3), one=one)) == exact
    # x erf(x) alone, and x (erf(x) + 3), are the same function and a multiple of x.
    assert neurons(steps(("Erf", "x", {}), ("Mul", ["x", "t0"], {}))) == exact
    assert neurons(steps(("Erf", "x", {}), ("Add", ["t0", "c"], {}), ("Mul", ["x", "t1"], {}), c=scalar(3.0))) == exact


def test_gelu_in_its_tanh_form_is_found_in_its_arrangements() -> None:
    a, b, one, half, three = (scalar(v) for v in (0.7978845608028654, 0.044715, 1.0, 0.5, 3.0))
    end: list[Step] = [("Add", ["t4", "one"], {}), ("Mul", ["x", "half"], {}), ("Mul", ["t6", "t5"], {})]
    power: list[Step] = [("Pow", ["x", "three"], {}), ("Mul", ["t0", "b"], {}), ("Add", ["x", "t1"], {}), ("Mul", ["t2", "a"], {})]
    assert neurons(steps(*power, ("Tanh", ["t3"], {}), *end, a=a, b=b, one=one, half=half, three=three)) == {"gelu_tanh_rounded": 8}
    fast: list[Step] = [
        ("Mul", ["x", "a"], {}),
        ("Mul", ["x", "b"], {}),
        ("Mul", ["t1", "x"], {}),
        ("Add", ["t2", "one"], {}),
        ("Mul", ["t0", "t3"], {}),
        ("Tanh", ["t4"], {}),
        ("Add", ["t5", "one"], {}),
        ("Mul", ["x", "half"], {}),
        ("Mul", ["t6", "t7"], {}),
    ]
    assert neurons(steps(*fast, a=a, b=b, one=one, half=half)) == {"gelu_tanh_rounded": 8}
    cubes: list[Step] = [("Mul", ["x", "x"], {}), ("Mul", ["t0", "x"], {}), ("Mul", ["t1", "b"], {}), ("Sub", ["t2", "x"], {})]
    assert neurons(steps(*cubes, ("Tanh", ["t3"], {}), *end, b=b, one=one, half=half)) == {"tanh": 8, "cube": 8, "product": 8}
    # Other constants are another function: none is taken for it.
    assert "gelu_tanh_rounded" not in neurons(
        steps(*power, ("Tanh", ["t3"], {}), *end, a=scalar(0.9), b=b, one=one, half=half, three=three)
    )


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Sigmoid", "x", {}), ("Mul", ["x", "t0"], {})], "silu"),
        ([("Mul", ["x", "c"], {}), ("Sigmoid", ["t0"], {}), ("Mul", ["t1", "x"], {})], "silu"),
        ([("Softplus", "x", {}), ("Tanh", ["t0"], {}), ("Mul", ["x", "t1"], {})], "mish"),
        ([("Exp", "x", {}), ("Add", ["t0", "one"], {}), ("Log", ["t1"], {}), ("Tanh", ["t2"], {}), ("Mul", ["t3", "x"], {})], "mish"),
        (
            [("Add", ["x", "three"], {}), ("Clip", ["t0", "zero", "six"], {}), ("Mul", ["x", "t1"], {}), ("Div", ["t2", "six"], {})],
            "hard_swish",
        ),
        ([("HardSigmoid", "x", {"alpha": 1 / 6}), ("Mul", ["t0", "x"], {})], "hard_swish"),
        ([("HardSigmoid", "x", {}), ("Mul", ["t0", "x"], {})], "hard_swish"),
        ([("Abs", "x", {}), ("Add", ["t0", "one"], {}), ("Div", ["x", "t1"], {})], "softsign"),
        ([("Abs", "x", {}), ("Mul", ["t0", "c"], {}), ("Add", ["t1", "three"], {}), ("Div", ["x", "t2"], {})], "softsign"),
        ([("Neg", "x", {}), ("Exp", ["t0"], {}), ("Add", ["t1", "one"], {}), ("Reciprocal", ["t2"], {})], "sigmoid"),
        ([("Neg", "x", {}), ("Exp", ["t0"], {}), ("Add", ["t1", "one"], {}), ("Div", ["one", "t2"], {})], "sigmoid"),
        ([("Neg", "x", {}), ("Exp", ["t0"], {}), ("Add", ["t1", "one"], {}), ("Div", ["x", "t2"], {})], "silu"),
        ([("Exp", "x", {}), ("Add", ["t0", "one"], {}), ("Log", ["t1"], {})], "softplus"),
        ([("Exp", "x", {}), ("Reciprocal", ["t0"], {})], "exp"),
        ([("Mul", ["x", "x"], {}), ("Mul", ["t0", "x"], {})], "cube"),
        ([("Mul", ["x", "x"], {}), ("Mul", ["t0", "t0"], {})], "pow_even"),
        ([("Mul", ["x", "x"], {}), ("Mul", ["t0", "x"], {}), ("Mul", ["t1", "t0"], {})], "pow_odd"),
        ([("Add", ["x", "three"], {}), ("Mul", ["x", "c"], {}), ("Mul", ["t0", "t1"], {})], "square"),
    ],
)
def test_functions_written_out_in_parts_are_found(nodes: list[Step], expected: str) -> None:
    constants = {k: scalar(v) for k, v in {"zero": 0.0, "one": 1.0, "three": 3.0, "six": 6.0, "c": -1.702}.items()}
    if expected == "softsign":
        constants["c"] = scalar(0.7)
    assert neurons(steps(*nodes, **constants)) == {expected: 8}


def test_softmax_written_out_is_found() -> None:
    last = ints(-1)
    whole = {"exp": 2 * 4 * 3, "reciprocal": 8}
    assert neurons(steps(("Exp", "x", {}), ("ReduceSum", ["t0", "last"], {}), ("Div", ["t0", "t1"], {}), last=last)) == whole
    flat: list[Step] = [
        ("Exp", "x", {}),
        ("ReduceSum", ["t0", "last"], {"keepdims": 0}),
        ("Unsqueeze", ["t1", "last"], {}),
        ("Div", ["t0", "t2"], {}),
    ]
    assert neurons(steps(*flat, last=last)) == whole
    shifted: list[Step] = [("ReduceMax", "x", {"axes": [-1]}), ("Sub", ["x", "t0"], {}), ("Exp", ["t1"], {})]
    assert neurons(steps(*shifted, ("ReduceSum", ["t2", "last"], {}), ("Div", ["t2", "t3"], {}), last=last)) == whole
    assert neurons(steps(*shifted[:2], ("Softmax", ["t1"], {}))) == whole
    assert neurons(steps(("Exp", "x", {}), ("ReduceSum", ["t0", "last"], {}), ("Log", ["t1"], {}), last=last)) == {"softplus": 6}
    # A sum over other entries, or of other exponentials, is no softmax.
    assert "product" in neurons(
        steps(("Exp", "x", {}), ("ReduceSum", ["t0", "first"], {"keepdims": 1}), ("Div", ["x", "t1"], {}), first=ints(0))
    )
    nodes: list[Step] = [("Exp", "x", {}), ("ReduceSum", ["t0", "last"], {}), ("Add", ["t1", "one"], {}), ("Div", ["t0", "t2"], {})]
    assert "product" in neurons(steps(*nodes, last=last, one=scalar(1.0)))


def test_functions_of_the_same_entries_are_taken_once() -> None:
    gathers: list[Step] = [("Gather", ["x", "i"], {"axis": 1}), ("Gather", ["x", "j"], {"axis": 1})]
    squares: list[Step] = [("Pow", ["t0", "two"], {}), ("Pow", ["t1", "two"], {}), ("Mul", ["t2", "t3"], {})]
    indices = {"i": ints(0, 1, 1, 2), "j": ints(1, 2, 0, 0), "two": scalar(2.0)}
    assert neurons(steps(*gathers, *squares, shape=(1, 4), **indices)) == {"square": 4, "product": 4}
    # A part alone is cheaper than the whole.
    assert neurons(steps(gathers[0], squares[0], shape=(1, 9), **indices)) == {"square": 4}
    twice: list[Step] = [("Sigmoid", "x", {}), ("Sigmoid", "x", {}), ("Add", ["t0", "t1"], {}), ("Tanh", ["t2"], {})]
    assert neurons(steps(*twice)) == {"sigmoid": 8, "tanh": 8}
    again: list[Step] = [("Sigmoid", "x", {}), ("Tanh", ["t0"], {}), ("Sigmoid", "x", {})]
    assert neurons(steps(*again, shape=(4,))) == {"sigmoid": 4}


def test_squares_whose_constants_would_cancel_stay_products() -> None:
    """(p x + 1) (x - 2) for small p: the square would be that of x + 1 / 2 p."""
    nodes: list[Step] = [("Mul", ["x", "p"], {}), ("Add", ["t0", "one"], {}), ("Sub", ["x", "two"], {}), ("Mul", ["t1", "t2"], {})]
    constants = {"one": scalar(1.0), "two": scalar(2.0)}
    for p in (1e-13, 1e-20, -1e-30):
        model = steps(*nodes, p=scalar(p), **constants)
        assert neurons(model) == {"product": 8}
        graph = lower(model)
        low, high = enclose(graph, torch.zeros(1, graph.nx, dtype=torch.float64))
        assert bool((low <= -2).all())
        assert bool((high >= -2).all())
        assert bool((high - low < 1e-12).all())
    assert neurons(steps(*nodes, p=scalar(0.01), **constants)) == {"square": 8}


NUDGE = flint.arb(float(np.float32(1 / 3))) - flint.arb(1) / 3


@pytest.mark.parametrize(
    ("nodes", "expected", "real"),
    [
        (
            [("Div", ["x", "c"], {}), ("Erf", ["t0"], {}), ("Add", ["t1", "one"], {}), ("Mul", ["x", "t2"], {})],
            "gelu_rounded",
            lambda x: x * (1 + (x / 3).erf()),
        ),
        ([("Div", ["x", "c"], {}), ("Sigmoid", ["t0"], {}), ("Mul", ["t1", "x"], {})], "silu", lambda x: x / (1 + (-x / 3).exp())),
        ([("Sigmoid", "x", {}), ("Div", ["t0", "c"], {}), ("Mul", ["t1", "x"], {})], "silu", lambda x: x / (1 + (-x).exp()) / 3),
        (
            [("Div", ["x", "c"], {}), ("Add", ["t0", "one"], {}), ("Clip", ["t1", "zero", "two"], {}), ("Mul", ["x", "t2"], {})],
            "hard_swish",
            lambda x: x * min(max(x / 3 + 1, flint.arb(0)), flint.arb(2)),
        ),
        (
            [("Abs", "x", {}), ("Div", ["t0", "c"], {}), ("Add", ["t1", "one"], {}), ("Div", ["x", "t2"], {})],
            "softsign",
            lambda x: x / (1 + abs(x) / 3),
        ),
        ([("Exp", "x", {}), ("Div", ["t0", "c"], {}), ("Reciprocal", ["t1"], {})], "exp", lambda x: 3 * (-x).exp()),
        ([("Div", ["x", "c"], {}), ("Mul", ["t0", "x"], {})], "square", lambda x: x * x / 3),
        ([("Div", ["x", "c"], {}), ("Mul", ["t0", "t0"], {}), ("Mul", ["t0", "t1"], {})], "cube", lambda x: x**3 / 27),
        ([("Div", ["x", "c"], {}), ("Add", ["t0", "one"], {}), ("Mul", ["t1", "x"], {})], "product", lambda x: x * (x / 3 + 1)),
        (
            [("Exp", "x", {}), ("Div", ["t0", "c"], {}), ("Add", ["t1", "t"], {}), ("Reciprocal", ["t2"], {})],
            "reciprocal",
            lambda x: 3 / (x.exp() + 1 + 3 * NUDGE),
        ),
    ],
)
def test_patterns_with_computed_constants_enclose_the_reals(
    nodes: list[Step], expected: str, real: Callable[[flint.arb], flint.arb]
) -> None:
    constants = {"zero": 0.0, "one": 1.0, "two": 2.0, "c": 3.0, "t": float(np.float32(1 / 3))}
    model = steps(*nodes, shape=(1, 40), **{k: scalar(v) for k, v in constants.items()})
    assert expected in neurons(model)
    graph = lower(model)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 40)) * 2)
    low, high = (t[0].tolist() for t in enclose(graph, x))
    with flint.ctx.workprec(200):
        for a, v, b in zip(low, x[0].tolist(), high, strict=True):
            assert flint.arb(a) <= real(flint.arb(v)) <= flint.arb(b)
