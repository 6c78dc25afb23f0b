"""However a loop ends, it ends soon, and what went wrong is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from edgesmith.sdk.errors import CameraError, ConfigError
from edgesmith.sdk.loop.capture_loop import CaptureLoop
from edgesmith.sdk.loop.result import Result

Unfinished = Callable[[], list[int]]


class Broken:
    """A sink that refuses, at once or when it is closed."""

    def __init__(self, *, closing: bool) -> None:
        self.notes: list[str] = []
        self._closing = closing

    def write(self, result: Result) -> None:
        if not self._closing:
            raise OSError("disk full")

    def close(self) -> None:
        if self._closing:
            raise OSError("disk full at the end")


@pytest.mark.parametrize("policy", ["latest", "every"])
@pytest.mark.parametrize("state", ["running", "silent camera", "slow model", "nobody reads", "opening"])
def test_a_stop_takes_less_than_a_second(
    camera: Any, reading: Any, unfinished: Unfinished, state: str, policy: Any
) -> None:
    source = {
        "running": lambda: camera(rate=100),
        "silent camera": lambda: camera(rate=100, hang_at=3),
        "slow model": lambda: camera(rate=100),
        "nobody reads": lambda: camera(),
        "opening": lambda: camera(hang_at=0),
    }[state]()
    model = reading(0.4 if state == "slow model" else 0.0)
    with CaptureLoop(source, model, policy=policy) as loop:
        if state == "running":
            next(loop)
        time.sleep(0.15)
        began = time.monotonic()
    assert time.monotonic() - began < 1.0
    stats = loop.stats().cameras[0]
    assert stats.grabbed == stats.processed + stats.dropped
    assert unfinished() == [0]
    assert loop.stats().abandoned == ()


def test_a_driver_that_does_not_come_back_is_left_alone(camera: Any, reading: Any) -> None:
    with CaptureLoop([camera("good", rate=100), camera("deaf", hang_at=1, deaf=True)], reading()) as loop:
        next(loop)
        time.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < 1.0
    assert loop.stats().abandoned == ("edgesmith-grab-deaf",)
    for row in loop.stats().cameras:
        assert row.grabbed == row.processed + row.dropped


def test_a_model_that_does_not_come_back_is_left_alone(camera: Any) -> None:
    leave = threading.Event()

    def hangs(frames: Any) -> list[int]:
        leave.wait(20)
        return [0]

    with CaptureLoop(camera(rate=100), hangs) as loop:
        time.sleep(0.1)
        began = time.monotonic()
    try:
        assert time.monotonic() - began < 1.0
        assert loop.stats().abandoned == ("edgesmith-infer",)
        before = loop.stats()
        assert before.grabbed == before.processed + before.dropped
    finally:
        leave.set()
    time.sleep(0.1)
    # What it does after its end changes nothing any more.
    assert loop.stats().cameras == before.cameras


def test_stop_from_another_thread_ends_the_iterator(camera: Any, reading: Any) -> None:
    with CaptureLoop(camera(rate=50, hang_at=3), reading()) as loop:
        threading.Timer(0.3, loop.stop).start()
        began = time.monotonic()
        assert len(list(loop)) <= 3
        assert time.monotonic() - began < 1.3


@pytest.mark.parametrize("stage", ["prepare", "infer", "decode"])
def test_an_error_of_a_stage_reaches_the_caller_with_its_traceback(
    camera: Any, unfinished: Unfinished, stage: str
) -> None:
    class Faulty:
        limit = 1

        def prepare(self, frames: Any) -> Any:
            self.fail("prepare", frames)
            return frames

        def infer(self, prepared: Any) -> Any:
            self.fail("infer", prepared)
            return prepared

        def decode(self, frames: Any, prepared: Any, outputs: Any) -> Any:
            self.fail("decode", frames)
            return [0]

        def fail(self, at: str, frames: Any) -> None:
            if at == stage and frames[0][0, 0, 0] == 10:
                raise ZeroDivisionError(at)

    with pytest.raises(ZeroDivisionError, match=stage) as caught:  # noqa: SIM117
        with CaptureLoop(camera(count=50), Faulty(), policy="every") as loop:
            loop.wait()
    assert "fail" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    stats = loop.stats().cameras[0]
    assert stats.failed == 1
    assert stats.grabbed == stats.processed + stats.dropped
    assert unfinished() == [0]


def test_an_error_of_a_sink_or_a_callback_reaches_the_caller(camera: Any, reading: Any) -> None:
    loop = CaptureLoop(camera(count=9), reading(), policy="every", sinks=[Broken(closing=False)])
    with pytest.raises(OSError, match="disk full"), loop:
        loop.wait()

    def callback(result: Result) -> None:
        raise KeyError("callback")

    with (
        pytest.raises(KeyError, match="callback"),
        CaptureLoop(camera(rate=50), reading(), on_result=callback) as loop,
    ):
        loop.wait()

    def watcher(name: str, state: str) -> None:
        raise KeyError("watcher")

    with (
        pytest.raises(KeyError, match="watcher"),
        CaptureLoop(camera(rate=50), reading(), on_state=watcher) as loop,
    ):
        loop.wait()


def test_an_error_that_nobody_asked_for_is_raised_at_the_end(camera: Any, reading: Any) -> None:
    def callback(result: Result) -> None:
        raise KeyError("callback")

    with pytest.raises(KeyError, match="callback"):  # noqa: SIM117
        with CaptureLoop(camera(rate=50), reading(), on_result=callback):
            time.sleep(0.3)
    with pytest.raises(OSError, match="at the end"):  # noqa: SIM117
        with CaptureLoop(camera(count=3), reading(), policy="every", sinks=[Broken(closing=True)]) as loop:
            loop.wait()


def test_an_error_of_the_body_is_not_hidden(camera: Any, reading: Any) -> None:
    with pytest.raises(ValueError, match="mine"):  # noqa: SIM117
        with CaptureLoop(camera(count=3), reading(), policy="every", sinks=[Broken(closing=True)]):
            raise ValueError("mine")


def test_a_lost_camera_is_raised_after_its_results(camera: Any, reading: Any) -> None:
    answers: list[Any] = []
    loop = CaptureLoop(camera(error_at=12), reading(0.005), policy="every")
    with pytest.raises(CameraError, match="camera was unplugged") as caught, loop:
        answers.extend(result.answer for result in loop)
    assert answers == list(range(12))
    assert caught.value.reason == "lost"
    assert loop.stats().cameras[0].state == "failed"
    assert loop.stats().cameras[0].error == "camera was unplugged"


def test_a_lost_camera_among_many_ends_the_loop_or_not(camera: Any, reading: Any) -> None:
    with pytest.raises(CameraError, match="bad was unplugged"):  # noqa: SIM117
        with CaptureLoop([camera("good", rate=200), camera("bad", error_at=3)], reading()) as loop:
            loop.wait()
    cameras = [camera("good", count=50), camera("bad", error_at=3)]
    with CaptureLoop(cameras, reading(), policy="every", on_camera_error="continue") as loop:
        results = list(loop)
    assert [r.frame.sequence for r in results if r.camera == "good"] == list(range(50))
    assert [r.frame.sequence for r in results if r.camera == "bad"] == [0, 1, 2]
    assert [c.state for c in loop.stats().cameras] == ["ended", "failed"]
    cameras = [camera("bad", error_at=3), camera("worse", error_at=1)]
    with pytest.raises(CameraError, match="unplugged"):  # noqa: SIM117
        with CaptureLoop(cameras, reading(), policy="every", on_camera_error="continue") as loop:
            loop.wait()


def test_closing_twice_and_never_starting_close_the_cameras_once(camera: Any, reading: Any) -> None:
    source = camera(rate=100)
    with CaptureLoop(source, reading()) as loop:
        next(loop)
        loop.close()
        assert list(loop) == []
    assert source.closings == 1
    source = camera()
    CaptureLoop(source, reading()).close()
    assert source.closings == 1
    source = camera()
    with pytest.raises(ConfigError, match="batch"):
        CaptureLoop(source, reading(), batch=0)
    assert source.closings == 1


SCRIPT = """
import signal, sys, time, threading
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
from edgesmith.sdk.cameras.base import Frame
from edgesmith.sdk.loop.capture_loop import CaptureLoop

class Silent:
    name, fps, length, faults, live = "silent", None, None, [], True
    def __init__(self): self.closed = threading.Event()
    def frames(self):
        yield Frame(np.zeros((4, 4, 3), np.uint8), 0, time.monotonic_ns(), None, "silent")
        self.closed.wait()
    def close(self): self.closed.set()

try:
    with CaptureLoop(Silent(), lambda frames: [0]) as loop:
        for result in loop:
            print("ready", flush=True)
except KeyboardInterrupt:
    print([t.name for t in threading.enumerate() if t.name.startswith("edgesmith")], flush=True)
"""


def test_ctrl_c_ends_a_loop_that_waits() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.2)
            began = time.monotonic()
            os.kill(process.pid, signal.SIGINT)
            rest, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert rest == "[]\n"
    assert process.returncode == 0
    assert time.monotonic() - began < 5
