"""The lowering rules of the operators that exporters of classical models (scikit-learn) use: linear models, scaling, normalisation.

They stand in the domain `ai.onnx.ml`. Labels are no real numbers and are not lowered. Where the standard says little, ONNX Runtime's
reading is the rule's; the comparison at load holds it to that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering import composites, norms
from milpverify.frontends.lowering.builder import Builder, entries
from milpverify.frontends.lowering.constants import Array
from milpverify.frontends.onnx.node import Operation, Value, rule
from milpverify.graph import Node


@rule("ai.onnx.ml.LinearClassifier", attributes="classlabels_ints classlabels_strings coefficients intercepts multi_class post_transform")
def _linear_classifier(g: Builder, op: Operation) -> Sequence[Value | None]:
    """The scores of the classes; their label, the first output, is left out."""
    intercepts = _numbers(op, "intercepts")
    classes = len(op.attributes.get("classlabels_ints") or op.attributes.get("classlabels_strings") or intercepts)
    transform = op.attributes["post_transform"]
    scores = _linear(g, op, max(1, len(intercepts)), intercepts)
    if scores.shape[1] == 1 and classes == 2:  # the score of the second class
        if transform not in ("NONE", "LOGISTIC"):
            raise op.refuse(f"post_transform {transform} of one score for two classes has no rule")
        positive = _transformed(g, op, scores, transform)
        return [None, g.concat([g.scale(positive, -1.0, 1.0), positive], 1)]
    return [None, _transformed(g, op, scores, transform)]


@rule("ai.onnx.ml.LinearRegressor", attributes="coefficients intercepts post_transform targets")
def _linear_regressor(g: Builder, op: Operation) -> Value:
    return _transformed(g, op, _linear(g, op, op.attributes["targets"], _numbers(op, "intercepts")), op.attributes["post_transform"])


@rule("ai.onnx.ml.Scaler", attributes="scale offset")
def _scaler(g: Builder, op: Operation) -> Value:
    """(x - offset) scale, by the entries along the last axis."""
    x = op.node()
    scale, offset = (np.array(op.attributes.get(key) or [none], dtype=np.float64) for key, none in (("scale", 1.0), ("offset", 0.0)))
    if any(v.size not in (1, x.shape[-1]) for v in (scale, offset)):
        raise InvalidModel(f"{op} has {scale.size} scales and {offset.size} offsets for {x.shape[-1]} features")
    return g.scale(g.scale(x, bias=-offset), scale)


@rule("ai.onnx.ml.Normalizer", attributes="norm")
def _normalizer(g: Builder, op: Operation) -> Value:
    """Each row divided by its norm; of what a softmax makes that of L1 is 1."""
    x, norm = op.node(), op.attributes["norm"]
    if norm == "L1" and x.id in g.softmaxes:
        return composites.softmax(g, g.softmaxes[x.id], -1)
    if norm in ("L1", "L2"):
        return norms.normalized(g, x, [len(x.shape) - 1], 1.0 if norm == "L1" else 2.0)
    raise op.refuse(f"the norm {norm}, of whose signs the standard and ONNX Runtime say different things, has no rule")


@rule("ai.onnx.ml.ArrayFeatureExtractor")
def _array_feature_extractor(g: Builder, op: Operation) -> Value:
    """Entries of the last axis at constant places."""
    x, places = op.node(), op.weight(1).reshape(-1).astype(np.int64)
    return g.select(x, entries(x.shape)[..., places] if len(x.shape) > 1 else entries(x.shape)[None, places])


def _numbers(op: Operation, name: str) -> Array:
    return np.asarray(op.attributes.get(name) or [], dtype=np.float64)


def _linear(g: Builder, op: Operation, rows: int, intercepts: Array) -> Node:
    """coefficients @ x + intercepts, (batch, rows); one vector is a batch of one."""
    x, coefficients = op.node(), _numbers(op, "coefficients")
    x = g.reshape(x, (1, x.size)) if len(x.shape) == 1 else x
    if len(x.shape) != 2 or rows < 1 or coefficients.size != rows * x.shape[1] or intercepts.size not in (0, rows):
        raise InvalidModel(
            f"{op} has {coefficients.size} coefficients and {intercepts.size} intercepts, which do not fit its input of shape {x.shape}"
        )
    return g.scale(g.matmul(x, coefficients.reshape(rows, -1).T), bias=intercepts if intercepts.size else None)


def _transformed(g: Builder, op: Operation, scores: Node, transform: str) -> Node:
    if transform == "NONE":
        return scores
    if transform == "LOGISTIC":
        return g.function("sigmoid", scores)
    if transform == "SOFTMAX":
        y = composites.softmax(g, scores, 1)
        g.softmaxes[y.id] = scores
        return y
    raise op.refuse(f"post_transform {transform} has no rule")
