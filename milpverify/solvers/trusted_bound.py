"""What of a solver's words a proof may rest on: the one place where a solver is trusted."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from milpverify.solvers.base import SolveOutcome, SweepOutcome
from milpverify.solvers.model import TOLERANCE, Array, Model, Sweep

SAFETY: Final = 16.0
"""The multiple of the tolerance that a dual bound must clear."""


def safety_margin(model: Model, dual_bound: float = 0.0) -> float:
    """What a solver's dual bound may be too high by: SAFETY times the tolerance times the scale of the objective.

    The rows' tolerances relax the model and only lower the bound. What can raise it falsely is the dual tolerance (at most the
    tolerance times the range of each variable, of order 1 here) and the arithmetic of cuts and presolve, which solvers keep near the
    feasibility tolerance. The scale is sum |c_j| max(|lower_j|, |upper_j|, 1): the variable t that a margin model minimises is in units of
    the largest term of the unsafe rows, so cancellation in them is charged for.

    A product or a function is a variable of the solver's own and rows that it makes up: the dual tolerance counts over its range, too,
    and propagation and branching, which take it for satisfied within the tolerance, may cut off as much. So each of them adds the scale
    times the ranges of it (`Model.spans`): of a product its coefficient times both variables' ranges, of a function those of its argument
    and its result, in units of each, nothing less than 1. What exceeds `WIDEST` is in no model, nor within a function's expression. The
    points that a solver finds count for nothing: they may lie below the optimum by what all tolerances on the way add up to.
    """
    costed = model.objective != 0
    reach = np.maximum(1.0, np.maximum(np.abs(model.lower[costed]), np.abs(model.upper[costed])))
    scale = float(np.abs(model.objective[costed]) @ np.where(np.isfinite(reach), reach, 1.0))
    return SAFETY * TOLERANCE * (max(scale, abs(dual_bound)) + scale * float(np.maximum(1.0, model.spans()).sum()))


def safe_dual_bound(outcome: SolveOutcome, model: Model) -> float:
    """A lower bound of the optimum on which a proof may rest (trust SOLVER): the dual bound less `safety_margin`; -inf if there is none."""
    bound = outcome.dual_bound
    return bound - safety_margin(model, bound) if math.isfinite(bound) else -math.inf


def safe_sweep_bounds(outcome: SweepOutcome, sweep: Sweep) -> Array:
    """Lower bounds (K,) of side * v on which a proof may rest (trust SOLVER): each less the margin of a model with that objective.

    -inf where there is none.
    """
    reach = np.maximum(1.0, np.maximum(np.abs(sweep.model.lower), np.abs(sweep.model.upper)))[sweep.column]
    return np.where(np.isfinite(outcome.bounds), outcome.bounds, -math.inf) - SAFETY * TOLERANCE * reach
