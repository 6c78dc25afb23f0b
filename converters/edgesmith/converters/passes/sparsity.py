"""2:4 sparsity in a finished graph: which layers have it, in float or in INT8."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.calibration.sites import MODULE_KEY, WEIGHTED
from edgesmith.sdk.errors import ExportError

FOUR, KEPT = 4, 2


def has_pattern(weight: NDArray[np.generic], axis: int = 1) -> bool:
    """Whether of every four weights along an axis two at least are zero."""
    if weight.shape[axis] % FOUR:
        return False
    last = np.moveaxis(weight, axis, -1)
    return bool(((last.reshape(-1, FOUR) != 0).sum(1) <= KEPT).all())


def sparse_layers(graph: onnx.ModelProto) -> list[str]:
    """Module paths (else node names) of the layers whose input channels have the pattern."""
    model = ir.serde.deserialize_model(graph)
    return [
        node.metadata_props.get(MODULE_KEY) or node.name or ""
        for node, weight, reach in _weights(model)
        if has_pattern(weight, reach)
    ]


def require_sparse(graph: onnx.ModelProto, layers: list[str]) -> None:
    """Refuse a graph in which a layer lost the pattern that it was trained with.

    Args:
        graph: any variant.
        layers: module paths.

    Raises:
        ExportError: names the layers.
    """
    lost = sorted(set(layers) - set(sparse_layers(graph)))
    if lost:
        raise ExportError(
            f"2:4 sparsity is lost in {len(lost)} layers of the exported graph ({', '.join(lost[:6])}): a "
            "step changed their weights; list them in prune.untouched, or take prune.sparsity out"
        )


def _weights(model: ir.Model) -> Iterator[tuple[ir.Node, NDArray[np.generic], int]]:
    """Layers with constant weights, also behind a DequantizeLinear, and their axis of input channels."""
    for node in model.graph:
        if node.op_type not in WEIGHTED or len(node.inputs) < 2 or node.inputs[1] is None:
            continue
        value = node.inputs[1]
        maker = value.producer()
        while (
            maker is not None
            and maker.op_type in ("DequantizeLinear", "Cast")
            and maker.inputs[0] is not None
        ):
            value = maker.inputs[0]
            maker = value.producer()
        if value.const_value is None:
            continue
        weight = value.const_value.numpy()
        if node.op_type == "Conv":
            if node.attributes.get_int("group", 1) == 1:
                yield node, weight, 1
        elif weight.ndim >= 2:
            turned = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
            yield node, weight, 1 if turned else weight.ndim - 2
