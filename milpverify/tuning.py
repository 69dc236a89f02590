"""Tuning numbers: what makes runs faster or slower, and what no proof rests on."""

from __future__ import annotations

from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass_transform(frozen_default=True)
class Tuning:
    """The base of the dataclasses of tuning numbers, all of them frozen.

    Those of one theme are one class in the file of the code that reads them, every number documented. Whoever reads one was handed it: by
    an argument, or in a search by the options, `options.search.tuned(RestartTuning)`; a run with other numbers is one with
    `SearchOptions(tuning=(RestartTuning(splits=8),))`. Numbers that are facts (of rounding, of a format, of mathematics, or what is
    refused) are constants of modules, annotated `Final`. `of_runs` is False of what a run does not hand on: only arguments do.

    Raises:
        TypeError: it has no number of a name, or not so many; of a class, a number without a default.
    """

    of_runs: ClassVar[bool] = True
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        # The methods below serve all: `dataclass` would compile five for each, half a millisecond of every start.
        dataclass(init=False, repr=False, eq=False)(cls)
        if bare := [field.name for field in fields(cls) if field.default is MISSING]:
            raise TypeError(f"{cls.__name__} has numbers without a default: {', '.join(bare)}")

    def __init__(self, *numbers: object, **named: object) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        placed = dict(zip(defaults, numbers, strict=False))
        if len(numbers) > len(defaults) or named.keys() & placed.keys() or not named.keys() <= defaults.keys():
            raise TypeError(f"{type(self).__name__} has the numbers {', '.join(defaults)}, each once; not {numbers}, {named}")
        vars(self).update(defaults | placed | named)

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


AnyTuning = TypeVar("AnyTuning", bound=Tuning)


def tuned(tuning: Iterable[Tuning], kind: type[AnyTuning]) -> AnyTuning:
    """The tuning numbers of a kind among some, or else the defaults."""
    return next((numbers for numbers in tuning if isinstance(numbers, kind)), None) or kind()
