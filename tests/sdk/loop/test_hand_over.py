from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from edgesmith.sdk.loop.mailbox import HandOver


def begin(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """The call in a thread of its own, and where its answer will be."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    return thread, answers


def until(what: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.001)


def test_a_writer_does_not_stand_still_until_a_waiting_reader_has_woken() -> None:
    slot: HandOver[int] = HandOver()
    reader, read = begin(slot.take)
    until(lambda: slot._reader_waits)
    with slot._changed:  # as between the writer's put and the reader's awakening
        slot._item = 1
    assert slot.reserve()
    with slot._changed:
        slot._changed.notify_all()
    reader.join(5)
    assert read == [1]


def test_a_writer_waits_for_a_reader_who_is_busy() -> None:
    slot: HandOver[int] = HandOver()
    assert slot.reserve()
    assert slot.put(1)
    writer, reserved = begin(slot.reserve)
    time.sleep(0.05)
    assert reserved == []
    assert slot.take() == 1
    writer.join(5)
    assert reserved == [True]


def test_nothing_is_put_over_what_nobody_took() -> None:
    slot: HandOver[int] = HandOver()
    assert slot.put(1)
    writer, put = begin(lambda: slot.put(2))
    time.sleep(0.05)
    assert put == []
    assert [slot.take(), slot.take()] == [1, 2]
    writer.join(5)
    assert put == [True]


def test_closing_frees_a_writer_who_waits_and_returns_what_was_left() -> None:
    slot: HandOver[int] = HandOver()
    assert slot.put(1)
    writer, put = begin(lambda: slot.put(2))
    time.sleep(0.05)
    assert slot.close() == 1
    writer.join(5)
    assert put == [False]
    assert slot.take() is None
    assert not slot.reserve()
