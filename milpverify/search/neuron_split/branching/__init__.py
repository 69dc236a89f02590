"""Which neuron to split, and where (GenBaB, arXiv 2405.21063): candidates, what they gain by one of several scores, and the children.

`Brancher.rank` scores candidates without bounding them; `best_split` may bound the children of the best few before one is taken (filtered
smart branching, arXiv 2104.06718); `children` splits; `reset_slopes` says with what lines they begin, on which all else depends.

Measured on feed-forward networks of digits (3 x 50, sigmoid, tanh, sin, gelu; 17 instances, all closed; subproblems in sum):

    lines of the parent, worse child decides     first order, midpoints 4697    BBPS, midpoints 5367
    lines of the parent, sum over children       first order, midpoints 3443    BBPS, midpoints 3705
    fresh lines at the split, sum                first order, midpoints 1151    BBPS, midpoints 1247
                                                 first order, optimised  931    BBPS, optimised 1009
    fresh lines where clipping narrows, too      first order, midpoints  669    BBPS, midpoints  761
                                                 first order, optimised  609    BBPS, optimised  675
                                                 BaBSR-like, optimised   643    widest, optimised, 14 closed: over 3865

On five at larger radii, none of which closed in 1000 subproblems with the parent's lines, midpoints and the worse child: first order 953,
BaBSR-like 1075, BBPS 1641, BBPS with midpoints 1849. Of 25 feed-forward instances (4 x 100 neurons, 20 CPU seconds) CROWN and
alpha-CROWN verify 9, every search 25, with bisection of inputs where its trial is ahead: widest 3630 subproblems, BaBSR-like 882, BBPS 870
and first order 890 with midpoints, BBPS 406 and first order 404 with optimised points.

BBPS and optimised points pay with fresh lines. First order stays ahead of BBPS: where the gains of both children are known (re-optimised
and clipped), the split that it likes best has 0.96 of the best gain, that of BBPS 0.86, BaBSR-like 0.88, the widest 0.57; its rank
correlation with the gains is 0.87, against 0.68, 0.75 and 0.25. BBPS sees half of the gains, for what a line sends on meets linear forms
that were saved at the root. A multiplier of the split constraint in its estimate did not help. Little is left to gain by scores.
"""

from milpverify.search.neuron_split.branching.brancher import Brancher, best_split, children, ensure_forms
from milpverify.search.neuron_split.branching.reset_slopes import narrowed, reset_slopes, where_worse, with_those_of

__all__ = ["Brancher", "best_split", "children", "ensure_forms", "narrowed", "reset_slopes", "where_worse", "with_those_of"]
