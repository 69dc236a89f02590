"""Files that results are written to: whole or not at all, through links, never in place of what is no file or is read from."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from networks import absolute_value, write_property
from support import Run, refused

from milpverify.errors import InvalidInput
from milpverify.outside.files import check_writable, write_atomically


def test_a_file_appears_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".json")  # as long as names can be
    for text in ("one", "two"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("old")
    for name in ("there.json", "not yet.json"):
        link = tmp_path / f"to {name}"
        link.symlink_to(tmp_path / name)
        check_writable(link)
        write_atomically(link, "new")
        assert link.is_symlink()
        assert (tmp_path / name).read_text() == "new"
        assert not (tmp_path / name).is_symlink()


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    device, socket, loop = tmp_path / "null", tmp_path / "socket", tmp_path / "loop"
    loop.symlink_to(loop)
    made = [Path("/dev/null"), tmp_path]
    try:
        os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
        made.append(device)
    except PermissionError:
        pass  # only root makes devices
    os.mknod(socket, 0o666 | 0o140000)
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    for path in (*made, socket, link):
        before = path.lstat()
        with pytest.raises(InvalidInput, match="no regular file"):
            check_writable(path)
        with pytest.raises(InvalidInput, match="no regular file"):
            write_atomically(path, "text")
        assert os.path.samestat(before, path.lstat())
    with pytest.raises(InvalidInput, match="loop"):
        write_atomically(loop, "text")


def test_a_fifo_is_written_to(tmp_path: Path) -> None:
    path, read = tmp_path / "fifo", list[str]()
    os.mkfifo(path)
    check_writable(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_atomically(path, "text")
    reader.join(10)
    assert read == ["text"]
    assert path.is_fifo()


def test_inputs_are_refused_by_whatever_name(tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    source.write_text("weights")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    for name in ("net.onnx", "link", "hard"):
        with pytest.raises(InvalidInput, match="read from"):
            check_writable(tmp_path / name, [None, source])
    check_writable(tmp_path / "other", [None, source])


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(InvalidInput, match=r"r\.json"):
            write_atomically(path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------------------ the command line

BOX = ([-1.0, -1.0], [1.0, 1.0])


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [absolute_value(tmp_path / "net.onnx"), write_property(tmp_path / "p.vnnlib", *BOX, "(<= Y_0 -0.5)")]


def test_json_never_replaces_an_input_or_a_device(run_main: Run, pair: list[Path], tmp_path: Path) -> None:
    before = [path.read_bytes() for path in pair]
    (tmp_path / "link").symlink_to(pair[0])
    for name in ("net.onnx", "p.vnnlib", "link", "/dev/null"):
        refused(run_main("verify", *pair, "--json", name), name)
    assert [path.read_bytes() for path in pair] == before


def test_the_verdict_survives_what_cannot_be_written(run_main: Run, pair: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_main("verify", *pair, "--json", "x" * 300)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "unsat\n", 1)
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    done = run_main("verify", *pair, "--json", "r.json")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "unsat\n", 1)
    assert "No space left" in done.stderr


SHELL = """
cd {folder}
v() {{ {python} -m milpverify verify net.onnx p.vnnlib --quiet "$@"; }}
v --json a.json > /dev/full; echo $?
v --json /dev/stdout > b.txt; echo $? $(head -1 b.txt) $(grep -c verdict b.txt)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_and_shared_standard_output(pair: list[Path], tmp_path: Path, environment: dict[str, str]) -> None:
    script = SHELL.format(folder=tmp_path, python=sys.executable)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.stdout == "2\n0 unsat 1\n"
    assert done.stderr == "milpverify: error: cannot write to standard output: No space left on device\n"
    assert '"verdict": "unsat"' in (tmp_path / "a.json").read_text()
