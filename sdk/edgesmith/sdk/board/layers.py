"""What a graph computes and moves, layer by layer, as an engine would fuse it.

A layer is one operator together with the elementwise operators after it: an engine computes those
before it writes the result. Operators that only rename memory (Reshape), and the marks of
quantization, cost nothing and vanish.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from edgesmith.sdk.errors import BundleError, ConfigError
from edgesmith.sdk.onnx_reader import Node, Outline

FLOATS = frozenset({"float32", "float16", "bfloat16"})
ITEM_BYTES = {
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
_VIEWS = frozenset(
    {
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Dropout",
        "QuantizeLinear",
        "DequantizeLinear",
    }
)
_CONSTANT = frozenset({"Constant", "ConstantOfShape", "Shape", "Range"})
_MATRIX = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_POINTWISE = frozenset(
    {
        "Abs", "Add", "And", "BatchNormalization", "Cast", "Ceil", "Clip", "Div", "Elu", "Equal", "Erf",
        "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "LeakyRelu",
        "Less", "LessOrEqual", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
        "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Tanh",
        "Where",
    }
)  # fmt: skip
_POOLS = frozenset({"MaxPool", "AveragePool"})
_REDUCTIONS = frozenset(
    {
        "ArgMax", "ArgMin", "GlobalAveragePool", "GlobalMaxPool", "ReduceL2", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    }
)  # fmt: skip
_SOFTMAX = {"Softmax": 5, "LogSoftmax": 5, "InstanceNormalization": 7, "LayerNormalization": 7}
_PARTS = frozenset({"Slice", "Split", "Gather", "GatherElements", "GatherND"})
# They hand values on as they are, so a tensor of 8-bit integers stays one.
_COPIES = _PARTS | {"Concat", "Transpose", "Pad", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "MaxPool"}
_KNOWN = _MATRIX | _POINTWISE | _POOLS | _REDUCTIONS | _SOFTMAX.keys() | _COPIES | {"Resize"}


class Tensor(msgspec.Struct, frozen=True):
    """A tensor between layers: how many values, and their type in the file."""

    elements: int
    dtype: str


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer.

    Attributes:
        name: the first node's name.
        operators: the ONNX operators in it, in order.
        macs: multiply-accumulates of its convolution or matrix product, 0 without one.
        other: all other arithmetic operations.
        reach, width: input and output channels of a group of the matrix arithmetic, 0 without one.
        depthwise: a convolution in which each output channel reads one input channel.
        weighted: its matrix arithmetic has a constant weight, so that it can be quantized.
        quantized: both that weight and its activation come out of a DequantizeLinear.
        copies: it hands on values as they are.
        uncounted: the operators whose arithmetic is not known; ``other`` leaves it out.
        reads: values read of each activation. ``weights``: values of each constant.
        writes: activations that later layers or the caller read.
    """

    name: str
    operators: tuple[str, ...]
    macs: int
    other: int
    reach: int
    width: int
    depthwise: bool
    weighted: bool
    quantized: bool
    copies: bool
    uncounted: tuple[str, ...]
    reads: dict[str, int]
    weights: dict[str, int]
    writes: tuple[str, ...]


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """The layers in an order in which they can run, and the tensors by name.

    ``outer`` are inputs and outputs of the graph with the type that the caller sees.
    """

    layers: tuple[Layer, ...]
    tensors: dict[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    outer: dict[str, str]


def network_of(outline: Outline, batch: int, where: str) -> Network:
    """Fuse a graph's nodes into layers.

    Args:
        outline: the graph; it must state the shape of every tensor.
        batch: the size of a first axis that varies.
        where: what messages call the graph.

    Raises:
        BundleError: the shape of a tensor is not stated.
        ConfigError: an axis other than the first varies.
    """
    return _Fusion(outline, batch, where).network()


class _Fusion:
    def __init__(self, outline: Outline, batch: int, where: str) -> None:
        self.outline, self.batch, self.where = outline, batch, where
        self.root: dict[str, str] = {}
        self.constants = set(outline.weights)
        self.dequantized: set[str] = set()
        self.made_by: dict[str, int] = {}  # tensor: index of its layer
        self.parts: list[list[Node]] = []

    def network(self) -> Network:
        for node in self.outline.nodes:
            self._take(node)
        read_by = self._readers()
        layers = tuple(self._layer(index, read_by) for index in range(len(self.parts)))
        inputs = tuple(v.name for v in self.outline.inputs)
        outputs = tuple(self.rooted(v.name) for v in self.outline.outputs)
        names = {*inputs, *outputs, *(n for layer in layers for n in (*layer.reads, *layer.writes))}
        outer = {self.rooted(v.name): v.dtype for v in (*self.outline.outputs, *self.outline.inputs)}
        tensors = {n: Tensor(self.elements(n), self.dtype(n)) for n in sorted(names)}
        return Network(layers=layers, tensors=tensors, inputs=inputs, outputs=outputs, outer=outer)

    def rooted(self, name: str) -> str:
        return self.root.get(name, name)

    def shape(self, name: str) -> tuple[int, ...]:
        value = self.outline.values.get(name)
        if value is None:
            raise BundleError(
                f"{self.where} does not state the shape of tensor {name!r}; convert the model again"
            )
        sizes = tuple(self.batch if n < 0 and axis == 0 else n for axis, n in enumerate(value.shape))
        if min(sizes, default=1) < 0:
            raise ConfigError(
                f"{self.where}: the size of tensor {name!r} varies, so there is nothing to count; "
                "convert the model with a fixed size (size in the recipe's [input])"
            )
        return sizes

    def elements(self, name: str) -> int:
        return math.prod(self.shape(name))

    def dtype(self, name: str) -> str:
        return self.outline.values[name].dtype

    def _take(self, node: Node) -> None:
        """Add a node to the layer that it belongs to."""
        inputs = [self.rooted(n) for n in node.inputs if n]
        outputs = [n for n in node.outputs if n]
        if node.operator in _CONSTANT or (inputs and all(n in self.constants for n in inputs)):
            if node.operator == "DequantizeLinear":  # a weight: its integers are what is stored
                self.root[outputs[0]] = inputs[0]
                self.dequantized.update(outputs)
            else:
                self.constants.update(outputs)
            return
        if node.operator in _VIEWS or self._renames(node):
            self.root[outputs[0]] = inputs[0]
            if node.operator == "DequantizeLinear":
                self.dequantized.update(outputs)
            return
        makers = [self.made_by[n] for n in inputs if n in self.made_by]
        # The latest maker: all that the node reads is there when that layer runs.
        if node.operator in _POINTWISE and not node.domain and makers:
            index = max(makers)
            self.parts[index].append(node)
        else:
            index = len(self.parts)
            self.parts.append([node])
        self.made_by.update(dict.fromkeys(outputs, index))

    def _renames(self, node: Node) -> bool:
        """A cast between floats: an engine has no tensor of each, it computes in the one it was built for."""
        if node.operator != "Cast":
            return False
        kinds = [self.outline.values.get(n) for n in (node.inputs[0], node.outputs[0])]
        return all(kind is not None and kind.dtype in FLOATS for kind in kinds)

    def _readers(self) -> dict[str, set[int]]:
        """For each tensor the layers that read it; -1 is the caller."""
        read_by: dict[str, set[int]] = {}
        for index, nodes in enumerate(self.parts):
            for node in nodes:
                for name in node.inputs:
                    read_by.setdefault(self.rooted(name), set()).add(index)
        for value in self.outline.outputs:
            read_by.setdefault(self.rooted(value.name), set()).add(-1)
        return read_by

    def _layer(self, index: int, read_by: Mapping[str, set[int]]) -> Layer:
        nodes = self.parts[index]
        first = nodes[0]
        reads: dict[str, int] = {}
        weights: dict[str, int] = {}
        for node in nodes:
            for name in (self.rooted(n) for n in node.inputs if n):
                if name in self.constants:
                    if name in self.outline.values and self.dtype(name) in FLOATS | {"int8", "uint8"}:
                        weights[name] = self.elements(name)
                elif self.made_by.get(name) != index:
                    part = node.operator in _PARTS and name == self.rooted(node.inputs[0])
                    size = min(self.elements(name), self._made(node)) if part else self.elements(name)
                    reads[name] = max(reads.get(name, 0), size)
        made = [n for node in nodes for n in node.outputs if n]
        macs, reach, width = self._matrix(first) if first.operator in _MATRIX else (0, 0, 0)
        weighted = macs > 0 and self.rooted(first.inputs[1]) in self.constants
        return Layer(
            name=first.name or made[0],
            operators=tuple(node.operator for node in nodes),
            macs=macs,
            other=sum(self._other(node) for node in nodes),
            reach=reach,
            width=width,
            depthwise=first.operator == "Conv" and reach == 1 and first.attributes.get("group", (1,))[0] > 1,
            weighted=weighted,
            quantized=weighted and all(n in self.dequantized for n in first.inputs[:2]),
            copies=all(node.operator in _COPIES for node in nodes),
            uncounted=tuple(n.operator for n in nodes if n.operator not in _KNOWN or n.domain),
            reads=reads,
            weights=weights,
            writes=tuple(n for n in made if read_by.get(n, set()) - {index}),
        )

    def _made(self, node: Node) -> int:
        return sum(self.elements(n) for n in node.outputs if n)

    def _matrix(self, node: Node) -> tuple[int, int, int]:
        """Multiply-accumulates, and the channels that a group reads and makes."""
        weight, out = self.shape(node.inputs[1]), self.shape(node.outputs[0])
        group = node.attributes.get("group", (1,))[0]
        if node.operator == "Conv":
            return math.prod(out) * math.prod(weight[1:]), weight[1], weight[0] // group
        if node.operator == "ConvTranspose":
            given = math.prod(self.shape(node.inputs[0]))
            return given * math.prod(weight[1:]), weight[0] // group, weight[1]
        if node.operator == "Gemm" and node.attributes.get("transB", (0,))[0]:
            weight = weight[::-1]
        inner = weight[-2] if len(weight) > 1 else weight[0]
        return math.prod(out) * inner, inner, weight[-1] if len(weight) > 1 else 1

    def _other(self, node: Node) -> int:
        """Arithmetic beside matrices: one operation a value made, or a value read by a reduction."""
        if node.operator in _POINTWISE or node.operator == "Resize":
            return self._made(node)
        if node.operator in _POOLS:
            return self._made(node) * math.prod(node.attributes.get("kernel_shape", (1,)))
        if node.operator in _REDUCTIONS:
            return self.elements(node.inputs[0])
        return self._made(node) * _SOFTMAX.get(node.operator, 0)
