"""Tuning numbers: frozen dataclasses whose methods are their base's."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, asdict, field, fields, is_dataclass, replace

import pytest

from milpverify.tuning import Tuning, tuned


class PaceTuning(Tuning):
    """Numbers."""

    most: int = 3
    share: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    """All of them."""


class OtherTuning(Tuning):
    """The same numbers of another theme."""

    most: int = 3
    share: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    """All of them."""


def test_they_are_dataclasses() -> None:
    assert is_dataclass(PaceTuning) and [field.name for field in fields(PaceTuning)] == ["most", "share", "sizes"]
    numbers = replace(PaceTuning(4), share=0.25)
    assert asdict(numbers) == {"most": 4, "share": 0.25, "sizes": (1, 2)} and PaceTuning().most == 3
    assert repr(numbers) == "PaceTuning(most=4, share=0.25, sizes=(1, 2))"
    assert pickle.loads(pickle.dumps(numbers)) == numbers


def test_equal_numbers_of_one_theme_are_equal() -> None:
    assert PaceTuning(most=3) == PaceTuning() != PaceTuning(most=4) and PaceTuning() != OtherTuning()
    assert len({PaceTuning(), PaceTuning(3), PaceTuning(5), OtherTuning()}) == 3


def test_they_are_frozen() -> None:
    numbers = PaceTuning()
    with pytest.raises(FrozenInstanceError, match="most"):
        numbers.most = 5  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError, match="share"):
        del numbers.share
    assert numbers == PaceTuning()


@pytest.mark.parametrize(
    ("numbers", "named"), [((1, 2.0, (3,), 4), {}), ((), {"least": 1}), ((1,), {"most": 2}), ((1,), {"share": 0.5, "least": 1})]
)
def test_numbers_that_a_theme_has_not_are_refused(numbers: tuple[object, ...], named: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=r"^PaceTuning has the numbers most, share, sizes, each once; not "):
        PaceTuning(*numbers, **named)  # type: ignore[arg-type]


def test_a_number_has_a_default() -> None:
    with pytest.raises(TypeError, match=r"^BareTuning has numbers without a default: most, sizes$"):

        class BareTuning(Tuning):
            """Numbers."""

            most: int
            share: float = 0.5
            sizes: list[int] = field(default_factory=list)
            """All of them."""


def test_those_of_a_kind_are_found_or_else_the_defaults() -> None:
    given = PaceTuning(7), OtherTuning(8)
    assert [tuned(given, kind).most for kind in (PaceTuning, OtherTuning)] == [7, 8]
    assert tuned((), PaceTuning) == tuned(given[1:], PaceTuning) == PaceTuning()
