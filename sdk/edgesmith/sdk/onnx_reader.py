"""Reads the outline of an ONNX file: nodes, inputs, outputs, types and shapes of all tensors.

The runtime side has no onnx package; an estimate and the fakes need no more than this of protocol
buffers' wire format.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# ONNX TensorProto.DataType by number: our name for it.
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 16: "bfloat16"
}  # fmt: skip


class Node(NamedTuple):
    """One node. ``attributes`` are those of integers; ``domain`` is empty for ONNX's own operators."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, tuple[int, ...]]
    domain: str = ""


class Value(NamedTuple):
    """A tensor; an axis of unknown size is -1."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Outline(NamedTuple):
    """A graph without its weights' values.

    ``weights`` holds their types by name, ``values`` every tensor whose shape the file states.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    weights: dict[str, str]
    values: dict[str, Value]


def read_outline(model: bytes) -> Outline:
    """The outline of a model's main graph.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    try:
        graphs = [value for field, value in _fields(model) if field == 7 and isinstance(value, bytes)]
        if len(graphs) != 1:
            raise ValueError("not an ONNX model: it has no graph")
        return _outline(graphs[0])
    except (IndexError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"not an ONNX model: {error}") from error


def _outline(graph: bytes) -> Outline:
    nodes: list[Node] = []
    inputs: list[Value] = []
    outputs: list[Value] = []
    weights: dict[str, str] = {}
    values: dict[str, Value] = {}
    for field, value in _fields(graph):
        if not isinstance(value, bytes):
            continue
        if field == 1:
            nodes.append(_node(value))
        elif field == 5:
            weight = _initializer(value)
            weights[weight.name] = weight.dtype
            values[weight.name] = weight
        elif field in (11, 12, 13):
            tensor, ranked = _value(value)
            if field != 13:
                (inputs if field == 11 else outputs).append(tensor)
            if ranked:
                values.setdefault(tensor.name, tensor)
    given = tuple(v for v in inputs if v.name not in weights)
    return Outline(tuple(nodes), given, tuple(outputs), weights, values)


def _node(data: bytes) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: [], 7: []}
    attributes: dict[str, tuple[int, ...]] = {}
    for field, value in _fields(data):
        if field in texts and isinstance(value, bytes):
            texts[field].append(value.decode())
        elif field == 5 and isinstance(value, bytes):
            name, numbers = _attribute(value)
            if numbers:
                attributes[name] = numbers
    domain = "".join(texts[7])
    return Node(
        "".join(texts[3]),
        "".join(texts[4]),
        tuple(texts[1]),
        tuple(texts[2]),
        attributes,
        "" if domain == "ai.onnx" else domain,
    )


def _attribute(data: bytes) -> tuple[str, tuple[int, ...]]:
    """Name and integers of an attribute; no integers where it is of another kind."""
    name = ""
    numbers: list[int] = []
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            name = value.decode()
        elif field in (3, 8):  # one integer, a list of them
            numbers += _integers(value)
    return name, tuple(numbers)


def _initializer(data: bytes) -> Value:
    name, kind = "", 0
    shape: list[int] = []
    for field, value in _fields(data):
        if field == 8 and isinstance(value, bytes):
            name = value.decode()
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field == 1:
            shape += _integers(value)
    return Value(name, DTYPES.get(kind, str(kind)), tuple(shape))


def _integers(value: int | bytes) -> list[int]:
    """A repeated integer field, which stands packed in one field or each for itself."""
    if isinstance(value, int):
        return [_signed(value)]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(_signed(number))
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _value(data: bytes) -> tuple[Value, bool]:
    """The tensor, and whether its shape is stated: a scalar has one, of no axes."""
    name, kind, shape, ranked = "", 0, [], False
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            name = value.decode()
        if field != 2 or not isinstance(value, bytes):
            continue
        for inner, tensor in _fields(value):
            if inner != 1 or not isinstance(tensor, bytes):
                continue
            for part, content in _fields(tensor):
                if part == 1 and isinstance(content, int):
                    kind = content
                elif part == 2 and isinstance(content, bytes):
                    ranked = True
                    shape = [
                        _axis(axis) for f, axis in _fields(content) if f == 1 and isinstance(axis, bytes)
                    ]
    return Value(name, DTYPES.get(kind, str(kind)), tuple(shape)), ranked


def _axis(data: bytes) -> int:
    return next((v for f, v in _fields(data) if f == 1 and isinstance(v, int)), -1)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one message: integers of varints, bytes of everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind, -1)
        if kind == 2:
            length, at = _varint(data, at)
        if length < 0 or at + length > len(data):
            raise ValueError("not an ONNX model: the file is cut off or of another kind")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("not an ONNX model: a number has too many digits")
