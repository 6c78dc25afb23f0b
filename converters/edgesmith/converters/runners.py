"""The same call for a PyTorch module and an ONNX graph: a batch of images in, arrays by output name out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from edgesmith.sdk.backends.onnxruntime import UNSOUND_OPTIMIZERS
from edgesmith.sdk.backends.processor import has_integer_products
from edgesmith.sdk.errors import ExportError
from edgesmith.sdk.manifest import Batch

Array = NDArray[Any]
Outputs = dict[str, Array]
Runner = Callable[[NDArray[np.float32]], Outputs]
_SEVERITY_ERROR = 3  # onnxruntime's scale: 0 verbose .. 4 fatal


def module_runner(module: nn.Module, names: Sequence[str]) -> Runner:
    """Run a module whose forward gives one tensor for each name."""

    def run(images: NDArray[np.float32]) -> Outputs:
        with torch.no_grad():
            outputs = module(torch.from_numpy(images))
        return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}

    return run


def graph_runner(model: onnx.ModelProto, *, optimised: bool = True, threads: int | None = None) -> Runner:
    """Run a graph in onnxruntime on the CPU; ``optimised = False`` leaves every node as it is.

    Raises:
        ExportError: onnxruntime does not take the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SEVERITY_ERROR
    if not has_integer_products():  # as the runtime does: integer sums must not saturate
        options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(UNSOUND_OPTIMIZERS),
        )
    except Exception as error:
        # onnxruntime's exception classes are private to its C module.
        raise ExportError(f"onnxruntime does not take the graph: {str(error).splitlines()[0]}") from error
    names = [output.name for output in session.get_outputs()]
    feed = session.get_inputs()[0].name

    def run(images: NDArray[np.float32]) -> Outputs:
        try:
            return dict(zip(names, session.run(names, {feed: images}), strict=True))
        except Exception as error:
            raise ExportError(
                f"the graph fails on an input of {images.shape}: {str(error).splitlines()[0]}"
            ) from error

    return run


def outputs_of(runner: Runner, tensors: Iterable[NDArray[np.float32]], batch: Batch) -> list[Outputs]:
    """Outputs of each image ``(1, C, H, W)`` on its own, every array with a batch axis of 1.

    A graph of a fixed batch gets the image together with copies of it.
    """
    found: list[Outputs] = []
    for tensor in tensors:
        together = np.repeat(tensor, batch.min, 0) if batch.min > 1 else tensor
        found.append({name: value[:1] for name, value in runner(together).items()})
    return found
