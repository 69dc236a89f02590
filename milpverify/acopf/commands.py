"""The command line for power networks: `milpverify acopf feasibility`, `cost`, `loadability`, `recheck`, `info`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from milpverify.config import Deadline
from milpverify.console import Debug, Json, Quiet, Timeout, answer, columns, live, number, remark, reported
from milpverify.outside.ending import ending
from milpverify.outside.files import check_writable, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.result import Bounds, Outcome
    from milpverify.events import Event

    OnEvent = Callable[[Event], None] | None

LATE = 2.0
"""Seconds after the limit, or a signal, that a run may take to conclude."""

app = typer.Typer(help="Questions about AC power networks, answered with proofs: operating points, costs, load limits.")

CaseFile = Annotated[Path, typer.Argument(metavar="CASE.m", exists=True, dir_okay=False, help="The network, a MATPOWER case.")]
Scale = Annotated[float, typer.Option(metavar="X", callback=number, help="Every active and reactive load times X.")]
Gap = Annotated[float, typer.Option(min=0.0, metavar="G", callback=number, help="The relative gap between the bounds that will do.")]
Solver = Annotated[Literal["highs", "scip", "gurobi"], typer.Option(help="highs: linear programs; others: products as well, on trust.")]
Proof = Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the proof, for `recheck`.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Draw the network (.png, .svg, .pdf).")]


@dataclass(frozen=True)
class _Output:
    """Where a result goes, besides standard output."""

    json: Path | None
    proof: Path | None
    plot: Path | None
    quiet: bool
    debug: bool

    def check(self, case: Path) -> None:
        """Refuse before the work what cannot be written after it."""
        for path in (self.json, self.proof, self.plot):
            check_writable(path, [case])
        if self.plot is not None:
            from milpverify.pictures import check

            check(self.plot)

    def write(self, found: Outcome) -> None:
        """The files."""
        if self.json is not None:
            write_atomically(self.json, found.to_json() + "\n")
        if self.proof is not None and found.proof is not None:
            found.proof.save(self.proof)
        if self.plot is not None:
            from milpverify.acopf.plots import draw

            draw(found, self.plot)

    def summarize(self, found: Outcome) -> None:
        """The answer in words, on standard error."""
        if not self.quiet:
            _summary(found)
            if self.proof is not None and found.proof is None:
                remark(f"{self.proof} was not written: {_why_no_proof(found)}")


def _answer(file: Path, output: _Output, timeout: float | None, ask: Callable[[Case, Deadline, OnEvent], Outcome]) -> None:
    """Load, ask, print the answer, write the rest."""
    deadline = Deadline(math.inf if timeout is None else timeout, began=ending.began)
    with ending.after(deadline, LATE, LATE), reported(output.debug):
        output.check(file)
        with live(deadline, output.quiet) as on_event:
            from milpverify.acopf.matpower import load_case

            found = ask(load_case(file), deadline, on_event)
        try:
            answer(_line(found))
        finally:
            output.write(found)
        output.summarize(found)


@app.command()
def feasibility(
    case: CaseFile,
    load_scale: Scale = 1.0,
    load_box: Annotated[
        float, typer.Option(min=0.0, metavar="W", callback=number, help="Every load within this share of itself; needs --quantifier.")
    ] = 0.0,
    quantifier: Annotated[
        Literal["exists"] | None, typer.Option(help="What is asked of a box of loads: exists: is any of them feasible?")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, metavar="T", callback=number, help="The violation that an operating point may have, p.u. and rad.")
    ] = 1e-6,
    timeout: Timeout = None,
    solver: Solver = "highs",
    json: Json = None,
    proof: Proof = None,
    plot: Plot = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Decide whether the network has an operating point within all limits.

    The first line of standard output is `feasible`, `infeasible` or `unknown`.
    """

    def ask(loaded: Case, deadline: Deadline, on_event: OnEvent) -> Outcome:
        from milpverify.acopf.loads import Loads

        loads = Loads(load_scale, load_box)
        from milpverify.acopf.feasibility import check_feasibility

        return check_feasibility(
            loaded, loads=loads, quantifier=quantifier, tolerance=tolerance, solver=solver, deadline=deadline, on_event=on_event
        )

    if load_box and quantifier is None:
        raise typer.BadParameter("--load-box needs --quantifier exists: a box holds many loads")
    _answer(case, _Output(json, proof, plot, quiet, debug), timeout, ask)


@app.command()
def cost(
    case: CaseFile,
    load_scale: Scale = 1.0,
    gap: Gap = 1e-4,
    timeout: Timeout = None,
    solver: Solver = "highs",
    json: Json = None,
    proof: Proof = None,
    plot: Plot = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Bound the least cost of operation.

    The first line of standard output is `cost LOWER UPPER GAP`: the bounds in $/h, rounded outwards, and (UPPER - LOWER) / UPPER.
    """

    def ask(loaded: Case, deadline: Deadline, on_event: OnEvent) -> Outcome:
        from milpverify.acopf.loads import Loads

        loads = Loads(load_scale)
        from milpverify.acopf.cost import certify_cost

        return certify_cost(loaded, loads=loads, gap=gap, solver=solver, deadline=deadline, on_event=on_event)

    _answer(case, _Output(json, proof, plot, quiet, debug), timeout, ask)


@app.command()
def loadability(
    case: CaseFile,
    gap: Gap = 1e-4,
    timeout: Timeout = None,
    solver: Solver = "highs",
    json: Json = None,
    proof: Proof = None,
    plot: Plot = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Bound the factor by which all loads can grow together.

    The first line of standard output is `loadability LOWER UPPER GAP`: the bounds of the factor, rounded outwards, and
    (UPPER - LOWER) / UPPER.
    """

    def ask(loaded: Case, deadline: Deadline, on_event: OnEvent) -> Outcome:
        from milpverify.acopf.loadability import max_loadability

        return max_loadability(loaded, gap=gap, solver=solver, deadline=deadline, on_event=on_event)

    _answer(case, _Output(json, proof, plot, quiet, debug), timeout, ask)


@app.command()
def recheck(
    case: CaseFile,
    proof: Annotated[Path, typer.Argument(metavar="PROOF.json", exists=True, dir_okay=False, help="What --proof has written.")],
    load_scale: Annotated[
        float | None, typer.Option(metavar="X", callback=number, help="Check it for these loads, whichever the proof names.")
    ] = None,
    load_box: Annotated[float | None, typer.Option(min=0.0, metavar="W", callback=number, help="The same, for a box of loads.")] = None,
    debug: Debug = False,
) -> None:
    """Check a proof against the case in exact arithmetic, without any solver.

    The first line of standard output is `accepted` or `rejected`; a second one says what is proved, or what fails.
    """
    with reported(debug):
        from milpverify.acopf.loads import Loads
        from milpverify.acopf.matpower import load_case
        from milpverify.acopf.proving.proof import Proof
        from milpverify.acopf.proving.recheck import recheck as check

        loads = None if load_scale is None and load_box is None else Loads(1.0 if load_scale is None else load_scale, load_box or 0.0)
        answer(str(check(load_case(case), Proof.load(proof), loads)))


@app.command()
def info(case: CaseFile, debug: Debug = False) -> None:
    """Show what was read: counts, loads, limits and costs, with their units."""
    with reported(debug):
        from milpverify.acopf.matpower import load_case

        answer(_described(load_case(case)))


def _why_no_proof(found: Outcome) -> str:
    """For those who asked for one."""
    from milpverify.acopf.result import Feasibility, Verdict
    from milpverify.result import Trust

    if isinstance(found, Feasibility) and found.verdict is Verdict.FEASIBLE:
        return "a feasible answer rests on its point, which --json holds"
    return "a solver's word has no proof that can be rechecked" if found.trust is Trust.SOLVER else "nothing was proved"


def _line(found: Outcome) -> str:
    """The answer: a word, or a word and the bounds that are proved or attained."""
    from milpverify.acopf.result import Bounds, Cost, Feasibility

    if isinstance(found, Feasibility):
        return found.verdict.value
    assert isinstance(found, Bounds)
    return " ".join(("cost" if isinstance(found, Cost) else "loadability", *_bounds(found)))


def _bounds(found: Bounds) -> tuple[str, str, str]:
    return _rounded(found.lower, up=False), _rounded(found.upper, up=True), f"{found.gap:.3g}"


def _rounded(value: float, up: bool) -> str:
    """Ten digits that are not below (`up`) or not above the value, so that what is printed holds as well."""
    if not math.isfinite(value):
        return str(value)
    from decimal import ROUND_CEILING, ROUND_FLOOR, Context

    return str(Context(prec=10, rounding=ROUND_CEILING if up else ROUND_FLOOR).create_decimal(value))


def _summary(found: Outcome) -> None:
    """The answer in words, and the worst constraint of every kind, on standard error."""
    from rich.console import Console
    from rich.table import Table

    from milpverify.acopf.result import TOLERANCE

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = 140
    for text in (found.headline, *(f"  {detail}" for detail in found.details)):
        console.print(text, markup=False, soft_wrap=True)
    worst = found.worst()
    if worst:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("least margin of", "where", "unit", "value", "limits", "margin", "proved range"):
            table.add_column(name, justify="right" if name in ("value", "margin") else "left", no_wrap=True)
        for one in worst:
            style = "red" if one.margin < -TOLERANCE else ""
            numbers = (f"{one.value:.6g}", _between(one.lower, one.upper), f"{one.margin:.3g}", _between(*one.proved))
            table.add_row(one.kind, one.element, one.unit, *numbers, style=style)
        console.print(table)


def _between(lower: float, upper: float) -> str:
    """A range in few digits, "-" where it is no limit."""
    if math.isinf(lower) and math.isinf(upper):
        return "-"
    if math.isinf(lower):
        return f"<= {upper:.5g}"
    return f">= {lower:.5g}" if math.isinf(upper) else f"{lower:.5g} .. {upper:.5g}"


def _described(case: Case) -> str:
    """What a case holds, as columns."""
    import numpy as np

    bus, br, gen = case.buses, case.branches, case.generators
    limited, turned = np.isfinite(br.rate), np.isfinite(br.angmin) | np.isfinite(br.angmax)
    loaded, shunts = (bus.pd != 0) | (bus.qd != 0), (bus.gs != 0) | (bus.bs != 0)

    def span(lower: Array, upper: Array) -> str:
        return _between(float(lower.min()), float(upper.max())) if len(lower) else "-"

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
