"""What every backend gives."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from numpy.typing import NDArray

Array = NDArray[Any]


class Backend(Protocol):  # not a base class: an integrator's engine fits without importing us
    """A graph that is loaded and runs.

    Attributes:
        name: ``tensorrt``, ``cuda`` or ``cpu``: what really runs, not what was asked for.
        detail: library, version and device, for people.
        variant: which of the bundle's graphs was loaded.
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
    """How a backend is opened: ``device`` is the GPU's number, ``threads`` the CPU threads of one run."""

    device: int = 0
    threads: int | None = None
