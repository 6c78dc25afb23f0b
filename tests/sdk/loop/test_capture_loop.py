from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk import Detector
from edgesmith.sdk.errors import ConfigError, StaleFrameError
from edgesmith.sdk.loop.capture_loop import CaptureLoop
from edgesmith.sdk.loop.result import Result

Unfinished = Callable[[], list[int]]
MakeBundle = Callable[..., Path]


class Collected:
    """A sink that keeps what it is given."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.notes: list[str] = []
        self.results: list[Result] = []
        self.closings = 0
        self._seconds = seconds

    def write(self, result: Result) -> None:
        time.sleep(self._seconds)
        self.results.append(result)

    def close(self) -> None:
        self.closings += 1


def test_every_gives_each_frame_once_in_order(camera: Any, reading: Any) -> None:
    source, sink = camera(count=200), Collected()
    with CaptureLoop(source, reading(), policy="every", sinks=[sink]) as loop:
        results = list(loop)
    answers: list[Any] = [r.answer for r in results]
    assert answers == list(range(200))
    assert [r.frame.sequence for r in results] == list(range(200))
    assert {r.dropped for r in results} == {0}
    assert sink.results == results
    assert sink.closings == 1
    assert source.closed.is_set()
    stats = loop.stats().cameras[0]
    assert (stats.grabbed, stats.processed, stats.dropped, stats.state) == (200, 200, 0, "ended")


def test_latest_passes_over_what_is_too_fast_and_says_so(
    camera: Any, reading: Any, unfinished: Unfinished
) -> None:
    seen: list[Any] = []
    with CaptureLoop(camera(rate=200, count=200), reading(0.03), on_result=seen.append) as loop:
        loop.wait()
    stats = loop.stats().cameras[0]
    assert stats.grabbed == 200
    assert stats.replaced > 50
    assert stats.grabbed == stats.processed + stats.dropped
    assert unfinished() == [0]
    # What a result says was dropped is the gap in the numbers before it.
    numbers = [result.answer for result in seen]
    assert numbers == sorted(set(numbers))
    gaps = np.diff([-1, *numbers]) - 1
    assert [result.dropped for result in seen] == gaps.tolist()


def test_a_slow_reader_gets_fresh_results(camera: Any, reading: Any) -> None:
    ages, results = [], []
    with CaptureLoop(camera(rate=50), reading()) as loop:
        for result in loop:
            ages.append((time.monotonic_ns() - result.frame.captured_ns) / 1e6)
            results.append(result)
            time.sleep(0.15)
            if len(ages) == 8:
                break
    # A queue of any length would be 130 ms older each time; the machine may be busy for a moment.
    assert np.median(ages) < 100
    assert ages[-1] < ages[0] + 400
    numbers = [result.answer for result in results]
    assert [r.dropped for r in results] == (np.diff([-1, *numbers]) - 1).tolist()
    assert loop.stats().cameras[0].unread > 10


def test_a_result_tells_where_its_time_went(camera: Any, reading: Any) -> None:
    with CaptureLoop(camera("front", count=5), reading(0.02), policy="every") as loop:
        result = list(loop)[-1]
    assert list(result.ages_ms) == ["taken", "preprocess", "infer", "postprocess"]
    ages = list(result.ages_ms.values())
    assert ages == sorted(ages)
    assert result.age_ms == pytest.approx(ages[-1])
    assert set(result.stages_ms) == {"decode", "preprocess", "infer", "postprocess"}
    assert result.stages_ms["infer"] >= 20
    assert (result.camera, result.batch) == ("front", 1)


def test_stages_run_at_the_same_time(camera: Any) -> None:
    class Three:
        limit = 1

        def prepare(self, frames: Any) -> Any:
            time.sleep(0.03)
            return frames

        def infer(self, prepared: Any) -> Any:
            time.sleep(0.03)
            return prepared

        def decode(self, frames: Any, prepared: Any, outputs: Any) -> Any:
            time.sleep(0.03)
            return [0] * len(frames)

    began = time.monotonic()
    with CaptureLoop(camera(count=20), Three(), policy="every") as loop:
        assert len(list(loop)) == 20
    # One after the other they would take 1.8 s; at the same time 0.66 s.
    assert time.monotonic() - began < 1.4


def test_a_frame_does_not_grow_old_before_a_busy_model(camera: Any, reading: Any) -> None:
    """It is taken so late that it is ready when the model is, and the model hardly waits."""
    seen: list[Result] = []
    with CaptureLoop(camera(rate=200), reading(0.06), limit=40, on_result=seen.append) as loop:
        began = time.monotonic()
        loop.wait()
        spent = time.monotonic() - began
    waits = [result.ages_ms["infer"] - result.stages_ms["infer"] for result in seen[10:]]
    # Taken at once, it would wait for nearly the whole of a run: 55 ms and more.
    assert np.median(waits) < 40
    assert spent < 40 * 0.06 * 1.6


def test_a_slow_sink_does_not_slow_the_loop(camera: Any, reading: Any) -> None:
    sink = Collected(seconds=0.1)
    with CaptureLoop(camera(rate=100, count=60), reading(), sinks=[sink]) as loop:
        began = time.monotonic()
        loop.wait()
        spent = time.monotonic() - began
    assert spent < 4  # 6 s at the sink's speed
    assert loop.stats().processed > 6
    assert 1 <= len(sink.results) < 40
    assert any("passed over" in note for note in sink.notes)


def test_a_limit_ends_the_loop_after_so_many_results(
    camera: Any, reading: Any, unfinished: Unfinished
) -> None:
    sink = Collected()
    with CaptureLoop(camera(count=100), reading(), policy="every", sinks=[sink], limit=7) as loop:
        assert [r.frame.sequence for r in loop] == list(range(7))
    assert len(sink.results) == 7
    assert loop.stats().cameras[0].processed == 7
    assert unfinished() == [0]


def test_frames_beyond_their_age_are_refused_and_the_loop_goes_on(camera: Any, reading: Any) -> None:
    source = camera("front", rate=50, hang_at=5)
    with CaptureLoop(source, reading(), max_age_ms=400) as loop:
        raised: list[StaleFrameError] = []
        while len(raised) < 2:
            try:
                next(loop)
            except StaleFrameError as error:
                raised.append(error)
    assert raised[0].camera == "front"
    assert raised[0].age_ms > 400
    assert raised[1].age_ms > raised[0].age_ms + 350
    assert "front: the newest frame is" in str(raised[0])


def test_a_model_slower_than_the_age_is_told(camera: Any, reading: Any) -> None:
    with CaptureLoop(camera(rate=50), reading(0.2), max_age_ms=100) as loop, pytest.raises(StaleFrameError):
        next(loop)


def test_a_frame_that_is_old_when_its_turn_comes_is_not_run(camera: Any, reading: Any) -> None:
    class Late(camera):  # type: ignore[misc]
        """Hands out every frame 300 ms after its capture."""

        def frames(self) -> Any:
            for frame in super().frames():
                object.__setattr__(frame, "captured_ns", frame.captured_ns - 300_000_000)
                yield frame

    model = reading()
    with CaptureLoop(Late(rate=100), model, max_age_ms=200) as loop:
        for _ in range(3):
            with pytest.raises(StaleFrameError):
                next(loop)
    stats = loop.stats().cameras[0]
    assert model.batches == []
    assert stats.stale > 0
    assert stats.grabbed == stats.dropped


def test_a_bundle_in_a_loop_answers_as_a_call(make_bundle: MakeBundle, camera: Any) -> None:
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (40 + n, 60, 3), np.uint8) for n in range(20)]

    class Pictures(camera):  # type: ignore[misc]
        def frames(self) -> Any:
            for frame in super().frames():
                object.__setattr__(frame, "image", pictures[frame.sequence])
                yield frame

    path = make_bundle()
    expected = Detector.load(path, backend="cpu")(pictures, score=0.1, iou=0.9)
    with Detector.load(path, backend="cpu") as detector:
        loop = CaptureLoop(Pictures(count=20), detector, policy="every", score=0.1, iou=0.9)
        with loop:
            results = list(loop)
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.detections.boxes, wanted.boxes, atol=1e-4)
        np.testing.assert_allclose(result.detections.scores, wanted.scores, atol=1e-6)


def test_buffers_are_not_overwritten_while_the_graph_reads_them(make_bundle: MakeBundle, camera: Any) -> None:
    """A run that dawdles sees its own frame to the end."""
    numbers: list[tuple[float, float]] = []

    class Bright(camera):  # type: ignore[misc]
        def frames(self) -> Any:
            for frame in super().frames():
                object.__setattr__(frame, "image", np.full((32, 32, 3), frame.sequence * 5, np.uint8))
                yield frame

    detector = Detector.load(make_bundle(), backend="cpu")
    real = detector.backend.run

    def slow(images: NDArray[Any]) -> Any:
        before = float(images[0].max())
        time.sleep(0.01)
        numbers.append((before, float(images[0].max())))
        return real(images)

    detector.backend.run = slow  # type: ignore[method-assign]
    with CaptureLoop(Bright(count=40), detector, policy="every") as loop:
        assert len(list(loop)) == 40
    assert [before for before, _ in numbers] == [after for _, after in numbers]
    np.testing.assert_allclose([before for before, _ in numbers], np.arange(40) * 5 / 255, atol=1e-6)


def test_a_device_that_prepares_the_frames_does_it_where_it_runs(
    make_bundle: MakeBundle, camera: Any, frame: NDArray[np.uint8]
) -> None:
    """It has one buffer: a frame is prepared and run before the next one is prepared."""
    detector = Detector.load(make_bundle(), backend="cpu")
    expected = detector(frame)
    steps: list[str] = []

    class OnDevice:
        """Stands for a GPU: prepares by the host's code, into the one buffer that it has."""

        def prepare(self, frames: Any, count: int) -> Any:
            steps.append("prepare")
            batch, geometries = detector._prepare(frames)
            self.batch = batch.copy()
            return geometries

        def run_prepared(self) -> Any:
            steps.append("run")
            time.sleep(0.002)
            return detector.backend.run(self.batch)

    class Same(camera):  # type: ignore[misc]
        def frames(self) -> Any:
            for item in super().frames():
                object.__setattr__(item, "image", frame)
                yield item

    detector.backend.on_device = OnDevice()  # type: ignore[attr-defined]
    with CaptureLoop(Same(count=20), detector, policy="every") as loop:
        results = list(loop)
    assert steps == ["prepare", "run"] * 20
    for result in results:
        np.testing.assert_allclose(result.detections.boxes, expected.boxes, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "newest"}, "there is no policy 'newest': latest, every"),
        ({"policy": ["every", "every"]}, "2 policies for 1 cameras"),
        ({"policy": "every", "max_age_ms": 10.0}, "goes with policy"),
        ({"max_age_ms": 0.0}, "it is above 0"),
        ({"batch": 0}, "batch is 0"),
        ({"score": 0.5}, "score and iou go with a loaded bundle"),
    ],
)
def test_arguments_that_contradict_each_other(
    camera: Any, reading: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        CaptureLoop(camera(), reading(), **arguments)


def test_no_camera_no_model_and_no_start_are_told(camera: Any, reading: Any) -> None:
    with pytest.raises(ConfigError, match="at least one camera"):
        CaptureLoop([], reading())
    with pytest.raises(ConfigError, match="cannot be called with frames"):
        CaptureLoop(camera(), 7)
    with pytest.raises(ConfigError, match="in a with block"):
        next(CaptureLoop(camera(), reading()))
    with CaptureLoop(camera(count=1), reading(), policy="every") as loop:
        loop.wait()
    with pytest.raises(ConfigError, match="used before"):
        loop.__enter__()


def test_a_model_with_too_few_answers_is_told(camera: Any) -> None:
    with (
        CaptureLoop(camera(count=1), lambda frames: [], policy="every") as loop,
        pytest.raises(ConfigError, match="0 answers for 1 frames"),
    ):
        next(loop)
