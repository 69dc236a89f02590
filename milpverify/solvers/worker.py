"""The child of a `SolverProcess`: `python -m milpverify.solvers.worker MEMORY_MB PARENT_PID`. It never imports torch.

Messages are pickles framed by MAGIC and an 8-byte length. From the parent: ("solve", solver, model, limits, number) and ("stop", number),
which is about the solve of that number alone. To the parent: ("progress", Progress), ("outcome", outcome), ("unavailable", text) and
("failed", text). End of input ends the process.
"""

from __future__ import annotations

import gc
import os
import pickle
import queue
import signal
import struct
import sys
import threading
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, Final

from milpverify.errors import SolverUnavailable

if TYPE_CHECKING:
    from milpverify.solvers.base import Limits, OnProgress, Progress, SolveOutcome, SweepOutcome
    from milpverify.solvers.model import Model, SmtScript, Sweep

MAGIC = b"mvwk"
LARGEST: Final = 2**40
"""Bytes of a message; a longer one is garbage."""
NO_MEMORY: Final = 86
"""The exit status of a worker that cannot hold what it was sent."""
_HEADER = struct.Struct("<4sQ")


class BrokenProtocol(Exception):
    """What came through the pipe is not a message."""


def send(stream: IO[bytes], message: object) -> None:
    """Write one message.

    Raises:
        OSError: the other end is gone.
    """
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_HEADER.pack(MAGIC, len(body)))
    stream.write(body)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message.

    Raises:
        EOFError: the other end is gone.
        BrokenProtocol: the bytes are no message.
        MemoryError: the message is too large for this process.
    """
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise EOFError
    magic, length = _HEADER.unpack(header)
    if magic != MAGIC or length > LARGEST:
        raise BrokenProtocol(f"unexpected output {header!r}")
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    try:
        return pickle.loads(body)
    except MemoryError:
        raise
    except Exception as error:  # unpickling garbage can raise anything
        raise BrokenProtocol(f"a message that cannot be read: {error}") from error


def die_with(parent: int) -> None:
    """On Linux, have the kernel kill this process when the thread that started it ends; elsewhere the end of input does that."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # it died before we could ask


def limit_memory(memory_mb: int) -> None:
    """Bound the address space where the platform can (not on Windows; macOS ignores it)."""
    if sys.platform in ("win32", "darwin"):
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _solve(name: str, model: Model | Sweep | SmtScript, limits: Limits, on_progress: OnProgress) -> object:
    """Solve; a MILP with its largest cost scaled to about 1: solvers take costs below their dual tolerance for nothing."""
    from milpverify.solvers import registry
    from milpverify.solvers.model import Model, Sweep, power_of_two

    if isinstance(model, Sweep):
        unit = float(power_of_two(max(abs(model.model.objective), default=0.0)))
        own = replace(model, model=replace(model.model, objective=model.model.objective / unit), cutoff=model.cutoff / unit)
        swept: SweepOutcome = registry.solve(name, own, replace(limits, dual_target=limits.dual_target / unit), on_progress)
        return replace(swept, dual_bound=swept.dual_bound * unit)
    if not isinstance(model, Model):
        return registry.solve(name, model, limits, on_progress)
    unit = float(power_of_two(max(abs(model.objective), default=0.0)))

    def report(progress: Progress) -> bool:
        return on_progress(replace(progress, dual_bound=progress.dual_bound * unit, primal=progress.primal * unit))

    limits = replace(limits, dual_target=limits.dual_target / unit, primal_target=limits.primal_target / unit)
    outcome: SolveOutcome = registry.solve(name, replace(model, objective=model.objective / unit), limits, report)
    multipliers = None if outcome.multipliers is None else outcome.multipliers * unit
    return replace(outcome, dual_bound=outcome.dual_bound * unit, primal=outcome.primal * unit, multipliers=multipliers)


def main() -> None:
    """Serve requests until the input ends."""
    memory_mb, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    limit_memory(memory_mb)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a solver prints must not reach the protocol
    requests: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    stopped: set[int] = set()  # the numbers of the solves to end

    def listen() -> None:
        source = sys.stdin.buffer
        while True:
            try:
                message = receive(source)
            except MemoryError:
                os._exit(NO_MEMORY)
            except (EOFError, BrokenProtocol, OSError):
                os._exit(0)  # the parent is gone: so is the reason to solve, native code included
            if message[0] == "stop":
                stopped.add(message[1])
            else:
                requests.put(message)

    threading.Thread(target=listen, daemon=True).start()

    while True:
        _, name, model, limits, number = requests.get()

        def report(progress: Progress, number: int = number) -> bool:
            send(output, ("progress", progress))
            return number in stopped

        try:
            answer: tuple[str, object] = ("outcome", _solve(name, model, replace(limits, memory_mb=memory_mb), report))
        except (SolverUnavailable, ImportError) as error:
            answer = ("unavailable", str(error))
        except MemoryError:
            answer = ("memory", f"{name}: out of memory")
        except OSError:
            raise  # the pipe broke
        except Exception as error:  # noqa: BLE001 - a failing adapter costs this model, not the run
            answer = ("failed", f"{name}: {type(error).__name__}: {error}")
        send(output, answer)
        del model, answer
        gc.collect()  # a solver's model and its callbacks know each other: left to themselves they pile up


if __name__ == "__main__":
    main()
