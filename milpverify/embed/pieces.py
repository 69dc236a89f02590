"""Where curved neurons have breakpoints: evenly in what they stray from their lines at first, then around a solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.encode.curves import Cut
from milpverify.graph import evaluate_all
from milpverify.relaxations.registry import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from milpverify.embed.deviation import Deviation, EmbedTuning
    from milpverify.encode.encoding import Encoding, NodeRanges
    from milpverify.graph import Graph, Node
    from milpverify.spec import Array

    Left = Callable[[Node, tuple[Array, ...], tuple[Array, ...]], bool]
    """Whether a solver gets a node as it is, given the bounds of what it reads."""
    Cuts = dict[tuple[int, int], Cut]


@dataclass(frozen=True, eq=False)
class Parting:
    """Parts the curved neurons of a network that are not `left` to the solver; `ranges` of every node hold over the box of the inputs."""

    graph: Graph
    ranges: NodeRanges
    left: Left
    tuning: EmbedTuning

    def first_cuts(self, count: int) -> Cuts:
        """Breakpoints that part every curved neuron into at most `count` pieces, the piece with the largest gap first."""
        cuts: Cuts = {}
        for i, lower, upper in self._curved():
            rule = rule_of(self.graph.nonlinearities[i])
            place = np.argmax([(high - low).numpy() for low, high in zip(lower, upper, strict=True)], axis=0)
            size = len(place)
            pick = torch.from_numpy(place)
            low, high = (torch.stack(side)[pick, torch.arange(size)] for side in (lower, upper))
            ends = torch.stack([low, high], dim=1)  # (R, pieces + 1)
            reach = 1.0 + torch.stack([t.abs() for t in rule.range(lower, upper)]).amax(0).nan_to_num(0.0, 0.0, 0.0)
            for _ in range(count - 1):
                k = ends.shape[1] - 1
                lows, highs = (
                    tuple(torch.where((pick == j)[:, None], own, t[:, None].expand(-1, k)) for j, t in enumerate(side))
                    for side, own in ((lower, ends[:, :-1]), (upper, ends[:, 1:]))
                )
                gap = rule.gap(lows, highs, rule.parallel_slopes(lows, highs)).nan_to_num(0.0, 0.0, 0.0)
                worst = gap.argmax(dim=1, keepdim=True)
                begin, end = ends.gather(1, worst), ends.gather(1, worst + 1)
                needed = gap.gather(1, worst) > self.tuning.exact * reach[:, None]
                ends = torch.cat([ends, torch.where(needed, begin + 0.5 * (end - begin), begin)], dim=1).sort(dim=1).values
            for r, points in enumerate(ends.tolist()):
                inner = tuple(sorted({p for p in points if points[0] < p < points[-1]}))
                if inner:
                    cuts[i, r] = Cut(int(place[r]), inner)
        return cuts

    def more_cuts(self, cuts: Cuts, encoding: Encoding, quantities: Array, found: Deviation, to: float) -> Cuts:
        """The breakpoints with new ones on either side of a solution, for all neurons whose errors matter; the same if none does.

        Args:
            quantities: of the model's columns at the solution.
            found: the solution.
            to: the error of the outputs that is wanted.
        """
        parted = {i for i, _, _ in self._curved()}
        shares = [share for share in self._shares(encoding, quantities, found) if share.neuron[0] in parted]
        refined, least = dict(cuts), 0.5 * to / max(1, len(shares))
        for share in shares:
            if share.worth <= least:
                continue
            cut = cuts.get(share.neuron)
            sources = self.graph.nodes[share.neuron[0]].inputs
            box = [[float(self.ranges[i][k].reshape(-1)[share.neuron[1]]) for k in (0, 1)] for i in sources]
            place = cut.place if cut is not None else int(np.argmax([high - low for low, high in box]))
            low, high = box[place]
            inner = () if cut is None else cut.within(low, high)
            ends = np.array([low, *inner, high])
            k = min(max(int(np.searchsorted(ends, share.at[place])), 1), len(ends) - 1)
            begin, end = float(ends[k - 1]), float(ends[k])
            # Gaps shrink with the square of a piece, McCormick's with the piece.
            wanted = (least / share.worth) ** (0.5 if len(sources) == 1 else 1.0)
            half = 0.5 * (end - begin) * min(max(wanted, self.tuning.narrowest), self.tuning.widest)
            around = {p for p in (share.at[place] - half, share.at[place] + half) if begin + 0.25 * half < p < end - 0.25 * half}
            if around and end - begin > self.tuning.exact * (abs(begin) + abs(end)):
                refined[share.neuron] = Cut(place, tuple(sorted({*inner, *around})))
        return refined

    def _curved(self) -> Iterator[tuple[int, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]]:
        """The curved nodes that are not left to the solver, with the bounds of what their neurons read."""
        for i, op in self.graph.nonlinearities.items():
            node = self.graph.nodes[i]
            if op.pieces is not None or op.staircase:
                continue
            lower, upper = (tuple(self.ranges[j][k].reshape(-1).double() for j in node.inputs) for k in (0, 1))
            upper = tuple(torch.maximum(a, b) for a, b in zip(lower, upper, strict=True))
            if not self.left(node, tuple(t.numpy() for t in lower), tuple(t.numpy() for t in upper)):
                yield i, lower, upper

    def _shares(self, encoding: Encoding, quantities: Array, found: Deviation) -> Iterator[_Share]:
        weights = _weights(self.graph, found, self.tuning.outputs)
        for neurons in encoding.neurons:
            op = self.graph.nonlinearities[neurons.node]
            if not neurons.curved or op.staircase:
                continue
            inputs = [np.ascontiguousarray(quantities[columns]) for columns in neurons.inputs]
            true = op.value([torch.from_numpy(z) for z in inputs]).numpy()
            error = np.nan_to_num(np.abs(quantities[neurons.outputs] - true), nan=0.0)
            for r in np.flatnonzero(error > 1e-12 * (1.0 + np.abs(true))).tolist():
                index = int(neurons.index[r])
                yield _Share((neurons.node, index), float(error[r] * weights[neurons.node][index]), tuple(float(z[r]) for z in inputs))


@dataclass(frozen=True)
class _Share:
    """What a neuron's error adds to the outputs', and what it reads at the solution."""

    neuron: tuple[int, int]
    worth: float
    at: tuple[float, ...]


def _weights(graph: Graph, at: Deviation, count: int) -> dict[int, Array]:
    """Per nonlinear node, how much the `count` outputs that are furthest off change with its values, in their units; nothing is 0."""
    with torch.enable_grad():
        values = evaluate_all(graph, torch.from_numpy(at.x)[None].requires_grad_())
        nodes = [i for i in graph.nonlinear if values[i].requires_grad]
        y = values[graph.output].reshape(-1)
        found = {i: np.zeros(graph.nodes[i].size) for i in graph.nonlinear}
        for k in np.argsort(-at.scaled)[:count].tolist() if nodes and y.requires_grad else []:
            slopes = torch.autograd.grad(y[k] / at.scale[k], [values[i] for i in nodes], allow_unused=True, retain_graph=True)
            for i, slope in zip(nodes, slopes, strict=True):
                if slope is not None:
                    found[i] = np.maximum(found[i], np.nan_to_num(np.abs(slope.reshape(-1).numpy()), nan=0.0, posinf=1e6))
    most = max((float(f.max(initial=0.0)) for f in found.values()), default=0.0)
    return {i: f + 1e-3 * (most or 1.0) for i, f in found.items()}
