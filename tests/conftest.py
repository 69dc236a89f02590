"""What the tests share: the command line, as a process and within the tests' own, and the public benchmarks where they are at hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from support import BENCHMARKS, ROOT, Run

from milpverify import cli

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores run the tests already
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell: processes would inherit it, and heed no Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """The folder of benchmark networks and properties beside the checkout."""
    if not BENCHMARKS.is_dir():
        pytest.skip(f"the benchmark folder {BENCHMARKS} is missing")
    return BENCHMARKS


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment in which a process finds this checkout's package, from any folder."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def run_cli(tmp_path: Path, environment: dict[str, str]) -> Run:
    """`run_cli("verify", ...)`: the command line in a process of its own, in a temporary folder."""

    def run(*args: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "milpverify", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=tmp_path, env=environment, check=False)

    return run


@pytest.fixture
def run_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run_main("verify", ...)`: the same within this process, which has loaded all that a process spends its first seconds on."""

    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["milpverify", *map(str, args)])
        monkeypatch.setattr(cli, "_no_collection", nullcontext)
        with pytest.raises(SystemExit) as left:
            cli.main()
        code = left.value.code or 0
        assert isinstance(code, int)
        return subprocess.CompletedProcess(sys.argv, code, *capsys.readouterr())

    return run
