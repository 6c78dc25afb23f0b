"""Frames one after the other through a model: files, folders, pictures."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

from edgesmith.sdk.cameras.base import Camera
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.models import Detector, Model


def results(
    camera: Camera,
    model: Model[Any],
    *,
    score: float | None = None,
    iou: float | None = None,
    limit: int | None = None,
) -> Iterator[Result]:
    """One result a frame, in order; ``stages_ms`` has decode, preprocess, infer and postprocess.

    Args:
        camera: an opened source; the caller closes it.
        model: any loaded model.
        score: a detector's threshold in place of the bundle's.
        iou: a detector's suppression threshold in place of the bundle's.
        limit: end after so many frames.
    """
    frames = itertools.islice(camera.frames(), limit)
    while True:
        started = time.monotonic_ns()
        frame = next(frames, None)
        if frame is None:
            return
        decoded = time.monotonic_ns()
        if isinstance(model, Detector):
            answer: Any = model(frame.image, score=score, iou=iou)
        else:
            call: Any = model
            answer = call(frame.image)
        stages = {"decode": (decoded - started) / 1e6}
        stages.update((name, ns / 1e6) for name, ns in model.timings.items())
        yield Result(frame, answer, stages)
