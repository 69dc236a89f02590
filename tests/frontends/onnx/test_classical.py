"""Models of scikit-learn as skl2onnx writes them: labels are left out, maps of probabilities are read; verdicts against dense sampling."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import write_property
from onnx import TensorProto, helper
from onnx_cases import FLOAT
from support import Run

import milpverify as mv
from milpverify.frontends.onnx.check import check
from milpverify.frontends.onnx.lowering import lower
from milpverify.frontends.onnx.reading import Source

LOWER, UPPER = [-0.5, 0.1, -0.3], [0.3, 0.6, 0.4]
BOX = mv.Box(LOWER, UPPER)


def models() -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 3)).astype(np.float32) * [1.0, 3.0, 0.5]
    three = np.clip(np.round(x[:, 0] + 0.3 * x[:, 1]), -1, 1).astype(int)
    words = np.array(["no", "perhaps", "yes"])[three + 1]
    two = (x[:, 0] > x[:, 2]).astype(int)
    small = {"hidden_layer_sizes": (6,), "max_iter": 30, "random_state": 0}
    return {
        "logistic": LogisticRegression().fit(x, three),
        "logistic of two, texts": LogisticRegression().fit(x, np.where(two, "p", "q")),
        "network": MLPClassifier(**small).fit(x, words),
        "network of two": MLPClassifier(activation="tanh", **small).fit(x, two),
        "scaled logistic": make_pipeline(StandardScaler(), LogisticRegression()).fit(x, words),
        "scaled network": make_pipeline(StandardScaler(), MLPClassifier(**small)).fit(x, three),
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    folder, found = tmp_path_factory.mktemp("classical"), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from skl2onnx import to_onnx

        for k, (name, model) in enumerate(models().items()):
            # Every second one without a ZipMap.
            proto = to_onnx(model, np.zeros((1, 3), dtype=np.float32), options={"zipmap": k % 2 == 0})
            found[name] = model, folder / f"{k}.onnx"
            found[name][1].write_bytes(proto.SerializeToString())
    return found


def test_verdicts_are_those_of_dense_sampling(exported: dict[str, tuple[Any, Path]]) -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(low, high, 25) for low, high in zip(LOWER, UPPER, strict=True)]), -1).reshape(-1, 3)
    for name, (model, path) in exported.items():
        output = onnx.load(path).graph.output[1].name
        values = model.predict_proba(grid.astype(np.float32))
        gap = values[:, 0] - values[:, -1]
        for threshold, verdict in ((gap.max() + 0.01, "unsat"), (gap.max() - 0.01, "sat")):
            term = f"(>= (- Y_0 Y_{values.shape[1] - 1}) {threshold})"
            with pytest.raises(mv.InvalidInput, match=f"--output {output}"):
                mv.Problem(path, BOX, unsafe=term)
            problem = mv.Problem(path, BOX, unsafe=term, outputs=[output])
            result = mv.verify(problem, timeout=20)
            assert result.verdict.value == verdict, name
            assert problem.graph.ny == values.shape[1]
            if result.counterexample is not None:
                x = result.counterexample.x.astype(np.float32)[None]
                np.testing.assert_allclose(result.counterexample.y, model.predict_proba(x)[0], atol=1e-5, err_msg=name)


def test_from_the_command_line(exported: dict[str, tuple[Any, Path]], run_main: Run, tmp_path: Path) -> None:
    model, path = exported["scaled logistic"]
    spec, values = tmp_path / "p.vnnlib", model.predict_proba(np.array([LOWER, UPPER], dtype=np.float32))
    for threshold, verdict in ((1.01, "unsat"), (values[:, 2].max() - 1e-3, "sat")):
        write_property(spec, LOWER, UPPER, f"(>= Y_2 {threshold})", ny=3)
        done = run_main("verify", path, spec, "--output", "output_probability", "--timeout", "20")
        assert done.stdout.splitlines()[0] == verdict, done.stderr
        assert "milpverify: outputs left out: 'output_label' (string); 'output_probability' is Y_0 to Y_2" in done.stderr.splitlines()


def one(op: str, inputs: list[str], outputs: int, shape: list[int], **attributes: Any) -> onnx.ModelProto:
    """One operator, the last of whose outputs is the network's."""
    names = [f"out{k}" for k in range(outputs)]
    node = helper.make_node(op, inputs, names, domain="ai.onnx.ml", **attributes)
    places = helper.make_tensor("places", TensorProto.INT64, [2], [2, 0])
    ends = [helper.make_tensor_value_info("x", FLOAT, shape)], [helper.make_tensor_value_info(names[-1], FLOAT, None)]
    graph = helper.make_graph([node], "test", *ends, [places])
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


LINEAR = {"coefficients": [0.5, -1.0, 2.0, 1.5, 0.25, -0.75], "intercepts": [0.1, -0.2]}
BINARY = {"coefficients": [0.5, -1.0, 2.0], "intercepts": [0.1], "classlabels_ints": [0, 1]}


@pytest.mark.parametrize(
    "model",
    [
        *(
            one("LinearClassifier", ["x"], 2, [1, 3], classlabels_ints=[3, 7], post_transform=t, **LINEAR)
            for t in ("NONE", "LOGISTIC", "SOFTMAX")
        ),
        *(one("LinearClassifier", ["x"], 2, [1, 3], post_transform=t, **BINARY) for t in ("NONE", "LOGISTIC")),
        *(one("LinearRegressor", ["x"], 1, [1, 3], targets=2, post_transform=t, **LINEAR) for t in ("NONE", "LOGISTIC", "SOFTMAX")),
        one("LinearRegressor", ["x"], 1, [1, 3], coefficients=[1.0, 2.0, 3.0]),
        one("Scaler", ["x"], 1, [1, 3], offset=[0.5, 1.0, 2.0], scale=[2.0, 3.0, 4.0]),
        one("Scaler", ["x"], 1, [1, 3], offset=[0.5], scale=[2.0]),
        one("Normalizer", ["x"], 1, [1, 3], norm="L1"),
        one("Normalizer", ["x"], 1, [1, 3], norm="L2"),
        one("ArrayFeatureExtractor", ["x", "places"], 1, [1, 3]),
    ],
)  # fmt: skip
def test_operators_agree_with_the_runtime(model: onnx.ModelProto) -> None:
    graph = lower(model)
    for seed in range(3):
        check(graph, Source.of(model), mv.Box([-2.0, 0.5, -1.0], [3.0, 1.0, 2.0]), seed)


def test_what_has_no_rule_is_refused() -> None:
    for model, words in (
        (one("LinearClassifier", ["x"], 2, [1, 3], classlabels_ints=[3, 7], post_transform="PROBIT", **LINEAR), "PROBIT"),
        (one("LinearClassifier", ["x"], 2, [1, 3], post_transform="SOFTMAX", **BINARY), "one score for two classes"),
        (one("Normalizer", ["x"], 1, [1, 3], norm="MAX"), "norm MAX"),
        (one("TreeEnsembleRegressor", ["x"], 1, [1, 3]), "TreeEnsembleRegressor"),
    ):
        with pytest.raises(mv.UnsupportedOperator, match=words):
            lower(model)
    with pytest.raises(mv.InvalidModel, match="6 coefficients and 2 intercepts, which do not fit"):
        lower(one("LinearRegressor", ["x"], 1, [1, 4], targets=2, **LINEAR))
    label = one("LinearClassifier", ["x"], 2, [1, 3], classlabels_ints=[3, 7], **LINEAR)
    label.graph.node.append(helper.make_node("Add", ["out0", "out1"], ["both"]))
    label.graph.output[0].name = "both"
    with pytest.raises(mv.UnsupportedOperator, match="its output 'out0' is no tensor of real numbers"):
        lower(label)
