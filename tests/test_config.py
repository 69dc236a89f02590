"""Options: choices are given by their values or as members, and leave as values."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest

import milpverify as mv
from milpverify.config import Branching, Options, SearchMethod, SearchOptions, SplitPoints
from milpverify.result import Trust


def test_choices_may_be_given_by_their_values() -> None:
    for trust in Trust:
        assert Options(trust=trust.value).trust is trust and Options(trust=trust).trust is trust
    for method in SearchMethod:
        assert Options(method=method.value) == Options(method=method)
    for branching in Branching:
        assert SearchOptions(branching=branching.value).branching is branching
    for points in SplitPoints:
        assert SearchOptions(points=points.value).points is points
    default = Options()
    assert (default.method, default.trust) == (SearchMethod.AUTO, Trust.SOLVER)
    assert (default.search.branching, default.search.points) == (Branching.FIRST_ORDER, SplitPoints.OPTIMISED)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Options(method="tree"), "unknown method 'tree'; there are auto, bab, milp, smt"),
        (lambda: Options(trust="full"), "unknown trust 'full'; there are exact, rounded, solver"),
        (lambda: SearchOptions(branching="bfs"), "unknown branching 'bfs'; there are bbps, first-order, babsr, widest, random, none"),
        (lambda: SearchOptions(points="end"), "unknown points 'end'; there are optimised, midpoint"),
        (lambda: mv.verify(None, method="tree"), "unknown method 'tree'; there are auto, bab, milp, smt"),  # type: ignore[arg-type]
        (lambda: mv.verify(None, options=mv.Options(trust="full")), "unknown trust 'full'; there are exact, rounded, solver"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_choice_is_refused(made: object, message: str) -> None:
    with pytest.raises(mv.InvalidInput) as error:
        made()  # type: ignore[operator]
    assert str(error.value) == message and isinstance(error.value, ValueError)


def test_options_are_values() -> None:
    options = Options(trust="rounded", search=SearchOptions(branching="widest", deterministic=True).without("leaves"))
    for again in (copy.deepcopy(options), pickle.loads(pickle.dumps(options)), dataclasses.replace(options)):
        assert again == options and hash(again) == hash(options)
    assert dataclasses.replace(options, method="milp").trust is Trust.ROUNDED
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.trust = Trust.EXACT  # type: ignore[misc]
    assert Options() == Options(method="auto", trust="solver") and Options(trust="exact") != Options()


def test_only_trust_in_solvers_believes_them() -> None:
    assert [t for t in Trust if Options(trust=t).believes_solvers] == [Trust.SOLVER]


def test_choices_leave_as_values_in_the_order_of_the_fields() -> None:
    found = Options(method="bab", trust="exact", search=SearchOptions(points="midpoint")).to_dict()
    assert list(found) == [f.name for f in dataclasses.fields(Options)]
    assert list(found["search"]) == [f.name for f in dataclasses.fields(SearchOptions)]
    assert (found["method"], found["trust"]) == ("bab", "exact")
    assert (found["search"]["branching"], found["search"]["points"]) == ("first-order", "midpoint")
    assert json.loads(json.dumps(found)) == found
