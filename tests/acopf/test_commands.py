"""The command line for power networks: answers in a stable form, files, and bad input as one line."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from power_cases import TWO
from pypower.api import case9
from support import Run, refused, strictly

from milpverify.acopf.candidates import proved_ranges
from milpverify.acopf.case import Case
from milpverify.acopf.feasibility import check_feasibility
from milpverify.acopf.loads import Loads
from milpverify.acopf.matpower import load_case
from milpverify.acopf.points.judgement import limits
from milpverify.acopf.points.point import Point
from milpverify.acopf.proving.programs import Box
from milpverify.acopf.relaxation.columns import Question
from milpverify.acopf.relaxation.relaxation import Relaxation
from milpverify.acopf.result import Cost, Feasibility, Loadability, Outcome, Reason, Verdict
from milpverify.acopf.summaries import _rounded
from milpverify.result import Trust

AS_READ = Loads()


def outcome(case: Case, loads: Loads = AS_READ) -> dict[str, Any]:
    """What every answer about this case holds: a point with no generation."""
    point = Point(case, np.ones(2), np.zeros(2), np.zeros(1), np.zeros(1), *loads.middle(case))
    return {
        "case": case,
        "loads": loads,
        "reason": Reason.POINT,
        "trust": Trust.ROUNDED,
        "point": point,
        "existence": None,
        "constraints": point.constraints(),
        "proof": None,
        "method": "test",
        "seconds": {"all": 1.0},
    }


Asked = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """`asked("cost", "certify_cost", answer)`: what the command asked; the answer takes the case and the question."""

    def stand_in(module: str, name: str, answer: Callable[..., Outcome]) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def ask(case: Case, **question: Any) -> Outcome:
            calls.append(question)
            return answer(case, question)

        monkeypatch.setitem(sys.modules, f"milpverify.acopf.{module}", SimpleNamespace(**{name: ask}))
        return calls

    return stand_in


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("verdict", [Verdict.FEASIBLE, Verdict.INFEASIBLE, Verdict.UNKNOWN])
def test_feasibility_answers_by_a_word(run_main: Run, case_file: Path, tmp_path: Path, asked: Asked, verdict: Verdict) -> None:
    calls = asked(
        "feasibility",
        "check_feasibility",
        lambda case, q: Feasibility(**outcome(case, q["loads"]), verdict=verdict, tolerance=q["tolerance"]),
    )
    options = "--load-scale 1.1 --load-box 0.05 --quantifier exists --tolerance 1e-5 --solver gurobi --timeout 9 --json r.json"
    done = run_main("acopf", "feasibility", case_file, *options.split())
    assert (done.returncode, done.stdout) == (0, f"{verdict.value}\n"), done.stderr
    assert f"{verdict.name}: two at loads x 1.1 within 5 %" in done.stderr
    (call,) = calls
    assert (call["loads"], call["quantifier"], call["tolerance"], call["solver"]) == (Loads(1.1, 0.05), "exists", 1e-5, "gurobi")
    assert 0 < call["deadline"].remaining() <= 9
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["verdict"], found["tolerance"], found["loads"]) == (verdict.value, 1e-5, {"scale": 1.1, "relative": 0.05})
    assert not list(tmp_path.glob(".r.json*"))


def test_the_summary_names_the_worst_of_every_kind_unless_quiet(run_main: Run, case_file: Path, asked: Asked) -> None:
    def answer(case: Case, question: dict[str, Any]) -> Outcome:
        return Feasibility(**outcome(case, question["loads"]), warnings=("Gurobi is not licensed",))

    asked("feasibility", "check_feasibility", answer)
    done = run_main("acopf", "feasibility", case_file)
    lines = done.stderr.splitlines()
    (balance,) = [line for line in lines if line.startswith("active balance")]
    assert re.split(r"  +", balance.strip()) == ["active balance", "bus 2", "p.u.", "-0.5", "0 .. 0", "-0.5", "-"]
    (flow,) = [line for line in lines if line.startswith("flow from")]
    assert "branch 1-2 (row 1)" in flow and "<= 1 " in flow
    (angle,) = [line for line in lines if line.startswith("angle difference")]
    assert " rad " in angle
    assert "warning: Gurobi is not licensed" in done.stderr
    assert run_main("acopf", "feasibility", case_file, "--quiet").stderr == ""


def test_bounds_are_printed_rounded_outwards(run_main: Run, case_file: Path, asked: Asked) -> None:
    calls = asked("cost", "certify_cost", lambda case, q: Cost(**outcome(case, q["loads"]), lower=100 / 3, upper=200 / 3))
    done = run_main("acopf", "cost", case_file, "--gap", "0.01", "--load-scale", "0.5", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "cost 33.33333333 66.66666667 0.5\n", "")
    assert (calls[0]["gap"], calls[0]["loads"]) == (0.01, Loads(0.5))
    calls = asked("loadability", "max_loadability", lambda case, q: Loadability(**outcome(case), lower=1.25))
    done = run_main("acopf", "loadability", case_file, "--timeout", "5")
    assert (done.returncode, done.stdout) == (0, "loadability 1.25 inf inf\n")
    assert "between 1.25 and inf" in done.stderr


@pytest.mark.parametrize("value", [math.pi, -math.pi, 8208.515470000001, 1e-30 / 3, 0.0, 1.0, 2.0**70])
def test_rounded_decimals_are_on_their_side(value: float) -> None:
    from fractions import Fraction

    down, up = (Fraction(_rounded(value, up=up)) for up in (False, True))
    assert down <= Fraction(value) <= up
    assert up - down <= abs(Fraction(value)) * Fraction(1, 10**9)


def test_files_of_an_answer(run_main: Run, case_file: Path, tmp_path: Path, asked: Asked) -> None:
    class Kept:
        def save(self, path: Path) -> None:
            path.write_text("proof")

    def answer(case: Case, question: dict[str, Any]) -> Outcome:
        return replace(Feasibility(**outcome(case)), proof=Kept(), verdict=Verdict.INFEASIBLE)

    asked("feasibility", "check_feasibility", answer)
    done = run_main("acopf", "feasibility", case_file, "--proof", "p.json", "--plot", "n.svg")
    assert (done.returncode, done.stdout) == (0, "infeasible\n"), done.stderr
    assert (tmp_path / "p.json").read_text() == "proof"
    assert b"<svg" in (tmp_path / "n.svg").read_bytes()
    asked("feasibility", "check_feasibility", lambda case, q: Feasibility(**outcome(case)))
    done = run_main("acopf", "feasibility", case_file, "--proof", "q.json")
    assert (done.returncode, done.stdout) == (0, "unknown\n")
    assert "q.json was not written" in done.stderr and not (tmp_path / "q.json").exists()


def test_info_says_what_was_read(run_main: Run, case_file: Path) -> None:
    done = run_main("acopf", "info", case_file)
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"  +", line.strip()) for line in done.stdout.splitlines()]
    assert rows[0] == ["two"]
    assert ["buses", "2", "reference 1"] in rows
    assert ["voltage limits", "2", "0.9 .. 1.1", "p.u."] in rows
    assert ["active load", "1", "0.5", "p.u. of 100 MVA"] in rows
    assert ["flow limits, |S| at both ends", "1", "1 .. 1", "p.u."] in rows
    assert ["angle limits", "1", "-0.5236 .. 0.5236", "rad"] in rows
    assert ["active limits", "1", "0 .. 2", "p.u."] in rows
    assert ["quadratic costs", "1", "$/h"] in rows


def test_an_internal_error_is_one_line(run_main: Run, case_file: Path, asked: Asked) -> None:
    def answer(case: Case, question: dict[str, Any]) -> Outcome:
        raise RuntimeError("what should not be")

    asked("feasibility", "check_feasibility", answer)
    done = run_main("acopf", "feasibility", case_file)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "internal error: RuntimeError: what should not be" in done.stderr


# ---------------------------------------------------------------------------------------------------- on real questions


def test_feasible_with_everything_that_there_is_to_say(run_main: Run, case_file: Path, tmp_path: Path) -> None:
    done = run_main("acopf", "feasibility", case_file, *"--json r.json --proof p.json --plot n.png --timeout 30".split())
    assert (done.returncode, done.stdout) == (0, "feasible\n"), done.stderr
    assert "an exact operating point, within all limits, was proved to lie within" in done.stderr
    assert "p.json was not written: a feasible answer rests on its point" in done.stderr and not (tmp_path / "p.json").exists()
    assert (tmp_path / "n.png").read_bytes().startswith(b"\x89PNG")
    found = strictly(tmp_path / "r.json")
    assert (found["verdict"], found["trust"], found["has_proof"]) == ("feasible", "exact", False)
    assert found["existence"]["proved"] and found["existence"]["strictly_inside"] and found["existence"]["radius"] <= 1e-6
    assert found["point"]["violation"] <= 1e-6
    for one in found["constraints"]:
        low, high = (float(end) for end in one["proved"])
        assert low <= one["value"] <= high or one["margin"] < 1e-6


def test_a_column_without_a_range_proves_nothing() -> None:
    """Its products with 0 are no numbers; limits hold all the same."""
    case = load_case(case9())
    relaxation = Relaxation(Question(case, Loads().ranges(case)))
    endless = np.full(len(relaxation.columns), math.inf)
    for one in proved_ranges(limits(case), relaxation, Box(-endless, endless)):
        low, high = one.proved
        assert low <= high and high in (math.inf, one.upper)


def test_ctrl_c_ends_a_run_with_what_it_has(run_main: Run, case_file: Path, tmp_path: Path, asked: Asked) -> None:
    def answer(case: Case, question: dict[str, Any]) -> Outcome:
        question["deadline"].cancel()  # as the watchdog does, which is the process's
        return check_feasibility(case, **question)

    asked("feasibility", "check_feasibility", answer)
    done = run_main("acopf", "feasibility", case_file, "--json", "r.json")
    assert (done.returncode, done.stdout) == (0, "unknown\n"), done.stderr
    assert "the run was interrupted" in done.stderr
    assert strictly(tmp_path / "r.json")["reason"] == "INTERRUPTED"


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments",
    ["", "frobnicate", "feasibility", "recheck two.m", "info", "feasibility nowhere.m", "info .", "recheck two.m nowhere.json",
     *(f"feasibility two.m --{option}" for option in (
        "frobnicate", "load-scale much", "load-scale nan", "load-scale inf", "load-box -0.1 --quantifier exists", "load-box nan",
        "load-box 0.05", "quantifier all", "tolerance nan", "tolerance -1", "timeout -1", "timeout nan", "solver guess", "json",
        "json nowhere/r.json", "proof nowhere/p.json", "plot nowhere/n.png", "plot n.odd", "plot n")),
     "cost two.m --gap nan", "cost two.m --gap -1", "cost two.m --load-box 0.05", "loadability two.m --load-scale 2"],
)  # fmt: skip
def test_bad_arguments(run_main: Run, case_file: Path, arguments: str) -> None:
    refused(run_main("acopf", *arguments.split()))


def test_a_box_says_what_it_needs(run_main: Run, case_file: Path) -> None:
    refused(run_main("acopf", "feasibility", case_file, "--load-box", "0.05"), "--quantifier exists")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [("0.9;\n]", "1.2;\n]", "row 2"), ("1 2 0.01 0.1", "1 7 0.01 0.1", "branch row 1"), ("mpc.bus = [", "mpc.buses = [", "bus"),
     (TWO, "", "two.m"), ("50 10", "NaN 10", "bus row 2"), ("mpc.gencost = [2", "mpc.gencost = [1", "piecewise")],
)  # fmt: skip
@pytest.mark.parametrize("command", ["info", "feasibility"])
def test_malformed_cases(run_main: Run, case_file: Path, command: str, old: str, new: str, word: str) -> None:
    assert old in TWO
    case_file.write_text(TWO.replace(old, new))
    refused(run_main("acopf", command, case_file), word)


def test_no_text_at_all(run_main: Run, case_file: Path) -> None:
    case_file.write_bytes(bytes(range(256)) * 4)
    refused(run_main("acopf", "info", case_file), "two.m")


# -------------------------------------------------------------------------------------------------------------- imports


def loaded(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_room_loads_nothing_of_it() -> None:
    heavy = {"torch", "numpy", "scipy", "rich.table", "milpverify.acopf.case"}
    assert not heavy & loaded("import milpverify.cli\nfrom milpverify import acopf\nimport milpverify as mv\nmv.acopf")


def test_reading_and_asking_load_no_torch(case_file: Path) -> None:
    code = (
        f"from milpverify import acopf\ncase = acopf.load_case({str(case_file)!r})\nfrom milpverify.acopf.points import judgement\n"
        "import milpverify.acopf.plots, milpverify.acopf.commands\njudgement.limits(case)\n"
        "acopf.check_feasibility(case)"
    )
    assert not {"torch", "matplotlib", "onnxruntime", "pyscipopt", "gurobipy", "pandas"} & loaded(code)
