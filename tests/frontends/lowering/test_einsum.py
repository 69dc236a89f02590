"""Sums of products by named axes, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.einsum import einsum
from milpverify.graph import Graph, TensorSpec, evaluate
from milpverify.operators import Affine, Elementwise, Product


def graph(equation: str, shapes: list[tuple[int, ...]], constant: list[bool], rng: np.random.Generator) -> tuple[Graph, list[np.ndarray]]:
    """The lowered equation over inputs one after the other, and the constants (those of the inputs are None)."""
    values = [rng.normal(size=s) if fixed else None for s, fixed in zip(shapes, constant, strict=True)]
    sizes = [0 if fixed else int(np.prod(s)) for s, fixed in zip(shapes, constant, strict=True)]
    g, offset, factors = Builder(sum(sizes)), 0, []
    for shape, value, size in zip(shapes, values, sizes, strict=True):
        places = offset + np.arange(size).reshape(shape) if value is None else None
        factors.append(value if places is None else g.select(g.nodes[0], places))
        offset += size
    y = einsum(g, equation, factors)
    return g.graph([y], (TensorSpec("x", (sum(sizes),)),), (TensorSpec("y", y.shape),)), values  # type: ignore[return-value]


def agrees(equation: str, shapes: list[tuple[int, ...]], constant: list[bool], seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    lowered, values = graph(equation, shapes, constant, rng)
    x = rng.normal(size=lowered.nx)
    whole, offset = [], 0
    for shape, value in zip(shapes, values, strict=True):
        size = int(np.prod(shape))
        whole.append(x[offset : offset + size].reshape(shape) if value is None else value)
        offset += 0 if value is not None else size
    expected = np.einsum(equation, *whole)
    assert lowered.outputs[0].shape == expected.shape, equation
    np.testing.assert_allclose(evaluate(lowered, torch.from_numpy(x[None])).numpy()[0], expected.reshape(-1), rtol=1e-12, atol=1e-12)
    return lowered


def test_random_equations() -> None:
    """Up to three factors with repeated, summed, shared, broadcast and ellipsis axes."""
    rng = np.random.default_rng(1)
    for seed in range(150):
        letters, lengths = list("abcdE"), {c: int(rng.integers(1, 4)) for c in "abcdE"}
        dots = bool(rng.random() < 0.3)
        lead = [int(n) for n in rng.integers(1, 3, int(rng.integers(0, 3)))] if dots else []
        terms, shapes, constant = [], [], []
        for _ in range(int(rng.integers(1, 4))):
            own = [str(c) for c in rng.choice(letters, int(rng.integers(0, 4)))]
            cut = int(rng.integers(0, len(own) + 1))
            terms.append("".join([*own[:cut], "..." if dots else "", *own[cut:]]))
            shapes.append((*(lengths[c] for c in own[:cut]), *lead, *(lengths[c] for c in own[cut:])))
            constant.append(bool(rng.random() < 0.4))
        constant[int(rng.integers(len(constant)))] = False
        known = sorted({c for t in terms for c in t if c != "."})
        kept = [c for c in known if rng.random() < 0.5]
        rng.shuffle(kept)
        arrow = "->" + ("..." if dots else "") + "".join(kept) if rng.random() < 0.8 else ""
        agrees(",".join(terms) + arrow, shapes, constant, seed)


def test_what_is_linear_stays_linear() -> None:
    lowered = agrees("bi,ij,jk->bk", [(2, 3), (3, 4), (4, 2)], [False, True, True])
    assert all(isinstance(node.op, Affine) for node in lowered.nodes[1:])
    lowered = agrees("ij,bj->bi", [(3, 4), (2, 4)], [True, False])
    assert all(isinstance(node.op, Affine) for node in lowered.nodes[1:])


def test_the_product_of_a_tensor_with_itself_is_its_square() -> None:
    g = Builder(6)
    x = g.reshape(g.nodes[0], (2, 3))
    einsum(g, "ij,ij->i", [x, x])
    assert not any(isinstance(node.op, Product) for node in g.nodes)
    assert any(isinstance(node.op, Elementwise) and node.op.function.name == "square" for node in g.nodes)


@pytest.mark.parametrize(
    ("equation", "shapes", "word"),
    [
        ("ij->ij", [(2, 3), (2, 3)], "about 1 tensors"),
        ("ij->i", [(2, 3, 4)], "does not fit a tensor with 3 axes"),
        ("ij,jk->ik", [(2, 3), (4, 5)], "lengths"),
        ("ij->ii", [(2, 2)], "twice"),
        ("ij->k", [(2, 2)], "which no factor has"),
        ("i1->i", [(2, 2)], "no letters"),
    ],
)
def test_equations_that_make_no_sense_are_refused(equation: str, shapes: list[tuple[int, ...]], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        graph(equation, shapes, [False] * len(shapes), np.random.default_rng(0))
