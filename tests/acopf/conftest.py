"""What the tests of power networks share."""

from __future__ import annotations

from pathlib import Path

import pytest
from power_cases import TWO


@pytest.fixture
def case_file(tmp_path: Path) -> Path:
    """A file of the network `TWO`."""
    path = tmp_path / "two.m"
    path.write_text(TWO)
    return path
