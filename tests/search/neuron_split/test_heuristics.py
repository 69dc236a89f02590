"""A heuristic is a class: those that there are have their names, and one more is one file and one line, or is handed in."""

from __future__ import annotations

import ast
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from random_nets import sampled_problem
from support import ROOT
from torch import Tensor

import milpverify as mv
from milpverify.config import HEURISTICS, Branching, Options, SearchOptions
from milpverify.search.neuron_split.branching import Heuristic, Splits
from milpverify.search.neuron_split.branching.heuristic import heuristic_of

PACKAGE = Path(mv.__file__).parent
FOLDER = PACKAGE.parent.joinpath(*HEURISTICS.split("."))
LISTED = {branching.place for branching in Branching if branching is not Branching.NONE}


class Polarity(Heuristic):
    """What lies most evenly on both sides of 0 (Marabou, arXiv 2004.08440, section 4.2)."""

    name = "polarity"

    def score(self, splits: Splits) -> Tensor:
        low, high = (side.gather(1, splits.column) for side in (splits.domain.low, splits.domain.high))
        return -(low + high).abs() / (high - low).clamp(min=1e-12)


class Loosest(Heuristic):
    """What loses most in the middle of its interval."""

    name = "loosest"
    needs_bounds = True

    def score(self, splits: Splits) -> Tensor:
        return splits.parents.loose


PROBLEMS = (("relu", 1, 1.4), ("relu", 0, 1.0), ("tanh", 0, 0.7))


def runs(branching: str | type[Heuristic]) -> list[tuple[str, int]]:
    """Verdicts, and how many subproblems these took."""
    switches = SearchOptions(branching=branching, oracle=False, refining=False, deterministic=True)
    found = [mv.verify(sampled_problem(*given), 60, options=Options(attack=False, search=switches)) for given in PROBLEMS]
    return [(result.verdict.value, result.ledger["neuron-split bounds"]["bounded"]) for result in found]


def verdicts(branching: str | type[Heuristic]) -> list[str]:
    return [verdict for verdict, _ in runs(branching)]


# -- those that there are -------------------------------------------------------------------------------------------------------


def classes_in(folder: Path) -> set[str]:
    """The heuristics of a folder, as `Branching` says where they are."""
    found = set()
    for path in folder.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and any("Heuristic" in ast.unparse(base) for base in node.bases):
                found.add(f"{path.stem}:{node.name}")
    return found


def test_every_heuristic_is_listed_and_has_the_name_that_is_listed() -> None:
    assert classes_in(FOLDER) == LISTED
    for branching in Branching:
        if branching is not Branching.NONE:
            found = heuristic_of(branching)
            assert issubclass(found, Heuristic) and found.name == branching.value
            assert found.needs_bounds or not (found.needs_point or found.needs_forms or found.scores_all)


# -- one of one's own -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [Polarity, Loosest])
def test_a_class_that_is_handed_in_decides_the_same(own: type[Heuristic]) -> None:
    found, usual = runs(own), runs("first-order")
    assert [verdict for verdict, _ in found] == ["unsat", "sat", "unsat"] == [verdict for verdict, _ in usual]
    assert found == runs(own) and found != usual  # it repeats, and it is what splits


def test_results_say_its_name_and_options_are_values_still() -> None:
    options = Options(search=SearchOptions(branching=Polarity))
    assert options.to_dict()["search"]["branching"] == "polarity" and json.dumps(options.to_dict())
    assert pickle.loads(pickle.dumps(options)) == options == Options(search=SearchOptions(branching=Polarity))
    assert options != Options() and hash(options) == hash(Options(search=SearchOptions(branching=Polarity)))
    assert options.search.without("leaves").branching is Polarity


class Nameless(Heuristic):
    def score(self, splits: Splits) -> Tensor:
        return splits.domain.low


class Namesake(Nameless):
    name = "widest"


class Scoreless(Heuristic):
    name = "scoreless"


class Stranger:
    name = "stranger"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Nameless, "a heuristic of one's own has a `name` of its own, a text, not None"),
        (Namesake, "a heuristic of one's own has a `name` of its own, a text, not 'widest'"),
        (Scoreless, f"a heuristic derives from {HEURISTICS}.Heuristic and has a `score`, unlike Scoreless"),
        (Stranger, f"a heuristic derives from {HEURISTICS}.Heuristic and has a `score`, unlike Stranger"),
        (Heuristic, f"a heuristic derives from {HEURISTICS}.Heuristic and has a `score`, unlike Heuristic"),
        ("polarity", f"unknown branching 'polarity'; there are {', '.join(b.value for b in Branching)}"),
    ],
)
def test_what_is_no_heuristic_is_refused(given: str | type, words: str) -> None:
    with pytest.raises(mv.InvalidInput, match=f"^{re.escape(words)}$"):
        SearchOptions(branching=given)


@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_change_no_verdict(value: float, needs: bool) -> None:
    """NaN and -inf split nothing, so that subproblems are left open; inf is the highest score."""

    class Odd(Polarity):
        needs_bounds = needs

        def score(self, splits: Splits) -> Tensor:
            return super().score(splits) * 0 + value

    for found, right in zip(verdicts(Odd), ("unsat", "sat", "unsat"), strict=True):
        assert found == right or (found == "unknown" and value != math.inf)


def test_scores_of_something_else_are_refused() -> None:
    class Summed(Polarity):
        def score(self, splits: Splits) -> Tensor:
            return super().score(splits).sum(1)

    class Listed(Polarity):
        def score(self, splits: Splits) -> Any:
            return super().score(splits).tolist()

    class Complex(Polarity):
        def score(self, splits: Splits) -> Tensor:
            return super().score(splits) + 1j

    class Undeclared(Loosest):
        needs_bounds = False

    cases = [(Summed, mv.InvalidInput, "'polarity' scores"), (Undeclared, TypeError, "needs_bounds = True")]
    cases += [(own, mv.InvalidInput, "'polarity' has to score by a tensor of real numbers$") for own in (Listed, Complex)]
    for own, error, words in cases:
        with pytest.raises(error, match=words):
            mv.verify(sampled_problem(*PROBLEMS[0]), 60, options=Options(attack=False, search=SearchOptions(branching=own, oracle=False)))


def test_processes_have_to_find_the_class() -> None:
    class Local(Polarity):
        pass

    options = Options(search=SearchOptions(branching=Local))
    with pytest.raises(mv.InvalidInput, match=r"^the heuristic Local cannot be read in another process: define it in a module of its own$"):
        mv.verify_many([sampled_problem(*PROBLEMS[0])], options=options)


# -- one more, as the checklist says ----------------------------------------------------------------------------------------------

CHECKLIST = (ROOT / ".github" / "CONTRIBUTING.md").read_text().partition("## Add a branching heuristic")[2].partition("\n## ")[0]
SNIPPET = dedent("".join(re.findall(r"^(?: {7}.*\n|\n)", CHECKLIST, re.MULTILINE))).strip()
FILE = f'"""How evenly an interval lies around 0."""\n\n{SNIPPET}\n'
LINE, BEFORE = '    POLARITY = "polarity", "polarity:Polarity"\n', '    NONE = "none", ""'
RUN = """
    import json
    import milpverify, test_heuristics as tests
    from milpverify.cli import app
    from typer.testing import CliRunner
    tests.test_every_heuristic_is_listed_and_has_the_name_that_is_listed()
    told = CliRunner().invoke(app, ["verify", "--help"]).stdout
    print(json.dumps([milpverify.__file__, told, tests.verdicts("polarity")]))
    """


def test_one_file_and_one_line_make_a_heuristic(tmp_path: Path) -> None:
    """In a copy of the package; without the line a test fails, and without a word in the manual `tests/test_config.py` does."""
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("encodings", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    folder, config = copy / FOLDER.relative_to(PACKAGE), copy / "config.py"
    (folder / "polarity.py").write_text(FILE)
    assert classes_in(folder) - LISTED == {"polarity:Polarity"}
    text = config.read_text()
    assert text.count(BEFORE) == 1
    config.write_text(text.replace(BEFORE, LINE + BEFORE))
    shared = [path for path in sys.path if Path(path).is_relative_to(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [tmp_path, *shared, Path(__file__).parent]))}
    done = subprocess.run(
        [sys.executable, "-c", dedent(RUN)], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    where, help_, found = json.loads(done.stdout)
    assert Path(where).is_relative_to(tmp_path) and "|polarity|" in help_
    assert found == verdicts("first-order")
