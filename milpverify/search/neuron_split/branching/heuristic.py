"""What a branching heuristic is: a class that scores the splits of subproblems, found by its name.

The names are those of `milpverify.config.Branching`, which says where each class is; a class of one's own is handed in itself. Scores prove
nothing: whatever is split, both children are bounded.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from milpverify.config import HEURISTICS, Branching
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.propagation.optimised.beta import Domain
    from milpverify.propagation.optimised.dual import Primal
    from milpverify.propagation.optimised.halfspaces import HalfspaceForms
    from milpverify.propagation.state import LinearBound
    from milpverify.search.neuron_split.branching.candidates import Candidates, Consumers


class BranchingTuning(Tuning):
    """How splits are chosen, and when lines begin anew below them."""

    loosest: int = 16
    """Candidates are taken from so many neurons at most: those whose relaxations are loosest under their multipliers."""
    entries: int = 1 << 22
    entries_on_gpu: int = 1 << 26
    """Of one matrix of what candidates change."""
    larger: float = 1.0
    """What the better child counts beside the worse in scores: as much, as far as it is not closed. That the worse decides takes optimised
    points ill, and makes larger trees, by whatever score (`tests/benchmarks/PERFORMANCE.md`)."""
    larger_bounded: float = 0.1
    """The same where the children of the best few were bounded."""
    narrower: float = 0.95
    """An interval that keeps less than this share of its width is relaxed anew: 0.99 and 1 do as well, 0.8 saves half as much."""


@dataclass(frozen=True, eq=False)
class Parents:
    """What the bounds of n subproblems are made of, and C candidate splits of each.

    `candidates` have the children's intervals, `consumers` what reads what is split; `primal` has the relaxations' lines, the multipliers
    that arrived at them and where the bounds are attained; `margin` (n, r) float64 are the rows' bounds, of which the largest counts;
    `loose` (n, C) is what the candidates' relaxations cost them; `larger` is that of `BranchingTuning`. `found`, the linear bounds, and
    `forms` are None where a search saves none.
    """

    candidates: Candidates
    consumers: Consumers
    primal: Primal
    margin: Tensor
    loose: Tensor
    larger: float
    found: LinearBound | None
    forms: HalfspaceForms | None

    def score(self, gained: Tensor) -> Tensor:
        """What both children's bounds, estimated, come to: (n, C), at most 0 per child, which is then closed.

        Args:
            gained: what both gain, (2, n, C, r) float64.
        """
        after = (self.margin.unsqueeze(1) + gained.clamp(min=0.0)).amax(3).clamp(max=0.0)
        return after.amin(0) + self.larger * after.amax(0)


@dataclass(frozen=True, eq=False)
class Splits:
    """Splits of n subproblems, C each, to be scored.

    `domain` has the intervals of all T open entries, `column` (n, C) the entries that may be split, `valid` (n, C) is False where there
    is nothing to split.
    """

    domain: Domain
    column: Tensor
    valid: Tensor
    of_parents: Parents | None = None

    @property
    def parents(self) -> Parents:
        """What the subproblems' bounds are made of, for heuristics that need them."""
        if self.of_parents is None:
            raise TypeError("a heuristic that looks at bounds says so: needs_bounds = True")
        return self.of_parents


class Heuristic(ABC):
    """How splits are scored; made anew for every root.

    `name` is what results call it. `needs_bounds`: it looks at what subproblems' bounds are made of, not only at intervals; then candidates
    are those whose relaxations are loosest unless it `scores_all`, `needs_point` wants the point where bounds are attained, and
    `needs_forms` the saved linear forms of what is split, and the linear bounds.

    Args:
        seed: of what is random; a search that repeats draws the same.
    """

    name: ClassVar[str]
    needs_bounds: ClassVar[bool] = False
    needs_point: ClassVar[bool] = False
    needs_forms: ClassVar[bool] = False
    scores_all: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def score(self, splits: Splits) -> Tensor:
        """What speaks for each of the splits, (n, C) float64: the highest is split. NaN and -inf are not."""


def heuristic_of(branching: Branching | type[Heuristic]) -> type[Heuristic]:
    """The class of a heuristic by its name, loaded when it is used."""
    if not isinstance(branching, Branching):
        return branching
    module, _, name = branching.place.partition(":")
    found: type[Heuristic] = getattr(importlib.import_module(f"{HEURISTICS}.{module}"), name)
    return found
