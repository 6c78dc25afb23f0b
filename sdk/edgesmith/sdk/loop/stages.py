"""A model in the loop's three steps, and the threads that run them.

    grab -> [slot a camera] -> preprocess -> [slot] -> infer -> [slot] -> postprocess -> [slot] -> deliver

Each stage has a thread, so the rate is that of the slowest stage; each slot holds one batch, so a
frame waits for one batch of the next stage at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.base import Frame
from edgesmith.sdk.decode.canonical import check_thresholds
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.loop.mailbox import HandOver
from edgesmith.sdk.loop.result import after
from edgesmith.sdk.models import Detector, Model

Frame8 = NDArray[np.uint8]


@runtime_checkable
class Staged(Protocol):  # not a base class: whatever has the three steps can be pipelined
    """A model in three steps, each of which runs in a thread of its own.

    What ``prepare`` gives holds until the next call but one. ``limit`` is the largest batch.
    """

    limit: int

    def prepare(self, frames: Sequence[Frame8]) -> Any:
        """What the graph takes, for frames that are BGR uint8 ``(H, W, 3)``."""
        ...

    def infer(self, prepared: Any) -> Any:
        """What the graph gives."""
        ...

    def decode(self, frames: Sequence[Frame8], prepared: Any, outputs: Any) -> Sequence[Any]:
        """An answer for each frame."""
        ...


class ModelStages:
    """The steps of a loaded bundle.

    A backend that prepares frames on its own device has one buffer for them there: its preprocess
    belongs to the step ``infer``.

    Args:
        model: the model; it serves the loop alone while the loop runs.
        score, iou: a detector's thresholds in place of the bundle's.

    Raises:
        ConfigError: thresholds that the detector's graph cannot serve. Other tasks have none.
    """

    def __init__(self, model: Model[Any], *, score: float | None = None, iou: float | None = None) -> None:
        self.model = model
        # A model that takes any size puts only frames of one size into a tensor.
        self.limit = model.batch.max if model.bundle.manifest.preprocess.size is not None else 1
        self._on_device = getattr(model.backend, "on_device", None) is not None
        self._thresholds: dict[str, float | None] = {}
        if isinstance(model, Detector):
            check_thresholds(model.nms, score, iou)
            self._thresholds = {"score": score, "iou": iou}

    def prepare(self, frames: Sequence[Frame8]) -> Any:
        """The batch and the geometries; the frames as they are, where the device prepares them."""
        return frames if self._on_device else self.model.prepare(frames)

    def infer(self, prepared: Any) -> Any:
        """The graph's outputs by name, and the geometries."""
        if self._on_device:
            (whole,) = self.model.raw(prepared)  # a batch within the limit is one run
            return whole
        batch, geometries = prepared
        return self.model.run_prepared(batch), geometries

    def decode(self, frames: Sequence[Frame8], prepared: Any, outputs: Any) -> Sequence[Any]:
        """An answer for each geometry."""
        values, geometries = outputs
        decode: Any = self.model.decode  # a detector's takes thresholds, which the others' do not
        answers: Sequence[Any] = decode(values, geometries, **self._thresholds)
        return answers


class CallStages:
    """Any function of frames as one step: it is called with a list and gives a list."""

    def __init__(self, call: Callable[[list[Frame8]], Sequence[Any]], limit: int) -> None:
        self._call = call
        self.limit = limit

    def prepare(self, frames: Sequence[Frame8]) -> Any:
        """The frames as they are."""
        return list(frames)

    def infer(self, prepared: Any) -> Any:
        """The function's answers."""
        return self._call(prepared)

    def decode(self, frames: Sequence[Frame8], prepared: Any, outputs: Any) -> Sequence[Any]:
        """The answers as they are."""
        if len(outputs) != len(frames):
            raise ConfigError(
                f"the loop's model gave {len(outputs)} answers for {len(frames)} frames: "
                "it is called with a list of frames and returns a list of as many answers"
            )
        return list(outputs)


def stages_of(model: Any, *, score: float | None = None, iou: float | None = None) -> Staged:
    """The steps of a loaded bundle, of what has steps of its own, or of a function of frames.

    Raises:
        ConfigError: it is none of these, or thresholds were given and it is no loaded bundle.
    """
    if isinstance(model, Model):
        return ModelStages(model, score=score, iou=iou)
    if score is not None or iou is not None:
        raise ConfigError(f"score and iou go with a loaded bundle, not with {type(model).__name__}")
    if isinstance(model, Staged):
        return model
    if callable(model):
        return CallStages(model, int(getattr(model, "limit", 1)))
    raise ConfigError(f"{type(model).__name__} cannot be called with frames: load a bundle with load_model")


@dataclass(slots=True)
class Item:
    """A frame on its way; ``stages_ms`` and ``ages_ms`` become those of its result."""

    source: int
    frame: Frame
    stages_ms: dict[str, float] = field(default_factory=dict)
    ages_ms: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Batch:
    """Frames that go through the stages together."""

    items: list[Item]
    prepared: Any = None
    outputs: Any = None
    answers: Sequence[Any] = ()
    done_ns: int = 0

    @property
    def images(self) -> list[Frame8]:
        """The pictures."""
        return [item.frame.image for item in self.items]

    def mark(self, stage: str, started_ns: int) -> None:
        """Note the time of a stage that ends now, and the age of each frame."""
        self.done_ns = time.monotonic_ns()
        for item in self.items:
            item.stages_ms[stage] = (self.done_ns - started_ns) / 1e6
            item.ages_ms[stage] = (self.done_ns - item.frame.captured_ns) / 1e6


def passed_over(older: Item, newer: Item) -> Item:
    """The newer item, whose frame tells of the older one."""
    newer.frame = after(older.frame, newer.frame)
    return newer


def preprocess(steps: Staged, batch: Batch) -> None:
    """The stage ``preprocess``."""
    started = time.monotonic_ns()
    for item in batch.items:
        item.ages_ms["taken"] = (started - item.frame.captured_ns) / 1e6
    batch.prepared = steps.prepare(batch.images)
    batch.mark("preprocess", started)


def infer(steps: Staged, batch: Batch) -> None:
    """The stage ``infer``."""
    started = time.monotonic_ns()
    batch.outputs = steps.infer(batch.prepared)
    batch.mark("infer", started)


def postprocess(steps: Staged, batch: Batch) -> None:
    """The stage ``postprocess``."""
    started = time.monotonic_ns()
    batch.answers = steps.decode(batch.images, batch.prepared, batch.outputs)
    batch.outputs = batch.prepared = None  # the buffers are free for the next batch
    batch.mark("postprocess", started)


def relay(
    inlet: HandOver[Batch],
    outlet: HandOver[Batch] | None,
    work: Callable[[Batch], None],
    give_up: Callable[[Batch, bool], None],
) -> None:
    """A stage's thread: take a batch, work on it, hand it on, until no more comes.

    Args:
        inlet: where batches come from.
        outlet: where they go, None for the last stage.
        work: changes the batch.
        give_up: told of a batch that goes no further, and whether that was an error's fault.
    """
    while outlet is None or outlet.reserve():
        batch = inlet.take()
        if batch is None:
            break
        try:
            work(batch)
        except BaseException:
            give_up(batch, True)
            raise
        if outlet is not None and not outlet.put(batch):
            give_up(batch, False)
    if outlet is not None:
        outlet.finish()
