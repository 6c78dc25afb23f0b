from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable

import pytest

from edgesmith.sdk.cameras import Camera, CameraState, CameraStatus, SupervisedCamera
from edgesmith.sdk.cameras.live import LiveCamera
from edgesmith.sdk.cameras.options import LiveOptions
from edgesmith.sdk.cameras.session import Grab, Link
from edgesmith.sdk.cameras.testpattern import pattern_image, read_number
from edgesmith.sdk.errors import CameraError, CameraLost, ConfigError
from edgesmith.sdk.testing.scripted_camera import (
    Fail,
    Frames,
    Freeze,
    Hang,
    Lose,
    ScriptedCamera,
    Stall,
    Step,
)

QUICK = {"first_s": 0.02, "longest_s": 0.05, "seed": 1}
Until = Callable[[Callable[[], bool], float], bool]
Seen = list[tuple[str, str]]


def camera_of(*steps: Step, seen: Seen | None = None, **options: object) -> ScriptedCamera:
    def note(status: CameraStatus) -> None:
        if seen is not None:
            seen.append((status.state.value, status.reason))

    settings = {"backoff": QUICK, "stall_ms": 250, **options}
    return ScriptedCamera(*steps, on_state=note, **settings)  # type: ignore[arg-type]


def test_it_is_a_camera() -> None:
    camera = camera_of(Frames(1))
    assert isinstance(camera, Camera)
    assert isinstance(camera, SupervisedCamera)
    camera.close()


def test_losses_are_survived_and_counted(until: Until) -> None:
    seen: Seen = []
    camera = camera_of(Frames(5), Lose(refused=2), Frames(5), Lose("closed-by-peer"), Frames(5), seen=seen)
    frames = list(camera.frames())
    status = camera.status()
    assert (status.state, status.reason, status.reconnects) == (CameraState.ENDED, "end", 2)
    assert status.frames == 15 == status.delivered + status.dropped
    assert [read_number(f.image) for f in frames] == [f.sequence for f in frames]
    assert until(lambda: ("ended", "end") in seen, 2)
    assert seen == [
        ("streaming", ""), ("reconnecting", "lost"), ("reconnecting", "refused"),
        ("streaming", ""), ("reconnecting", "closed-by-peer"), ("streaming", ""), ("ended", "end"),
    ]  # fmt: skip


def test_a_stall_is_found_in_its_time(until: Until) -> None:
    seen: Seen = []
    camera = camera_of(Frames(3), Stall(30), Frames(200), seen=seen)
    assert until(lambda: ("stalled", "stalled") in seen, 5)
    status = camera.status()
    age_ms = status.age_ms
    assert age_ms is not None
    assert until(lambda: camera.state is CameraState.STREAMING, 5)
    assert seen[1:4] == [("stalled", "stalled"), ("reconnecting", "stalled"), ("streaming", "")]
    camera.close()


def test_without_reconnecting_a_loss_is_raised() -> None:
    camera = camera_of(Frames(3), Lose("lost"), Frames(3), reconnect=False)
    with pytest.raises(CameraLost, match="lost by the script") as caught:
        list(camera.frames())
    assert caught.value.reason == "lost"
    assert camera.status().delivered > 0
    assert camera.state is CameraState.FAILED
    with pytest.raises(CameraLost):
        next(camera.frames())
    camera.close()
    assert list(camera.frames()) == []
    assert camera.state is CameraState.FAILED


def test_a_frozen_picture_is_a_stall_of_its_own(until: Until) -> None:
    seen: Seen = []
    camera = camera_of(Frames(10), Freeze(60), Frames(60), seen=seen, frozen_ms=200)
    assert until(lambda: ("stalled", "frozen") in seen, 5)
    assert ("reconnecting", "frozen") in seen or until(lambda: ("reconnecting", "frozen") in seen, 2)
    frames = []
    for frame in camera.frames():
        frames.append(frame)
    # 20 of them at most came before the limit; the rest, before and after reconnecting, were withheld.
    assert [read_number(f.image) for f in frames].count(9) <= 24
    assert camera.status().reconnects == 1
    assert seen.count(("streaming", "")) == 2
    assert frames[-1].sequence > 70


def test_a_frozen_picture_without_reconnecting_ends_it() -> None:
    camera = camera_of(Frames(5), Freeze(1000), frozen_ms=150, reconnect=False)
    with pytest.raises(CameraLost, match=r"the very same pixels for 0\.15 s") as caught:
        list(camera.frames())
    assert caught.value.reason == "frozen"


def test_an_exception_reaches_the_reader_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    camera = camera_of(Frames(3), Fail(ZeroDivisionError("planned")))
    with pytest.raises(ZeroDivisionError, match="planned") as caught:
        list(camera.frames())
    assert "_act" in "".join(traceback.format_exception(caught.value))
    assert camera.state is CameraState.FAILED
    assert "the session failed" in caplog.text


def test_a_hopeless_error_is_not_tried_again() -> None:
    camera = camera_of(Frames(3), Fail(CameraError("no entry", reason="unauthorized")), Frames(3))
    with pytest.raises(CameraError, match="no entry"):
        list(camera.frames())
    assert camera.status().reconnects == 0


def test_a_camera_that_is_not_there_is_raised_or_waited_for(until: Until) -> None:
    with pytest.raises(CameraLost, match="lost by the script"):
        camera_of(Lose(), Frames(3))
    camera = camera_of(Lose(refused=3), Frames(3), wait=True)
    assert [read_number(f.image) for f in camera.frames()]
    assert camera.status().reconnects == 0  # it was not lost, only late


def test_no_picture_at_first_is_a_time_out() -> None:
    started = time.monotonic()
    with pytest.raises(CameraError, match=r"no picture within 0\.2 s") as caught:
        camera_of(Stall(30), open_s=0.2)
    assert caught.value.reason == "timeout"
    assert time.monotonic() - started < 1.5


def test_a_hanging_decoder_is_abandoned_and_counted(caplog: pytest.LogCaptureFixture, until: Until) -> None:
    camera = camera_of(Frames(3), Hang(3), Frames(300))
    assert until(lambda: camera.status().abandoned == 1, 3)
    assert until(lambda: camera.state is CameraState.STREAMING, 3)
    assert "left to itself" in caplog.text
    camera.close()


def test_hanging_decoders_do_not_pile_up(until: Until) -> None:
    camera = camera_of(Frames(1), *[Hang(5)] * 8, Frames(100), stall_ms=50, open_s=0.05)
    assert until(lambda: camera.status().abandoned == 4, 5)
    time.sleep(0.7)
    assert camera.status().abandoned == 4
    hung = [t for t in threading.enumerate() if t.name == "grab scripted"]
    assert len(hung) <= 4
    started = time.monotonic()
    camera.close()
    assert time.monotonic() - started < 1


STATES: dict[str, tuple[list[Step], CameraState]] = {
    "opening": ([Stall(30)], CameraState.OPENING),
    "opening, hung": ([Hang(3)], CameraState.OPENING),
    "streaming": ([Frames(10_000)], CameraState.STREAMING),
    "stalled": ([Frames(1), Hang(3)], CameraState.STALLED),
    "reconnecting": ([Frames(1), Lose(refused=10_000)], CameraState.RECONNECTING),
    "ended": ([Frames(1)], CameraState.ENDED),
    "failed": ([Frames(1), Fail(CameraError("no", reason="unauthorized"))], CameraState.FAILED),
}


@pytest.mark.parametrize("name", list(STATES))
def test_closing_ends_the_reader_within_a_second_from_any_state(name: str, until: Until) -> None:
    steps, state = STATES[name]
    camera = camera_of(*steps, wait=True)
    ended: list[float] = []

    def read() -> None:
        try:
            for _frame in camera.frames():
                pass
        except CameraError:
            pass
        ended.append(time.monotonic())

    assert until(lambda: camera.state is state, 5)
    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.03)
    started = time.monotonic()
    camera.close()
    camera.close()
    assert time.monotonic() - started < 1.5  # twice 0.9 s at worst, once where nothing hangs
    reader.join(1)
    assert not reader.is_alive()
    assert ended[0] - started < 1
    assert until(lambda: camera.state.over, 2)
    if state not in (CameraState.ENDED, CameraState.FAILED):
        assert camera.status().reason == "closed"


def test_threads_end_with_the_camera(until: Until) -> None:
    before = threading.active_count()
    for _ in range(10):
        camera = camera_of(Frames(3), Lose(), Frames(1000))
        next(camera.frames())
        camera.close()
    assert until(lambda: threading.active_count() == before, 2)


def test_a_callback_that_raises_or_closes_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    def raising(status: CameraStatus) -> None:
        raise RuntimeError("in the callback")

    camera = ScriptedCamera(Frames(3), on_state=raising)
    assert list(camera.frames())
    camera.close()
    assert "on_state raised" in caplog.text

    made: list[ScriptedCamera] = []
    ready = threading.Event()

    def closing(status: CameraStatus) -> None:
        ready.wait(5)
        made[0].close()

    made.append(ScriptedCamera(Frames(100_000), on_state=closing))
    ready.set()
    assert len(list(made[0].frames())) < 1000


def test_a_damaged_picture_is_dropped_and_noted_within_bounds() -> None:
    def broken() -> None:
        raise CameraError("torn", reason="damaged")

    def session(link: Link) -> None:
        for number in range(600):
            pixels = pattern_image(number, (80, 48)) if number % 2 else broken
            link.put(Grab(pixels))  # type: ignore[arg-type]
            link.wait(0.002)

    camera = LiveCamera("torn", session, options=LiveOptions())
    frames = list(camera.frames())
    status = camera.status()
    assert status.frames == 600 == status.delivered + status.dropped
    assert len(frames) == status.delivered
    assert all(read_number(f.image) == f.sequence for f in frames)
    assert camera.faults[0] == "torn: torn"
    assert len(camera.faults) <= 101


def test_options_are_checked_by_name_and_value() -> None:
    with pytest.raises(ConfigError, match="no option stall for this kind of source; there are backoff"):
        camera_of(Frames(1), stall=1)
    with pytest.raises(ConfigError, match="stall_ms must be over 0"):
        camera_of(Frames(1), stall_ms=0)
    with pytest.raises(ConfigError, match=r"backoff"):
        camera_of(Frames(1), backoff={"first_s": 2, "longest_s": 1})


def test_a_change_of_size_goes_on_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        camera = camera_of(Frames(5), Frames(5, size=(80, 60)))
        shapes = {f.image.shape for f in camera.frames()}
    assert shapes == {(120, 160, 3), (60, 80, 3)}
    assert camera.status().size == (80, 60)
    assert "the picture is now 80x60" in caplog.text


@pytest.mark.parametrize("steps", ["Frames(100_000)", "Frames(1), Hang(30)"])
def test_a_process_that_forgets_to_close_ends_in_order(steps: str) -> None:
    code = (
        "from edgesmith.sdk.testing.scripted_camera import *\n"
        f"cameras = [ScriptedCamera({steps}) for _ in range(3)]\n"
        "next(cameras[0].frames())\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    assert time.monotonic() - started < 15
