"""Another verifier, given as a command: its verdict is read as VNN-COMP reads it, its counterexample is judged like our own.

A verdict that a property holds is a tool's word and nothing more: it has no trust, and no bound.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from milpverify.compare.rows import Answer, Usage, Witness, Word
from milpverify.errors import InvalidInput
from milpverify.result import Trust
from milpverify.solvers.worker import die_with
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.compare.sources import Instance
    from milpverify.spec import Problem

_WORDS = {**{word.value: word for word in Word}, "holds": Word.UNSAT, "violated": Word.SAT, "timed-out": Word.TIMEOUT}
_VERDICT = re.compile(rf"\s*({'|'.join(_WORDS)})\s*(?:,\s*[\d.]+\s*)?", re.IGNORECASE)
_ENTRY = re.compile(r"\(\s*X_(\d+)\s+([^\s()]+)\s*\)")


class ProcessTuning(Tuning):
    """How long processes are waited for, and what is kept of what they say."""

    of_runs = False

    loading: float = 600.0
    """Seconds that a process may take to load a problem."""
    grace: float = 2.0
    """Seconds that a method may overrun its limit, to conclude, before it is killed."""
    farewell: float = 1.0
    """Seconds between the request to end and the kill, for a tool's group to be ended first."""
    poll: float = 0.05
    """Seconds between looks at limits."""
    steps: int = 400
    """So many bounds are kept of those proved on the way."""
    points: int = 4
    boxes: int = 8
    """So many points of a box, its centre and random ones, are what a bound is confronted with, for so many boxes."""
    tool_grace: float = 1.0
    """Seconds that a tool which keeps the limit itself may overrun it, to say so."""
    tool_poll: float = 0.01
    """Seconds between looks at a tool."""
    reap: float = 5.0
    """Seconds that what was killed may take to die."""
    tail: int = 4000
    """Characters of what a tool complains of that are looked at."""


@dataclass(frozen=True)
class Tool:
    """A verifier of others, started without a shell.

    Args:
        name: in the table.
        command: with `{onnx}`, `{vnnlib}` and, if it wants to know, `{timeout}` in seconds; `{out}` is the file that the verdict is read
            from, where there is one: otherwise that is the first line of standard output that is a verdict and nothing else.

    Raises:
        InvalidInput: the command names no files, or is none.
    """

    name: str
    command: str
    words: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            words = tuple(shlex.split(self.command))
        except ValueError as error:
            raise InvalidInput(f"the command {self.command!r} cannot be read: {error}") from error
        if "{onnx}" not in self.command or "{vnnlib}" not in self.command:
            raise InvalidInput(f"the command {self.command!r} needs {{onnx}} and {{vnnlib}}")
        if not self.name or "\n" in self.name:
            raise InvalidInput(f"the command {self.command!r} needs a name: NAME={self.command}")
        object.__setattr__(self, "words", words)

    def run(self, instance: Instance, limit: float, tuning: ProcessTuning = ProcessTuning()) -> tuple[Answer, Usage]:
        """Run it and judge what it says; killed with its process group at the limit (seconds)."""
        if instance.onnx is None or instance.vnnlib is None:
            message = "a tool needs files, and this problem was stated in Python"
            return Answer(Word.ERROR, message=message, invalid=True), Usage(0.0, 0.0, 0.0)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            names = {"onnx": plain(instance.onnx, place), "vnnlib": plain(instance.vnnlib, place)}
            names |= {"timeout": f"{limit:g}", "out": str(place / "out.txt")}
            words = [re.sub(r"\{(onnx|vnnlib|timeout|out)\}", lambda m: names[m[1]], word) for word in self.words]
            try:
                ended = _run(words, place, limit, tuning)
            except OSError as error:
                return Answer(Word.ERROR, message=f"{words[0]} cannot be started: {error.strerror}"), Usage(0.0, 0.0, 0.0)
            text = _text(place / "out.txt") if "{out}" in self.command else _text(place / "stdout")
            complaint = _text(place / "stderr")[-tuning.tail :].strip().splitlines()
        if ended.killed:
            return Answer(Word.TIMEOUT, message="killed at the limit"), ended.usage
        verdict, rest = read_verdict(text)
        if verdict is None:
            last = f": {complaint[-1]}" if complaint else ""
            return Answer(Word.ERROR, message=f"no verdict (exit status {ended.status}){last}"), ended.usage
        if verdict is Word.SAT:
            return judge(instance, rest), ended.usage
        return Answer(verdict, message="the tool's word" if verdict is Word.UNSAT else "", signed=True), ended.usage


@dataclass(frozen=True)
class _Ended:
    killed: bool
    status: int
    usage: Usage


def _run(words: list[str], place: Path, limit: float, tuning: ProcessTuning) -> _Ended:
    """Run a command in a process group of its own until it ends or the limit comes; nothing that it started is left."""
    adopt_orphans()
    with (place / "stdout").open("wb") as out, (place / "stderr").open("wb") as err:
        began, me = time.monotonic(), os.getpid()
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=lambda: die_with(me),  # noqa: PLW1509  (this process has one thread)
        )

    def stop(signum: int, frame: object) -> None:
        _kill(child.pid)
        os._exit(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    killed = False
    # It is reaped last: until then its number, and its group's, is its own.
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() - began > limit + tuning.tool_grace:
            killed = True
            break
        time.sleep(tuning.tool_poll)
    seconds = time.monotonic() - began
    _kill(child.pid)
    child.returncode, usage = _reaped(child.pid, seconds, tuning)
    signal.signal(signal.SIGTERM, before)
    return _Ended(killed, child.returncode, usage)


def _reaped(leader: int, seconds: float, tuning: ProcessTuning) -> tuple[int, Usage]:
    """Wait for a killed group and for all orphans of it; the leader's exit status, and what all of them took."""
    code, cpu, peak, end = 0, 0.0, 0.0, time.monotonic() + tuning.reap
    unit = 2**20 if sys.platform == "darwin" else 2**10
    while time.monotonic() < end:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if not pid:
            for stray in _children():
                with suppress(ProcessLookupError):
                    os.kill(stray, signal.SIGKILL)
            time.sleep(tuning.tool_poll)
            continue
        code = os.waitstatus_to_exitcode(status) if pid == leader else code
        cpu, peak = cpu + usage.ru_utime + usage.ru_stime, max(peak, usage.ru_maxrss / unit)
    return code, Usage(seconds, cpu, peak)


def adopt_orphans() -> None:
    """On Linux, have what a child leaves behind become our child, so that it can be ended and counted."""
    if sys.platform == "linux":
        import ctypes

        set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _children() -> list[int]:
    try:
        return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    except OSError:
        return []


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # on macOS a dead group gives the latter
        os.killpg(group, signal.SIGKILL)


def plain(path: Path, folder: Path) -> str:
    """The absolute path of a file that is not compressed: a copy where it is."""
    if path.suffix != ".gz":
        return str(path.absolute())
    copy = folder / path.stem
    copy.write_bytes(gzip.decompress(path.read_bytes()))
    return str(copy)


def read_verdict(text: str) -> tuple[Word | None, str]:
    """The verdict of a results file, perhaps with its seconds (`unsat,1.5`), and what follows it; None where there is none."""
    lines = text.splitlines()
    for k, line in enumerate(lines):
        if (match := _VERDICT.fullmatch(line)) is not None:
            return _WORDS[match[1].lower()], "\n".join(lines[k + 1 :])
    return None, ""


def read_point(text: str, count: int) -> list[float] | None:
    """The inputs of a counterexample as VNN-COMP prints it; None unless each of them is there once, as a finite number."""
    entries: dict[int, float] = {}
    for index, number in _ENTRY.findall(text):
        try:
            value = float(number)
        except ValueError:
            return None
        if int(index) in entries or not math.isfinite(value):
            return None
        entries[int(index)] = value
    return [entries[k] for k in range(count)] if entries.keys() == set(range(count)) else None


def judge(instance: Instance, text: str) -> Answer:
    """What becomes of a counterexample that a tool prints: it counts if it holds in the runtime and in real arithmetic."""
    import numpy as np

    from milpverify.counterexamples.validate import Validity, validate

    try:
        problem: Problem = instance.load()
    except InvalidInput as error:
        return Answer(Word.ERROR, message=str(error), invalid=True)
    point = read_point(text, problem.graph.nx)
    if point is None:
        return Answer(Word.UNKNOWN, message="sat was claimed without a counterexample that can be read", signed=True)
    judged = [validate(problem, d, np.array(point)) for d in problem.disjuncts]
    held = next((v.counterexample for v in judged if v.counterexample is not None), None)
    if held is not None:
        return Answer(Word.SAT, trust=Trust.ROUNDED, witness=Witness(held.margin_real, tuple(held.x.tolist())), signed=True)
    best = min(judged, key=lambda v: (v.status is not Validity.FLOAT_SEMANTICS, v.margin_runtime), default=None)
    why = "the unsafe set is empty" if best is None else str(best)
    return Answer(Word.UNKNOWN, message=f"sat was claimed, but the counterexample does not hold: {why}", signed=True)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
