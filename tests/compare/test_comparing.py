"""compare() and `milpverify compare`: the table and its forms, errors, contradictions, resuming after a kill."""

from __future__ import annotations

import csv
import importlib
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from networks import absolute_value, hard_pair, write_property
from support import Run, refused, strictly

import milpverify as mv
from milpverify.compare.checks import breaks, refute
from milpverify.compare.process import Processes
from milpverify.compare.rows import COLUMNS, Answer, Row, Usage, Witness, Word
from milpverify.result import Trust


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return absolute_value(tmp_path / "net.onnx")


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    return write_property(tmp_path / "safe.vnnlib", [-1, -1], [1, 1], "(>= Y_0 2.5)")


@pytest.fixture
def unsafe(tmp_path: Path) -> Path:
    return write_property(tmp_path / "unsafe.vnnlib", [-1, -1], [1, 1], "(>= Y_0 1.5)")


def row(
    method: str, bound: float = -math.inf, verdict: Word = Word.UNKNOWN, witness: Witness | None = None, gap: float | None = None
) -> Row:
    return Row("p", method, bound, gap, verdict, Trust.ROUNDED, 1.0, 1.0, 1.0, "", witness)


# ------------------------------------------------------------------------------------------------------------ the table


def test_a_comparison(net: Path, safe: Path, unsafe: Path, tmp_path: Path) -> None:
    seen = list[tuple[str, str, int]]()
    found = mv.compare(
        [(net, safe), (net, unsafe)],
        ["ibp", "lp", "exact:1e-4"],
        csv=tmp_path / "rows.csv",
        jobs=2,
        on_row=lambda row, left: seen.append((row.problem, row.method, left)),
    )
    assert [(r.problem, r.method) for r in found] == [(f"net {p}", m) for p in ("safe", "unsafe") for m in ("ibp", "lp", "exact:1e-4")]
    assert found.complete and not found.breaks and [left for *_, left in seen] == [5, 4, 3, 2, 1, 0]
    assert {problem: method for problem, method, _ in reversed(seen)} == dict.fromkeys(["net safe", "net unsafe"], "exact:1e-4")
    for one, margin in zip((found.rows[:3], found.rows[3:]), (0.5, -0.5), strict=True):
        for each in one:
            assert each.gap is not None and each.lower_bound + each.gap == pytest.approx(margin, abs=1e-6)
            assert each.seconds > 0 and each.memory_mb > 50 and each.trust is not None
    assert [r.verdict for r in found] == [Word.UNKNOWN, Word.UNSAT, Word.UNSAT, Word.UNKNOWN, Word.UNKNOWN, Word.SAT]
    # The forms.
    lines = list(csv.reader((found.to_csv(tmp_path / "again.csv")).splitlines()))
    assert tuple(lines[0]) == COLUMNS and len(lines) == 7
    assert sorted((tmp_path / "rows.csv").read_text().splitlines()) == sorted((tmp_path / "again.csv").read_text().splitlines())
    found.to_json(tmp_path / "rows.json")
    assert len(strictly(tmp_path / "rows.json")["rows"]) == 6
    text = str(found)
    assert "net unsafe" in text and "verified" in text
    summary = {s.method: s for s in found.summary()}
    assert (summary["exact:1e-4"].verified, summary["exact:1e-4"].falsified, summary["ibp"].open) == (1, 1, 2)


def test_pandas_when_it_is_there() -> None:
    found = mv.Comparison((row("lp", 0.25, Word.UNSAT, gap=0.5),))
    if importlib.util.find_spec("pandas") is None:  # type: ignore[attr-defined]
        with pytest.raises(ImportError, match="pip install pandas"):
            found.to_pandas()
    else:
        frame = found.to_pandas()
        assert list(frame.columns) == [*COLUMNS, "message"] and frame.gap[0] == 0.5


def test_problems_stated_in_python() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    problem = mv.Problem(module, mv.Box([-0.1, -0.1], [0.1, 0.1]), unsafe="(<= Y_0 -100)")
    (found,) = mv.compare([problem], ["crown"])
    assert (found.problem, found.verdict) == ("problem 1", Word.UNSAT)
    with pytest.raises(mv.InvalidInput, match="needs files"):
        mv.compare([problem], ["t=x {onnx} {vnnlib}"])

    class Local(torch.nn.Module):  # which another process cannot import
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    problem = mv.Problem(Local().eval(), mv.Box([0.0], [1.0]), unsafe="(<= Y_0 -1)")
    assert mv.compare([problem], ["crown"]).rows[0].verdict == Word.UNSAT


# --------------------------------------------------------------------------------------------------- what may not be said


def test_bounds_out_of_order_are_reported() -> None:
    assert breaks([row("ibp", 0.0), row("lp", 0.5), row("crown", 0.25)]) == []
    (text,) = breaks([row("crown", 0.5), row("alpha-crown", 0.25), row("lp", 0.5)])
    assert "0.25 of alpha-crown" in text and "0.5 of crown" in text
    assert breaks([row("crown", 0.5), row("alpha-crown", 0.25, Word.TIMEOUT)]) == []  # no theorem speaks of half a run


def test_a_bound_above_a_point_names_both() -> None:
    point = Witness(0.125, (1.0, 2.0))
    refute([row("lp", 0.125), row("ibp", 0.0, witness=point)])
    with pytest.raises(
        mv.Contradiction, match=r"lp proves a margin of at least 0\.25 .*, but ibp has judged a margin of at most 0\.125 at X = \(1, 2\)"
    ):
        refute([row("lp", 0.25), row("ibp", 0.0, witness=point)])
    with pytest.raises(mv.Contradiction, match="auto proves"):
        refute([row("auto", 0.0, Word.UNSAT), row("bab", -1.0, Word.SAT, Witness(0.0, (1.0,)))])
    # What was read from a file still says so much.
    with pytest.raises(mv.Contradiction, match="exact"):
        refute([row("lp", 0.25), row("exact", 0.0, Word.UNSAT, gap=0.125)])
    with pytest.raises(mv.Contradiction, match="bab"):
        refute([row("lp", 0.25), row("bab", -1.0, Word.SAT)])


def test_a_contradiction_ends_the_comparison(net: Path, safe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([Answer(Word.UNSAT, 1.0, Trust.ROUNDED), Answer(Word.UNKNOWN, 0.0, Trust.ROUNDED, witness=Witness(0.5, (1.0, 1.0)))])
    monkeypatch.setattr(Processes, "measured", lambda *_: (next(answers), Usage(1.0, 1.0, 1.0)))
    with pytest.raises(mv.Contradiction):
        mv.compare([(net, safe)], ["ibp", "crown"], csv=tmp_path / "rows.csv")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3  # what contradicts each other is kept


# ------------------------------------------------------------------------------------------------------ the command line


def test_the_command_line(run_main: Run, net: Path, safe: Path, tmp_path: Path) -> None:
    script = tmp_path / "tool.py"
    script.write_text("print('unsat')")
    tool = f"other={sys.executable} {script} {{onnx}} {{vnnlib}}"
    done = run_main("compare", net, safe, "--methods", "crown", "--tool", tool, "--json", "r.json", "--csv", "r.csv")
    assert done.returncode == 0 and done.stderr == ""
    assert [line.split()[:1] for line in done.stdout.splitlines() if "unsat" in line] == [["net"], ["other"]]
    found = json.loads((tmp_path / "r.json").read_text())
    assert [r["trust"] for r in found["rows"]] == ["rounded", None]
    written = (tmp_path / "r.csv").read_text()
    again = run_main("compare", net, safe, "--methods", "crown", "--tool", tool, "--csv", "r.csv", "--resume")
    assert again.returncode == 0 and (tmp_path / "r.csv").read_text() == written  # nothing was run again


def test_bad_input_is_one_line(run_main: Run, net: Path, safe: Path, tmp_path: Path) -> None:
    (tmp_path / "instances.csv").write_text("net.onnx,missing.vnnlib,1\n")
    (tmp_path / "bad.onnx").write_text("no network")
    (tmp_path / "r.csv").write_text("held\n")
    refused(run_main("compare", net, safe, "--methods", "crwn"), "unknown method 'crwn'")
    refused(run_main("compare", net), "a list of instances")
    refused(run_main("compare", "instances.csv"), "missing.vnnlib")
    refused(run_main("compare", "missing.csv"), "missing.csv")
    refused(run_main("compare", "bad.onnx", safe, "--methods", "ibp"), "bad.onnx")
    refused(run_main("compare", net, safe, "--csv", "r.csv"), "--resume")
    refused(run_main("compare", net, safe, "--csv", "r.csv", "--resume"), "no file of a comparison")
    refused(run_main("compare", net, safe, "--resume"), "CSV")
    refused(run_main("compare", net, safe, "--tool", "x={onnx}"), "needs {onnx} and {vnnlib}")
    refused(run_main("compare", net, safe, "--timeout", "nan"), "--timeout")


def test_limits_are_kept_from_outside(tmp_path: Path) -> None:
    net, spec = hard_pair(tmp_path)
    began = time.monotonic()
    (found,) = mv.compare([(net, spec)], ["milp:scip"], timeout=2.0)
    assert found.verdict is Word.TIMEOUT and found.lower_bound > -math.inf and found.gap is None
    assert 2.0 <= found.seconds < 6.0 and time.monotonic() - began < 30


# -------------------------------------------------------------------------------------------------- kill and go on again


def problems(folder: Path, count: int) -> Path:
    """A list of so many instances."""
    absolute_value(folder / "net.onnx")
    for k in range(count):
        write_property(folder / f"p{k}.vnnlib", [-1, -1], [1, 1], f"(>= Y_0 {2.5 + k})")
    path = folder / "instances.csv"
    path.write_text("".join(f"net.onnx,p{k}.vnnlib,20\n" for k in range(count)))
    return path


def killed_and_resumed(folder: Path, environment: dict[str, str], count: int, names: list[str], kills: list[int]) -> list[list[str]]:
    """The rows of a comparison by tools that is killed whenever its file has so many lines, and then goes on to its end."""
    script, rows = folder / "tool.py", folder / "rows.csv"
    script.write_text("print('unknown')")
    tools = [part for name in names for part in ("--tool", f"{name}={sys.executable} -S {script} {{onnx}} {{vnnlib}}")]
    command = [sys.executable, "-m", "milpverify", "compare", str(problems(folder, count)), "--methods", "", *tools]
    command += ["--csv", str(rows), "--resume"]
    for lines in kills:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        while running.poll() is None and (not rows.exists() or rows.read_bytes().count(b"\n") <= lines):
            time.sleep(0.01)
        assert running.poll() is None
        running.send_signal(signal.SIGKILL)
        running.wait()
        with rows.open("ab") as file:
            file.write(b"net p0,a,-in")  # as if it had been cut off in the middle of a write
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=600)
    assert done.stderr == ""
    return list(csv.reader(rows.read_text().splitlines()))[1:]


def test_no_row_is_lost_or_doubled(tmp_path: Path, environment: dict[str, str]) -> None:
    found = killed_and_resumed(tmp_path, environment, 8, ["a", "b"], [3, 9])
    assert sorted((r[0], r[1]) for r in found) == sorted((f"net p{k}", name) for k in range(8) for name in "ab")


def test_an_interrupted_comparison_says_so(tmp_path: Path, environment: dict[str, str]) -> None:
    net, spec = hard_pair(tmp_path)
    command = [
        sys.executable,
        "-m",
        "milpverify",
        "compare",
        str(net),
        str(spec),
        "--methods",
        "ibp,milp",
        "--csv",
        str(tmp_path / "r.csv"),
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not (tmp_path / "r.csv").exists() or (tmp_path / "r.csv").read_bytes().count(b"\n") < 2:
        time.sleep(0.02)
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 0 and "ibp" in out and "interrupted" in out and err == ""
    assert (tmp_path / "r.csv").read_bytes().count(b"\n") == 2
