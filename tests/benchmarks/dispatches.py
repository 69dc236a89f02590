"""Dispatches, outages and proxies: the tables of what is certified beside what was sampled.

    python tests/benchmarks/dispatches.py dispatches SHARED      cases and dispatch files: holds and broken, margins, 1000 other samples
    python tests/benchmarks/dispatches.py outages SHARED         N-1 of case14 and of two of 30 buses at 1 %
    python tests/benchmarks/dispatches.py proxy SHARED           a proxy trained here, predicted and after the power flow
    python tests/benchmarks/dispatches.py ml4acopf FOLDER SHARED [PATTERN]   the benchmark's networks: check_proxy beside verify

SHARED is a folder of PGLib cases and dispatches, FOLDER that of the benchmark. One thread: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import gzip
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import milpverify as mv
from milpverify import acopf
from milpverify.acopf.dispatch.grid import Grid
from milpverify.acopf.dispatch.newton import base, flat, follow
from milpverify.acopf.dispatch.policy import Fixed, Policy, box_of
from milpverify.acopf.dispatch.witness import point_of
from milpverify.acopf.points.judgement import Candidate, flows, limits

TRIALS = [("14_ieee", 0.05), ("5_pjm", 0.04), ("30_ieee", 0.02), ("118_ieee", 0.01)]
TRIALS += [("14_ieee", 0.10), ("5_pjm", 0.05), ("30_ieee", 0.05), ("118_ieee", 0.02)]


def read(folder: Path, name: str) -> tuple[Any, Any]:
    case = acopf.load_case(folder / f"pglib_opf_case{name}.m")
    return case, acopf.load_point(case, folder / f"dispatch_case{name}.json")


def least_sampled(case: Any, policy: Policy, loads: Any, count: int, seed: int) -> tuple[dict[tuple[str, str], float], int]:
    """Of every limit the least margin at random loads, each followed by Newton's method."""
    grid = Grid(case)
    box, random, n = box_of(grid, loads), np.random.default_rng(seed), case.num_buses

    def parameters(at: Any) -> Any:
        pg, vm = policy.set_points(at[None])
        return grid.parameters(pg[0], vm[0], at[:n], at[n:]), pg[0]

    start, _ = parameters(box.middle)
    x = base(grid, start, flat(grid, start))
    least: dict[tuple[str, str], float] = {}
    solved = 0
    for k in range(count):
        share = random.random(2 * n)
        at = box.at(share if k % 3 == 0 else np.round(share))
        p, pg = parameters(at)
        found = follow(grid, start, x, p)
        if found is None:
            continue
        solved += 1
        for key, margin in margins(point_of(grid, found, pg, at)):
            least[key] = min(least.get(key, np.inf), margin)
    return least, solved


def margins(point: Candidate) -> list[tuple[tuple[str, str], float]]:
    """Of every limit the margin at a point, by the formulas that judge points, in float64."""
    case, (pf, qf, pt, qt) = point.case, flows(point.case, point.vm, point.va)
    angle = point.va[case.branches.f] - point.va[case.branches.t]
    values = {
        "voltage": point.vm, "active generation": point.pg, "reactive generation": point.qg, "angle difference": angle,
        "flow from": np.hypot(pf, qf), "flow to": np.hypot(pt, qt),
    }  # fmt: skip
    return [
        ((each.kind, each.element), float(min(values[each.kind][each.index] - each.lower, each.upper - values[each.kind][each.index])))
        for each in limits(case)
        if each.kind in values
    ]


def dispatches(folder: Path) -> None:
    print(
        f"{'case':10s} {'box':>6s} {'verdict':8s} {'certified':>11s} {'attacked':>11s} {'least of 1000':>13s} {'below':>5s} {'cpu s':>6s}"
    )
    for name, relative in TRIALS:
        case, point = read(folder, name)
        began = time.process_time()
        found = acopf.check_dispatch(case, pg=point.pg, vm=point.vm, loads=acopf.box(relative), timeout=60)
        seconds = time.process_time() - began
        sampled, solved = least_sampled(case, Fixed(Grid(case), point.pg, point.vm), acopf.box(relative), 1000, seed=7)
        both = [(each.certified, sampled[key]) for each in found.margins if (key := (each.limit.kind, each.limit.element)) in sampled]
        below = sum(other < certified - 1e-9 for certified, other in both)
        worst, attacked = found.worst_margin, found.attacked_margin
        least = min(other for each, (_, other) in zip(found.margins, both, strict=False) if not each.limit.given)
        numbers = f"{worst.certified:11.5g} {attacked.attacked:11.5g} {least:13.5g} {below:5d} {seconds:6.2f}"
        print(f"{name:10s} {100 * relative:5.1f}% {found.verdict.name:8s} {numbers}  {worst.limit}", flush=True)
        if found.violation is not None:
            print(f"    {found.violation}")
        assert solved == 1000


def outages(folder: Path) -> None:
    for name in ("14_ieee", "30_ieee", "30_as"):
        case = acopf.load_case(folder / f"pglib_opf_case{name}.m")
        if name == "30_as":
            from milpverify.acopf.points.local import cheapest

            point = cheapest(case, shrink=0.01)
        else:
            case, point = read(folder, name)
        began = time.process_time()
        found = acopf.check_dispatch(case, pg=point.pg, vm=point.vm, loads=acopf.box(0.01), timeout=60, outages=["all"])
        print(f"{name}: {found.intact.headline}\n{found}\ncpu {time.process_time() - began:.1f} s")
        broken = [row for row in found.rows if row.verdict is acopf.Verdict.BROKEN]
        print(
            f"broken: {len(broken)}, proved {sum(r.proved for r in broken)}, reproduced {sum(r.reproduced for r in broken)}\n", flush=True
        )


def proxy(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
    from importlib import import_module

    example = import_module("12_learned_dispatch")
    case = acopf.load_case(folder / "pglib_opf_case14_ieee.m")
    began = time.process_time()
    network = example.trained(case)
    g = len(case.generators)
    outputs = {"pg": slice(0, g), "qg": slice(g, 2 * g), "vm": slice(2 * g, 3 * g)}
    print(f"trained in {time.process_time() - began:.0f} s of CPU")
    for relative in (0.01, 0.05):
        for asked in ("predicted", "after_power_flow"):
            began = time.process_time()
            found = acopf.check_proxy(case, network, loads=acopf.box(relative), limits=asked, outputs=outputs, timeout=120)
            above = sum(each.certified > each.attacked + 1e-9 for each in found.margins)
            worst, attacked = found.worst_margin, found.attacked_margin
            numbers = f"certified {worst.certified:.5g} attacked {attacked.attacked:.5g}, certified above sampled {above}"
            print(f"{100 * relative:.0f} % {asked:16s} {found.verdict.name:8s} {numbers}, {time.process_time() - began:.1f} s CPU")
            if found.violation is not None:
                print(f"    {found.violation}")


def _property(path: Path) -> tuple[np.ndarray, np.ndarray, list[tuple[str, int, float]]]:
    with gzip.open(path, "rt") as file:
        text = file.read()
    ends: dict[str, dict[int, float]] = {"<=": {}, ">=": {}}
    for sign, i, value in re.findall(r"\(assert \((<=|>=) X_(\d+) ([-\d.e+]+)\)\)", text):
        ends[sign][int(i)] = float(value)
    outputs = [(sign, int(i), float(value)) for sign, i, value in re.findall(r"\((<=|>=) Y_(\d+) ([-\d.e+]+)\)", text)]
    lower, upper = (np.array([ends[sign][i] for i in range(len(ends[sign]))]) for sign in (">=", "<="))
    return lower, upper, outputs


def ml4acopf(folder: Path, shared: Path, pattern: str = "*") -> None:
    """The verdicts of `check_proxy` beside those of `verify`; loads are those of the property's box, limits those of the case."""
    same = []
    for path in sorted((folder / "vnnlib").glob(f"{pattern}.vnnlib.gz")):
        buses = path.name.split("_")[0]
        case = acopf.load_case(shared / f"pglib_opf_case{buses}_ieee.m")
        lower, upper, outputs = _property(path)
        n, m, g = case.num_buses, len(case.branches), len(case.generators)
        loaded = np.flatnonzero((case.buses.pd != 0) | (case.buses.qd != 0))
        middle = (lower + upper) / 2
        pd, qd = np.zeros(n), np.zeros(n)
        pd[loaded], qd[loaded] = middle[: len(loaded)], middle[len(loaded) :]
        at = replace(case, buses=replace(case.buses, pd=pd, qd=qd))
        nonzero = middle != 0
        relative = float(np.median(((upper - lower) / 2)[nonzero] / np.abs(middle[nonzero])))
        start = 2 * g + 2 * n
        asked: dict[str, list[str]] = {"only": []}
        allowed: dict[str, Any] = {}
        for _, place, value in outputs:
            if place < g:
                name = f"active generation of {case.generator_name(place)}"
            elif place < 2 * g:
                name = f"reactive generation of {case.generator_name(place - g)}"
            elif place < 2 * g + n:
                name = f"voltage of {case.bus_name(place - 2 * g)}"
            elif place >= start + 6 * m:
                active, i = divmod(place - start - 6 * m, n)
                kind = ("active balance", "reactive balance")[active]
                name, allowed[kind] = f"{kind} of {case.bus_name(i)}", (1e-3, 1e-2) if len(outputs) > 2 else abs(value)
            else:
                end, k = divmod(place - start - 4 * m, m)
                kind = ("flow from", "flow to")[end]
                name, allowed[kind] = f"{kind} of {case.branch_name(k)}", abs(value)
            asked["only"].append(name)
        for net in sorted((folder / "onnx").glob(f"{buses}_*.onnx.gz")):
            began = time.process_time()
            only = list(dict.fromkeys(asked["only"]))
            found = acopf.check_proxy(at, net, loads=acopf.box(relative), limits="predicted", only=only, allowed=allowed, timeout=100)
            between = time.process_time()
            word = mv.verify(mv.load(net, path), timeout=100).verdict.value
            mine = {"holds": "unsat", "broken": "sat"}.get(found.verdict.value, found.verdict.value)
            same.append(mine == word)
            name = net.name.removesuffix(".onnx.gz").removeprefix(f"{buses}_ieee_ml4acopf") or "original"
            seconds = f"{between - began:.1f} s, {time.process_time() - between:.1f} s"
            print(
                f"{path.name.removesuffix('.vnnlib.gz'):16s} {name:22s} {mine:8s} {word:8s} {'' if same[-1] else 'DIFFERENT'} {seconds}",
                flush=True,
            )
    print(f"{sum(same)} of {len(same)} alike")


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    {"dispatches": dispatches, "outages": outages, "proxy": proxy, "ml4acopf": ml4acopf}[kind](
        *(Path(each) if k < 2 else each for k, each in enumerate(rest))
    )
