"""The choice of a split: candidates are filtered by how loose their relaxations are, scored by a heuristic, and perhaps bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from milpverify.errors import InvalidInput
from milpverify.propagation.optimised.beta import Dual
from milpverify.search.neuron_split.branching.candidates import Candidates, Consumers, looseness, splittable
from milpverify.search.neuron_split.branching.heuristic import BranchingTuning, Parents, Splits, heuristic_of
from milpverify.search.neuron_split.branching.reset_slopes import relaxed_anew, reset_slopes

if TYPE_CHECKING:
    from milpverify.config import Branching
    from milpverify.propagation.optimised.beta import Domain
    from milpverify.propagation.optimised.halfspaces import HalfspaceForms
    from milpverify.propagation.state import LinearBound
    from milpverify.search.neuron_split.bounder import Bounder
    from milpverify.search.neuron_split.branching.heuristic import Heuristic
    from milpverify.search.neuron_split.subproblems import Subproblems


class Brancher:
    """Ranks the splits of subproblems.

    Args:
        branching: the name of the heuristic, or the class of one's own.
        forms: the saved linear forms of the open entries, made for a box when it is first met, for the heuristic that needs them.
        seed: of what is random; a search that repeats draws the same.
    """

    def __init__(
        self,
        bounder: Bounder,
        branching: Branching | type[Heuristic],
        forms: HalfspaceForms | None = None,
        seed: int = 0,
        tuning: BranchingTuning | None = None,
    ) -> None:
        self.bounder, self.heuristic, self.forms = bounder, heuristic_of(branching)(seed), forms
        self.consumers, self.tuning = Consumers(bounder.relaxations), tuning or BranchingTuning()

    def rank(self, subs: Subproblems, domain: Domain, found: LinearBound | None = None) -> Tensor:
        """The open entries that are the best splits, (n, C), -1 where there are fewer.

        Args:
            found: the linear bounds of the rows of the subproblems, for the heuristic that needs them.
        """
        per = len(subs)
        if self.heuristic.needs_bounds:
            of, rows, tuning = self.bounder.relaxations, self.bounder.rhs.shape[1], self.tuning
            columns = of.count if self.heuristic.scores_all else min(of.count, tuning.loosest)
            wide = self.bounder.graph.nodes[0].size if self.heuristic.needs_forms else 1
            entries = tuning.entries_on_gpu if subs.bound.is_cuda else tuning.entries
            per = max(1, int(entries // max(1.0, 4 * columns * rows * wide * max(1.0, self.consumers.fan))))
        parts = []
        for n in torch.arange(len(subs), device=subs.bound.device).split(max(1, per)):
            parts.append(self._rank(subs.take(n), domain.take(n), None if found is None else _take(found, n)))
        return torch.cat(parts)

    def _rank(self, subs: Subproblems, domain: Domain, found: LinearBound | None) -> Tensor:
        of = self.bounder.relaxations
        still = splittable(of, self.bounder.home, domain)
        if not self.heuristic.needs_bounds:
            every = torch.arange(of.count, device=still.device).expand_as(still)
            return self._best(self._scored(Splits(domain, every, still)), every)
        if self.bounder.resets:
            subs = relaxed_anew(self.bounder, subs, domain, subs.narrower)  # as the children's will be
        y_rows, rhs, x_rows = self.bounder.rows_of(subs.disjunct)
        primal = of.primal(domain, y_rows, Dual(subs.slopes, subs.beta), x_rows, attained=self.heuristic.needs_point)
        loose = looseness(of, self.bounder.home, domain, primal) + 1e-9 * (domain.high - domain.low)
        # Gains alone favour early layers, whose many splits each move the bound a little and seldom close anything.
        count = of.count if self.heuristic.scores_all else min(max(self.tuning.loosest, self.bounder.candidates), of.count)
        wanted, column = torch.where(still, loose, -torch.inf).topk(count, dim=1)
        candidates = Candidates.of(of, self.bounder.points, domain, column, wanted > -torch.inf)
        if self.forms is not None and self.heuristic.needs_forms:
            ensure_forms(self.bounder, self.forms, subs)
        loose, margin = loose.gather(1, column), (primal.value - rhs).double()
        parents = Parents(candidates, self.consumers, primal, margin, loose, self.tuning.larger, found, self.forms)
        score = self._scored(Splits(domain, column, candidates.valid, parents))
        return self._best(torch.where(score > -torch.inf, score + 1e-9 * loose, -torch.inf), column, wanted)

    def _scored(self, splits: Splits) -> Tensor:
        """The scores of what may be split."""
        score = self.heuristic.score(splits)
        if not isinstance(score, Tensor) or score.is_complex():
            raise InvalidInput(f"the heuristic {self.heuristic.name!r} has to score by a tensor of real numbers")
        if score.shape != splits.column.shape:
            given, asked = tuple(score.shape), tuple(splits.column.shape)
            raise InvalidInput(f"the heuristic {self.heuristic.name!r} scores {given} splits where {asked} are asked for")
        return torch.where(splits.valid & ~score.isnan(), score, -torch.inf)

    def _best(self, score: Tensor, column: Tensor, loose: Tensor | None = None) -> Tensor:
        """The entries of the best scores, (n, C); where no candidate moves the bound, the loosest comes first."""
        candidates = self.bounder.candidates
        values, place = score.topk(min(candidates, score.shape[1]), dim=1)
        best = torch.where(values > -torch.inf, column.gather(1, place), -1)
        if loose is not None:
            order = torch.where(best >= 0, loose.gather(1, place), -torch.inf).argsort(dim=1, descending=True, stable=True)
            best = best.gather(1, order)
        return pad(best, (0, candidates - best.shape[1]), value=-1)

    def best_split(self, parents: Subproblems) -> Tensor:
        """The best of each parent's candidate splits, judged by their children's bounds with the parent's multipliers: (n,)."""
        bounder, n, best = self.bounder, len(parents), parents.best
        if not bool((best[:, 1:] >= 0).any()):
            return best[:, 0]
        rows = torch.arange(n, device=best.device).repeat_interleave(bounder.candidates)
        column = torch.where(best >= 0, best, best[:, :1])
        both = children(bounder, parents.take(rows), column.flatten())
        trial = bounder.estimate(reset_slopes(bounder, both)).reshape(2, n, bounder.candidates)
        trial = torch.maximum(trial, parents.bound.unsqueeze(1)).clamp(max=0.0)
        # The smaller child decides; the other counts a little.
        value = trial.amin(0) + self.tuning.larger_bounded * trial.amax(0)
        return column.gather(1, value.argmax(1, keepdim=True)).squeeze(1)


def ensure_forms(bounder: Bounder, forms: HalfspaceForms, subs: Subproblems) -> None:
    """Make the forms of boxes not seen before, of the entries that are loosest in the first of their subproblems."""
    fresh = forms.missing(subs.box)
    if not len(fresh):
        return
    of, first = bounder.relaxations, subs.take((subs.box.unsqueeze(0) == fresh.unsqueeze(1)).int().argmax(1))
    y_rows, _, x_rows = bounder.rows_of(first.disjunct)
    domain = bounder.domain_of(first)
    primal = of.primal(domain, y_rows, Dual(first.slopes, first.beta), x_rows, attained=False)
    loose = looseness(of, {i: list(o.columns) for i, o in of.opened.items()}, domain, primal)
    forms.make(fresh, loose.topk(forms.count, dim=1).indices.sort(1).values)


def _take(found: LinearBound, n: Tensor) -> LinearBound:
    return found.map(lambda t: t[n])


def children(bounder: Bounder, parents: Subproblems, column: Tensor) -> Subproblems:
    """Both children of n parents for the split of an open entry each, `column` (n,): 2 n subproblems, lower sides first."""
    domain = bounder.domain_of(parents)
    slot, index = bounder.slot_of[column], bounder.index_of[column]
    low, high = (t.gather(1, column.unsqueeze(1)).squeeze(1) for t in (domain.low, domain.high))
    point = bounder.points(column, low, high)
    rows = torch.arange(len(parents), device=column.device)
    both = parents.take(torch.cat([rows, rows]))
    width = int((parents.side != 0).sum(1).max()) + 1 if parents.side.numel() else 1
    both = both.padded(max(width, both.slot.shape[1]))
    place = (both.side != 0).sum(1)
    every = torch.arange(len(both), device=column.device)
    for target, value in ((both.slot, slot), (both.index, index), (both.point, point)):
        target[every, place] = torch.cat([value, value])
    both.side[every, place] = torch.cat([torch.full_like(slot, -1), torch.full_like(slot, 1)]).to(both.side.dtype)
    both.beta[every, :, place] = 0.0
    return both
