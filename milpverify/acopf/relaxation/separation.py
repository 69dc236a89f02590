"""Which tangent planes of the cones a solution of the relaxation violates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from milpverify.acopf.relaxation.cuts import Cuts, no_cuts

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Index
    from milpverify.acopf.points.judgement import Candidate
    from milpverify.acopf.relaxation.columns import Columns
    from milpverify.acopf.relaxation.relaxation import Relaxation

INWARDS: Final = 1 - 2.0**-50
"""A direction of length 1 in float64 times this is no longer than 1 in real arithmetic."""


def separate(relaxation: Relaxation, points: Array, violated: float) -> Cuts:
    """The tangent planes that solutions (K, columns) of the relaxation violate, without near repetitions.

    Args:
        relaxation: whose columns and cones are meant.
        points: (K, columns).
        violated: p.u., or units of cost: by how much more than this a plane is violated; below 0 also planes that nearly touch.
    """
    columns, gen = relaxation.columns, relaxation.question.case.generators
    cone = _cone(columns, points)
    length = np.linalg.norm(cone, axis=2)
    total = points[:, columns.w[columns.pairs.i]] + points[:, columns.w[columns.pairs.j]]
    k, p = np.nonzero(length - total > violated)
    directions = cone[k, p] / length[k, p, None]
    pair, u = _distinct(p, directions)
    rate = relaxation.question.case.branches.rate[columns.rated] + relaxation.question.tolerance
    power = _flows(relaxation, points)  # solution, end, p or q, branch
    size = np.linalg.norm(power, axis=2)
    k, end, r = np.nonzero(size - rate > violated)
    code, v = _distinct(2 * r + end, power[k, end, :, r] / size[k, end, r, None])
    dispatch = points[:, columns.pg[: len(columns.price)]]
    missing = ((gen.c2 * dispatch + gen.c1) * dispatch + gen.c0) / relaxation.unit if len(columns.price) else dispatch
    k, g = np.nonzero(missing - points[:, columns.price] > violated)
    width = np.maximum(1.0, np.abs(gen.pmax))
    price, at = _distinct(g, dispatch[k, g, None] / np.where(np.isfinite(width), width, 1.0)[g, None])
    at = at[:, 0] * np.where(np.isfinite(width), width, 1.0)[price]
    return Cuts(pair, u * INWARDS, code // 2, code % 2, v * INWARDS, price, at)


def tangents(relaxation: Relaxation) -> Cuts:
    """A tangent plane of every cost, in the middle of the dispatch, without which there is no least cost where generation has no limits."""
    gen, g = relaxation.question.case.generators, np.arange(len(relaxation.columns.price))
    low, high = (np.where(np.isfinite(end), end, 0.0)[g] for end in (gen.pmin, gen.pmax))
    return replace(no_cuts(), price=g, at=(low + high) / 2)


def at_point(relaxation: Relaxation, point: Candidate) -> Array:
    """What the columns (columns,) are at a point; growth, which a point does not tell, is 0."""
    columns, case = relaxation.columns, relaxation.question.case
    values = np.zeros(len(columns))
    i, j = columns.pairs.i, columns.pairs.j
    across = point.va[i] - point.va[j]
    values[columns.w] = point.vm**2
    values[columns.c], values[columns.s] = point.vm[i] * point.vm[j] * np.stack([np.cos(across), np.sin(across)])
    values[columns.d] = np.arctan2(np.sin(across), np.cos(across))
    values[columns.pg], values[columns.qg] = point.pg, point.qg
    for which, buses, load in zip(columns.loads, columns.varying, (point.pd, point.qd), strict=True):
        values[which] = load[buses]
    if len(columns.total):
        gen = case.generators
        values[columns.price] = ((gen.c2 * point.pg + gen.c1) * point.pg + gen.c0) / relaxation.unit
        values[columns.total] = values[columns.price].sum()
    return values


def _flows(relaxation: Relaxation, points: Array) -> Array:
    """p and q into both ends of every rated branch, (K, 2, 2, R)."""
    columns, br = relaxation.columns, relaxation.question.case.branches
    k = columns.rated
    p = columns.pairs.of_branch[k]
    s = columns.pairs.sign[k] * points[:, columns.s[p]]
    terms = np.stack([points[:, columns.w[br.f[k]]], points[:, columns.w[br.t[k]]], points[:, columns.c[p]], s], axis=2)  # (K, R, 4)
    flows: Array = np.einsum("rij,krj->kir", relaxation.flow_coefficients()[0][k], terms)
    return flows.reshape(len(points), 2, 2, -1)


def _cone(columns: Columns, points: Array) -> Array:
    """(2c, 2s, w_i - w_j) of every pair at every solution, (K, P, 3)."""
    pairs = columns.pairs
    difference = points[:, columns.w[pairs.i]] - points[:, columns.w[pairs.j]]
    return np.stack([2 * points[:, columns.c], 2 * points[:, columns.s], difference], axis=2)


def _distinct(index: Index, values: Array, digits: int = 4) -> tuple[Index, Array]:
    """The rows (index, values), but of those that agree to so many digits the first only."""
    if not len(index):
        return index.astype(np.int64), values
    keys = np.column_stack([index, np.round(values, digits)])
    _, first = np.unique(keys, axis=0, return_index=True)
    return index[first].astype(np.int64), values[first]
