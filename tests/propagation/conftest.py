"""What the tests of bounds share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Nothing is differentiated."""
    with torch.no_grad():
        yield
