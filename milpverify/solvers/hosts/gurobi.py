"""Gurobi's models: rows, products and functions as gurobipy has them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np

from milpverify.errors import InvalidInput, SolverUnavailable
from milpverify.solvers.base import Capability
from milpverify.solvers.expressions import expression
from milpverify.solvers.hosts.base import Added, Expression, Host, finite_or_infinite, no_solution
from milpverify.solvers.model import Array, FunctionTerm, Model

FUNCTIONS = ("exp", "log", "sqrt", "sin", "cos", "tan", "tanh", "logistic")
OVER_LICENCE: Final = 10010
"""Gurobi's number of the error that a model is larger than the licence allows."""
_SMALL: Final = 2000
"""Variables or rows that the licence with the wheel allows; of the variables a tenth may be in nonlinear terms."""


class GurobiHost(Host):
    """A `gurobipy.Model`."""

    name = "Gurobi"
    capabilities = frozenset({Capability.LINEAR, Capability.INTEGER, Capability.QUADRATIC, Capability.FUNCTIONS})
    functions = frozenset(FUNCTIONS)

    def __init__(self, model: Any) -> None:
        self.model = model
        self._module: Any = importlib.import_module("gurobipy")
        model.update()

    def expression(self, given: object) -> Expression | None:
        gurobipy = self._module
        if isinstance(given, gurobipy.Var):
            self._check(given)
            return Expression((given,), (1.0,))
        if isinstance(given, (gurobipy.MLinExpr, gurobipy.MVar)) and given.size == 1:
            return self.expression(given.item())
        if not isinstance(given, gurobipy.LinExpr):
            return None
        terms: dict[int, tuple[Any, float]] = {}
        for k in range(given.size()):
            variable, value = given.getVar(k), given.getCoeff(k)
            self._check(variable)
            terms[variable.index] = variable, terms.get(variable.index, (variable, 0.0))[1] + value
        kept = [(v, c) for v, c in terms.values() if c]
        return Expression(tuple(v for v, _ in kept), tuple(c for _, c in kept), float(given.getConstant()))

    @cached_property
    def _own(self) -> list[Any]:
        """The model's variables when it is first asked."""
        return list(self.model.getVars())

    def _check(self, variable: Any) -> None:
        index, own = variable.index, self._own
        if not 0 <= index < len(own) or not own[index].sameAs(variable):
            raise InvalidInput("an input is a variable of another Gurobi model, or was removed from this one")

    def key(self, variable: Any) -> int:
        return int(variable.index)

    def label(self, variable: Any) -> str:
        return str(variable.VarName)

    def names(self) -> list[str]:
        return list(self.model.getAttr("VarName", self.model.getVars()))

    def ranges(self, variables: Sequence[Any]) -> tuple[Array, Array]:
        self.model.update()
        return finite_or_infinite([v.LB for v in variables]), finite_or_infinite([v.UB for v in variables])

    def restrict(self, variable: Any, lower: float, upper: float) -> None:
        variable.LB, variable.UB = lower, upper

    def begin(self) -> None:
        self.model.update()

    def add(self, model: Model, given: Mapping[int, Any], name: Callable[[str, int], str]) -> Added:
        columns = [j for j in range(model.num_variables) if j not in given]
        low, high, whole = (part[columns].tolist() for part in (model.lower, model.upper, model.integer))
        kinds = ["I" if flag else "C" for flag in whole]
        new = [
            self.model.addVar(lb=a, ub=b, vtype=kind, name=name("v", j)) for j, a, b, kind in zip(columns, low, high, kinds, strict=True)
        ]
        added = Added(dict(zip(columns, new, strict=True)))
        variables = [given[j] if j in given else added.variables[j] for j in range(model.num_variables)]
        try:
            added.rows, added.more = add_rows(self._module, self.model, variables, model, name)
            self.model.update()
            self._check_licence()
        except (self._module.GurobiError, SolverUnavailable) as error:
            self.model.update()
            self.delete([added])
            if isinstance(error, SolverUnavailable):
                raise
            raise SolverUnavailable(f"Gurobi: {error}") from error
        return added

    def _check_licence(self) -> None:
        """Refuse what is too large for a licence of limited size, which else shows when the model is solved."""
        m = self.model
        if max(m.NumVars, m.NumConstrs) <= _SMALL and not (m.NumQConstrs or m.NumGenConstrs):
            return
        probe = m.copy()
        probe.Params.OutputFlag, probe.Params.TimeLimit = 0, 0
        try:
            probe.optimize()
        except self._module.GurobiError as error:
            if error.errno != OVER_LICENCE:
                return  # whatever else is wrong with it is the user's to see
            size = f"{m.NumVars} variables, {m.NumConstrs} rows, {m.NumQConstrs} products, {m.NumGenConstrs} functions"
            raise SolverUnavailable(f"Gurobi: with the network the model ({size}) is too large for the licence") from error
        finally:
            probe.dispose()

    def users(self, variables: Sequence[Any], added: Sequence[Added]) -> str | None:
        """Linear and quadratic rows are read; what other constraints use shows in a copy, which Gurobi refuses to change."""
        self.model.update()
        kinds = self._module.Constr, self._module.QConstr, self._module.GenConstr
        own, products, general = ([row for part in added for row in part.rows if isinstance(row, kind)] for kind in kinds)
        places, names = {row.index for row in own}, {row.QCName for row in products}
        for v in variables:
            column = self.model.getCol(v)
            for k in range(column.size()):
                if column.getConstr(k).index not in places:
                    return str(column.getConstr(k).ConstrName)
        wanted = {v.index for v in variables}
        for row in self.model.getQConstrs():
            if row.QCName not in names:
                terms = self.model.getQCRow(row)
                linear = terms.getLinExpr()
                read = {linear.getVar(k).index for k in range(linear.size())}
                for k in range(terms.size()):
                    read |= {terms.getVar1(k).index, terms.getVar2(k).index}
                if read & wanted:
                    return str(row.QCName)
        if any(v.index in wanted for sos in self.model.getSOSs() for v in self.model.getSOS(sos)[1]):
            return "(an SOS)"
        gone = {row.GenConstrName for row in general}
        probe = self.model.copy()
        try:
            probe.remove([row for row in probe.getGenConstrs() if row.GenConstrName in gone])
            own_variables = probe.getVars()
            probe.remove([own_variables[k] for k in wanted])
            probe.update()
        except self._module.GurobiError:
            return "(a general one)"
        finally:
            probe.dispose()
        return None

    def delete(self, added: Sequence[Added], later: Sequence[Any] = (), retire: bool = False) -> bool:
        for part in added:
            self.model.remove(part.rows)
            self.model.remove([*part.variables.values(), *part.more])
        self.model.update()
        return True

    def values(self, variables: Sequence[Any]) -> Array:
        try:
            return np.array([v.X for v in variables], dtype=np.float64)
        except (AttributeError, self._module.GurobiError) as error:
            raise no_solution("Gurobi") from error


def add_rows(
    gurobipy: Any, gurobi: Any, variables: list[Any], model: Model, name: Callable[[str, int], str] | None = None
) -> tuple[list[Any], list[Any]]:
    """Add a model's rows and functions, whose columns are there already; returns the constraints, and the variables that they took."""
    made: list[Any] = []
    more: list[Any] = []
    for i in range(model.num_rows):
        columns, values = model.row(i)
        first, second, products = model.products(i)
        row = gurobipy.LinExpr(values.tolist(), [variables[j] for j in columns])
        add = gurobi.addQConstr if len(products) else gurobi.addLConstr
        if len(products):
            row = gurobipy.QuadExpr(row)
            row.addTerms(products.tolist(), [variables[j] for j in first], [variables[j] for j in second])
        lower, upper, label = model.row_lower[i], model.row_upper[i], "" if name is None else name("c", i)
        if lower == upper:
            made.append(add(row, "=", lower, name=label))
            continue
        if lower > -math.inf:
            made.append(add(row, ">", lower, name=label))
        if upper < math.inf:
            made.append(add(row, "<", upper, name=label if lower == -math.inf else label and label + "u"))
    for k, function in enumerate(model.functions):
        _add_function(gurobipy, gurobi, variables, model, function, "" if name is None else name("c", model.num_rows + k), made, more)
    return made, more


def _add_function(
    gurobipy: Any, gurobi: Any, variables: list[Any], model: Model, function: FunctionTerm, label: str, made: list[Any], more: list[Any]
) -> None:
    """Add v[result] = (f(centre + unit v[argument]) - c) / u, in units of the result."""
    names: Any = importlib.import_module("gurobipy.nlfunc")  # from version 12 on
    free = gurobipy.GRB.INFINITY

    def absolute(value: Any) -> Any:
        """A variable that is the absolute value of another one, which is the expression."""
        inner, outer = gurobi.addVar(lb=-free, name=label and label + "i"), gurobi.addVar(name=label and label + "o")
        more.extend((inner, outer))
        made.append(gurobi.addGenConstrNL(inner, value, name=label and label + "e"))
        made.append(gurobi.addGenConstrAbs(outer, inner, name=label and label + "a"))
        return outer.nl

    (c, u), (centre, unit) = function.result_scale, function.argument_scale
    low, high = (centre + unit * float(end[function.argument]) for end in (model.lower, model.upper))
    native = {name: getattr(names, name) for name in FUNCTIONS if hasattr(names, name)}
    x = centre + unit * variables[function.argument].nl
    value = expression(function.term, x, low, high, {**native, "abs": absolute}, f"Gurobi cannot take {function.name}")
    made.append(gurobi.addGenConstrNL(variables[function.result], (value - c) / u, name=label))
