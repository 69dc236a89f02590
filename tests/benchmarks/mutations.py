"""Mutated files, each decided in a process of its own: `python tests/benchmarks/mutations.py --count 500 --seed 0`.

Told are the cases that end in anything but a verdict or one line about the input, end later than their limit by more than a second, or take
more memory than they may: what they say, and how to repeat them (`--kind onnx --seed 17 --count 1`). The status is 1 where there are any.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from mutations import write_case

LATE = 1.0
"""Seconds after its limit that a case may end."""
MOST_MB = 2048
"""What a process may take, of which importing everything takes some 300."""


@dataclass(frozen=True)
class Ending:
    """How a case ended: what it said, wall-clock and CPU seconds, and the largest resident set."""

    words: str
    seconds: float
    cpu: float
    mb: float

    def faults(self, limit: float) -> list[str]:
        """What is wrong with that."""
        found = [] if self.words.startswith(("verdict", "refused")) else [self.words]
        # What other processes take of a machine is not the case's: its CPU time counts, and waiting for nothing does.
        if self.cpu > limit + LATE or self.seconds > 5 * (limit + LATE):
            found.append(f"took {self.seconds:.1f} s ({self.cpu:.1f} s of CPU)")
        return found if self.mb <= MOST_MB else [*found, f"took {self.mb:.0f} MB"]


def decide(network: Path, spec: Path, limit: float) -> str:
    """What a case says."""
    import milpverify as mv

    began = time.monotonic()
    try:
        problem = mv.load(network, spec)
        result = mv.verify(problem, timeout=max(0.0, limit - (time.monotonic() - began)))
    except mv.InvalidInput as error:
        line = str(error)
        return f"refused: {line}" if "\n" not in line and len(line) < 2000 else f"refused in many words: {line[:300]}"
    except BaseException:  # noqa: BLE001  (whatever it is, it is a finding)
        return traceback.format_exc()
    return f"verdict: {result.verdict.value}"


def run(network: Path, spec: Path, limit: float) -> Ending:
    """Decide a case in a fork of this process."""
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        os.write(writer, decide(network, spec, limit).encode()[-60000:])
        os._exit(0)
    os.close(writer)
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        if time.monotonic() - began > 10 * limit + 20:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)
    _, status, usage = ended
    with os.fdopen(reader, "rb") as pipe:
        words = pipe.read().decode(errors="replace")
    return Ending(words or f"died with status {status}", time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first file; the next have the next ones")
    parser.add_argument("--kind", choices=("onnx", "vnnlib"), action="append")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds for a case")
    parser.add_argument("--verbose", action="store_true", help="say what every case says")
    options = parser.parse_args()
    import torch

    from milpverify.frontends import load  # noqa: F401  (once, not in every fork)
    from milpverify.verify import verify  # noqa: F401

    torch.set_num_threads(1)
    faulty = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kind or ("onnx", "vnnlib"):
            words: Counter[str] = Counter()
            slowest = 0.0
            for seed in range(options.seed, options.seed + options.count):
                ending = run(*write_case(Path(folder), kind, seed), options.limit)
                words[ending.words.split(":")[0]] += 1
                slowest = max(slowest, ending.cpu)
                faults = ending.faults(options.limit)
                faulty += bool(faults)
                if faults or options.verbose:
                    print(f"{kind} {seed}: {'; '.join(faults) or ending.words}", flush=True)
            print(f"{kind}: {dict(words)}, at most {slowest:.1f} s of CPU", flush=True)
    return int(faulty > 0)


if __name__ == "__main__":
    sys.exit(main())
