"""What a running verification tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Event:
    """One step of progress, handed to `on_event`: the phase, a line for people, and its numbers (bound, nodes, gap, ...)."""

    phase: str
    message: str
    data: Mapping[str, object] = field(default_factory=dict)
