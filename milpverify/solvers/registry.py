"""The solvers by name: the one door to the adapters, which are imported on first use."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from typing import Any

from milpverify.encode.model import Capability
from milpverify.errors import InvalidInput, SolverUnavailable
from milpverify.solvers.base import Solver

_ADAPTERS = {
    "scip": ("milpverify.solvers.scip", "Scip"),
    "highs": ("milpverify.solvers.highs", "Highs"),
    "gurobi": ("milpverify.solvers.gurobi", "Gurobi"),
    "z3": ("milpverify.solvers.z3", "Z3"),
}
MILP_SOLVERS = ("scip", "highs", "gurobi")
FALLBACK = "scip"  # takes over what another solver's licence does not cover


@dataclass(frozen=True)
class SolverInfo:
    """One line of `milpverify solvers`: `version` is empty where it is not installed, `note` then says so."""

    name: str
    version: str
    licensed: bool
    capabilities: frozenset[Capability]
    note: str


def load(name: str) -> Solver[Any, Any]:
    """The adapter of a solver; the solver itself is imported when it first solves.

    Raises:
        InvalidInput: there is no solver of that name.
    """
    if name not in _ADAPTERS:
        raise InvalidInput(f"there is no solver {name!r}: choose one of {', '.join(_ADAPTERS)}")
    module, adapter = _ADAPTERS[name]
    solver: Solver[Any, Any] = getattr(importlib.import_module(module), adapter)()
    return solver


def available() -> list[SolverInfo]:
    """Every known solver: whether it is installed, licensed, and what it can do."""
    return [_describe(load(name)) for name in _ADAPTERS]


def _describe(solver: Solver[Any, Any]) -> SolverInfo:
    try:
        version = importlib.metadata.version(solver.package)
        note = solver.licence()
    except importlib.metadata.PackageNotFoundError:
        return SolverInfo(solver.name, "", False, solver.capabilities, f"not installed (pip install {solver.package})")
    except (ImportError, SolverUnavailable) as error:
        return SolverInfo(solver.name, version, False, solver.capabilities, str(error))
    return SolverInfo(solver.name, version, True, solver.capabilities, note)
