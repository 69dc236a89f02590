"""What one door takes, the other takes: all ONNX operators and torch operations with a rule side by side, and why there are holes."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import onnx
import onnx.defs
import torch.nn.functional as F

from milpverify.frontends.onnx import lowering as onnx_lowering
from milpverify.frontends.onnx.lowering import RULES as ONNX
from milpverify.frontends.torch import lowering as torch_lowering
from milpverify.frontends.torch.lowering import RULES as TORCH
from milpverify.frontends.torch.lowering import entry_of, name_of
from milpverify.functions.catalogue import catalogue

NEWEST = 26
"""Operators that came later need no explanation."""

TOGETHER = """
Abs: abs
Add Sum: add
And Or Xor Not: and or xor invert logical_and logical_or logical_xor logical_not
And Or Xor: bitwise_and bitwise_or bitwise_xor bitwise_not
Atan: atan
Atanh: atanh
Attention: scaled_dot_product_attention multi_head_attention_forward
AveragePool: avg_pool1d avg_pool2d avg_pool3d
BatchNormalization: batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
Cast CastLike: to _to_copy type type_as float double half bfloat16 int long bool
Ceil: ceil
Celu: celu
Clip: clamp clamp_min clamp_max hardtanh
Col2Im: fold col2im
Concat: cat stack hstack vstack dstack column_stack
Conv: conv1d conv2d conv3d convolution
ConvTranspose: conv_transpose1d conv_transpose2d conv_transpose3d
Cos: cos
Cosh Sinh: cosh sinh
CumProd: cumprod
CumSum: cumsum
DepthToSpace SpaceToDepth: pixel_shuffle pixel_unshuffle
QuantizeLinear DequantizeLinear: fake_quantize_per_tensor_affine
Div: div rdiv
Dropout: dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout
Einsum: einsum tensordot outer ger inner dot vdot linalg_vecdot bilinear kron
Elu: elu
Equal: eq ne not_equal
Erf: erf erfc
Exp: exp exp2 expm1
Expand: expand expand_as expand_copy broadcast_to broadcast_tensors meshgrid
EyeLike: zeros_like ones_like full_like new_zeros new_ones new_full
Flatten: flatten ravel
Floor: floor
Gather GatherElements GatherND: gather take take_along_dim index _unsafe_index index_select
Slice: getitem slice slice_copy select narrow narrow_copy diagonal trace diff
Gelu: gelu
Gemm MatMul: matmul mm bmm mv linear addmm baddbmm addmv addr linalg_multi_dot chain_matmul
GlobalAveragePool: adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
GlobalAveragePool: _adaptive_avg_pool2d _adaptive_avg_pool3d
GlobalMaxPool: adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
GlobalLpPool LpPool: lp_pool1d lp_pool2d lp_pool3d
Greater: gt greater
GreaterOrEqual: ge greater_equal
Less: lt less
LessOrEqual: le less_equal
GridSample: grid_sample grid_sampler grid_sampler_2d grid_sampler_3d
GroupNormalization: group_norm
HardSigmoid: hardsigmoid
HardSwish: hardswish
Identity: clone contiguous copy detach alias data lift_fresh_copy cpu cuda requires_grad_ resolve_conj resolve_neg positive
InstanceNormalization MeanVarianceNormalization: instance_norm
IsInf IsNaN: isinf isnan isfinite isneginf isposinf nan_to_num
LRN: local_response_norm
LayerNormalization: layer_norm native_layer_norm
LeakyRelu: leaky_relu rrelu
Log: log log1p log2 log10 logit
LogSoftmax: log_softmax
LpNormalization ai.onnx.ml.Normalizer: normalize cosine_similarity
Max: maximum fmax
Min: minimum fmin
MaxPool: max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
Mean ReduceMean: mean
Mish: mish
Mod: remainder fmod mod
Mul: mul addcmul addcdiv lerp cross linalg_cross
Neg: neg
PRelu: prelu _prelu_kernel
Pad CenterCropPad: pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
Pad: replication_pad1d replication_pad2d replication_pad3d
Pow: pow square
RMSNormalization: rms_norm
Reciprocal: reciprocal
ReduceL1 ReduceL2: norm linalg_norm linalg_vector_norm linalg_matrix_norm dist pdist _pdist_forward cdist _cdist_forward pairwise_distance
ReduceLogSumExp: logsumexp logaddexp
ReduceMax: max amax any
ReduceMin: min amin all aminmax
ReduceProd: prod
ReduceSum: sum
ReduceSumSquare: var var_mean std std_mean hypot
Relu: relu relu6
Reshape: reshape reshape_as view view_as view_copy _unsafe_view unflatten
Resize Upsample: interpolate upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
Resize: upsample_trilinear3d upsample_bicubic2d
ReverseSequence: flip fliplr flipud roll rot90
Round: round
Scatter ScatterElements ScatterND: scatter scatter_add scatter_reduce index_add index_copy index_fill index_put
TensorScatter: slice_scatter select_scatter
Selu: selu
Shape Size: shape size dim ndim ndimension numel nelement len
Shrink: hardshrink softshrink
Sigmoid: sigmoid log_sigmoid log_sigmoid_forward
Sign: sign heaviside
Sin: sin
Softmax: softmax _safe_softmax softmin
Softplus: softplus
Softsign: softsign
Split: split split_with_sizes chunk unsafe_chunk unsafe_split tensor_split hsplit vsplit dsplit unbind
Sqrt: sqrt rsqrt
Squeeze: squeeze
Unsqueeze: unsqueeze atleast_1d atleast_2d atleast_3d
Sub: sub rsub
Swish: silu
Tan: tan
Tanh: tanh tanhshrink
ThresholdedRelu: threshold
Tile: tile repeat repeat_interleave
TopK: topk sort msort kthvalue median argsort argmax argmin
Transpose: permute permute_copy transpose transpose_copy t T mT mH movedim
Trilu: tril triu
Where: where masked_fill masked_select
Compress: im2col unfold channel_shuffle native_channel_shuffle
"""

ONNX_ALONE = {
    "GRU LSTM RNN": "torch.export writes them as their steps",
    "ReduceLogSum": "torch writes it as log of sum",
    "RotaryEmbedding": "torch writes it as products with constants, and sums",
    "ai.onnx.ml.ArrayFeatureExtractor": "what scikit-learn's exporter makes of an index",
    "ai.onnx.ml.Binarizer": "torch writes it as a comparison",
    "ai.onnx.ml.LinearClassifier": "what scikit-learn's exporter makes of a linear layer",
    "ai.onnx.ml.LinearRegressor": "what scikit-learn's exporter makes of a linear layer",
    "ai.onnx.ml.Scaler": "torch writes it as a difference and a product",
}

TORCH_ALONE = {
    "diag diag_embed block_diag": "ONNX writes them as products with constant masks",
    "glu": "ONNX writes it by Split, Sigmoid and Mul",
    "trunc fix frac": "ONNX writes them by Floor, Sign and Abs",
    "searchsorted bucketize": "what is known of places is that they are refused, or left out; ONNX has no such operator",
    "dtype device layout is_floating_point is_contiguous requires_grad is_nested is_complex is_sparse is_quantized is_cuda is_mkldnn": (
        "what Python asks a tensor; an ONNX file has no such questions"
    ),
}

PLACES = "says where entries are, which jumps with them; an output of places is left out"
RANDOM = "draws random numbers, so that the network is no function of its input"
WHOLE = "computes with integers, or depends on its input by integers"
NO_TENSOR = "is about texts, images in files, sequences or optional values"
CONSTANT = "reads shapes, places or weights alone, and is folded"
SPECIAL = "is a function that the catalogue lacks; register_nonlinearity adds it"
TRAINING = "is a loss, which training has and what is verified has not"
LOOP = "runs a graph of its own as often as its input says"
MATRIX = "has no relaxation: determinants and the like are polynomials of as many factors as rows"

ONNX_HOLES = {
    "Acos Acosh Asin Asinh": SPECIAL,
    "AffineGrid BlackmanWindow HammingWindow HannWindow MelWeightMatrix Constant ConstantOfShape OneHot Range": CONSTANT,
    "ArgMax ArgMin Hardmax NonMaxSuppression NonZero Unique": PLACES,
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike": RANDOM,
    "BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor": WHOLE,
    "ConvInteger MatMulInteger QLinearConv QLinearMatMul DynamicQuantizeLinear": WHOLE,
    "ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence": NO_TENSOR,
    "Optional OptionalGetElement OptionalHasElement ImageDecoder RegexFullMatch StringConcat StringNormalizer StringSplit": NO_TENSOR,
    "TfIdfVectorizer": NO_TENSOR,
    "If": "is replaced by the branch that its constant condition chooses; one that the input chooses jumps",
    "Loop Scan SequenceMap": LOOP,
    "Det": MATRIX,
    "DFT STFT": "makes complex numbers; as a constant matrix it has a rule",
    "DeformConv MaxRoiPool RoiAlign MaxUnpool": "reads at places that the network computes",
    "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss": TRAINING,
    "CausalConvWithState LinearAttention SwiGLU": "came after the newest opset that ONNX Runtime runs",
}

TORCH_HOLES = {
    "binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy ctc_loss gaussian_nll_loss": TRAINING,
    "hinge_embedding_loss huber_loss kl_div l1_loss linear_cross_entropy margin_ranking_loss mse_loss multi_margin_loss nll_loss": TRAINING,
    "multilabel_margin_loss multilabel_soft_margin_loss poisson_nll_loss smooth_l1_loss soft_margin_loss triplet_margin_loss": TRAINING,
    "triplet_margin_with_distance_loss": TRAINING,
    "embedding embedding_bag one_hot": WHOLE,
    "affine_grid": CONSTANT,
    "gumbel_softmax fractional_max_pool2d fractional_max_pool3d": RANDOM,
    "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices": RANDOM,
    "max_unpool1d max_unpool2d max_unpool3d": "reads at places that the network computes",
    "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices": PLACES,
    "upsample upsample_bilinear upsample_nearest": "is traced into: it calls interpolate",
    "conv_tbc grouped_mm scaled_mm scaled_grouped_mm": "is for hardware that the comparison at load does not run on",
    "assert_int_or_pair boolean_dispatch": "is no operation on tensors",
    "handle_torch_function has_torch_function has_torch_function_unary has_torch_function_variadic": "is no operation on tensors",
}


def names(table: dict[str, str]) -> list[str]:
    return [name for line in table for name in line.split()]


def sides() -> tuple[list[str], list[str]]:
    """The ONNX operators and the torch operations that stand side by side."""
    lines = [line.split(":") for line in TOGETHER.strip().splitlines()]
    return [n for left, _ in lines for n in left.split()], [n for _, right in lines for n in right.split()]


def test_all_rules_are_registered_where_a_network_is_lowered() -> None:
    """Not by chance, by what else is loaded: by the modules that the lowering imports."""
    for lowering in (onnx_lowering, torch_lowering):
        folder, package = Path(str(lowering.__file__)).parent, str(lowering.__package__)
        body = ast.parse((folder / "lowering.py").read_text()).body
        imports = [node for node in body if isinstance(node, ast.ImportFrom)]
        loaded = {alias.name for node in imports if node.module == package for alias in node.names}
        loaded |= {str(node.module).removeprefix(f"{package}.") for node in imports}
        assert {path.stem for path in folder.glob("*.py") if "\n@rule(" in path.read_text()} - loaded == set()


def test_every_rule_has_its_counterpart_or_a_reason() -> None:
    left, right = sides()
    onnx_rules = ONNX.keys() | {op for entry in catalogue().values() for op in entry.onnx}
    torch_rules = TORCH.keys() | {
        name_of(f.rsplit(".", 1)[1]) for entry in catalogue().values() for f in entry.torch if f.startswith("torch.")
    }
    assert set(left) | set(names(ONNX_ALONE)) == onnx_rules
    assert set(right) | set(names(TORCH_ALONE)) == torch_rules
    twice = Counter([*right, *names(TORCH_ALONE)]) + Counter(dict.fromkeys(left, 1)) + Counter(names(ONNX_ALONE))
    assert not [name for name, n in twice.items() if n > 1]


def test_every_operator_of_the_standard_has_a_rule_or_a_reason() -> None:
    known = ONNX.keys() | {op for entry in catalogue().values() for op in entry.onnx}
    first: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            first[schema.name] = min(schema.since_version, first.get(schema.name, schema.since_version))
    holes = set(names(ONNX_HOLES))
    assert {name for name, since in first.items() if since <= NEWEST} - known - holes == set()
    assert not holes & known


def test_every_function_of_torch_has_a_rule_or_a_reason() -> None:
    functions = {n for n in dir(F) if not n.startswith("_") and n[0].islower() and not n.endswith("_") and callable(getattr(F, n))}
    known = {n for n in functions if name_of(getattr(F, n)) in TORCH or entry_of(getattr(F, n)) is not None}
    holes = set(names(TORCH_HOLES))
    assert functions - known - holes == set()
    assert not holes & known
