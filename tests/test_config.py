"""Options: choices are given by their values or as members, and leave as values."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
from enum import Enum
from pathlib import Path

import pytest
from support import ROOT

import milpverify as mv
from milpverify.config import PARTS, Branching, CurveEncoding, Milp, Options, SearchMethod, SearchOptions, SplitPoints
from milpverify.result import Trust
from milpverify.run_info import settings_of


def test_choices_may_be_given_by_their_values() -> None:
    for trust in Trust:
        assert Options(trust=trust.value).trust is trust and Options(trust=trust).trust is trust
    for method in SearchMethod:
        assert Options(method=method.value) == Options(method=method)
    for encoding in CurveEncoding:
        assert Options(encoding=encoding.value) == Options(encoding=encoding)
        assert Milp(encoding=encoding.value).encoding is encoding
    for branching in Branching:
        assert SearchOptions(branching=branching.value).branching is branching
    for points in SplitPoints:
        assert SearchOptions(points=points.value).points is points
    default = Options()
    assert (default.method, default.trust, default.encoding) == (SearchMethod.AUTO, Trust.SOLVER, CurveEncoding.PIECES)
    assert (default.search.branching, default.search.points) == (Branching.FIRST_ORDER, SplitPoints.OPTIMISED)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Options(method="tree"), "unknown method 'tree'; there are auto, bab, milp, smt"),
        (lambda: Options(trust="full"), "unknown trust 'full'; there are exact, rounded, solver"),
        (lambda: Options(encoding="lines"), "unknown encoding 'lines'; there are pieces, native"),
        (lambda: mv.Milp("highs", encoding="lines"), "unknown encoding 'lines'; there are pieces, native"),
        (lambda: SearchOptions(branching="bfs"), f"unknown branching 'bfs'; there are {', '.join(b.value for b in Branching)}"),
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
    found = Options(method="bab", encoding="native", trust="exact", search=SearchOptions(points="midpoint")).to_dict()
    assert list(found) == [f.name for f in dataclasses.fields(Options)]
    assert list(found["search"]) == [f.name for f in dataclasses.fields(SearchOptions)]
    assert (found["method"], found["encoding"], found["trust"]) == ("bab", "native", "exact")
    assert (found["search"]["branching"], found["search"]["points"]) == ("first-order", "midpoint")
    assert json.loads(json.dumps(found)) == found


def test_a_configured_solver_brings_its_settings() -> None:
    given = Options(encoding="native", trust="rounded", seed=3)
    assert settings_of(given, "milp") == dataclasses.replace(given, method="milp")
    assert settings_of(given, "auto") == given
    asked = settings_of(given, Milp("highs", threads=2, memory_mb=100, encoding="pieces"))
    assert asked == Options("milp", "highs", "pieces", trust="rounded", seed=3, threads=2, memory_mb=100)
    assert settings_of(Options(), Milp(encoding="native")).encoding is CurveEncoding.NATIVE


@pytest.mark.parametrize(
    ("option", "choices"),
    [("method", SearchMethod), ("trust", Trust), ("encoding", CurveEncoding), ("branching", Branching), ("points", SplitPoints)],
)
def test_the_manual_names_every_choice(option: str, choices: type[Enum]) -> None:
    (line,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `--{option}"))
    named = set(re.split(r"[\\|` ]+", line))
    assert named >= {choice.value for choice in choices}


def test_the_manual_names_every_part_that_can_be_turned_off() -> None:
    (line,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `--without"))
    assert set(re.findall(r"`(\w+)`", line)) == set(PARTS)


def test_every_part_that_can_be_turned_off_is_asked_for() -> None:
    """One that nobody looks at would turn nothing off."""
    code = "\n".join(path.read_text() for path in (ROOT / "milpverify").rglob("*.py") if path.name != "config.py")
    assert [part for part in PARTS if not re.search(rf"\b(?:switches|search|options)\.{part}\b", code)] == []


def test_tuning_numbers_that_no_run_would_read_are_refused() -> None:
    from milpverify.balls.ball import BallTuning
    from milpverify.search.choose_space import SpaceTuning

    words = "^tuning is a tuple of dataclasses of tuning numbers, not a "
    for given in (SpaceTuning(), [SpaceTuning()]):
        with pytest.raises(mv.InvalidInput, match=words + type(given).__name__):
            SearchOptions(tuning=given)  # type: ignore[arg-type]
    with pytest.raises(mv.InvalidInput, match=r"^no run reads a BallTuning: "):
        SearchOptions(tuning=(BallTuning(),))


def test_every_kind_of_tuning_numbers_has_a_name_of_its_own_and_is_read_by_runs_or_says_not() -> None:
    """What a result says of them it says by name."""
    code = "".join(path.read_text() for path in sorted(Path(mv.__file__).parent.rglob("*.py")))
    kinds = re.findall(r"^class (\w+)\(Tuning\):\n    \"\"\".*?\"\"\"\n(\n    of_runs = False\n)?", code, flags=re.MULTILINE | re.DOTALL)
    assert len(kinds) > 40 and len(dict(kinds)) == len(kinds)
    assert {name for name, apart in kinds if not apart} == set(re.findall(r"\btuned\((?:[\w.]+, )?(\w+Tuning)\)", code))
