"""Which neuron to split, and where (GenBaB, arXiv 2405.21063): candidates, what they gain by a heuristic, and the children.

A `Heuristic` scores candidates without bounding them, and `Brancher.rank` keeps the best; `Brancher.best_split` may bound the children of
these before one is taken (filtered smart branching, arXiv 2104.06718); `children` splits; `reset_slopes` says with what lines they begin,
on which all else depends.

Measured (`tests/benchmarks/PERFORMANCE.md`): first order needs the fewest subproblems, BaBSR-like and BBPS a tenth more, the widest
several times as many. BBPS and optimised points pay with fresh lines only. BBPS sees half of the gains, for what a line sends on meets
linear forms that were saved at the root; a multiplier of the split constraint in its estimate did not help. First order takes splits with
0.96 of the best gain: little is left to gain by scores.
"""

from milpverify.search.neuron_split.branching.brancher import Brancher, children, ensure_forms
from milpverify.search.neuron_split.branching.heuristic import BranchingTuning, Heuristic, Splits
from milpverify.search.neuron_split.branching.reset_slopes import narrowed, reset_slopes, where_worse, with_those_of

__all__ = [
    "Brancher",
    "BranchingTuning",
    "Heuristic",
    "Splits",
    "children",
    "ensure_forms",
    "narrowed",
    "reset_slopes",
    "where_worse",
    "with_those_of",
]
