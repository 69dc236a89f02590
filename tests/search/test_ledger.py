"""What is proved is told by a call of its own, and what is passed on says what is proved."""

from __future__ import annotations

import ast
import math
import re
from collections import defaultdict

import numpy as np
import pytest
import torch
from random_nets import disjunct_of, relu_network
from support import ROOT
from trees import boxes_of, context_of, neurons_of

from milpverify.graph import evaluate
from milpverify.result import Event, Trust
from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.ledger import Ledger, Part, Reporter
from milpverify.spec import Box, Problem


def test_an_event_proves_nothing() -> None:
    told = list[Event]()
    reporter = Reporter(told.append)
    for phase in ("search", "oracle", "milp"):
        reporter(Event(phase, "", {"bound": 1.0, "trust": "exact"}))
    assert reporter.lower_bound == -math.inf
    reporter.prove(-2.0)
    reporter(Event("search", "two", {"bound": 3.0}))
    assert told[-1] == Event("search", "two", {"bound": 3.0, "lower_bound": -2.0, "bound_trust": "rounded", "closed": {}})


def test_the_manual_names_every_part() -> None:
    (line,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `ledger`"))
    assert [part.value for part in Part if f"`{part.value}`" not in line] == []


def test_what_is_proved_of_a_group_counts_with_what_is_proved_of_the_others() -> None:
    reporter = Reporter(None)
    reporter.prove(-5.0, Trust.ROUNDED)
    assert (reporter.lower_bound, reporter.trust) == (-5.0, Trust.ROUNDED)
    reporter.others, reporter.floor = 1.0, -3.0
    reporter.prove(-4.0, Trust.ROUNDED)
    assert reporter.lower_bound == -3.0
    reporter.prove(0.5, Trust.SOLVER)
    assert (reporter.lower_bound, reporter.trust) == (0.5, Trust.SOLVER)
    reporter.prove(0.5, Trust.ROUNDED)  # as much, by less
    assert (reporter.lower_bound, reporter.trust) == (0.5, Trust.ROUNDED)
    reporter.trust_of_others = Trust.SOLVER
    reporter.prove(2.0, Trust.ROUNDED)
    assert (reporter.lower_bound, reporter.trust) == (1.0, Trust.SOLVER)
    reporter.prove(-1.0, Trust.ROUNDED)
    reporter.prove(math.nan, Trust.EXACT)
    assert (reporter.lower_bound, reporter.trust) == (1.0, Trust.SOLVER)


def test_parts_have_their_names_in_results_and_events() -> None:
    ledger, told = Ledger(), list[Event]()
    with ledger.spent(Part.BISECTION), ledger.spent(Part.ORACLE):
        ledger.close(Part.ORACLE, 2)
        ledger.close(Part.CLIPPING, 0)
    ledger.bound(Part.LEAVES)
    found = ledger.to_dict()
    assert list(found) == ["bisection bounds", "oracle", "LP leaves"]
    assert [(part["closed"], part["bounded"]) for part in found.values()] == [(0, 0), (2, 0), (0, 1)]
    Reporter(told.append, ledger)(Event("search", ""))
    assert told[0].data["closed"] == {"oracle": 2}


@pytest.mark.parametrize("on_neurons", [False, True])
def test_a_search_proves_while_it_runs_whether_anybody_watches_or_not(on_neurons: bool) -> None:
    graph, box = relu_network([4, 12, 12, 3], 5), Box(-np.ones(4), np.ones(4))
    x = torch.rand(20000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    y = evaluate(graph, x).numpy()
    least = float(np.maximum(y[:, 0] - y[:, 1], y[:, 1] - y[:, 2]).min())
    problem = Problem(graph, (disjunct_of(box, least - 0.1),))
    proved = list[float]()

    class Watched(Reporter):
        def prove(self, bound: float, trust: Trust = Trust.ROUNDED) -> None:
            proved.append(bound)
            super().prove(bound, trust)

    for told in (None, list[Event]()):
        reporter = Watched(None if told is None else told.append, told=-math.inf)  # however short the run, it is due
        context = context_of(problem, reporter=reporter)
        space, tree = neurons_of(context) if on_neurons else boxes_of(context)
        with torch.no_grad():
            branch_and_bound(tree, space, Budget(context.deadline, 200))
        assert context.ledger is reporter.ledger and reporter.ledger.bounded
        assert -math.inf < reporter.lower_bound <= tree.proved <= 0.1 + 1e-6
        assert told is None or (reporter.lower_bound == proved[-1] and told[-1].data["bound"] == proved[-1])


# What has to be said of a proof step


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table that begins with a head."""
    table = text.partition(f"\n{head}\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def closing() -> dict[str, set[str]]:
    """The files that count what is closed, by the part that they count it under."""
    found = defaultdict(set)
    for path in (ROOT / "milpverify").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("close", "_open", "open_part"):
                for part in node.args:
                    if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "Part":
                        found[Part[part.attr].value].add(path.relative_to(ROOT / "milpverify").as_posix())
    return dict(found)


def test_the_map_says_who_closes_by_which_steps() -> None:
    text = (ROOT / "milpverify" / "README.md").read_text()
    table = rows(text, "| part | where | steps |")
    assert {part.strip("`"): set(re.findall(r"`([^`]+)`", where)) for part, where, _ in table} == closing()
    steps = {step for step, *_ in rows(text, "| step | where | rests on |")}
    assert len(steps) > 40
    assert {step for *_, named in table for step in named.split("; ")} <= steps


def test_the_manual_names_every_part_and_every_trust() -> None:
    manual = (ROOT / "README.md").read_text()
    (ledger,) = re.findall(r"^\| `ledger` .* The parts: (.*)$", manual, re.MULTILINE)
    assert set(re.findall(r"`([a-zA-Z' -]+)`", ledger)) - {"bounded"} == {part.value for part in Part}
    assert [trust.strip("`") for trust, _ in rows(manual, "| trust | rests on |")] == [trust.value for trust in Trust]
    assert sorted(Trust, key=lambda trust: -trust.rank) == list(Trust) and len({trust.rank for trust in Trust}) == len(Trust)


def test_every_part_is_taken_by_some_part_of_a_run() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "milpverify").rglob("*.py"))
    assert [part.name for part in Part if f"Part.{part.name}" not in code] == []
