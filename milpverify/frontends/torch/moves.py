"""The lowering rules of torch operations that only move entries, and of what is known of a tensor without its entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milpverify.frontends.torch.call import Call, execute, leaves, name_of, replaced, rule
from milpverify.frontends.torch.ops import choose
from milpverify.graph import Node

# What is known without the entries


@rule("size")
def _size(call: Call, x: Node, dim: int | None = None) -> Any:
    return torch.Size(x.shape) if dim is None else x.shape[dim]


@rule("shape")
def _shape(call: Call, x: Node) -> torch.Size:
    return torch.Size(x.shape)


@rule("dim", "ndimension", "ndim")
def _rank(call: Call, x: Node) -> int:
    return len(x.shape)


@rule("numel", "nelement")
def _count(call: Call, x: Node) -> int:
    return x.size


@rule("len")
def _length(call: Call, x: Node) -> int:
    return x.shape[0]


@rule("dtype")
def _dtype(call: Call, x: Node) -> torch.dtype:
    return call.dtype


@rule("device")
def _device(call: Call, x: Node) -> torch.device:
    return torch.device("cpu")


@rule("layout")
def _layout(call: Call, x: Node) -> torch.layout:
    return torch.strided


@rule("is_floating_point", "is_contiguous")
def _yes(call: Call, x: Node, **_: Any) -> bool:
    return True


@rule("requires_grad", "is_nested", "is_complex", "is_sparse", "is_quantized", "is_cuda", "is_mkldnn")
def _no(call: Call, x: Node) -> bool:
    return False


@rule("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
def _filled(call: Call, x: Node, *args: Any, **kwargs: Any) -> Any:
    """A constant in the shape of a tensor, or of its type."""
    asked = {key: value for key, value in kwargs.items() if key in ("fill_value", "size")}
    return execute(call.target, [torch.zeros(x.shape, dtype=torch.float64), *args], asked)


# The same entries


@rule(
    *"""
    contiguous clone detach alias lift_fresh_copy cpu cuda requires_grad_ data resolve_conj resolve_neg
    """.split(),
    moves=True,
)
def _keep(call: Call, x: Node, *args: Any, **kwargs: Any) -> Node:
    return x


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout")
def _dropout(call: Call, x: Node, p: float = 0.5, training: Any = None, inplace: bool = False, *, train: Any = None) -> Node:
    # The functions' default is to drop, the operators of aten name it `train`.
    if train or training or (training is None and train is None):
        raise call.invalid("drops entries at random: set the network to evaluation mode, net.eval(), and pass training=self.training")
    return x


# Moving entries


@rule(
    *"""
    view reshape flatten ravel unflatten squeeze unsqueeze _unsafe_view view_copy view_as reshape_as select slice slice_copy index
    _unsafe_index getitem narrow chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split hsplit vsplit dsplit unbind
    index_select narrow_copy gather take take_along_dim unfold expand expand_copy expand_as broadcast_to broadcast_tensors repeat tile
    repeat_interleave meshgrid flip fliplr flipud roll rot90 diagonal tril triu diag diag_embed block_diag im2col pixel_shuffle
    pixel_unshuffle channel_shuffle native_channel_shuffle atleast_1d atleast_2d atleast_3d stack hstack vstack dstack column_stack
    slice_scatter select_scatter index_put index_copy masked_select copy reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d
    """.split(),
    moves=True,
)
def move(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Entries are only moved: torch itself, run on the places of the entries, says where to.

    Entries are numbered from 1 on, so that the zeros that an operation fills in are told apart. Real constants among the
    arguments are entries too; integers and booleans are places.

    Raises:
        UnsupportedOperator: which entries are read depends on x, entries are added up, or a real type is read as another.
    """
    if kwargs.get("accumulate") or (name_of(call.target) == "index_put" and len(args) > 3 and args[3]):
        raise call.refuse("accumulate=True has no rule")
    if (name := name_of(call.target)) in ("getitem", "index", "masked_select", "index_put"):
        read = [v for v in leaves(args[1:2]) if isinstance(v, Node)]
        if name == "index_put" and len(read) == 1 and read[0].shape == args[0].shape and math.prod(tuple(args[2].shape)) == 1:
            return choose(call, read[0], args[2], args[0])
        if read:
            raise call.refuse("which entries are read depends on the network's input, which has no rule; torch.where has")
    moved: list[Node] = []
    start: dict[int, int] = {}
    count = 1
    for value in leaves((args, kwargs)):
        if id(value) not in start and (isinstance(value, Node) or (isinstance(value, Tensor) and value.is_floating_point())):
            start[id(value)] = count
            moved.append(call.node(value))
            count += moved[-1].size

    def places(value: Any) -> Any:
        if id(value) not in start:
            return value
        shape = tuple(value.shape)
        return torch.arange(start[id(value)], start[id(value)] + math.prod(shape), dtype=torch.float64).reshape(shape)

    found = execute(call.target, replaced(args, places), replaced(kwargs, places))
    source = moved[0] if len(moved) == 1 else call.g.concat([call.g.reshape(x, (x.size,)) for x in moved], 0)

    def select(result: Any) -> Any:
        if not isinstance(result, Tensor):
            return result
        if result.dtype != torch.float64:
            raise call.refuse(f"it reads real numbers as {result.dtype}")
        return call.g.select(source, result.numpy().astype(np.int64) - 1)

    return replaced(found, select)


@rule("permute", "permute_copy", "transpose", "transpose_copy", "t", "T", "mT", "mH", "movedim", moves=True)
def _permute(call: Call, x: Node, *args: Any, **kwargs: Any) -> Node:
    """Axes in another order: torch says which, on a tensor without entries that has as many axes, all of other lengths."""
    probe = torch.empty(tuple(range(2, 2 + len(x.shape))), device="meta")
    return call.g.permute(x, [s - 2 for s in execute(call.target, [probe, *args], kwargs).shape])


@rule("cat", moves=True)
def _concatenate(call: Call, tensors: Sequence[Any], dim: int = 0) -> Node:
    nodes = [call.node(v) for v in tensors if tuple(v.shape) != (0,)]
    return call.g.concat(nodes, dim % len(nodes[0].shape))


@rule("pad", "constant_pad_nd", moves=True)
def _pad(call: Call, x: Node, pad: Sequence[int], mode: Any = "constant", value: Any = None) -> Node:
    if not isinstance(mode, str):  # aten: the value comes third
        mode, value = "constant", mode
    fill = 0.0 if value is None or mode != "constant" else float(call.array(value, masks=True))
    shifted = torch.arange(1, x.size + 1, dtype=torch.float64).reshape(x.shape)
    places = torch.nn.functional.pad(shifted, tuple(pad), mode=mode).numpy().astype(np.int64) - 1
    return call.g.padded(x, places, fill)
