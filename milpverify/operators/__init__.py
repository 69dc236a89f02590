"""The core operators that every network is lowered to: affine maps with their adjoints, elementwise nonlinearities and products."""

from milpverify.operators.convolution import Conv, Transposed
from milpverify.operators.core import Affine, Elementwise, Input, Nonlinear, Norm, Operator, Product, Shape
from milpverify.operators.maps import Linear, Scale, SparseLinear
from milpverify.operators.moves import Concat, Permute, ReduceSum, Reshape, Select, Sum
from milpverify.operators.window import Window

__all__ = [
    "Affine",
    "Concat",
    "Conv",
    "Elementwise",
    "Input",
    "Linear",
    "Nonlinear",
    "Norm",
    "Operator",
    "Permute",
    "Product",
    "ReduceSum",
    "Reshape",
    "Scale",
    "Select",
    "Shape",
    "SparseLinear",
    "Sum",
    "Transposed",
    "Window",
]
