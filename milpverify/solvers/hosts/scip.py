"""SCIP's models: rows, products and functions as PySCIPOpt has them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np

from milpverify.errors import InvalidInput
from milpverify.solvers.base import Capability
from milpverify.solvers.expressions import expression
from milpverify.solvers.hosts.base import Added, Expression, Host, finite_or_infinite, no_solution
from milpverify.solvers.model import Array, FunctionTerm, Model

FUNCTIONS = ("exp", "log", "sqrt", "sin", "cos")
_PROBLEM: Final = 1
_SOLVING: Final = 9
"""SCIP's numbers of the stage in which a model can be changed, and of the one in which it is solved."""


class ScipHost(Host):
    """A `pyscipopt.Model`."""

    name = "SCIP"
    capabilities = frozenset({Capability.LINEAR, Capability.INTEGER, Capability.QUADRATIC, Capability.FUNCTIONS})
    functions = frozenset(FUNCTIONS)

    def __init__(self, model: Any) -> None:
        self.model = model
        self._module: Any = importlib.import_module("pyscipopt.scip")

    def expression(self, given: object) -> Expression | None:
        module = self._module
        if isinstance(given, module.Variable):
            self._check([given])
            return Expression((given,), (1.0,))
        if not isinstance(given, module.Expr):
            return None
        terms = {key: value for key, value in given.terms.items() if value or len(key.vartuple) == 0}
        if any(len(key.vartuple) > 1 for key in terms):
            return None
        variables = tuple(key.vartuple[0] for key in terms if len(key.vartuple))
        self._check(variables)
        constant = sum(value for key, value in terms.items() if not len(key.vartuple))
        return Expression(variables, tuple(float(value) for key, value in terms.items() if len(key.vartuple)), float(constant))

    @cached_property
    def _own(self) -> frozenset[int]:
        """The model's variables when it is first asked."""
        return frozenset(v.ptr() for v in self.model.getVars())

    def _check(self, variables: Sequence[Any]) -> None:
        for v in variables:
            if v.ptr() not in self._own:
                raise InvalidInput(f"the variable {v.name} is not one of this SCIP model's own (original) variables")

    def key(self, variable: Any) -> int:
        return int(variable.ptr())

    def label(self, variable: Any) -> str:
        return str(variable.name)

    def names(self) -> list[str]:
        return [v.name for v in self.model.getVars()]

    def ranges(self, variables: Sequence[Any]) -> tuple[Array, Array]:
        low, high = ([getattr(v, end)() for v in variables] for end in ("getLbOriginal", "getUbOriginal"))
        return finite_or_infinite(low), finite_or_infinite(high)

    def restrict(self, variable: Any, lower: float, upper: float) -> None:
        self.model.chgVarLb(variable, lower)
        self.model.chgVarUb(variable, upper)

    def begin(self) -> None:
        stage = self.model.getStage()
        if stage == _SOLVING and self.model.getStatus() == "unknown":
            raise InvalidInput("the SCIP model is being solved: it cannot be changed from within")
        if stage != _PROBLEM:
            self.model.freeTransform()

    def add(self, model: Model, given: Mapping[int, Any], name: Callable[[str, int], str]) -> Added:
        added = Added()
        for j in range(model.num_variables):
            if j not in given:
                kind = "I" if model.integer[j] else "C"
                added.variables[j] = self.model.addVar(name("v", j), lb=float(model.lower[j]), ub=float(model.upper[j]), vtype=kind)
        all_variables = [given[j] if j in given else added.variables[j] for j in range(model.num_variables)]
        try:
            added.rows += add_rows(self.model, all_variables, model, name)
        except BaseException:
            self.delete([added])
            raise
        return added

    def users(self, variables: Sequence[Any], added: Sequence[Added]) -> str | None:
        wanted = {v.ptr() for v in variables}
        own = {id_of(row) for part in added for row in part.rows}
        for row in self.model.getConss(transformed=False):
            if id_of(row) not in own and any(v.ptr() in wanted for v in self.model.getConsVars(row)):
                return str(row.name)
        return None

    def delete(self, added: Sequence[Added], later: Sequence[Any] = (), retire: bool = False) -> bool:
        for part in added:
            for row in part.rows:
                self.model.delCons(row)
            for variable in (*part.variables.values(), *part.more):
                self.model.delVar(variable)
        return True

    def values(self, variables: Sequence[Any]) -> Array:
        if not self.model.getNSols():
            raise no_solution("SCIP")
        best = self.model.getBestSol()
        return np.array([self.model.getSolVal(best, v) for v in variables], dtype=np.float64)


def id_of(row: Any) -> int:
    """What tells a constraint from others: its place in SCIP's memory."""
    return int(row.ptr())


def add_rows(scip: Any, variables: list[Any], model: Model, name: Callable[[str, int], str] | None = None) -> list[Any]:
    """Add a model's rows and functions, whose columns are there already; returns the constraints."""
    infinity = scip.infinity()

    def clip(value: float) -> float | None:
        return None if abs(value) >= infinity else float(value)

    def named(i: int) -> dict[str, str]:
        return {} if name is None else {"name": name("c", i)}

    made = [
        _add_row(scip, variables, model, i, clip(model.row_lower[i]), clip(model.row_upper[i]), named(i)) for i in range(model.num_rows)
    ]
    made += [_add_function(scip, variables, model, f, named(model.num_rows + k)) for k, f in enumerate(model.functions)]
    return [row for row in made if row is not None]


def _add_row(
    scip: Any, variables: list[Any], model: Model, i: int, lower: float | None, upper: float | None, named: dict[str, str]
) -> Any | None:
    """Add one row: coefficient by coefficient, since expressions of thousands of terms take far longer to build, or from its terms."""
    module: Any = importlib.import_module("pyscipopt.scip")
    row_type = module.ExprCons
    columns, values = model.row(i)
    first, second, products = (part.tolist() for part in model.products(i))
    if lower is None and upper is None:
        return None
    if products:
        terms: dict[Any, float] = {}
        for key, value in [
            *((module.Term(variables[j]), value) for j, value in zip(columns.tolist(), values.tolist(), strict=True)),
            *((module.Term(variables[j], variables[k]), value) for j, k, value in zip(first, second, products, strict=True)),
        ]:
            terms[key] = terms.get(key, 0.0) + value
        return scip.addCons(row_type(module.Expr(terms), lower, upper), **named)
    if not len(columns):
        if (lower or 0.0) > 0.0 or (upper or 0.0) < 0.0:  # a row without entries is true or false
            return scip.addCons(0.0 * variables[0] >= 1.0, **named)
        return None
    row = scip.addCons(row_type(float(values[0]) * variables[columns[0]], lower, upper), **named)
    for j, value in zip(columns[1:].tolist(), values[1:].tolist(), strict=True):
        scip.addConsCoeff(row, variables[j], value)
    return row


def _add_function(scip: Any, variables: list[Any], model: Model, function: FunctionTerm, named: dict[str, str]) -> Any:
    """Add (f(centre + unit v[argument]) - c) / u = v[result], in units of the result."""
    pyscipopt: Any = importlib.import_module("pyscipopt")
    module: Any = importlib.import_module("pyscipopt.scip")
    (c, u), (centre, unit) = function.result_scale, function.argument_scale
    low, high = (centre + unit * float(end[function.argument]) for end in (model.lower, model.upper))
    native: dict[str, Callable[[Any], Any]] = {name: getattr(pyscipopt, name) for name in FUNCTIONS}
    x = module.buildGenExprObj(centre + unit * variables[function.argument])  # a tree: polynomials would be expanded
    value = expression(function.term, x, low, high, {**native, "abs": abs}, f"SCIP cannot take {function.name}")
    result, weight = variables[function.result], function.weight
    row = value * (weight / u) - (result if weight == 1.0 else weight * result)
    return scip.addCons(module.ExprCons(row, weight * c / u, weight * c / u), **named)
