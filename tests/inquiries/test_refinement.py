"""The refinement of one disjunct: what it proves holds whatever solvers reply within their safety margins, and lies prove nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from product_networks import Grower, attention_network, product_network, recurrent_network
from random_graphs import dense_network
from random_nets import proved_bounds

from milpverify.config import Deadline
from milpverify.enclosure import enclose, enclose_all
from milpverify.encode.cut_forms import Split
from milpverify.encode.encoding import ModelForm
from milpverify.encode.model import OutOfTime
from milpverify.graph import Graph, TensorSpec, evaluate_all
from milpverify.inquiries.inquiry import Question
from milpverify.inquiries.judging import Judging
from milpverify.inquiries.refinement import Refinement
from milpverify.solvers import worker
from milpverify.solvers.base import Capability, Limits, SolveOutcome, SolverStatus, SweepOutcome
from milpverify.solvers.model import TOLERANCE, Model, Sweep
from milpverify.solvers.trusted_bound import SAFETY, safety_margin
from milpverify.spec import Box, Disjunct, Problem, Rows

Reply = Callable[[Question], SolveOutcome | SweepOutcome]


class Deaf(Judging):
    """Takes no point for a counterexample, so that refining goes on."""

    def consider(self, x: np.ndarray, value: float) -> None:
        pass

    polish = consider


def honest(question: Question) -> SolveOutcome | SweepOutcome:
    """HiGHS, or SCIP where it is about products or integers, as a worker has it."""
    solver = "highs" if isinstance(question, Sweep) or question.required == {Capability.LINEAR} else "scip"
    found = worker._solve(solver, question, Limits(10.0), lambda _: False)
    assert isinstance(found, SolveOutcome | SweepOutcome)
    return found


def mixed_graph(seed: int) -> Graph:
    """Smooth functions, a product, and piecewise-linear functions with a jump among them."""
    g = Grower(3, seed)
    a = g.call("tanh", g.layer(g.nodes[0], 3, 2.0))
    b = g.call(("relu", "abs", "sign", "floor")[seed % 4], g.layer(a, 3, 2.0))
    c = g.product(g.layer(a, 2), g.call("sigmoid", g.layer(b, 2)))
    return g.finished(g.layer(g.concat([c, b], 0), 2))


GRAPHS: dict[str, Callable[[int], Graph]] = {
    "tanh": lambda seed: dense_network((3, 6, 5, 2), "tanh", seed),
    "gelu": lambda seed: dense_network((2, 5, 5, 2), "gelu", seed),
    "sin": lambda seed: dense_network((2, 4, 2), "sin", seed),
    "products": product_network,
    "attention": lambda seed: attention_network(seed, tokens=2, dim=2, heads=1, nx=3),
    "recurrent": lambda seed: recurrent_network(seed, steps=2, size=1, nx=1),
    "mixed": mixed_graph,
}


def points(graph: Graph, box: Box, count: int = 4000) -> torch.Tensor:
    share = np.random.default_rng(0).random((count, graph.nx))
    share[::4] = np.round(share[::4])
    return torch.from_numpy(np.clip(box.lower + share * (box.upper - box.lower), box.lower, box.upper))


def margins(graph: Graph, disjunct: Disjunct, xs: torch.Tensor) -> np.ndarray:
    """Lower bounds of the margins of points, inf where they are not allowed."""
    low, high = (t.numpy() for t in enclose(graph, xs))
    rows, x = disjunct.unsafe, xs.numpy()
    least = low @ np.maximum(rows.y_rows, 0).T + high @ np.minimum(rows.y_rows, 0).T + x @ rows.x_rows.T - rows.rhs
    allowed = (x @ disjunct.domain.x_rows.T <= disjunct.domain.rhs).all(axis=1)
    return np.where(allowed, least.max(axis=1), math.inf)


def disjunct_of(graph: Graph, box: Box, kind: str, share: float = 0.05) -> Disjunct:
    """Rows that a share of the box's points violates, so that there is something to lose."""
    rng, nx, ny = np.random.default_rng(3), graph.nx, graph.ny
    xs = points(graph, box)
    y, x = enclose(graph, xs)[1].numpy(), xs.numpy()
    count = 3 if kind == "several rows" else 1
    y_rows, x_rows = rng.normal(size=(count, ny)), (rng.normal(size=(count, nx)) if kind == "rows over inputs" else np.zeros((count, nx)))
    domain = Rows.none(nx, ny)
    if kind == "domain":
        row = rng.normal(size=(1, nx))
        domain = Rows(row, np.zeros((1, ny)), row @ (0.5 * (box.lower + box.upper)), np.array([True]))
    at = x @ x_rows.T + y @ y_rows.T
    if len(domain):
        at = at[(x @ domain.x_rows.T <= domain.rhs).all(axis=1)]
    rhs = at[np.argsort(at.max(axis=1))[int(share * len(at))]]
    return Disjunct(box, Rows(x_rows, y_rows, rhs + 1e-6, np.full(count, kind == "strict")), domain)


def refinement(graph: Graph, disjunct: Disjunct, decisions: tuple[Split, ...] = (), native: bool = False) -> Refinement:
    graph = replace(graph, inputs=(TensorSpec("x", (graph.nx,), "float64"),))
    judging = Deaf(Problem(graph, (disjunct,)), disjunct, 0.0)
    form = ModelForm(native=frozenset({Capability.QUADRATIC}) if native else frozenset())
    return Refinement(graph, disjunct, proved_bounds(graph, disjunct.box), judging, Deadline(60.0), decisions, form)


def drive(refined: Refinement, reply: Reply, questions: int = 6) -> list[Question]:
    """So many questions and replies; the questions."""
    asked: list[Question] = []
    generator = refined.questions()
    try:
        asked.append(next(generator))
        while len(asked) < questions:
            asked.append(generator.send(reply(asked[-1])))
        generator.send(reply(asked[-1]))
    except StopIteration:
        pass
    return asked


def lost(refined: Refinement, xs: torch.Tensor, below: float) -> int:
    """How many entries of unsafe points are outside the ranges: a value is known to within an enclosure."""
    unsafe = xs[torch.from_numpy(margins(refined.graph, refined.disjunct, xs) <= below)]
    assert len(unsafe)
    count = 0
    for (low, high), (a, b) in zip(enclose_all(refined.graph, unsafe), refined.ranges, strict=True):
        count += int(((high < a) | (low > b)).sum())
    return count


KINDS = ("one row", "several rows", "strict", "domain", "rows over inputs")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRAPHS)
def test_no_unsafe_point_leaves_the_ranges(name: str, kind: str) -> None:
    graph = GRAPHS[name](KINDS.index(kind))
    box = Box(-0.7 * np.ones(graph.nx), 0.7 * np.ones(graph.nx))
    disjunct = disjunct_of(graph, box, kind)
    refined = refinement(graph, disjunct, native=kind == "strict")
    width = sum(float((b - a).sum()) for a, b in refined.ranges)
    drive(refined, honest, 5)
    assert refined.conditional and not refined.closed
    xs = points(graph, box)
    assert lost(refined, xs, refined.cutoff) == 0
    assert refined.bound <= float(margins(graph, disjunct, xs).min()) + 1e-12
    assert sum(float((b - a).sum()) for a, b in refined.ranges) <= width


def test_a_range_moved_inwards_is_seen() -> None:
    graph, box = GRAPHS["tanh"](0), Box(-np.ones(3), np.ones(3))
    refined = refinement(graph, disjunct_of(graph, box, "one row"))
    drive(refined, honest, 1)
    refined.ranges = [(a + 0.2 * (b - a), b) for a, b in refined.ranges]
    assert lost(refined, points(graph, box), 0.0) > 0


def tight(share: float) -> Reply:
    """As honest as a solver may be trusted to be: its bounds are too high by a share of the safety margins."""

    def reply(question: Question) -> SolveOutcome | SweepOutcome:
        found = honest(question)
        if isinstance(found, SweepOutcome):
            assert isinstance(question, Sweep)
            reach = np.maximum(1.0, np.maximum(np.abs(question.model.lower), np.abs(question.model.upper)))[question.column]
            more = share * safety_margin(question.model, found.dual_bound)
            return replace(found, bounds=found.bounds + share * SAFETY * TOLERANCE * reach, dual_bound=found.dual_bound + more)
        assert isinstance(question, Model)
        return replace(found, dual_bound=found.dual_bound + share * safety_margin(question, found.dual_bound))

    return reply


@pytest.mark.parametrize("name", ["tanh", "products", "mixed"])
def test_solvers_that_are_off_within_the_margin_close_nothing_falsely(name: str) -> None:
    """The box is so small that its relaxation is nearly exact, and a point attains a margin of just 0 (or a hair less)."""
    for seed in range(4):
        graph = GRAPHS[name](4 * seed)  # floor and sign are elsewhere
        middle = 0.3 * np.ones(graph.nx)
        for radius in (1e-6, 1e-4):
            box = Box(middle - radius, middle + radius)
            xs = points(graph, box)
            disjunct = disjunct_of(graph, box, "one row", share=0.0)
            worst = float(margins(graph, disjunct, xs).min())
            unsafe = disjunct.unsafe
            disjunct = replace(disjunct, unsafe=replace(unsafe, rhs=unsafe.rhs + worst + 1e-11))
            refined = refinement(graph, disjunct)
            drive(refined, tight(0.9), 6)
            assert float(margins(graph, disjunct, xs).min()) <= 0.0
            assert not refined.closed, (name, seed, radius, refined.bound)


def outcome(question: Question, status: SolverStatus, bound: float, value: float) -> SolveOutcome | SweepOutcome:
    """A reply of one status and one number."""
    if isinstance(question, Sweep):
        n = question.model.num_variables
        return SweepOutcome(status, bound, np.full(n, value), np.full(len(question.column), bound))
    return SolveOutcome(status, bound, value, None if math.isnan(value) else np.zeros(question.num_variables))


BROKEN = {
    "NaN": lambda question: outcome(question, SolverStatus.OPTIMAL, math.nan, 0.0),
    "infinite": lambda question: outcome(question, SolverStatus.OPTIMAL, math.inf, 0.0),
    "minus infinity": lambda question: outcome(question, SolverStatus.OPTIMAL, -math.inf, 0.0),
    "no point": lambda question: outcome(question, SolverStatus.TIME_LIMIT, -math.inf, math.nan),
    "crashed": lambda question: outcome(question, SolverStatus.CRASHED, -math.inf, math.nan),
    "unavailable": lambda question: outcome(question, SolverStatus.UNAVAILABLE, -math.inf, math.nan),
}


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("how", BROKEN)
def test_replies_without_numbers_prove_nothing(how: str, after: int) -> None:
    """From the first, the second or the third question on."""
    graph, box = GRAPHS["mixed"](0), Box(-np.ones(3), np.ones(3))
    disjunct = disjunct_of(graph, box, "one row")
    refined = refinement(graph, disjunct)
    replies = 0

    def reply(question: Question) -> SolveOutcome | SweepOutcome:
        nonlocal replies
        replies += 1
        found = BROKEN[how](question) if replies > after else honest(question)
        if isinstance(found, SweepOutcome) and found.point is not None and np.isnan(found.point).any():
            found = replace(found, point=None)
        return found

    drive(refined, reply, 6)
    assert not refined.closed
    assert lost(refined, points(graph, box), 0.0) == 0


@pytest.mark.parametrize("bound", [math.inf, -math.inf, math.nan, 5.0])
def test_infeasible_is_a_word(bound: float) -> None:
    """The solver calls every model infeasible, and is honest about the emptiness models that are asked then."""
    graph, box = GRAPHS["tanh"](0), Box(-np.ones(3), np.ones(3))
    refined = refinement(graph, disjunct_of(graph, box, "one row"))

    def reply(question: Question) -> SolveOutcome | SweepOutcome:
        if isinstance(question, Sweep):
            return SweepOutcome(SolverStatus.INFEASIBLE, -math.inf, None, np.full(len(question.column), bound))
        return honest(question)

    asked = drive(refined, reply)
    assert len(asked) == 2 and isinstance(asked[1], Model)  # the emptiness model
    assert not refined.closed and refined.bound == -math.inf


def test_what_is_infeasible_is_proved_by_its_emptiness_model() -> None:
    graph, box = GRAPHS["tanh"](0), Box(-np.ones(3), np.ones(3))
    unsafe = Rows.on_outputs(np.eye(2)[:1], [0.0], 3)
    domain = Rows(np.ones((1, 3)), np.zeros((1, 2)), np.array([-3.5]), np.array([False]))
    refined = refinement(graph, Disjunct(box, unsafe, domain))
    drive(refined, honest)
    assert refined.closed


@pytest.mark.parametrize("name", ["tanh", "sin", "mixed"])
def test_a_bound_under_the_margins_row_is_none_above_it(name: str) -> None:
    graph, box = GRAPHS[name](0), Box(-np.ones(GRAPHS[name](0).nx), np.ones(GRAPHS[name](0).nx))
    refined = refinement(graph, disjunct_of(graph, box, "one row"))
    before = -math.inf

    def reply(question: Question) -> SolveOutcome | SweepOutcome:
        nonlocal before
        found = honest(question)
        if isinstance(question, Model):  # what would be true, were there no point left
            assert refined.conditional
            found = replace(found, dual_bound=10.0)
        else:
            before = refined.bound
        return found

    drive(refined, reply, 8)
    assert before <= refined.cutoff
    assert refined.closed and refined.bound == refined.cutoff


def test_split_decisions_are_honoured() -> None:
    """Only what they allow is proved, and what they exclude may go: the ranges keep unsafe points on the allowed side."""
    for seed in range(4):
        graph, box = GRAPHS["tanh"](seed), Box(-np.ones(3), np.ones(3))
        disjunct = disjunct_of(graph, box, "one row", share=0.2)
        node = graph.nodes[graph.nonlinear[0]].inputs[0]
        xs = points(graph, box)
        values = evaluate_all(graph, xs)[node][:, 0]
        unsafe = torch.from_numpy(margins(graph, disjunct, xs) <= 0)
        point = float(values[unsafe].median())
        for side in (1.0, -1.0):
            refined = refinement(graph, disjunct, ((node, 0, side, point),))
            asked = drive(refined, honest, 3)
            kept = side * (values - point) >= 1e-9
            assert lost(refined, xs[kept], 0.0) == 0
            assert not refined.closed
            first = asked[0]
            assert isinstance(first, Sweep)
            low, high = (float(t.reshape(-1)[0]) for t in refined.ranges[node])
            assert (low if side > 0 else -high) >= side * point - 1e-6


def test_decisions_that_no_point_fits_close() -> None:
    graph, box = GRAPHS["tanh"](1), Box(-np.ones(3), np.ones(3))
    disjunct = disjunct_of(graph, box, "one row")
    node = graph.nodes[graph.nonlinear[0]].inputs[0]
    middle = float(sum(t.reshape(-1)[0] for t in proved_bounds(graph, box)[node])) / 2
    refined = refinement(graph, disjunct, ((node, 0, 1.0, middle + 0.1), (node, 0, -1.0, middle - 0.1)))
    drive(refined, honest, 4)
    assert refined.closed


def test_no_model_is_made_after_the_deadline() -> None:
    graph, box = GRAPHS["mixed"](0), Box(-np.ones(3), np.ones(3))
    refined = refinement(graph, disjunct_of(graph, box, "one row"))
    refined.deadline = Deadline(0.0)
    with pytest.raises(OutOfTime):
        next(refined.questions())
    assert refined.bound == -math.inf
    refined = refinement(graph, disjunct_of(graph, box, "one row"))
    questions = refined.questions()
    sweep = next(questions)
    reply = honest(sweep)
    refined.deadline.cancel()
    with pytest.raises(OutOfTime):
        questions.send(reply)
    assert not refined.closed
    assert lost(refined, points(graph, box), 0.0) == 0


def test_a_sweep_that_ends_early_leaves_what_was_known() -> None:
    """Bounds that were not reached are -inf."""
    graph, box = GRAPHS["tanh"](2), Box(-np.ones(3), np.ones(3))
    refined = refinement(graph, disjunct_of(graph, box, "one row"))
    before = refined.ranges

    def reply(question: Question) -> SolveOutcome | SweepOutcome:
        found = honest(question)
        return replace(found, bounds=np.full_like(found.bounds, -math.inf)) if isinstance(found, SweepOutcome) else found

    drive(refined, reply, 1)
    assert all(bool((a <= c).all() and (d <= b).all()) for (a, b), (c, d) in zip(before, refined.ranges, strict=True))
    assert lost(refined, points(graph, box), 0.0) == 0


def test_more_breakpoints_never_worsen_what_is_known() -> None:
    graph, box = GRAPHS["gelu"](0), Box(-np.ones(2), np.ones(2))
    disjunct = disjunct_of(graph, box, "one row", share=0.0)
    unsafe = disjunct.unsafe
    refined = refinement(graph, replace(disjunct, unsafe=replace(unsafe, rhs=unsafe.rhs - 0.02)))
    bounds = []

    def reply(question: Question) -> SolveOutcome | SweepOutcome:
        bounds.append(refined.bound)
        return honest(question)

    drive(refined, reply, 40)
    assert bounds == sorted(bounds) and refined.closed
