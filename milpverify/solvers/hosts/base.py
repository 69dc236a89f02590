"""What is asked of a user's own model, whatever its solver: bounds of variables, room for rows and columns, values at a solution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from milpverify.errors import InvalidInput
from milpverify.solvers.base import Capability
from milpverify.solvers.model import Array, Model

UNBOUNDED: Final = 1e20
"""What is as large is no bound to any of the solvers."""


@dataclass(frozen=True, eq=False)
class Expression:
    """coefficients . variables + constant, of a user's variables; `variable` where it is one of them, as it is."""

    variables: tuple[Any, ...]
    coefficients: tuple[float, ...]
    constant: float = 0.0

    @property
    def variable(self) -> Any | None:
        """The variable that the expression is."""
        return self.variables[0] if self.coefficients == (1.0,) and not self.constant else None


@dataclass(eq=False)
class Added:
    """What was added to a model: its variables by the columns that they stand for, and all of its constraints."""

    variables: dict[int, Any] = field(default_factory=dict)
    rows: list[Any] = field(default_factory=list)
    more: list[Any] = field(default_factory=list)  # variables that stand for no column


class Host(ABC):
    """A model of the user's. Parameters of the solver are never changed."""

    name: str
    capabilities: frozenset[Capability]
    functions: frozenset[str]
    """The smooth functions that the solver takes within expressions."""

    @abstractmethod
    def expression(self, given: object) -> Expression | None:
        """A variable, a linear expression or a number as an expression; None for anything else.

        Raises:
            InvalidInput: it belongs to another model, or is no longer part of one.
        """

    @abstractmethod
    def key(self, variable: Any) -> int:
        """What tells a variable from others, until something is deleted."""

    @abstractmethod
    def label(self, variable: Any) -> str:
        """How a variable is called."""

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all variables."""

    @abstractmethod
    def ranges(self, variables: Sequence[Any]) -> tuple[Array, Array]:
        """The bounds of variables, infinite where there are none."""

    @abstractmethod
    def restrict(self, variable: Any, lower: float, upper: float) -> None:
        """Set the bounds of a variable."""

    @abstractmethod
    def begin(self) -> None:
        """Bring the model into a state in which it can be changed; what was solved is forgotten where there is no other way.

        Raises:
            InvalidInput: it is being solved.
        """

    @abstractmethod
    def add(self, model: Model, given: Mapping[int, Any], name: Callable[[str, int], str]) -> Added:
        """Add a model's rows, and its columns but those that are variables already.

        Args:
            given: columns -> variables of this model.
            name: of a kind ("v" variable, "c" constraint) and a number.

        Raises:
            SolverUnavailable: the solver, or its licence, does not take it; the model is as before.
        """

    @abstractmethod
    def users(self, variables: Sequence[Any], added: Sequence[Added]) -> str | None:
        """The name of a constraint that reads some variables and is not among what was added; None where there is none."""

    @abstractmethod
    def delete(self, added: Sequence[Added], later: Sequence[Any] = (), retire: bool = False) -> bool:
        """Take variables and constraints out again; with `retire`, leave them without effect where they cannot go. Whether they went.

        Args:
            later: variables and constraints of the user's whose numbers change with it.

        Raises:
            InvalidInput: the numbers of others would change.
        """

    @abstractmethod
    def values(self, variables: Sequence[Any]) -> Array:
        """The values of variables at the solution.

        Raises:
            InvalidInput: there is none.
        """


def no_solution(name: str) -> InvalidInput:
    """The refusal to read values where there are none."""
    return InvalidInput(f"the {name} model has no solution to read values from: solve it first")


def finite_or_infinite(values: Sequence[float]) -> Array:
    """Bounds with what a solver takes for infinite as infinity."""
    bounds = np.array(values, dtype=np.float64)
    return np.where(np.abs(bounds) >= UNBOUNDED, np.copysign(math.inf, bounds), bounds)
