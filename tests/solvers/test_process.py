"""Solver processes: whatever happens to the child, the outcome says so at once, proves no more than it may, and leaves no child behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from random_nets import hard_model, proved_bounds, relu_network

from milpverify.config import Deadline
from milpverify.encode.milp import encode
from milpverify.encode.smt import smt_script
from milpverify.solvers.base import Answer, Limits, Manner, Progress, SolverStatus
from milpverify.solvers.model import Model, SmtScript
from milpverify.solvers.names import MILP_SOLVERS
from milpverify.solvers.process import SolverProcess, SolverTuning
from milpverify.solvers.trusted_bound import safe_dual_bound
from milpverify.solvers.worker import receive, send
from milpverify.spec import Box, Disjunct, Rows

EASY = SmtScript("(declare-const x_0 Real)(assert (< (/ 1.0 3.0) x_0))(assert (<= x_0 0.5))", ("x_0",))

IDLE = "process.solve(hard_model([2, 3, 3]), Limits(), Deadline(60)); print(process.pid, flush=True); import time; time.sleep(60)"


@pytest.fixture(scope="module")
def hard() -> Model:
    return hard_model()


@pytest.fixture(scope="module")
def hard_script() -> SmtScript:
    graph, box = relu_network([6, 30, 30, 3], 1), Box(-np.ones(6), np.ones(6))
    return smt_script(graph, Disjunct(box, Rows.on_outputs([[1, -1, 0], [0, 1, -1]], [-1, -1], 6), Rows.none(6, 3)))


def gone(pid: int, within: float = 1.0) -> bool:
    """Whether a process has ended; one that its parent did not wait for counts as alive."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def started(process: SolverProcess) -> int:
    """The pid, once there is one."""
    while process.pid is None:
        time.sleep(0.01)
    return process.pid


@pytest.mark.parametrize("solver", MILP_SOLVERS)
def test_sigkill_in_the_middle_of_a_solve(solver: str, hard: Model) -> None:
    pids: list[int] = []

    def murder(progress: Progress) -> bool:
        if progress.seconds > 0.3 and not pids:
            pids.append(started(process))
            os.kill(pids[0], signal.SIGKILL)
        return False

    with SolverProcess(solver) as process:
        began = time.monotonic()
        outcome = process.solve(hard, Limits(), Deadline(60), murder)
        assert outcome.status is SolverStatus.CRASHED
        assert "signal 9" in outcome.message
        assert outcome.seconds < 20
        assert time.monotonic() - began < 20
        assert safe_dual_bound(outcome, hard) <= float(hard.objective @ hard.start)
        assert gone(pids[0])
        # The next model gets a fresh worker.
        assert process.solve(hard_model([2, 3, 3]), Limits(), Deadline(60)).status is SolverStatus.OPTIMAL
        last = started(process)
    assert gone(last)


@pytest.mark.parametrize("solver", [*MILP_SOLVERS, "z3"])
def test_deadline_and_cancel(solver: str, hard: Model, hard_script: SmtScript) -> None:
    model = hard_script if solver == "z3" else hard
    with SolverProcess(solver) as process:
        began = time.monotonic()
        outcome = process.solve(model, Limits(), Deadline(1.0))
        assert outcome.status is SolverStatus.TIME_LIMIT
        assert time.monotonic() - began < 10
        deadline = Deadline(60)
        threading.Timer(0.5, deadline.cancel).start()
        began = time.monotonic()
        outcome = process.solve(model, Limits(), deadline)
        assert outcome.status is SolverStatus.INTERRUPTED
        assert time.monotonic() - began < 10
        assert process.pid is None
        assert process.solve(model, Limits(), deadline).status is SolverStatus.INTERRUPTED
        assert process.pid is None  # nothing was started for a run that is over


def test_a_worker_that_hangs_is_killed_at_the_deadline(hard: Model) -> None:
    with SolverProcess("scip") as process:
        threading.Timer(0.6, lambda: os.kill(started(process), signal.SIGSTOP)).start()
        began = time.monotonic()
        outcome = process.solve(hard, Limits(), Deadline(1.0))
        assert outcome.status is SolverStatus.TIME_LIMIT
        assert "killed" in outcome.message
        assert time.monotonic() - began < 2.5
        assert process.pid is None


def test_ctrl_c_leaves_no_child(hard: Model) -> None:
    process = SolverProcess("scip")
    pids: list[int] = []

    def interrupt() -> None:
        pids.append(started(process))
        os.kill(os.getpid(), signal.SIGINT)

    # A process that was started in the background may have inherited that SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.7, interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            process.solve(hard, Limits(), Deadline(60))
    finally:
        signal.signal(signal.SIGINT, before)
    assert gone(pids[0])


def test_an_error_of_the_callback_leaves_no_child(hard: Model) -> None:
    pids: list[int] = []

    def fail(progress: Progress) -> bool:
        pids.append(started(process))
        raise RuntimeError("the callback fails")

    process = SolverProcess("highs")
    with pytest.raises(RuntimeError, match="the callback fails"):
        process.solve(hard, Limits(), Deadline(60), fail)
    assert gone(pids[0])


@pytest.mark.parametrize("solver", MILP_SOLVERS)
def test_stopping_on_request_keeps_the_worker(solver: str, hard: Model) -> None:
    with SolverProcess(solver) as process:
        outcome = process.solve(hard, Limits(), Deadline(60), lambda p: p.seconds > 0.3)
        assert outcome.status is SolverStatus.INTERRUPTED
        assert outcome.seconds < 10
        if process.pid is not None:  # it stopped within its grace
            pid = process.pid
            assert process.solve(hard, Limits(0.3), Deadline(60)).status is SolverStatus.TIME_LIMIT
            assert process.pid == pid


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("solver", [*MILP_SOLVERS, "z3"])
def test_workers_load_no_torch_and_lead_their_own_group(solver: str) -> None:
    with SolverProcess(solver) as process:
        if solver == "z3":
            assert process.solve(EASY, Limits(), Deadline(60)).answer is Answer.SAT
        else:
            small = hard_model([2, 3, 3])
            assert process.solve(small, Limits(), Deadline(60)).status is SolverStatus.OPTIMAL
        pid = started(process)
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
        assert os.getpgid(pid) == os.getsid(pid) == pid


@pytest.mark.parametrize("then", ["process.solve(hard_model(), Limits(), Deadline(60), lambda p: print(process.pid, flush=True))", IDLE])
def test_a_worker_dies_with_its_parent(then: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from random_nets import hard_model\n"
        "from milpverify.config import Deadline\n"
        "from milpverify.solvers.base import Limits\n"
        "from milpverify.solvers.process import SolverProcess\n"
        f"process = SolverProcess('scip')\n{then}\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(root / "tests" / "support")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child, within=0.1)
        parent.kill()
        parent.wait()
        parent.stdout.close()
    end = time.monotonic() + 2.0
    while not _ended(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert _ended(child)


def _ended(pid: int) -> bool:
    """Gone, or a zombie: an orphan stays one where nothing adopts it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return gone(pid, within=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("solver", MILP_SOLVERS)
def test_a_worker_does_not_grow_from_model_to_model(solver: str) -> None:
    model = hard_model([4, 8, 3])
    sizes = []
    with SolverProcess(solver) as process:
        for _ in range(60):
            process.solve(model, Limits(), Deadline(60), lambda _: True)
            sizes.append(_resident(started(process)))
    assert sizes[-1] - sizes[19] < 5_000


def _resident(pid: int) -> int:
    """kB."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_forgotten_handle_ends_its_worker() -> None:
    process = SolverProcess("highs")
    assert process.solve(hard_model([2, 3, 3]), Limits(), Deadline(60)).status is SolverStatus.OPTIMAL
    child = started(process)
    del process
    gc.collect()
    end = time.monotonic() + 5.0
    while not _ended(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert _ended(child)


def test_a_request_to_stop_is_about_one_solve(hard: Model) -> None:
    """It may arrive when that solve is over: the next one goes on."""
    command = [sys.executable, "-m", "milpverify.solvers.worker", "8192", str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        send(worker.stdin, ("solve", "highs", hard, Limits(1.0), 2))
        send(worker.stdin, ("stop", 1))
        while (message := receive(worker.stdout))[0] == "progress":
            pass
        assert message[1].status is SolverStatus.TIME_LIMIT
        send(worker.stdin, ("solve", "highs", hard, Limits(60.0), 3))
        send(worker.stdin, ("stop", 3))
        while (message := receive(worker.stdout))[0] == "progress":
            pass
        assert message[1].status is SolverStatus.INTERRUPTED
        worker.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_costs_nothing() -> None:
    """No process may write a byte to a file; what solvers would log or store goes nowhere."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "from random_nets import hard_model\n"
        "from milpverify.config import Deadline\n"
        "from milpverify.solvers.base import Limits\n"
        "from milpverify.solvers.process import SolverProcess\n"
        "for solver in ('scip', 'highs', 'gurobi'):\n"
        "    with SolverProcess(solver) as process:\n"
        "        print(process.solve(hard_model([4, 8, 8, 3]), Limits(), Deadline(60)).status.name)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(root / "tests" / "support")], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["OPTIMAL"] * 3


HUGE = "printf 'mvwk" + r"\377" * 8 + "rest'"  # a message of 2^64 - 1 bytes


@pytest.mark.skipif(sys.platform == "win32", reason="needs /bin/sh")
@pytest.mark.parametrize("script", ["echo this is no protocol, and it goes on", "exit 3", "kill -SEGV $$", "printf 'mvwk\\001'", HUGE])
def test_garbage_and_crashes_are_outcomes(script: str, hard: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with SolverProcess("scip") as process:
        outcome = process.solve(hard, Limits(), Deadline(30))
        assert outcome.status is SolverStatus.CRASHED
        assert outcome.dual_bound == -np.inf
        assert process.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="the address space cannot be limited")
@pytest.mark.parametrize("solver", ["scip", "highs"])
def test_the_memory_limit_costs_the_model_only(solver: str) -> None:
    graph, box = relu_network([40, 400, 400, 3], 1), Box(-np.ones(40), np.ones(40))
    disjunct = Disjunct(box, Rows.on_outputs([[1, -1, 0]], [0], 40), Rows.none(40, 3))
    model = encode(graph, proved_bounds(graph, box, "ibp"), disjunct).model
    with SolverProcess(solver, memory_mb=200) as process:
        outcome = process.solve(model, Limits(20), Deadline(30))
    assert outcome.status in (SolverStatus.MEMORY_LIMIT, SolverStatus.CRASHED, SolverStatus.UNAVAILABLE)
    assert outcome.dual_bound == -np.inf


@pytest.mark.skipif(sys.platform != "linux", reason="the address space cannot be limited")
def test_a_model_that_the_worker_cannot_hold_ends_at_once() -> None:
    n = 20_000_000
    zeros, none = np.zeros(n), np.zeros(1, dtype=np.int64)
    model = Model(zeros, zeros, np.zeros(n, dtype=bool), none, none[:0], zeros[:0], zeros[:0], zeros[:0], zeros)
    with SolverProcess("highs", memory_mb=128) as process:
        outcome = process.solve(model, Limits(), Deadline(60))
        assert outcome.status in (SolverStatus.MEMORY_LIMIT, SolverStatus.CRASHED)
        assert process.pid is None


def test_z3_answers_with_exact_points() -> None:
    with SolverProcess("z3") as process:
        outcome = process.solve(EASY, Limits(), Deadline(30))
        assert outcome.answer is Answer.SAT
        (value,) = outcome.values()
        assert 3 * value > 1
        assert 2 * value <= 1
        contradiction = SmtScript(EASY.text + "(assert (< x_0 (/ 1.0 3.0)))", EASY.inputs)
        assert process.solve(contradiction, Limits(), Deadline(30)).answer is Answer.UNSAT


def test_the_worker_is_told_the_numbers_of_the_process() -> None:
    root = SmtScript("(declare-const x_0 Real)(assert (= (* x_0 x_0) 2.0))(assert (> x_0 0.0))", ("x_0",))
    errors = []
    for decimals in (3, 20):
        with SolverProcess("z3", tuning=SolverTuning(manner=Manner(decimals=decimals))) as process:
            (value,) = process.solve(root, Limits(), Deadline(30)).values()
        errors.append(abs(value * value - 2))
    assert errors[1] < 1e-19 < errors[0] < 1e-2


@pytest.mark.parametrize("solver", [*MILP_SOLVERS, "z3"])
def test_a_missing_solver_is_unavailable(solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyscipopt", "highspy", "gurobipy", "z3"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('it is not installed')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    model = EASY if solver == "z3" else hard_model([2, 3, 3])
    with SolverProcess(solver) as process:
        outcome = process.solve(model, Limits(), Deadline(30))
    assert outcome.status is SolverStatus.UNAVAILABLE
    assert "not installed" in outcome.message
