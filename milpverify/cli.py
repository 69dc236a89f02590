"""The command line: `milpverify verify`, `compare`, `radius`, `info`, `solvers`, `supports`, `functions`, and `acopf` with its own."""

from __future__ import annotations

import sys
from collections import UserDict
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from typer.core import TyperGroup

from milpverify import __version__
from milpverify.config import (
    MOST_BYTES,
    MOST_ENTRIES,
    Branching,
    CurveEncoding,
    Deadline,
    Options,
    SearchMethod,
    SearchOptions,
    SplitPoints,
)
from milpverify.console import (
    Debug,
    Json,
    Outputs,
    Quiet,
    Timeout,
    answer,
    columns,
    complain,
    live,
    number,
    remark,
    reported,
    room,
)
from milpverify.errors import InvalidInput, OutOfTime
from milpverify.outside.ending import ending
from milpverify.outside.files import check_writable, is_stream, write_atomically
from milpverify.result import Reason, Result, Setting, Trust, Verdict
from milpverify.solvers.names import SOLVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from milpverify.result import Event
    from milpverify.spec import Problem

    Solver = str
else:
    Solver = Literal[tuple(SOLVERS)]

ROOMS = ("acopf", "compare", "radius")
"""Whose commands are the `app` of their `commands`, loaded when they are called or listed: to describe their options takes 30 ms."""


class _Commands(UserDict[str, Any]):
    """Commands by name, those of rooms loaded when they are looked at."""

    def __getitem__(self, name: str) -> Any:
        if self.data[name] is None:
            self.data[name] = typer.main.get_command(import_module(f"milpverify.{name}.commands").app)
        return self.data[name]


class _Root(TyperGroup):
    """The commands here, and those of the rooms."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands({**self.commands, **dict.fromkeys(ROOMS)})


app = room(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})

Network = Annotated[Path, typer.Argument(metavar="NET.onnx", exists=True, dir_okay=False, help="The network, ONNX (may be .gz).")]


def main() -> None:
    """Run the command line and leave with its exit status."""
    try:
        status = app(standalone_mode=False, prog_name="milpverify")
    except typer.TyperException as error:  # unusable arguments
        complain(error.format_message())
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    sys.exit(status)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"milpverify {__version__}")
        raise typer.Exit


def _name(wanted: bool) -> None:
    if wanted:
        typer.echo("milpverify")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
    name: Annotated[bool, typer.Option("--name", callback=_name, is_eager=True, help="Show the name and exit.")] = False,
) -> None:
    """An exact verifier for neural networks."""


@app.command()
def verify(
    network: Network,
    specs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SPEC.vnnlib...", exists=True, dir_okay=False, help="The properties, VNN-LIB 1 (may be .gz)."),
    ] = None,
    networks: Annotated[
        list[str] | None,
        typer.Option("--network", metavar="NAME=FILE", help="VNN-LIB 2: a network of the query that stands first (repeatable)."),
    ] = None,
    timeout: Timeout = None,
    method: Annotated[SearchMethod, typer.Option(help="What decides what bounds and attack leave open.")] = SearchMethod.AUTO,
    solver: Annotated[Solver, typer.Option(help="The exact solver.")] = "scip",
    encoding: Annotated[
        CurveEncoding,
        typer.Option(
            help="How models hold smooth functions: pieces: piecewise-linear enclosures, refined where it matters; "
            "native: functions and products are handed to the solver as they are."
        ),
    ] = CurveEncoding.PIECES,
    trust: Annotated[Trust, typer.Option(help="The weakest trust that may decide.")] = Trust.SOLVER,
    delta: Annotated[
        float, typer.Option(min=0.0, metavar="D", callback=number, help="The margin up to which smooth networks are decided.")
    ] = 1e-6,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where bounds and attack are computed.")] = "auto",
    seed: Annotated[int, typer.Option(metavar="N", help="The seed of everything random.")] = 0,
    attack: Annotated[bool, typer.Option("--attack/--no-attack", help="Search for counterexamples first.")] = True,
    without: Annotated[list[str] | None, typer.Option(metavar="PART", help="Turn a part of the search off (repeatable).")] = None,
    branching: Annotated[
        Branching, typer.Option(help="How splits of neurons are scored; none: nothing is searched.")
    ] = Branching.FIRST_ORDER,
    points: Annotated[SplitPoints, typer.Option(help="Where smooth functions are split.")] = SplitPoints.OPTIMISED,
    filter_smooth: Annotated[bool, typer.Option("--filter-smooth", help="Bound the best few splits in smooth networks too.")] = False,
    margin: Annotated[bool, typer.Option("--margin", help="Go on until the margin itself is known to within the gap.")] = False,
    gap: Annotated[float, typer.Option(min=0.0, metavar="G", callback=number, help="That gap, relative to margins above 1.")] = 1e-4,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Choose by counts, not by clocks: a run repeats.")] = False,
    max_bytes: Annotated[int, typer.Option(min=1, metavar="N", help="The most that a file may hold, unpacked.")] = MOST_BYTES,
    max_entries: Annotated[int, typer.Option(min=1, metavar="N", help="The most entries of a tensor of the network.")] = MOST_ENTRIES,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write a row per property as they come.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with that file: what it holds is not run again.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes for several properties; as many as processors by default.")
    ] = None,
    assignments: Annotated[
        Path | None,
        typer.Option(
            "--serialise-assignments", "--assignments", metavar="FOLDER", help="VNN-LIB 2: write the values there, not to standard output."
        ),
    ] = None,
    output: Outputs = None,
    json: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Decide a property of a network, or several.

    The first line of standard output is `unsat` (the property holds), `sat` (it does not: the counterexample follows),
    `unknown` or `timeout`. Of several properties, or with --csv, it has a line each instead, as they are decided: the verdict
    (or `error`), the file, seconds. The time limit is then each one's.

    A query of VNN-LIB 2 comes alone, its networks with --network: verify QUERY.vnnlib --network f=NET.onnx. The words are the
    standard's then (`timed-out`), and so is the form of what follows `sat`.
    """
    specs = specs or []
    with reported(debug):
        from milpverify.queries.arguments import networks_of

        others = csv is not None or resume or workers is not None or output
        query = networks_of(networks or [], [*specs], bool(others), assignments)
        check_writable(json, (network, *specs, *(query or {}).values()))
        try:
            search = SearchOptions(filtering_smooth=filter_smooth, deterministic=deterministic, branching=branching, points=points)
            search = search.without(*without or ())
        except ValueError as error:
            raise InvalidInput(f"--without: {error}") from error
        options = Options(
            method=method,
            solver=solver,
            encoding=encoding,
            trust=trust,
            delta=delta,
            device=device,
            seed=seed,
            attack=attack,
            search=search,
        )
    settings = {"options": options, "margin": margin, "gap": gap}
    reading = {"outputs": output, "max_bytes": max_bytes, "max_entries": max_entries}
    if query is not None:
        del reading["outputs"]
        _verify(network, (query, assignments), timeout, settings, reading, json, quiet, debug)
    elif len(specs) > 1 or csv is not None or resume or workers is not None:
        from milpverify.many.commands import verify_all

        verify_all(network, specs, {"timeout": timeout, "workers": workers, **settings, **reading}, csv, resume, json, quiet, debug)
    else:
        _verify(network, specs[0], timeout, settings, reading, json, quiet, debug)


def _verify(
    network: Path,
    spec: Path | tuple[dict[str, Path], Path | None],
    timeout: float | None,
    settings: dict[str, Any],
    reading: dict[str, Any],
    json: Path | None,
    quiet: bool,
    debug: bool,
) -> None:
    """One property, or the query `network` with the files of its networks and the folder that values are written to."""
    import math

    deadline, options = Deadline(math.inf if timeout is None else timeout, began=ending.began), settings["options"]
    known = _Known(deadline, json, quiet, "timeout" if isinstance(spec, Path) else "timed-out")
    with ending.after(deadline, 0.0, 0.0, known.last_words), reported(debug):
        with live(deadline, quiet) as show:
            with _no_collection():
                import torch  # noqa: F401  (first: it looks through all modules again and again, which takes 50 ms when ours are there)

                from milpverify.frontends.load import load
                from milpverify.run import unread
                from milpverify.verify import verify as decide
            ending.allow()

            respond, work = _answer, cast("Callable[..., Result]", decide)
            try:
                if isinstance(spec, Path):
                    problem: Problem = load(network, spec, deadline=deadline, **reading)
                else:
                    from milpverify.queries.commands import QueryRun

                    run = QueryRun(network, *spec)
                    work, respond = run.decide, run.answer
                    problem = run.load(deadline, **reading)
                for note in () if quiet else problem.notes:
                    remark(f"milpverify: {note}")
                result = work(problem, deadline=deadline, on_event=known.told(options, show), **settings)
            except OutOfTime:
                result = unread(deadline, options)
        try:
            answer(respond(result))
        finally:
            if json is not None:
                check_writable(json, result.files)
                write_atomically(json, result.to_json() + "\n")
        if not quiet:
            remark(str(result))


class _Known:
    """What was proved last, for when nothing can be asked of the run any more."""

    def __init__(self, deadline: Deadline, json: Path | None, quiet: bool, late: str = "timeout") -> None:
        self._deadline, self._json, self._quiet, self._late = deadline, json, quiet, late
        self._bound, self._trust, self._options = float("-inf"), Trust.ROUNDED, dict[str, Any]()

    def told(self, options: Options, show: Callable[[Event], None] | None) -> Callable[[Event], None]:
        """Hears events of a run with these options, and passes them on."""
        self._options = options.to_dict()

        def hear(event: Event) -> None:
            bound = event.data.get("lower_bound")
            if isinstance(bound, float):
                self._bound, self._trust = bound, Trust(event.data["bound_trust"])
            if show is not None:
                show(event)

        return hear

    def last_words(self, write: Callable[[int, str], None]) -> None:
        """The verdict, the bound, and the file, which holds no more than that."""
        word, reason = ("unknown", Reason.INTERRUPTED) if self._deadline.cancelled else (self._late, Reason.TIMEOUT)
        found = Result(
            Verdict.UNKNOWN, reason, self._trust, self._bound, None, self._deadline.elapsed(), "ended from outside",
            setting=Setting({"milpverify": __version__}, self._options), bound_trust=self._trust,
        )  # fmt: skip
        write(1, f"{word}\n")
        if not self._quiet:
            write(2, f"{found}\n")
        if self._json is not None and not is_stream(self._json):
            write_atomically(self._json, found.to_json() + "\n")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Import without garbage collection: what torch creates stays, and looking through it again and again costs 0.2 s."""
    import gc

    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _answer(result: Result) -> str:
    """The text of a VNN-COMP results file."""
    if result.counterexample is not None and result.verdict is Verdict.FALSIFIED:
        from milpverify.counterexamples.validate import format_counterexample

        return f"{result.verdict.value}\n{format_counterexample(result.counterexample)}"
    return result.word


@app.command()
def info(network: Network, output: Outputs = None, debug: Debug = False) -> None:
    """Show a network's shapes and variables, operators, nonlinearities, and what is supported."""
    with reported(debug):
        from milpverify.frontends.onnx.overview import overview
        from milpverify.frontends.onnx.reading import read_onnx

        found = overview(read_onnx(network), output)
        tables = [
            columns([("tensor", "name", "type", "shape", "variables"), *found.tensors]),
            columns([("operator", "count", "supported"), *found.operators]),
        ]
        if found.choice:
            tables.insert(1, found.choice)
        if found.obstacle:
            tables.append(f"It cannot be verified: {found.obstacle}")
        else:
            tables.append(columns([("nonlinearity", "neurons"), *found.neurons.items()]))
        answer("\n\n".join(tables))


@app.command()
def solvers(debug: Debug = False) -> None:
    """List the exact solvers: installed, licensed, able to do what."""
    with reported(debug):
        from milpverify.solvers.registry import available

        rows = [
            (s.name, s.version or "-", _yes(s.licensed), ", ".join(sorted(c.value for c in s.capabilities)), s.note) for s in available()
        ]
        answer(columns([("solver", "version", "licensed", "able to do", "note"), *rows]))


@app.command(context_settings={"ignore_unknown_options": True})
def supports(
    capability: Annotated[str, typer.Argument(metavar="--CAPABILITY", help="Which: --onnx-operators, --vnnlib-versions, ...")],
) -> None:
    """Say what is supported of ONNX and VNN-LIB 2, in the words of its standard."""
    with reported(debug=False):
        from milpverify.queries.supports import supported

        answer(supported(capability))


@app.command()
def functions(debug: Debug = False) -> None:
    """List the nonlinearities as a Markdown table: their names in ONNX and torch, and what is supported of each."""
    with reported(debug):
        from milpverify.function_table import markdown

        answer(markdown())


def _yes(value: bool) -> str:
    return "yes" if value else "no"
