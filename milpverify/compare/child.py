"""The process of methods on problems: `python -m milpverify.compare.child PARENT_PID`.

From the parent come messages: the parent's module path, and the pickle of (instance, method, limit, tuning). To the parent go
("begun", pid), ("told", Answer, seconds) for what is proved on the way, and ("ended", Answer, Usage). The clock runs from when the
problem is loaded and all is imported until the answer: a method is not charged for the start of Python. A tool is charged for its whole
process, and for nothing else.

On Linux every run is a fork of this process, which has imported everything and done nothing; one that dies takes this process along, in
the same way. Elsewhere, where forks are less safe, this process does one run and ends.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from milpverify.compare.rows import Answer, Usage, Witness, Word
from milpverify.compare.tools import ProcessTuning, Tool
from milpverify.config import Deadline
from milpverify.errors import InvalidInput, MilpverifyError
from milpverify.solvers.worker import die_with, receive, send

if TYPE_CHECKING:
    from milpverify.compare.methods import Method
    from milpverify.compare.sources import Instance
    from milpverify.spec import Problem


def main() -> None:
    """Receive jobs, have them done."""
    die_with(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no message
    while True:
        try:
            path, job = receive(sys.stdin.buffer)
        except EOFError:
            return
        sys.path += [entry for entry in path if entry not in sys.path]
        instance, method, limit, tuning = pickle.loads(job)
        if sys.platform != "linux":
            _run(instance, method, limit, tuning, out)
            return
        if not isinstance(method, Tool):
            import_all()
        me = os.getpid()
        if (pid := os.fork()) == 0:
            die_with(me)
            _run(instance, method, limit, tuning, out)  # where that raises, the run ends with the traceback
            os._exit(0)
        _outlive(pid)


def _run(instance: Instance, method: Method | Tool, limit: float, tuning: ProcessTuning, out: IO[bytes]) -> None:
    if isinstance(method, Tool):
        send(out, ("begun", os.getpid()))
        send(out, ("ended", *method.run(instance, limit, tuning)))
    else:
        _work(instance, method, limit, tuning, out)


def _outlive(pid: int) -> None:
    """Wait for a run; end as it does where that is no clean end, and hand on to it what asks to end."""

    def hand_on(signum: int, frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)

    before = signal.signal(signal.SIGTERM, hand_on)
    _, status = os.waitpid(pid, 0)
    signal.signal(signal.SIGTERM, before)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler to take away
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    if code:
        os._exit(code)


def import_all() -> None:
    """Whatever a method needs."""
    for module in ("relaxations", "searches"):
        importlib.import_module(f"milpverify.compare.{module}")
    importlib.import_module("milpverify.frontends.load")


def _work(instance: Instance, method: Method, limit: float, tuning: ProcessTuning, out: IO[bytes]) -> None:
    try:
        problem = instance.load()
    except InvalidInput as error:
        send(out, ("ended", Answer(Word.ERROR, message=str(error), invalid=True), Usage(0.0, 0.0, _peak())))
        return
    import torch

    import_all()
    torch.set_num_threads(1)  # as all methods have by themselves: what is done around them shall cost no more
    send(out, ("begun", os.getpid()))
    began, spent, best = time.perf_counter(), _cpu(), float("-inf")

    def tell(told: Answer) -> None:
        nonlocal best
        if told.lower_bound > best:
            best = told.lower_bound
            send(out, ("told", told, time.perf_counter() - began))

    try:
        answer = method.answer(problem, Deadline(limit), tell)
    except MilpverifyError as error:
        answer = Answer(Word.ERROR, message=f"{type(error).__name__}: {error}")
    except MemoryError:
        answer = Answer(Word.ERROR, message="the memory limit was reached")
    usage = Usage(time.perf_counter() - began, _cpu() - spent, _peak())
    if answer.witness is None and answer.verdict is not Word.ERROR:
        answer = replace(answer, witness=sampled(problem, tuning))
    send(out, ("ended", answer, usage))


def sampled(problem: Problem, tuning: ProcessTuning = ProcessTuning()) -> Witness | None:
    """The best of some points of the input set, judged in real arithmetic: no proved bound may lie above it."""
    import numpy as np

    from milpverify.margin import in_reals, margin_at

    generator = np.random.default_rng(0)
    boxes = list({id(d.box): d.box for d in problem.disjuncts}.values())[: tuning.boxes]
    found: Witness | None = None
    for box in boxes:
        shares = np.vstack([np.full((1, box.size), 0.5), generator.uniform(size=(tuning.points - 1, box.size))])
        for x in np.clip(box.lower + shares * (box.upper - box.lower), box.lower, box.upper):
            margin = margin_at(in_reals(problem), x)
            if margin < (float("inf") if found is None else found.margin):
                found = Witness(margin, tuple(x.tolist()))
    return found


def _cpu() -> float:
    """Processor time of this process and of the children that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak() -> float:
    """MiB of the largest resident set of this process or of a child that it has waited for."""
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return max(own_peak(os.getpid()), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit)


def own_peak(pid: int) -> float:
    """MiB of the largest resident set of a process since it was started; on Linux only: what `getrusage` says includes its parent's."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((float(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM")), 0.0)
    except OSError:
        return 0.0


if __name__ == "__main__":
    main()
