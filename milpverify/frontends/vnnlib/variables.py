"""What the variables of a property are called: X_i and Y_j, or any names, in the order of their declarations."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]*)")
_LETTERS = re.compile(r"[^\W\d_]+")
_NUMBERS = re.compile(r"[0-9]+")
_INPUT_LIKE, _OUTPUT_LIKE = ("x", "in", "inp", "input", "inputs"), ("y", "out", "output", "outputs", "logit", "logits")
_LONGEST: Final = 10
"""Characters of a name that an input or output can have."""
_SHOWN: Final = 3
"""Names that a note lists before it leaves some out."""


class Unclear(Exception):
    """A declaration that says nothing, or what contradicts others; the message says what."""


class Variables:
    """The variables by name: X_i is i, Y_j is nx + j, whatever they are called.

    Names of another form stand for what has no name: in the order of their declarations for the inputs, then the outputs, of which those
    that are called X_i or Y_j are not among them. Where that is not clear it is refused, never guessed.
    """

    def __init__(self, nx: int, ny: int) -> None:
        self.nx, self.ny = nx, ny
        self.numbers: dict[str, int] = {}
        self.others: list[str] = []
        self._first = 0  # what the first of the other names stands for
        self._outputs_named = False  # whether some output is called Y_j; known where there are other names

    def declare(self, name: str) -> None:
        """Declare a variable.

        Raises:
            Unclear: it is declared already, there is no such input or output, or it is not clear which one it is.
        """
        if VARIABLE.fullmatch(name):
            self.declare_numbered(name)
        elif name in self.numbers:
            raise Unclear(f"{name} is declared twice")
        else:
            self.numbers[name] = self._other(name)

    def declare_numbered(self, name: str) -> None:
        """Declare a variable that is called X_i or Y_j.

        Raises:
            Unclear: as `declare`.
        """
        if name in self.numbers:
            raise Unclear(f"{name} is declared twice")
        size, offset = (self.nx, 0) if name[0] == "X" else (self.ny, self.nx)
        if len(name) > _LONGEST or (number := int(name[2:])) >= size:
            raise Unclear(self.absent(name))
        self.numbers[name] = offset + number
        if self.others:
            self._outputs_named = self._outputs_named or name[0] == "Y"
            if (self._first == self.nx) == (name[0] == "Y"):
                raise Unclear(f"{name} is declared, but {self.others[0]!r} may stand for it: variables are called X_i and Y_j")

    def absent(self, name: str) -> str:
        """What to say of a name X_i or Y_j that is not declared, or that the network has no variable of."""
        kind, size = ("input", self.nx) if name[0] == "X" else ("output", self.ny)
        if len(name) > _LONGEST or int(name[2:]) >= size:
            return f"the property names {kind} {name}, but the network has {size} {kind}s"
        return f"{name} is not declared"

    def _other(self, name: str) -> int:
        if not self.others:
            inputs_named, self._outputs_named = (any(known[0] == letter for known in self.numbers) for letter in "XY")
            if inputs_named and self._outputs_named:
                raise Unclear(f"{name!r} is declared, but variables are called X_i and Y_j")
            self._first = self.nx if inputs_named else 0
        self.others.append(name)
        number = self._first + len(self.others) - 1
        if number >= (self.nx if self._outputs_named else self.nx + self.ny):
            raise Unclear(
                f"{name!r} is declared, which is one more variable than the network has inputs ({self.nx}) and outputs ({self.ny})"
            )
        return number

    def settle(self) -> None:
        """Look at all declarations, of which there will be no more.

        Raises:
            Unclear: inputs are missing, or names and order contradict each other.
        """
        inputs = sum(number < self.nx for number in self.numbers.values())
        if inputs != self.nx:
            raise Unclear(f"the property declares {inputs} inputs, but the network has {self.nx}")
        if not self.others:
            return
        end = self.nx if self._outputs_named else self.nx + self.ny
        if (declared := self._first + len(self.others)) != end:
            raise Unclear(
                f"the property declares {declared - self.nx} outputs, but the network has {self.ny}: "
                f"names other than X_i and Y_j are taken in the order of their declarations, which has to name all"
            )
        split = self.nx - self._first
        for names, kind, alien in ((self.others[:split], "input", _OUTPUT_LIKE), (self.others[split:], "output", _INPUT_LIKE)):
            for name in names:
                if (letters := _LETTERS.match(name)) and letters[0].lower() in alien:
                    raise Unclear(f"{name!r} stands where an {kind} is declared: inputs are declared first, then outputs")
            for a, b in pairwise(names):
                if _NUMBERS.sub("0", a) == _NUMBERS.sub("0", b) and _indices(a) >= _indices(b):
                    raise Unclear(f"{a!r} is declared before {b!r}: names other than X_i and Y_j have to be declared in their order")

    def note(self) -> str:
        """What to say of names that stand for others; "" where none does."""
        if not self.others:
            return ""
        split = self.nx - self._first
        parts = [
            f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {_listed([f'{letter}_{i}' for i in range(len(names))])}"
            for names, letter in ((self.others[: max(0, split)], "X"), (self.others[max(0, split) :], "Y"))
            if names
        ]
        return f"the property's variables are taken in the order of their declarations: {'; '.join(parts)}"


def _indices(name: str) -> tuple[int, ...]:
    return tuple(int(digits[-18:]) for digits in _NUMBERS.findall(name))


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= _SHOWN + 1 else f"{', '.join(names[:_SHOWN])}, ..., {names[-1]}"
