"""Many problems: results as they come, whatever happens to one of them."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from networks import absolute_value, hard_pair
from processes import all_gone, descendants
from support import Run

import milpverify as mv
from milpverify.errors import InvalidInput
from milpverify.many.table import COLUMNS, Row, table
from milpverify.many.verifying import _Work, verify_many
from milpverify.result import Counterexample, Reason, Result, Trust, Verdict

SAFE, UNSAFE = "(>= Y_0 2.5)", "(>= Y_0 1.5)"


def spec(path: Path, unsafe: str) -> Path:
    lines = ["(declare-const X_0 Real)", "(declare-const X_1 Real)", "(declare-const Y_0 Real)"]
    lines += [f"(assert (and (>= X_{i} -1) (<= X_{i} 1)))" for i in range(2)]
    path.write_text("\n".join([*lines, f"(assert {unsafe})"]))
    return path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return absolute_value(tmp_path / "net.onnx")


def test_files_and_problems_the_broken_and_the_hard(tmp_path: Path, network: Path) -> None:
    """One process decides them all in turn; a network that it has is not read again."""
    first, second = spec(tmp_path / "safe.vnnlib", SAFE), spec(tmp_path / "unsafe.vnnlib", UNSAFE)
    problem = mv.load(network, first)
    other = mv.Problem(problem.graph, mv.load(network, second).disjuncts, problem.runtime, {"where": "from"})
    asked = [(network, first), (str(network), second), (network, tmp_path / "none"), hard_pair(tmp_path), problem, other]
    found = dict(verify_many(asked, 2.0, workers=1))
    assert [found[k].word for k in range(6)] == ["unsat", "sat", "error", "timeout", "unsat", "sat"]
    assert found[2].reason is Reason.FAILED and "no such property" in found[2].note
    assert found[3].lower_bound > -100 and found[3].seconds < 6  # the bound that was proved stays
    assert found[5].counterexample is not None and found[5].files == {"where": "from"}
    assert list(verify_many([])) == []
    problem = mv.Problem(problem.graph, problem.disjuncts, lambda x: x)  # which no other process can be sent
    ((_, result),) = verify_many([problem], workers=1)
    assert result.reason is Reason.FAILED and "cannot be sent" in result.note


def test_a_process_that_dies_costs_one_problem_and_cancelling_ends_the_rest(tmp_path: Path, network: Path) -> None:
    hard, easy = hard_pair(tmp_path), (network, spec(tmp_path / "safe.vnnlib", SAFE))
    deadline, before = mv.Deadline(), descendants(os.getpid())
    with closing(verify_many([easy, hard, easy, hard, easy], 60.0, workers=1, deadline=deadline)) as results:
        assert next(results)[1].verdict is Verdict.VERIFIED
        (child,) = descendants(os.getpid()) - before
        os.kill(child, signal.SIGKILL)
        number, result = next(results)
        assert number == 1 and result.reason is Reason.FAILED and "signal 9" in result.note
        assert [r.word for _, r in [next(results)]] == ["unsat"]
        threading.Timer(0.5, deadline.cancel).start()
        ((number, result),) = results
        assert number == 3 and result.reason is Reason.INTERRUPTED
    assert all_gone(descendants(os.getpid()) - before, 5.0)


def test_what_cannot_be_asked_is_refused_at_once(network: Path) -> None:
    for wrong in ({"workers": 0}, {"timeout": -1.0}, {"method": "magic"}):
        with pytest.raises(InvalidInput):
            verify_many([], **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="problem 0 is neither"):
        list(verify_many([network]))  # type: ignore[list-item]


def test_killed_and_resumed_no_row_is_lost_or_doubled(tmp_path: Path, network: Path, environment: dict[str, str], run_cli: Run) -> None:
    specs = [spec(tmp_path / f"{k}.vnnlib", f"(>= Y_0 {1.5 + k / 10})") for k in range(10)]
    rows = tmp_path / "rows.csv"
    command = ["verify", str(network), *map(str, specs), "--csv", str(rows), "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "milpverify", *command], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    before = [row["property"] for row in csv.DictReader(rows.read_text().splitlines())]
    assert before and len(set(before)) == len(before)
    done = run_cli(*command, "--resume")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 10
    found = {row["property"]: row["verdict"] for row in csv.DictReader(rows.read_text().splitlines())}
    assert found == {str(path): "sat" if k <= 5 else "unsat" for k, path in enumerate(specs)}
    assert rows.read_text().count("\n") == 11


def test_the_command_line_refuses(tmp_path: Path, network: Path, run_main: Run) -> None:
    paths = [spec(tmp_path / f"{k}.vnnlib", SAFE) for k in range(2)]
    for more, words in ((["--json", "out.json"], "--csv"), (["--resume"], "--csv"), (["--csv", str(paths[0])], "read from")):
        done = run_main("verify", network, *paths, *more)
        assert done.returncode == 2 and words in done.stderr


def test_rows_are_read_as_they_are_written(tmp_path: Path) -> None:
    import numpy as np

    point = Counterexample(np.array([0.1, -1 / 3]), np.array([1.0]), -0.5, -0.5)
    results = [
        Result(Verdict.FALSIFIED, Reason.COUNTEREXAMPLE, Trust.ROUNDED, -1 / 3, point, 0.25),
        Result(Verdict.UNKNOWN, Reason.FAILED, Trust.ROUNDED, float("-inf"), note='a "note", of\ntwo lines'),
    ]
    rows = [Row.of("net", f"property {k}", result) for k, result in enumerate(results)]
    with table(tmp_path / "rows.csv", resume=False) as held:
        for row in rows:
            held.append(row.cells)
    with table(tmp_path / "rows.csv", resume=True) as held:
        assert held.rows == rows
    (tmp_path / "other.csv").write_text(",".join(COLUMNS) + "\na,b\n")
    with pytest.raises(InvalidInput, match="no row"):
        table(tmp_path / "other.csv", resume=True)


def test_what_a_process_says_after_its_end_is_no_second_result() -> None:
    work = _Work([], 1.0, 1, mv.Deadline(), {}, {})
    late = Result(Verdict.UNKNOWN, Reason.TIMEOUT, Trust.ROUNDED, 0.0)
    work.inbox.put((object(), ("ended", late)))  # type: ignore[arg-type]
    assert list(work.heard()) == []
