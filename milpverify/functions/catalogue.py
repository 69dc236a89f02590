"""The nonlinearity catalogue: encodings/*.toml, read into `Nonlinearity` objects that find themselves by name.

A TOML file says what is known about one function; encodings/README.md describes the format.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from milpverify.errors import InvalidInput
from milpverify.functions.function import Curvature, Enclosure, Function, Nonlinearity, Parameter
from milpverify.functions.pieces import Pieces
from milpverify.functions.terms import Term, operators, parse, symbols

__all__ = [
    "Catalogue",
    "Curvature",
    "Function",
    "Nonlinearity",
    "Parameter",
    "Pieces",
    "catalogue",
    "load_nonlinearity",
    "register_nonlinearity",
]

_REQUIRED = ("name", "term", "onnx", "torch")
_SMOOTH = ("domain", "range", "extrema", "inflections", "curvature")  # required of, and only given by, what is not piecewise linear
_OPTIONAL = ("derivative", "period", "poles", "jumps", "parameters", "backend")
_BACKENDS = ("torch", "numeric")


class Catalogue(Mapping[str, Nonlinearity]):
    """Nonlinearities by name. It only ever grows: `register` adds a user's own, and refuses a name that is taken."""

    def __init__(self) -> None:
        self._entries: dict[str, Nonlinearity] = {}

    def __getitem__(self, name: str) -> Nonlinearity:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def register(self, path: str | Path) -> Nonlinearity:
        """Read one TOML file and add it.

        Raises:
            InvalidInput: the file is missing or wrong, or a name, an ONNX operator or a torch function is taken.
        """
        entry = load_nonlinearity(Path(path))
        for known in self._entries.values():
            taken = {known.name} & {entry.name} | {*known.onnx} & {*entry.onnx} | {*known.torch} & {*entry.torch}
            if taken:
                raise InvalidInput(f"{path}: {taken.pop()} already belongs to the nonlinearity {known.name}")
        self._entries[entry.name] = entry
        return entry

    def by_onnx(self, operator: str) -> Nonlinearity | None:
        """The entry that is exactly this ONNX operator, its parameters named as the operator's attributes."""
        return next((entry for entry in self._entries.values() if operator in entry.onnx), None)

    def by_torch(self, function: str) -> Nonlinearity | None:
        """The entry that is this torch function, given as a dotted name (`torch.nn.functional.elu`)."""
        return next((entry for entry in self._entries.values() if function in entry.torch), None)


def data_folder() -> Path:
    """encodings/: the installed package's, else the checkout's."""
    package = Path(__file__).resolve().parents[1]
    folder = next((f for f in (package / "encodings", package.parent / "encodings") if f.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"the installation lacks its encodings folder (looked in {package} and beside it)")
    return folder


@functools.cache
def catalogue() -> Catalogue:
    """The process's catalogue, read from encodings/ on the first call."""
    entries = Catalogue()
    for path in sorted(data_folder().glob("*.toml")):
        entries.register(path)
    return entries


def register_nonlinearity(path: str | Path) -> Nonlinearity:
    """Add a user's own TOML file to `catalogue()`, for this process, after the full check of `milpverify.functions.selfcheck`.

    Raises:
        InvalidInput: the file is missing or wrong, what it claims about its term is false, or its name is taken.
    """
    from milpverify.functions.selfcheck import check

    check(load_nonlinearity(Path(path)).trial(), str(path))
    return catalogue().register(path)


def load_nonlinearity(path: Path) -> Nonlinearity:
    """Parse one TOML file and check that it is consistent (what costs more than a millisecond is in `milpverify.functions.selfcheck`).

    Raises:
        InvalidInput: one line with the file, the key and what is wrong.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        return _build(data, path.stem)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, InvalidInput) as error:
        raise InvalidInput(f"{path}: {error}") from error


def _build(data: dict[str, Any], stem: str) -> Nonlinearity:
    for key in data:
        if key not in (*_REQUIRED, *_SMOOTH, *_OPTIONAL):
            raise InvalidInput(f"unknown key {key!r}")
    for key in _REQUIRED:
        if key not in data:
            raise InvalidInput(f"the key {key!r} is missing")
    if data["name"] != stem:
        raise InvalidInput(f"name {data['name']!r} differs from the file's name")
    limits = {name: _parameter(name, value) for name, value in _table(data, "parameters").items()}
    backend = _table(data, "backend")
    for key in backend:
        if key not in _BACKENDS:
            raise InvalidInput(f"unknown backend {key!r}")
    try:
        curvature = tuple(Curvature(value) for value in _list(data, "curvature"))
    except ValueError as error:
        raise InvalidInput(f"curvature: {error}") from error
    entry = Nonlinearity(
        name=stem,
        term=_term(data["term"], "term", limits, "x"),
        limits=limits,
        onnx=_strings(data, "onnx"),
        torch=_strings(data, "torch"),
        derivative=_term(data["derivative"], "derivative", limits, "x", "y") if "derivative" in data else None,
        domain=tuple(_enclosure(v, "domain", limits) for v in _list(data, "domain")),
        range=tuple(_enclosure(v, "range", limits) for v in _list(data, "range")),
        extrema=tuple(_enclosure(v, "extrema", limits) for v in _list(data, "extrema")),
        inflections=tuple(_enclosure(v, "inflections", limits) for v in _list(data, "inflections")),
        curvature=curvature,
        poles=tuple(_enclosure(v, "poles", limits) for v in _list(data, "poles")),
        period=_term(data["period"], "period", limits) if "period" in data else None,
        jumps=tuple(_term(v, "jumps", limits) for v in _strings(data, "jumps")),
        backend={key: _term(value, f"backend.{key}", limits, "x", foreign=key == "torch") for key, value in backend.items()},
    )
    _check_shape(entry, data)
    return entry


def _check_shape(entry: Nonlinearity, data: dict[str, Any]) -> None:
    """A piecewise-linear entry leaves to its term what a smooth one must declare."""
    if "x" not in symbols(entry.term):
        raise InvalidInput("term: x does not occur")
    if entry.rational_pieces({name: limit.trial for name, limit in entry.limits.items()}) is not None:
        for key in (*_SMOOTH, "period", "poles", "derivative"):
            if key in data:
                raise InvalidInput(f"{key}: the term is piecewise linear, and this is derived from it")
        return
    for key in _SMOOTH:
        if key not in data:
            raise InvalidInput(f"the key {key!r} is missing, which a function that is not piecewise linear needs")
    if entry.jumps or "sign" in operators(entry.term):
        raise InvalidInput("only piecewise-linear functions may have jumps, so no other term may use sign")
    for key, ends in (("domain", entry.domain), ("range", entry.range)):
        if len(ends) != 2:
            raise InvalidInput(f"{key}: two ends are needed")
    if not {*entry.poles} <= {*entry.inflections}:
        raise InvalidInput("poles: each must be listed among the inflections too")
    pieces = len(entry.inflections) + (entry.period is None)
    if len(entry.curvature) != pieces:
        raise InvalidInput(f"curvature: {len(entry.inflections)} inflections cut the line into {pieces} pieces, not {len(entry.curvature)}")


def _table(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise InvalidInput(f"{key}: a table is needed")
    return value


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list):
        raise InvalidInput(f"{key}: a list is needed")
    return value


def _strings(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = _list(data, key)
    if not all(isinstance(value, str) for value in values):
        raise InvalidInput(f"{key}: a list of strings is needed")
    return tuple(values)


def _term(text: object, key: str, limits: Mapping[str, Parameter], *variables: str, foreign: bool = False) -> Term:
    if not isinstance(text, str):
        raise InvalidInput(f"{key}: a string is needed, got {text!r}")
    try:
        term = parse(text, foreign=foreign)
    except InvalidInput as error:
        raise InvalidInput(f"{key}: {error}") from error
    unknown = symbols(term) - {*limits, *variables, "pi"}
    if unknown:
        raise InvalidInput(f"{key}: unknown name {min(unknown)!r}")
    return term


def _enclosure(value: object, key: str, limits: Mapping[str, Parameter]) -> Enclosure:
    if isinstance(value, list) and len(value) == 2:
        return _term(value[0], key, limits), _term(value[1], key, limits)
    term = _term(value, key, limits)
    return term, term


def _parameter(name: str, value: object) -> Parameter:
    numbers: dict[str, float] = {}
    for key, number in (value if isinstance(value, dict) else {"default": value}).items():
        if key not in ("default", "minimum", "step", "maximum"):
            raise InvalidInput(f"parameters.{name}: unknown key {key!r}")
        if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
            raise InvalidInput(f"parameters.{name}: {number!r} is not a number")
        numbers[key] = float(number)
    parameter = Parameter(numbers.get("default"), numbers.get("minimum", -math.inf), numbers.get("step"), numbers.get("maximum", math.inf))
    if parameter.default is not None and not parameter.accepts(parameter.default):
        raise InvalidInput(f"parameters.{name}: the default {parameter.default} is not allowed")
    return parameter
