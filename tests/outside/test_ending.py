"""How the process of the command line ends when the run does not: late native calls, signals, answers half written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from networks import hard_pair
from processes import alive, all_gone, descendants

PREPARED = """
import ctypes, os, signal, subprocess, sys, time
from milpverify.config import Deadline
from milpverify.outside import children
from milpverify.outside.ending import ending
libc, me = ctypes.CDLL(None), os.getpid()
ending.begin()
"""


def run(source: str, environment: dict[str, str], **how: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PREPARED + source]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False, **how)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("limit", "sent", "said"),
    [("0.2", "", "timeout"), ("60", "os.kill(me, signal.SIGTERM)", "unknown"), ("60", "os.kill(me, 2)", "unknown")],
)
def test_a_native_call_that_does_not_return(environment: dict[str, str], limit: str, sent: str, said: str) -> None:
    """The main thread is in C, the answer is the watchdog's, and a child that would live on is dead."""
    source = f"""
child = subprocess.Popen(["sleep", "60"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
children.born(child)
deadline = Deadline({limit})
def words(write):
    write(1, "unknown\\n" if deadline.cancelled else "timeout\\n")
    write(2, f"{{child.pid}}\\n")
with ending.after(deadline, late=0.1, patience=0.1, last_words=words):
    {sent or "pass"}
    libc.sleep(60); libc.sleep(60)
"""
    done = run(source, environment)
    assert (done.returncode, done.stdout) == (0, f"{said}\n")
    assert all_gone({int(done.stderr)}, 2.0)


def test_signals_before_there_is_anything_to_say(environment: dict[str, str]) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        done = run(f"os.kill(me, {int(signum)})\nlibc.sleep(60); libc.sleep(60)", environment)
        assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "", "")


def test_the_second_signal_ends_at_once(environment: dict[str, str]) -> None:
    source = "with ending.after(Deadline(), patience=60.0):\n    while True: os.kill(me, signal.SIGINT); time.sleep(0.1)"
    done = run(source, environment)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_one_first_line_when_both_want_to_speak(environment: dict[str, str]) -> None:
    """The answer comes at the moment that the watchdog does, a little before, a little after."""
    for delay in (-0.02, -0.001, 0.0, 0.001, 0.02):
        source = f"""
with ending.after(Deadline(0.1), late=0.1, last_words=lambda write: write(1, "timeout\\n")):
    time.sleep(0.2 + {delay})
    ending.say(lambda: print("unsat", flush=True))
ending.leave(0)
"""
        done = run(source, environment)
        assert done.returncode == 0
        assert done.stdout in ("unsat\n", "timeout\n")


def test_what_was_said_is_not_said_again_and_what_is_missing_shows(environment: dict[str, str]) -> None:
    source = """
with ending.after(Deadline(0.1), late=0.1, last_words=lambda write: write(1, "timeout\\n")):
    ending.say(lambda: print("unsat", flush=True))
    libc.sleep(60)
"""
    done = run(source, environment)
    assert (done.returncode, done.stdout) == (2, "unsat\n")


def test_a_reader_that_does_not_read_is_not_waited_for(environment: dict[str, str]) -> None:
    """The pipe is full: for the answer, and for the last words."""
    for answer in (
        "ending.say(lambda: print('x' * 2**20, flush=True))",
        "os.set_blocking(1, False); os.write(1, b'x' * 2**20); libc.sleep(60)",
    ):
        source = f"{PREPARED}\nwith ending.after(Deadline(0.1), late=0.1, last_words=lambda write: write(1, 'timeout\\n')):\n    {answer}"
        with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, env=environment) as process:
            process.wait(timeout=30)


def test_closed_streams_are_no_files_of_ours(environment: dict[str, str]) -> None:
    source = "print(sys.stdout, os.readlink('/proc/self/fd/1'), file=sys.stderr)"
    done = run(source, environment, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "None /dev/null\n")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_signals_at_random_moments(tmp_path: Path, environment: dict[str, str]) -> None:
    """One first line or none, JSON whole or absent, no traceback, no process left (`benchmarks/interruptions.py` does it 50 times)."""
    moments = random.Random(18)
    network, spec = hard_pair(tmp_path)
    for k in range(8):
        told = tmp_path / f"{k}.json"
        command = [sys.executable, "-m", "milpverify", "verify", str(network), str(spec), "--timeout", "1.5", "--json", str(told)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True) as process:
            time.sleep(moments.uniform(0.05, 2.0))
            below = descendants(process.pid)
            process.send_signal(moments.choice((signal.SIGINT, signal.SIGTERM)))
            out, err = process.communicate(timeout=30)
        assert out in ("", "unknown\n", "timeout\n")
        assert process.returncode in (0, 2, 130, 143, -2, -15)
        assert (process.returncode == 0) == (out != "")
        assert "Traceback" not in err or process.returncode == 130  # the interpreter's own, before our first line
        assert all_gone(below, 2.0)
        if told.exists():
            assert json.loads(told.read_text())["verdict"] == "unknown"
        assert not alive(process.pid)
