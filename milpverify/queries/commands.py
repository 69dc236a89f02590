"""`milpverify verify` with a query of VNN-LIB 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from milpverify.frontends.queries import load_query
from milpverify.queries.answers import answer_of, word
from milpverify.queries.deciding import decide

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from milpverify.config import Deadline
    from milpverify.frontends.queries import LoadedQuery
    from milpverify.result import Result
    from milpverify.spec import Problem


class QueryRun:
    """A query, read, decided and answered; `folder` is where values are written to, None for standard output."""

    def __init__(self, path: Path, networks: Mapping[str, Path], folder: Path | None) -> None:
        self.path, self.networks, self.folder = path, networks, folder
        self._loaded: LoadedQuery | None = None

    def load(self, deadline: Deadline, **limits: int) -> Problem:
        """What it asks, in the reals; as `load_query`."""
        self._loaded = load_query(self.path, self.networks, deadline, **limits)
        return self._loaded.problem

    def decide(self, problem: Problem, **settings: Any) -> Result:
        """The verdict on what was loaded; as `decide`."""
        assert self._loaded is not None and problem is self._loaded.problem
        return decide(self._loaded, **settings)

    def answer(self, result: Result) -> str:
        """The lines of standard output; without a query, if time was over before there was one, no more than a word."""
        return word(result) if self._loaded is None else answer_of(result, self._loaded.query, self.folder)
