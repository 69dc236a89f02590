"""Tuning numbers: what makes runs faster or slower, and what no proof rests on.

Those of one theme are a frozen dataclass that derives from `Tuning`, in the file of the code that reads them; every field is documented.
Whoever reads one was handed it: by an argument, or in a search by the options, `options.search.tuned(RestartTuning)`. A run with other
numbers is a run with `SearchOptions(tuning=(RestartTuning(splits=8),))`. Numbers that are facts (of rounding, of a format, of
mathematics, of what is refused) stay constants of their modules, annotated `Final`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class Tuning:
    """The base of all dataclasses of tuning numbers."""


AnyTuning = TypeVar("AnyTuning", bound=Tuning)


def tuned(given: Iterable[Tuning], kind: type[AnyTuning]) -> AnyTuning:
    """The numbers of one kind: those that were given, or else the defaults."""
    return next((numbers for numbers in given if isinstance(numbers, kind)), None) or kind()
