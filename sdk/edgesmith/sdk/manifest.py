"""What a bundle says of itself: ``manifest.json``, schema 1.

Every struct is frozen and refuses fields that it does not know. Figures are in the units of
the face: accuracies in percent, drops in points, times in ms where a name ends in ``_ms``.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

SCHEMA = 1
Task = Literal["detect", "classify", "segment", "tensor"]
Fit = Literal["letterbox", "stretch", "resize-crop", "none"]
Color = Literal["rgb", "bgr", "y"]
Precision = Literal["fp32", "fp16", "int8", "auto"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class Preprocess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a frame becomes the network's input.

    ``size`` is ``(H, W)`` in pixels; None (any size) goes with ``fit = "none"`` alone.
    ``mean`` and ``std`` have one value, or one a channel in the order of ``color``.
    ``pad`` is a pixel value 0..255. ``layout`` is ``nchw`` (float32) or ``nhwc`` (uint8, where
    the arithmetic was folded into the graph).

    Raises:
        ValueError: the values contradict each other.
    """

    size: tuple[int, int] | None
    fit: Fit = "letterbox"
    anchor: Literal["center", "top-left"] = "center"
    pad: int = 114
    upscale: bool = True
    color: Color = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: Literal["linear", "area", "cubic", "nearest"] = "linear"
    antialias: bool = False
    shorter_side: int | None = None
    rounding: Literal["round", "floor"] = "round"
    layout: Literal["nchw", "nhwc"] = "nchw"

    def __post_init__(self) -> None:
        channels = self.channels
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise ValueError(
                    f"{name} has {len(values)} values; color {self.color!r} takes 1 or {channels}"
                )
            if not all(math.isfinite(v) for v in values):
                raise ValueError(f"{name} is not finite")
        if any(v == 0 for v in self.std):
            raise ValueError("std holds a zero")
        if not math.isfinite(self.scale) or self.scale == 0:
            raise ValueError("scale must be a finite number other than zero")
        if not 0 <= self.pad <= 255:
            raise ValueError(f"pad is {self.pad}; a pixel is 0..255")
        if self.size is None:
            if self.fit != "none":
                raise ValueError(f'fit "{self.fit}" needs a size; only fit "none" takes any size')
        elif min(self.size) < 1 or max(self.size) > 16384:
            raise ValueError(f"size is {self.size}; each side must be 1..16384")
        if self.shorter_side is not None and self.fit != "resize-crop":
            raise ValueError('shorter_side goes with fit "resize-crop" only')
        if self.fit == "resize-crop" and self.size is not None and self.crop_side < max(self.size):
            raise ValueError(f"shorter_side {self.shorter_side} is less than the size {self.size}")
        if self.antialias and self.interpolation not in ("linear", "cubic"):
            raise ValueError(f"antialias goes with linear or cubic, not {self.interpolation}")

    @property
    def channels(self) -> int:
        """Number of colour channels of the input tensor."""
        return 1 if self.color == "y" else 3

    @property
    def crop_side(self) -> int:
        """Length in pixels of the shorter side before the centre crop (default 256/224 of the size)."""
        if self.shorter_side is not None:
            return self.shorter_side
        return round(max(self.size or (0, 0)) * 256 / 224)

    def tensor_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of one input, without the batch axis, for a frame of that size."""
        rows, columns = self.size or (height, width)
        return (self.channels, rows, columns) if self.layout == "nchw" else (rows, columns, self.channels)


class Batch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Images that one run of the engine takes: a fixed number, or a range with its usual value."""

    min: Positive = 1
    opt: Positive = 1
    max: Positive = 1

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"batch must have min <= opt <= max, got {self.min}, {self.opt}, {self.max}")

    @property
    def fixed(self) -> bool:
        """True where the engine takes one batch size only."""
        return self.min == self.max


class Nms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How raw candidates become detections.

    ``where``: on the host or in the graph. ``score`` is the threshold of a call,
    ``evaluation_score`` that of an evaluation (a graph is built at it). ``iou``: above it the
    lower-scored of two boxes of a class goes. ``classes``: one class a box (``best``) or every class over the
    threshold (``all``). ``candidates``: how many enter the suppression.
    """

    where: Literal["host", "graph"] = "host"
    score: Share = 0.25
    evaluation_score: Share = 0.001
    iou: Share = 0.65
    classes: Literal["best", "all"] = "best"
    candidates: Positive = 3000
    max_detections: Positive = 100


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input or output of the graph; a text in ``shape`` names an axis that varies."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One graph of the bundle.

    ``member`` is the ONNX file, ``golden`` the member with its expected outputs, ``tolerance`` the
    largest absolute difference allowed for each output, ``measured`` figures by name.
    """

    member: str
    precision: str
    golden: str
    tolerance: dict[str, float]
    measured: dict[str, float] = {}


class GoldenResize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A picture, and what the network sees of it: channels in the network's order, before the arithmetic."""

    image: str
    expected: str


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The self-test's inputs: members with losslessly encoded pictures, in order.

    ``images`` go into the network without being resized, so that what the engine computes is compared
    alone; ``resize`` is the check of the resizing itself, which differs by a step from processor to
    processor.
    """

    images: tuple[str, ...]
    resize: GoldenResize | None = None


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the bundle comes from. ``source_sha256`` is of the weights or program file.

    ``recipe`` is the recipe as it was run; ``versions`` the packages by name.
    """

    created: str
    edgesmith: str
    source: str
    source_sha256: str
    recipe: dict[str, object]
    versions: dict[str, str]
    license: str | None = None
    seconds: float = 0.0


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size and hash of one file in the bundle."""

    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of ``manifest.json``.

    ``chosen`` names the variant that a GPU runs by default, ``cpu`` the one that a CPU does (None: the same):
    integers that TensorRT makes fast are slower than float in other engines. ``sparse``: the weights have 2:4
    sparsity, and an engine is built for it.
    """

    schema: Literal[1] = 1
    name: str
    task: Task
    labels: tuple[str, ...] = ()
    preprocess: Preprocess
    batch: Batch = Batch()
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nms: Nms | None = None
    precision: Precision = "fp32"
    target: str = "generic"
    chosen: str
    cpu: str | None = None
    variants: dict[str, Variant]
    sparse: bool = False
    golden: Golden
    parity: dict[str, float] = {}
    measured: dict[str, float] = {}
    provenance: Provenance
    members: dict[str, Member] = {}

    def __post_init__(self) -> None:
        for role, name in (("chosen", self.chosen), ("cpu", self.cpu)):
            if name is not None and name not in self.variants:
                raise ValueError(f"{role} names {name!r}, which is not among the variants")
        if self.task == "detect" and self.nms is None:
            raise ValueError("a detector's manifest needs nms")


def batch_on(manifest: Manifest, backend: object) -> Batch:
    """The batches that a bundle's graph takes on a backend: the backend's own, or the bundle's range."""
    own: Batch | None = getattr(backend, "batch", None)
    return own or manifest.batch
