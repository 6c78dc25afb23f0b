"""What calibration measured and which integers follow from it: saved as JSON, read without the images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from edgesmith.calibration.distribution import Distribution, Window, clipped
from edgesmith.calibration.methods import windows_of
from edgesmith.calibration.statistics import TensorStatistics
from edgesmith.sdk.errors import CalibrationError

SCHEMA = 1


class Quantizer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one activation tensor becomes signed 8-bit integers, zero point 0.

        q = clip(round(x / (factor * scale)) - shift, -128, 127)
        x ~ (q + shift) * scale * factor

    ``factor`` (one value a channel) stands in front of the rounding as a multiplication, ``shift * scale``
    as an addition: TensorRT's integers stay symmetric.
    """

    scale: Annotated[float, msgspec.Meta(gt=0)]
    shift: int = 0
    factor: tuple[float, ...] | None = None

    @property
    def offset(self) -> float:
        """What is taken off before the rounding; a whole multiple of ``scale``."""
        return self.shift * self.scale

    @classmethod
    def of(cls, window: Window, factor: Iterable[float] | None = None) -> Quantizer:
        """The quantizer whose integers cover a window."""
        return cls(
            scale=window.scale,
            shift=window.shift,
            factor=None if factor is None else tuple(map(float, factor)),
        )


class Activation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor: its extremes, those of its channels, and the windows that each method chose.

    ``symmetric`` and ``asymmetric`` hold ``(low, high)`` by method; ``clipped`` the share (0..1) of values
    outside the symmetric window, by method.
    """

    low: float
    high: float
    channel_low: tuple[float, ...]
    channel_high: tuple[float, ...]
    symmetric: dict[str, tuple[float, float]]
    asymmetric: dict[str, tuple[float, float]]
    clipped: dict[str, float]

    @classmethod
    def of(cls, statistics: TensorStatistics) -> Activation:
        """Every method's windows from the statistics, with no image read again."""
        distribution = Distribution.of(statistics)
        symmetric = windows_of(distribution, symmetric=True)
        asymmetric = windows_of(distribution, symmetric=False)
        return cls(
            low=float(statistics.channel_least.min()),
            high=float(statistics.channel_largest.max()),
            channel_low=tuple(statistics.channel_least.tolist()),
            channel_high=tuple(statistics.channel_largest.tolist()),
            symmetric={m: (float(w.low), float(w.high)) for m, w in symmetric.items()},
            asymmetric={m: (float(w.low), float(w.high)) for m, w in asymmetric.items()},
            clipped={m: clipped(distribution, w) for m, w in symmetric.items()},
        )

    def window(self, method: str, *, symmetric: bool) -> Window:
        """The window of a method (``auto`` among them)."""
        return Window(*(self.symmetric if symmetric else self.asymmetric)[method])


class ScaleTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ranges of every tensor that a quantizable layer reads, by tensor name.

    ``model_sha256`` is of the float graph that was calibrated, ``data_sha256`` of the images. ``warnings``
    names what a person should know: few images, constant tensors.
    """

    schema: int = SCHEMA
    model_sha256: str
    data_sha256: str
    images: int
    activations: dict[str, Activation]
    warnings: tuple[str, ...] = ()

    def quantizer(self, tensor: str, method: str, *, symmetric: bool = True) -> Quantizer:
        """The quantizer of a tensor by a method.

        Raises:
            CalibrationError: the tensor has no range.
        """
        if tensor not in self.activations:
            raise CalibrationError(
                f"tensor {tensor} has no range here: calibrate this model, or keep its layer in float"
            )
        return Quantizer.of(self.activations[tensor].window(method, symmetric=symmetric))

    def check_model(self, model_sha256: str) -> None:
        """Refuse to be used for another model.

        Raises:
            CalibrationError: the hashes differ.
        """
        if model_sha256 != self.model_sha256:
            raise CalibrationError(
                f"the scales were measured on another model (SHA-256 {self.model_sha256[:12]}, this one has "
                f"{model_sha256[:12]}): calibrate again"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, in one step."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=0))
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CalibrationError(f"{path}: cannot be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScaleTable:
        """Read what :meth:`save` wrote.

        Raises:
            CalibrationError: the file is missing, damaged or of a newer schema.
        """
        try:
            return cls.from_json(Path(path).read_bytes())
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be read: {error.strerror or error}") from error
        except CalibrationError as error:
            raise CalibrationError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, text: bytes) -> ScaleTable:
        """Read from JSON text, as it lies in a bundle.

        Raises:
            CalibrationError: it is not a table of this schema.
        """
        try:
            table = msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CalibrationError(f"not a table of scales: {error}") from error
        if table.schema > SCHEMA:
            raise CalibrationError(f"written in schema {table.schema}; this edgesmith reads up to {SCHEMA}")
        return table


def warnings_of(tensors: Mapping[str, TensorStatistics], images: int, few: int) -> tuple[str, ...]:
    """Named warnings: few images, tensors that never change."""
    found = []
    if images < few:
        found.append(f"few-images: {images} images; ranges settle with {few} or more")
    for name, statistics in tensors.items():
        low, high = statistics.channel_least.min(), statistics.channel_largest.max()
        if low == high:
            found.append(f"constant-tensor: {name} is always {low:g}")
    return tuple(found)
