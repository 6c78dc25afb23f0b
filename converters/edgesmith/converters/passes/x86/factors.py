"""Factors by channel: into the weights of the layer that makes the tensor, else a product in front of its Q.

Q(w / f) and b / f: the scale of each output channel's weights takes the factor, the integers stay.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesmith.converters.passes.x86.activations import quantize_silu, silu_of
from edgesmith.converters.passes.x86.draft import LEAST_RANGE, Draft, only_reader
from edgesmith.converters.passes.x86.spread import reads_integers

LEAST_FACTOR = 1e-4  # of the largest: a channel that hardly moves is not blown up


def explicit_factors(draft: Draft) -> None:
    """Every tensor with a factor becomes one that is divided by it already."""
    for value, factor in list(draft.factors.items()):
        others = [(user, index) for user, index in value.uses() if user not in draft.layers or index]
        maker = value.producer()
        silu = silu_of(draft, maker) if maker is not None else None
        if silu is not None and silu.linear.name not in draft.ranges:
            silu = None
        layer = _folds_into(draft, value)
        if value.is_graph_output() or (silu is None and layer is None):
            divided = draft.times_float(value, 1 / factor, f"{value.name}/divided")
            draft.grids[divided] = draft.grids.pop(value)
            for reader in [n for n, read in draft.layers.items() if read is value]:
                reader.replace_input_with(0, divided)
                draft.layers[reader] = divided
            draft.apart.add(value)
        else:
            if silu is not None:
                quantize_silu(draft, silu)
            elif layer is not None:
                draft.divide(layer, factor)
            if layer is None or value is not layer.outputs[0]:
                draft.note_divided(value, factor)
            if others:
                times = draft.times if any(reads_integers(draft, n) for n, _ in others) else draft.times_float
                whole = times(value, factor, f"{value.name}/whole")
                for user, index in others:
                    user.replace_input_with(index, whole)
    draft.factors.clear()


def _folds_into(draft: Draft, value: ir.Value) -> ir.Node | None:
    """The convolution whose weights take the factor: the tensor's maker, or that of a LeakyReLU's input."""
    maker = value.producer()
    if maker is not None and maker.op_type == "LeakyRelu":
        inner = maker.inputs[0]
        if inner is None or not only_reader(inner, maker) or inner.name not in draft.ranges:
            return None
        maker = inner.producer()
    return maker if maker is not None and maker in draft.layers and maker.op_type == "Conv" else None


def fill_channels(draft: Draft) -> None:
    """What a layer makes for float operators alone fills its integers in every channel.

    The product with the factor stands behind the DQ, in float.
    """
    for layer in list(draft.layers):
        result = layer.outputs[0]
        found = draft.ranges.get(result.name or "")
        if found is None or layer.op_type != "Conv" or result in draft.grids or result.is_graph_output():
            continue
        readers = result.uses()
        if any(reads_integers(draft, user) for user, _ in readers):
            continue
        reach = np.maximum(np.maximum(found.high, -found.low), LEAST_RANGE)
        factor = np.maximum(reach, reach.max() * LEAST_FACTOR)
        draft.divide(layer, factor)
        draft.give(layer, result)
        whole = draft.times_float(result, factor, f"{result.name}/whole")
        for user, index in readers:
            user.replace_input_with(index, whole)
