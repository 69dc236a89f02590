"""HiGHS's models: rows with integers.

HiGHS numbers variables and rows, and those behind a deleted one move up. So what embeddings added is known by model and renumbered, and
what a user added behind it has to be handed in.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from milpverify.errors import InvalidInput, SolverUnavailable
from milpverify.solvers.base import Capability
from milpverify.solvers.hosts.base import Added, Expression, Host, finite_or_infinite, no_solution
from milpverify.solvers.model import Array, Model

_numbered: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()
"""Per model, the variables and rows that embeddings hold."""


class HighsHost(Host):
    """A `highspy.Highs`."""

    name = "HiGHS"
    capabilities = frozenset({Capability.LINEAR, Capability.INTEGER})
    functions = frozenset()

    def __init__(self, model: Any) -> None:
        self.model = model
        self._module: Any = importlib.import_module("highspy.highs")
        self._known = _numbered.setdefault(model, [])

    def expression(self, given: object) -> Expression | None:
        module = self._module
        if isinstance(given, module.highs_var):
            if given.highs != self.model or not 0 <= given.index < self.model.getNumCol():
                raise InvalidInput("an input is a variable of another HiGHS model, or was deleted from this one")
            self._watch([given])
            return Expression((given,), (1.0,))
        if not isinstance(given, module.highs_linear_expression) or given.bounds is not None:
            return None
        terms: dict[int, float] = {}
        for index, value in zip(given.idxs, given.vals, strict=True):
            terms[index] = terms.get(index, 0.0) + value
        kept = {index: value for index, value in terms.items() if value}
        if any(not 0 <= index < self.model.getNumCol() for index in kept):
            raise InvalidInput("an input has a variable of another HiGHS model, or one that was deleted from this one")
        variables = [module.highs_var(index, self.model) for index in kept]
        self._watch(variables)
        return Expression(tuple(variables), tuple(map(float, kept.values())), float(given.constant or 0.0))

    def _watch(self, handles: Iterable[Any]) -> None:
        known = set(map(id, self._known))
        self._known.extend(handle for handle in handles if id(handle) not in known)

    def key(self, variable: Any) -> int:
        return int(variable.index)

    def label(self, variable: Any) -> str:
        return str(self.model.getColName(variable.index)[1]) or f"column {variable.index}"

    def _row(self, i: int) -> str:
        return str(self.model.getRowName(i)[1]) or f"row {i}"

    def names(self) -> list[str]:
        return [str(self.model.getColName(j)[1]) for j in range(self.model.getNumCol())]

    def ranges(self, variables: Sequence[Any]) -> tuple[Array, Array]:
        found = [self.model.getCol(v.index) for v in variables]
        return finite_or_infinite([col[2] for col in found]), finite_or_infinite([col[3] for col in found])

    def restrict(self, variable: Any, lower: float, upper: float) -> None:
        self.model.changeColBounds(variable.index, lower, upper)

    def begin(self) -> None:
        pass

    def add(self, model: Model, given: Mapping[int, Any], name: Callable[[str, int], str]) -> Added:
        if model.required - self.capabilities:
            raise SolverUnavailable("HiGHS takes linear rows only")
        highs, module = self.model, self._module
        first, row = highs.getNumCol(), highs.getNumRow()
        columns = [j for j in range(model.num_variables) if j not in given]
        place = np.zeros(model.num_variables, dtype=np.int32)
        place[columns] = np.arange(first, first + len(columns))
        for j, variable in given.items():
            place[j] = variable.index
        if columns:
            highs.addVars(len(columns), model.lower[columns], model.upper[columns])
        whole = place[columns][model.integer[columns]].astype(np.int32)
        if len(whole):
            kinds = np.full(len(whole), int(importlib.import_module("highspy").HighsVarType.kInteger), dtype=np.uint8)
            highs.changeColsIntegrality(len(whole), whole, kinds)
        starts = model.row_start[:-1].astype(np.int32)
        if model.num_rows:
            highs.addRows(model.num_rows, model.row_lower, model.row_upper, len(model.column), starts, place[model.column], model.value)
        if highs.getNumCol() != first + len(columns) or highs.getNumRow() != row + model.num_rows:
            self.model.deleteRows(highs.getNumRow() - row, np.arange(row, highs.getNumRow(), dtype=np.int32))
            self.model.deleteCols(highs.getNumCol() - first, np.arange(first, highs.getNumCol(), dtype=np.int32))
            raise SolverUnavailable("HiGHS refuses the network's rows")
        for j in columns:
            highs.passColName(int(place[j]), name("v", j))
        for i in range(model.num_rows):
            highs.passRowName(row + i, name("c", i))
        added = Added({j: module.highs_var(int(place[j]), highs) for j in columns})
        added.rows = [module.highs_cons(row + i, highs) for i in range(model.num_rows)]
        self._watch([*added.variables.values(), *added.rows])
        return added

    def users(self, variables: Sequence[Any], added: Sequence[Added]) -> str | None:
        own = {row.index for part in added for row in part.rows}
        for v in variables:
            for i in self.model.getColEntries(v.index)[1].tolist():
                if i not in own:
                    return self._row(i)
        return None

    def delete(self, added: Sequence[Added], later: Sequence[Any] = (), retire: bool = False) -> bool:
        columns = sorted({v.index for part in added for v in (*part.variables.values(), *part.more)})
        rows = sorted({r.index for part in added for r in part.rows})
        handles = list({id(h): h for h in (*self._known, *self._flattened(later))}.values())
        kind = self._module.highs_cons
        behind = {False: columns, True: rows}
        ends = {False: self.model.getNumCol(), True: self.model.getNumRow()}
        for of_rows, gone in behind.items():
            numbers = {h.index for h in handles if isinstance(h, kind) is of_rows}
            unknown = [k for k in range(gone[0] if gone else ends[of_rows], ends[of_rows]) if k not in numbers]
            if unknown and retire:
                self._retire(columns, rows)
                return False
            if unknown:
                what = self._row(unknown[0]) if of_rows else self.label(self._module.highs_var(unknown[0], self.model))
                raise InvalidInput(f"{what} came after the network, and HiGHS would renumber it: hand in what came later, remove(*later)")
        if rows:
            self.model.deleteRows(len(rows), np.array(rows, dtype=np.int32))
        if columns:
            self.model.deleteCols(len(columns), np.array(columns, dtype=np.int32))
        dead: set[int] = set()
        for of_rows, gone in behind.items():
            for h in handles:
                if isinstance(h, kind) is of_rows:
                    before = int(np.searchsorted(gone, h.index))
                    if before < len(gone) and gone[before] == h.index:
                        h.index = -1
                        dead.add(id(h))
                    else:
                        h.index -= before
        self._known[:] = [h for h in self._known if id(h) not in dead]
        return True

    def _flattened(self, things: Any) -> Iterator[Any]:
        if isinstance(things, (self._module.highs_var, self._module.highs_cons)):
            yield things
        elif isinstance(things, Iterable):
            for thing in things.values() if isinstance(things, Mapping) else things:
                yield from self._flattened(thing)
        else:
            raise InvalidInput(f"what came later are variables and constraints, or collections of them, not a {type(things).__name__}")

    def _retire(self, columns: list[int], rows: list[int]) -> None:
        """Rows that hold anywhere, and variables fixed at 0, where they have to keep their numbers."""
        for i in rows:
            self.model.changeRowBounds(i, -math.inf, math.inf)
        for j in columns:
            self.model.changeColBounds(j, 0.0, 0.0)

    def values(self, variables: Sequence[Any]) -> Array:
        solution = self.model.getSolution()
        if not solution.value_valid:
            raise no_solution("HiGHS")
        found = np.array(solution.col_value, dtype=np.float64)
        return found[[v.index for v in variables]]
