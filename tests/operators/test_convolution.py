"""Convolutions: adjoints are transposes in whichever form, rows are the adjoints of unit vectors, weights that underflow are charged."""

from __future__ import annotations

import math
import random

import pytest
import torch

from milpverify.operators import Conv, Transposed
from milpverify.operators.core import OperatorTuning

DOUBLE = torch.float64


def convolution(seed: int) -> Conv:
    """Any number of dimensions, groups, strides, dilations and pads."""
    pick, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    dims, groups, batch = pick.choice((1, 2, 2, 3)), pick.choice((1, 1, 2)), pick.choice((1, 1, 2))
    channels, out = pick.choice((1, 2, 5, 9)), pick.choice((1, 3, 17))
    kernel, stride = ([pick.randint(1, most) for _ in range(dims)] for most in (4, 3))
    dilation = [pick.choice((1, 2)) if pick.random() < 0.3 else 1 for _ in range(dims)]
    pads = tuple((pick.randint(0, 2), pick.randint(0, 2)) for _ in range(dims))
    space = [d * (k - 1) + 1 + pick.randint(0, 5) for k, d in zip(kernel, dilation, strict=True)]
    weight = torch.randn(out * groups, channels, *kernel, generator=generator, dtype=DOUBLE)
    return Conv(weight, tuple(stride), pads, tuple(dilation), groups, (batch, channels * groups, *space))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_adjoints_are_transposes(dtype: torch.dtype) -> None:
    forms = set()
    for seed in range(24):
        op = convolution(seed).to(dtype, torch.device("cpu"))
        assert isinstance(op, Conv)
        x = torch.randn(3, *op.in_shape, dtype=dtype, requires_grad=True)
        y = op.linear([x])
        v = torch.randn_like(y)
        dense = torch.stack(
            [op.adjoint(unit.unsqueeze(0))[0].flatten() for unit in torch.eye(y[0].numel(), dtype=dtype).reshape(-1, *y.shape[1:])]
        )
        torch.testing.assert_close(y.flatten(1), x.flatten(1) @ dense.T, rtol=1e-4, atol=1e-4)
        (expected,) = torch.autograd.grad(y, x, v)
        torch.testing.assert_close(op.adjoint(v)[0], expected, rtol=1e-4, atol=1e-4)
        u = torch.randn_like(x)
        w = v.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(op.adjoint(w)[0], w, u)[0], op.linear([u.detach()]), rtol=1e-4, atol=1e-4)
        forms.add(op._flips)
    assert forms == {True, False}


def test_rows_are_adjoints_of_unit_vectors() -> None:
    for seed in range(24):
        op = convolution(seed)
        shape = tuple(op.linear([torch.zeros(1, *op.in_shape, dtype=DOUBLE)]).shape[1:])
        index = torch.randint(0, math.prod(shape), (7,))
        units = torch.zeros(7, math.prod(shape), dtype=DOUBLE).scatter_(1, index.unsqueeze(1), 1.0)
        assert torch.equal(op.rows(index, shape)[0], op.adjoint(units.reshape(7, *shape))[0])


def test_weights_that_would_be_subnormal_are_zeros_and_charged() -> None:
    weight = torch.tensor([1.0, 1e-39, -3e-42, 1e-50, 0.1], dtype=DOUBLE).reshape(1, 1, 5)
    op = Conv(weight, (1,), ((0, 0),), (1,), 1, (1, 1, 5))
    quick = op.to(torch.float32, torch.device("cpu"))
    assert isinstance(quick, Conv) and (quick.weight != 0).flatten().tolist() == [True, False, False, False, True]
    assert op.lost(torch.float32) == 1e-39
    # What float32 holds as a subnormal number exactly is lost, too.
    held = Conv(weight.float().double(), (1,), ((0, 0),), (1,), 1, (1, 1, 5))
    assert held.lost(torch.float32) > 0 and held.lost(DOUBLE) == 0


def test_which_form_is_taken_follows_the_channels() -> None:
    few, many = (Conv(torch.ones(out, 1, 3), (1,), ((0, 0),), (1,), 1, (1, 1, 9)) for out in (15, 16))
    assert few.flips() and not many.flips()
    assert many.flips(OperatorTuning(few_out=17)) and not few.flips(OperatorTuning(few_out=15))
    wide = Conv(torch.ones(1, 2, 3, dtype=DOUBLE), (1,), ((0, 0),), (1,), 1, (1, 2, 9))
    assert wide.flips() and not wide.flips(OperatorTuning(more=3))


def test_transposed_ones_are_transposes() -> None:
    for seed in range(30):
        op = convolution(seed)
        bias = torch.randn(op.in_shape[1], *[1] * len(op.stride), dtype=DOUBLE)
        turned = Transposed(op, bias)
        x = torch.randn(2, *op.linear([torch.zeros(1, *op.in_shape, dtype=DOUBLE)]).shape[1:], dtype=DOUBLE)
        y = torch.randn(2, *op.in_shape, dtype=DOUBLE)
        torch.testing.assert_close(turned.forward([x]), op.adjoint(x)[0] + bias)
        torch.testing.assert_close(turned.adjoint(y)[0], op.linear([y]))
        torch.testing.assert_close(turned.absolute().linear([x.abs()]), op.absolute().adjoint(x.abs())[0])
        quick = turned.to(torch.float32, torch.device("cpu"))
        assert isinstance(quick, Transposed) and quick.conv.weight.dtype == quick.dtype == torch.float32
        assert (turned.length, turned.directions) == (op.length, op.directions)
