"""What a running verification tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """One step of progress, handed to `on_event`: the phase, a line for people, and its numbers (bound, nodes, gap, ...)."""

    phase: str
    message: str
    data: dict[str, object] = field(default_factory=dict)
