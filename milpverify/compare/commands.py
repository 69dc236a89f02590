"""The command line of comparisons: `milpverify compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from milpverify.config import Deadline
from milpverify.console import Debug, Json, Outputs, Quiet, Timeout, answer, bar, remark, reported, room
from milpverify.errors import InvalidInput
from milpverify.outside.ending import ending
from milpverify.outside.files import check_writable
from milpverify.solvers.names import MILP_SOLVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from milpverify.compare.plots import Kind
    from milpverify.compare.rows import Row

app = room()

PATIENCE: Final = 2.0
"""Seconds after a signal that a comparison may take to end its processes, and to show what is complete."""
DEFAULT = "ibp,forward,crown,alpha-crown,lp,auto"


@app.command()
def compare(
    network: Annotated[
        Path, typer.Argument(metavar="NET.onnx|INSTANCES.csv", exists=True, dir_okay=False, help="The network, or a list of instances.")
    ],
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC.vnnlib]", exists=True, dir_okay=False, help="The property; not with a list.")
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help=f"ibp, forward, crown, alpha-crown, beta-crown[:SUBPROBLEMS], lp, lp+obbt, milp[:{'|'.join(MILP_SOLVERS)}], smt, bab, "
            "auto, exact[:GAP]; commas between them.",
        ),
    ] = DEFAULT,
    tool: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COMMAND", help="Another verifier, with {onnx}, {vnnlib}, {timeout}, perhaps {out} (repeatable)."),
    ] = None,
    timeout: Timeout = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write rows to a CSV file as they come.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with that file: what it holds is not run again.")] = False,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Problems that are worked on at a time.")] = 1,
    output: Outputs = None,
    json: Json = None,
    plot: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KIND=]FILE",
            help="Draw it (.png, .svg, .pdf; needs matplotlib; repeatable). KIND: bounds (against time), cactus, scatter, scatter-bounds "
            "(of two methods), radius (verified fraction against it); bounds of one problem and else a cactus unless it is said.",
        ),
    ] = None,
    plot_methods: Annotated[str, typer.Option(metavar="NAMES", help="The methods that are drawn, unless all: commas between them.")] = "",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare methods on one problem, or on a list of them: bounds, verdicts, what they rest on and cost.

    The time limit holds per method: 60 s unless the list says otherwise. The list has VNN-COMP's columns onnx, vnnlib, timeout.
    """
    deadline = Deadline()
    with ending.after(deadline, patience=PATIENCE), reported(debug):
        for path in (json, csv):
            check_writable(path, (network, spec))
        if spec is None and network.suffix.lower() != ".csv":
            raise InvalidInput(f"{network} is no .csv: give a network and a property, or a list of instances")
        from milpverify.compare.comparing import compare as run

        names = [name for name in methods.split(",") if name.strip()] + (tool or [])
        drawn = [name.strip() for name in plot_methods.split(",") if name.strip()]
        pictures = [_picture(text, names, drawn, (network, spec)) for text in plot or ()]
        with bar(quiet) as show:
            problems = network if spec is None else [(network, spec)]
            told = _teller(show)
            found = run(problems, names, timeout, csv=csv, resume=resume, jobs=jobs, deadline=deadline, on_row=told, outputs=output)
        try:
            answer(found.text(_width() if sys.stdout is not None and sys.stdout.isatty() else None))
        finally:
            if json is not None:
                found.to_json(json)
        for kind, path in pictures:
            found.plot(path, kind, drawn)
        if pictures and not quiet and (note := found.only_ends) and any((kind or found.obvious).value == "bounds" for kind, _ in pictures):
            remark(f"milpverify: {note}")


def _picture(text: str, names: list[str], drawn: list[str], inputs: Iterable[Path | None]) -> tuple[Kind | None, Path]:
    """What `--plot` says, refused before the work if it cannot be drawn after it."""
    from milpverify.compare.methods import methods_of
    from milpverify.compare.plots import Kind, checked, kind_of
    from milpverify.pictures import check

    name, equals, rest = text.partition("=")
    kind, path = (kind_of(name), Path(rest)) if equals and "/" not in name else (None, Path(text))
    check(path)
    check_writable(path, inputs)
    checked(kind or Kind.BOUNDS, [method.name for method in methods_of(names)], drawn)
    return kind, path


def _teller(show: Callable[[str, int], None] | None) -> Callable[[Row, int], None] | None:
    return None if show is None else lambda row, left: show(f"{row.problem}, {row.method}: {row.verdict.value}", left)


def _width() -> int:
    import shutil

    return shutil.get_terminal_size().columns
