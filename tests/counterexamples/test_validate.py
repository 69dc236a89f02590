from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from milpverify.counterexamples.validate import Validity, format_counterexample, representable, validate
from milpverify.enclosure import enclose, exact_outputs
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node, TensorSpec, evaluate
from milpverify.operators import Concat, Conv, Elementwise, Input, Linear, Operator, Permute, ReduceSum, Reshape, Scale, Select, Sum
from milpverify.result import Counterexample
from milpverify.spec import Box, Disjunct, Problem, Rows

RELU = Elementwise(catalogue()["relu"].bind())


def build(nx: int, *steps: tuple[Operator, tuple[int, ...], tuple[int, ...]], dtype: str = "float32") -> Graph:
    nodes = [Node(0, Input(), (), (nx,))]
    nodes += [Node(i + 1, op, inputs, shape) for i, (op, inputs, shape) in enumerate(steps)]
    return Graph(tuple(nodes), len(nodes) - 1, (TensorSpec("x", (nx,), dtype),))


def tensor(values: object) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def dense(*layers: tuple[object, object]) -> Graph:
    """Linear layers with ReLU between them."""
    steps: list[tuple[Operator, tuple[int, ...], tuple[int, ...]]] = []
    for w, b in layers:
        weight, bias = tensor(w), tensor(b)
        if steps:
            steps.append((RELU, (len(steps),), steps[-1][2]))
        steps.append((Linear(weight, bias), (len(steps),), (len(bias),)))
    return build(layers[0][0].shape[1] if isinstance(layers[0][0], np.ndarray) else len(layers[0][0][0]), *steps)  # type: ignore[index]


def convolutional(rng: np.random.Generator, scale: float) -> Graph:
    """Every kind of affine operator between an input of 18 and an output of 4."""

    def normal(*shape: int) -> Tensor:
        return tensor(rng.normal(0, scale, shape).astype(np.float32))

    leaky = Elementwise(catalogue()["leaky_relu"].bind(alpha=0.1))
    return build(
        18,
        (Reshape((18,), (1, 2, 3, 3)), (0,), (1, 2, 3, 3)),
        (Conv(normal(3, 2, 2, 2), (2, 1), ((1, 0), (0, 1)), (1, 1), 1, (1, 2, 3, 3), normal(3, 1, 1)), (1,), (1, 3, 2, 3)),
        (leaky, (2,), (1, 3, 2, 3)),
        (Permute((0, 2, 3, 1)), (3,), (1, 2, 3, 3)),
        (Scale(normal(3), normal(3, 3)), (4,), (1, 2, 3, 3)),
        (Sum((1, -1, -1)), (4, 5, 1), (1, 2, 3, 3)),
        (RELU, (6,), (1, 2, 3, 3)),
        (ReduceSum((2,), (1, 2, 3, 3)), (7,), (1, 2, 1, 3)),
        (Concat(2, (1, 3)), (8, 7), (1, 2, 4, 3)),
        (Select(torch.tensor([0, 5, -1, 23, 5, 7]), (1, 2, 4, 3), normal(6)), (9,), (6,)),
        (Linear(normal(4, 6), normal(4)), (10,), (4,)),
    )


def convolutional_in_fractions(graph: Graph, x: list[float]) -> list[Fraction]:
    """The same network, written out once more in loops."""

    def f(t: Tensor) -> np.ndarray:
        return np.vectorize(Fraction, otypes=[object])(t.numpy())

    conv, scale, select, linear = (graph.nodes[i].op for i in (2, 5, 10, 11))
    assert isinstance(conv, Conv)
    assert isinstance(scale, Scale)
    assert isinstance(select, Select)
    assert isinstance(linear, Linear)
    assert scale.weight is not None
    image = np.array([Fraction(v) for v in x], dtype=object).reshape(2, 3, 3)
    padded = np.full((2, 4, 4), Fraction(0), dtype=object)
    padded[:, 1:4, 0:3] = image
    w, out = f(conv.weight), np.empty((3, 2, 3), dtype=object)
    for o, i, j in itertools.product(range(3), range(2), range(3)):
        out[o, i, j] = (w[o] * padded[:, 2 * i : 2 * i + 2, j : j + 2]).sum() + f(conv.bias)[o, 0, 0]  # type: ignore[arg-type]
    leaky = np.vectorize(lambda v: v if v > 0 else Fraction(0.1) * v, otypes=[object])(out)
    permuted = leaky.transpose(1, 2, 0)
    total = permuted - (permuted * f(scale.weight) + f(scale.bias)) - image  # type: ignore[arg-type]
    positive = np.vectorize(lambda v: max(v, Fraction(0)), otypes=[object])(total)
    joined = np.concatenate([positive.sum(axis=1, keepdims=True), positive], axis=1).reshape(-1)
    chosen = np.array([Fraction(0) if k < 0 else joined[k] for k in select.index.tolist()], dtype=object) + f(select.bias)  # type: ignore[arg-type]
    return list(f(linear.weight) @ chosen + f(linear.bias))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-6, 0.3, 1e5])
def test_exact_outputs_are_exact_and_enclosures_contain_them(scale: float) -> None:
    rng = np.random.default_rng(0)
    graph = convolutional(rng, scale)
    for _ in range(8):
        x = rng.normal(0, 1, 18) * rng.choice([1.0, 1e-9, 1e6], 18)
        exact = exact_outputs(graph, x)
        assert exact == convolutional_in_fractions(graph, x.tolist())
        lower, upper = enclose(graph, torch.from_numpy(x)[None])
        size = max(1e-300, float(evaluate(graph, torch.from_numpy(x)[None]).abs().max()))
        for low, value, high in zip(lower[0].tolist(), exact, upper[0].tolist(), strict=True):
            assert Fraction(low) <= value <= Fraction(high)
            assert high - low < 1e-9 * max(size, scale)


def test_enclosures_survive_cancellation() -> None:
    # 1e9 and more cancel through three layers: plain float64 is far off, the enclosure is not.
    rng = np.random.default_rng(1)
    layers = [(rng.normal(size=(20, 20)), rng.normal(size=20) * 1e9) for _ in range(3)]
    graph = dense(*layers, (rng.normal(size=(1, 20)) * 1e-6, np.zeros(1)))
    misses = 0
    for x in rng.normal(size=(40, 20)):
        (exact,) = exact_outputs(graph, x) or []
        (low, high), plain = (
            (t[0].item() for t in enclose(graph, torch.from_numpy(x)[None])),
            evaluate(graph, torch.from_numpy(x)[None]).item(),
        )
        assert Fraction(low) <= exact <= Fraction(high)
        misses += Fraction(plain) != exact
    assert misses > 20


def test_overflow_encloses_everything() -> None:
    graph = dense((np.array([[1e200, -1e200]]), np.zeros(1)), (np.array([[1e200]]), np.zeros(1)))
    lower, upper = enclose(graph, tensor([[1.0, 0.0]]))
    assert (lower.item(), upper.item()) == (-math.inf, math.inf) or (lower.item() <= 1.7e308 and upper.item() == math.inf)
    assert exact_outputs(graph, np.array([1.0, 0.0])) == [Fraction(1e200) * Fraction(1e200)]


def test_expensive_exact_evaluation_is_declined() -> None:
    graph = dense((np.ones((200, 50)), np.zeros(200)), (np.ones((1, 200)), np.zeros(1)))
    assert exact_outputs(graph, np.ones(50)) == [Fraction(10_000)]
    assert exact_outputs(graph, np.ones(50), limit=10_000) is None


@dataclass
class Fixed:
    """A runtime that answers a fixed y, and remembers what it was asked."""

    y: list[float]
    asked: np.ndarray | None = None

    def run(self, x: np.ndarray) -> np.ndarray:
        self.asked = x
        return np.array(self.y)


def problem(
    graph: Graph, unsafe: Rows, lower: list[float], upper: list[float], domain: Rows | None = None, runtime: object = None
) -> Problem:
    nx, ny = graph.nx, graph.ny
    return Problem(graph, (Disjunct(Box(lower, upper), unsafe, domain or Rows.none(nx, ny)),), runtime)


IDENTITY = dense((np.eye(2), np.zeros(2)))


@pytest.mark.parametrize("strict", [False, True])
def test_exact_ties_are_decided_by_strictness(strict: bool) -> None:
    # y0 = 3 (x0 + x1), y1 = 3 x0 + 3 x1, equal in the reals, which no float enclosure can tell.
    graph = dense(
        (np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), np.ones(3)), (np.array([[3.0, 0, 0], [0, 3.0, 3.0]]), np.array([0.0, -3.0]))
    )
    p = problem(graph, Rows.on_outputs([[1, -1]], [0.0], 2, strict), [0, 0], [1, 1])
    judgement = validate(p, p.disjuncts[0], np.array([0.25, 0.5]))
    assert judgement.margin_runtime == 0.0
    assert judgement.margin_real == (0.0, 0.0)
    assert judgement.status is (Validity.NOT_A_COUNTEREXAMPLE if strict else Validity.HOLDS)
    assert (judgement.counterexample is None) == strict


@pytest.mark.parametrize("shift", [-(2.0**-23), 2.0**-23])
def test_margins_of_one_in_ten_millions_are_told_apart(shift: float) -> None:
    graph = dense((np.array([[1.0], [-1.0]]), np.zeros(2)), (np.array([[1.0, 1.0]]), np.array([shift])))  # |x| + shift
    p = problem(graph, Rows.on_outputs([[1]], [0.0], 1), [-1], [1])
    judgement = validate(p, p.disjuncts[0], np.zeros(1))
    assert judgement.status is (Validity.HOLDS if shift < 0 else Validity.NOT_A_COUNTEREXAMPLE)
    if judgement.counterexample is not None:
        assert judgement.counterexample.margin_runtime == shift
        assert shift <= judgement.counterexample.margin_real <= 0.99 * shift


def test_a_bias_that_cancels_only_in_the_reals_is_float_semantics() -> None:
    # x + 1e9 - 1e9 is 0 in float32 and x in the reals.
    graph = dense((np.array([[1.0]]), np.array([1e9])), (np.array([[1.0]]), np.array([-1e9])))
    p = problem(graph, Rows.on_outputs([[1]], [0.25], 1), [0], [1])
    judgement = validate(p, p.disjuncts[0], np.ones(1))
    assert judgement.status is Validity.FLOAT_SEMANTICS
    assert judgement.margin_runtime == -0.25
    assert 0.74 < judgement.margin_real[0] <= 0.75 <= judgement.margin_real[1] < 0.76
    assert judgement.counterexample is None
    assert "-0.25" in str(judgement)
    opposite = problem(graph, Rows.on_outputs([[-1]], [-0.25], 1), [0], [1])
    assert validate(opposite, opposite.disjuncts[0], np.ones(1)).status is Validity.FLOAT_SEMANTICS


def test_the_runtime_has_its_say() -> None:
    unsafe = Rows.on_outputs([[1, 0]], [0.5], 2)
    for y, status in (([0.5, 0], Validity.HOLDS), ([0.5000001, 0], Validity.FLOAT_SEMANTICS), ([math.nan, 0], Validity.FLOAT_SEMANTICS)):
        p = problem(IDENTITY, unsafe, [0, 0], [1, 1], runtime=Fixed(y))
        judgement = validate(p, p.disjuncts[0], np.array([0.5, 0.5]))
        assert judgement.status is status
    p = problem(IDENTITY, unsafe, [0, 0], [1, 1], runtime=Fixed([-math.inf, 0]))
    assert validate(p, p.disjuncts[0], np.array([0.75, 0])).status is Validity.NOT_A_COUNTEREXAMPLE


def test_every_row_of_the_conjunct_counts() -> None:
    unsafe = Rows.on_outputs([[1, 0], [0, 1]], [0.5, 0.5], 2)
    p = problem(IDENTITY, unsafe, [0, 0], [1, 1])
    assert validate(p, p.disjuncts[0], np.array([0.5, 0.5])).status is Validity.HOLDS
    assert validate(p, p.disjuncts[0], np.array([0.5, 0.75])).status is Validity.NOT_A_COUNTEREXAMPLE


def test_rows_may_mix_inputs_and_outputs() -> None:
    mixed = Rows(np.array([[-2.0, 0.0]]), np.array([[1.0, 1.0]]), np.array([0.0]), np.array([False]))  # y0 + y1 <= 2 x0
    p = problem(IDENTITY, mixed, [0, 0], [1, 1])
    assert validate(p, p.disjuncts[0], np.array([0.5, 0.5])).margin_real == (0.0, 0.0)
    assert validate(p, p.disjuncts[0], np.array([0.25, 0.5])).status is Validity.NOT_A_COUNTEREXAMPLE


def test_a_disjunct_without_rows_is_violated_by_its_box() -> None:
    p = problem(IDENTITY, Rows.none(2, 2), [0, 0], [1, 1])
    judgement = validate(p, p.disjuncts[0], np.array([3.0, 0.5]))
    assert judgement.status is Validity.HOLDS
    assert judgement.x.tolist() == [1.0, 0.5]
    assert judgement.margin_runtime == -math.inf


def test_constraints_between_inputs_hold_exactly() -> None:
    def judged(x: list[float], strict: bool, row: list[float]) -> Validity:
        domain = Rows(np.array([row]), np.zeros((1, 2)), np.array([0.0]), np.array([strict]))
        p = problem(IDENTITY, Rows.none(2, 2), [0, 0], [1, 1], domain)
        return validate(p, p.disjuncts[0], np.array(x)).status

    assert judged([0.5, 0.5], False, [1, -1]) is Validity.HOLDS
    assert judged([0.5, 0.5], True, [1, -1]) is Validity.NOT_A_COUNTEREXAMPLE
    assert judged([0.5, 0.5 - 2.0**-20], False, [1, -1]) is Validity.NOT_A_COUNTEREXAMPLE
    # float64 evaluation of 0.1 x0 - 0.3 x1 at (0.75, 0.25) gives exactly 0; in the reals 0.1 - 0.3 / 3 of floats is positive.
    exact = Fraction(0.1) * Fraction(0.75) - Fraction(0.3) * Fraction(0.25)
    assert exact > 0
    assert judged([0.75, 0.25], False, [0.1, -0.3]) is Validity.NOT_A_COUNTEREXAMPLE
    # x1 = 2 x0 + 2^-40 has no solution near 0.1 in float32, but one in float64: that is judged then.
    equation = Rows(np.array([[2, -1], [-2, 1]]), np.zeros((2, 2)), np.array([-(2.0**-40), 2.0**-40]), np.array([False, False]))
    p = problem(IDENTITY, Rows.none(2, 2), [0, 0], [1, 1], equation)
    x = np.array([0.1, 0.2 + 2.0**-40])
    judgement = validate(p, p.disjuncts[0], x)
    assert judgement.status is Validity.HOLDS
    assert np.array_equal(judgement.x, x)
    assert not np.array_equal(representable(IDENTITY, p.disjuncts[0].box, x), x)


def test_representable_points() -> None:
    rng = np.random.default_rng(0)
    graph = dense((np.eye(6), np.zeros(6)))
    for _ in range(200):
        centre = rng.normal(0, 1, 6) * rng.choice([1.0, 1e-40, 1e6, 1e-3], 6)
        width = np.abs(centre) * rng.choice([0.0, 1e-9, 3e-8, 1e-7, 1e-3], 6)
        box = Box(centre, centre + width)
        x = rng.uniform(-2, 2, 6) * np.abs(centre)
        moved = representable(graph, box, x)
        assert np.all((box.lower <= moved) & (moved <= box.upper))
        assert np.array_equal(representable(graph, box, moved), moved)
        single = moved.astype(np.float32).astype(np.float64) == moved
        for i in np.flatnonzero(~single):  # then the bounds contain no float32
            above = np.float64(np.float32(box.lower[i]))
            above = above if above >= box.lower[i] else np.float64(np.nextafter(np.float32(box.lower[i]), np.float32(np.inf)))
            assert above > box.upper[i]
    wide = build(6, (Scale(), (0,), (6,)), dtype="float64")
    assert representable(wide, Box(np.zeros(6), np.ones(6)), np.full(6, 0.1)).tolist() == [0.1] * 6
    batch = representable(graph, Box(np.zeros(6), np.ones(6)), np.full((3, 6), 0.1))
    assert batch.shape == (3, 6)


def test_a_box_without_float32_numbers_is_judged_at_its_float64_points() -> None:
    runtime = Fixed([0.1, 0.1])
    p = problem(IDENTITY, Rows.on_outputs([[1, 0]], [0.2], 2), [0.1, 0.1], [0.1, 0.1], runtime=runtime)
    judgement = validate(p, p.disjuncts[0], np.array([0.5, 0.5]))
    assert judgement.status is Validity.HOLDS
    assert judgement.x.tolist() == [0.1, 0.1]
    assert runtime.asked is not None
    assert runtime.asked.tolist() == [0.1, 0.1]


def test_jumps_take_their_own_value() -> None:
    sign = Elementwise(catalogue()["sign"].bind())
    graph = build(1, (sign, (0,), (1,)))
    for row, rhs, status in (
        ([1.0], 0.0, Validity.HOLDS),
        ([1.0], -0.5, Validity.NOT_A_COUNTEREXAMPLE),
        ([-1.0], -0.5, Validity.NOT_A_COUNTEREXAMPLE),
    ):
        p = problem(graph, Rows.on_outputs([row], [rhs], 1), [-1], [1])
        assert validate(p, p.disjuncts[0], np.zeros(1)).status is status


def test_printed_counterexamples_read_back() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=5) * 10.0 ** rng.integers(-12, 12, 5), rng.normal(size=2)
    text = format_counterexample(Counterexample(x, y, -1.0, -1.0))
    assert text.startswith("((X_0 ")
    assert text.endswith("))")
    assert text.count("\n") == 6
    read = {name: float(value) for name, value in re.findall(r"\(([XY]_\d+) ([-+.\deE]+)\)", text)}
    assert read == {**{f"X_{i}": v for i, v in enumerate(x)}, **{f"Y_{i}": v for i, v in enumerate(y)}}
