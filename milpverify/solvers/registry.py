"""The solvers by name: the one door to the adapters, which are imported on first use."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from milpverify.errors import InvalidInput, SolverUnavailable
from milpverify.solvers.base import Capability, Limits, OnProgress, Solver
from milpverify.solvers.hosts.base import Host
from milpverify.solvers.model import Model, SmtScript, Sweep
from milpverify.solvers.names import SOLVERS, is_own

_HOSTS = {
    "pyscipopt": ("Model", "milpverify.solvers.hosts.scip", "ScipHost"),
    "gurobipy": ("Model", "milpverify.solvers.hosts.gurobi", "GurobiHost"),
    "highspy": ("Highs", "milpverify.solvers.hosts.highs", "HighsHost"),
}
FALLBACK = "scip"  # takes over what another solver's licence does not cover
SWEEPS = "highs"  # has sweeps, whoever has the rest
SECOND = "scip"


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

    Args:
        name: one of `SOLVERS`, or "module:Class", a user's own (`names.is_own`).

    Raises:
        InvalidInput: there is no solver of that name, or it is no adapter that can be made.
    """
    if is_own(name):
        return _own(name)
    if name not in SOLVERS:
        raise InvalidInput(
            f"there is no solver {name!r}: choose one of {', '.join(SOLVERS)}, or name an adapter of your own, 'module:Class'"
        )
    solver: Solver[Any, Any] = getattr(importlib.import_module(f"milpverify.solvers.{name}"), SOLVERS[name].adapter)()
    return solver


def _own(name: str) -> Solver[Any, Any]:
    module, _, adapter = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), adapter)
        solver: object = found() if isinstance(found, type) and issubclass(found, Solver) else None
    except Exception as error:
        said = f"{error}" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise InvalidInput(f"there is no solver {name!r}: {said}") from error
    if not isinstance(solver, Solver):
        raise InvalidInput(f"{name!r} is no adapter of a solver: derive a class from milpverify.solvers.base.Solver")
    if not isinstance(getattr(solver, "capabilities", None), frozenset):
        raise InvalidInput(f"{name!r} does not say what it takes: its `capabilities` are a frozenset of Capability")
    return solver


def host_of(model: object) -> Host:
    """A user's own model as something to be added to.

    Raises:
        InvalidInput: it is a model of none of the solvers.
    """
    for base in type(model).__mro__:
        name, module, host = _HOSTS.get(base.__module__.split(".")[0], ("", "", ""))
        if base.__name__ == name:
            found: Host = getattr(importlib.import_module(module), host)(model)
            return found
    raise InvalidInput(f"a model is a pyscipopt.Model, a gurobipy.Model or a highspy.Highs, not a {type(model).__name__}")


def _able(name: str, model: Model | Sweep | SmtScript) -> Solver[Any, Any]:
    """The adapter of a solver, which has all that the model needs."""
    solver = load(name)
    if missing := model.required - solver.capabilities:
        raise SolverUnavailable(f"{name} cannot take this model: it lacks {', '.join(sorted(c.value for c in missing))}")
    return solver


def solve(name: str, model: Model | Sweep | SmtScript, limits: Limits, on_progress: OnProgress) -> Any:
    """Solve a model; where its word needs a second one's (`Solver.needs_second`), only what both prove is proved, once both have ended.

    Raises:
        InvalidInput: there is no solver of that name.
        SolverUnavailable: the library is missing, or its licence or capabilities do not cover the model.
    """
    solver = _able(name, model)
    own = deepcopy(model) if is_own(name) else model  # a user's adapter may work in it, and SCIP has to prove what was asked
    if not isinstance(own, Model) or not solver.needs_second(own):
        return solver.solve(own, limits, on_progress)
    found = solver.solve(own, limits, lambda progress: on_progress(replace(progress, dual_bound=-math.inf)))
    if not math.isfinite(found.dual_bound) or found.primal <= limits.primal_target:
        return replace(found, dual_bound=-math.inf)
    left = replace(limits, seconds=max(0.0, limits.seconds - found.seconds))
    second = _able(SECOND, model).solve(model if found.point is None else replace(model, start=found.point), left, on_progress)
    best = min((second, found), key=lambda outcome: float(outcome.primal))
    return replace(
        second,
        dual_bound=min(found.dual_bound, second.dual_bound),
        primal=best.primal,
        point=best.point,
        nodes=found.nodes + second.nodes,
        seconds=found.seconds + second.seconds,
        message=f"{found.message}, bound {found.dual_bound:.9g}; {second.message}, bound {second.dual_bound:.9g}",
    )


def available() -> list[SolverInfo]:
    """Every known solver: whether it is installed, licensed, and what it can do."""
    return [_describe(load(name)) for name in SOLVERS]


def _describe(solver: Solver[Any, Any]) -> SolverInfo:
    try:
        version = importlib.metadata.version(solver.package)
        note = solver.licence()
    except importlib.metadata.PackageNotFoundError:
        return SolverInfo(solver.name, "", False, solver.capabilities, f"not installed (pip install {solver.package})")
    except (ImportError, SolverUnavailable) as error:
        return SolverInfo(solver.name, version, False, solver.capabilities, str(error))
    return SolverInfo(solver.name, version, True, solver.capabilities, note)
