"""What rounding may cost: bounds of a runtime's error against runs of ONNX Runtime, and of assertions against their evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import write_graph
from onnx import TensorProto, helper, numpy_helper

from milpverify.enclosure import enclose
from milpverify.frontends.onnx.reading import read_network
from milpverify.frontends.vnnlib.assertions import Slack, _computed, _Reader, satisfied
from milpverify.frontends.vnnlib.query import Query
from milpverify.functions.catalogue import catalogue
from milpverify.queries import rounding
from milpverify.queries.rounding import RoundingTuning, errors


def weights(rng: np.random.Generator, **shapes: Sequence[int]) -> list[TensorProto]:
    return [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()]


def dense(rng: np.random.Generator, path: Path, between: Sequence[str]) -> Path:
    """Dense layers with functions between them."""
    nodes, tensors, value = [], [], "x"
    for k, name in enumerate(between):
        tensors += weights(rng, **{f"w{k}": (6, 6 if k else 4), f"b{k}": (6,)})
        nodes += [helper.make_node("Gemm", [value, f"w{k}", f"b{k}"], [f"z{k}"], transB=1), helper.make_node(name, [f"z{k}"], [f"h{k}"])]
        value = f"h{k}"
    tensors += weights(rng, w=(3, 6), b=(3,))
    return write_graph(path, [*nodes, helper.make_node("Gemm", [value, "w", "b"], ["y"], transB=1)], 4, 3, tensors)


def cancelling(rng: np.random.Generator, path: Path) -> Path:
    """((x + 1000) - 1000) twice: whose error is far above that of its value."""
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"]),
        helper.make_node("Sub", ["a", "c"], ["b"]),
        helper.make_node("Mul", ["b", "d"], ["y"]),
    ]
    constants = [("c", np.full((1, 3), 1000.0)), ("d", np.full((1, 3), 2.0))]
    return write_graph(path, nodes, 3, 3, [numpy_helper.from_array(v.astype(np.float32), n) for n, v in constants])


def normalised(rng: np.random.Generator, path: Path) -> Path:
    """A normalisation with constants whose shifts cancel."""
    nodes = [helper.make_node("Reshape", ["x", "s"], ["i"]), helper.make_node("BatchNormalization", ["i", "f", "t", "m", "v"], ["n"])]
    nodes.append(helper.make_node("Reshape", ["n", "r"], ["y"]))
    mean, factor = rng.normal(size=3) + 500, rng.normal(size=3)
    constants = [("f", factor), ("t", factor * mean + 0.25), ("m", mean), ("v", np.ones(3))]
    shapes = [numpy_helper.from_array(np.array(shape, dtype=np.int64), name) for name, shape in (("s", (1, 3, 1)), ("r", (1, 3)))]
    return write_graph(path, nodes, 3, 3, [*shapes, *(numpy_helper.from_array(v.astype(np.float32), n) for n, v in constants)])


def quotient(rng: np.random.Generator, path: Path) -> Path:
    """x^2 / (2 + x), and its product with x."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["q"]),
        helper.make_node("Add", ["x", "c"], ["d"]),
        helper.make_node("Div", ["q", "d"], ["e"]),
    ]
    nodes.append(helper.make_node("Mul", ["e", "x"], ["y"]))
    return write_graph(path, nodes, 3, 3, [numpy_helper.from_array(np.full((1, 3), 2.0, dtype=np.float32), "c")])


NETWORKS = {
    "relu": lambda rng, path: dense(rng, path, ["Relu"] * 3),
    "deep": lambda rng, path: dense(rng, path, ["Relu", "Tanh"] * 4),
    "curves": lambda rng, path: dense(rng, path, ["Sigmoid", "Tanh", "LeakyRelu"]),
    "cancelling": cancelling,
    "normalised": normalised,
    "quotient": quotient,
}


@pytest.mark.parametrize("width", [1.0, 0.0625])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_run_errs_by_more(tmp_path: Path, name: str, width: float) -> None:
    """And the bound is not far from what runs do: where it is a thousand times as much, nobody is helped."""
    rng = np.random.default_rng(1)
    graph, source = read_network(NETWORKS[name](rng, tmp_path / "net.onnx"))
    lower, upper = (side * width for side in (-np.ones(graph.nx), np.ones(graph.nx)))
    known = errors(graph, source, lower, upper)
    assert known is not None
    largest, error = map(np.array, known)
    points = rng.uniform(lower, upper, (400, graph.nx)).astype(np.float32).astype(np.float64)
    runtime = source.runtime()
    runs = np.array([runtime.run(x) for x in points])
    low, high = (side.numpy() for side in enclose(graph, torch.from_numpy(points)))
    worst = np.maximum(runs - high, low - runs).max(axis=0)
    assert (worst <= error).all()
    assert (abs(runs) <= largest).all()
    assert worst.max() > error.max() / 1000 or width < 1 or name == "deep"
    forward = errors(graph, source, lower, upper, RoundingTuning(most=0))
    assert forward is not None and (np.array(forward[1]) >= error).all() and forward[0] == known[0]


def test_functions_that_are_known_are_of_the_catalogue() -> None:
    made_of_lines, curves = (*rounding._EXACT, *rounding._LINES), rounding._CURVES
    assert len({*made_of_lines, *curves}) == len(made_of_lines) + len(curves)
    assert all(not catalogue()[name].domain for name in made_of_lines) and all(catalogue()[name].domain for name in curves)


def test_what_is_not_known(tmp_path: Path) -> None:
    """Operators that are computed in other steps than the graph's, and constants that the runtime rounds."""
    rng = np.random.default_rng(0)
    graph, source = read_network(write_graph(tmp_path / "net.onnx", [helper.make_node("Softmax", ["x"], ["y"])], 3, 3))
    assert errors(graph, source, -np.ones(3), np.ones(3)) is None
    path = write_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Mul", ["c", "c"], ["d"]), helper.make_node("Mul", ["x", "d"], ["y"])], 3, 3, weights(rng, c=(1, 3)),
    )  # fmt: skip
    graph, source = read_network(path)
    assert errors(graph, source, -np.ones(3), np.ones(3)) is None


def test_assertions_err_by_no_more() -> None:
    """Random linear terms of float32 numbers, evaluated as they are written, against rationals."""
    rng = np.random.default_rng(2)

    def term(depth: int) -> str:
        if depth == 0:
            return rng.choice(["X[0]", "X[1]", "X[2]", f"{rng.normal():.6f}"])
        kind = rng.integers(4)
        if kind == 3:
            return f"(* {rng.normal():.6f} {term(depth - 1)})"
        return f"({'+-'[kind % 2]} {term(depth - 1)} {term(depth - 1)})"

    head = "(vnnlib-version <2.0>)(declare-network f (declare-input X float32 [3]) (declare-output Y float32 [1]))"
    ratio = 0.0
    for _ in range(60):
        written = term(4)
        if "X" not in written:
            continue
        query = Query(f"{head}(assert (<= {written} X[0]))", "q")
        value = _Reader(query, None)._term(query.assertions[0].lhs, "float32")
        bound = Slack([1.0] * 4, [0.0] * 4).of(value, "float32")
        assert bound is not None
        for x in rng.uniform(-1, 1, (20, 3)).astype(np.float32):
            exact = sum((c * Fraction(float(x[v])) for v, c in value.term.coefficients.items()), start=value.term.constant)
            found = Fraction(float(_computed(query, query.assertions[0].lhs, np.append(x, 0.0).astype(float), np.float32)))
            assert abs(found - exact) <= bound
            ratio = max(ratio, float(abs(found - exact) / bound) if bound else 0.0)
    assert ratio > 0.05


def test_evaluation_is_that_of_the_type() -> None:
    """0.1 + 0.2 is 0.3 in float32, and is not in float64."""
    for dtype, holds in (("float32", True), ("float64", False)):
        head = f"(vnnlib-version <2.0>)(declare-network f (declare-input X {dtype} [2]) (declare-output Y {dtype} [1]))"
        query = Query(head + "(assert (== (+ X[0] X[1]) 0.3))", "q")
        x = np.array([0.1, 0.2], dtype=dtype).astype(np.float64)
        assert satisfied(query, x, np.zeros(1)) is holds
