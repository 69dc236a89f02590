"""What the tests of the search share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from random_nets import relu_network

from milpverify.config import Deadline
from milpverify.search.solver.leaves import Leaves
from milpverify.spec import Problem


@pytest.fixture(scope="module")
def leaves() -> Iterator[Leaves]:
    """Decides leaves, of the problem that a test gives it, in one process for a module."""
    with Leaves(Problem(relu_network([1, 1], 0), ()), Deadline(300)) as found:
        yield found
