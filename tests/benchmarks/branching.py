"""The ablation of branching on general nonlinearities (GenBaB, arXiv 2405.21063, section 4): scores and branching points, and none.

    python tests/benchmarks/branching.py --folder benchmarks --results branching.json
    python tests/benchmarks/branching.py --folder benchmarks --family digits_tanh_4x100 --timeout 60 --variant "BBPS, midpoint"

A folder is as `ablation.py` has it; without --family, the families whose names begin with digits_ are run, or all where there are none.
Every run is a process of its own, limited in CPU seconds; with --results it is written down at once, and what is there already is not
run again. Prints a table per family, in Markdown: verified, falsified and undecided instances by every variant, and the subproblems and
CPU seconds of all of them and of those that every search solves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ablation import Row, Runs, command, families_of, instances, load, save

from milpverify.config import Branching

PROGRAM = f"runpy.run_path({str(Path(__file__).with_name('by_cpu.py'))!r}, None, '__main__')"
PREFIX = "digits_"
SEARCH = ["--method", "bab", "--without", "filtering"]
VARIANTS = {
    "CROWN": ["--branching", "none", "--without", "refining"],
    "alpha-CROWN": ["--branching", "none"],
    "widest, midpoint": [*SEARCH, "--branching", "widest", "--points", "midpoint"],
    "BaBSR-like, midpoint": [*SEARCH, "--branching", "babsr", "--points", "midpoint"],
    "BBPS, midpoint": [*SEARCH, "--branching", "bbps", "--points", "midpoint"],
    "BBPS, optimised": [*SEARCH, "--branching", "bbps", "--points", "optimised"],
    "BBPS, optimised, parent's lines": [*SEARCH, "--branching", "bbps", "--points", "optimised", "--without", "fresh_lines"],
    "BBPS, midpoint, parent's lines": [*SEARCH, "--branching", "bbps", "--points", "midpoint", "--without", "fresh_lines"],
    "BBPS, filtered, midpoint": ["--method", "bab", "--filter-smooth", "--branching", "bbps", "--points", "midpoint"],
    "first order, midpoint": [*SEARCH, "--branching", "first-order", "--points", "midpoint"],
    "first order, optimised": [*SEARCH, "--branching", "first-order", "--points", "optimised"],
}
for heuristic in Branching:  # all others that there are, but for chance
    if heuristic is not Branching.RANDOM and not any(heuristic.value in variant for variant in VARIANTS.values()):
        VARIANTS[f"{heuristic.value}, midpoint"] = [*SEARCH, "--branching", heuristic.value, "--points", "midpoint"]


def table(rows: Sequence[Row], variants: Sequence[str]) -> str:
    """Per family and variant what became of the instances, and what it took."""
    head = ("family", "variant", "verified", "falsified", "undecided", "wrong", "subproblems", "cpu s", "same, subproblems", "same, cpu s")
    lines: list[tuple[str, ...]] = [head]
    searches = [v for v in variants if "none" not in VARIANTS[v]]
    families = list(dict.fromkeys(row.family for row in rows))
    for family in [*families, *(["ALL"] if len(families) > 1 else [])]:
        mine = [row for row in rows if family in ("ALL", row.family)]
        common = set.intersection(*({(r.family, r.instance) for r in mine if r.variant == v and r.solved} for v in searches or variants))
        for variant in variants:
            runs = [row for row in mine if row.variant == variant]
            same = [row for row in runs if (row.family, row.instance) in common]
            found = [sum(row.solved and row.verdict == verdict for row in runs) for verdict in ("unsat", "sat")]
            wrong = sum(row.wrong for row in runs)
            numbers: list[str] = [str(n) for n in (*found, len(runs) - sum(found) - wrong, wrong)]
            for some in (runs, same):
                numbers += [str(sum(row.counts.get("subproblems", 0) for row in some)), f"{sum(row.cpu for row in some):.1f}"]
            lines.append((family, variant, *numbers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * (w - (k > 1)) + ":" * (k > 1) for k, w in enumerate(widths)))
    cells = ([c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True))] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def main(arguments: Sequence[str] | None = None) -> int:
    options = command(__doc__, VARIANTS, 20.0).parse_args(arguments)
    if options.folder is not None and not options.family:
        options.family = [family for family in families_of(options.folder) if family.startswith(PREFIX)]
    variants = options.variant or list(VARIANTS)
    known, runs = load(options.results), Runs(PROGRAM, patience=20.0)
    wanted = [(instance, variant) for instance in instances(options) for variant in variants]
    keys = [(i.family, i.name, v, i.timeout) for i, v in wanted]
    try:
        for (instance, variant), key in zip(wanted, keys, strict=True):
            if key not in known and (row := runs.run(instance, variant, VARIANTS[variant])) is not None:
                known[row.key] = row
                save(options.results, list(known.values()))
                print(f"{row.family} {row.instance}, {variant}: {row.verdict}, {row.cpu} s", file=sys.stderr)
    finally:
        runs.end()
    rows = [known[key] for key in keys if key in known]
    print(table(rows, variants))
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
