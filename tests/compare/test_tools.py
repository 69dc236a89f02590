"""Other verifiers as commands: verdicts, counterexamples, limits; nothing that they start is left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from networks import absolute_value, write_property

from milpverify.compare.checks import breaks, refute
from milpverify.compare.methods import method_of
from milpverify.compare.process import Processes, measured
from milpverify.compare.rows import Answer, Row, Usage, Word
from milpverify.compare.sources import Instance
from milpverify.compare.tools import Tool, read_point, read_verdict
from milpverify.config import Deadline
from milpverify.result import Trust


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    """|x0| + |x1| >= 1.5 is unsafe on [-1, 1]^2."""
    spec = write_property(tmp_path / "p.vnnlib", [-1, -1], [1, 1], "(>= Y_0 1.5)")
    return Instance.of_files(absolute_value(tmp_path / "net.onnx"), spec)


PROCESSES = Processes()


@pytest.fixture(autouse=True, scope="module")
def _ended() -> Iterator[None]:
    with PROCESSES:
        yield


def run(
    tmp_path: Path, instance: Instance, body: str, limit: float = 20.0, arguments: str = "{onnx} {vnnlib} {timeout}"
) -> tuple[Answer, Usage]:
    script = tmp_path / "tool.py"
    script.write_text(body)
    return PROCESSES.measured(instance, Tool("tool", f"{sys.executable} {script} {arguments}"), limit, Deadline())


def test_verdicts_are_words_on_lines_of_their_own() -> None:
    assert read_verdict("unsatisfied customers\n log: sat\n UNSAT \nrest")[0] is Word.UNSAT
    assert read_verdict("violated\n((X_0 1)\n(Y_0 2))") == (Word.SAT, "((X_0 1)\n(Y_0 2))")
    assert read_verdict("unsat, 12.5")[0] is Word.UNSAT and read_verdict("timed-out")[0] is Word.TIMEOUT
    assert read_verdict("no idea")[0] is None and read_verdict("sat, or so")[0] is None


def test_a_tool_may_say_itself_that_time_is_over(tmp_path: Path, instance: Instance) -> None:
    answer, _ = run(tmp_path, instance, "import sys, time; time.sleep(float(sys.argv[3]) + 0.2); print('timeout')", limit=0.2)
    assert (answer.verdict, answer.message) == (Word.TIMEOUT, "")


def test_points_are_read_whole_or_not_at_all() -> None:
    assert read_point("((X_0 1.5)\n (X_1 -2e-1)\n (Y_0 3))", 2) == [1.5, -0.2]
    for text in ("((X_0 1))", "((X_0 1) (X_1 2) (X_2 3))", "((X_0 1) (X_1 nan))", "((X_0 1) (X_0 2) (X_1 1))", "((X_0 1) (X_1 abc))", ""):
        assert read_point(text, 2) is None


def test_the_word_of_a_tool_has_no_trust(tmp_path: Path, instance: Instance) -> None:
    body = (
        "import sys; assert sys.argv[1].endswith('net.onnx') and sys.argv[2].endswith('p.vnnlib') and sys.argv[3] == '20'; print('unsat')"
    )
    answer, usage = run(tmp_path, instance, body)
    assert (answer.verdict, answer.trust, answer.lower_bound) == (Word.UNSAT, None, -float("inf"))
    assert usage.cpu_seconds > 0 and usage.memory_mb > 1 and usage.seconds > 0


def test_counterexamples_are_judged(tmp_path: Path, instance: Instance) -> None:
    arguments = "{onnx} {vnnlib} {out}"
    body = "import sys; print('unsat'); open(sys.argv[3], 'w').write('sat\\n((X_0 1.0)\\n(X_1 -0.75)\\n(Y_0 1.75))')"
    answer, _ = run(tmp_path, instance, body, arguments=arguments)
    assert (answer.verdict, answer.trust) == (Word.SAT, Trust.ROUNDED)
    assert answer.witness is not None and answer.witness.x == (1.0, -0.75) and answer.witness.margin == pytest.approx(-0.25)
    answer, _ = run(tmp_path, instance, body.replace("-0.75", "0.25"), arguments=arguments)
    assert answer.verdict is Word.UNKNOWN and "does not hold" in answer.message
    answer, _ = run(tmp_path, instance, "print('sat')")
    assert answer.verdict is Word.UNKNOWN and "without a counterexample" in answer.message


def test_failures_are_rows(tmp_path: Path, instance: Instance) -> None:
    answer, _ = run(tmp_path, instance, "raise SystemExit('no licence')")
    assert answer.verdict is Word.ERROR and "exit status 1" in answer.message and "no licence" in answer.message
    answer, _ = measured(instance, Tool("tool", "/no/such/tool {onnx} {vnnlib}"), 5.0, Deadline())
    assert answer.verdict is Word.ERROR and "cannot be started" in answer.message


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_the_limit_ends_all_that_a_tool_started(tmp_path: Path, instance: Instance) -> None:
    """Children in its group, and one that left it."""
    pids = tmp_path / "pids"
    body = f"""
import subprocess, sys, time, os
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
children = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
open({str(pids)!r}, "w").write(" ".join(str(p) for p in [os.getpid(), *(c.pid for c in children)]))
time.sleep(60)
"""
    began = time.monotonic()
    answer, usage = run(tmp_path, instance, body, limit=1.0)
    assert answer.verdict is Word.TIMEOUT and 1.0 <= usage.seconds < 5.0 and time.monotonic() - began < 10
    for pid in map(int, pids.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_tool_that_is_wrong_is_reported() -> None:
    def row(method: str, verdict: Word, trust: Trust | None, message: str = "") -> Row:
        return Row("p", method, -float("inf"), None, verdict, trust, 0, 0, 0, message)

    rows = [row("auto", Word.SAT, Trust.ROUNDED), row("tool", Word.UNSAT, None)]
    refute(rows)
    assert breaks(rows) == ["p: tool says unsat, but the counterexample of auto holds"]
    rows = [row("auto", Word.UNSAT, Trust.ROUNDED), row("tool", Word.UNKNOWN, None, "sat was claimed, but ...")]
    assert breaks(rows) == ["p: tool says sat, but auto proves the property"]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are kept on Linux only")
def test_processes_are_kept_until_a_run_ends_badly(tmp_path: Path, instance: Instance) -> None:
    script = tmp_path / "tool.py"
    script.write_text("import os; print('unknown'); open('%s', 'a').write(f'{os.getppid()} {os.getpid()}\\n')" % (tmp_path / "pids"))
    fine, slow = (Tool("t", f"{command} {{onnx}} {{vnnlib}}") for command in (f"{sys.executable} {script}", "sleep 60"))
    with Processes() as processes:
        assert [processes.measured(instance, fine, 20.0, Deadline())[0].verdict for _ in range(2)] == [Word.UNKNOWN] * 2
        (first,) = processes._idle.values()
        assert processes.measured(instance, method_of("crown"), 20.0, Deadline())[0].verdict is Word.UNKNOWN
        assert [*processes._idle.values()] == [first]
        os.kill(first.process.pid, 9)
        first.process.wait()
        answer, _ = processes.measured(instance, fine, 20.0, Deadline())
        assert answer.verdict is Word.ERROR and "signal 9" in answer.message and not processes._idle
        assert processes.measured(instance, slow, 0.2, Deadline())[0].verdict is Word.ERROR  # sleep takes one number
        assert processes.measured(instance, fine, 20.0, Deadline())[0].verdict is Word.UNKNOWN
    runs = [line.split() for line in (tmp_path / "pids").read_text().splitlines()]
    assert len({parent for parent, _ in runs}) == 3 == len(runs) and not processes._idle
