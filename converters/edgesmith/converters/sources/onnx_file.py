"""``onnx``: a ready graph, checked, and brought into the window of opsets that every device takes."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import version_converter

from edgesmith.converters.recipe import Recipe
from edgesmith.converters.sources.base import Loaded, sha256_of
from edgesmith.sdk.errors import SourceError, UnsupportedOperatorError

# Opsets that TensorRT 10.3 to 11 and the supported onnxruntimes all take.
OPSETS = (19, 20)
OPSET = 20
MAX_BYTES = (2 << 30) - (64 << 20)


def load(recipe: Recipe) -> Loaded:
    """Read and check a graph; external data beside it is read in.

    Raises:
        SourceError: the file is no sound ONNX graph, or its opset cannot be converted.
        UnsupportedOperatorError: operators of another domain than ONNX's own.
    """
    assert recipe.model.onnx is not None
    path = recipe.resolve(recipe.model.onnx)
    model = read_graph(path)
    foreign = [n for n in model.graph.node if n.domain not in ("", "ai.onnx")]
    if foreign:
        node = foreign[0]
        raise UnsupportedOperatorError(
            f"{path}: node {node.name or node.output[0]} is {node.domain}.{node.op_type}, which only its own "
            f"runtime knows ({len(foreign)} such nodes); export the model with standard ONNX operators",
            operator=f"{node.domain}.{node.op_type}",
        )
    notes: list[str] = []
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        try:
            model = version_converter.convert_version(model, OPSET)
        except RuntimeError as error:
            raise SourceError(
                f"{path}: has opset {opset} and cannot be converted to {OPSET} "
                f"({str(error).strip().splitlines()[0]}); export it again with opset_version={OPSET}"
            ) from error
        notes.append(f"{path.name}: opset {opset} converted to {OPSET}")
    return Loaded(
        kind="onnx", name=f"onnx {path.name}", sha256=sha256_of(path), model=model, notes=tuple(notes)
    )


def read_graph(path: Path) -> onnx.ModelProto:
    """A checked graph with its external data read in."""
    try:
        model = onnx.load(path)
    except OSError as error:
        missing = error.filename or error
        raise SourceError(f"{path}: cannot be read, or its external data is missing: {missing}") from error
    except Exception as error:
        # protobuf's DecodeError, and onnx's own ValidationError for a bad external data path
        raise SourceError(f"{path}: not a sound ONNX file: {str(error).strip().splitlines()[0]}") from error
    if model.ByteSize() > MAX_BYTES:
        raise SourceError(f"{path}: {model.ByteSize():,} bytes; graphs of 2 GiB and more are not converted")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise SourceError(f"{path}: fails ONNX's own check: {str(error).strip().splitlines()[0]}") from error
    return model
