"""Proofs of answers about power networks, saved and rechecked by the command line; what is no proof, or not one of that."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from power_cases import TWO
from support import Run, refused, strictly


@pytest.mark.parametrize(
    ("command", "answer", "claim"),
    [("feasibility --load-scale 2.5", "infeasible", "every point violates something by more than"),
     ("feasibility --load-scale 2.5 --load-box 0.05 --quantifier exists", "infeasible", "p.u. (rad) at loads of 1.1875 to 1.3125 p.u."),
     ("cost", "cost ", "no operating point costs less than"), ("loadability", "loadability ", "the case's own loads times more than")],
)  # fmt: skip
@pytest.mark.parametrize("kept", ["p.json", "p.json.gz"])
def test_what_is_proved_is_saved_and_rechecked(
    run_main: Run, case_file: Path, tmp_path: Path, command: str, answer: str, claim: str, kept: str
) -> None:
    name, *options = command.split()
    done = run_main("acopf", name, case_file, *options, "--json", "r.json", "--proof", kept, "-q", "--timeout", "30")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.startswith(answer)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["two.m", "r.json", kept])
    assert strictly(tmp_path / "r.json")["has_proof"]
    if kept == "p.json":
        strictly(tmp_path / kept)
    done = run_main("acopf", "recheck", case_file, kept)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == "accepted" and claim in second


def test_no_cost_where_there_is_no_operating_point(run_main: Run, case_file: Path, tmp_path: Path) -> None:
    done = run_main("acopf", "cost", case_file, *"--load-scale 2.5 --json r.json --proof p.json --timeout 30".split())
    assert (done.returncode, done.stdout) == (0, "cost inf inf inf\n"), done.stderr
    assert "INFEASIBLE: two at loads x 2.5, no operating point whatever the cost" in done.stderr
    found = strictly(tmp_path / "r.json")
    assert (found["verdict"], found["lower"], found["upper"], found["trust"]) == ("infeasible", "inf", "inf", "exact")
    assert run_main("acopf", "recheck", case_file, "p.json").stdout.startswith("accepted\n")


def test_a_proof_is_rejected_where_it_does_not_hold(run_main: Run, case_file: Path, tmp_path: Path) -> None:
    """For another case, for other loads, and for more than it proves."""
    run_main("acopf", "feasibility", case_file, "--load-scale", "2.5", "--proof", "p.json", "-q")
    (tmp_path / "other.m").write_text(TWO.replace("100 1 200", "100 1 400").replace("0.02 100", "0.02 900").replace("0.1 0.02", "0.01 0"))
    cut = "\n    2 1 50 10 0 0 1 1.0 0 230 1 1.1 0.9;"
    (tmp_path / "three.m").write_text(
        TWO.replace(cut, cut + cut.replace("2 1", "3 1")).replace("-30 30]", "-30 30; 2 3 0 0.1 0 0 0 0 0 0 1 0 0]")
    )
    (tmp_path / "more.json").write_text(json.dumps({**strictly(tmp_path / "p.json"), "tolerance": 0.4}))
    for arguments in ("other.m p.json", "three.m p.json", "two.m p.json --load-scale 1", "two.m p.json --load-box 0.9", "two.m more.json"):
        done = run_main("acopf", "recheck", *arguments.split())
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert done.stdout.splitlines()[0] == "rejected" and done.stdout.count("\n") == 2, arguments
    done = run_main("acopf", "recheck", "two.m", "p.json", "--load-scale", "2.6")
    assert done.stdout.startswith("accepted\n") and "loads of 1.3 p.u." in done.stdout


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.json", b""), ("p.json", b"{"), ("p.json", b"[]"), ("p.json", b"{}"), ("p.json", bytes(range(256))), ("p.json", b'{"version": 7}'),
     ("p.json", b"[" * 100_000), ("p.json", b"1" * 5000), ("p.json", gzip.compress(b"{}", mtime=0)), ("p.json.gz", b"{}"),
     ("p.json.gz", gzip.compress(b"{}", mtime=0)), ("p.json.gz", gzip.compress(b"{}" * 999, mtime=0)[:-9]),
     ("p.json.gz", gzip.compress(b"{}", mtime=0)[:10] + b"\xff" * 20)],
)  # fmt: skip
def test_what_is_no_proof(run_main: Run, case_file: Path, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(run_main("acopf", "recheck", case_file, name), name)


def test_malformed_parts_of_a_proof(run_main: Run, case_file: Path, tmp_path: Path) -> None:
    """Whatever stands in place of a number, a list or an object: one line, or a rejection."""
    run_main("acopf", "cost", case_file, "--proof", "p.json", "-q", "--timeout", "30")
    proof = strictly(tmp_path / "p.json")
    places = list(parts(proof))
    assert len(places) > 20
    for k, place in enumerate(places):
        for worse in (None, "x", [], {}, -1, 10**30, math.nan, 0.5, [[]])[k % 3 :: 3]:
            (tmp_path / "q.json").write_text(json.dumps(swapped(proof, place, worse)))
            done = run_main("acopf", "recheck", case_file, "q.json")
            if done.returncode == 0:
                assert done.stdout.split()[0] in ("accepted", "rejected")
            else:
                refused(done, "q.json")


def parts(of: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of everything in a JSON value, of long lists the first entry only."""
    if place:
        yield place
    inner = of.items() if isinstance(of, dict) else enumerate(of[:1]) if isinstance(of, list) else ()
    for key, value in inner:
        yield from parts(value, (*place, key))


def swapped(of: Any, place: tuple[Any, ...], value: Any) -> Any:
    """The same with something else at a place."""
    if not place:
        return value
    copy = dict(of) if isinstance(of, dict) else list(of)
    copy[place[0]] = swapped(of[place[0]], place[1:], value)
    return copy
