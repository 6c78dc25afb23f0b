"""onnxruntime's CUDA provider on our stream, memory and graphs: an Execution over IOBinding.

Inputs and outputs are bound by address once for each input shape, so a run copies nothing but the frame
and the answers. The provider works on the stream that it is given and does not wait at the end of a
run. With graphs it records and replays each shape itself (``enable_cuda_graph``), told apart by
``gpu_graph_id``.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgesmith.sdk.cuda.backend import InputSpec
from edgesmith.sdk.cuda.lane import Tensor
from edgesmith.sdk.errors import BackendError, BindingError

log = logging.getLogger(__name__)
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_NO_GRAPH = "-1"


class OpenOutputsError(BindingError):
    """An output's shape is not known before a run, so it cannot be bound."""


def input_of(session: Any) -> InputSpec:
    """The session's one input.

    Raises:
        BindingError: it has several, or of a type that numpy lacks.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise BindingError(f"a graph has one image as its input, this one has {len(inputs)} inputs")
    shape = tuple(side if isinstance(side, int) else None for side in inputs[0].shape)
    return InputSpec(name=inputs[0].name, dtype=dtype_of(inputs[0]), shape=shape)


def dtype_of(value: Any) -> str:
    """Numpy's name for the type of an input or output.

    Raises:
        BindingError: numpy lacks it.
    """
    known = DTYPES.get(value.type)
    if known is None:
        raise BindingError(f"{value.name} has the type {value.type}, which numpy has not")
    return known


def has_open_outputs(session: Any) -> bool:
    """Whether an output has an axis that does not follow from the input's: it cannot be bound beforehand."""
    known = {side for value in session.get_inputs() for side in value.shape if isinstance(side, str)}
    sides = [side for value in session.get_outputs() for side in value.shape]
    return any(not isinstance(side, int) and side not in known for side in sides)


class CudaSession:
    """A session that runs on one stream, made ready for one input shape after the other."""

    def __init__(self, library: Any, session: Any, device: int, *, graphs: bool) -> None:
        self.library, self.device, self.graphs = library, device, graphs
        self.session: Any | None = session
        self._numbers = itertools.count(1)
        self._outputs = [(value.name, np.dtype(dtype_of(value))) for value in session.get_outputs()]

    def open(self, tensor: Tensor, address: int, stream: Any) -> CudaExecution:
        """An Execution for one input shape.

        Raises:
            BindingError: the graph does not take the shape.
            BackendError: the run that finds the outputs' shapes failed.
        """
        binding = self.bound(tensor, address)
        for name, _ in self._outputs:
            binding.bind_output(name, "cuda", self.device)
        self.run(binding, _NO_GRAPH)
        stream.synchronize()
        shapes = [tuple(int(side) for side in value.shape()) for value in binding.get_outputs()]
        outputs = tuple(
            Tensor(name, dtype, shape) for (name, dtype), shape in zip(self._outputs, shapes, strict=True)
        )
        return CudaExecution(self, tensor, outputs, str(next(self._numbers)))

    def bound(self, tensor: Tensor, address: int) -> Any:
        """A binding with the input at an address."""
        if self.session is None:
            raise BackendError("this backend was closed")
        binding = self.session.io_binding()
        binding.bind_input(tensor.name, "cuda", self.device, tensor.dtype.type, list(tensor.shape), address)
        return binding

    def run(self, binding: Any, graph: str) -> None:
        """Put a run into the stream.

        Raises:
            BackendError: it failed.
        """
        if self.session is None:
            raise BackendError("this backend was closed")
        options = self.library.RunOptions()
        # The wait is ours, after the copies that follow.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self.graphs:
            options.add_run_config_entry("gpu_graph_id", graph)
        try:
            self.session.run_with_iobinding(binding, options)
        except Exception as error:
            # onnxruntime's exception classes are private to its C module; the text tells them apart.
            kind = BindingError if "INVALID_ARGUMENT" in str(error) else BackendError
            raise kind(f"onnxruntime could not run: {error}") from error

    def close(self) -> None:
        """Let go of the session."""
        self.session = None


class CudaExecution:
    """One input shape of a session; an :class:`~edgesmith.sdk.cuda.lane.Execution`."""

    capturable = False  # the provider replays by itself

    def __init__(self, owner: CudaSession, tensor: Tensor, outputs: tuple[Tensor, ...], graph: str) -> None:
        self.outputs = outputs
        self._owner, self._tensor, self._graph = owner, tensor, graph
        self._binding: Any = None

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Where input and outputs lie."""
        binding = self._owner.bound(self._tensor, addresses[self._tensor.name])
        for name, dtype, shape in self.outputs:
            binding.bind_output(name, "cuda", self._owner.device, dtype.type, list(shape), addresses[name])
        self._binding = binding

    def enqueue(self, stream: Any) -> None:
        """Put one run into the stream that the session was made for.

        Raises:
            BackendError: it failed.
        """
        self._owner.run(self._binding, self._graph)

    def close(self) -> None:
        """Let go of the binding."""
        self._binding = None
