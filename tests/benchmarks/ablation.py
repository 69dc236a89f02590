"""What each part contributes: the same instances by the solver alone, by the tree alone, and by both with what they tell each other.

    python tests/benchmarks/ablation.py --folder benchmarks --per-family 6 --timeout 60 --results ablation.json
    python tests/benchmarks/ablation.py --folder benchmarks --family mnist_fc --family oval21 --per-family 10 --without tightening
    python tests/benchmarks/ablation.py net.onnx a.vnnlib net.onnx b.vnnlib --timeout 20

A folder has an instances.csv with columns onnx and vnnlib (paths in the folder), and maybe family, expected and timeout_s. The instances
of a family are spread evenly over its list. Every run is a process of its own, which ends with this one. With --results every run
is written down at once, and what is there already is not run again. Prints a table per family: instances solved, wrong and
undecided by every variant, what only a shared search solves, and what it misses; seconds are CPU seconds with the solver processes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
START = "import runpy; from milpverify.solvers.worker import die_with; die_with({parent}); "
CLI = "runpy.run_module('milpverify', None, '__main__')"
VARIANTS = {
    "MILP alone": ["--method", "milp"],
    "relaxation alone": ["--method", "bab"],
    "shared": [],
    "oracle -> tree off": ["--without", "oracle_to_tree"],
    "tree -> oracle off": ["--without", "tree_to_oracle"],
}
ALONE, SHARED = ("MILP alone", "relaxation alone"), ("shared", "oracle -> tree off", "tree -> oracle off")
COUNTS = ("subproblems", "oracle_tasks", "oracle_closed", "tightened")


@dataclass(frozen=True)
class Instance:
    """A network and a property, the expected verdict ("" if unknown) and the seconds that a run may take."""

    family: str
    name: str
    network: Path
    spec: Path
    expected: str
    timeout: float


@dataclass
class Row:
    """One run. `verdict` is sat, unsat, unknown, timeout or error."""

    family: str
    instance: str
    variant: str
    expected: str
    timeout: float
    verdict: str
    reason: str = ""
    trust: str = ""
    wall: float = 0.0
    cpu: float = 0.0
    lower_bound: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, float]:
        """What a run is the run of."""
        return self.family, self.instance, self.variant, self.timeout

    @property
    def wrong(self) -> bool:
        """Whether the verdict contradicts the expected one."""
        return {self.verdict, self.expected} == {"sat", "unsat"}

    @property
    def solved(self) -> bool:
        """Whether there is a verdict, and no known contradiction."""
        return self.verdict in ("sat", "unsat") and not self.wrong


def spread(count: int, most: int | None) -> list[int]:
    """Places of at most `most` of a list's entries, spread evenly."""
    if most is None or most >= count:
        return list(range(count))
    return [(2 * k + 1) * count // (2 * most) for k in range(most)]


def families_of(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of a folder's list of instances by family."""
    families: dict[str, list[dict[str, str]]] = {}
    with (folder / "instances.csv").open() as file:
        for row in csv.DictReader(file):
            families.setdefault(row.get("family", ""), []).append(row)
    return families


def instances(options: argparse.Namespace) -> list[Instance]:
    """What to run."""
    found = []
    for network, spec in zip(options.files[::2], options.files[1::2], strict=True):
        found.append(Instance("files", _name(network, spec), network, spec, "", options.timeout))
    if options.folder is not None:
        families = families_of(options.folder)
        unknown = set(options.family or ()) - set(families)
        if unknown:
            sys.exit(f"{options.folder} has no family {', '.join(sorted(unknown))}; there are {', '.join(families)}")
        for family in options.family or families:
            rows = families[family]
            for row in (rows[k] for k in spread(len(rows), options.per_family)):
                network, spec = options.folder / row["onnx"], options.folder / row["vnnlib"]
                seconds = min(options.timeout, float(row.get("timeout_s") or options.timeout))
                found.append(Instance(family, _name(network, spec), network, spec, row.get("expected", ""), seconds))
    return [i for i in found if options.only is None or options.only.search(i.name)]


def _name(network: Path, spec: Path) -> str:
    return f"{network.name.split('.onnx')[0]}/{spec.name.split('.vnnlib')[0]}"


class Runs:
    """Runs variants in processes of their own, and ends what is under way when told to.

    Args:
        program: the Python code that is the command line.
        patience: a run is killed after so many times its limit, and a minute.
    """

    def __init__(self, program: str = CLI, patience: float = 2.0) -> None:
        self.program, self.patience = program, patience
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def end(self) -> None:
        """End all that is under way, and begin nothing more."""
        with self._lock:
            self._ended = True
            for child in self._children:
                child.kill()

    def run(self, instance: Instance, variant: str, arguments: list[str]) -> Row | None:
        """One run; None if it was ended from outside."""
        row = Row(instance.family, instance.name, variant, instance.expected, instance.timeout, "error")
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        with tempfile.TemporaryDirectory() as folder:
            out, errors = Path(folder) / "result.json", Path(folder) / "errors"
            command = [sys.executable, "-c", START.format(parent=os.getpid()) + self.program]
            command += ["verify", str(instance.network.resolve()), str(instance.spec.resolve())]
            command += ["--timeout", str(instance.timeout), "--quiet", "--json", str(out), *arguments]
            with errors.open("wb") as sink:
                with self._lock:
                    if self._ended:
                        return None
                    child = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=sink, cwd=folder, env=environment
                    )
                    self._children.add(child)
                usage = self._wait(child, self.patience * instance.timeout + 60)
            if self._ended:
                return None
            row.cpu = round(usage.ru_utime + usage.ru_stime, 2)
            if not out.exists():
                row.reason = errors.read_text(errors="replace").strip()[-200:] or f"exit status {child.returncode}"
                return row
            result = json.loads(out.read_text())
        search = next((phase for phase in result["phases"] if phase["name"] == "search"), {})
        row.verdict = "timeout" if result["reason"] == "TIMEOUT" else str(result["verdict"])
        row.reason, row.trust, row.wall = str(result["reason"]), str(result["trust"]), round(result["seconds"], 2)
        row.lower_bound = f"{float(result['lower_bound']):.4g}"
        row.counts = {name: search[name] for name in COUNTS if name in search}
        return row

    def _wait(self, child: subprocess.Popen[bytes], seconds: float) -> resource.struct_rusage:
        """Wait for a child's end, with its CPU time; one that overruns its time by far is killed."""
        killer = threading.Timer(seconds, child.kill)
        killer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        finally:
            killer.cancel()
        with self._lock:
            child.returncode = os.waitstatus_to_exitcode(status)
            self._children.discard(child)
        return usage


def table(rows: Sequence[Row], variants: Sequence[str]) -> str:
    """Per family and variant what was solved, wrong and undecided; then what only sharing solves."""
    head = ("family", "variant", "runs", "solved", "wrong", "undecided", "errors", "cpu s, sum", "cpu s, solved by all")
    lines: list[tuple[str, ...]] = [head]
    families = list(dict.fromkeys(row.family for row in rows))
    for family in [*families, *(["ALL"] if len(families) > 1 else [])]:
        mine = [row for row in rows if family in ("ALL", row.family)]
        common = set.intersection(*({(r.family, r.instance) for r in mine if r.variant == v and r.solved} for v in variants))
        for variant in variants:
            runs = [row for row in mine if row.variant == variant]
            solved, wrong = sum(r.solved for r in runs), sum(r.wrong for r in runs)
            errors = sum(r.verdict == "error" for r in runs)
            shared_cpu = sum(r.cpu for r in runs if (r.family, r.instance) in common)
            numbers = (len(runs), solved, wrong, len(runs) - solved - wrong - errors, errors)
            lines.append((family, variant, *map(str, numbers), f"{sum(r.cpu for r in runs):.1f}", f"{shared_cpu:.1f}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines]
    return "\n".join([*text, "", *comparison(rows)])


def comparison(rows: Sequence[Row]) -> list[str]:
    """Which instances only sharing solves, and which one of the two solves alone and sharing does not."""
    by: dict[str, set[str]] = {}
    for row in rows:
        if row.solved:
            by.setdefault(row.variant, set()).add(f"{row.family} {row.instance}")
    alone = set().union(*(by.get(v, set()) for v in ALONE))
    lines = []
    for variant in SHARED:
        only = sorted(by.get(variant, set()) - alone)
        lines.append(f"solved by neither alone, by {variant}: {', '.join(only) or 'none'}")
    missed = sorted((alone & {f"{row.family} {row.instance}" for row in rows if row.variant == "shared"}) - by.get("shared", set()))
    return [*lines, f"solved by one of them alone, missed by shared: {', '.join(missed) or 'none'}"]


def load(path: Path | None) -> dict[tuple[str, str, str, float], Row]:
    """The runs that are written down; those that ended in errors are to be run again."""
    if path is None or not path.exists():
        return {}
    rows = [Row(**entry) for entry in json.loads(path.read_text())]
    return {row.key: row for row in rows if row.verdict != "error"}


def save(path: Path | None, rows: Sequence[Row]) -> None:
    """Write the runs down, whole or not at all."""
    if path is not None:
        draft = path.with_name(path.name + ".new")
        draft.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        draft.replace(path)


def command(about: str | None, variants: Mapping[str, Sequence[str]], timeout: float) -> argparse.ArgumentParser:
    """The arguments that say which instances are run by which variants."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="networks and properties in turns")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--family", action="append", help="once for every family; all without")
    parser.add_argument("--per-family", type=int, help="instances of a family, spread evenly over its list; all without")
    parser.add_argument("--only", type=re.compile, help="a regular expression that the names of the instances must have in them")
    parser.add_argument("--timeout", type=float, default=timeout, help="seconds, where an instance's own limit is not less")
    parser.add_argument("--variant", action="append", choices=variants, help="once for every variant; all without")
    parser.add_argument("--results", type=Path, help="JSON file to write to and to resume from")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command(__doc__, VARIANTS, 20.0)
    parser.add_argument("--without", action="append", default=[], help="a part of the search to turn off in every variant")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args(arguments)
    if len(options.files) % 2:
        parser.error("files come in pairs, a network and a property")
    variants = options.variant or list(VARIANTS)
    common = [word for part in options.without for word in ("--without", part)]
    wanted = [(instance, variant) for instance in instances(options) for variant in variants]
    label = "".join(f" without {part}" for part in options.without)
    known, lock, runs = load(options.results), threading.Lock(), Runs()
    keys = [(i.family, i.name + label, v, i.timeout) for i, v in wanted]
    left = [pair for pair, key in zip(wanted, keys, strict=True) if key not in known]
    began = time.monotonic()

    def work(pair: tuple[Instance, str]) -> None:
        instance, variant = pair
        row = runs.run(instance, variant, [*VARIANTS[variant], *common])
        if row is None:
            return
        row.instance += label
        with lock:
            known[row.key] = row
            save(options.results, list(known.values()))
            verdict = f"{row.verdict}, but expected {row.expected}: WRONG" if row.wrong else row.verdict
            done = sum(key in known for key in keys)
            seconds = time.monotonic() - began
            print(f"[{done}/{len(keys)}, {seconds:.0f} s] {row.family} {row.instance}, {variant}: {verdict}, {row.cpu} s", file=sys.stderr)

    def leave(number: int, _: FrameType | None) -> None:
        runs.end()
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, leave)
    pool = ThreadPoolExecutor(options.jobs)
    try:
        for future in [pool.submit(work, pair) for pair in left]:
            future.result()
    finally:
        runs.end()
        pool.shutdown(cancel_futures=True)
    rows = [known[key] for key in keys if key in known]
    print(table(rows, variants))
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
