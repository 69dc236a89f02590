"""Small torch modules, one per operation or layer, with the shapes of their inputs without the batch axis."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]


class Lambda(nn.Module):
    """A forward written as a function of x and some constants."""

    def __init__(self, function: Callable[..., Any], *constants: Tensor) -> None:
        super().__init__()
        self.function = function
        for i, value in enumerate(constants):
            self.register_buffer(f"c{i}", value)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.buffers())


class Pair(nn.Module):
    """A layer of two arguments on both halves of x."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(*x.chunk(2, dim=1))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def running(module: nn.Module) -> nn.Module:
    """Batch normalisation with statistics that are not 0 and 1."""
    module.running_mean.copy_(normal(module.num_features))
    module.running_var.copy_(normal(module.num_features).abs() + 0.5)
    module.weight.data.copy_(normal(module.num_features) + 1)
    return module


def set_entries(x: Tensor) -> Tensor:
    """Writes into a tensor, which only torch.export can trace."""
    y = x.clone()
    y[:, 1] = 2 * x[:, 0]
    y[:, 2:] += 1
    return y


def set_where(x: Tensor) -> Tensor:
    """Writes into the entries that a mask chooses."""
    y = x.clone()
    y[y < 0.2] = 0.5
    return y


LAYERS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear_no_bias": (lambda: nn.Linear(4, 3, bias=False), (5, 4)),
    "bilinear_free": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Flatten()), (4,)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2), (2, 11)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 1)), (2, 5, 6)),
    "conv2d_same": (lambda: nn.Conv2d(1, 2, (4, 3), padding="same", dilation=(1, 2)), (1, 6, 7)),
    "conv2d_reflect": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), (1, 4, 5)),
    "conv2d_circular": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (1, 4, 5)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 2)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=(2, 1), padding=(0, 3), dilation=2), (2, 4, 5)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(1, 2, 2, stride=2), (1, 2, 2, 2)),
    "batch_norm1d": (lambda: running(nn.BatchNorm1d(3)), (3,)),
    "batch_norm2d": (lambda: running(nn.BatchNorm2d(2)), (2, 3, 3)),
    "batch_norm_plain": (lambda: nn.BatchNorm2d(2, affine=False), (2, 3, 3)),
    "max_pool1d": (lambda: nn.MaxPool1d(3, 2, 1), (2, 8)),
    "max_pool2d": (lambda: nn.MaxPool2d((2, 3), stride=2, dilation=(1, 2), ceil_mode=True), (2, 6, 7)),
    "max_pool3d": (lambda: nn.MaxPool3d(2), (1, 4, 2, 4)),
    "avg_pool1d": (lambda: nn.AvgPool1d(3, 2, 1, ceil_mode=True), (2, 8)),
    "avg_pool2d": (lambda: nn.AvgPool2d((2, 3), padding=(1, 1), count_include_pad=False), (2, 6, 7)),
    "avg_pool2d_divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), (1, 4, 4)),
    "avg_pool3d": (lambda: nn.AvgPool3d(2), (1, 4, 2, 4)),
    "adaptive_avg_pool2d": (lambda: nn.AdaptiveAvgPool2d(1), (2, 4, 5)),
    "adaptive_avg_pool2d_uneven": (lambda: nn.AdaptiveAvgPool2d((3, None)), (2, 7, 5)),
    "adaptive_avg_pool1d": (lambda: nn.AdaptiveAvgPool1d(2), (2, 5)),
    "adaptive_max_pool2d": (lambda: nn.AdaptiveMaxPool2d((2, 3)), (2, 5, 7)),
    "upsample": (lambda: nn.Upsample(scale_factor=2), (1, 2, 3)),
    "upsample_bilinear": (lambda: nn.Upsample(size=(5, 4), mode="bilinear", align_corners=False), (2, 3, 3)),
    "pixel_shuffle": (lambda: nn.PixelShuffle(2), (4, 2, 3)),
    "zero_pad": (lambda: nn.ZeroPad2d((1, 0, 2, 1)), (1, 2, 3)),
    "constant_pad": (lambda: nn.ConstantPad1d(2, 1.5), (1, 3)),
    "replication_pad": (lambda: nn.ReplicationPad2d(1), (1, 2, 3)),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5), nn.Identity()), (2, 3, 3)),
    "prelu": (lambda: nn.PReLU(3), (3, 4)),
    "prelu_one": (nn.PReLU, (4,)),
    "layer_norm": (lambda: nn.LayerNorm(4), (3, 4)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (4, 3)),
    "instance_norm": (lambda: nn.InstanceNorm1d(2, affine=True), (2, 4)),
    "rms_norm": (lambda: nn.RMSNorm(4, eps=1e-5), (3, 4)),
    "softmax": (lambda: nn.Softmax(dim=1), (4,)),
    "log_softmax": (lambda: nn.LogSoftmax(dim=-1), (4,)),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (4,)),
    "lstm": (lambda: nn.LSTM(2, 3, batch_first=True), (3, 2)),
    "gru": (lambda: nn.GRU(2, 3, batch_first=True, bidirectional=True), (2, 2)),
    "rnn": (lambda: nn.RNN(2, 3, batch_first=True, num_layers=2), (3, 2)),
    "lstm_cell": (lambda: nn.LSTMCell(2, 3), (2,)),
    "bilinear": (lambda: Pair(nn.Bilinear(2, 2, 3)), (4,)),
    "cosine_similarity": (lambda: Pair(nn.CosineSimilarity(1)), (4,)),
    "pairwise_distance": (lambda: Pair(nn.PairwiseDistance()), (4,)),
    "local_response_norm": (lambda: nn.LocalResponseNorm(3, 0.5), (4, 3)),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), (3, 4)),
    "transformer_first": (lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, norm_first=True, activation="gelu"), (3, 4)),
}
for _layer in (
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(),
    nn.ELU(0.7),
    nn.CELU(1.3),
    nn.SELU(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softplus(),
    nn.Softplus(beta=3),
    nn.Softsign(),
    nn.Hardtanh(-2.0, 0.5),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.LogSigmoid(),
    nn.Tanhshrink(),
    nn.Softshrink(0.3),
    nn.Threshold(0.25, 0.25),
    nn.Threshold(0.25, 3.0),
    nn.Hardshrink(0.3),
):
    LAYERS[str(_layer)] = (lambda layer=_layer: layer, (2, 5))

P, Q, M = normal(4), normal(3, 4), normal(4, 4)
INDEX, TO = torch.tensor([2, 0, 2]), torch.tensor([[0, 2, 0, 1]])
PLACES = torch.rand(1, 2, 3, 2, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
INF = float("inf")

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], Shape]] = {
    "add": (lambda x, p: (x + p) + 1 + torch.add(x, p, alpha=2), (P,), (3, 4)),
    "sub": (lambda x, p: (x - p) - (2 - x) - torch.sub(p, x, alpha=0.5), (P,), (3, 4)),
    "mul": (lambda x, p: (x * p) * 3 + 0.1 * x + x.mul(0.1) + torch.multiply(p, x), (P,), (3, 4)),
    "div": (lambda x, p: x / (p.abs() + 1) + x.div(7) + torch.true_divide(x, 3), (P,), (3, 4)),
    "neg": (lambda x: -x + x.neg() + torch.neg(x), (), (3,)),
    "broadcast": (lambda x, q: x[:, None] + q, (Q,), (4,)),
    "matmul": (lambda x, m: x @ m + torch.matmul(x, m), (M,), (3, 4)),
    "matmul_left": (lambda x, q: q @ x, (Q,), (4, 2)),
    "matmul_vector": (lambda x, p: x @ p, (P,), (3, 4)),
    "bmm": (lambda x, m: torch.bmm(x, m.expand(1, 4, 4)), (M,), (3, 4)),
    "linear": (F.linear, (Q,), (4,)),
    "addmm": (lambda x, q: torch.addmm(q[:, 0], x, q.t(), beta=0.5, alpha=2), (Q,), (4,)),
    "relu_forms": (lambda x: F.relu(x) + torch.relu(x) + x.relu() + x.clamp(min=0) + F.leaky_relu(x, negative_slope=0.5), (), (4,)),
    "in_place": (lambda x: (x + 0).relu_() + torch.relu_(x - 1) + F.elu(x + 1, inplace=True), (), (4,)),
    "smooth": (lambda x: torch.sin(x) + x.tanh() + F.gelu(x) + torch.exp(x).log() + torch.erf(x) + x.cos() + torch.atan(x), (), (4,)),
    "powers": (lambda x: x**2 + x.pow(3) + torch.square(x) + (x * x + 1) ** 0.5 + (x**2 + 1) ** -1 + x**4, (), (4,)),
    "roots": (lambda x: torch.sqrt(x.abs() + 1) + torch.rsqrt(x.abs() + 1) + 2 / (x.abs() + 1) + torch.reciprocal(x.abs() + 2), (), (4,)),
    "products": (lambda x: x[:, :2] * x[:, 2:] + x[:, :1] / (x[:, 2:] ** 2 + 1), (), (4,)),
    "matrix_products": (lambda x: x @ x.transpose(1, 2) + torch.einsum("bik,bjk->bij", x, x), (), (3, 2)),
    "views": (lambda x: x.view(x.size(0), -1).reshape(1, 4, 3).flatten(1).unflatten(1, (2, 6)).squeeze(0).unsqueeze(-1), (), (3, 4)),
    "axes": (lambda x: x.permute(0, 2, 1) + x.transpose(1, 2).contiguous() + x.mT + torch.movedim(x, 1, 2), (), (3, 4)),
    "cat": (lambda x, p: torch.cat([x, 2 * x, p[None]], dim=1), (P,), (4,)),
    "stack": (lambda x, p: torch.stack([x, x + 1, p.expand_as(x)], dim=-1), (P,), (4,)),
    "slices": (lambda x: x[:, 1:] + x[:, :-1] + x[..., ::2, :].sum() + x[:, -1:, None].squeeze(2), (), (3, 4)),
    "indexing": (lambda x, i: x[:, i] + x.index_select(1, i) + x[:, [0, 1, 1]] + x.narrow(1, 0, 1), (INDEX,), (3, 2)),
    "gather": (lambda x, i: torch.gather(x, 1, i[None]), (INDEX,), (4,)),
    "chunk": (lambda x: operator.add(*x.chunk(2, dim=1)) + torch.split(x, 2, 1)[1] + x.unbind(2)[0][:, :2, None], (), (4, 3)),
    "expand": (lambda x: x[:, None].expand(-1, 3, -1) + x.repeat(3, 1)[None] + torch.tile(x, (3, 1)), (), (4,)),
    "flips": (lambda x: x.flip(1) + torch.roll(x, 1, dims=1) + torch.tril(x) + torch.diag_embed(x[:, 0])[:, :3], (), (3, 4)),
    "pads": (lambda x: F.pad(x, (1, 2)) + F.pad(x, (2, 1), value=1.5), (), (3,)),
    "sums": (
        lambda x: x.sum(1) + x.mean((1,)) + torch.sum(x, dim=1) + x.mean() + x.cumsum(1)[:, 1] + x.sum(dim=-1, keepdim=True)[:, 0],
        (),
        (3, 2),
    ),
    "spread": (lambda x: x.var(1) + x.var(dim=1, unbiased=False) + torch.std(x, 1), (), (3, 2)),
    "set": (set_entries, (), (4,)),
    "extrema": (lambda x: x.max(dim=1)[0] + x.min(1).values + x.amax(1) + x.amin((1,)) + x.max(), (), (3, 4)),
    "two": (lambda x, p: torch.max(x, p) + torch.minimum(x, 2 * x - 1) + torch.maximum(x[:, :1], x), (P,), (4,)),
    "clamps": (
        lambda x, p: x.clamp(-0.5, 0.7) + torch.clamp(x, max=0.2) + F.hardtanh(x) + torch.clamp_min(x, 0.1) + x.clamp(min=p),
        (P,),
        (4,),
    ),
    "abs": (lambda x: x.abs() + abs(x) + F.relu6(3 * x) + torch.nn.functional.threshold(x, 0.1, 0.1), (), (4,)),
    "where": (lambda x, p: torch.where(p > 0, x, 0.5) + x.masked_fill(p > 0, 2.0), (P,), (4,)),
    "leaky": (lambda x: torch.where(x > 0, x, 0.1 * x) + x * (x > 0) + (x < -0.5).float(), (), (4,)),
    "compared": (
        lambda x, p: torch.stack([m.float() for m in (x > p, x >= 0.5, p < x, x <= 2 * x, x == p, x != p, torch.less(x, 0), x.ge(p))]),
        (P,),
        (4,),
    ),
    "logic": (
        lambda x, p: (~(x > p) & (x < 1) | (x > 2)).float() + ((x > 0) ^ (p > 0)).to(x.dtype) + torch.logical_or(x > 1, x < -1).type_as(x),
        (P,),
        (4,),
    ),
    "masks": (
        lambda x, p: ((x > 0) + (x > p)) * x + ((x > 0) * (x < p)).float() + (x > 0).sum() + (x > 0)[:, None].expand(-1, 4, -1).any(1) * p,
        (P,),
        (4,),
    ),
    "chosen": (
        lambda x, p: torch.where(x > x.mean(), x.exp(), p) + x.masked_fill(x < p, 0.3) + torch.where((x > 0).all(1, keepdim=True), x, -x),
        (P,),
        (4,),
    ),
    "set_where": (set_where, (), (4,)),
    "order": (
        lambda x: (
            torch.sort(x, dim=1)[0] + x.sort(descending=True).values + x.topk(3, dim=2)[0] + torch.topk(x, 1, 1, largest=False).values
        ),
        (),
        (5, 3),
    ),
    "ranks": (
        lambda x: x.median(1)[0] + x.kthvalue(2, dim=1).values + torch.msort(x)[0, 1] + x.median() + torch.aminmax(x, dim=1)[0],
        (),
        (5, 3),
    ),
    "group_sort": (lambda x: x.unflatten(1, (3, 2)).sort(dim=-1).values.flatten(1), (), (6,)),
    "steps": (lambda x, p: torch.heaviside(x, p) + F.threshold(x, 0.3, -1.0) + F.hardshrink(x, 0.4) + torch.sign(x - 0.1), (P,), (4,)),
    "whole": (lambda x: x.round() + torch.ceil(3 * x) + x.floor() + x.trunc() + torch.frac(x) + torch.round(x, decimals=1), (), (4,)),
    "remainders": (lambda x: x % 0.5 + torch.remainder(x, -2) + torch.fmod(x, 0.25) + (2 * x).int().float() + (x > 0).long(), (), (4,)),
    "quantised": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.03, 5, -128, 127), (), (4,)),
    "bounds": (lambda x, p: torch.clamp(x, -p.abs(), x.mean(1, keepdim=True).abs()), (P,), (4,)),
    "constants": (lambda x, m: x @ torch.softmax(m * 0.1, 0) + torch.arange(4) + torch.ones_like(x), (M,), (4,)),
    "types": (lambda x, p: x.to(p.dtype).float() + p.to(x) * p.type_as(x) + x.new_zeros(4) + x.type_as(p).detach(), (P,), (4,)),
    "shapes": (lambda x: x.reshape(len(x), x.shape[1] * x.shape[2])[:, : x.dim()] if x.shape[1] == 3 else x, (), (3, 4)),
    "loops": (lambda x: sum(row * i for i, row in enumerate(x[0])), (), (3, 4)),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), (), (3, 2)),
    "attention_masks": (
        lambda x: (
            F.scaled_dot_product_attention(x, x, x, is_causal=True) + F.scaled_dot_product_attention(x, x[:, :1], x[:, :1], enable_gqa=True)
        ),
        (),
        (2, 3, 2),
    ),
    "tuple": (lambda x: (x + 1, x[:, :1] * 2), (), (3,)),
    "logsumexp": (lambda x: torch.logsumexp(x, 1) + F.softmin(x, dim=1)[:, 0], (), (3,)),
    "einsum": (lambda x, q: torch.einsum("bij,kj->bki", x, q) + torch.einsum("...ij,kj->...ki", [x, q]), (Q,), (2, 4)),
    "einsum_lists": (lambda x, q: torch.einsum(x, [0, 1, 2], q, [3, 2], [0, 3, 1]), (Q,), (2, 4)),
    "bilinear": (lambda x, w: F.bilinear(x[:, :2], x[:, 2:], w, torch.ones(3)), (normal(3, 2, 2),), (4,)),
    "outer": (lambda x: torch.outer(x[0], x[0, :2]) + torch.tensordot(x, x[:, :2], ([0], [0])), (), (3,)),
    "inner": (lambda x, q: torch.inner(x[0], q) + torch.inner(q, x[0]).T + torch.inner(x[0, 0], x[0, 0]), (Q,), (3, 4)),
    "kron": (lambda x, q: torch.kron(x[0], q) + torch.kron(x[0], x[0]).sum(), (Q,), (2, 2)),
    "cross": (lambda x, q: torch.linalg.cross(x, 2 * x.flip(-1)) + torch.cross(x, q, dim=-1), (normal(1, 2, 3),), (2, 3)),
    "chain": (lambda x, m: torch.linalg.multi_dot([x[0], m, m]) + torch.addr(m[:3], x[0, :, 0], m[0], alpha=0.5), (M,), (3, 4)),
    "norms": (
        lambda x: (
            torch.norm(x, dim=2) + x.norm(dim=2, p=1) + torch.linalg.norm(x, dim=2) + torch.linalg.vector_norm(x, INF, dim=2) + x.norm()
        ),
        (),
        (3, 4),
    ),
    "orders": (lambda x: sum(torch.linalg.vector_norm(x, p, dim=2) for p in (-INF, -2, 2.5, 3, 4)), (), (3, 4)),
    "matrix_norms": (
        lambda x: torch.linalg.matrix_norm(x) + torch.linalg.norm(x, 1, (1, 2)) + torch.linalg.matrix_norm(x, -INF),
        (),
        (3, 4),
    ),
    "normalize": (
        lambda x: F.normalize(x) + F.normalize(x, p=1, dim=2) + F.normalize(x, p=INF, dim=-1) + F.normalize(x, dim=(1, 2)),
        (),
        (3, 4),
    ),
    "cosine": (lambda x, q: F.cosine_similarity(x[:, :, None], q, dim=-1) + F.cosine_similarity(x, x.flip(1))[:, :3], (Q,), (3, 4)),
    "distances": (lambda x, q: torch.cdist(x, q) + torch.cdist(x, q, p=1) + F.pairwise_distance(x, 2 * x)[..., None], (Q,), (3, 4)),
    "distance": (lambda x: torch.pdist(x[0]) + torch.dist(x, x + 1), (), (3, 4)),
    "local_response": (lambda x: F.local_response_norm(x, 3) + F.local_response_norm(x, 4, 0.5, 0.6, 1.3), (), (5, 3)),
    "lp_pool": (lambda x: F.lp_pool2d(x, 2.0, 2), (), (2, 4, 4)),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), (), (1, 3, 4)),
    "scatter": (
        lambda x, i: x.scatter(1, i, 0.5) + torch.scatter_reduce(x, 1, i, -x, "amax"),
        (TO,),
        (4,),
    ),
    "scatter_in_place": (lambda x, i: torch.zeros_like(x).scatter_add_(1, i, x) + torch.ones_like(x).scatter_(1, i[:, :2], x), (TO,), (4,)),
    "index_add": (lambda x, i: x.index_add(1, i, x[:, :3], alpha=0.5) + x.index_fill(1, i, 2.0), (INDEX,), (4,)),
    "fold": (lambda x: F.fold(F.unfold(x, 2), (4, 5), 2) + F.fold(F.unfold(x, 3, 2, 1, 2), (4, 5), 3, 2, 1, 2), (), (2, 4, 5)),
    "grid_sample": (
        lambda x, p: F.grid_sample(x, p, align_corners=False) + F.grid_sample(x, p, "bicubic", "border", True),
        (PLACES,),
        (2, 3, 4),
    ),
    "cumulative": (lambda x: x.cumprod(1)[:, 1:] + torch.diff(x, dim=1) + torch.trace(x[0]), (), (3, 2)),
    "moments": (lambda x: torch.var_mean(x, 1)[0] + torch.std_mean(x, dim=1)[1] + x.aminmax(dim=1).max - x.aminmax().min, (), (3, 4)),
    "exponentials": (lambda x: torch.ceil(x) + torch.exp2(x) + torch.expm1(x) + x.erfc() + torch.sinh(x) + x.cosh(), (), (4,)),
    "logarithms": (lambda x: torch.log1p(x.abs()) + torch.log2(x.abs() + 1) + (x.abs() + 1).log10() + torch.logit(x, 0.1), (), (4,)),
    "atanh": (lambda x: torch.atanh(torch.sigmoid(x) - 0.5) + torch.logit(torch.sigmoid(x)) + F.rrelu(x), (), (4,)),
    "gates": (lambda x: F.glu(x) + torch.logaddexp(x[:, :2], x[:, 2:]) + torch.hypot(x[:, :2], x[:, 2:]), (), (4,)),
    "addcdiv": (lambda x, p: torch.addcdiv(x, x, x.abs() + 1, value=0.3) + torch.addcdiv(x, p, p.abs() + 1), (P,), (4,)),
}

# Relatives of these

FUNCTIONS |= {
    "sums_of_products": (
        lambda x, p: torch.addcmul(p, x, x, value=0.5) + torch.lerp(x, p, 0.25) + x[0, 0].addmv(p, x[0, 0]),
        (M,),
        (4, 4),
    ),
    "batched_sums": (lambda x, m: torch.baddbmm(m, x, m.expand(1, 4, 4), beta=0.5) + torch.chain_matmul(x[0], m), (M,), (4, 4)),
    "dots": (
        lambda x, p: x[0].dot(p) + torch.vdot(x[0], p) + torch.linalg.vecdot(x, p) + torch.ger(x[0], p) + torch.mv(M, x[0]).sum(),
        (P,),
        (4,),
    ),
    "plain_matrices": (lambda x, m: torch.mm(x[0], m) + x[0].t() + x.mH[0] + x[0].H, (M,), (4, 4)),
    "from_the_right": (
        lambda x, p: torch.rsub(x, p) + torch.Tensor.__rsub__(x, 2) + torch.Tensor.__rtruediv__(x.abs() + 1, p) + 1 / (x.abs() + 1),
        (P,),
        (4,),
    ),
    "products_of_entries": (lambda x: x.prod(1) + torch.prod(x) + torch.tan(x / 2).sum(1), (), (3,)),
    "infinities": (
        lambda x: (
            torch.where(x.isnan() | x.isinf() | x.isneginf() | x.isposinf(), 1.0, x)
            + torch.nan_to_num(x).masked_fill(~torch.isfinite(x), 0.0)
        ),
        (),
        (4,),
    ),
    "pairs": (lambda x, p: torch.fmax(x, p) + torch.fmin(x, 2 * x) + x.clamp_max(0.5) + torch.positive(x), (P,), (4,)),
    "words": (
        lambda x, p: torch.stack([m.float() for m in (torch.greater(x, p), x.greater_equal(0.5), x.less_equal(p), x.not_equal(p))]),
        (P,),
        (4,),
    ),
    "bits": (
        lambda x, p: torch.stack(
            [
                torch.logical_not(torch.logical_and(x > 0, x < p)),
                torch.logical_xor(x > 0, p > 0),
                torch.bitwise_or(x > 1, x < p).bitwise_and(x < 2),
                torch.bitwise_xor(torch.bitwise_not(x > 0), x > p),
            ]
        ).float(),
        (P,),
        (4,),
    ),
    "kinds": (lambda x: x.double() + (x > 0).half().bfloat16() + x.bool() * x + x.type(torch.float32) + x.fix(), (), (4,)),
    "known": (
        lambda x: (
            x.new_full((4,), x.ndim + x.numel() + torch.Tensor.__len__(x))
            + x.nelement() * torch.full_like(x, x.ndimension())
            + x.new_ones(4) * (x if x.is_floating_point() and x.is_contiguous() and not (x.is_complex() or x.is_quantized) else -x)
        ),
        (),
        (4,),
    ),
    "kept": (
        lambda x: (
            x.cpu().data.resolve_conj().resolve_neg().requires_grad_(False)
            if x.layout is torch.strided and not (x.is_cuda or x.is_sparse or x.is_mkldnn or x.requires_grad)
            else -x
        ),
        (),
        (4,),
    ),
    "shaped": (lambda x, p: x.reshape_as(p).view_as(x).ravel()[None] + x.flatten(), (P,), (4,)),
    "raised": (lambda x: torch.atleast_3d(x[0]) + torch.atleast_2d(x[0, 0])[..., None] + torch.atleast_1d(x[0, 0]), (), (4,)),
    "stacked": (lambda x: (torch.hstack([x, x]), torch.vstack([x, -x]), torch.dstack([x, x]), torch.column_stack([x, x])), (), (2,)),
    "rows": (lambda x: torch.row_stack([x, 2 * x]), (), (2,)),
    "cut": (
        lambda x: torch.cat(
            [*x.tensor_split(2, 1), *x.hsplit(2), *x.split_with_sizes([1, 3], 1), *x.unsafe_chunk(2, 1), x.narrow_copy(1, 0, 1)], 1
        ),
        (),
        (4, 2),
    ),
    "cut_deep": (lambda x: (*x.vsplit([0]), *x.dsplit(2)), (), (3, 4)),
    "broadcast_forms": (
        lambda x, q: torch.broadcast_tensors(x, q)[0] + x.broadcast_to(3, 4) + torch.meshgrid(x[0, :3], x[0], indexing="ij")[0],
        (Q,),
        (4,),
    ),
    "mirrored": (lambda x: x.fliplr() + x.flipud() + torch.rot90(x, 2, (1, 2)) + torch.triu(x), (), (3, 3)),
    "diagonals": (
        lambda x: (
            torch.diag(x[0])[:3, :3]
            + x[0, :3].diag()
            + torch.block_diag(x[:, :2], x[:1, :1], x[:1, :1])[:, :3]
            + x[:, None].diagonal(dim1=0, dim2=1)[:3].T
        ),
        (),
        (4,),
    ),
    "taken": (
        lambda x, i: x.take(i) + x.take_along_dim(i[None], 1) + x.repeat_interleave(2, 1)[:, :3] + x.index_copy(1, i, -x[:, :3])[:, :3],
        (INDEX,),
        (4,),
    ),
    "selected": (lambda x, p: x.masked_select(p > 0) + x[0, p > 0], (P,), (4,)),
    "shuffled": (lambda x: F.channel_shuffle(x, 2) + F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), (), (4, 2, 2)),
}
LAYERS |= {
    "adaptive_pools": (lambda: nn.Sequential(nn.AdaptiveAvgPool3d((2, 3, 2)), nn.AdaptiveMaxPool3d((2, 2, 1))), (1, 3, 4, 3)),
    "adaptive_max_pool1d": (lambda: nn.AdaptiveMaxPool1d(2), (2, 5)),
    "dropouts": (lambda: nn.Sequential(nn.Dropout1d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()), (2, 3)),
    "dropout3d": (nn.Dropout3d, (1, 2, 2, 2)),
    "lp_pool1d": (lambda: nn.LPPool1d(2.0, 2), (2, 4)),
    "lp_pool3d": (lambda: nn.LPPool3d(4.0, 2), (1, 2, 2, 4)),
}

# Operators that torch.export, or TorchScript, writes

aten = torch.ops.aten
FUNCTIONS |= {
    "aten_arithmetic": (
        lambda x, p: (
            aten.linalg_vecdot(x, p)[:, None] + aten._safe_softmax(x, -1) + aten.log_sigmoid_forward(x)[0] + aten._prelu_kernel(x, p[None])
        ),
        (P,),
        (4,),
    ),
    "aten_entries": (
        lambda x, p: aten.view_copy(aten._unsafe_view(aten.alias(x), [4, 1]), [1, 4]) + aten.lift_fresh_copy(x) + aten._to_copy(x),
        (P,),
        (4,),
    ),
    "aten_axes": (
        lambda x: aten.expand_copy(aten.permute_copy(x, [0, 2, 1]), [3, -1, -1])[:1] + aten.transpose_copy(x, 1, 2),
        (),
        (3, 4),
    ),
    "aten_places": (
        lambda x, i: (
            (aten._unsafe_index(x, [None, i]) + aten.index(x, [None, i]) + aten.slice(x, 1, 0, 3) + aten.slice_copy(x, 1, 1, 4))
            + (aten.select(x, 1, 0) + aten.unsafe_split(x, 3, 1)[0] + aten.slice_scatter(x, -x[:, :2], 1, 0, 2)[:, 1:])
            + (aten.select_scatter(x, 2 * x[:, 0], 1, 1)[:, 1:] + aten.index_put(x, [None, i], -x[:, :3])[:, 1:] + aten.copy(x, -x)[:, 1:])
        ),
        (INDEX,),
        (4,),
    ),
    "aten_pads": (
        lambda x: aten.constant_pad_nd(x, [1, 1], 0.5) + aten.reflection_pad1d(x, [1, 1]) + aten.replication_pad1d(x, [1, 1]),
        (),
        (1, 4),
    ),
    "aten_pads_of_planes": (
        lambda x: (
            (aten.reflection_pad2d(x, [1, 1, 1, 1]) + aten.replication_pad2d(x, [1, 1, 1, 1]))
            + (aten.reflection_pad3d(x[None], [1, 1, 1, 1, 0, 0]) + aten.replication_pad3d(x[None], [1, 1, 1, 1, 0, 0]))[0]
        ),
        (),
        (2, 3, 3),
    ),
    "aten_convolution": (
        lambda x, w: (
            aten.convolution(x, w, None, [1], [1], [1], False, [0], 1) + aten.convolution(x, w, w[0, :, 0], [1], [1], [1], True, [0], 1)
        ),
        (normal(2, 2, 3),),
        (2, 4),
    ),
    "aten_pools": (
        lambda x: (
            aten.max_pool1d_with_indices(x[0], [2])[0][:, :2]
            + (aten.max_pool2d_with_indices(x, [2, 2])[0] + aten._adaptive_avg_pool2d(x, [2, 2]))
            + (aten.max_pool3d_with_indices(x, [1, 2, 2])[0] + aten._adaptive_avg_pool3d(x, [1, 2, 2]))
        ),
        (),
        (2, 4, 4),
    ),
    "aten_norms": (
        lambda x, p, v: (
            (aten.native_batch_norm(x, p, p, p, v, False, 0.1, 1e-5)[0] + aten._native_batch_norm_legit(x, p, p, p, v, False, 0.1, 1e-5)[0])
            + (aten._native_batch_norm_legit_no_training(x, p, p, p, v, 0.1, 1e-5)[0] + aten.native_layer_norm(x, [4], p, p, 1e-5)[0])
        ),
        (P, P.abs() + 0.5),
        (4,),
    ),
    "aten_distances": (lambda x, q: aten._cdist_forward(x, q[None], 2.0, None) + aten._pdist_forward(x[0], 2.0), (Q,), (3, 4)),
    "aten_columns": (
        lambda x: aten.col2im(aten.im2col(x, [2, 2], [1, 1], [0, 0], [1, 1]), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1]),
        (),
        (2, 4, 4),
    ),
    "aten_channels": (lambda x: aten.native_channel_shuffle(x, 2) + torch.feature_dropout(x, 0.5, False), (), (4, 2)),
    "aten_grids": (lambda x, p: aten.grid_sampler(x, p, 0, 0, False) + aten.grid_sampler_2d(x, p, 0, 1, True), (PLACES,), (2, 3, 4)),
    "aten_grid_in_space": (lambda x, p: aten.grid_sampler_3d(x, p, 0, 0, False), (normal(1, 1, 2, 2, 3) / 3,), (1, 2, 3, 3)),
    "aten_upsampling": (lambda x: aten.upsample_nearest1d(x, [4]) + aten.upsample_linear1d(x, [4], False), (), (1, 2)),
    "aten_upsampling_of_planes": (
        lambda x: (
            aten.upsample_nearest2d(x, [4, 4]) + aten.upsample_bilinear2d(x, [4, 4], False) + aten.upsample_bicubic2d(x, [4, 4], True)
        ),
        (),
        (1, 2, 3),
    ),
    "aten_upsampling_in_space": (
        lambda x: aten.upsample_nearest3d(x, [4, 4, 2]) + aten.upsample_trilinear3d(x, [4, 4, 2], True),
        (),
        (1, 2, 2, 1),
    ),
}

WHERE_ENTRIES_ARE: dict[str, Callable[[Tensor], Any]] = {
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: torch.argmin(x, dim=1),
    "argsort": lambda x: x.argsort(),
    "searchsorted": lambda x: torch.searchsorted(torch.arange(3.0), x),
    "bucketize": lambda x: torch.bucketize(x, torch.arange(3.0)),
}
"""Operations that have a rule because it says why they are refused."""
