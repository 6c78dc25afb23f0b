"""A ready ONNX graph brought to the canonical interface: names of tensors, shape of the input."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from edgesmith.converters.export import INPUT, finished
from edgesmith.converters.trace import annotate
from edgesmith.sdk.errors import SourceError
from edgesmith.sdk.manifest import Batch, Nms, Task

DETECTOR = ("boxes", "scores")


def adopt(
    proto: onnx.ModelProto,
    *,
    task: Task,
    head: str,
    nms: Nms | None,
    channels: int,
    size: tuple[int, int] | None,
    batch: Batch,
) -> onnx.ModelProto:
    """The graph with the input ``images`` of the recipe's shape and the task's canonical output names.

    Raises:
        SourceError: the graph's input or outputs are not what the recipe and the task say.
    """
    if head not in ("auto", "canonical"):
        raise SourceError(
            f'recipe: model.head: "{head}" is built in PyTorch; a ready graph must give canonical outputs '
            "itself, or bring the module (model.factory)"
        )
    if nms is not None and nms.where == "graph":
        raise SourceError(
            'recipe: nms.where: "graph" needs the module (model.factory); with a ready graph use "host"'
        )
    model = ir.from_proto(proto)
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    if len(inputs) != 1 or inputs[0].dtype != ir.DataType.FLOAT or inputs[0].shape is None:
        seen = ", ".join(f"{v.name} {v.dtype} {v.shape}" for v in inputs)
        raise SourceError(f"the graph must have one float32 input of images (N, C, H, W); it has {seen}")
    _set_shape(inputs[0], channels, size, batch)
    inputs[0].name = INPUT
    _name_outputs(model, task)
    for value in model.graph.outputs:
        # Shapes written for another batch would contradict the ones inferred from the new input.
        value.shape = None
    annotate(model, None)
    return finished(model)


def _set_shape(value: ir.Value, channels: int, size: tuple[int, int] | None, batch: Batch) -> None:
    assert value.shape is not None
    wanted: list[int | str] = [
        batch.opt if batch.fixed else "batch",
        channels,
        *(size or ("height", "width")),
    ]
    given = list(value.shape)
    if len(given) != 4:
        raise SourceError(f"the graph's input {value.name} is {value.shape}; images are (N, C, H, W)")
    for axis, (has, want) in enumerate(zip(given, wanted, strict=True)):
        if isinstance(has, int) and has != want:
            key = ("input.batch", "input.color", "input.size", "input.size")[axis]
            raise SourceError(
                f"the graph's input {value.name} is {value.shape}, the recipe asks for {tuple(wanted)}: "
                f"set {key} to what the graph was exported with, or export it again"
            )
    value.shape = ir.Shape(wanted)


def _name_outputs(model: ir.Model, task: Task) -> None:
    outputs = list(model.graph.outputs)
    names = [str(v.name) for v in outputs]
    if task == "tensor":
        return
    if task == "detect":
        order = _boxes_and_scores(outputs, names)
        for value, name in zip(order, DETECTOR, strict=True):
            _rename(model, value, name)
        model.graph.outputs[:] = order
        return
    rank = 2 if task == "classify" else 4
    fits = [v for v in outputs if v.shape is None or len(v.shape) == rank]
    if len(fits) != 1 or len(outputs) != 1:
        what = "(N, classes)" if task == "classify" else "(N, classes, H, W)"
        raise SourceError(
            f"a graph for task {task!r} gives one output, logits {what}; it has {_shapes(outputs)}"
        )
    _rename(model, outputs[0], "logits")


def _boxes_and_scores(outputs: Sequence[ir.Value], names: Sequence[str]) -> list[ir.Value]:
    """The two canonical outputs, by name, else by shape."""
    if set(DETECTOR) <= set(names):
        return [outputs[names.index(name)] for name in DETECTOR]
    if len(outputs) == 2 and all(v.shape is not None and len(v.shape) == 3 for v in outputs):
        four = [v for v in outputs if v.shape is not None and v.shape[2] == 4]
        if len(four) == 1:
            return [four[0], next(v for v in outputs if v is not four[0])]
        if len(four) == 2:
            return list(outputs)
    raise SourceError(
        "a ready detector graph must give boxes (N, K, 4) xyxy in input pixels and scores (N, K, C) in 0..1; "
        f"it has {_shapes(outputs)}. Bring the module (model.factory) with model.head, or add the decode "
        "before exporting"
    )


def _rename(model: ir.Model, value: ir.Value, name: str) -> None:
    """Give an output its name; a tensor that has it already makes way."""
    for node in model.graph:
        for other in node.outputs:
            if other is not value and other.name == name:
                other.name = f"{name}_inner"
    value.name = name


def _shapes(values: Sequence[ir.Value]) -> str:
    return ", ".join(f"{v.name} {v.shape}" for v in values)
