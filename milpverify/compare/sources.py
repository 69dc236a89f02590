"""Where problems come from: files, lists of files, or objects that are sent to another process."""

from __future__ import annotations

import csv
import math
import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from milpverify.frontends.network import Network
    from milpverify.spec import Disjunct, Problem

    Source: TypeAlias = "Instance | Problem | tuple[Network, str | Path]"


@dataclass(frozen=True)
class Instance:
    """A problem as another process gets it: the files of a network and a property, or the pickle of a `Problem`.

    `timeout` are seconds per method where the caller sets none; `radius` is how far inputs may change, where that is known (`reach`);
    `outputs` are the names of the network's outputs that are numbered, None where that is clear.
    """

    name: str
    onnx: Path | None = None
    vnnlib: Path | None = None
    timeout: float | None = None
    pickled: bytes = b""
    radius: float | None = None
    outputs: tuple[str, ...] | None = None

    @staticmethod
    def of(source: Source, name: str | None = None, radius: float | None = None) -> Instance:
        """An instance of a `Problem` or of a pair of files (network, property), under a name of one's own.

        Args:
            radius: how far inputs may change, for plots against it; otherwise it is read off the problem's boxes.
        """
        found = _instance(source, 0)
        return replace(found, name=name or found.name, radius=found.radius if radius is None else radius)

    @staticmethod
    def of_files(onnx: Path, vnnlib: Path, timeout: float | None = None) -> Instance:
        """An instance named by its files, which have to be there; where one is not but its .gz is, that one is taken."""
        there = [p if p.exists() else p.with_name(p.name + ".gz") for p in (onnx, vnnlib)]
        for path, asked in zip(there, (onnx, vnnlib), strict=True):
            if not path.is_file():
                raise InvalidInput(f"there is no file {asked}")
        return Instance(f"{_stem(onnx)} {_stem(vnnlib)}", there[0], there[1], timeout)

    def reach(self) -> float | None:
        """How far inputs may change: the radius that is given, else half the width of the widest input; None where nothing tells.

        Raises:
            InvalidInput: the property cannot be read.
        """
        if self.radius is not None or self.vnnlib is None:
            return self.radius
        from milpverify.frontends.vnnlib.reader import parse_vnnlib, read_vnnlib

        text = read_vnnlib(self.vnnlib)
        inputs, outputs = (len(re.findall(rf"declare-(?:const|fun)\s+\|?{letter}_", text)) for letter in "XY")
        if not (inputs and outputs):  # other names, whose order tells nothing without the network
            return None
        return _half_width(parse_vnnlib(text, inputs, outputs, str(self.vnnlib)))

    def load(self) -> Problem:
        """The problem itself.

        Raises:
            InvalidInput: the files cannot be read, or the object not in another process.
        """
        if self.onnx is not None and self.vnnlib is not None:
            from milpverify.frontends.load import load

            return load(self.onnx, self.vnnlib, outputs=self.outputs)
        try:
            problem: Problem = pickle.loads(self.pickled)
        except (pickle.UnpicklingError, AttributeError, ImportError, TypeError) as error:
            raise InvalidInput(f"{self.name} cannot be read in another process ({error}): define its classes in a module") from error
        return problem


def instances_of(sources: str | Path | Sequence[Source] | Mapping[str, Source], outputs: Sequence[str] | None = None) -> list[Instance]:
    """The instances of a list, of a file of VNN-COMP's form, or by the names that they are given, under names that differ.

    Args:
        outputs: of networks that are files, and do not say it themselves, the names of those that are numbered.

    Raises:
        InvalidInput: a file is missing or cannot be read, a problem is there twice, or there is none.
    """
    if isinstance(sources, str | Path):
        found = read_instances(Path(sources))
    elif isinstance(sources, Mapping):
        found = [Instance.of(source, name) for name, source in sources.items()]
    else:
        found = [_instance(s, k) for k, s in enumerate(sources)]
    if not found:
        raise InvalidInput("there is no problem to compare methods on")
    if outputs is not None:
        found = [i if i.onnx is None or i.outputs is not None else replace(i, outputs=tuple(outputs)) for i in found]
    count = Counter(i.name for i in found)
    named = [replace(i, name=f"{i.onnx} {i.vnnlib}") if count[i.name] > 1 and i.onnx is not None else i for i in found]
    twice = [name for name, n in Counter(i.name for i in named).items() if n > 1]
    if twice:
        raise InvalidInput(f"the problem {twice[0]!r} is there twice")
    return named


def read_instances(path: Path) -> list[Instance]:
    """The instances of a CSV file: onnx, vnnlib and timeout, as VNN-COMP has them, or under a header with these names and perhaps radius.

    Paths are relative to the file's folder.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [(number, line) for number, line in enumerate(csv.reader(file), start=1) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from error
    names = [cell.strip() for cell in lines[0][1]] if lines else []
    header = {"onnx", "vnnlib"} <= set(names)
    if not header:
        names = ["onnx", "vnnlib", "timeout"]
    found = []
    for number, line in lines[1:] if header else lines:
        cells = dict(zip(names, (cell.strip() for cell in line), strict=False))
        if len(line) < 2 or (not header and len(line) > 3):
            raise InvalidInput(f"{path}, line {number}: onnx, vnnlib and timeout are needed, not {','.join(line)!r}")
        limit = _positive(cells.get("timeout", cells.get("timeout_s", "")), f"{path}, line {number}: a time limit is a number of seconds")
        radius = _positive(cells.get("radius", ""), f"{path}, line {number}: a radius is a number")
        files = path.parent / cells["onnx"], path.parent / cells["vnnlib"]
        found.append(replace(Instance.of_files(*files, limit), radius=radius))
    return found


def _positive(text: str, complaint: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not 0 <= value < math.inf:
        raise InvalidInput(f"{complaint}, not {text!r}")
    return value


def _instance(source: Source, place: int) -> Instance:
    if isinstance(source, Instance):
        return source
    if isinstance(source, tuple | list):
        if len(source) != 2:
            raise InvalidInput(f"a problem is a Problem, a pair of files or of a network and the file of a property, not {source!r}")
        if isinstance(source[0], str | PathLike):
            return Instance.of_files(Path(source[0]), Path(source[1]))
        from milpverify.frontends.load import load

        source = load(*source)
    if getattr(source, "files", None) is None:
        raise InvalidInput(
            f"a problem is a Problem, a pair of files or of a network and the file of a property, not a {type(source).__name__}"
        )
    files = list(source.files)
    if len(files) > 1 and Path(files[0]).exists() and files[-1].removesuffix(".gz").endswith(".vnnlib"):
        kept = tuple(spec.name for spec in source.graph.outputs) or None
        return replace(Instance.of_files(Path(files[0]), Path(files[-1])), outputs=kept)  # between them there may be files of weights
    name = f"problem {place + 1}"
    try:
        return Instance(name, pickled=pickle.dumps(_bare(source)), radius=_half_width(source.disjuncts))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidInput(f"{name} cannot be sent to another process ({error}): export the network to ONNX") from error


def _bare(problem: Problem) -> Problem:
    """The problem without what its graph has derived so far."""
    from milpverify.spec import Problem

    return Problem(replace(problem.graph), problem.disjuncts, problem.runtime, problem.files, notes=problem.notes)


def _half_width(disjuncts: Sequence[Disjunct]) -> float | None:
    """Half the width of the widest input, to four digits (ends are rounded); what the range that inputs have anyway cuts off is less."""
    widths = [float((d.box.upper - d.box.lower).max()) / 2 for d in disjuncts]
    return float(f"{max(widths):.4g}") if widths else None


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.removesuffix(".onnx").removesuffix(".vnnlib")
