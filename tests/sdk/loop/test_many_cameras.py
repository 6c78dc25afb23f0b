"""Several cameras, one model: nobody starves, every frame is accounted for, the order holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesmith.sdk import Detector, open_camera
from edgesmith.sdk.cameras.testpattern import read_number
from edgesmith.sdk.loop.capture_loop import CaptureLoop
from edgesmith.sdk.loop.mailbox import Mailboxes, Policy
from edgesmith.sdk.loop.result import Result

MakeBundle = Callable[..., Path]
Unfinished = Callable[[], list[int]]


class Numbers:
    """A sink that reads the numbers in the pictures, by camera."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.read: dict[str, list[int | None]] = {}
        self.told: dict[str, list[int]] = {}

    def write(self, result: Result) -> None:
        self.read.setdefault(result.camera, []).append(read_number(result.frame.image))
        self.told.setdefault(result.camera, []).append(result.frame.sequence)

    def close(self) -> None:
        """Nothing is held."""


def test_eight_cameras_share_one_model(make_bundle: MakeBundle, unfinished: Unfinished) -> None:
    cameras = [open_camera("test:", size=(160, 96), fps=30, name=f"camera {n}") for n in range(8)]
    sink = Numbers()
    with (
        Detector.load(make_bundle(), backend="cpu", threads=1) as detector,
        CaptureLoop(cameras, detector, on_result=sink.write) as loop,
    ):
        time.sleep(3.0)
    rows = loop.stats().cameras
    processed = [row.processed for row in rows]
    assert min(processed) > 30
    assert min(processed) >= 0.9 * max(processed), processed
    for row in rows:
        assert row.grabbed == row.processed + row.dropped
        assert len(sink.read[row.name]) == row.processed
    assert unfinished() == [0] * 8
    for name, numbers in sink.read.items():
        assert numbers == sink.told[name]
        assert (np.diff(np.array(numbers, np.int64)) > 0).all()


def test_no_camera_starves_where_the_model_is_the_slowest(camera: Any, reading: Any) -> None:
    """Each is served in its turn, also the slow one beside the fast."""
    cameras = [camera(f"{n}", rate=rate) for n, rate in enumerate((200, 200, 200, 20))]
    with CaptureLoop(cameras, reading(0.012), batch=1) as loop:
        time.sleep(2.5)
    rows = loop.stats().cameras
    fast = [row.processed for row in rows[:3]]
    assert max(fast) - min(fast) <= 2
    # At 20 Hz it asks for less than its share, and gets what it asks for; two in the pipe at the end.
    assert rows[3].processed >= rows[3].grabbed - rows[3].replaced - 3
    assert rows[3].processed >= 0.5 * min(fast)


def test_frames_of_several_cameras_share_a_run_within_the_limit(camera: Any, reading: Any) -> None:
    model = reading(0.02, limit=3)
    cameras = [camera(f"{n}", rate=100) for n in range(5)]
    with CaptureLoop(cameras, model, limit=60) as loop:
        results = list(loop)
    assert max(model.batches) == 3
    assert sum(size == 3 for size in model.batches) > len(model.batches) / 2
    assert {result.batch for result in results} <= {1, 2, 3}


def test_the_wait_for_other_cameras_is_bounded(camera: Any, reading: Any) -> None:
    """A camera that is silent does not hold up the others."""
    model = reading(limit=2)
    cameras = [camera("good", rate=50, count=20), camera("silent", hang_at=0)]
    began = time.monotonic()
    with CaptureLoop(cameras, model, gather_ms=20) as loop:
        while loop.stats().cameras[0].state != "ended":
            loop.get(0.05)
    assert time.monotonic() - began < 5
    assert set(model.batches) == {1}


def test_files_and_live_cameras_may_share_a_loop(camera: Any, reading: Any) -> None:
    cameras = [camera("file", count=60), camera("live", rate=300, count=200)]
    with CaptureLoop(cameras, reading(0.004), policy=["every", "latest"]) as loop:
        results = list(loop)
    assert [r.frame.sequence for r in results if r.camera == "file"] == list(range(60))
    live = [r.frame.sequence for r in results if r.camera == "live"]
    assert live == sorted(set(live))
    assert loop.stats().cameras[1].dropped > 0


def test_cameras_of_one_name_are_told_apart(camera: Any, reading: Any) -> None:
    with CaptureLoop([camera("a", count=2), camera("a", count=2)], reading(), policy="every") as loop:
        assert {result.camera for result in loop} == {"a", "a (2)"}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from(["latest", "every"]), st.integers(1, 60)), min_size=1, max_size=4
    ),
    slow_ms=st.integers(0, 4),
    limit=st.integers(1, 4),
    stop_after=st.one_of(st.none(), st.integers(1, 60)),
)
def test_numbers_are_in_order_and_none_comes_twice(
    reading: Any, kinds: list[tuple[Policy, int]], slow_ms: int, limit: int, stop_after: int | None
) -> None:
    sink = Numbers()
    cameras = [
        open_camera("test:", size=(80, 48), name=f"{n}", frames=frames, realtime=False)
        for n, (_, frames) in enumerate(kinds)
    ]

    class Slow(reading):  # type: ignore[misc]
        def __call__(self, frames: Any) -> Any:
            time.sleep(self.seconds)
            return [read_number(frame) for frame in frames]

    policies = [policy for policy, _ in kinds]
    with CaptureLoop(
        cameras, Slow(slow_ms / 1e3, limit), policy=policies, limit=stop_after, on_result=sink.write
    ) as loop:
        results = list(loop)
    for n, (policy, frames) in enumerate(kinds):
        row, numbers = loop.stats().cameras[n], sink.read.get(f"{n}", [])
        assert numbers == sorted(set(numbers))  # type: ignore[type-var]
        assert row.processed == len(numbers)
        assert row.grabbed == row.processed + row.dropped
        if stop_after is None:
            assert row.grabbed == frames
            assert policy == "latest" or numbers == list(range(frames))
    for result in results:
        answer: Any = result.answer
        assert answer == result.frame.sequence == read_number(result.frame.image)
    if stop_after is not None:
        assert loop.stats().processed <= stop_after


@given(data=st.data(), sources=st.integers(1, 4))
def test_a_mailbox_never_loses_count(data: st.DataObject, sources: int) -> None:
    """What is put is taken, passed over, or left at the end; nothing else happens to it."""
    passed = [0] * sources

    def count(source: int) -> None:
        passed[source] += 1

    boxes: Mailboxes[int] = Mailboxes(["latest"] * sources, lambda older, newer: newer, count)
    put, taken = [0] * sources, [0] * sources
    newest: dict[int, int] = {}
    for step in range(data.draw(st.integers(0, 40))):
        if data.draw(st.booleans()):
            source = data.draw(st.integers(0, sources - 1))
            assert boxes.put(source, step)
            put[source] += 1
            newest[source] = step
        elif newest:
            most = data.draw(st.integers(1, sources))
            got = boxes.take(most)
            assert got is not None
            assert len(got) == min(most, len(newest))
            for source, item in got:
                assert item == newest.pop(source)
                taken[source] += 1
    left = boxes.close()
    assert sorted(left) == sorted(newest)
    assert [p - q - t for p, q, t in zip(put, passed, taken, strict=True)] == [
        left.count(source) for source in range(sources)
    ]
    assert not boxes.put(0, 1)
    assert boxes.take() is None


@pytest.mark.parametrize("most", [1, 2])
def test_turns_go_round(most: int) -> None:
    boxes: Mailboxes[int] = Mailboxes(["latest"] * 3, lambda older, newer: newer, lambda source: None)
    served = []
    for step in range(6):
        for source in range(3):
            boxes.put(source, step)
        got = boxes.take(most)
        assert got is not None
        served += [source for source, _ in got]
    assert served == [n % 3 for n in range(6 * most)]
