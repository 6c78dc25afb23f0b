"""Callbacks, get(), and asyncio."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from edgesmith.sdk import open_camera
from edgesmith.sdk.errors import CameraError, StaleFrameError
from edgesmith.sdk.loop.capture_loop import CaptureLoop


def test_states_of_cameras_are_told_in_order(camera: Any, reading: Any) -> None:
    states: list[tuple[str, str]] = []
    cameras = [camera("a", rate=50, count=20), camera("b", rate=50, error_at=10)]

    def told(name: str, state: str) -> None:
        states.append((name, state))

    with CaptureLoop(cameras, reading(), on_state=told, on_camera_error="continue") as loop:
        loop.wait()
    for name, last in (("a", "ended"), ("b", "failed")):
        own = [state for other, state in states if other == name]
        assert own[-1] == last
        assert own[0] in ("opening", "streaming")
        assert len(own) == len(set(own))


def test_a_camera_that_knows_its_state_is_asked(reading: Any) -> None:
    states: list[str] = []
    source = open_camera("test:", size=(80, 48), fps=50)
    with CaptureLoop(source, reading(), on_state=lambda name, state: states.append(state)) as loop:
        for _ in range(5):
            next(loop)
        time.sleep(0.15)
        assert loop.stats().cameras[0].state == "streaming"
    assert states[-2:] == ["streaming", "ended"]


def test_get_waits_no_longer_than_told(camera: Any, reading: Any) -> None:
    with CaptureLoop(camera(rate=50, hang_at=1), reading()) as loop:
        first = loop.get(5.0)
        assert first is not None
        began = time.monotonic()
        assert loop.get(0.1) is None
        assert 0.1 <= time.monotonic() - began < 2
        assert not loop.over
    with CaptureLoop(camera(count=1), reading(), policy="every") as loop:
        assert loop.get(5.0) is not None
        assert loop.get(5.0) is None
        assert loop.over


def test_results_in_asyncio_leave_room_for_other_tasks(camera: Any, reading: Any) -> None:
    async def main() -> tuple[list[int], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.005)

        ticking = asyncio.create_task(tick())
        async with CaptureLoop(camera(count=60), reading(0.005), policy="every") as loop:
            answers: list[Any] = [result.answer async for result in loop]
        ticking.cancel()
        return answers, ticks

    answers, ticks = asyncio.run(main())
    assert answers == list(range(60))
    assert ticks > 10


def test_errors_and_stale_frames_reach_asyncio(camera: Any, reading: Any) -> None:
    async def lost() -> None:
        async with CaptureLoop(camera(error_at=4), reading(), policy="every") as loop:
            async for _ in loop:
                pass

    with pytest.raises(CameraError, match="unplugged"):
        asyncio.run(lost())

    async def stale() -> int:
        count = 0
        async with CaptureLoop(camera(rate=50, hang_at=2), reading(), max_age_ms=150) as loop:
            results = aiter(loop)
            while count < 2:
                try:
                    await anext(results)
                except StaleFrameError:
                    count += 1
        return count

    assert asyncio.run(stale()) == 2


def test_an_await_can_be_given_up(camera: Any, reading: Any) -> None:
    async def main() -> list[int]:
        answers: list[Any] = []
        async with CaptureLoop(camera(rate=20, hang_at=3), reading()) as loop:
            results = aiter(loop)
            for _ in range(6):
                try:
                    answers.append((await asyncio.wait_for(anext(results), 0.2)).answer)
                except asyncio.TimeoutError:
                    break
        return answers

    began = time.monotonic()
    answers = asyncio.run(main())
    assert answers == sorted(set(answers))
    assert answers[-1] == 2
    assert time.monotonic() - began < 4
