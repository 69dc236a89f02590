"""AC optimal power flow: questions about a power network, answered with proofs.

    from milpverify import acopf

    case = acopf.load_case("case14.m")                                     # MATPOWER .m, a pypower dict, or a pandapower net
    acopf.check_feasibility(case, loads=acopf.scaled(1.1), timeout=60)     # is there an operating point?
    acopf.check_feasibility(case, loads=acopf.box(0.05), quantifier="exists")  # for any load within -+5 % of the case's?
    acopf.certify_cost(case, gap=1e-4, timeout=60)                         # the least cost, between proved bounds
    acopf.max_loadability(case, timeout=60)                                # by what factor all loads can grow
    acopf.check_dispatch(case, pg=pg, vm=vm, loads=acopf.box(0.02))        # does a dispatch hold for all loads of a box?
    acopf.check_dispatch(case, pg=pg, vm=vm, outages=["all"])              # and without any one branch?
    acopf.check_proxy(case, "proxy.onnx", loads=acopf.box(0.05), limits="after_power_flow")  # does what a network has learned?
    acopf.draw(result, "network.png")

Everything is in per unit of the case's base and in radians; costs are in $/h. Import and questions load no torch: only `equations`,
which makes a computation graph of the power flow equations, and questions about networks do. The names below are loaded on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from milpverify.acopf.case import Case
    from milpverify.acopf.cost import certify_cost
    from milpverify.acopf.dispatch.checking import check_dispatch
    from milpverify.acopf.dispatch.comparison import compare_dispatch
    from milpverify.acopf.dispatch.margin_plots import plot_certified
    from milpverify.acopf.dispatch.result import Checked, Dispatched, Margin, OutageRow, Outages
    from milpverify.acopf.dispatch.witness import Violation
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
    from milpverify.acopf.proxy.checking import check_proxy
    from milpverify.acopf.proxy.mapping import Entries
    from milpverify.acopf.result import Cost, Feasibility, Loadability, Reason, Verdict

__all__ = [
    "load_case",
    "load_point",
    "check_feasibility",
    "certify_cost",
    "max_loadability",
    "check_dispatch",
    "check_proxy",
    "compare_dispatch",
    "recheck",
    "prove_existence",
    "equations",
    "draw",
    "plot_margins",
    "plot_certified",
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
    "Checked",
    "Dispatched",
    "Margin",
    "Violation",
    "Outages",
    "OutageRow",
    "Entries",
]

_HOMES = {
    "load_case": "matpower",
    "Case": "case",
    **dict.fromkeys(("scaled", "box", "Loads"), "loads"),
    "check_feasibility": "feasibility",
    "certify_cost": "cost",
    "max_loadability": "loadability",
    "check_dispatch": "dispatch.checking",
    "compare_dispatch": "dispatch.comparison",
    "plot_certified": "dispatch.margin_plots",
    **dict.fromkeys(("Checked", "Dispatched", "Margin", "OutageRow", "Outages"), "dispatch.result"),
    "Violation": "dispatch.witness",
    "check_proxy": "proxy.checking",
    "Entries": "proxy.mapping",
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
