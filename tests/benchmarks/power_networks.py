"""Power networks: least costs, load limits and boxes of loads of PGLib's cases, with what each took.

    OMP_NUM_THREADS=1 python tests/benchmarks/power_networks.py ../shared/acopf [--only cost ladder box existence variants limits]

The folder holds PGLib's files (pglib_opf_case14_ieee.m and others) and dispatches (dispatch_case14_ieee.json). Prints tables in Markdown.
The known optima are those of an interior point method at 1e-9; the factors of the ladders lie just below and above the limits that others
found.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from milpverify import acopf
from milpverify.acopf.points import local

T = TypeVar("T")
OPTIMA = {
    "case3_lmbd": 5812.64297,
    "case5_pjm": 17551.89092,
    "case14_ieee": 2178.08043,
    "case30_as": 803.12731,
    "case5_pjm__sad": 26108.8489,
    "case14_ieee__sad": 2776.78894,
    "case14_ieee__api": 5999.36331,
    "case30_ieee": 8208.51547,
}
LADDER = {"case3_lmbd": (1.338, 1.340), "case5_pjm": (1.430, 1.4315), "case14_ieee": (1.1945, 1.1955), "case30_ieee": (1.046, 1.06)}
BOXES = {"case5_pjm": (1.50, 1.52), "case30_ieee": (1.10, 1.15)}
DISPATCHES = ("case5_pjm", "case14_ieee", "case30_ieee", "case118_ieee")


def cases(folder: Path) -> Callable[[str], acopf.Case]:
    """Cases by their short names."""
    return lambda name: acopf.load_case(folder / f"pglib_opf_{name}.m")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and its seconds."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def cost(folder: Path) -> Iterator[str]:
    """The known optima."""
    yield "| case | lower | upper | gap | upper proved | trust | boxes and programs | s | known |"
    yield "|-|-|-|-|-|-|-|-|-|"
    for name, known in OPTIMA.items():
        case = cases(folder)(name)
        c, seconds = timed(lambda case=case: acopf.certify_cost(case, timeout=150))
        fits = c.lower <= known * (1 + 1e-7) and c.upper >= known * (1 - 1e-6) and c.gap <= 1e-4
        row = [name, f"{c.lower:.5f}", f"{c.upper:.5f}", f"{c.gap:.1e}", c.upper_is_proved, c.trust.value, c.method, f"{seconds:.2f}"]
        yield f"| {' | '.join(map(str, row))} | {known}{'' if fits else ' NOT MET'} |"


def variants(folder: Path) -> Iterator[str]:
    """One cost column times 1.37 and one rating times 0.9, against a local optimum."""
    yield "| case | lower | upper | local optimum | gap | s |"
    yield "|-|-|-|-|-|-|"
    for name in OPTIMA:
        case = cases(folder)(name)
        dearest = int(np.argmax(case.generators.c1))
        c1, rate = case.generators.c1.copy(), case.branches.rate.copy()
        c1[dearest] *= 1.37
        rate[np.argmin(rate)] *= 0.9
        case = replace(case, generators=replace(case.generators, c1=c1), branches=replace(case.branches, rate=rate))
        best = local.cheapest(case)
        c, seconds = timed(lambda case=case: acopf.certify_cost(case, timeout=150))
        yield f"| {name} | {c.lower:.5f} | {c.upper:.5f} | {'-' if best is None else f'{best.cost:.5f}'} | {c.gap:.1e} | {seconds:.2f} |"


def ladder(folder: Path) -> Iterator[str]:
    """All loads times a factor."""
    yield "| case | factor | verdict | violation: of the point, proved | trust | boxes and programs | s |"
    yield "|-|-|-|-|-|-|-|"
    for name, factors in LADDER.items():
        case = cases(folder)(name)
        for factor in (*factors, 1.6):
            r, seconds = timed(lambda case=case, factor=factor: acopf.check_feasibility(case, loads=acopf.scaled(factor), timeout=90))
            violation = "-" if r.point is None else f"{r.point.violation:.1e}"
            row = [name, factor, r.verdict.name, f"{violation}, {r.violation_bound:.1e}", r.trust.value, r.method, f"{seconds:.2f}"]
            yield f"| {' | '.join(map(str, row))} |"


def box(folder: Path) -> Iterator[str]:
    """Is there any load within 5 % of the case's times a factor that can be carried?"""
    yield "| case | factor | verdict | trust | boxes and programs | s |"
    yield "|-|-|-|-|-|-|"
    for name, factors in BOXES.items():
        case = cases(folder)(name)
        for factor in factors:
            loads = acopf.box(0.05, factor)
            r, seconds = timed(lambda case=case, loads=loads: acopf.check_feasibility(case, loads, "exists", timeout=100))
            yield f"| {name} | {factor} | {r.verdict.name} | {r.trust.value} | {r.method} | {seconds:.2f} |"


def limits(folder: Path) -> Iterator[str]:
    """By how much the loads can grow; and the largest case's cost in 20 s."""
    yield "| case | question | lower | upper | gap | answer | s |"
    yield "|-|-|-|-|-|-|-|"
    for name in LADDER:
        case = cases(folder)(name)
        r, seconds = timed(lambda case=case: acopf.max_loadability(case, timeout=100))
        yield f"| {name} | growth | {r.lower:.7f} | {r.upper:.7f} | {r.gap:.1e} | {r.verdict.name} | {seconds:.2f} |"
    for name, limit in (("case57_ieee", 60), ("case118_ieee", 20)):
        case = cases(folder)(name)
        c, seconds = timed(lambda case=case, limit=limit: acopf.certify_cost(case, timeout=limit))
        yield f"| {name} | cost in {limit} s | {c.lower:.3f} | {c.upper:.3f} | {c.gap:.1e} | {c.verdict.name} | {seconds:.2f} |"


def existence(folder: Path) -> Iterator[str]:
    """Krawczyk's test at stored dispatches, and at the same with one generator moved by 0.01 p.u."""
    yield "| case | proved | strictly inside | radius | s | one pg + 0.01 |"
    yield "|-|-|-|-|-|-|"
    for name in DISPATCHES:
        case = cases(folder)(name)
        point = acopf.load_point(case, folder / f"dispatch_{name}.json")
        e, seconds = timed(point.existence)
        other = next(g for g in range(len(case.generators)) if case.generators.bus[g] != case.reference)
        moved = point.pg.copy()
        moved[other] += 0.01
        wrong = replace(point, pg=moved).existence()
        row = [name, e.proved, e.strictly_inside, f"{e.radius:.1e}", f"{seconds:.3f}", "ACCEPTED" if wrong.proved else "rejected"]
        yield f"| {' | '.join(map(str, row))} |"


def main() -> None:
    """Print the tables."""
    tables = {work.__name__: work for work in (cost, variants, ladder, box, limits, existence)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables))
    chosen = parser.parse_args()
    for name in chosen.only:
        print(f"\n{tables[name].__doc__}\n")
        for line in tables[name](chosen.folder):
            print(line, flush=True)


if __name__ == "__main__":
    main()
