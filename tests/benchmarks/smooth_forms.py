"""Small smooth graphs in every form of model: contradictions between lower bounds and what inputs attain, and gaps by form.

    python tests/benchmarks/smooth_forms.py --graphs 200 --seconds 3
    python tests/benchmarks/smooth_forms.py --graphs 40 --seconds 30 --first 1000

The graphs are those of `tests/soundness/smooth_graphs.py`, by their seeds. Every lower bound of the least first output is held against
what inputs attain, re-evaluated with outward rounding: those that the other forms find, and sampled ones that descent improved; on
graphs of one or two inputs, against the truth by subdivision in ball arithmetic, too. Prints every contradiction as it is found, and a
table in Markdown: how many graphs a form has a bound for, the median gap to the best attained value, the share of graphs closed to
within 1e-4, how often it is the best form (up to 1e-6), and why it refused the rest. Exits with 1 where there is a contradiction.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / folder) for folder in ("", "support", "soundness"))]

import torch  # noqa: E402
from judging import Lasting  # noqa: E402
from smooth_graphs import FORMS, Bounds, contradictions, smooth_case, truth  # noqa: E402

from milpverify.errors import MilpverifyError  # noqa: E402
from milpverify.search.solver import whole_milp  # noqa: E402

CLOSED, BEST = 1e-4, 1e-6


@dataclass
class Column:
    """What became of a form: gaps of the graphs it has a bound for, and notes of those it has none for."""

    gaps: list[float] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)


def run(first: int, graphs: int, seconds: float, forms: list[str], results: Path | None) -> tuple[dict[str, Column], list[str]]:
    """All graphs in all forms; the columns of the table, and the contradictions."""
    columns, wrong = {name: Column() for name in forms}, []
    for seed in range(first, first + graphs):
        case = smooth_case(seed)
        least, attained = truth(case) if case.graph.nx <= 2 else (-math.inf, math.inf)
        known, found = [attained, case.sampled()], dict[str, Bounds]()
        for name in forms:
            began = time.monotonic()
            try:
                found[name] = FORMS[name](case, seconds)
            except MilpverifyError as error:
                found[name] = Bounds(-math.inf, note=f"{type(error).__name__}: {error}")
                if type(error).__name__ == "Contradiction":
                    wrong.append(f"case {case.name}: {name}: {error}")
            columns[name].seconds += time.monotonic() - began
        here = contradictions(case, found, known, least)
        for line in here:
            print(line, flush=True)
        wrong += here
        top = min([*known, *(b.upper for b in found.values())])
        lead = max(b.lower for b in found.values())
        for name, bounds in found.items():
            if math.isfinite(bounds.lower):
                columns[name].gaps.append(max(0.0, top - bounds.lower))
                columns[name].best += bounds.lower >= lead - BEST
            else:
                columns[name].refused[bounds.note.split(" (")[0].split(" of ")[0].split(", bound")[0]] += 1
        if results is not None:
            with results.open("a") as file:
                row = {name: [b.lower, b.upper, b.note] for name, b in found.items()}
                file.write(json.dumps({"case": case.name, "attained": top, "least": least, **row}) + "\n")
    return columns, wrong


def table(columns: dict[str, Column], graphs: int) -> str:
    """In Markdown."""
    lines = ["| form | bounds | median gap | closed to 1e-4 | best | seconds |", "|---|--:|--:|--:|--:|--:|"]
    for name, c in columns.items():
        middle = f"{median(c.gaps):.2e}" if c.gaps else "-"
        closed = sum(gap <= CLOSED for gap in c.gaps) / graphs
        lines.append(f"| {name} | {len(c.gaps)} | {middle} | {closed:.0%} | {c.best} | {c.seconds:.0f} |")
    for name, c in columns.items():
        lines += [f"{name}, no bound ({count}): {note}" for note, count in c.refused.most_common()]
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=3.0, help="of every form on every graph")
    parser.add_argument("--form", action="append", choices=list(FORMS), help="only these")
    parser.add_argument("--results", type=Path, help="a file for the bounds, one JSON line a graph")
    given = parser.parse_args()
    torch.set_num_threads(1)
    Lasting.kept = {}
    whole_milp.SolverProcess = Lasting  # type: ignore[misc]  # starting a process takes longer than many of these models
    try:
        columns, wrong = run(given.first, given.graphs, given.seconds, given.form or list(FORMS), given.results)
    finally:
        for process in Lasting.kept.values():
            process.kill()
    print(table(columns, given.graphs))
    print(f"{len(wrong)} contradictions")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
