"""The comparison of a lowered network with ONNX Runtime."""

from __future__ import annotations

import onnx

from milpverify.config import check_time
from milpverify.frontends.lowering.comparison import Comparison, Run, comparable_points
from milpverify.frontends.lowering.constants import Array
from milpverify.frontends.onnx.reading import Source
from milpverify.frontends.onnx.runtime import OnnxRuntime
from milpverify.graph import Graph
from milpverify.spec import Box


def check(graph: Graph, source: Source, box: Box, seed: int = 0) -> None:
    """Compare the graph with ONNX Runtime at the centre, at corners and at random points of the box.

    Raises:
        InvalidModel: they differ beyond rounding, or ONNX Runtime cannot run the network. The message names the first node.
        OutOfTime: the time is over.
    """
    outputs, left = source.outputs.keys, {name for name, _ in source.outputs.left}
    extra = list(dict.fromkeys(n.name for n in graph.nodes if n.name in source.tensors and n.name not in outputs))
    # Serialised messages merge when they are joined: the same model with more outputs, without a copy of its weights.
    more = onnx.ModelProto(graph=onnx.GraphProto(output=[onnx.ValueInfoProto(name=name) for name in extra if name not in left]))
    runtime = OnnxRuntime(source.data + more.SerializeToString(), outputs | dict.fromkeys(extra, ()), few_runs=True)
    points, largest = comparable_points(graph, box, seed)

    def run(x: Array) -> Run:
        check_time()
        return dict(zip([*outputs, *extra], runtime.tensors(x), strict=True))

    def describe(name: str) -> str:
        return f"{source.tensors.get(name, 'the input')}, tensor '{name}'"

    Comparison(graph, "ONNX Runtime", describe).judge_runs(points, run, largest)
