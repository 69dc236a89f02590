"""Answers and cases in words and columns, for the command line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from milpverify.console import columns

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.dispatch.result import Checked
    from milpverify.acopf.result import Bounds, Outcome


def summary(found: Outcome) -> None:
    """The answer in words, and the worst constraint of every kind, on standard error."""
    from rich.console import Console
    from rich.table import Table

    from milpverify.acopf.dispatch.result import Checked
    from milpverify.acopf.result import TOLERANCE

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = 140
    for text in (found.headline, *(f"  {detail}" for detail in found.details)):
        console.print(text, markup=False, soft_wrap=True)
    if isinstance(found, Checked):
        console.print(found.table(worst=12), markup=False, soft_wrap=True)
        return
    worst = found.worst()
    if worst:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("least margin of", "where", "unit", "value", "limits", "margin", "proved range"):
            table.add_column(name, justify="right" if name in ("value", "margin") else "left", no_wrap=True)
        for one in worst:
            style = "red" if one.margin < -TOLERANCE else ""
            numbers = (f"{one.value:.6g}", between(one.lower, one.upper), f"{one.margin:.3g}", between(*one.proved))
            table.add_row(one.kind, one.element, one.unit, *numbers, style=style)
        console.print(table)


def between(lower: float, upper: float) -> str:
    """A range in few digits, "-" where it is no limit."""
    if math.isinf(lower) and math.isinf(upper):
        return "-"
    if math.isinf(lower):
        return f"<= {upper:.5g}"
    return f">= {lower:.5g}" if math.isinf(upper) else f"{lower:.5g} .. {upper:.5g}"


def described(case: Case) -> str:
    """What a case holds, as columns."""
    import numpy as np

    bus, br, gen = case.buses, case.branches, case.generators
    limited, turned = np.isfinite(br.rate), np.isfinite(br.angmin) | np.isfinite(br.angmax)
    loaded, shunts = (bus.pd != 0) | (bus.qd != 0), (bus.gs != 0) | (bus.bs != 0)

    def span(lower: Array, upper: Array) -> str:
        return between(float(lower.min()), float(upper.max())) if len(lower) else "-"

    pd, qd = math.fsum(bus.pd.tolist()), math.fsum(bus.qd.tolist())
    rows = [
        ("what", "number", "from .. to, or sum", "unit"),
        ("buses", len(bus), f"reference {int(bus.number[case.reference])}", ""),
        ("  voltage limits", len(bus), span(bus.vmin, bus.vmax), "p.u."),
        ("  active load", int(loaded.sum()), f"{pd:.6g}", f"p.u. of {case.base_mva:g} MVA"),
        ("  reactive load", int(loaded.sum()), f"{qd:.6g}", "p.u."),
        ("  shunts", int(shunts.sum()), "", ""),
        ("branches", len(br), "", ""),
        ("  transformers", int(((br.tap != 1) | (br.shift != 0)).sum()), "", ""),
        ("  phase shifters", int((br.shift != 0).sum()), span(br.shift[br.shift != 0], br.shift[br.shift != 0]), "rad"),
        ("  flow limits, |S| at both ends", int(limited.sum()), span(br.rate[limited], br.rate[limited]), "p.u."),
        ("  angle limits", int(turned.sum()), span(br.angmin[turned], br.angmax[turned]), "rad"),
        ("generators", len(gen), "", ""),
        ("  active limits", len(gen), span(gen.pmin, gen.pmax), "p.u."),
        ("  reactive limits", len(gen), span(gen.qmin, gen.qmax), "p.u."),
        ("  quadratic costs", int((gen.c2 != 0).sum()), "", "$/h"),
        ("  linear costs", int(((gen.c2 == 0) & (gen.c1 != 0)).sum()), "", "$/h"),
    ]
    return f"{case.name}\n\n{columns(rows)}"


def why_no_proof(found: Outcome) -> str:
    """For those who asked for one."""
    from milpverify.acopf.result import Feasibility, Verdict
    from milpverify.result import Trust

    if isinstance(found, Feasibility) and found.verdict is Verdict.FEASIBLE:
        return "a feasible answer rests on its point, which --json holds"
    return "a solver's word has no proof that can be rechecked" if found.trust is Trust.SOLVER else "nothing was proved"


def first_line(found: Outcome) -> str:
    """The answer: a word, or a word and the bounds that are proved or attained."""
    from milpverify.acopf.dispatch.result import Checked
    from milpverify.acopf.result import Bounds, Cost, Feasibility

    if isinstance(found, Checked):
        return _margins(found)
    if isinstance(found, Feasibility):
        return found.verdict.value
    assert isinstance(found, Bounds)
    return " ".join(("cost" if isinstance(found, Cost) else "loadability", *_bounds(found)))


def _margins(found: Checked) -> str:
    """The verdict and the least margins, rounded outwards."""
    worst, attacked = found.worst_margin, found.attacked_margin
    least = -math.inf if worst is None else worst.certified
    return f"{found.verdict.value} {_rounded(least, up=False)} {_rounded(math.inf if attacked is None else attacked.attacked, up=True)}"


def _bounds(found: Bounds) -> tuple[str, str, str]:
    return _rounded(found.lower, up=False), _rounded(found.upper, up=True), f"{found.gap:.3g}"


def _rounded(value: float, up: bool) -> str:
    """Ten digits that are not below (`up`) or not above the value, so that what is printed holds as well."""
    if not math.isfinite(value):
        return str(value)
    from decimal import ROUND_CEILING, ROUND_FLOOR, Context

    return str(Context(prec=10, rounding=ROUND_CEILING if up else ROUND_FLOOR).create_decimal(value))
