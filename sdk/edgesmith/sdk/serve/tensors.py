"""Requests and answers of the Open Inference Protocol, version 2, with its binary tensor extension.

A body is JSON, or, with the header ``Inference-Header-Content-Length: N``, N bytes of JSON followed by the
raw little-endian bytes of each tensor whose parameters have ``binary_data_size``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.manifest import Manifest, TensorSpec
from edgesmith.sdk.serve.refusal import Refusal

Array = NDArray[Any]
_DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
_DTYPES = {datatype: np.dtype(name) for name, datatype in _DATATYPES.items()}
Side = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Name = Annotated[str, msgspec.Meta(max_length=256)]
Parameters = dict[str, bool | int | float | str | None]


class InputTensor(msgspec.Struct, frozen=True):
    """One input: its values are in ``data``, or in the binary part."""

    name: Name
    shape: Annotated[list[Side], msgspec.Meta(max_length=8)]
    datatype: Name
    data: msgspec.Raw = msgspec.Raw()
    parameters: Parameters = {}


class OutputTensor(msgspec.Struct, frozen=True):
    """One output that is asked for."""

    name: Name
    parameters: Parameters = {}


class InferRequest(msgspec.Struct, frozen=True):
    """The JSON of an inference request; without ``outputs`` all of them are asked for."""

    inputs: Annotated[list[InputTensor], msgspec.Meta(max_length=64)]
    outputs: Annotated[list[OutputTensor], msgspec.Meta(max_length=64)] | None = None
    id: Name = ""
    parameters: Parameters = {}


def datatype_of(dtype: str) -> str:
    """The protocol's name of a numpy type; the name itself where it has none."""
    return _DATATYPES.get(dtype, dtype.upper())


def metadata_of(spec: TensorSpec) -> dict[str, Any]:
    """Name, datatype and shape of a tensor; axes that vary are -1."""
    shape = [side if isinstance(side, int) else -1 for side in spec.shape]
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": shape}


def parsed(body: bytes, header_length: str | None) -> tuple[InferRequest, memoryview]:
    """The request, and its binary part.

    Raises:
        Refusal: 400, one of them is not what the protocol says.
    """
    length = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length) > len(body):
            raise Refusal(400, f"Inference-Header-Content-Length must be 0 to the body's {len(body):,} bytes")
        length = int(header_length)
    try:
        request = msgspec.json.decode(memoryview(body)[:length], type=InferRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"the request is not that of an inference: {error}") from error
    return request, memoryview(body)[length:]


def input_of(request: InferRequest, binary: memoryview, manifest: Manifest, most: int) -> Array:
    """The model's one input, ``(n, ...)`` of up to ``most`` rows.

    Raises:
        Refusal: 400, it is another one, or does not fit the model.
    """
    arrays = _arrays(request.inputs, binary)
    spec = manifest.inputs[0]
    if list(arrays) != [spec.name]:
        got = ", ".join(arrays) or "none"
        raise Refusal(400, f"the model has the one input {spec.name!r}; the request has {got}")
    rows = arrays[spec.name]
    wanted = metadata_of(spec)
    if rows.dtype != np.dtype(spec.dtype):
        raise Refusal(400, f"{spec.name} is {wanted['datatype']}, not {datatype_of(rows.dtype.name)}")
    sides = wanted["shape"][1:]
    fits = rows.ndim == 1 + len(sides) and all(
        side in (-1, given) for side, given in zip(sides, rows.shape[1:], strict=False)
    )
    if not fits or not rows.size:
        raise Refusal(400, f"{spec.name} has shape {list(rows.shape)}; the model takes {wanted['shape']}")
    if len(rows) > most:
        raise Refusal(400, f"{spec.name} has {len(rows)} rows; the model takes up to {most}")
    return rows


def asked_outputs(request: InferRequest, manifest: Manifest) -> list[OutputTensor]:
    """The outputs that are asked for.

    Raises:
        Refusal: 400, the model has no such output, or it is asked for in a form that is not offered.
    """
    known = [spec.name for spec in manifest.outputs]
    asked = request.outputs or [OutputTensor(name=name) for name in known]
    for output in asked:
        if output.name not in known:
            raise Refusal(400, f"the model has no output {output.name!r}; there are {', '.join(known)}")
        for name in output.parameters:
            if name not in ("binary_data",):
                raise Refusal(400, f"output {output.name}: the parameter {name!r} is not offered here")
    if len({output.name for output in asked}) != len(asked):
        raise Refusal(400, "an output is asked for twice")
    return asked


def answer(
    request: InferRequest,
    asked: Sequence[OutputTensor],
    values: Mapping[str, Array],
    *,
    model: str,
    version: str,
) -> tuple[bytes, int | None]:
    """The answer's body; and the length of its JSON, where a binary part follows."""
    outputs, parts = [], []
    everything = bool(request.parameters.get("binary_data_output", False))
    for output in asked:
        value = np.ascontiguousarray(values[output.name])
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": datatype_of(value.dtype.name),
            "shape": list(value.shape),
        }
        if output.parameters.get("binary_data", everything):
            entry["parameters"] = {"binary_data_size": value.nbytes}
            parts.append(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
        else:
            entry["data"] = value.ravel().tolist()
        outputs.append(entry)
    head: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if request.id:
        head["id"] = request.id
    text = msgspec.json.encode(head)
    return (text + b"".join(parts), len(text)) if parts else (text, None)


def _arrays(inputs: Sequence[InputTensor], binary: memoryview) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    at = 0
    for tensor in inputs:
        dtype = _DTYPES.get(tensor.datatype)
        if dtype is None:
            raise Refusal(400, f"{tensor.name}: datatype {tensor.datatype!r} is not taken here")
        if tensor.name in arrays:
            raise Refusal(400, f"{tensor.name} is given twice")
        size = tensor.parameters.get("binary_data_size")
        count = math.prod(tensor.shape)
        if size is None:
            arrays[tensor.name] = _from_json(tensor, dtype, count)
            continue
        if type(size) is not int or size != count * dtype.itemsize:
            need = f"shape {tensor.shape} of {tensor.datatype} has {count * dtype.itemsize:,} bytes"
            raise Refusal(400, f"{tensor.name}: binary_data_size is {size}, and {need}")
        part = binary[at : at + size]
        if len(part) != size:
            raise Refusal(400, f"{tensor.name}: the binary part ends early, {size:,} bytes were announced")
        values = np.frombuffer(part, dtype.newbyteorder("<")).astype(dtype, copy=False)
        arrays[tensor.name] = values.reshape(tensor.shape)
        at += size
    if at != len(binary):
        raise Refusal(400, f"the binary part has {len(binary) - at:,} bytes that no input announces")
    return arrays


def _from_json(tensor: InputTensor, dtype: np.dtype[Any], count: int) -> Array:
    if not bytes(tensor.data):
        raise Refusal(400, f"{tensor.name} has neither data nor binary_data_size")
    try:
        values = np.asarray(msgspec.json.decode(tensor.data))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Refusal(400, f"{tensor.name}: data is no tensor: {error}") from error
    if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and dtype.kind != "f"):
        raise Refusal(400, f"{tensor.name}: data does not consist of {tensor.datatype} values")
    if dtype.kind in "iu" and values.size and not _holds(values, dtype):
        raise Refusal(400, f"{tensor.name}: data has values outside {tensor.datatype}")
    if values.size != count:
        raise Refusal(400, f"{tensor.name}: data has {values.size:,} values, shape {tensor.shape} {count:,}")
    with np.errstate(over="ignore"):
        return values.astype(dtype).reshape(tensor.shape)


def _holds(values: Array, dtype: np.dtype[Any]) -> bool:
    limits = np.iinfo(dtype)
    return bool(int(values.min()) >= limits.min and int(values.max()) <= limits.max)
