"""Runs a camera or a clip through one tool's loop; in that tool's environment, or in edgesmith's own.

    python loop_worker.py TOOL MODEL SOURCE SECONDS

``SOURCE`` is a clip, of which every frame is run, again and again, or the address of a stream whose
pictures carry the clock (``tests/sdk/cameras/rtsp_server.py``). All run onnxruntime with one thread, at a
score of 0.25 and an IoU of 0.65. The last line of the output is JSON: ``frames`` and ``found`` (detections)
of so many ``seconds``, ``cpu_s``, ``peak_bytes``, and of a stream ``clocks``: the blocks of the clock's line
as a number, and when their picture's answer was in the caller's hands.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SCORE, IOU, MOST, SIZE = 0.25, 0.65, 100, 320
COLUMNS, LINES = 40, 12  # of the blocks in a picture; the clock is line 1
WARM_S = 3.0
Image = np.ndarray[Any, np.dtype[np.uint8]]
Tell = Callable[[Image, int], None]  # a picture whose answer is there, and how many were found


class Tally:
    """Counts answers after the warm-up, and ends the run when the time is over."""

    def __init__(self, seconds: float, live: bool) -> None:
        self.seconds, self.live = seconds, live
        self.began = self.last = 0.0
        self.frames = self.found = 0
        self.clocks: list[tuple[int, int]] = []
        self.over = threading.Event()
        self._first: float | None = None
        self._cpu = 0.0

    def __call__(self, image: Image, found: int) -> None:
        now = time.monotonic()
        self._first = self._first or now
        if now - self._first < WARM_S:
            self.began, self._cpu = now, cpu_s()
            return
        if self.over.is_set():
            return
        self.frames, self.found, self.last = self.frames + 1, self.found + found, now
        if self.live:
            self.clocks.append((blocks(image), time.monotonic_ns()))
        if now - self.began >= self.seconds:
            self.cpu_s = cpu_s() - self._cpu
            self.over.set()

    def report(self) -> dict[str, Any]:
        peak = next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        return {
            "frames": self.frames,
            "found": self.found,
            "seconds": self.last - self.began,
            "cpu_s": self.cpu_s,
            "peak_bytes": 1024 * peak,
            "clocks": self.clocks,
        }


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def blocks(image: Image) -> int:
    """The clock's line as it stands in the picture; 0 where it is no line of blocks."""
    height, width = image.shape[:2]
    row = image[int(1.5 * height / LINES), ((np.arange(COLUMNS) + 0.5) * width / COLUMNS).astype(int), 1]
    if ((row > 96) & (row < 160)).any():
        return 0
    return int("".join("1" if value >= 160 else "0" for value in row), 2)


def with_edgesmith(model: str, source: str, tell: Tally) -> None:
    """``CaptureLoop``."""
    from edgesmith.sdk import CaptureLoop, Detector, open_camera

    with Detector.load(model, backend="cpu", threads=1) as detector:
        while not tell.over.is_set():
            policy: Any = "latest" if tell.live else "every"
            patience: dict[str, Any] = (
                {"open_s": 20.0} if tell.live else {}
            )  # the server has just been started
            with CaptureLoop(open_camera(source, **patience), detector, policy=policy) as loop:
                for result in loop:
                    tell(result.frame.image, len(result.detections))
                    if tell.over.is_set():
                        break


def with_ultralytics(model: str, source: str, tell: Tally) -> None:
    """``predict(stream=True)``; a stream's newest frame, as is its default."""
    import torch

    torch.set_num_threads(1)
    yolo: Any = importlib.import_module("ultralytics").YOLO(model, task="detect")
    wanted = {"conf": SCORE, "iou": IOU, "max_det": MOST, "imgsz": SIZE, "verbose": False}
    while not tell.over.is_set():
        for result in yolo.predict(source, stream=True, **wanted):
            tell(result.orig_img, len(result.boxes))
            if tell.over.is_set():
                break


def with_inference(model: str, source: str, tell: Tally) -> None:
    """``InferencePipeline`` around a bare session, with what goes before and after it written by hand."""
    import onnxruntime

    pipelines: Any = importlib.import_module("inference").InferencePipeline
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name

    def run(frames: list[Any]) -> list[int]:
        return [bare(frame.image) for frame in frames]

    def bare(image: Image) -> int:
        height, width = image.shape[:2]
        ratio = min(SIZE / height, SIZE / width)
        rows, columns = round(height * ratio), round(width * ratio)
        top, left = (SIZE - rows) // 2, (SIZE - columns) // 2
        canvas = np.full((SIZE, SIZE, 3), 114, np.uint8)
        canvas[top : top + rows, left : left + columns] = cv2.resize(image, (columns, rows))
        images = np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1), np.float32)[None] / 255
        (output,) = session.run(None, {entry: images})
        scores = output[0, 4:].max(axis=0)
        kept = scores > SCORE
        labels = output[0, 4:, kept].argmax(axis=1)
        centre, size = output[0, :2, kept], output[0, 2:4, kept]
        corners = (centre - size / 2 - (left, top)) / ratio
        boxes = np.concatenate((corners, size / ratio), axis=1)
        best = scores[kept].tolist()
        found = cv2.dnn.NMSBoxesBatched(boxes.tolist(), best, labels.tolist(), SCORE, IOU)
        return min(MOST, len(found))

    running: list[Any] = []

    def take(found: Any, frame: Any) -> None:
        tell(frame.image, found)
        if tell.over.is_set():
            running[-1].terminate()

    while not tell.over.is_set():
        running.append(
            pipelines.init_with_custom_logic(video_reference=source, on_video_frame=run, on_prediction=take)
        )
        running[-1].start()
        running[-1].join()


TOOLS = {"edgesmith": with_edgesmith, "ultralytics": with_ultralytics, "inference": with_inference}


def one_thread() -> None:
    """Give every session of onnxruntime one thread, also those that a tool makes without asking."""
    import onnxruntime

    made = onnxruntime.InferenceSession

    def session(model: Any, sess_options: Any = None, *rest: Any, **options: Any) -> Any:
        sess_options = sess_options or onnxruntime.SessionOptions()
        sess_options.intra_op_num_threads = sess_options.inter_op_num_threads = 1
        return made(model, sess_options, *rest, **options)

    onnxruntime.InferenceSession = session


def main() -> None:
    tool, model, source, seconds = sys.argv[1:5]
    cv2.setNumThreads(1)
    tally = Tally(float(seconds), source.startswith("rtsp:"))
    if tool != "edgesmith":
        one_thread()
    TOOLS[tool](model, source, tally)
    print(json.dumps(tally.report()), flush=True)
    os._exit(0)  # OpenCV ends a process badly in whose threads it still reads


if __name__ == "__main__":
    main()
