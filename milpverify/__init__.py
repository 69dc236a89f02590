"""milpverify: an exact verifier for neural networks.

    import milpverify as mv

    result = mv.verify(mv.load("net.onnx", "property.vnnlib"), timeout=60)
    result = mv.verify(mv.robustness(torch_module, x0, label=3, eps=0.03), timeout=60)
    print(result.verdict, result.trust, result.lower_bound)

Questions about power networks are in `mv.acopf`.
The public names below are loaded on first use: importing the package loads neither torch nor a solver.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from milpverify.version import __version__

if TYPE_CHECKING:
    from milpverify import acopf
    from milpverify.balls.ball import Ball
    from milpverify.bounding import bounds
    from milpverify.compare.comparing import compare
    from milpverify.compare.comparison import Comparison
    from milpverify.compare.sources import Instance
    from milpverify.compare.tools import Tool
    from milpverify.config import Deadline, Milp, Options, SearchOptions
    from milpverify.embed import Deviation, Embedding, embed
    from milpverify.errors import (
        Contradiction,
        InvalidInput,
        InvalidModel,
        InvalidProperty,
        MilpverifyError,
        OutOfTime,
        SolverUnavailable,
        UnsupportedOperator,
    )
    from milpverify.frontends.load import load
    from milpverify.frontends.problem import Problem, robustness
    from milpverify.frontends.torch.activation import Activation
    from milpverify.functions.catalogue import register_nonlinearity
    from milpverify.graph import Graph, Node
    from milpverify.many.verifying import verify_many
    from milpverify.optimize import Optimum, maximize, minimize
    from milpverify.radius.result import Radius
    from milpverify.radius.robustness import robustness_radii, robustness_radius
    from milpverify.result import Counterexample, Event, Phase, Reason, Result, Trust, Verdict
    from milpverify.spec import Box, Disjunct, Rows
    from milpverify.verify import verify

__all__ = [
    "load",
    "robustness",
    "verify",
    "verify_many",
    "bounds",
    "compare",
    "Comparison",
    "Instance",
    "Tool",
    "minimize",
    "maximize",
    "Optimum",
    "robustness_radius",
    "robustness_radii",
    "Radius",
    "embed",
    "Embedding",
    "Deviation",
    "register_nonlinearity",
    "Activation",
    "Ball",
    "Box",
    "Rows",
    "Disjunct",
    "Problem",
    "Graph",
    "Node",
    "Milp",
    "Options",
    "SearchOptions",
    "Deadline",
    "Event",
    "Result",
    "Verdict",
    "Reason",
    "Trust",
    "Counterexample",
    "Phase",
    "MilpverifyError",
    "InvalidInput",
    "InvalidModel",
    "InvalidProperty",
    "UnsupportedOperator",
    "SolverUnavailable",
    "OutOfTime",
    "Contradiction",
    "acopf",
    "__version__",
]

_HOMES = {
    "load": "frontends.load",
    "verify": "verify",
    "verify_many": "many.verifying",
    "bounds": "bounding",
    "compare": "compare.comparing",
    "Comparison": "compare.comparison",
    "Instance": "compare.sources",
    "Tool": "compare.tools",
    **dict.fromkeys(("minimize", "maximize", "Optimum"), "optimize"),
    **dict.fromkeys(("robustness_radius", "robustness_radii"), "radius.robustness"),
    "Radius": "radius.result",
    **dict.fromkeys(("embed", "Embedding", "Deviation"), "embed"),
    "register_nonlinearity": "functions.catalogue",
    "Activation": "frontends.torch.activation",
    **dict.fromkeys(("Problem", "robustness"), "frontends.problem"),
    "Ball": "balls.ball",
    **dict.fromkeys(("Box", "Rows", "Disjunct"), "spec"),
    **dict.fromkeys(("Graph", "Node"), "graph"),
    **dict.fromkeys(("Milp", "Options", "SearchOptions", "Deadline"), "config"),
    "Event": "result",
    **dict.fromkeys(("Result", "Verdict", "Reason", "Trust", "Counterexample", "Phase"), "result"),
    **dict.fromkeys(
        (
            "MilpverifyError",
            "InvalidInput",
            "InvalidModel",
            "InvalidProperty",
            "UnsupportedOperator",
            "SolverUnavailable",
            "OutOfTime",
            "Contradiction",
        ),
        "errors",
    ),
}


def __getattr__(name: str) -> object:
    if name == "acopf":
        return import_module(f"{__name__}.acopf")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `verify` the public function: loading the module of this name would put the module there."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
