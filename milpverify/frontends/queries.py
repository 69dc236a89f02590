"""A problem from a query of VNN-LIB 2.0 and the networks that it declares."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import onnx

from milpverify.config import MOST_BYTES, MOST_ENTRIES, Deadline, check_time, in_force
from milpverify.errors import InvalidInput, InvalidModel
from milpverify.frontends.joint import JointRuntime, side_by_side
from milpverify.frontends.lowering.builder import at_most
from milpverify.frontends.lowering.redundancy import without_repeats
from milpverify.frontends.onnx.check import Check
from milpverify.frontends.onnx.outputs import Ambiguous
from milpverify.frontends.onnx.reading import read_network
from milpverify.frontends.problem import Problem
from milpverify.frontends.vnnlib.assertions import Unbounded, disjuncts_of
from milpverify.frontends.vnnlib.query import REAL, Query
from milpverify.frontends.vnnlib.reader import read_hashed
from milpverify.spec import Box

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from milpverify.frontends.onnx.reading import Source
    from milpverify.frontends.vnnlib.query import Declaration, Variable
    from milpverify.graph import Graph, TensorSpec


@dataclass(frozen=True, eq=False)
class LoadedQuery:
    """A query with its networks.

    Attributes:
        problem: what it asks, in the reals: the inputs of all networks, one after the other, and so their outputs.
        networks: per declaration its graph, as it was lowered, and where it came from; those that are equal are one object.
        reach: how far from 0 the inputs lie that the problem is about, where the query leaves some without bounds: what is found there
            is found, and what is not may be elsewhere.
    """

    query: Query
    problem: Problem
    networks: tuple[tuple[Graph, Source], ...]
    reach: float | None = None


def load_query(
    path: str | Path,
    networks: Mapping[str, str | Path],
    deadline: Deadline | None = None,
    max_bytes: int = MOST_BYTES,
    max_entries: int = MOST_ENTRIES,
    reach: float = 1000.0,
) -> LoadedQuery:
    """The problem of a query and its networks (all of them may be compressed with gzip).

    Args:
        networks: for each network that is declared, and not equal to another one, its ONNX file.
        deadline: none unless given.
        max_bytes: the most that a file may hold, unpacked.
        max_entries: the most that a tensor of a network may have, whatever computes it.
        reach: how far from 0 inputs are tried where the query leaves some without bounds.

    Raises:
        InvalidInput: files are missing or too many.
        InvalidProperty: the query is not well-formed, or beyond what is supported (see `Query`).
        InvalidModel: a network is not what is declared, or cannot be read.
        UnsupportedOperator: an operator of a network has no rule.
        OutOfTime: the time is over.
    """
    with in_force(deadline or Deadline()):
        text, sha256 = read_hashed(path, max_bytes)
        query = Query(text, str(path))
        _check_names(query, networks)
        found: dict[str, tuple[Graph, Source]] = {}
        for declaration in query.networks:
            check_time()
            name = declaration.equal_to or declaration.name
            if name not in found:
                with at_most(max_entries):
                    found[name] = _read(declaration, networks[name], max_bytes)
            _check_declared(declaration, found[name][0])
            if declaration.isomorphic_to and declaration.isomorphic_to in found:
                _check_isomorphic(declaration, *(found[n][1] for n in (name, declaration.isomorphic_to)))
        each = tuple(found[declaration.equal_to or declaration.name] for declaration in query.networks)
        tried, notes = None, list[str]()
        try:
            disjuncts = disjuncts_of(query, check_time)
        except Unbounded as error:
            tried = reach
            disjuncts = disjuncts_of(query, check_time, reach=reach)
            notes = [f"{error}: inputs are tried up to {reach:g} from 0, and none there proves nothing"]
        assert disjuncts is not None
        graphs = [graph for graph, _ in each]
        if disjuncts:
            ends = list(accumulate(graph.nx for graph in graphs))
            box = disjuncts[0].box
            for (graph, source), end in zip(each, ends, strict=True):
                part = slice(end - graph.nx, end)
                Check(graph, source)(Box(box.lower[part], box.upper[part]))
        runtimes = {id(source): source.runtime() for _, source in each}
        runtime = JointRuntime(tuple(runtimes[id(source)] for _, source in each), tuple(graph.nx for graph in graphs))
        files = {name: value for _, source in each for name, value in source.files.items()} | {str(path): sha256}
        merged = _named(without_repeats(side_by_side(graphs)), query)
        return LoadedQuery(query, Problem(merged, disjuncts, runtime, files, notes=notes), each, tried)


def _named(graph: Graph, query: Query) -> Graph:
    """The network with its inputs and outputs called as they are declared: two networks may call theirs alike."""
    pairs = (graph.inputs, query.inputs), (graph.outputs, query.outputs)
    inputs, outputs = (tuple(replace(s, name=v.name) for s, v in zip(specs, variables, strict=True)) for specs, variables in pairs)
    return replace(graph, inputs=inputs, outputs=outputs)


def _check_names(query: Query, networks: Mapping[str, str | Path]) -> None:
    """A file for each network that needs one, and no others."""
    declared = {declaration.name: declaration for declaration in query.networks}
    for name in networks:
        if name not in declared:
            raise InvalidInput(f"--network {name}=...: {query.where} declares no network {name!r}; it declares {', '.join(declared)}")
        if declared[name].equal_to:
            raise InvalidInput(
                f"--network {name}=...: {query.where} declares {name!r} equal to {declared[name].equal_to!r}, so that it has no file"
            )
    missing = [name for name, declaration in declared.items() if name not in networks and not declaration.equal_to]
    if missing:
        wanted = " ".join(f"--network {name}=FILE.onnx" for name in missing)
        raise InvalidInput(f"{query.where} declares {'networks' if len(missing) > 1 else 'a network'} without a file: add {wanted}")


def _read(declaration: Declaration, path: str | Path, max_bytes: int) -> tuple[Graph, Source]:
    """A network all of whose outputs are kept."""
    try:
        graph, source = read_network(path, max_bytes)
    except Ambiguous as error:
        graph, source = read_network(path, max_bytes, error.usable)
    if source.outputs.left:
        name, why = source.outputs.left[0]
        raise InvalidModel(f"network {declaration.name!r} ({path}): its output {name!r} cannot be declared, only real numbers can: {why}")
    return graph, source


def _check_declared(declaration: Declaration, graph: Graph) -> None:
    """The network has the inputs and outputs that are declared, in the same order.

    Raises:
        InvalidModel: it has others.
    """
    pairs: list[tuple[str, Sequence[Variable], Sequence[TensorSpec]]]
    pairs = [("input", declaration.inputs, graph.inputs), ("output", declaration.outputs, graph.outputs)]
    for kind, variables, specs in pairs:
        if len(variables) != len(specs):
            has, count = ", ".join(repr(spec.name) for spec in specs), len(variables)
            raise InvalidModel(f"network {declaration.name!r} is declared with {count} {kind}s, but its file has {len(specs)}: {has}")
        for variable, spec in zip(variables, specs, strict=True):
            what = f"{kind} {spec.name!r} of network {declaration.name!r}"
            if variable.shape != spec.shape and not (variable.shape == () and spec.shape == (1,)):
                raise InvalidModel(f"{what} is declared as {variable}, but its shape is [{','.join(map(str, spec.shape))}]")
            if variable.dtype not in (REAL, spec.dtype):
                raise InvalidModel(f"{what} is declared as {variable}, but its type is {spec.dtype}")


def _check_isomorphic(declaration: Declaration, one: Source, other: Source) -> None:
    """They consist of the same operators.

    Raises:
        InvalidModel: they do not.
    """
    counts = [Counter(node.op_type for node in onnx.load_model_from_string(source.data).graph.node) for source in (one, other)]
    for operator in sorted(counts[0] | counts[1]):
        if counts[0][operator] != counts[1][operator]:
            numbers = " and ".join(str(count[operator]) for count in counts)
            raise InvalidModel(
                f"network {declaration.name!r} is declared isomorphic to {declaration.isomorphic_to!r}: there are {numbers} {operator}"
            )
