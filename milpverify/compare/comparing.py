"""compare(): every method on every problem, each in a process of its own, rows as they come."""

from __future__ import annotations

import math
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from milpverify.compare.checks import breaks, optimum_of, refute
from milpverify.compare.comparison import Comparison
from milpverify.compare.methods import DEFAULT, Exact, methods_of
from milpverify.compare.process import Interrupted, Processes, sendable
from milpverify.compare.record import Record
from milpverify.compare.rows import Row
from milpverify.compare.sources import instances_of
from milpverify.config import Deadline
from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from milpverify.compare.methods import Method
    from milpverify.compare.sources import Instance, Source
    from milpverify.compare.tools import Tool

TIMEOUT: Final = 60.0
"""Seconds per method where neither the caller nor the list of problems says otherwise: what is asked, not how it is answered."""


def compare(
    problems: str | Path | Sequence[Source] | Mapping[str, Source],
    methods: Sequence[str | Tool] = DEFAULT,
    timeout: float | None = TIMEOUT,
    *,
    csv: str | Path | None = None,
    resume: bool = False,
    jobs: int = 1,
    deadline: Deadline | None = None,
    on_row: Callable[[Row, int], None] | None = None,
    outputs: Sequence[str] | None = None,
) -> Comparison:
    """Run several methods on the same problems and put their bounds, verdicts and costs side by side.

    Each run is a process of its own, one at a time unless asked. The bounds of ibp, crown, alpha-crown, lp and lp+obbt ascend by
    construction, and none lies above the margin: where finished runs say otherwise the result's `breaks` name it.

    Args:
        problems: `Problem`s, pairs of files (network, property) or `Instance`s, in a list or by names of one's own; or the path of a list
            in VNN-COMP's form.
        methods: "ibp", "forward", "crown", "alpha-crown", "beta-crown" (or "beta-crown:1000", subproblems), "lp", "lp+obbt", "milp:scip",
            "milp:highs", "milp:gurobi", "smt", "bab", "auto", "exact" (or "exact:1e-6", its gap), and other tools: a `Tool`, or
            "name=command" with {onnx}, {vnnlib} and perhaps {timeout} and {out} (`Tool`).
        timeout: seconds per method; None for those of the list of problems, 60 where it has none.
        csv: a file that rows are written to as they come.
        resume: go on with that file; what it holds is not run again.
        jobs: how many problems are worked on at a time; the methods of one come one after the other.
        deadline: one that the caller can cancel; what is complete then stays.
        on_row: called with every row, and with how many runs are left.
        outputs: the names of the outputs that Y_0, Y_1, ... number in networks that are files, as for `load`; other tools have rules of
            their own.

    Raises:
        InvalidInput: an unknown method, a problem that cannot be read, a file that cannot be written.
        Contradiction: a proved bound lies above the margin of a point that was judged; both are named.
    """
    work = _Work(instances_of(problems, outputs), methods_of(methods), timeout, deadline or Deadline(), on_row)
    if jobs < 1:
        raise InvalidInput(f"jobs is how many problems are worked on at a time, not {jobs}")
    if resume and csv is None:
        raise InvalidInput("to resume needs the CSV file to go on with")
    with nullcontext() if csv is None else Record(Path(csv), resume) as record:
        work.take(record)
        with work.processes, ThreadPoolExecutor(jobs) as pool:
            running = [pool.submit(work.problem, instance) for instance in work.instances]
            wait(running, return_when=FIRST_EXCEPTION)
            failed = next((e for f in running if f.done() and (e := f.exception()) is not None), None)
            if failed is not None:
                work.failed.set()
                raise failed
    return work.comparison()


@dataclass(eq=False)
class _Work:
    """What is to be run, and what was."""

    instances: list[Instance]
    methods: list[Method | Tool]
    timeout: float | None
    deadline: Deadline
    on_row: Callable[[Row, int], None] | None
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    record: Record | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    failed: threading.Event = field(default_factory=threading.Event)
    processes: Processes = field(default_factory=Processes)

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 <= self.timeout < math.inf:
            raise InvalidInput(f"the time limit is a number of seconds per method, not {self.timeout}")
        for instance in self.instances:
            for method in self.methods:
                sendable(method, instance)

    def take(self, record: Record | None) -> None:
        """Take what a file holds as done."""
        self.record = record
        asked = {(i.name, m.name) for i in self.instances for m in self.methods}
        if record is not None:
            self.rows |= {key: row for row in record.rows if (key := (row.problem, row.method)) in asked}

    def problem(self, instance: Instance) -> None:
        """All methods on one problem; the exact one first, for the others' gaps."""
        refute(self.of(instance))
        for method in sorted(self.methods, key=lambda m: not isinstance(m, Exact)):
            if (instance.name, method.name) in self.rows:
                continue
            if self.failed.is_set() or self.deadline.expired():
                return
            try:
                self.run(instance, method)
            except Interrupted:
                return

    def run(self, instance: Instance, method: Method | Tool) -> None:
        """One method on one problem."""
        limit = next((t for t in (self.timeout, instance.timeout) if t is not None), TIMEOUT)
        answer, usage = self.processes.measured(instance, method, limit, self.deadline)
        if answer.invalid and len(self.instances) == 1:
            raise InvalidInput(answer.message)
        gap = None
        if isinstance(method, Exact):
            gap = answer.witness.margin - answer.lower_bound if answer.closed and answer.witness is not None else None
        elif (least := self.optimum(instance)) is not None and not answer.signed and math.isfinite(answer.lower_bound):
            gap = least - answer.lower_bound
        row = Row(
            instance.name,
            method.name,
            answer.lower_bound,
            gap,
            answer.verdict,
            answer.trust,
            usage.seconds,
            usage.cpu_seconds,
            usage.memory_mb,
            answer.message,
            answer.witness,
            answer.steps,
        )
        with self.lock:
            if self.record is not None:
                self.record.add(row)
            self.rows[instance.name, method.name] = row
            if self.on_row is not None:
                self.on_row(row, len(self.instances) * len(self.methods) - len(self.rows))
        refute(self.of(instance))

    def optimum(self, instance: Instance) -> float | None:
        """The margin, where an exact run has found it."""
        found = [least for row in self.of(instance) if (least := optimum_of(row)) is not None]
        return min(found, default=None)

    def of(self, instance: Instance) -> list[Row]:
        """The rows of a problem, in the order of the methods."""
        return [self.rows[key] for method in self.methods if (key := (instance.name, method.name)) in self.rows]

    def comparison(self) -> Comparison:
        """What has come of it."""
        parts = [self.of(instance) for instance in self.instances]
        rows = tuple(row for part in parts for row in part)
        out_of_order = tuple(text for part in parts for text in breaks(part))
        return Comparison(rows, out_of_order, len(rows) == len(self.instances) * len(self.methods), tuple(self.instances))
