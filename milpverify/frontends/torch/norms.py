"""The lowering rules of torch operations on vectors: norms, what is divided by them, distances, and sums of products by named axes."""

from __future__ import annotations

import string
from typing import Any

from milpverify.frontends.lowering import norms
from milpverify.frontends.lowering.axes import axes_named
from milpverify.frontends.lowering.constants import Constant
from milpverify.frontends.lowering.einsum import contract, einsum
from milpverify.frontends.torch.call import Call, rule
from milpverify.frontends.torch.layers import batched, pooled, unbatched
from milpverify.frontends.torch.ops import axes_of, total
from milpverify.graph import Node

# Sums of products


def factors(call: Call, values: Any) -> list[Any]:
    """Tensors as nodes and arrays, at least one a node."""
    found = [v if isinstance(v, Node) else call.array(v) for v in values]
    return found if any(isinstance(v, Node) for v in found) else [call.node(values[0]), *found[1:]]


@rule("einsum", linear_in_constants=True)
def _einsum(call: Call, equation: Any, *operands: Any) -> Node:
    if not isinstance(equation, str):
        equation, operands = _from_lists((equation, *operands))
    elif len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    return einsum(call.g, equation, factors(call, operands))


def _from_lists(parts: Any) -> tuple[str, tuple[Any, ...]]:
    """The equation that tensors and lists of axes say in turns, the result's axes last if they are told."""
    letters = string.ascii_uppercase + string.ascii_lowercase
    terms = ["".join("..." if a is Ellipsis else letters[a] for a in axes) for axes in parts[1::2]]
    if len(parts) % 2:
        terms.append("".join("..." if a is Ellipsis else letters[a] for a in parts[-1]))
        return f"{','.join(terms[:-1])}->{terms[-1]}", tuple(parts[0:-1:2])
    return ",".join(terms), tuple(parts[::2])


@rule("bilinear")
def _bilinear(call: Call, a: Any, b: Any, weight: Any, bias: Any = None) -> Node:
    """a^T W b for every matrix W of the weight (out, in of a, in of b), plus the bias."""
    y = einsum(call.g, "...i,kij,...j->...k", factors(call, (a, weight, b)))
    return y if bias is None else total(call, [y, bias], [1, 1])


@rule("outer", "ger")
def _outer(call: Call, a: Any, b: Any) -> Node:
    return einsum(call.g, "i,j->ij", factors(call, (a, b)))


@rule("tensordot")
def _tensordot(call: Call, a: Any, b: Any, dims: Any = 2, others: Any = None) -> Node:
    ranks = len(a.shape), len(b.shape)
    if others is not None:  # aten
        dims = dims, others
    first, second = (range(ranks[0] - dims, ranks[0]), range(dims)) if isinstance(dims, int) else dims
    left, right = ([f"{side}{i}" for i in range(n)] for side, n in zip("ab", ranks, strict=True))
    for i, j in zip(first, second, strict=True):
        right[j] = left[i]
    kept = [x for x in left if x not in right] + [x for x in right if x not in left]
    return contract(call.g, factors(call, (a, b)), [tuple(left), tuple(right)], tuple(kept))


@rule("vdot", "linalg_vecdot")
def _dot(call: Call, a: Any, b: Any, *, dim: int = -1) -> Node:
    if dim != -1:
        raise call.refuse("another dimension than the last one has no rule")
    return einsum(call.g, "...i,...i->...", factors(call, (a, b)))


# Norms


def _order(call: Call, p: Any) -> float:
    if isinstance(p, str):
        raise call.refuse(f"the norm '{p}' has no rule")
    return 2.0 if p is None else float(p)


@rule("norm", "linalg_vector_norm")
def _norm(call: Call, x: Node, p: Any = 2, dim: Any = None, keepdim: bool = False, *, ord: Any = None, dtype: Any = None) -> Node:
    order = p if ord is None else ord
    return norms.norm(call.g, x, axes_of(call, x, dim), 2.0 if order == "fro" else _order(call, order), keepdim)


@rule("linalg_norm", "linalg_matrix_norm")
def _linalg_norm(call: Call, x: Node, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    """A vector norm where one axis, or no order, is named; else the norm of a matrix."""
    matrices = "matrix" in str(call.target)
    if matrices:
        ord, dim = "fro" if ord is None else ord, (-2, -1) if dim is None else dim
    elif ord is None or isinstance(dim, int) or (dim is None and len(x.shape) == 1):
        return norms.norm(call.g, x, axes_of(call, x, dim), _order(call, ord), keepdim)
    pair = (0, 1) if dim is None else tuple(dim)
    if len(pair) == 1:
        return norms.norm(call.g, x, axes_of(call, x, pair), _order(call, ord), keepdim)
    if ord == "fro":
        return norms.norm(call.g, x, axes_of(call, x, pair), 2.0, keepdim)
    if ord not in (1, -1, float("inf"), -float("inf")):
        raise call.refuse(f"the matrix norm {ord!r} has no rule; 'fro', 1, -1, inf and -inf have")
    rows, columns = (a % len(x.shape) for a in pair)
    inner, outer = (rows, columns) if abs(ord) == 1 else (columns, rows)
    sums = norms.norm(call.g, x, [inner], 1.0)
    largest = norms.norm(call.g, sums, [outer], float("inf") if ord > 0 else -float("inf"))
    kept = [1 if a in (rows, columns) else n for a, n in enumerate(x.shape) if keepdim or a not in (rows, columns)]
    return call.g.reshape(largest, kept)


@rule("normalize")
def _normalize(call: Call, x: Node, p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12) -> Node:
    return norms.normalized(call.g, x, axes_of(call, x, dim), float(p), Constant.of(call.number(eps)))


@rule("cosine_similarity")
def _cosine_similarity(call: Call, a: Any, b: Any, dim: int = 1, eps: Any = 1e-8) -> Node:
    axis = axes_named([dim], max(len(a.shape), len(b.shape)), call)[0]
    return norms.cosine_similarity(call.g, call.node(a), call.node(b), axis, Constant.of(call.number(eps)))


# Distances


@rule("pairwise_distance")
def _pairwise_distance(call: Call, a: Any, b: Any, p: Any = 2.0, eps: Any = 1e-6, keepdim: bool = False) -> Node:
    gap = call.g.scale(total(call, [a, b], [1, -1]), bias=call.number(eps))
    return norms.norm(call.g, gap, [len(gap.shape) - 1], float(p), keepdim)


@rule("dist")
def _distance(call: Call, a: Any, b: Any, p: Any = 2) -> Node:
    gap = total(call, [a, b], [1, -1])
    return norms.norm(call.g, gap, range(len(gap.shape)), float(p), keepdims=False)


@rule("cdist", "_cdist_forward")
def _distances(call: Call, a: Any, b: Any, p: Any = 2.0, *_: Any, **__: Any) -> Node:
    return norms.distances(call.g, call.node(a), call.node(b), float(p))


@rule("pdist", "_pdist_forward")
def _pair_distances(call: Call, x: Node, p: Any = 2.0) -> Node:
    return norms.pairs(call.g, x, float(p))


# Normalisation across channels, and pooling by norms


@rule("local_response_norm")
def _local_response_norm(call: Call, x: Node, size: int, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0) -> Node:
    factor = Constant.of(call.number(alpha)) / float(size)
    return norms.local_response(call.g, x, (size // 2, (size - 1) // 2), factor, call.number(beta), call.number(k))


def _pool(n: int) -> Any:
    def lower(call: Call, x: Node, norm_type: Any, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Node:
        if float(norm_type) % 2 or norm_type <= 0 or ceil_mode:
            raise call.refuse("ceil_mode, and a norm_type that is not even, have no rule: torch takes roots of what may be negative")
        x, added = batched(call, x, n)
        return unbatched(call, norms.pool(call.g, x, pooled(x, n, kernel_size, stride, 0, 1, ceil_mode), float(norm_type)), added)

    return lower


for _n in (1, 2, 3):
    rule(f"lp_pool{_n}d")(_pool(_n))
