"""The comparison of a lowered network with ONNX Runtime."""

from __future__ import annotations

from functools import cached_property

import onnx

from milpverify.config import check_time
from milpverify.frontends.lowering.comparison import Comparison, Run, comparable_points
from milpverify.frontends.lowering.constants import Array
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.frontends.onnx.reading import Source
from milpverify.frontends.onnx.runtime import OnnxRuntime
from milpverify.graph import Graph
from milpverify.spec import Box


class Check:
    """Compares a graph with ONNX Runtime, with one session however often."""

    def __init__(self, graph: Graph, source: Source, tuning: LoweringTuning = LoweringTuning()) -> None:
        self.graph, self.source, self.tuning = graph, source, tuning

    @cached_property
    def _compared(self) -> tuple[list[str], OnnxRuntime]:
        """The tensors that are compared, outputs first, and what computes them."""
        outputs, left = self.source.outputs.keys, {name for name, _ in self.source.outputs.left}
        extra = list(dict.fromkeys(n.name for n in self.graph.nodes if n.name in self.source.tensors and n.name not in outputs))
        # Serialised messages merge when they are joined: the same model with more outputs, without a copy of its weights.
        more = onnx.ModelProto(graph=onnx.GraphProto(output=[onnx.ValueInfoProto(name=name) for name in extra if name not in left]))
        runtime = OnnxRuntime(self.source.data + more.SerializeToString(), outputs | dict.fromkeys(extra, ()), few_runs=True)
        return [*outputs, *extra], runtime

    def __call__(self, box: Box, seed: int = 0) -> None:
        """Compare them at the centre, at corners and at random points of the box.

        Raises:
            InvalidModel: they differ beyond rounding, or ONNX Runtime cannot run the network. The message names the first node.
            OutOfTime: the time is over.
        """
        names, runtime = self._compared
        points, largest = comparable_points(self.graph, box, seed, self.tuning)

        def run(x: Array) -> Run:
            check_time()
            found = runtime.tensors(x)
            real = found[0].dtype  # masks and integers become numbers
            return {name: t if t.dtype.kind == "f" else t.astype(real) for name, t in zip(names, found, strict=True)}

        def describe(name: str) -> str:
            return f"{self.source.tensors.get(name, 'the input')}, tensor '{name}'"

        Comparison(self.graph, "ONNX Runtime", describe, tuning=self.tuning).judge_runs(points, run, largest)


def check(graph: Graph, source: Source, box: Box, seed: int = 0) -> None:
    """Compare a graph with ONNX Runtime once.

    Raises:
        InvalidModel, OutOfTime: as `Check`.
    """
    Check(graph, source)(box, seed)
