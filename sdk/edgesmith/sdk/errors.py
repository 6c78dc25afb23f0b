"""Every error that edgesmith raises on purpose, one tree.

    EdgesmithError
    |-- ConfigError (ValueError)                 a setting of a call, a command or a config file
    |   `-- MissingExtraError (ImportError)      a package that an optional part needs
    |-- RecipeError (ValueError)                 the recipe
    |-- SourceError (ValueError)                 the trained model that was brought
    |-- ExportError
    |   `-- UnsupportedOperatorError
    |-- ParityError                              two steps compute different answers
    |-- CalibrationError
    |-- AccuracyBudgetError
    |-- BundleError (ValueError)                 the .edge file
    |   `-- BundleMissingError (FileNotFoundError)
    |-- BackendError (RuntimeError)
    |   |-- BuildError
    |   |-- IncompatibleEngineError
    |   |-- BindingError
    |   `-- CudaError
    |-- DeviceProfileError (LookupError)
    |-- CameraError (OSError)                    where frames come from
    |   |-- CameraLost
    |   |-- StaleFrameError
    |   `-- CameraFormatError (ValueError)
    |-- DataError (ValueError)                   labelled images for an evaluation
    `-- SinkError (OSError)                      where results go

A message says what happened, where, and the change or command that mends it. What a caller
may branch on is an attribute. ``exit_status`` is what the command line ends with:
2 usage, recipe or config; 3 input or bundle unreadable; 4 refused; 5 device or backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar


class EdgesmithError(Exception):
    """Root of the tree: catch this to catch every error of edgesmith's own."""

    exit_status: ClassVar[int] = 5


class ConfigError(EdgesmithError, ValueError):
    """A setting cannot be used."""

    exit_status: ClassVar[int] = 2


class MissingExtraError(ConfigError, ImportError):
    """A package is missing; ``extra`` names the extra of edgesmith that brings it."""

    def __init__(self, message: str, *, extra: str) -> None:
        super().__init__(message)
        self.extra = extra


class RecipeError(EdgesmithError, ValueError):
    """The recipe cannot be used; ``key`` is the dotted name of the entry at fault."""

    exit_status: ClassVar[int] = 2

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class SourceError(EdgesmithError, ValueError):
    """The trained model cannot be loaded; the key lists are those of a state dict."""

    exit_status: ClassVar[int] = 3

    def __init__(self, message: str, *, missing: Sequence[str] = (), unexpected: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)


class ExportError(EdgesmithError):
    """The module cannot be expressed in ONNX."""

    exit_status: ClassVar[int] = 4


class UnsupportedOperatorError(ExportError):
    """An operator has no counterpart; ``operator`` and ``module`` say which and where."""

    def __init__(self, message: str, *, operator: str, module: str | None = None) -> None:
        super().__init__(message)
        self.operator = operator
        self.module = module


class ParityError(EdgesmithError):
    """Two steps compute different answers; ``figures`` holds what was measured, by name."""

    exit_status: ClassVar[int] = 4

    def __init__(self, message: str, *, figures: Mapping[str, float]) -> None:
        super().__init__(message)
        self.figures = dict(figures)


class CalibrationError(EdgesmithError):
    """The calibration images do not give usable ranges."""

    exit_status: ClassVar[int] = 3


class AccuracyBudgetError(EdgesmithError):
    """No precision keeps the accuracy inside the budget; ``drop`` was reached, both in points."""

    exit_status: ClassVar[int] = 4

    def __init__(self, message: str, *, drop: float | None = None, budget: float | None = None) -> None:
        super().__init__(message)
        self.drop = drop
        self.budget = budget


class BundleError(EdgesmithError, ValueError):
    """The bundle cannot be read or written."""

    exit_status: ClassVar[int] = 3


class BundleMissingError(BundleError, FileNotFoundError):
    """There is no file at the bundle's path."""


class BackendError(EdgesmithError, RuntimeError):
    """An inference backend cannot be used, or was used against its rules."""


class BuildError(BackendError):
    """An engine cannot be built; ``lasting`` where another try on this machine would end the same way."""

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class IncompatibleEngineError(BackendError):
    """An engine was built for another device or version."""


class BindingError(BackendError):
    """A tensor does not fit the engine's input or output."""


class CudaError(BackendError):
    """A CUDA call failed; ``name`` is the driver's name for it (``CUDA_ERROR_OUT_OF_MEMORY``), if known."""

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class DeviceProfileError(EdgesmithError, LookupError):
    """There is no such device profile, or it cannot run what is asked."""

    exit_status: ClassVar[int] = 2


class CameraError(EdgesmithError, OSError):
    """A source of frames cannot be opened or read.

    ``reason`` is one word, as in a camera's status: ``refused``, ``unauthorized``, ``not-found``,
    ``dns``, ``timeout``, ``format`` and so on; empty where there is none.
    """

    exit_status: ClassVar[int] = 3

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class CameraLost(CameraError):
    """A source that was streaming stopped and did not come back."""


class StaleFrameError(CameraError):
    """The newest frame is older than the caller allows; ``camera`` is whose, ``age_ms`` how old it is."""

    def __init__(self, message: str, *, camera: str = "", age_ms: float = 0.0) -> None:
        super().__init__(message, reason="stale")
        self.camera = camera
        self.age_ms = age_ms


class CameraFormatError(CameraError, ValueError):
    """A frame does not have the shape or type that is asked for; ``offers`` says what the device has."""

    def __init__(self, message: str, *, offers: Sequence[str] = ()) -> None:
        super().__init__(message, reason="format")
        self.offers = tuple(offers)


class DataError(EdgesmithError, ValueError):
    """Labelled images cannot be read as the evaluation needs them."""

    exit_status: ClassVar[int] = 3


class SinkError(EdgesmithError, OSError):
    """Results cannot be written."""

    exit_status: ClassVar[int] = 3
