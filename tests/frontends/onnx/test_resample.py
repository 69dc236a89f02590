"""ONNX operators that spread, resample or accumulate entries, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx_cases import agrees, floats, ints, single

from milpverify.errors import InvalidModel, UnsupportedOperator
from milpverify.frontends.onnx.lowering import lower
from milpverify.frontends.onnx.runtime import OnnxRuntime

RNG = np.random.default_rng(4)
NEWEST = 26
ALL = (7, 9, 11, 13, 18, NEWEST)


def f(*shape: int) -> np.ndarray:
    return floats(RNG, *shape)


def scales(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def spread() -> Iterator[onnx.ModelProto]:
    for opset in (7, 11, NEWEST):
        yield single("ConvTranspose", (2, 3, 5), f(3, 2, 3), f(2), opset=opset)
        yield single("ConvTranspose", (1, 2, 3, 4), f(2, 3, 3, 2), opset=opset, strides=[2, 3], pads=[1, 0, 0, 1])
        yield single("ConvTranspose", (1, 4, 3, 4), f(4, 3, 3, 3), f(6), opset=opset, group=2, strides=[2, 2], output_padding=[1, 0])
        yield single("ConvTranspose", (1, 2, 4, 4), f(2, 1, 2, 2), opset=opset, dilations=[2, 1], pads=[1, 1, 2, 1], strides=[1, 2])
        yield single("ConvTranspose", (1, 2, 3), f(2, 1, 4), opset=opset, strides=[3], output_shape=[8])
        yield single("ConvTranspose", (1, 2, 3), f(2, 1, 4), opset=opset, strides=[2], auto_pad="VALID")
    yield single("ConvTranspose", (1, 2, 2, 2, 3), f(2, 1, 2, 2, 2), strides=[2, 1, 2])


def random_transposed(count: int) -> Iterator[onnx.ModelProto]:
    rng = np.random.default_rng(5)
    for _ in range(count):
        n, groups = int(rng.integers(1, 3)), int(rng.integers(1, 3))
        kernel, strides, dilations = (rng.integers(1, 4, n).tolist() for _ in range(3))
        pads = [int(rng.integers(0, 1 + (k - 1) * d)) for k, d in zip(kernel * 2, dilations * 2, strict=True)]
        extra = [int(rng.integers(0, max(s, d))) for s, d in zip(strides, dilations, strict=True)]
        weight = floats(rng, 2 * groups, 2, *kernel)
        given = {"strides": strides, "dilations": dilations, "pads": pads, "output_padding": extra, "group": groups}
        yield single("ConvTranspose", (1, 2 * groups, *rng.integers(2, 5, n).tolist()), weight, **given)


def resampled() -> Iterator[onnx.ModelProto]:
    for mode in ("nearest", "linear"):
        yield single("Upsample", (1, 2, 3, 4), opset=7, mode=mode, scales=[1.0, 1.0, 2.0, 2.0])
        yield single("Upsample", (1, 2, 3, 4), scales(1, 1, 2, 3), opset=9, mode=mode)
        yield single("Resize", (1, 2, 3, 4), scales(1, 1, 2, 2), opset=10, mode=mode)
        for opset in (11, 13, 18, NEWEST):
            for transformation in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
                given = {"mode": mode, "coordinate_transformation_mode": transformation, "opset": opset}
                roi = np.zeros(0, np.float32) if opset < 13 else None
                yield single("Resize", (1, 2, 3, 4), roi, scales(1, 1, 2, 2), **given)
                yield single("Resize", (1, 2, 4, 6), roi, scales(1, 1, 0.5, 0.5), **given)
                none = scales() if opset < 13 else None
                yield single("Resize", (1, 2, 3, 5), roi, none, ints(1, 2, 6, 4), **given)
    for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        yield single("Resize", (1, 1, 3, 5), None, scales(1, 1, 2, 1.5), mode="nearest", nearest_mode=mode)
    yield single("Resize", (1, 1, 3, 4), None, scales(2, 2), opset=18, mode="linear", axes=[2, 3])
    for transformation in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
        for outside in (0, 1):
            given = {"mode": "cubic", "coordinate_transformation_mode": transformation, "exclude_outside": outside}
            for opset in (11, 18, NEWEST):
                roi = np.zeros(0, np.float32) if opset < 13 else None
                yield single("Resize", (1, 2, 4, 5), roi, scales(1, 1, 2, 1.6), opset=opset, cubic_coeff_a=-0.5, **given)
            yield single("Resize", (1, 1, 4, 6), None, scales(1, 1, 0.5, 0.7), **given)
    yield single("Resize", (1, 1, 1, 3), None, scales(1, 1, 3, 2), mode="cubic")


def accumulated() -> Iterator[onnx.ModelProto]:
    for opset in (11, 14, NEWEST):
        for given in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}):
            yield single("CumSum", (2, 3, 4), np.array(1), opset=opset, **given)
        yield single("CumSum", (2, 3), np.array(-1), opset=opset)
    for opset in (14, NEWEST):
        yield single("Trilu", (2, 3, 4), opset=opset)
        yield single("Trilu", (3, 4), np.array(1), opset=opset, upper=0)
    for opset in (11, 13, NEWEST):
        yield single("ScatterND", (3, 4), np.array([[0], [2]]), (2, 4), opset=opset)
        yield single("ScatterND", (3, 4), np.array([[0, 1], [2, 3]]), f(2), opset=opset)
        yield single("ScatterND", f(3, 4), np.array([[0, 1], [2, 3]]), (2,), opset=opset)
        yield single("ScatterElements", (3, 4), np.array([[0, 2]]), (1, 2), opset=opset, axis=1)
    yield single("Scatter", (3, 4), np.array([[0, -1]]), (1, 2), opset=9, axis=1)
    for reduction in ("add", "mul", "max", "min"):
        yield single("ScatterND", (3, 4), np.array([[0, 1], [2, 3], [0, 1]]), (3,), opset=18, reduction=reduction)
        yield single("ScatterND", (3, 4), np.array([[0], [0]]), f(2, 4), opset=18, reduction=reduction)
        yield single("ScatterElements", (3, 4), np.array([[0, 2], [1, 1]]), (2, 2), opset=NEWEST, axis=1, reduction=reduction)
    yield single("TensorScatter", (2, 1, 4, 3), (2, 1, 2, 3), ints(1, 2), opset=24)
    for given in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}):
        yield single("CumProd", (2, 3, 2), np.array(1), opset=NEWEST, **given)


def placed() -> Iterator[onnx.ModelProto]:
    yield single("CenterCropPad", (3, 5, 2), ints(5, 3), axes=[0, 1], opset=18)
    yield single("ReverseSequence", (4, 3), ints(1, 3, 4), opset=10, time_axis=0, batch_axis=1)
    yield single("Compress", (3, 4), np.array([True, False, True]), opset=11, axis=0)
    yield single("Compress", (3, 4), np.array([True, False, True]), opset=11)
    yield single("EyeLike", (3, 4), opset=22, k=1)
    yield single("Col2Im", (1, 5, 5), ints(5, 5), ints(1, 5), opset=18)
    yield single("Col2Im", (2, 8, 6), ints(4, 5), ints(2, 2), opset=18, strides=[2, 1], dilations=[1, 2])
    yield single("Col2Im", (1, 4, 12), ints(4, 2), ints(2, 2), opset=18, pads=[1, 0, 0, 2])
    grid = np.random.default_rng(1).uniform(-1.3, 1.3, (2, 2, 3, 2)).astype(np.float32)
    for mode in ("linear", "nearest", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            for corners in (0, 1):
                yield single("GridSample", (2, 2, 3, 4), grid, opset=20, mode=mode, padding_mode=padding, align_corners=corners)
    yield single("GridSample", (2, 1, 3, 4), grid, opset=16, mode="bilinear")


FAMILIES = {"spread": list(spread()), "resampled": list(resampled()), "accumulated": list(accumulated()), "placed": list(placed())}


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_agree_with_onnx_runtime(family: str) -> None:
    for model in FAMILIES[family]:
        agrees(model)


def test_random_transposed_convolutions_agree_with_onnx_runtime() -> None:
    agreed = 0
    for model in random_transposed(60):
        try:
            OnnxRuntime(model.SerializeToString()).run(np.zeros(lower(model).nx))
        except InvalidModel:
            continue  # ONNX Runtime itself refuses the combination
        agrees(model, points=2)
        agreed += 1
    assert agreed > 30


def test_variants_without_a_rule_are_named() -> None:
    for model, word in (
        (single("ConvTranspose", (1, 2, 3), f(2, 1, 4), auto_pad="SAME_UPPER", strides=[2]), "auto_pad"),
        (single("Upsample", (1, 1, 3, 4), scales(1, 1, 2, 2), opset=9, mode="cubic"), "cubic"),
        (single("Resize", (1, 1, 4, 4), None, scales(1, 1, 0.5, 0.5), opset=18, mode="linear", antialias=1), "antialias"),
        (single("EyeLike", (3, 3), opset=22, dtype=7), "real types"),
    ):
        with pytest.raises(UnsupportedOperator, match=word):
            lower(model)
    with pytest.raises(InvalidModel, match="does not fit"):
        lower(single("ConvTranspose", (1, 3, 3), f(2, 1, 4)))
