"""AC optimal power flow: questions about a power network, answered with proofs.

    from milpverify import acopf

    case = acopf.load_case("case14.m")                                     # MATPOWER .m, a pypower dict, or a pandapower net
    acopf.check_feasibility(case, loads=acopf.scaled(1.1), timeout=60)     # is there an operating point?
    acopf.check_feasibility(case, loads=acopf.box(0.05), quantifier="exists")  # for any load within -+5 % of the case's?
    acopf.certify_cost(case, gap=1e-4, timeout=60)                         # the least cost, between proved bounds
    acopf.max_loadability(case, timeout=60)                                # by what factor all loads can grow
    acopf.draw(result, "network.png")

Everything is in per unit of the case's base and in radians; costs are in $/h. Import and questions load no torch: only `equations`,
which makes a computation graph of the power flow equations, does. The names below are loaded on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from milpverify.acopf.case import Case
    from milpverify.acopf.cost import certify_cost
    from milpverify.acopf.equations import equations
    from milpverify.acopf.feasibility import check_feasibility
    from milpverify.acopf.loadability import max_loadability
    from milpverify.acopf.loads import Loads, box, scaled
    from milpverify.acopf.matpower import load_case
    from milpverify.acopf.plots import draw, plot_margins
    from milpverify.acopf.points.existence import prove_existence
    from milpverify.acopf.points.judgement import Constraint
    from milpverify.acopf.points.point import Point, load_point
    from milpverify.acopf.proving.proof import Proof
    from milpverify.acopf.proving.recheck import recheck
    from milpverify.acopf.result import Cost, Feasibility, Loadability, Reason, Verdict

__all__ = [
    "load_case",
    "load_point",
    "check_feasibility",
    "certify_cost",
    "max_loadability",
    "recheck",
    "prove_existence",
    "equations",
    "draw",
    "plot_margins",
    "scaled",
    "box",
    "Loads",
    "Case",
    "Point",
    "Constraint",
    "Proof",
    "Verdict",
    "Reason",
    "Feasibility",
    "Cost",
    "Loadability",
]

_HOMES = {
    "load_case": "matpower",
    "Case": "case",
    **dict.fromkeys(("scaled", "box", "Loads"), "loads"),
    "check_feasibility": "feasibility",
    "certify_cost": "cost",
    "max_loadability": "loadability",
    "recheck": "proving.recheck",
    "Proof": "proving.proof",
    **dict.fromkeys(("load_point", "Point"), "points.point"),
    "Constraint": "points.judgement",
    **dict.fromkeys(("Verdict", "Reason", "Feasibility", "Cost", "Loadability"), "result"),
    "equations": "equations",
    "prove_existence": "points.existence",
    **dict.fromkeys(("draw", "plot_margins"), "plots"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `recheck` and `equations` the public functions: loading the modules of these names would put the modules there."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
