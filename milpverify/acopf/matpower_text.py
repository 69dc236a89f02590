"""The text of a MATPOWER case file: assignments of tables, numbers and strings. Anything else is code, and refused.

A file that computes (ohms to p.u., say) means other numbers than its tables show; so nothing that is not understood is skipped.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from milpverify.acopf.case import Array
from milpverify.errors import InvalidInput

Tables = dict[str, "Array | float | str"]

_BLANK = re.compile(r"[\s;,]+")
_IGNORED = re.compile(r"function\b[^\n]*|(?:return|end|endfunction)\b")
_LEFT = re.compile(r"([A-Za-z]\w*(?:\.\w+)*)[ \t]*=(?!=)[ \t]*")
_STRING = r"'(?:[^'\n]|'')*'|\"(?:[^\"\n]|\"\")*\""
_RIGHT = re.compile(rf"\[(?P<table>[^\[\]]*)\]|\{{(?:{_STRING}|[^}}'\"])*\}}|(?P<string>{_STRING})|(?P<number>[^\s;,]+)")
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|nan)", re.IGNORECASE)
_END = re.compile(r"[ \t]*(?:[;,\n]|\Z)")


def read_text(path: Path) -> Tables:
    """What a case file assigns, by the last part of the name: tables (rows, columns), numbers and strings.

    Raises:
        InvalidInput: no such file, or something in it that is no plain assignment (with its line).
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise InvalidInput(f"{path}: the case cannot be read: {e.strerror or e}") from e
    return parse(text, path.name)


def parse(text: str, where: str) -> Tables:
    """`read_text` of a text; `where` is how messages call it."""
    text = _without_comments(text)
    found: Tables = {}
    at = 0
    while True:
        if blank := _BLANK.match(text, at):
            at = blank.end()
        if at == len(text):
            return found
        if ignored := _IGNORED.match(text, at):
            at = ignored.end()
            continue
        left = _LEFT.match(text, at)
        right = left and _RIGHT.match(text, left.end())
        end = right and _END.match(text, right.end())
        if left is None or right is None or end is None:
            line = text.count("\n", 0, at) + 1
            raise InvalidInput(f"{where}: line {line} is no table, number or string, and code is not run: {_shown(text, at)}")
        name = left[1].rpartition(".")[2]
        if name in found:
            raise InvalidInput(f"{where}: {name} is assigned twice (line {text.count(chr(10), 0, at) + 1})")
        if right["table"] is not None:
            found[name] = _table(right["table"], name, where)
        elif right["string"] is not None:
            found[name] = right["string"][1:-1]
        elif right["number"] is not None:
            found[name] = _number(right["number"], f"{where}: {name}")
        at = end.end()


def _without_comments(text: str) -> str:
    """The text without comments, its lines joined where they are continued (a blank line stands in for each, so that lines count)."""
    lines: list[str] = []
    inside = owed = 0  # block comments that are open; lines that were joined to the one before
    joined = False
    for line in text.splitlines():
        inside += line.strip() == "%{"
        code = "" if inside else _code(line)
        inside -= inside > 0 and line.strip() == "%}"
        continued = "..." in code
        code = code.partition("...")[0] + " " if continued else code
        if joined:
            lines[-1] += code
            owed += 1
        else:
            lines.append(code)
        if not continued:
            lines[-1] += "\n" * owed
            owed = 0
        joined = continued
    return "\n".join(lines)


def _code(line: str) -> str:
    """What stands before the comment: a % that is in no string."""
    if "%" not in line:
        return line
    for match in re.finditer(rf"{_STRING}|%", line):
        if match[0] == "%":
            return line[: match.start()]
    return line


def _table(body: str, name: str, where: str) -> Array:
    rows: list[list[float]] = []
    for text in re.split(r"[;\n]", body):
        if words := text.replace(",", " ").split():
            rows.append([_number(word, f"{where}: {name} row {len(rows) + 1}") for word in words])
            if len(rows[-1]) != len(rows[0]):
                raise InvalidInput(f"{where}: {name} row {len(rows)}: {len(rows[-1])} numbers, but {len(rows[0])} in row 1")
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 0)


def _number(word: str, where: str) -> float:
    if not _NUMBER.fullmatch(word):
        raise InvalidInput(f"{where}: {word[:40]!r} is no number")
    return float(word)


def _shown(text: str, at: int) -> str:
    return repr(text[at:].partition("\n")[0].strip()[:60])
