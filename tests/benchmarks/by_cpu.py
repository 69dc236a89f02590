"""The command line with limits in CPU seconds of its own process, so that what else a machine does changes no verdict.

    python tests/benchmarks/by_cpu.py verify net.onnx a.vnnlib --timeout 20 --method bab

Only searches without a solver's process are limited by that.
"""

from __future__ import annotations

import math
import time

from milpverify import config


class CpuDeadline(config.Deadline):
    """A limit in CPU seconds of this process."""

    def __init__(self, seconds: float = math.inf) -> None:
        super().__init__(seconds, time.process_time)


if __name__ == "__main__":
    from milpverify.cli import main

    config.Deadline = CpuDeadline  # type: ignore[misc]  # the command line makes its own
    main()
