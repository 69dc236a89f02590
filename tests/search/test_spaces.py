"""What every space keeps to, whatever it splits, and who has to hear of a new one."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from random_nets import sampled_problem
from trees import PLAIN, boxes_of, context_of, grown, neurons_of

import milpverify as mv
from milpverify import search
from milpverify.config import Deadline, Options, SearchOptions
from milpverify.graph import evaluate
from milpverify.result import Trust
from milpverify.search.branch_and_bound import Space
from milpverify.search.context import SearchContext
from milpverify.search.input_split.space import BoxSpace
from milpverify.search.ledger import Part
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.tree import Tree
from milpverify.spec import Box, Problem

AnySpace = Space[Any, Any]


class Known(NamedTuple):
    """How a space and its tree are made, the part that closes what it bounds, and a problem for which `verify` comes to it.

    `knowing` some subproblems with another bound: they were proved that much before.
    """

    made: Callable[[SearchContext], tuple[AnySpace, Tree[Any]]]
    part: Part
    problem: Callable[[], Problem]
    knowing: Callable[[Any, float], Any]


SPACES: dict[type[AnySpace], Known] = {
    BoxSpace: Known(
        boxes_of,
        Part.BISECTION,
        lambda: sampled_problem("tanh", 1, 0.05, 3),
        lambda boxes, bound: replace(boxes, margins=torch.full_like(boxes.margins, bound)),
    ),
    NeuronSpace: Known(
        neurons_of,
        Part.NEURON_SPLITS,
        lambda: sampled_problem("relu", 1, 1.4),
        lambda subs, bound: replace(subs, bound=torch.full_like(subs.bound, bound)),
    ),
}
"""A new space has to be here, and then keeps to what follows."""
CLOSED = [("relu", 0, 0.3, 8), ("tanh", 0, 0.05, 3)]
every_space = pytest.mark.parametrize("kind", SPACES, ids=lambda kind: kind.__name__)


def below(kind: type) -> Iterator[type]:
    for found in kind.__subclasses__():
        yield found
        yield from below(found)


def home(kind: type) -> str:
    """The file of a class, as the map names it."""
    return Path(inspect.getfile(kind)).relative_to(Path(mv.__file__).parent).as_posix()


def least(given: tuple[str, int, float, int]) -> float:
    """A margin that a point has: the least of a sample."""
    problem = sampled_problem(*given)
    box = problem.disjuncts[0].box
    share = torch.rand(20_000, box.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = evaluate(problem.graph, torch.lerp(torch.tensor(box.lower), torch.tensor(box.upper), share))
    return float(values.amin()) - float(problem.disjuncts[0].unsafe.rhs[0])


# -- who has to hear of it --------------------------------------------------------------------------------------------------------


def test_every_space_is_tested_here() -> None:
    for module in pkgutil.walk_packages(search.__path__, f"{search.__name__}."):
        importlib.import_module(module.name)
    found = {kind for kind in below(Space) if kind.__module__.startswith("milpverify.") and not inspect.isabstract(kind)}
    assert found == set(SPACES)


def test_the_map_says_what_each_splits_and_the_way_there() -> None:
    text = (Path(mv.__file__).parent / "README.md").read_text()
    rows = re.findall(r"^\| `(search/\w+/space\.py)` \|", text, flags=re.MULTILINE)
    assert sorted(rows) == sorted(map(home, SPACES))
    ways = [line for line in text.splitlines() if line.strip().startswith("verify -> ")]
    assert [kind.__name__ for kind in SPACES if not any(f"{kind.__name__}.bound" in way for way in ways)] == []


@every_space
def test_verify_comes_to_each(kind: type[AnySpace], monkeypatch: pytest.MonkeyPatch) -> None:
    met, genuine = list[str](), kind.bound

    def bound(self: AnySpace, tree: Tree[Any], children: Any) -> Any:
        met.append(kind.__name__)
        return genuine(self, tree, children)

    monkeypatch.setattr(kind, "bound", bound)
    switches = SearchOptions(oracle=False, refining=False, deterministic=True)
    result = mv.verify(SPACES[kind].problem(), 60, options=Options(attack=False, search=switches))
    assert result.verdict is mv.Verdict.VERIFIED and len(met) > 1
    assert result.ledger[SPACES[kind].part.value]["bounded"] > 1


# -- what it keeps to ---------------------------------------------------------------------------------------------------------------


@every_space
@pytest.mark.parametrize("given", CLOSED, ids=lambda given: given[0])
def test_bounds_hold_rise_and_repeat(kind: type[AnySpace], given: tuple[str, int, float, int]) -> None:
    runs = []
    for _ in range(2):
        context = context_of(sampled_problem(*given), options=replace(PLAIN, deterministic=True))
        space, tree = SPACES[kind].made(context)
        found = [grown(tree, space, limit) for limit in (0, 8, 40, math.inf)]
        bounds = [outcome.lower_bound for outcome in found]
        assert bounds == sorted(bounds) and bounds[-1] <= least(given)
        assert not found[0].closed and found[-1].closed
        assert bounds[-1] > 0 and found[-1].trust is Trust.ROUNDED and not tree.falsified
        closed, bounded = (of.get(SPACES[kind].part, 0) for of in (context.ledger.closed, context.ledger.bounded))
        assert 2 < closed <= tree.counts.bounded
        assert tree.counts.bounded - 1 <= bounded <= tree.counts.bounded  # the root may be bounded already
        runs.append((bounds, tree.counts.bounded, closed))
    assert runs[0] == runs[1]


@every_space
@pytest.mark.parametrize("given", CLOSED, ids=lambda given: given[0])
def test_what_was_proved_of_parents_is_kept(kind: type[AnySpace], given: tuple[str, int, float, int]) -> None:
    space, tree = SPACES[kind].made(context_of(sampled_problem(*given), options=replace(PLAIN, deterministic=True)))
    grown(tree, space, 8)
    with torch.no_grad():
        children = space.split(tree, SPACES[kind].knowing(tree.pop(4), -1e-12), Deadline())
        assert children is not None and len(children) > 1
        bounded, found = space.bound(tree, children)
        assert space.prune(tree, bounded, found).lowest >= -1e-12


@every_space
def test_what_has_no_split_left_stays_open(kind: type[AnySpace]) -> None:
    """One point, whose margin is less than rounding may cost."""
    given = sampled_problem("relu", 0, 0.1, 8)
    (disjunct,) = given.disjuncts
    point = 0.5 * (disjunct.box.lower + disjunct.box.upper)
    value = float(evaluate(given.graph, torch.tensor(point)[None])[0] @ torch.tensor(disjunct.unsafe.y_rows[0]))
    rows = replace(disjunct.unsafe, rhs=disjunct.unsafe.rhs * 0.0 + value - 1e-16)
    problem = Problem(given.graph, (replace(disjunct, box=Box(point, point), unsafe=rows),))
    space, tree = SPACES[kind].made(context_of(problem, options=PLAIN))
    outcome = grown(tree, space)
    assert not tree.unfinished and len(tree.unsplittable) == 1
    assert not outcome.closed and outcome.lower_bound <= 0


@every_space
def test_a_counterexample_ends_it(kind: type[AnySpace]) -> None:
    space, tree = SPACES[kind].made(context_of(sampled_problem("relu", 0, 0.1, 8), options=PLAIN))
    outcome = grown(tree, space)
    assert tree.falsified and not outcome.closed and outcome.counterexample is not None
    assert outcome.lower_bound <= outcome.counterexample.margin_real <= 0


@every_space
@pytest.mark.parametrize("calls", [0, 2])
def test_where_memory_ends_all_stays_open_and_goes_on(kind: type[AnySpace], calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("relu", 1, 0.02, 3)
    space, tree = SPACES[kind].made(context_of(sampled_problem(*given), options=PLAIN))
    left, genuine = [calls], kind.bound

    def bound(self: AnySpace, tree: Tree[Any], children: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError
        return genuine(self, tree, children)

    with monkeypatch.context() as short:
        short.setattr(kind, "bound", bound)
        grown(tree, space)
    assert tree.out_of_memory and not tree.closed and tree.lower_bound <= least(given)
    tree.out_of_memory = False
    outcome = grown(tree, space)
    assert outcome.closed and 0 < outcome.lower_bound <= least(given)


@every_space
def test_a_deadline_leaves_it_open(kind: type[AnySpace]) -> None:
    looks = iter(range(1 << 30))
    deadline = Deadline(25.5, clock=lambda: float(next(looks)))
    space, tree = SPACES[kind].made(context_of(sampled_problem(*CLOSED[0]), deadline, options=PLAIN))
    outcome = grown(tree, space)
    assert not outcome.closed and outcome.detail["open"] > 0 and outcome.lower_bound <= least(CLOSED[0])
