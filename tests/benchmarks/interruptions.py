"""Signals at random moments of a run, from its start to its end: what it prints, whether its JSON is whole, and how fast it is gone.

    python tests/benchmarks/interruptions.py [--count 50] [--seed 18] [--within 1.0] [NET.onnx SPEC.vnnlib]

Exit status 1 if a run printed anything but one first line, left half a JSON file, a traceback or a process, or took longer than that.
Without files it is a network with 30 inputs that takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from networks import hard_pair
from processes import all_gone, descendants

OUTPUTS = ("", "unknown\n", "timeout\n", "unsat\n")
STATUSES = (0, 2, 130, 143, -signal.SIGINT, -signal.SIGTERM)
BEFORE = 0.1
"""Seconds in which Python may still be starting: a traceback is its own then."""


def interrupted(command: list[str], told: Path, after: float, signum: signal.Signals, within: float) -> list[str]:
    """What was wrong with a run that got a signal after so many seconds."""
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(after)
        below = descendants(process.pid)
        process.send_signal(signum)
        sent = time.monotonic()
        out, err = process.communicate(timeout=60)
    late, found = time.monotonic() - sent, list[str]()
    if not (out in OUTPUTS or out.startswith("sat\n")):
        found.append(f"printed {out[:80]!r}")
    if process.returncode not in STATUSES:
        found.append(f"exit status {process.returncode}")
    if "Traceback" in err and sent - began > BEFORE:
        found.append(err.splitlines()[-1])
    if late > within:
        found.append(f"gone after {late:.2f} s")
    if not all_gone(below, 0.2):
        found.append("a process is left")
    if told.exists():
        try:
            json.loads(told.read_text())
        except ValueError:
            found.append("half a JSON file")
    print(
        f"{signum.name:7s} after {after:5.2f} s: {out.split(chr(10))[0] or '-':8s} status {process.returncode:4d}, gone in {late:.2f} s",
        *found,
    )
    return found


def main() -> int:
    """Interrupt; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--within", type=float, default=1.0)
    parser.add_argument("--timeout", type=float, default=3.0)
    options = parser.parse_args()
    moments, bad = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        files = options.files or [str(path) for path in hard_pair(Path(folder))]
        for k in range(options.count):
            told = Path(folder) / f"{k}.json"
            command = [sys.executable, "-m", "milpverify", "verify", *files, "--timeout", str(options.timeout), "--json", str(told)]
            signum = moments.choice((signal.SIGINT, signal.SIGTERM))
            bad += bool(interrupted(command, told, moments.uniform(0.0, options.timeout + 0.3), signum, options.within))
    print(f"{bad} of {options.count} bad; load {os.getloadavg()[0]:.1f}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
