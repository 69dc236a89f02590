"""Which neuron to split, and where (GenBaB, arXiv 2405.21063): candidates, what they gain by one of several scores, and the children.

`Brancher.rank` scores candidates without bounding them; `decide` may bound the children of the best few before one is taken (filtered
smart branching, arXiv 2104.06718); `children` splits.
"""

from milpverify.search.branching.choice import Brancher, children, decide, form
from milpverify.search.branching.fresh import narrowed
from milpverify.search.branching.points import Points

__all__ = ["Brancher", "Points", "children", "decide", "form", "narrowed"]
