"""The text of a property as tokens: brackets, symbols, numerals, comments."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from milpverify.errors import InvalidProperty

NUMERAL = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
NUMBER = re.compile(NUMERAL)
SPACE = r"\s*+(?:;[^\r\n]*+\s*+)*+"
"""White space and comments; possessive, so that no token is ever found within a comment."""
TOKEN = re.compile(SPACE + r"(?P<token>[()]|\|[^|]*\||\"[^\"]*\"|[^\s();|\"]+|[|\"])")
_SPACE = re.compile(SPACE)
_SIMPLE = re.compile(r"[^\s();|\"0-9:#+.-][^\s();|\"]*")
_LONGEST: Final = 80
"""Characters of a term that a message quotes."""


class Token(NamedTuple):
    """A token, and where it begins and ends."""

    text: str
    start: int
    end: int


def skip(text: str, place: int) -> int:
    """The place after white space and comments."""
    match = _SPACE.match(text, place)
    return match.end() if match else place


def symbol(token: str) -> str:
    """The name of a symbol, |X_0| like X_0; what is no name without its bars keeps them."""
    return token[1:-1] if token[0] == "|" and _SIMPLE.fullmatch(token, 1, max(1, len(token) - 1)) else token


class Text:
    """A property file: its tokens, and the messages about them. `where` is what messages call it."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text, where

    def error(self, place: int, message: str) -> InvalidProperty:
        """The error to raise for what stands at a place."""
        return InvalidProperty(f"{self.where}, line {self.line(place)}: {message}")

    def line(self, place: int) -> int:
        """The number of the line of a place, from 1."""
        return self.text.count("\n", 0, place) + 1

    def token(self, place: int, opened: int) -> Token:
        """The next token of the term that a bracket opens.

        Raises:
            InvalidProperty: there is none.
        """
        if match := TOKEN.match(self.text, place):
            return Token(match["token"], match.start("token"), match.end())
        raise self.error(opened, "'(' without ')'")

    def expect(self, token: str, place: int, opened: int, instead: str) -> int:
        """The place after a token that has to come next; `instead` is what is said of any other.

        Raises:
            InvalidProperty: another one does, or none.
        """
        found = self.token(place, opened)
        if found.text != token:
            raise self.error(found.start, instead)
        return found.end

    def items(self, place: int, opened: int) -> tuple[list[object], int]:
        """What stands up to the closing bracket, brackets within as lists, and the place after it."""
        stack: list[list[object]] = [[]]
        while True:
            token, _, place = self.token(place, opened)
            if token == "(":
                stack.append([])
            elif token == ")":
                items = stack.pop()
                if not stack:
                    return items, place
                stack[-1].append(items)
            else:
                stack[-1].append(symbol(token))

    def term(self, place: int) -> str:
        """The term at a place in one line, as messages quote it."""
        words, depth, end = "", 0, place
        while (match := TOKEN.match(self.text, end)) and len(words) <= _LONGEST:
            token, end = match["token"], match.end()
            depth += (token == "(") - (token == ")")
            words += token if token == ")" or words[-1:] in ("", "(") else f" {token}"
            if depth <= 0:
                return words
        return words[:_LONGEST] + " ..."
