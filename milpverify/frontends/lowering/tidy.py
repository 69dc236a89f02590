"""Makes a grown graph small: what nothing needs, repeats, or changes nothing goes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from milpverify.config import check_time
from milpverify.operators import Conv, Elementwise, Linear, Product, Reshape, Scale, Select, SparseLinear, Transposed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from milpverify.functions.catalogue import Function
    from milpverify.graph import Node


def tidy(nodes: Sequence[Node], means: AbstractSet[int]) -> tuple[Node, ...]:
    """The nodes that the last one needs, and the input, in fewer and smaller ones; `means` as in `normalisations`."""
    if any(isinstance(node.op, Product) for node in nodes):
        from milpverify.frontends.lowering.normalisation import normalisations

        nodes = normalisations(nodes, means)
    return tuple(map(_with_weights_by_rows, _fuse_biases(_share_functions(_drop_reshapes(map(_with_axis, nodes))))))


def _renumber(nodes: Iterable[Node], alias: dict[int, int]) -> tuple[Node, ...]:
    """The nodes that the last one needs, and the input, numbered anew; `alias` names the stand-ins of what was dropped."""

    def stand_in(i: int) -> int:
        while i in alias:
            i = alias[i]
        return i

    known = {node.id: replace(node, inputs=tuple(map(stand_in, node.inputs))) for node in nodes}
    needed = {0}
    pending = [stand_in(max(known))]
    while pending:
        i = pending.pop()
        if i not in needed:
            needed.add(i)
            pending += known[i].inputs
    number = {i: n for n, i in enumerate(sorted(needed))}
    return tuple(replace(known[i], id=n, inputs=tuple(number[j] for j in known[i].inputs)) for i, n in number.items())


def _with_axis(node: Node) -> Node:
    """A lone number gets an axis of length 1, so that every node of a graph has one."""
    op = node.op
    if isinstance(op, Reshape) and () in (op.in_shape, op.shape):
        op = Reshape(op.in_shape or (1,), op.shape or (1,))
    elif isinstance(op, Select):
        op = replace(op, index=op.index.reshape(node.shape or (1,)), in_shape=op.in_shape or (1,))
    return replace(node, op=op, shape=node.shape or (1,))


def _with_weights_by_rows(node: Node) -> Node:
    """Matrices that are mostly zeros are multiplied as sparse ones; the others lie row by row."""
    check_time()
    if not isinstance(node.op, Linear):
        return node
    return replace(node, op=SparseLinear.of(node.op) or replace(node.op, weight=node.op.weight.contiguous()))


def _drop_reshapes(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Two reshapes in a row become one, and one that changes nothing vanishes."""
    kept: dict[int, Node] = {}
    alias: dict[int, int] = {}
    for node in nodes:
        if isinstance(node.op, Reshape):
            source = kept[alias.get(node.inputs[0], node.inputs[0])]
            if isinstance(source.op, Reshape):
                source = kept[source.inputs[0]]
            if source.shape == node.shape:
                alias[node.id] = source.id
            node = replace(node, op=Reshape(source.shape, node.shape), inputs=(source.id,))
        kept[node.id] = node
    return _renumber(kept.values(), alias)


def _fuse_biases(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """A constant added to a map without bias, which nothing else reads, becomes its bias: nothing is rounded."""
    readers = Counter(i for node in nodes for i in node.inputs)
    kept: dict[int, Node] = {}
    for node in nodes:
        kept[node.id] = node
        if not isinstance(node.op, Scale) or node.op.weight is not None or node.op.bias is None:
            continue
        source, bias = kept[node.inputs[0]], node.op.bias
        if readers[source.id] > 1 or not isinstance(source.op, (Linear, Conv, Transposed)) or source.op.bias is not None:
            continue
        axis = len(node.shape) - 1 if isinstance(source.op, Linear) else 1
        full = bias.reshape((1,) * (len(node.shape) - bias.ndim) + tuple(bias.shape))
        if any(n != 1 for a, n in enumerate(full.shape) if a != axis):
            continue
        shape = (-1,) if isinstance(source.op, Linear) else (-1, *[1] * (len(node.shape) - 2))
        fused = full.reshape(-1).expand(node.shape[axis]).reshape(shape).contiguous()
        kept[node.id] = replace(
            node, op=replace(source.op, bias=fused, rounded=max(source.op.rounded, node.op.rounded)), inputs=source.inputs
        )
    return _renumber(kept.values(), {})


def _share_functions(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """A function is taken once of the same entries: a bound or a split of one is one of all.

    Selections that read more entries of their source, together and with the source, than it has wait until the function is taken.
    """
    kept: list[Node] = []
    place: dict[int, int] = {}
    known: dict[tuple[Function, int], int] = {}

    def source(node: Node) -> Node:
        """What the function's argument is selected from, or the argument itself."""
        x = nodes[node.inputs[0]]
        moved = isinstance(x.op, Select) and x.op.bias is None and bool((x.op.index >= 0).all())
        return nodes[x.inputs[0]] if moved else x

    def add(node: Node, inputs: Iterable[int]) -> int:
        kept.append(replace(node, id=len(kept), inputs=tuple(inputs)))
        return len(kept) - 1

    reads: Counter[tuple[Function, int]] = Counter()
    for node in nodes:
        if isinstance(node.op, Elementwise):
            reads[node.op.function, source(node).id] += node.size
    for node in nodes:
        if not isinstance(node.op, Elementwise):
            place[node.id] = add(node, (place[i] for i in node.inputs))
            continue
        x, function = nodes[node.inputs[0]], node.op.function
        root = source(node)
        if root is not x and reads[function, root.id] <= root.size:
            root = x
        if (function, root.id) not in known:
            name = node.name if root is x or node.name.endswith(" (part)") else f"{node.name} (part)"
            known[function, root.id] = add(replace(node, shape=root.shape, name=name), [place[root.id]])
        inner = known[function, root.id]
        place[node.id] = inner if root is x else add(replace(node, op=x.op), [inner])
    return _renumber(kept[: place[nodes[-1].id] + 1], {})
