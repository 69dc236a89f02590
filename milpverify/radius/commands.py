"""`milpverify radius`: the robustness radii of inputs in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from milpverify.balls.norm import Norm
from milpverify.config import Deadline, Options, SearchMethod
from milpverify.console import Debug, Json, Outputs, Quiet, answer, number, remark, reported, room
from milpverify.errors import InvalidInput
from milpverify.outside.ending import ending
from milpverify.outside.files import check_writable, write_atomically
from milpverify.result import Trust, json_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from milpverify.radius.result import Radius

_Network = Annotated[Path, typer.Argument(metavar="NET.onnx", exists=True, dir_okay=False, help="The network, ONNX (may be .gz).")]
_Inputs = Annotated[
    Path, typer.Argument(metavar="INPUTS", exists=True, dir_okay=False, help="The inputs: .npy, one after the other, or .csv, one a line.")
]

app = room()

PATIENCE: Final = 2.0
"""Seconds after a signal that the run may take to end the input under way, and to write what is known."""


@app.command()
def radius(
    network: _Network,
    inputs: _Inputs,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="The labels (.npy, .csv); else the network's answers.")
    ] = None,
    norm: Annotated[
        Norm, typer.Option(help="How changes are measured: linf, the largest of any feature; l1, their sum; l2, the root of squares.")
    ] = Norm.LINF,
    clip: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="The ends of the range that features have anyway.")
    ] = None,
    gap: Annotated[float, typer.Option(metavar="G", callback=number, help="The relative gap between the bounds that will do.")] = 0.01,
    timeout: Annotated[
        float | None, typer.Option(min=0.0, metavar="S", callback=number, help="Wall-clock limit for each input, in seconds.")
    ] = None,
    target: Annotated[list[int] | None, typer.Option(metavar="N", help="A label that inputs must not get (repeatable); else any.")] = None,
    features: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="A mask or weights of the features that may change (.npy, .csv)."),
    ] = None,
    output: Outputs = None,
    method: Annotated[SearchMethod, typer.Option(help="What decides what bounds and attack leave open.")] = SearchMethod.AUTO,
    trust: Annotated[Trust, typer.Option(help="The weakest trust that may decide.")] = Trust.SOLVER,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the table, row by row.")] = None,
    json: Json = None,
    curve: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the verified fraction against the radius (.csv).")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Draw it (.png, .svg, .pdf; needs matplotlib).")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find how far inputs may change before their label can.

    Standard output is a table with one row per input: the largest radius proved, the smallest of a known counterexample, and the label
    that this gets. Ctrl-C ends the input under way with the bounds that are known, and the run.
    """
    deadline = Deadline()
    with ending.after(deadline, patience=PATIENCE), reported(debug):
        for path in (csv, json, curve, plot):
            check_writable(path, (network, inputs, labels, features))
        if plot is not None:
            from milpverify.pictures import check

            check(plot)

        from milpverify.console import live
        from milpverify.radius.tables import read_labels, read_numbers

        points = read_numbers(inputs)
        weights = None if features is None else read_numbers(features).reshape(-1)
        with live(deadline, quiet) as on_event:
            from milpverify.radius.robustness import robustness_radii

            found = robustness_radii(
                network,
                points if points.ndim > 1 else points[None],
                None if labels is None else read_labels(labels),
                norm,
                clip,
                gap,
                timeout,
                method,
                targets=target or None,
                features=weights,
                outputs=output,
                options=Options(trust=trust),
                deadline=deadline,
                on_event=on_event,
            )
            done = _table(found, csv)
        _write(done, json, curve, plot)
        if not quiet:
            remark(_summary(done, len(points) if points.ndim > 1 else 1))


def _table(found: Iterable[Radius], csv: Path | None) -> list[Radius]:
    """Print every row as it comes, and append it to the file."""
    from milpverify.radius.tables import FIELDS, line, row

    done: list[Radius] = []
    answer(line(FIELDS))
    if csv is not None:
        write_atomically(csv, ",".join(FIELDS) + "\n")
    for k, radius in enumerate(found):
        done.append(radius)
        values = row(k, radius)
        answer(line(list(values.values())))
        if csv is not None:
            try:
                with csv.open("a") as file:
                    file.write(",".join(map(str, values.values())) + "\n")
            except OSError as error:
                raise InvalidInput(f"cannot write {csv}: {error.strerror}") from error
    return done


def _write(done: list[Radius], json: Path | None, curve: Path | None, plot: Path | None) -> None:
    from dataclasses import asdict

    from milpverify.radius.curve import curve as fractions
    from milpverify.radius.curve import draw
    from milpverify.radius.tables import curve_text

    points = fractions(done)
    if json is not None:
        json_text({"radii": [r.to_dict() for r in done], "curve": [asdict(p) for p in points]}, json)
    if curve is not None:
        write_atomically(curve, curve_text(points))
    if plot is not None:
        draw(done, plot)


def _summary(done: list[Radius], count: int) -> str:
    from statistics import median

    wrong = sum(r.upper_bound == 0.0 for r in done)
    closed = sum(r.gap <= 0.0 or r.reason.name == "PROVED" for r in done)
    words = f"{len(done)} of {count} inputs: {closed} within the gap or misclassified ({wrong})"
    return words + (f"; median {median(r.seconds for r in done):.2f} s" if done else "")
