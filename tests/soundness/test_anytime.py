"""Anytime: the lower bound rises as a run goes on, is true whenever it stops, and whatever stops it is named."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import exact
import numpy as np
import pytest
import torch
from exact import Disjunct, Row
from random_networks import Builder, Case, spec_text

import milpverify as mv
from milpverify import ladder, run
from milpverify.search import strategy
from milpverify.search.bounding import is_out_of_memory
from milpverify.search.choose_space import SpaceTuning
from milpverify.search.context import SearchTuning
from milpverify.search.groups import GroupTuning
from milpverify.tuning import Tuning

METHODS = ["inputs", "neurons", "trial"]


def case(seed: int, nx: int = 3, width: int = 7, slack: float = 0.05) -> tuple[Case, float]:
    """A network small enough for the exact infimum of its margin, and that infimum: positive by about `slack`, or negative."""
    rng, b = np.random.default_rng(seed), Builder(nx)
    h = b.relu(b.gemm("x", rng.normal(0, 1.2, (width, nx)), rng.normal(0, 0.4, width)))
    h = b.relu(b.gemm(h, rng.normal(0, 0.8, (3, width)), rng.normal(0, 0.4, 3)))
    y = b.gemm(h, rng.normal(0, 1, (2, 3)), rng.normal(0, 0.2, 2))
    model, lower, upper = b.model(y), [-1.0] * nx, [1.0] * nx

    def disjunct(rhs: float) -> Disjunct:
        return Disjunct(lower, upper, [Row(np.zeros(nx), np.array([1.0, -1.0]), rhs, False)], [])

    least = exact.truth(b.network, disjunct(0.0)).infimum
    assert least is not None
    rhs = float(np.float32(exact.as_float(least) - slack))
    disjuncts = [disjunct(rhs)]
    found = exact.truth(b.network, disjuncts[0]).infimum
    assert found is not None
    return Case(b.network, disjuncts, model, spec_text(nx, 2, disjuncts)), exact.as_float(found)


def tuned(kind: str) -> tuple[Tuning, ...]:
    """Numbers by which a kind of search is chosen, however many inputs there are."""
    few, many = {"inputs": (99, 99), "neurons": (-1, -1), "trial": (-1, 99)}[kind]
    return GroupTuning(few_inputs=few), SpaceTuning(few=few, many=many)


every_search = pytest.mark.parametrize("searched", METHODS)
"""Every kind of search on the same problems."""


@every_search
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slack", [0.02, -0.02])
def test_bounds_rise_and_are_true_whenever_a_run_stops(seed: int, slack: float, searched: str, tmp_path: Path) -> None:
    made, infimum = case(seed, slack=slack)
    problem = mv.load(*made.write(tmp_path))
    options = mv.Options(attack=False, search=mv.SearchOptions(oracle=False, tuning=tuned(searched)))
    for stop_after in (3, 5, math.inf):
        deadline, bounds = mv.Deadline(20), [-math.inf]

        def watch(event: mv.Event, deadline: mv.Deadline = deadline, bounds: list[float] = bounds, after: float = stop_after) -> None:
            bounds.append(float(event.data["lower_bound"]))  # type: ignore[arg-type]
            if len(bounds) > after:
                deadline.cancel()

        result = mv.verify(problem, deadline=deadline, options=options, on_event=watch)
        bounds.append(result.lower_bound)
        assert bounds == sorted(bounds)
        assert result.lower_bound <= infimum
        if result.verdict is mv.Verdict.UNKNOWN:
            assert result.reason is mv.Reason.INTERRUPTED
    assert result.verdict is (mv.Verdict.VERIFIED if slack > 0 else mv.Verdict.FALSIFIED)


@pytest.mark.parametrize("searched", METHODS[:2])
def test_every_report_of_a_search_is_true(searched: str, tmp_path: Path) -> None:
    """Reports after every batch: the bound rises step by step."""
    made, infimum = case(5, nx=3, width=8)
    bounds: list[float] = []
    events = []
    options = mv.Options(attack=False, search=mv.SearchOptions(oracle=False, tuning=(*tuned(searched), SearchTuning(reports=0.0))))

    def watch(event: mv.Event) -> None:
        events.append(event)
        bounds.append(float(event.data["lower_bound"]))  # type: ignore[arg-type]

    result = mv.verify(mv.load(*made.write(tmp_path)), options=options, on_event=watch)
    assert result.verdict is mv.Verdict.VERIFIED
    steps = [e for e in events if e.phase == "search" and "bound" in e.data]
    assert len(steps) > 2 and len(set(bounds)) > 2
    assert bounds == sorted(bounds) and bounds[-1] <= infimum
    assert isinstance(steps[-1].data["closed"], dict) and steps[-1].data["closed"]


@every_search
def test_the_ledger_says_who_closed_what(searched: str, tmp_path: Path) -> None:
    made, _ = case(1)
    options = mv.Options(attack=False, search=mv.SearchOptions(oracle=False, tuning=tuned(searched)))
    result = mv.verify(mv.load(*made.write(tmp_path)), 30, options=options)
    assert result.verdict is mv.Verdict.VERIFIED
    assert result.ledger["presolve bounds"]["bounded"] == 1
    closed = {part for part, numbers in result.ledger.items() if numbers["closed"]}
    expected = {"inputs": {"bisection bounds", "clipping", "finishing"}, "neurons": {"neuron-split bounds", "LP leaves", "alpha-CROWN"}}
    assert closed and closed <= expected.get(searched, set.union(*expected.values()))
    spent = sum(numbers["seconds"] for numbers in result.ledger.values())
    assert all(numbers["seconds"] >= 0 for numbers in result.ledger.values()) and spent <= result.seconds


@every_search
def test_a_run_may_end_between_any_two_steps(searched: str, tmp_path: Path) -> None:
    """The clock is the number of times that it was asked: loading and the run end where it is asked for the 7th, 71st, 200th ... time."""
    made, infimum = case(1, slack=0.02)
    files, options = made.write(tmp_path), mv.Options(search=mv.SearchOptions(oracle=False, tuning=tuned(searched)))

    def ended(after: float) -> mv.Result | None:
        ticks = itertools.count()
        deadline = mv.Deadline(after, clock=lambda: float(next(ticks)))
        try:
            return mv.verify(mv.load(*files, deadline=deadline), deadline=deadline, options=options)
        except mv.OutOfTime:
            return None

    results = [ended(float(k)) for k in (0, 7, 71, 200, 500, 1300)]
    assert results[0] is None
    for result in filter(None, results):
        assert result.lower_bound <= infimum
        assert result.verdict is mv.Verdict.VERIFIED or result.reason is mv.Reason.TIMEOUT
    assert any(result is not None and result.reason is mv.Reason.TIMEOUT for result in results)


@pytest.mark.parametrize("phase", ["presolve", "refine", "search"])
def test_memory_that_runs_out_is_unknown_with_the_bound_so_far(phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever an allocation fails, the run says so and keeps what was proved."""
    made, infimum = case(2)
    problem = mv.load(*made.write(tmp_path))

    def fails(*_: object, **__: object) -> object:
        return torch.empty(2**62, dtype=torch.uint8)

    where = {"presolve": (ladder, "bound_batch"), "refine": (run, "refine"), "search": (strategy, "decide")}
    monkeypatch.setattr(*where[phase], fails)
    options = mv.Options(attack=False, search=mv.SearchOptions(tuning=tuned("neurons")))
    result = mv.verify(problem, 20, options=options)
    assert (result.verdict, result.reason) == (mv.Verdict.UNKNOWN, mv.Reason.MEMORY)
    assert result.lower_bound <= infimum
    assert (result.lower_bound == -math.inf) == (phase == "presolve")
    assert is_out_of_memory(MemoryError())


@every_search
def test_the_memory_limit_ends_a_run(searched: str, tmp_path: Path) -> None:
    made, infimum = case(5, slack=0.005)
    if not Path("/proc/self/statm").exists():
        pytest.skip("the platform does not tell a process its memory")
    held = []

    def watch(event: mv.Event) -> None:
        if event.phase == "search" and not held:
            held.append(np.ones(2**26 // 8))  # 64 MiB

    parts = mv.SearchOptions(oracle=False, output_constraints=False, tuning=tuned(searched))  # so that there is something to search
    options = mv.Options(attack=False, memory_mb=32, search=parts)
    result = mv.verify(mv.load(*made.write(tmp_path)), 20, options=options, on_event=watch)
    assert held and result.lower_bound <= infimum
    assert result.verdict is mv.Verdict.VERIFIED or result.reason is mv.Reason.MEMORY


STARVED = """
import resource, sys
sys.path[:0] = {path!r}
import numpy as np
import milpverify as mv
from random_nets import relu_network
graph = relu_network([300, 3000, 3000, 2], 0)
box = mv.Box(np.full(300, -1.0), np.full(300, 1.0))
rows = mv.Rows.on_outputs([[1.0, -1.0]], [0.0], 300)
problem = mv.Problem(graph, (mv.Disjunct(box, rows, mv.Rows.none(300, 2)),))
graph.to(mv.bounds(relu_network([2, 2, 2], 0), mv.Box(np.zeros(2), np.ones(2)))[0].lower.dtype)  # what is imported on first use
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 4 * 2**20, resource.RLIM_INFINITY))
result = mv.verify(problem, 60)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(result.verdict.name, result.reason.name, result.lower_bound)
"""


def test_a_presolve_that_the_system_denies_memory_is_no_crash(tmp_path: Path, environment: dict[str, str]) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("the platform does not bound a process's memory")
    here = Path(__file__).resolve().parents[1]
    script = STARVED.format(path=[str(here / "support"), str(here.parent)])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.stdout.split() == ["UNKNOWN", "MEMORY", "-inf"], done.stdout + done.stderr
