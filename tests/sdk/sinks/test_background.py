from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.sdk import Result
from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.sinks.base import BackgroundSink, wall_ns

MakeResult = Callable[..., Result]
QUICK = (0.01, 0.04)


class Recorder:
    """Writes frame numbers; ``gate`` holds it up, ``broken`` makes it fail."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.numbers: list[int] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.broken: Exception | None = None
        self.closed = False

    def write(self, result: Result) -> None:
        self.gate.wait(10)
        self.threads.add(threading.current_thread().name)
        if self.broken is not None:
            raise self.broken
        self.numbers.append(result.frame.sequence)

    def close(self) -> None:
        self.closed = True


class Reopener(Recorder):
    reopened = 0

    def reopen(self) -> None:
        self.reopened += 1


def until(what: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.002)


def total(sink: BackgroundSink) -> int:
    stats = sink.stats()
    return stats.written + stats.dropped + stats.errors + stats.queued


def test_everything_is_written_in_order_by_one_thread(make_result: MakeResult) -> None:
    inner = Recorder()
    sink = BackgroundSink(inner, capacity=100, name="tape")
    for n in range(100):
        sink.write(make_result(n))
    sink.close()
    assert inner.numbers == list(range(100))
    assert inner.threads == {"sink-tape"}
    assert inner.closed
    assert sink.stats().written == 100
    assert sink.notes == []
    assert not any(t.name == "sink-tape" for t in threading.enumerate())


@pytest.mark.parametrize(
    ("overflow", "kept"), [("oldest", [0, 7, 8, 9]), ("newest", [0, 1, 2, 3])], ids=["oldest", "newest"]
)
def test_a_slow_sink_never_holds_the_loop_up(make_result: MakeResult, overflow: Any, kept: list[int]) -> None:
    inner = Recorder()
    inner.gate.clear()
    sink = BackgroundSink(inner, capacity=3, name="slow", overflow=overflow)
    sink.write(make_result(0))
    until(lambda: sink.stats().queued == 1 and not sink._queue)  # it is at hand
    began = time.monotonic()
    for n in range(1, 10):
        sink.write(make_result(n))
    assert time.monotonic() - began < 1.0  # the gate holds for 10
    assert sink.stats().dropped == 6
    assert sink.stats().queued == 4
    inner.gate.set()
    sink.close()
    assert inner.numbers == kept
    assert sink.notes == ["slow: 6 of 10 results were passed over"]


@pytest.mark.parametrize(("overflow", "kept"), [("oldest", [0, 5, 6]), ("newest", [0, 1, 2])])
def test_large_pictures_fill_a_queue_before_their_number_does(
    make_result: MakeResult, overflow: Any, kept: list[int]
) -> None:
    recorder = Recorder()
    recorder.gate.clear()
    room = 2 * 60 * 80 * 3 + 1
    sink = BackgroundSink(recorder, capacity=5, overflow=overflow, most_bytes=room)
    sink.write(make_result(0))
    until(lambda: sink.stats().queued == 1 and not sink._queue)
    for number in range(1, 7):
        sink.write(make_result(number))
    assert sink.stats().dropped == 4
    recorder.gate.set()
    sink.close()
    assert recorder.numbers == kept
    assert sink._bytes == 0


def test_a_picture_larger_than_the_queue_is_taken_alone(make_result: MakeResult) -> None:
    recorder = Recorder()
    sink = BackgroundSink(recorder, most_bytes=1)
    sink.write(make_result(0))
    sink.close()
    assert recorder.numbers == [0]


def test_a_sink_that_reads_no_pictures_holds_none(make_result: MakeResult) -> None:
    class Blind(Recorder):
        reads_image = False
        seen: Result | None = None

        def write(self, result: Result) -> None:
            super().write(result)
            self.seen = result

    blind = Blind()
    sink = BackgroundSink(blind, capacity=5, most_bytes=1)
    given = make_result(3)
    sink.write(given)
    sink.close()
    assert blind.seen is not None
    assert blind.seen.frame.image.shape == given.frame.image.shape
    assert blind.seen.frame.image.base is not given.frame.image
    assert blind.seen.frame.image.strides == (0, 0, 0)
    assert (blind.seen.answer, blind.seen.frame.captured_ns) == (given.answer, given.frame.captured_ns)


def test_a_sink_that_waits_holds_the_caller_up_and_loses_nothing(make_result: MakeResult) -> None:
    inner = Recorder()
    inner.gate.clear()
    sink = BackgroundSink(inner, capacity=2, overflow="wait")

    def feed() -> None:
        for n in range(20):
            sink.write(make_result(n))

    feeder = threading.Thread(target=feed)
    feeder.start()
    feeder.join(0.2)
    assert feeder.is_alive()
    inner.gate.set()
    feeder.join(5)
    sink.close()
    assert inner.numbers == list(range(20))


def test_a_failing_sink_does_not_hold_the_caller_up_even_where_it_should_wait(
    make_result: MakeResult,
) -> None:
    inner = Recorder()
    inner.broken = SinkError("the disk is full")
    sink = BackgroundSink(inner, capacity=1, overflow="wait", backoff_s=(5.0, 5.0))
    began = time.monotonic()
    for n in range(50):
        sink.write(make_result(n))
    assert time.monotonic() - began < 2.0
    sink.close()
    assert total(sink) == 50


def test_an_error_is_told_once_and_again_after_it_worked(
    make_result: MakeResult, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    inner = Reopener()
    sink = BackgroundSink(inner, name="tape", capacity=50, backoff_s=QUICK)
    for round_ in range(2):
        inner.broken = SinkError("the disk is full")
        for n in range(5):
            sink.write(make_result(n))
        until(lambda: sink.stats().queued == 0)
        assert sink.stats().error == "the disk is full"
        inner.broken = None
        sink.write(make_result(99))
        until(lambda: sink.stats().queued == 0)
        assert sink.stats().error is None
        assert sink.stats().written == round_ + 1
    sink.close()
    told = [r.getMessage() for r in caplog.records]
    assert [t.split(" (")[0] for t in told] == [
        "tape: the disk is full",
        "tape: works again; 5 results could not be written",
        "tape: the disk is full",
        "tape: works again; 10 results could not be written",
    ]
    assert inner.reopened == 10  # before each write that followed an error
    assert sink.notes == ["tape: 10 results could not be written: the disk is full"]


def test_a_failing_sink_is_left_alone_for_longer_and_longer(make_result: MakeResult) -> None:
    inner = Recorder()
    inner.broken = SinkError("no")
    sink = BackgroundSink(inner, capacity=100, backoff_s=(0.05, 10.0))
    for n in range(100):
        sink.write(make_result(n))
    time.sleep(0.5)
    # 0.05 + 0.1 + 0.2 + 0.4 s, with a fifth of jitter: at most five attempts in half a second.
    assert 2 <= sink.stats().errors <= 5
    sink.close()
    assert total(sink) == 100


def test_a_mistake_in_a_sink_reaches_the_caller_with_its_traceback(make_result: MakeResult) -> None:
    class Wrong(Recorder):
        def write(self, result: Result) -> None:
            raise KeyError("colour")

    sink = BackgroundSink(Wrong(), backoff_s=QUICK)
    sink.write(make_result())
    until(lambda: sink.stats().errors == 1)
    sink.write(make_result())  # the loop goes on
    with pytest.raises(KeyError, match="colour") as caught:
        sink.close()
    assert any(entry.name == "write" for entry in caught.traceback)


def test_a_sink_that_hangs_does_not_hang_the_end(make_result: MakeResult) -> None:
    inner = Recorder()
    inner.gate.clear()
    sink = BackgroundSink(inner, capacity=5, name="stuck", flush_s=0.2)
    for n in range(4):
        sink.write(make_result(n))
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 2.0
    assert sink.notes[0] == "stuck: did not finish in 0.4 s and was left alone"
    stats = sink.stats()
    assert (stats.written, stats.dropped, stats.queued) == (0, 3, 1)
    sink.close()  # a second time is no harm
    with pytest.raises(SinkError, match="after the sink was closed"):
        sink.write(make_result(9))
    inner.gate.set()
    until(lambda: inner.closed)


def test_a_sink_that_cannot_finish_says_so(make_result: MakeResult) -> None:
    class Unfinished(Recorder):
        def close(self) -> None:
            raise SinkError("no index")

    sink = BackgroundSink(Unfinished(), name="tape")
    sink.write(make_result())
    sink.close()
    assert "tape: could not be finished: no index" in sink.notes


@given(
    plan=st.lists(st.sampled_from(["write", "break", "mend", "hold", "go"]), max_size=60),
    overflow=st.sampled_from(["oldest", "newest"]),
    capacity=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_every_result_is_accounted_for_and_none_comes_twice_or_out_of_order(
    plan: list[str], overflow: Any, capacity: int
) -> None:
    inner = Recorder()
    sink = BackgroundSink(inner, capacity=capacity, overflow=overflow, backoff_s=(0.001, 0.002))
    given_ = 0
    for step in plan:
        if step == "write":
            sink.write(_numbered(given_))
            given_ += 1
            assert total(sink) == given_
        elif step in ("break", "mend"):
            inner.broken = SinkError("broken") if step == "break" else None
        else:
            (inner.gate.clear if step == "hold" else inner.gate.set)()
    inner.gate.set()
    sink.close()
    assert inner.numbers == sorted(set(inner.numbers))
    stats = sink.stats()
    assert stats.queued == 0
    assert stats.written == len(inner.numbers)
    assert total(sink) == given_


def _numbered(number: int) -> Result:
    import numpy as np

    from edgesmith.sdk import Detections, Frame

    return Result(Frame(np.zeros((2, 2, 3), np.uint8), number, 0, None, "a"), Detections.empty())


@pytest.mark.parametrize(("option", "value"), [("capacity", 0), ("overflow", "some")])
def test_a_queue_that_cannot_be_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        BackgroundSink(Recorder(), **{option: value})


def test_the_time_of_day_of_a_moment() -> None:
    before = time.time_ns()
    now = wall_ns(time.monotonic_ns())
    assert before - 1e8 < now < time.time_ns() + 1e8
    assert abs(wall_ns(time.monotonic_ns() - 10**9) - (time.time_ns() - 10**9)) < 1e8
