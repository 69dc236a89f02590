"""What is known of a robustness radius."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milpverify.result import json_number, json_text

if TYPE_CHECKING:
    from pathlib import Path

    from milpverify.result import Counterexample, Reason, Trust


@dataclass(frozen=True, eq=False)
class Radius:
    """A robustness radius between two bounds, which hold however the run ended.

    Up to `lower_bound` it is proved that the label stays strictly the largest; 0 says that nothing is proved, infinity that all of the
    clip is. At `upper_bound` lies `counterexample`, at which another output is strictly larger in the network's own runtime and in real
    arithmetic; infinity says that none is known. Both are 0 where the input itself is misclassified.

    `reason` is PROVED where the bounds are within the gap, COUNTEREXAMPLE where the input itself is misclassified, else why the run
    stopped, with more in `note`. `trust` is what `lower_bound` rests on. `other` is the output that is largest at the counterexample,
    and `searches` counts the radii that `verify` was asked about.
    """

    lower_bound: float
    upper_bound: float
    counterexample: Counterexample | None
    trust: Trust
    reason: Reason
    seconds: float
    label: int
    other: int | None = None
    searches: int = 0
    note: str = ""
    norm: str = "linf"

    @property
    def gap(self) -> float:
        """(upper_bound - lower_bound) / upper_bound; 0 where they agree, 1 where one is known only."""
        if self.lower_bound == self.upper_bound:
            return 0.0
        return 1.0 if math.isinf(self.upper_bound) else (self.upper_bound - self.lower_bound) / self.upper_bound

    def to_dict(self) -> dict[str, Any]:
        """A JSON form with the fields of this class, named and written as those of a `Result`."""
        return {
            "label": self.label,
            "norm": self.norm,
            "lower_bound": json_number(self.lower_bound),
            "upper_bound": json_number(self.upper_bound),
            "counterexample": None if self.counterexample is None else self.counterexample.to_dict(),
            "other": self.other,
            "trust": self.trust.value,
            "reason": self.reason.name,
            "message": self.reason.value,
            "note": self.note,
            "seconds": self.seconds,
            "searches": self.searches,
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The JSON text; written to `path` too where one is given."""
        return json_text(self.to_dict(), path)

    def __str__(self) -> str:
        found = "" if self.other is None else f", where output {self.other} is larger than {self.label}"
        line = f"radius within [{self.lower_bound:.6g}, {self.upper_bound:.6g}]{found}: {self.reason.value}"
        return f"{line} ({self.note})" if self.note else line
