"""Which ONNX operators TensorRT takes, which it does not, and what to do about it: the project's own table.

Tried one by one on the parser and builder that TensorRT 10 and 11 share (TensorRT-RTX 1.7, without a GPU), or
taken from its documented list of operators. ``docs/operators.md`` is made from this file:

    python -m edgesmith.converters.operators_page docs/operators.md
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgesmith.device_profiles import DeviceProfile
from edgesmith.sdk.errors import DeviceProfileError

OLDEST = "10.3"  # of the TensorRT versions that a bundle is built for
_LEAST_MAJOR = 10  # older ones take no bundle

Verdict = Literal["taken", "limits", "refused"]


class Rewrite(msgspec.Struct, frozen=True, kw_only=True):
    """A change that a conversion makes by itself: of what, the module that does it, and to what.

    ``onnx`` is the operator that stands in a ready graph in its place, where there is one: there it is too
    late for the change.
    """

    operator: str
    module: str
    becomes: str
    onnx: str = ""


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """One operator of ONNX.

    ``limits`` says which settings or types are refused; ``since`` is the first TensorRT that has it, where
    that is later than :data:`OLDEST`; ``tried``: built here, not only documented.
    """

    name: str
    verdict: Verdict
    limits: str = ""
    advice: str = ""
    since: str = OLDEST
    tried: bool = False


_AFTER = "leave it out of the exported forward and do it after the model"
_FLOAT = "use explicit Q/DQ pairs around the float operator"
_WHERE = "use torch.where or arithmetic in its place"
_RANDOM = "take the random part out of inference"
_STACK = "stack tensors, not Python lists of an unknown length"
_INDEX = "index tensors, not sequences"
_LOSS = "leave the loss out of the exported forward"

REFUSED: dict[str, str] = {
    "AffineGrid": "compute the grid once and store it as a buffer",
    "Bernoulli": _RANDOM,
    "BitShift": "use multiplication or division by powers of two",
    "BitwiseAnd": _WHERE,
    "BitwiseNot": _WHERE,
    "BitwiseOr": _WHERE,
    "BitwiseXor": _WHERE,
    "CenterCropPad": "use Slice and Pad with fixed sizes",
    "Col2Im": "use ConvTranspose with an identity weight (as a conversion makes of torch.nn.Fold)",
    "Compress": "use Gather with fixed indices, or Where and a mask",
    "ConcatFromSequence": _STACK,
    "ConvInteger": _FLOAT,
    "CumProd": "use CumSum of logarithms, or do it after the model",
    "DFT": "write the transform as a matrix product with constant cosines and sines",
    "Det": "write the determinant out, or do it after the model",
    "DynamicQuantizeLinear": _FLOAT,
    "ImageDecoder": "decode pictures before the model",
    "MatMulInteger": _FLOAT,
    "MaxRoiPool": "use RoiAlign, or sample by GridSample on a fixed number of regions",
    "MaxUnpool": "use Resize or ConvTranspose",
    "MelWeightMatrix": "compute the matrix once and store it as a buffer",
    "Multinomial": _RANDOM,
    "NegativeLogLikelihoodLoss": _LOSS,
    "Optional": "give the tensor itself",
    "OptionalGetElement": "give the tensor itself",
    "OptionalHasElement": "give the tensor itself",
    "QGemm": _FLOAT,
    "QLinearAdd": _FLOAT,
    "QLinearConv": _FLOAT,
    "QLinearMatMul": _FLOAT,
    "RandomNormal": _RANDOM,
    "RandomNormalLike": _RANDOM,
    "RegexFullMatch": _AFTER,
    "SequenceAt": _INDEX,
    "SequenceConstruct": _STACK,
    "SequenceEmpty": _STACK,
    "SequenceErase": _INDEX,
    "SequenceInsert": _STACK,
    "SequenceLength": "use the tensor's shape",
    "SequenceMap": "write the step on one stacked tensor",
    "SoftmaxCrossEntropyLoss": _LOSS,
    "SplitToSequence": "use Split with fixed sizes",
    "StringConcat": _AFTER,
    "StringNormalizer": _AFTER,
    "StringSplit": _AFTER,
    "TfIdfVectorizer": _AFTER,
    "Unique": _AFTER,
}
# The integer operators are what other quantizers write, and have a rule of their own.
INTEGER = frozenset(
    {
        "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QGemm", "QLinearAdd", "QLinearConv",
        "QLinearMatMul",
    }
)  # fmt: skip
# What is refused of an operator that is taken otherwise, and what to do.
LIMITS: dict[str, tuple[str, str]] = {
    "Add": ("uint8 tensors", "cast to float first"),
    "Attention": ("4-D float32 heads without a fused kernel", "leave attention as MatMul and Softmax"),
    "Cast": ("casts to int16, uint16, uint32, uint64 and FP8", "cast to int32, int64 or float"),
    "CumSum": ("an axis that is computed", "give the axis as a constant"),
    "DequantizeLinear": ("int32, uint8 and 16-bit integers, zero points other than 0", "see the lint rules"),
    "GridSample": ("5-D tensors before TensorRT 10.15", "sample slice by slice"),
    "If": ("branches of different rank", "give both branches one shape"),
    "MatMul": ("integer tensors", "cast to float first"),
    "MaxPool": ("dilations other than 1, the output of indices", "use slices and Max; no return_indices"),
    "NonMaxSuppression": (
        "nothing in TensorRT, but its output's length depends on the image: no CUDA graph, no fixed memory",
        'leave it out and set nms.where = "graph": static suppression',
    ),
    "NonZero": (
        "nothing in TensorRT, but its output's length depends on the image: no CUDA graph, no fixed memory",
        "use torch.where with a mask, or TopK with a fixed number",
    ),
    "QuantizeLinear": ("uint8 and 16-bit integers, zero points other than 0", "see the lint rules"),
    "ReduceMax": ("bool tensors", "cast to int32 first"),
    "ReduceMin": ("bool tensors", "cast to int32 first"),
    "Resize": (
        "antialias, keep_aspect_ratio_policy, tf_crop_and_resize and half_pixel_symmetric",
        "export with antialias=False; half_pixel or align_corners; give the sizes themselves",
    ),
    "ScatterElements": ("a reduction other than none", "use a one-hot matrix product or a sum of masks"),
    "ScatterND": ("a reduction other than none", "use a one-hot matrix product or a sum of masks"),
    "Slice": ("fewer starts than axes where axes are left out", "name the axes"),
    "TopK": ("k above 3840", "lower the number of candidates (nms.candidates)"),
    "Transpose": ("uint8 tensors", "cast to float first"),
}  # fmt: skip
SINCE: dict[str, str] = {
    "Attention": "10.15", "RMSNormalization": "10.15", "RotaryEmbedding": "10.15", "STFT": "10.15",
    "BlackmanWindow": "10.15", "HammingWindow": "10.15", "HannWindow": "10.15", "Swish": "10.15",
}  # fmt: skip
_NEWER = "write it with basic operators (export at opset 20 or lower), or take a later JetPack"
_TAKEN_NAMES = (
    "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization "
    "BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh "
    "CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike "
    "Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
    "Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish "
    "Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less "
    "LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean "
    "MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow "
    "QuantizeLinear RMSNormalization RNN RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 "
    "ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu "
    "Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scan ScatterElements ScatterND Selu "
    "Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze "
    "Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor"
)
TAKEN = frozenset(_TAKEN_NAMES.split())
# Built one by one; what stands in TAKEN beside them is documented.
_TRIED_NAMES = (
    "Add ArgMax Attention AveragePool BatchNormalization Cast Celu Clip Constant Conv ConvTranspose CumSum "
    "DepthToSpace DequantizeLinear Dropout Einsum Erf EyeLike GRU GatherElements GatherND Gelu "
    "GlobalAveragePool GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity If "
    "InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LogSoftmax Loop LpNormalization MatMul "
    "MaxPool Mish Mod OneHot PRelu Pad QuantizeLinear RMSNormalization RandomUniformLike ReduceL2 "
    "ReduceLogSumExp ReduceMax Reshape Resize ReverseSequence RotaryEmbedding Round STFT Scan "
    "ScatterElements ScatterND Shrink Sign Softmax Softplus SpaceToDepth Squeeze Swish TopK Trilu Upsample "
    "Where AffineGrid Bernoulli BitShift BitwiseAnd CenterCropPad Col2Im Compress ConcatFromSequence "
    "ConvInteger CumProd DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger MaxUnpool QLinearConv "
    "SplitToSequence StringNormalizer Unique"
)
TRIED = frozenset(_TRIED_NAMES.split())
REWRITES: tuple[Rewrite, ...] = (
    Rewrite(
        operator="BatchNormalization",
        module="edgesmith.converters.passes.fold_batchnorm",
        becomes="the weight and bias of the layer before it",
    ),
    Rewrite(
        operator="torchvision.ops.nms",
        module="edgesmith.converters.adapters.nms_graph",
        becomes='a fixed number of matrix products (nms.where = "graph"), or the runtime\'s own suppression',
    ),
    Rewrite(
        operator="torchvision.ops.roi_align",
        module="edgesmith.converters.adapters.torchvision.roi_align",
        becomes="GridSample on a fixed number of regions (torchvision's two-stage detectors)",
        onnx="RoiAlign",
    ),
    Rewrite(
        operator="torch.cummax, torch.cummin",
        module="edgesmith.converters.rewrites.running",
        becomes="log-step shifted maxima of slices, the same to the bit; a flip before and after goes away",
    ),
    Rewrite(
        operator="torch.cumprod",
        module="edgesmith.converters.rewrites.pooling",
        becomes="log-step shifted products of slices",
        onnx="CumProd",
    ),
    Rewrite(
        operator="max_pool2d with dilation",
        module="edgesmith.converters.rewrites.pooling",
        becomes="maxima of strided slices, the same to the bit",
        onnx="MaxPool",
    ),
    Rewrite(
        operator="adaptive_max_pool2d",
        module="edgesmith.converters.rewrites.pooling",
        becomes="a maximum of each window, the same to the bit, where the sides do not divide",
    ),
    Rewrite(
        operator="torch.nn.Fold (Col2Im)",
        module="edgesmith.converters.rewrites.folding",
        becomes="a ConvTranspose with an identity weight",
        onnx="Col2Im",
    ),
    Rewrite(
        operator="interpolate(antialias=True)",
        module="edgesmith.converters.rewrites.folding",
        becomes="two matrix products with constant weights, where the size is fixed",
        onnx="Resize",
    ),
)


def operator(name: str) -> Operator | None:
    """What is known of an operator of ONNX's own domain, None where nothing is."""
    tried = name in TRIED
    if name in REFUSED:
        return Operator(name=name, verdict="refused", advice=REFUSED[name], tried=tried)
    if name not in TAKEN:
        return None
    limits, advice = LIMITS.get(name, ("", ""))
    since = SINCE.get(name, OLDEST)
    if since != OLDEST and not advice:
        advice = _NEWER
    return Operator(
        name=name,
        verdict="limits" if limits else "taken",
        limits=limits,
        advice=advice,
        since=since,
        tried=tried,
    )


def every_operator() -> list[Operator]:
    """The table, by name."""
    found = (operator(name) for name in sorted(TAKEN | REFUSED.keys()))
    return [one for one in found if one is not None]


def rewrite_of(name: str) -> Rewrite | None:
    """What a conversion that starts from PyTorch makes of an operator that a ready graph has."""
    return next((one for one in REWRITES if one.onnx == name), None)


def at_least(version: str, needed: str) -> bool:
    """Whether a TensorRT version such as ``10.16.2`` is that needed or later."""

    def parts(text: str) -> list[int]:
        return [int(part) for part in text.split(".")[:2] if part.isdecimal()]

    return parts(version) >= parts(needed)


def tensorrt_of(device: DeviceProfile) -> str:
    """The oldest TensorRT that a device runs bundles with.

    Raises:
        DeviceProfileError: it runs none.
    """
    if device.unsupported is not None:
        raise DeviceProfileError(f"{device.title} cannot run a bundle on TensorRT: {device.unsupported}")
    versions = [entry.tensorrt for entry in device.software]
    fit = [text for text in versions if int(text.partition(".")[0]) >= _LEAST_MAJOR]
    return fit[0] if fit else OLDEST
