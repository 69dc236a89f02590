"""The comparison of a lowered network with ONNX Runtime."""

from __future__ import annotations

import onnx

from milpverify.config import check_time
from milpverify.frontends.lowering.comparison import Comparison, comparable_points
from milpverify.frontends.onnx.node import describe
from milpverify.frontends.onnx.runtime import OnnxRuntime
from milpverify.graph import Graph
from milpverify.spec import Box


def check(graph: Graph, model: onnx.ModelProto, box: Box, seed: int = 0) -> None:
    """Compare the graph with ONNX Runtime at the centre, at three corners and at random points of the box.

    Raises:
        InvalidModel: they differ beyond rounding, or ONNX Runtime cannot run the network. The message names the first node.
        OutOfTime: the time is over.
    """
    known = {t.name for t in model.graph.output}
    computed = {name for node in model.graph.node for name in node.output}
    extra = list(dict.fromkeys(n.name for n in graph.nodes if n.name in computed and n.name not in known))
    # Serialised messages merge when they are joined: the same model with more outputs, without a copy of its weights.
    more = onnx.ModelProto(graph=onnx.GraphProto(output=[onnx.ValueInfoProto(name=name) for name in extra]))
    runtime = OnnxRuntime(model.SerializeToString() + more.SerializeToString())
    points, largest = comparable_points(graph, box, seed)
    names = [spec.name for spec in graph.outputs] + extra
    runs = []
    for x in points:
        check_time()
        runs.append(dict(zip(names, runtime.tensors(x), strict=True)))

    def describe_tensor(name: str) -> str:
        source = next((describe(n) for n in model.graph.node if name in n.output), "the input")
        return f"{source}, tensor '{name}'"

    Comparison(graph, "ONNX Runtime", describe_tensor).judge_runs(points, runs, largest)
