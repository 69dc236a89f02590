"""Bounds of the margin ascend with the method, and none lies above the margin."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import absolute_value, write_property
from support import BENCHMARKS

import milpverify as mv
from milpverify.compare.methods import ASCENDING, method_of
from milpverify.compare.relaxations import Level, raised, relax
from milpverify.compare.rows import Answer, Word
from milpverify.compare.tools import Tool
from milpverify.config import Deadline
from milpverify.linear_relaxation import margin_bound
from milpverify.margin import in_reals, margin_at
from milpverify.solvers.process import SolverProcess


def nothing(_: Answer) -> None:
    pass


def answer(problem: mv.Problem, name: str, seconds: float = 60.0) -> Answer:
    method = method_of(name)
    assert not isinstance(method, Tool)
    return method.answer(problem, Deadline(seconds), nothing)


def sampled_margin(problem: mv.Problem, count: int) -> float:
    rng, ours = np.random.default_rng(1), in_reals(problem)
    boxes = {id(d.box): d.box for d in problem.disjuncts}.values()
    return min(margin_at(ours, box.lower + rng.uniform(size=box.size) * (box.upper - box.lower)) for box in boxes for _ in range(count))


def random_problem(activation: type[torch.nn.Module], seed: int, unsafe: str = "(or (<= Y_0 Y_1) (<= Y_0 Y_2))") -> mv.Problem:
    torch.manual_seed(seed)
    sizes = [4, 8, 8, 3]
    layers = [part for m, n in pairwise(sizes) for part in (torch.nn.Linear(m, n), activation())][:-1]
    net = torch.nn.Sequential(*layers).eval()
    for parameter in net.parameters():
        parameter.data *= 1.5
    centre = torch.rand(4).double().numpy()
    return mv.Problem(net, mv.Box(centre - 0.3, centre + 0.3), unsafe=unsafe)


@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.Tanh, torch.nn.GELU])
def test_bounds_ascend_to_the_margin(activation: type[torch.nn.Module]) -> None:
    for seed, unsafe in enumerate(["(or (<= Y_0 Y_1) (<= Y_0 Y_2))", "(and (<= Y_0 Y_1) (<= Y_0 (+ Y_2 0.25)))"]):
        problem = random_problem(activation, seed, unsafe)
        found = [answer(problem, name).lower_bound for name in ASCENDING]
        assert all(low <= high for low, high in pairwise(found)) and found[0] < found[-1]
        others = [answer(problem, name) for name in ("forward", "beta-crown:30")]
        exact = answer(problem, "exact:1e-2", 60)
        assert exact.witness is not None and exact.closed
        least = min(exact.witness.margin, sampled_margin(problem, 300))
        assert max(*found, *(o.lower_bound for o in others), exact.lower_bound) <= least
        assert exact.witness.margin - exact.lower_bound <= 1e-2 * max(1.0, abs(exact.witness.margin))


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.GELU])
def test_the_linear_program_holds_the_lines_of_alpha_crown(activation: type[torch.nn.Module]) -> None:
    """By itself, without the meet, it is no looser than what alpha-CROWN proves with its final lines."""
    for seed in range(3):
        problem = random_problem(activation, seed, "(<= Y_0 Y_1)")
        with SolverProcess("highs") as process:
            (root,) = raised(problem, Level.ALPHA_CROWN, Deadline(), nothing, process)
            (disjunct,) = problem.disjuncts
            alone = margin_bound(root.graph, root.state, disjunct, (), process, Deadline(), root.lines(0))
            alpha = float(root.margins)
        assert alone >= alpha - 1e-6 * max(1.0, abs(alpha))


def test_slopes_of_any_size_prove_no_more_than_is_true() -> None:
    problem = random_problem(torch.nn.Tanh, 5, "(<= Y_0 Y_1)")
    with SolverProcess("highs") as process:
        (root,) = raised(problem, Level.ALPHA_CROWN, Deadline(), nothing, process)
        least = sampled_margin(problem, 2000)
        for wild in (0.0, 3.0, -5.0, math.nan, math.inf):
            root.slopes = {
                i: (tuple(torch.full_like(k, wild) for k in low), tuple(torch.full_like(k, wild) for k in high))
                for i, (low, high) in root.slopes.items()
            }
            found = margin_bound(root.graph, root.state, problem.disjuncts[0], (), process, Deadline(), root.lines(0))
            assert -math.inf < found <= least


def test_nothing_is_lost_where_time_is_over() -> None:
    problem, told = random_problem(torch.nn.ReLU, 0), list[Answer]()
    found = relax(problem, Level.LP, Deadline(0.0), told.append)
    assert found.verdict is Word.TIMEOUT and found.lower_bound == told[0].lower_bound > -math.inf


def test_an_empty_unsafe_set_is_verified() -> None:
    problem = random_problem(torch.nn.ReLU, 0)
    found = relax(mv.Problem(problem.graph, ()), Level.CROWN, Deadline(), nothing)
    assert (found.verdict, found.lower_bound) == (Word.UNSAT, math.inf)


def test_searches_say_that_they_stopped_at_the_sign(tmp_path: Path) -> None:
    net = absolute_value(tmp_path / "net.onnx")
    safe = mv.load(net, write_property(tmp_path / "p.vnnlib", [-1, -1], [1, 1], "(>= Y_0 2.5)"))
    unsafe = mv.load(net, write_property(tmp_path / "q.vnnlib", [-1, -1], [1, 1], "(>= Y_0 1.5)"))
    for name in ("auto", "bab", "milp:highs", "smt"):
        assert (answer(safe, name).verdict, answer(safe, name).signed) == (Word.UNSAT, True)
        found = answer(unsafe, name)
        assert found.verdict is Word.SAT and found.witness is not None and found.witness.margin <= 0
    assert answer(unsafe, "beta-crown").verdict is Word.SAT
    found = answer(unsafe, "exact")
    assert found.closed and found.lower_bound == pytest.approx(-0.5, abs=1e-3) and found.verdict is Word.SAT


CASES = [
    ("digits/onnx/digits_relu_4x100.onnx.gz", "digits/vnnlib/digits_relu_4x100_h0_*"),
    ("digits/onnx/digits_tanh_4x100.onnx.gz", "digits/vnnlib/digits_tanh_4x100_h0_*"),
    ("digits/onnx/digits_gelu_4x50.onnx.gz", "digits/vnnlib/digits_gelu_4x50_h0_*"),
    ("mnist_fc/onnx/mnist-net_256x2.onnx.gz", "mnist_fc/vnnlib/prop_1_0.03.vnnlib.gz"),
]


@pytest.mark.skipif(not BENCHMARKS.exists(), reason="the benchmark instances are not here")
@pytest.mark.parametrize(("net", "spec"), CASES)
def test_the_order_on_instances(net: str, spec: str) -> None:
    (path,) = sorted(BENCHMARKS.glob(spec))[:1]
    problem = mv.load(BENCHMARKS / net, path)
    found = [answer(problem, name).lower_bound for name in ASCENDING[:4]]
    assert all(low <= high for low, high in pairwise(found))
    assert found[-1] <= sampled_margin(problem, 20)
