"""Solver processes that the soundness tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from judging import Lasting

from milpverify.search.solver import whole_milp as milp
from milpverify.search.solver import whole_smt as smt


@pytest.fixture(scope="module")
def processes() -> Iterator[None]:
    Lasting.kept = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(milp, "SolverProcess", Lasting)
        patch.setattr(smt, "SolverProcess", Lasting)
        yield
    for process in Lasting.kept.values():
        process.kill()
