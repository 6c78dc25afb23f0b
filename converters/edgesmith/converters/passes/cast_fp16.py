"""The float part of a graph in FP16, written into the graph: TensorRT 11 knows no other way."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgesmith.calibration.scale_table import ScaleTable
from edgesmith.calibration.sites import MODULE_KEY
from edgesmith.converters.passes.base import Declined, Pass, PassResult
from edgesmith.converters.passes.fp16_range import LARGEST, Reasons, half_scale, half_weight, reasons
from edgesmith.sdk.errors import ExportError

FULL, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LEAST_OPSET = 19  # the first whose Q/DQ scales may be FP16
# An attribute, not the inputs, says which float type these make: a Cast behind them does the rest.
_TYPED = frozenset(
    {
        "Bernoulli", "BlackmanWindow", "ConstantOfShape", "EyeLike", "HammingWindow", "HannWindow",
        "MelWeightMatrix", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike",
    }
)  # fmt: skip


def largest_of(table: ScaleTable) -> dict[str, float]:
    """The largest magnitude of each tensor that calibration measured."""
    return {name: max(-a.low, a.high) for name, a in table.activations.items()}


class CastFp16(Pass):
    """Weights and float tensors to FP16; Casts only where a float32 part begins or ends.

    A Q/DQ pair takes the type of the tensor that it reads and of the layer that reads it, with the same
    (rounded) scale on both sides. Integers stay, but for channels of weights so small that FP16 cannot hold
    their scale (:func:`.fp16_range.half_weight`). What FP16 cannot hold stays in float32 and is listed in
    ``declined``: tensors and constants near the ends of the range, operators that leave it, and, with
    ``decode_in_float``, whatever follows the last weighted layers (box coordinates would lose up to half a
    pixel).

    Args:
        largest: largest magnitude by tensor name, where it was measured (:func:`largest_of`).
        keep: names of nodes that stay in float32.
        float_io: leave the graph's inputs and outputs float32; else they take the type of the nodes there.
        decode_in_float: keep what follows the last weighted layers in float32.
    """

    def __init__(
        self,
        largest: Mapping[str, float] | None = None,
        *,
        keep: Collection[str] = (),
        float_io: bool = True,
        decode_in_float: bool = True,
    ) -> None:
        self.largest = dict(largest or {})
        self.keep = frozenset(keep)
        self.float_io = float_io
        self.decode_in_float = decode_in_float

    def requires(self, model: ir.Model) -> None:
        """The opset allows FP16 scales."""
        opset = model.graph.opset_imports.get("", 0)
        if opset < LEAST_OPSET:
            raise ExportError(
                f"FP16 needs opset {LEAST_OPSET} or 20, and the graph is of {opset}: export anew"
            )

    def apply(self, model: ir.Model) -> PassResult:
        """Cast; a second run changes nothing."""
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        if any(v.dtype is None for node in model.graph for v in node.outputs if v.name):
            common.ShapeInferencePass()(model)
        kept = reasons(model.graph, self.largest, self.keep, decode=self.decode_in_float)
        caster = _Caster(model, kept, float_io=self.float_io)
        caster.run()
        declined = tuple(
            Declined(node.name or node.outputs[0].name or "", kept[node])
            for node in model.graph
            if node in kept and caster.could(node)
        )
        return PassResult(model, caster.changes, declined)

    def ensures(self, model: ir.Model) -> None:
        """ONNX's own typing rules hold: the plain checker and TensorRT's parser do not look."""
        proto = ir.to_proto(model)
        try:
            onnx.checker.check_model(proto, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"the FP16 graph is not valid: {str(error).strip()}") from error


class _Caster:
    """Goes through the nodes in order; when one is reached, what it reads has its final type."""

    def __init__(self, model: ir.Model, kept: Reasons, *, float_io: bool) -> None:
        self.graph = model.graph
        self.opset = model.graph.opset_imports[""]
        self.kept = kept
        self.float_io = float_io
        self.changes = 0
        self.versions: dict[tuple[int, ir.DataType], ir.Value] = {}
        self.names = {v.name for node in self.graph for v in node.outputs}
        self.names |= {v.name for v in self.graph.inputs} | set(self.graph.initializers)
        self.outputs = {id(v) for v in self.graph.outputs}

    def run(self) -> None:
        if not self.float_io:
            self._cast_inputs()
        for node in list(self.graph):
            if node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node)
            elif node.op_type != "Cast":
                self._node(node)
        self._align_scales()
        if self.float_io:
            self._cast_outputs()
        self._tidy_constants()

    def could(self, node: ir.Node) -> bool:
        """Whether a node has anything that FP16 could hold."""
        if node.domain not in ("", "ai.onnx") or node.op_type == "Cast":
            return False
        reads = [v for i, v in enumerate(node.inputs) if v is not None and self._allows(node, i, "inputs")]
        makes = [v for i, v in enumerate(node.outputs) if self._allows(node, i, "outputs")]
        return any(v.dtype in (FULL, HALF) for v in (*reads, *makes))

    def _node(self, node: ir.Node) -> None:
        half = node not in self.kept and node.op_type not in _TYPED
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (FULL, HALF):
                continue
            wanted = HALF if half and self._allows(node, index, "inputs") else FULL
            if value.dtype != wanted:
                node.replace_input_with(index, self._as(value, wanted, node))
        for inner in _inner_nodes(node):
            for index, value in enumerate(inner.inputs):
                if value is not None and value.graph is self.graph and value.dtype == HALF:
                    inner.replace_input_with(index, self._as(value, FULL, node))
        if not half:
            return
        for index, value in enumerate(node.outputs):
            if value.dtype == FULL and self._allows(node, index, "outputs"):
                value.dtype = HALF
                self.changes += 1

    def _quantize(self, node: ir.Node) -> None:
        value, scale = node.inputs[0], node.inputs[1]
        if value is not None and scale is not None and value.dtype != scale.dtype and value.dtype is not None:
            node.replace_input_with(1, self._as(scale, value.dtype, node, scale=True))

    def _dequantize(self, node: ir.Node) -> None:
        """The type that the readers want; where they differ, the float ones get a DQ of their own."""
        readers = [user for user, _ in node.outputs[0].uses()]
        wide = all(user in self.kept for user in readers) or (
            self.float_io and id(node.outputs[0]) in self.outputs
        )
        scale = node.inputs[1]
        if node in self.kept or wide or scale is None or scale.dtype != FULL:
            return
        integers = node.inputs[0]
        if integers is not None and integers.const_value is not None and scale.const_value is not None:
            self._requantize(node, integers, scale)
        else:
            node.replace_input_with(1, self._as(scale, HALF, node, scale=True))
        node.outputs[0].dtype = HALF
        self.changes += 1

    def _requantize(self, node: ir.Node, integers: ir.Value, scale: ir.Value) -> None:
        assert integers.const_value is not None
        assert scale.const_value is not None
        old = integers.const_value.numpy()
        axis = node.attributes.get_int("axis", 1) % max(old.ndim, 1)
        new, half = half_weight(old, scale.const_value.numpy(), axis)
        value = self._add_constant(f"{scale.name}/float16", half)
        node.replace_input_with(1, value)
        self.versions.setdefault((id(scale), HALF), value)
        if not np.array_equal(old, new):
            changed = self._add_constant(f"{integers.name}/float16", new)
            node.replace_input_with(0, changed)
            self.versions.setdefault((id(integers), HALF), changed)

    def _allows(self, node: ir.Node, index: int, side: str) -> bool:
        """Whether the operator's definition has FP16 at this input or output."""
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        formal = schema.inputs if side == "inputs" else schema.outputs
        if not formal:
            return False
        return "tensor(float16)" in formal[min(index, len(formal) - 1)].types

    def _as(self, value: ir.Value, kind: ir.DataType, reader: ir.Node, *, scale: bool = False) -> ir.Value:
        """The value in another float type: a constant, a second DQ, or a Cast right behind its maker."""
        found = self.versions.get((id(value), kind))
        if found is None:
            maker = value.producer()
            if value.const_value is not None and maker is None:
                found = self._constant(value, kind, scale)
            elif maker is not None and maker.op_type == "DequantizeLinear":
                found = self._second(maker, kind)
            else:
                found = self._cast(value, kind, reader)
            self.versions[id(value), kind] = found
            self.changes += 1
        return found

    def _constant(self, value: ir.Value, kind: ir.DataType, scale: bool) -> ir.Value:
        assert value.const_value is not None
        array = value.const_value.numpy()
        if kind == HALF:
            finite = np.where(np.isfinite(array), np.clip(array, -LARGEST, LARGEST), array)
            array = half_scale(array) if scale else finite.astype(np.float16)
        else:
            array = array.astype(np.float32)
        return self._add_constant(f"{value.name}/{kind.name.lower()}", array)

    def _add_constant(self, name: str, array: np.ndarray) -> ir.Value:
        name = self._free(name)
        kind = ir.DataType.from_numpy(array.dtype)
        value = ir.Value(
            name=name,
            type=ir.TensorType(kind),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=name),
        )
        self.graph.initializers.add(value)
        return value

    def _second(self, pair: ir.Node, kind: ir.DataType) -> ir.Value:
        scale = pair.inputs[1]
        assert scale is not None
        inputs = [pair.inputs[0], self._as(scale, kind, pair, scale=True), *pair.inputs[2:]]
        node = ir.node("DequantizeLinear", inputs, attributes=dict(pair.attributes))
        return self._insert(node, pair.outputs[0], kind, pair)

    def _cast(self, value: ir.Value, kind: ir.DataType, reader: ir.Node) -> ir.Value:
        node = ir.node("Cast", [value], attributes={"to": int(kind)})
        maker = value.producer()
        if maker is not None:
            return self._insert(node, value, kind, maker)
        made = self._insert(node, value, kind, None)
        if MODULE_KEY in reader.metadata_props:
            node.metadata_props[MODULE_KEY] = reader.metadata_props[MODULE_KEY]
        return made

    def _insert(self, node: ir.Node, like: ir.Value, kind: ir.DataType, behind: ir.Node | None) -> ir.Value:
        made = node.outputs[0]
        made.name = self._free(f"{like.name}/{kind.name.lower()}")
        node.name = f"{made.name}/{node.op_type}"
        made.type, made.shape = ir.TensorType(kind), like.shape
        if behind is None:
            self.graph.insert_before(self.graph[0], [node])
        else:
            if MODULE_KEY in behind.metadata_props:
                node.metadata_props[MODULE_KEY] = behind.metadata_props[MODULE_KEY]
            self.graph.insert_after(behind, [node])
        return made

    def _free(self, name: str) -> str:
        free, number = name, 1
        while free in self.names:
            free, number = f"{name}_{number}", number + 1
        self.names.add(free)
        return free

    def _cast_inputs(self) -> None:
        for value in self.graph.inputs:
            readers = [user for user, _ in value.uses()]
            if value.dtype == FULL and any(r not in self.kept and self.could(r) for r in readers):
                value.dtype = HALF
                self.changes += 1

    def _cast_outputs(self) -> None:
        for index, value in enumerate(self.graph.outputs):
            maker = value.producer()
            if value.dtype != HALF or maker is None or maker.op_type == "Cast":
                continue
            name = value.name or ""
            value.name = self._free(f"{name}/float16")
            cast = ir.node("Cast", [value], attributes={"to": int(FULL)})
            made = self._insert(cast, value, FULL, maker)
            made.name, cast.name = name, f"{name}/Cast"
            self.graph.outputs[index] = made
            self.changes += 1

    def _align_scales(self) -> None:
        """Both sides of a pair use the scale that FP16 holds, else all its values were off by one factor."""
        for node in self.graph:
            if node.op_type != "QuantizeLinear":
                continue
            sides = [
                node,
                *(user for user, _ in node.outputs[0].uses() if user.op_type == "DequantizeLinear"),
            ]
            scales = [side.inputs[1] for side in sides]
            half = next((s for s in scales if s is not None and s.dtype == HALF and s.const_value), None)
            if half is None or half.const_value is None:
                continue
            rounded = half.const_value.numpy().astype(np.float32)
            for side, scale in zip(sides, scales, strict=True):
                held = scale.const_value if scale is not None and scale.dtype == FULL else None
                if held is not None and not np.array_equal(held.numpy(), rounded):
                    side.replace_input_with(1, self._add_constant(f"{half.name}/rounded", rounded))

    def _tidy_constants(self) -> None:
        """Take out constants that nothing reads, and give their names to the FP16 versions."""
        for name, value in list(self.graph.initializers.items()):
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            self.graph.initializers.pop(name)
            half = self.versions.get((id(value), HALF))
            if half is not None and half.name in self.graph.initializers:
                self.graph.initializers.pop(half.name or "")
                half.name = name
                self.graph.initializers.add(half)


def _inner_nodes(node: ir.Node) -> list[ir.Node]:
    """Nodes in the bodies of a loop or a branch."""
    bodies: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies.extend(attribute.as_graphs())
    return [inner for body in bodies for inner in ir.traversal.RecursiveGraphIterator(body)]
