"""Models such as users have, of the three solvers, behind one face: what tests of embeddings do with them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

SOLVERS = ("scip", "gurobi", "highs")


class UserModel:
    """A model with inputs x within bounds, and what is asked of it."""

    def __init__(self, solver: str, bounds: Sequence[tuple[float, float]] = ((-1, 1), (-1, 1)), integer: Sequence[int] = ()) -> None:
        self.solver = solver
        if solver == "scip":
            self.model: Any = importlib.import_module("pyscipopt").Model()
            self.model.hideOutput()
        elif solver == "gurobi":
            gurobipy: Any = importlib.import_module("gurobipy")
            self.env = gurobipy.Env(params={"OutputFlag": 0})
            self.model = gurobipy.Model(env=self.env)
        else:
            highspy: Any = importlib.import_module("highspy")
            self.model = highspy.Highs()
            self.model.silent()
        self.x = [self.variable(low, high, f"x{i}", i in integer) for i, (low, high) in enumerate(bounds)]

    def variable(self, low: float, high: float, name: str, integer: bool = False) -> Any:
        if self.solver == "scip":
            return self.model.addVar(name, lb=low, ub=high, vtype="I" if integer else "C")
        if self.solver == "gurobi":
            return self.model.addVar(lb=low, ub=high, name=name, vtype="I" if integer else "C")
        added = self.model.addIntegral(low, high) if integer else self.model.addVariable(low, high)
        self.model.passColName(added.index, name)
        return added

    def row(self, constraint: Any, name: str = "own") -> Any:
        match self.solver:
            case "scip":
                return self.model.addCons(constraint, name)
            case "gurobi":
                return self.model.addConstr(constraint, name)
        added = self.model.addConstr(constraint)
        self.model.passRowName(added.index, name)
        return added

    def unrow(self, row: Any) -> None:
        match self.solver:
            case "scip":
                self.model.freeTransform()
                self.model.delCons(row)
            case "gurobi":
                self.model.remove(row)
            case _:
                self.model.deleteRows(1, np.array([row.index], dtype=np.int32))

    def minimise(self, what: Any) -> float:
        match self.solver:
            case "scip":
                self.model.freeTransform()
                self.model.setObjective(what)
                self.model.optimize()
                return float(self.model.getObjVal())
            case "gurobi":
                self.model.setObjective(what)
                self.model.optimize()
                return float(self.model.ObjVal)
        self.model.minimize(what)
        return float(self.model.getObjectiveValue())

    def fix(self, values: Sequence[float]) -> None:
        self.bound([(float(v), float(v)) for v in values])

    def bound(self, bounds: Sequence[tuple[float, float]]) -> None:
        if self.solver == "scip":
            self.model.freeTransform()
        for variable, (low, high) in zip(self.x, bounds, strict=True):
            if self.solver == "scip":
                self.model.chgVarLb(variable, low)
                self.model.chgVarUb(variable, high)
            elif self.solver == "gurobi":
                variable.LB, variable.UB = low, high
            else:
                self.model.changeColBounds(variable.index, low, high)

    def text(self, folder: Path) -> list[str]:
        """The model as its solver writes it, in sorted lines, without what a SCIP model was once large."""
        path = folder / ("model.cip" if self.solver == "scip" else "model.lp")
        if self.solver == "scip":
            self.model.freeTransform()
            self.model.writeProblem(str(path), verbose=False)
        elif self.solver == "gurobi":
            self.model.update()
            self.model.write(str(path))
        else:
            self.model.writeModel(str(path))
        return sorted(line for line in path.read_text().splitlines() if "maximal" not in line)

    def size(self) -> tuple[int, int]:
        """Variables and constraints."""
        match self.solver:
            case "scip":
                return self.model.getNVars(transformed=False), self.model.getNConss(transformed=False)
            case "gurobi":
                self.model.update()
                return self.model.NumVars, self.model.NumConstrs + self.model.NumQConstrs + self.model.NumGenConstrs
        return self.model.getNumCol(), self.model.getNumRow()


def network(activation: type[nn.Module], seed: int = 0, nx: int = 2, width: int = 6, depth: int = 2, ny: int = 2) -> nn.Sequential:
    """A random network of some depth."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(nx, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, ny)).eval()


class MaxPooled(nn.Module):
    """A layer whose entries are pooled in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool, self.last = nn.Linear(2, 8), nn.MaxPool1d(2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.pool(self.first(x).reshape(-1, 1, 8)).reshape(-1, 4))


class Bilinear(nn.Module):
    """A product of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.a(x) * torch.relu(self.b(x)))


class Attention(nn.Module):
    """Two tokens that attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Linear(1, 2), nn.Linear(4, 2)
        self.q, self.k, self.v = (nn.Linear(2, 2) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embedding(x.reshape(-1, 2, 1))
        weights = torch.softmax(self.q(h) @ self.k(h).transpose(1, 2), -1)
        return self.last((weights @ self.v(h)).reshape(-1, 4))


def made(kind: type[nn.Module], seed: int = 1) -> nn.Module:
    """A random module of some class."""
    torch.manual_seed(seed)
    return kind().eval()


def value(net: nn.Module, x: Sequence[float]) -> np.ndarray:
    """What a module returns, in float64."""
    with torch.no_grad():
        found: np.ndarray = net.double()(torch.tensor([list(x)], dtype=torch.float64)).reshape(-1).numpy()
    return found
