"""`milpverify verify` with several properties: a line each, and a file that is gone on from."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import typer

from milpverify.config import Deadline
from milpverify.console import answer, bar, reported
from milpverify.errors import InvalidInput
from milpverify.many.table import Row, table
from milpverify.outside.ending import ending
from milpverify.outside.files import check_writable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PATIENCE: Final = 2.0
"""Seconds after a signal that what is under way may take to conclude."""


def verify_all(
    network: Path,
    specs: Sequence[Path],
    settings: dict[str, Any],
    csv: Path | None,
    resume: bool,
    json: Path | None,
    quiet: bool,
    debug: bool,
) -> None:
    """Decide them all; what a file holds already is said again, and not decided again. Ctrl-C ends with what there is.

    Args:
        settings: keyword arguments of `verify_many`.
    """
    deadline = Deadline()
    with ending.after(deadline, patience=PATIENCE), reported(debug):
        if json is not None:
            raise InvalidInput("--json is one result's; the file of several is --csv")
        if resume and csv is None:
            raise InvalidInput("--resume needs the file to go on with: --csv")
        check_writable(csv, (network, *specs))
        from milpverify.many.verifying import verify_many

        with nullcontext() if csv is None else table(csv, resume) as held:
            known = {} if held is None else {row.problem: row for row in held.rows}
            left = list(dict.fromkeys((str(network), str(spec)) for spec in specs))
            rows = [known[problem] for problem in left if problem in known]
            count, left = len(left), [problem for problem in left if problem not in known]
            for row in rows:
                answer(row.line)
            with bar(quiet) as show:
                for k, result in verify_many(left, deadline=deadline, **settings):
                    rows.append(row := Row.of(*left[k], result))
                    if held is not None:
                        held.append(row.cells)
                    answer(row.line)
                    if show is not None:
                        show(f"{row.spec}: {row.verdict}", count - len(rows))
        if any(row.verdict == "error" for row in rows):
            raise typer.Exit(2)
