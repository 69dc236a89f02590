"""The command line for power networks: `milpverify acopf feasibility`, `cost`, `loadability`, `dispatch`, `proxy`, `recheck`, `info`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from milpverify.config import Deadline
from milpverify.console import Debug, Json, Quiet, Timeout, answer, live, number, remark, reported, room
from milpverify.outside.ending import ending
from milpverify.outside.files import check_writable, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.acopf.case import Case
    from milpverify.acopf.dispatch.result import Checked, Outages
    from milpverify.acopf.result import Outcome
    from milpverify.result import Event

    OnEvent = Callable[[Event], None] | None

LATE: Final = 2.0  # seconds after the limit, or a signal, that a run may take to conclude

app = room(help="Questions about AC power networks, answered with proofs: operating points, costs, load limits.")

CaseFile = Annotated[Path, typer.Argument(metavar="CASE.m", exists=True, dir_okay=False, help="The network, a MATPOWER case.")]
Scale = Annotated[float, typer.Option(metavar="X", callback=number, help="Every active and reactive load times X.")]
Gap = Annotated[float, typer.Option(min=0.0, metavar="G", callback=number, help="The relative gap between the bounds that will do.")]
Solver = Annotated[Literal["highs", "scip", "gurobi"], typer.Option(help="highs: linear programs; others: products as well, on trust.")]
Width = Annotated[float, typer.Option(min=0.0, metavar="W", callback=number, help="Every load within this share of itself.")]
Tolerance = Annotated[
    float, typer.Option(min=0.0, metavar="T", callback=number, help="What set points may exceed limits by, p.u. and rad.")
]
Samples = Annotated[int, typer.Option(min=0, metavar="N", help="Random loads that are tried.")]
MarginPlot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", dir_okay=False, help="Draw certified against sampled margins.")]
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
    draw: Callable[[Any, Path], object] | None = None  # instead of the network

    def check(self, *inputs: Path) -> None:
        """Refuse before the work what cannot be written after it."""
        for path in (self.json, self.proof, self.plot):
            check_writable(path, inputs)
        if self.plot is not None:
            from milpverify.pictures import check

            check(self.plot)

    def tell(self, found: Outcome) -> None:
        """The answer, which the files cannot cost, the files, and the answer in words."""
        from milpverify.acopf.summaries import first_line

        try:
            answer(first_line(found))
        finally:
            self.write(found)
        self.summarize(found)

    def write(self, found: Outcome) -> None:
        """The files."""
        if self.json is not None:
            write_atomically(self.json, found.to_json() + "\n")
        if self.proof is not None and found.proof is not None:
            found.proof.save(self.proof)
        if self.plot is not None:
            from milpverify.acopf.plots import draw

            (draw if self.draw is None else self.draw)(found, self.plot)

    def summarize(self, found: Outcome) -> None:
        """The answer in words, on standard error."""
        if not self.quiet:
            from milpverify.acopf.summaries import summary, why_no_proof

            summary(found)
            if self.proof is not None and found.proof is None:
                remark(f"{self.proof} was not written: {why_no_proof(found)}")


def _answer(file: Path, output: _Output, timeout: float | None, ask: Callable[[Case, Deadline, OnEvent], Outcome]) -> None:
    """Load, ask, print the answer, write the rest."""
    deadline = Deadline(math.inf if timeout is None else timeout, began=ending.began)
    with ending.after(deadline, LATE, LATE), reported(output.debug):
        output.check(file)
        with live(deadline, output.quiet) as on_event:
            from milpverify.acopf.matpower import load_case

            found = ask(load_case(file), deadline, on_event)
        output.tell(found)


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
def dispatch(
    case: CaseFile,
    point: Annotated[Path, typer.Argument(metavar="POINT.json", exists=True, dir_okay=False, help="Set points: vm, pg, and va, qg.")],
    load_scale: Scale = 1.0,
    load_box: Width = 0.0,
    outages: Annotated[
        list[str] | None, typer.Option(metavar="all|ROW|F-T", help="Take out branches one at a time: all, a row of the table, two buses.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", dir_okay=False, help="Write outages as they come; go on from it.")
    ] = None,
    tolerance: Tolerance = 1e-6,
    samples: Samples = 1000,
    timeout: Timeout = None,
    json: Json = None,
    plot: MarginPlot = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Decide whether a dispatch holds for all loads of a box: vm and pg stay, the slack bus takes up the rest.

    The first line of standard output is `holds CERTIFIED ATTACKED`, or `broken` or `unknown` with them: the least margins that are
    proved and that were found, p.u. and rad. With --outages it is the verdict and how many hold, are broken, unknown and islanded, and a
    table follows.
    """
    deadline = Deadline(math.inf if timeout is None or outages else timeout, began=ending.began)
    output = _Output(json, None, plot, quiet, debug, _certified)
    if record is not None and not outages:
        raise typer.BadParameter("--record is the table of --outages")
    named = _outages(outages or [])
    with ending.after(deadline, LATE, LATE), reported(debug):
        output.check(case, point)
        check_writable(record, (case, point))
        with live(deadline, quiet) as on_event:
            from milpverify.acopf.dispatch.checking import check_dispatch
            from milpverify.acopf.loads import Loads
            from milpverify.acopf.matpower import load_case
            from milpverify.acopf.points.point import load_point

            loaded = load_case(case)
            at = load_point(loaded, point)
            loads = Loads(load_scale, load_box)
            told: dict[str, Any] = {"va": at.va, "tolerance": tolerance, "samples": samples, "on_event": on_event}
            if named:
                table = check_dispatch(loaded, at.pg, at.vm, loads, timeout, outages=named, record=record, deadline=deadline, **told)
            else:
                found = check_dispatch(loaded, at.pg, at.vm, loads, deadline=deadline, **told)
        if named:
            _write_table(table, output)
        else:
            output.tell(found)


@app.command()
def proxy(
    case: CaseFile,
    network: Annotated[
        Path, typer.Argument(metavar="PROXY.onnx", exists=True, dir_okay=False, help="The proxy, from loads to set points.")
    ],
    limits: Annotated[
        Literal["predicted", "after_power_flow"], typer.Option(help="Of what it predicts, or of the power flow after its set points.")
    ] = "predicted",
    load_scale: Scale = 1.0,
    load_box: Width = 0.0,
    mapping: Annotated[
        Path | None, typer.Option(metavar="FILE.json", exists=True, dir_okay=False, help='{"inputs": {"pd": ...}, "outputs": {"pg": ...}}')
    ] = None,
    tolerance: Tolerance = 1e-6,
    samples: Samples = 1000,
    timeout: Timeout = None,
    json: Json = None,
    plot: MarginPlot = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Decide whether what a learned proxy predicts, or what follows from its set points, is within all limits for all loads of a box.

    The first line of standard output is as that of `dispatch`.
    """

    def ask(loaded: Case, deadline: Deadline, on_event: OnEvent) -> Checked:
        from milpverify.acopf.loads import Loads
        from milpverify.acopf.proxy.checking import check_proxy
        from milpverify.acopf.proxy.mapping import read_mapping

        loads, named = Loads(load_scale, load_box), read_mapping(mapping)
        told: dict[str, Any] = {"tolerance": tolerance, "samples": samples, **named}
        return check_proxy(loaded, network, loads, limits=limits, deadline=deadline, on_event=on_event, **told)

    _answer(case, _Output(json, None, plot, quiet, debug, _certified), timeout, ask)


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
        from milpverify.acopf.summaries import described

        answer(described(load_case(case)))


def _certified(found: Any, path: Path) -> None:
    from milpverify.acopf.dispatch.margin_plots import plot_certified

    plot_certified(found, path)


def _outages(names: list[str]) -> list[str | int | tuple[int, int]]:
    """The word all, rows, or two buses such as 3-4."""
    found: list[str | int | tuple[int, int]] = []
    for name in names:
        f, dash, t = name.partition("-")
        try:
            found.append(name if name == "all" else (int(f), int(t)) if dash else int(name))
        except ValueError:
            raise typer.BadParameter(f"--outages: all, a row of the branch table, or two buses F-T, not {name}") from None
    return found


def _write_table(table: Outages, output: _Output) -> None:
    """The verdict and the counts, and a line for every outage."""
    from milpverify.acopf.result import Verdict

    counts = (table.count(each) for each in (Verdict.HOLDS, Verdict.BROKEN, Verdict.UNKNOWN, Verdict.ISLANDED))
    try:
        answer(" ".join((table.verdict.value, *map(str, counts))) + "\n" + str(table).partition("\n")[2])
    finally:
        if output.json is not None:
            write_atomically(output.json, table.to_json() + "\n")
        if output.plot is not None:
            _certified(table.intact, output.plot)
    output.summarize(table.intact)
