"""How long `load` takes, against what onnx and ONNX Runtime need: to read a network, build its session and run it three times.

Each side runs in a process of its own that is forked when everything is imported; CPU seconds, the least of some repeats, and what memory
grew by at most. The ratio is without the seconds for the property, which the others do not read. Networks of 100 and 550 MB of weights
are made on the way, shaped like VGG.
Run: python tests/benchmarks/loading.py [--repeats N] [--folder DIR] [NET,PROPERTY ...]
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a plain checkout is enough

from milpverify.frontends.load import load
from milpverify.frontends.onnx.reading import read_network
from milpverify.frontends.vnnlib.reader import parse_vnnlib, read_vnnlib
from milpverify.propagation import crown  # noqa: F401 (imports are no part of loading)

VGG = {
    "tiny": (8, (2, 2), 4),
    "vgg_100MB": (64, (64, 128, 256, 256, 512, 512), 2048),
    "vgg_550MB": (224, (64, 64, 128, 128, 256, 256, 256, *[512] * 6), 4096),
}
"""Side of the image, channels, width of the dense layers."""
POOLED = {"tiny": (0,), "vgg_100MB": (0, 1, 3, 5), "vgg_550MB": (1, 3, 6, 9, 12)}
"""The convolutions with a pooling behind."""


def vgg(name: str, folder: Path) -> tuple[Path, Path]:
    """A network of convolutions and dense layers with random weights, and a property about a small box."""
    side, channels, width = VGG[name]
    random, nodes, weights, last, depth = np.random.default_rng(0), [], [], "x", 3

    def layer(op: str, shape: tuple[int, ...], source: str, **attributes: object) -> str:
        n = len(nodes)
        scale = np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
        weights.append(numpy_helper.from_array(random.standard_normal(shape, dtype=np.float32) * scale, f"w{n}"))
        weights.append(numpy_helper.from_array(0.1 * random.standard_normal(shape[0], dtype=np.float32), f"b{n}"))
        nodes.append(helper.make_node(op, [source, f"w{n}", f"b{n}"], [f"y{n}"], **attributes))
        return f"y{n}"

    def then(op: str, source: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, [source], [f"z{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    for k, width_out in enumerate(channels):
        last, depth = then("Relu", layer("Conv", (width_out, depth, 3, 3), last, pads=[1] * 4)), width_out
        if k in POOLED[name]:
            last = then("MaxPool", last, kernel_shape=[2, 2], strides=[2, 2])
    last, size = then("Flatten", last), depth * (side // 2 ** len(POOLED[name])) ** 2
    for n in (width, width, 10):
        last, size = layer("Gemm", (n, size), last, transB=1), n
        last = then("Relu", last) if n > 10 else last
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, side, side]), (last, [1, 10]))]
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), net := folder / f"{name}.onnx")
    centre, text = random.random(3 * side * side), []
    text += [f"(declare-const X_{i} Real)" for i in range(len(centre))] + [f"(declare-const Y_{i} Real)" for i in range(10)]
    text += [f"(assert (>= X_{i} {v - 0.001}))\n(assert (<= X_{i} {v + 0.001}))" for i, v in enumerate(centre.tolist())]
    (box := folder / f"{name}.vnnlib").write_text("\n".join([*text, "(assert (<= Y_0 Y_1))"]))
    return net, box


def peers(network: str) -> None:
    """Read with onnx, read and run three times with ONNX Runtime."""
    packed = network.endswith(".gz")
    data = gzip.decompress(Path(network).read_bytes()) if packed else b""
    onnx.load_model_from_string(data) if packed else onnx.load(network)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(data if packed else network, options, providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    for _ in range(3):
        shapes = ((i, [n if isinstance(n, int) and n > 0 else 1 for n in i.shape]) for i in session.get_inputs())
        session.run(None, {i.name: np.full(shape, 0.5, types[i.type]) for i, shape in shapes})


def measured(task: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The least CPU seconds of a task, and the most memory that it adds, MB."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def run() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        task()
        results.put((time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))

    found = []
    for _ in range(repeats):
        child = context.Process(target=run)
        child.start()
        child.join()
        if child.exitcode:
            sys.exit(1)
        found.append(results.get())
    return min(t for t, _ in found), max(m for _, m in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to make large networks; without it none are")
    parser.add_argument("pairs", nargs="*", metavar="NET,PROPERTY")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        load(*vgg("tiny", Path(folder)))  # what is imported on the way is no part of loading
    pairs = [tuple(pair.split(",")) for pair in options.pairs]
    for name in list(VGG)[1:] if options.folder else ():
        files = options.folder / f"{name}.onnx", options.folder / f"{name}.vnnlib"
        pairs.append(tuple(map(str, files if all(f.exists() for f in files) else vgg(name, options.folder))))
    print(f"{'network':<44}{'load s':>9}{'property':>9}{'peers s':>9}{'ratio':>7}{'load MB':>9}{'peers MB':>9}")
    for network, box in pairs:
        graph, _ = read_network(network)
        ends = graph.nx, graph.ny
        del graph
        tasks = (lambda: load(network, box)), (lambda: parse_vnnlib(read_vnnlib(box), *ends)), (lambda: peers(network))  # noqa: B023
        ours, text, theirs = (measured(task, options.repeats) for task in tasks)
        seconds = f"{ours[0]:9.3f}{text[0]:9.3f}{theirs[0]:9.3f}{(ours[0] - text[0]) / theirs[0]:7.2f}"
        print(f"{Path(network).name[:42]:<44}{seconds}{ours[1]:9.0f}{theirs[1]:9.0f}", flush=True)


if __name__ == "__main__":
    main()
