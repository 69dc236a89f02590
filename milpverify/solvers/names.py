"""The solvers that there are: the one list of them, which imports nothing, for the command line shows it before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a solver is asked, and by what it answers."""

    MILP = "mixed-integer models, by bounds"
    SMT = "formulas in exact arithmetic, by answers"


@dataclass(frozen=True)
class Known:
    """A solver: the class of its adapter, in the module of `milpverify.solvers` that bears its name, and the distribution it comes with."""

    adapter: str
    package: str
    kind: Kind


SOLVERS = {
    "scip": Known("Scip", "pyscipopt", Kind.MILP),
    "highs": Known("Highs", "highspy", Kind.MILP),
    "gurobi": Known("Gurobi", "gurobipy", Kind.MILP),
    "z3": Known("Z3", "z3-solver", Kind.SMT),
    "cvc5": Known("Cvc5", "cvc5", Kind.SMT),
}
"""By the names that they have everywhere. Of a kind the first is used where none of that kind is asked for."""
MILP_SOLVERS = tuple(name for name, known in SOLVERS.items() if known.kind is Kind.MILP)
SMT_SOLVERS = tuple(name for name, known in SOLVERS.items() if known.kind is Kind.SMT)


def is_own(name: str) -> bool:
    """Whether a solver is a user's own: "module:Class", a `Solver` for mixed-integer models that processes can import from there."""
    return ":" in name


def takes_models(name: str) -> bool:
    """Whether a solver is asked by mixed-integer models."""
    return name in MILP_SOLVERS or is_own(name)
