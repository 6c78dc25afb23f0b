"""The middle of a conversion: a loaded model to a canonical graph, proven to compute the same."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgesmith.calibration.images import tensors
from edgesmith.converters import parity
from edgesmith.converters.export import export_module, slim
from edgesmith.converters.operators import tensorrt_of
from edgesmith.converters.passes.lint import require_operators
from edgesmith.converters.pictures import Pictures
from edgesmith.converters.ready import adopt
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.runners import Outputs, Runner, graph_runner, module_runner, outputs_of
from edgesmith.converters.sources import Loaded
from edgesmith.converters.trace import Lines
from edgesmith.sdk.board.profiles import profile
from edgesmith.sdk.errors import RecipeError
from edgesmith.sdk.manifest import Batch, Nms

log = logging.getLogger(__name__)
# A batch axis is tried at its limits; a graph that holds for this many holds for more.
MOST_TOGETHER = 32
_ADVICE = (
    "Nothing was written. The usual causes: an operator whose ONNX version differs (resize, padding, "
    "rounding), or a branch in the model that depends on the input; compare the outputs layer by layer"
)


@dataclass(frozen=True)
class Graph:
    """A graph with canonical outputs before simplifying, and what to compare it with.

    ``reference`` is the module with its head, or the ready graph itself in onnxruntime.
    """

    exported: onnx.ModelProto
    reference: Runner
    head: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """The graph that goes into the bundle, and what was measured on the way."""

    model: onnx.ModelProto
    against_reference: parity.Parity
    slimming: parity.Parity


def canonical_graph(
    recipe: Recipe, source: Loaded, pictures: Pictures, *, lines: Lines | None = None
) -> Graph:
    """Wrap the head and export; a ready graph is brought to the canonical names.

    ``lines`` is filled with the lines of the user's code, for :mod:`.explain`.

    Raises:
        RecipeError: head or labels do not go with the model.
        SourceError: the model's outputs are not what the task takes.
        ExportError: it cannot be expressed in ONNX.
    """
    from edgesmith.converters.adapters import adapt

    preprocess, batch, nms = recipe.preprocess(), recipe.batch, recipe.nms_spec()
    names = recipe.names() or _alphabet(recipe)
    if source.model is not None:
        exported = adopt(
            source.model,
            task=recipe.task,
            head=recipe.model.head,
            nms=nms,
            channels=preprocess.channels,
            size=preprocess.size,
            batch=batch,
        )
        graph = Graph(exported, graph_runner(exported, optimised=False), "ready graph", names)
        return _named(graph, _classes(exported))
    assert source.module is not None
    example = torch.from_numpy(next(tensors(pictures.frames[:1], preprocess)))
    adapted = adapt(
        source.module,
        recipe.model.head,
        example=example,
        task=recipe.task,
        options=recipe.model.head_options,
        nms=nms,
        names=(len(names) or None) if recipe.task != "tensor" else None,
        python_path=[recipe.resolve(folder) for folder in recipe.model.python_path],
    )
    exported = export_module(
        adapted.module,
        source.module,
        output_names=adapted.output_names,
        channels=preprocess.channels,
        size=preprocess.size,
        batch=batch,
        lines=lines,
    )
    reference = module_runner(adapted.module, adapted.output_names)
    return _named(Graph(exported, reference, adapted.family, names), adapted.classes)


def _alphabet(recipe: Recipe) -> tuple[str, ...]:
    """The characters of a text recognizer by class, nothing for the blank; empty for all else."""
    if recipe.task != "tensor":
        return ()
    from edgesmith.converters.adapters.passthrough import TensorOptions

    given = {key: value for key, value in recipe.model.head_options.items() if key == "alphabet"}
    characters = TensorOptions.read(given).alphabet
    return () if characters is None else ("", *characters)


def _named(graph: Graph, classes: int) -> Graph:
    if graph.names and classes and len(graph.names) != classes:
        raise RecipeError(
            f"recipe: labels: {len(graph.names)} names, but the model has {classes} classes", key="labels"
        )
    return graph


def _classes(model: onnx.ModelProto) -> int:
    """Number of classes by the shape of a ready graph's scores, 0 where it does not say."""
    for value in model.graph.output:
        dims = value.type.tensor_type.shape.dim
        if value.name == "scores" and len(dims) == 3:
            return int(dims[2].dim_value)
        if value.name == "logits" and len(dims) in (2, 4):
            return int(dims[1].dim_value)
    return 0


def proven(recipe: Recipe, graph: Graph, pictures: Pictures) -> Proof:
    """Simplify the graph, and compare: before with after, the reference with the result, one with many.

    Raises:
        ParityError: a step changed the answers.
        UnsupportedOperatorError: the device's TensorRT lacks an operator.
    """
    preprocess, batch, nms = recipe.preprocess(), recipe.batch, recipe.nms_spec()
    inputs = list(tensors(pictures.frames, preprocess))
    rows, columns = inputs[0].shape[2:]

    def compared(reference: list[Outputs], candidate: list[Outputs], tolerance: float) -> parity.Parity:
        return parity.compare(
            reference, candidate, task=recipe.task, nms=nms, size=(rows, columns), images=pictures.real,
            tolerance=tolerance,
        )  # fmt: skip

    reference = outputs_of(graph.reference, inputs, batch)
    before = outputs_of(graph_runner(graph.exported), inputs, batch)
    exported = compared(reference, before, parity.EXPORT_TOLERANCE)
    parity.require(exported, "the exported graph answers differently from the model", _ADVICE)
    model = slim(graph.exported)
    device = profile(recipe.target.device)
    require_operators(ir.serde.deserialize_model(model), tensorrt_of(device))
    runner = graph_runner(model)
    after = outputs_of(runner, inputs, batch)
    slimming = compared(before, after, parity.SLIM_TOLERANCE)
    parity.require(slimming, "the simplified graph answers differently from the exported one", _ADVICE)
    final = compared(reference, after, parity.EXPORT_TOLERANCE)
    parity.require(final, "the simplified graph answers differently from the model", _ADVICE)
    if preprocess.size is not None:
        _check_batches(recipe, runner, inputs, after, nms, batch)
    return Proof(model, final, slimming)


def _check_batches(
    recipe: Recipe,
    runner: Runner,
    inputs: list[NDArray[np.float32]],
    single: list[Outputs],
    nms: Nms | None,
    batch: Batch,
) -> None:
    """Images together must get the answers that they get alone."""
    for count in sorted({batch.min, batch.opt, min(batch.max, max(batch.min, MOST_TOGETHER))} - {1}):
        numbers = [n % len(inputs) for n in range(count)]
        together = runner(np.concatenate([inputs[n] for n in numbers]))
        apart = [{name: value[n : n + 1] for name, value in together.items()} for n in range(count)]
        found = parity.compare(
            [single[n] for n in numbers], apart, task=recipe.task, nms=nms, size=inputs[0].shape[2:],
            images=count, tolerance=parity.EXPORT_TOLERANCE,
        )  # fmt: skip
        parity.require(
            found,
            f"{count} images in one batch get other answers than one at a time",
            "The model mixes images of a batch: look for a reshape that takes the batch into another axis, "
            "or set input.batch = 1",
        )
