"""Intermediate bounds under constraints on the output (INVPROP, arXiv 2302.01404).

Where G y + H x <= d holds, a pre-activation is at least z_j + gamma (G y + H x - d) for any gamma >= 0, and the least value of that over
the box is bounded as any row is. With the unsafe set of one disjunct as the constraints, the bounds hold at every unsafe point of that
disjunct, and nowhere else: they are conditional. An empty interval says that there is no unsafe point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.propagation.interval import follow
from milpverify.propagation.optimised.beta import AlphaOptions, Dual, OutputConstraints, Relaxations
from milpverify.propagation.optimised.dual import accumulate
from milpverify.propagation.passes import rows_at_once
from milpverify.propagation.relevance import needed
from milpverify.propagation.state import Bounds, NodeState, State
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.graph import Graph


class ConstraintTuning(Tuning):
    """How long bounds under output constraints are optimised."""

    iterations: int = 12
    step: float = 0.1
    """Of gradient ascent for neurons, and the first step of a slope."""
    row_iterations: int = 40
    row_step: float = 0.25
    """The same for the constraints' own rows, which say what they lack and which neurons they feel."""
    gamma_step: float = 0.1
    """The first step of a constraint's multiplier, in mean widths of the neurons bounded per unit of what the constraint lacks."""
    rounds: int = 6
    least_gain: float = 0.005
    """How often the layers are gone through, and the share of a layer's widths that must go for the ones before it to be tried."""


@dataclass(frozen=True, eq=False)
class Conditional:
    """A state whose bounds hold where the constraints do; `empty` if they hold nowhere."""

    state: State
    empty: bool


def tightened(
    graph: Graph,
    state: State,
    given: OutputConstraints,
    most: int,
    tuning: ConstraintTuning = ConstraintTuning(),
    deadline: Deadline | None = None,
) -> Conditional:
    """The bounds of one box's open pre-activations where output constraints hold, from the last layer back.

    Args:
        graph: in the precision of the matrices.
        state: of one box, with charges of that precision.
        given: constraints for one box, (1, q, ...).
        most: so many neurons at most, those first whose relaxations the constraints' rows feel most; the rest keep their bounds.
    """
    state = dict(state)
    parts = needed(graph, given.rows.flatten(0, 1))
    relaxations = Relaxations(graph, state, needed=parts)
    one = torch.zeros(1, dtype=torch.long, device=graph.device)
    start = relaxations.slopes(relaxations.lines, one).unsqueeze(1).repeat(1, given.rhs.shape[1], 1)
    longer = AlphaOptions(tuning.row_iterations, tuning.row_step)
    dual = relaxations.ascend(relaxations.domain(one), given.rows, Dual(start, start[:, :, :0]), longer, given.x_rows, deadline=deadline)
    primal = relaxations.primal(relaxations.domain(one), given.rows, dual, given.x_rows)
    lacking = float((given.rhs - primal.value).clamp(min=0.0).amax())
    weight = torch.zeros(relaxations.count, dtype=torch.float64, device=graph.device)
    for i, o in relaxations.opened.items():
        if i in primal.multipliers:
            for columns in o.columns:
                felt = primal.multipliers[i].abs().double().sum((0, 1)) * (relaxations.high - relaxations.low)[0, columns]
                accumulate(weight, columns, felt)
    chosen = torch.zeros(relaxations.count, dtype=torch.bool, device=graph.device)
    chosen[weight.topk(min(most, len(weight))).indices] = True
    # What is a function of another variable is bounded through that.
    chosen &= relaxations.split_for == torch.arange(relaxations.count, device=graph.device)
    wanted = {z: relaxations.entries[z][chosen[here]] for z, here in relaxations.columns.items() if z}
    for _ in range(tuning.rounds):
        gained = False
        # Constraints are felt most by the last layers; what these gain helps the earlier ones, and themselves in the next round.
        for z, entries in reversed(wanted.items()):
            entries = entries[torch.isin(entries, relaxations.entries[z])] if z in relaxations.entries else entries[:0]
            if not len(entries) or (deadline is not None and deadline.expired()):
                continue
            low, high = (side.flatten(1).clone() for side in (state[z].bounds.lower, state[z].bounds.upper))
            width = (high - low)[0, entries]
            gamma_step = tuning.gamma_step * float(width.mean()) / max(lacking, 1e-9)
            mine = AlphaOptions(tuning.iterations, tuning.step, gamma_step=gamma_step)
            for part in entries.split(max(8, 4 * rows_at_once(graph))):
                if deadline is not None and deadline.expired():
                    break
                found = _bounds(relaxations, z, part, given, mine, deadline)
                low[0, part] = torch.maximum(low[0, part], found[:, 0])
                high[0, part] = torch.minimum(high[0, part], -found[:, 1])
            if bool((low > high).any()):
                return Conditional(state, True)
            shape = state[z].bounds.lower.shape
            state[z] = NodeState(Bounds(low.reshape(shape), high.reshape(shape)), state[z].center, state[z].charge)
            follow(graph, state)
            relaxations = Relaxations(graph, state, needed=parts)
            if float((high - low)[0, entries].sum()) > (1 - tuning.least_gain) * float(width.sum()):
                break
            gained = True
        if not gained:
            break
    return Conditional(state, False)


def _bounds(
    relaxations: Relaxations, node: int, entries: Tensor, given: OutputConstraints, options: AlphaOptions, deadline: Deadline | None
) -> Tensor:
    """Lower bounds of some entries of a node and of their negatives, (n, 2) float64."""
    n, device = len(entries), entries.device
    place = torch.zeros(n, dtype=torch.long, device=device)
    rows = torch.zeros(n, 2, relaxations.graph.nodes[node].size, dtype=torch.float64, device=device)
    every = torch.arange(n, device=device)
    rows[every, 0, entries], rows[every, 1, entries] = 1.0, -1.0
    domain = replace(relaxations.domain(place), given=given.take(place))
    slopes = relaxations.slopes(relaxations.lines, place).unsqueeze(1).repeat(1, 2, 1)
    start = Dual(slopes, slopes[:, :, :0], slopes.new_zeros(n, 2, given.rhs.shape[1]))
    dual = relaxations.ascend(domain, rows, start, options, deadline=deadline, node=node)
    return relaxations.certify(domain, rows, dual, node=node).lower
