"""What the command line says of a query: its networks, and nothing that does not go with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence


def networks_of(networks: Sequence[str], specs: Sequence[Path], others: bool, folder: Path | None) -> dict[str, Path] | None:
    """The files of a query's networks, by their names; None where it is a network and properties that are given.

    Args:
        networks: as they are written, NAME=FILE.
        others: whether there are options that do not go with a query.
        folder: where values are to be written to, which goes with queries only.

    Raises:
        InvalidInput: neither is given, or what does not go together.
    """
    if not networks:
        if not specs:
            usage = "verify NET.onnx SPEC.vnnlib, or, in VNN-LIB 2, verify QUERY.vnnlib --network NAME=NET.onnx"
            raise InvalidInput(f"there is only one file; it is {usage}")
        if folder is not None:
            raise InvalidInput("--serialise-assignments is for queries of VNN-LIB 2, whose networks --network names")
        return None
    if specs or others:
        raise InvalidInput("with --network there is one query, without properties, --csv, --resume, --workers and --output")
    found: dict[str, Path] = {}
    for text in networks:
        name, _, file = text.partition("=")
        if not (name and file):
            raise InvalidInput(f"--network takes NAME=FILE, such as f=net.onnx, not {text!r}")
        if name in found:
            raise InvalidInput(f"--network {name}=... is given twice")
        found[name] = Path(file)
    return found
