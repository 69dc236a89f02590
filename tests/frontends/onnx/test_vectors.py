"""ONNX operators on vectors: sums of products by named axes, norms, what is divided by them, gates and attention, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx_cases import agrees, floats, ints, single

from milpverify.errors import InvalidModel, UnsupportedOperator
from milpverify.frontends.onnx.lowering import lower

RNG = np.random.default_rng(6)
NEWEST = 26


def f(*shape: int) -> np.ndarray:
    return floats(RNG, *shape)


def sums_of_products() -> Iterator[onnx.ModelProto]:
    for opset in (12, NEWEST):
        for equation, *factors in (
            ("bi,ij->bj", (2, 4), f(4, 3)),
            ("bi,ij", (2, 4), f(4, 3)),
            ("i,ij,bj->b", f(2), f(2, 3), (2, 3)),
            ("...ij,jk->...ik", (2, 2, 3), f(3, 2)),
            ("bhqd,bhkd->bhqk", (1, 2, 3, 4), (1, 2, 2, 4)),
            ("ii->i", (3, 3)),
            ("ij->", (2, 3)),
            ("i , j -> ij", (3,), (2,)),
            ("Ab,bC->CA", (2, 3), f(3, 2)),
        ):
            yield single("Einsum", *factors, opset=opset, equation=equation)  # type: ignore[arg-type]


def norms() -> Iterator[onnx.ModelProto]:
    for opset in (7, 18, 22, NEWEST):
        yield from (single("LpNormalization", (2, 3, 4), opset=opset, axis=1, p=p) for p in (1, 2))
        yield single("LpNormalization", (3, 4), opset=opset)
        yield from (single("GlobalLpPool", (2, 3, 4), opset=min(opset, 18), p=p) for p in (1, 2, 3))
        yield single("LpPool", (1, 2, 5, 4), opset=opset, kernel_shape=[2, 3], p=1)
        yield single("LpPool", (1, 2, 5), opset=opset, kernel_shape=[2], pads=[1, 0], strides=[2])
        yield single("LRN", (2, 5, 3, 1), opset=max(9, opset), size=3)
        yield single("LRN", (1, 4, 2, 2), opset=max(9, opset), size=5, alpha=0.5, beta=0.6, bias=1.3)
    yield single("LpPool", (1, 2, 5), opset=18, kernel_shape=[2], strides=[2], ceil_mode=1, dilations=[2])
    for opset in (9, 13):
        yield single("MeanVarianceNormalization", (2, 3, 2, 2), opset=opset)
        yield single("MeanVarianceNormalization", (2, 3, 4), opset=opset, axes=[-1])


def gates() -> Iterator[onnx.ModelProto]:
    yield single("Swish", (2, 4), opset=24)
    yield single("Swish", (2, 4), opset=24, alpha=-0.7)
    for opset in (9, NEWEST):
        yield from (single(op, (2, 4), opset=opset) for op in ("Sinh", "Cosh"))
        yield single("Mean", (2, 3), f(3), (2, 1), opset=opset)


def rotations() -> Iterator[onnx.ModelProto]:
    positions = np.array([[0, 3, 1]])
    for interleaved in (0, 1):
        given = {"opset": 23, "interleaved": interleaved}
        yield single("RotaryEmbedding", (1, 2, 3, 4), f(5, 2), f(5, 2), positions, **given)
        yield single("RotaryEmbedding", (2, 2, 3, 4), f(2, 3, 2), f(2, 3, 2), **given)
        yield single("RotaryEmbedding", (1, 3, 8), f(5, 2), f(5, 2), positions, num_heads=2, **given)
        yield single("RotaryEmbedding", (1, 2, 3, 6), f(5, 2), f(5, 2), positions, rotary_embedding_dim=4, **given)


def attentions() -> Iterator[onnx.ModelProto]:
    x, triangle = (1, 2, 3, 2), np.tril(np.ones((3, 3), dtype=bool))
    for opset in (23, 24, 25):
        yield single("Attention", x, x, x, opset=opset)
        yield single("Attention", x, x, (1, 2, 3, 4), opset=opset, scale=0.3, softcap=2.0)
        yield single("Attention", (1, 4, 3, 2), x, x, opset=opset)
        yield single("Attention", (1, 3, 4), (1, 3, 2), (1, 3, 2), opset=opset, q_num_heads=2, kv_num_heads=1)
        yield single("Attention", x, f(1, 2, 5, 2), f(1, 2, 5, 2), (3, 5), opset=opset)
        yield single("Attention", x, x, x, f(3, 3), opset=opset)
        yield single("Attention", x, x, x, opset=opset, is_causal=1)
        yield single("Attention", x, x, x, triangle, opset=opset)
        yield single("Attention", x, x, x, None, f(1, 2, 2, 2), f(1, 2, 2, 2), opset=opset, is_causal=1, outputs=3)
    yield single("Attention", x, x, x, None, None, None, ints(2), opset=24)


FAMILIES = {g.__name__: list(g()) for g in (sums_of_products, norms, gates, rotations, attentions)}


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_agree_with_onnx_runtime(family: str) -> None:
    for model in FAMILIES[family]:
        agrees(model, points=2)


def test_variants_without_a_rule_are_named() -> None:
    for model, word in (
        (single("Einsum", (2, 3), equation="ij->ijk"), "no factor has"),
        (single("LRN", (1, 3, 2), size=0), "window of 0"),
        (single("RotaryEmbedding", (1, 3, 7), f(5, 2), f(5, 2), np.array([[0, 1, 2]]), num_heads=2, opset=23), "heads"),
    ):
        with pytest.raises(InvalidModel, match=word):
            lower(model)
    for model, word in (
        (single("Attention", (1, 1, 2, 2), (1, 1, 2, 2), (1, 1, 2, 2), opset=23, outputs=4), "out3"),
        (single("RotaryEmbedding", (1, 2, 3, 4), (5, 2), f(5, 2), np.array([[0, 1, 2]]), opset=23), "depends on the network's input"),
    ):
        with pytest.raises(UnsupportedOperator, match=word):
            lower(model)
