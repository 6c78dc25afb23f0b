"""What every backend gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.preprocess import Geometry

Array = NDArray[Any]


class DevicePreprocess(Protocol):
    """The part of a backend that prepares frames on its own device: two calls in place of ``Backend.run``."""

    def prepare(self, frames: Sequence[NDArray[np.uint8]], count: int) -> list[Geometry]:
        """Send frames, BGR uint8 ``(H, W, 3)``, to the device and prepare them for a batch of ``count``.

        It may return before the device has done so.

        Raises:
            CameraFormatError: a frame has another shape or type.
            BackendError: the device refuses.
        """
        ...

    def run_prepared(self) -> dict[str, Array]:
        """Outputs by name for the batch that was prepared last, as of :meth:`Backend.run`.

        Raises:
            BackendError: nothing was prepared, or the run failed.
        """
        ...


class Backend(Protocol):  # not a base class: an integrator's engine fits without importing us
    """A graph that is loaded and runs.

    Attributes:
        name: ``tensorrt``, ``cuda`` or ``cpu``: what really runs, not what was asked for.
        detail: library, version and device, for people.
        variant: which of the bundle's graphs was loaded.

    A backend that prepares frames itself has an attribute ``on_device`` with its
    :class:`DevicePreprocess`; None, or no such attribute, leaves that to the host. One that takes other
    batches than the bundle says, such as an engine for a DLA, has them as ``batch``.
    """

    name: str
    detail: str
    variant: str

    def run(self, images: Array) -> dict[str, Array]:
        """Outputs by name for a batch ``(N, ...)``; the arrays belong to the caller.

        Raises:
            BindingError: the batch does not fit the graph's input.
            BackendError: the run failed.
        """
        ...

    def clone(self) -> Backend:
        """A backend for another thread; weights are shared where the library can."""
        ...

    def close(self) -> None:
        """Free what is held; the backend cannot be used afterwards."""
        ...


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a backend is opened.

    ``device`` is the GPU's number, ``threads`` the CPU threads of one run. ``graphs`` lets a GPU backend
    record its runs as CUDA graphs, which one launch replays.
    """

    device: int = 0
    threads: int | None = None
    graphs: bool = True
