"""Cameras into a model, the freshest frame always.

    with CaptureLoop(open_camera("rtsp://..."), detector) as loop:
        for result in loop:                       # or: async for result in loop
            print(result.camera, result.age_ms, len(result.detections), result.dropped)

What comes too fast is passed over and counted, what goes wrong in a thread is raised here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Literal, cast

from edgesmith.sdk.cameras.base import Camera, SupervisedCamera
from edgesmith.sdk.errors import CameraError, ConfigError
from edgesmith.sdk.loop.account import Account, LoopStats, Reason
from edgesmith.sdk.loop.arrivals import AsyncResults
from edgesmith.sdk.loop.deliver import Delivery, Writer, behind_a_queue
from edgesmith.sdk.loop.faults import Faults
from edgesmith.sdk.loop.grabber import Grabber
from edgesmith.sdk.loop.intake import Intake
from edgesmith.sdk.loop.mailbox import HandOver, Mailboxes, Policy
from edgesmith.sdk.loop.pace import Pace
from edgesmith.sdk.loop.reader import LoopOver, Reader
from edgesmith.sdk.loop.result import Result, after
from edgesmith.sdk.loop.settings import policies_of, track_settings, unique
from edgesmith.sdk.loop.stages import (
    Batch,
    Item,
    infer,
    passed_over,
    postprocess,
    relay,
    stages_of,
)
from edgesmith.sdk.loop.threads import Threads
from edgesmith.sdk.loop.track import Tracker, TrackSettings
from edgesmith.sdk.models import Detector

log = logging.getLogger(__name__)

STOP_S = 0.9  # a stop has to be over within 1 s
GRACE_S = 0.05  # of that, what a camera has to end by itself before it is closed under its reader
WATCH_S = 0.05
Raise = Literal["raise", "continue"]


class CaptureLoop:
    """Reads cameras, runs the model, feeds sinks and callbacks, and hands out results.

    A ``with`` block starts and ends it. Cameras and sinks given to it are its own: it closes them.
    The model is not closed, and serves this loop alone while it runs.

    ``latest`` (live cameras) keeps the newest frame of each camera and passes over what comes too
    fast for the model; the iterator likewise gives the newest result, so that a slow consumer sees
    fresh ones. ``every`` (files) makes the source wait instead: each frame once, in order.
    Every frame is accounted for in :meth:`stats`: grabbed = processed + dropped for each camera.

    Args:
        cameras: one camera or several.
        model: a loaded bundle, a :class:`~edgesmith.sdk.loop.cascade.Cascade`, or a function from a
            list of frames, BGR uint8 ``(H, W, 3)``, to a list of answers.
        policy: ``latest`` or ``every``, for all cameras or one for each.
        max_age_ms: with ``latest``: a frame older than this is never run or handed out, and while a
            camera's newest frame is older, the iterator raises :class:`StaleFrameError`, again after
            each ``max_age_ms``; it may be asked on after that.
        sinks: each is given every result in order. Under ``latest`` a sink gets a queue and a thread
            of its own, so that it cannot slow the loop.
        track: True, or settings: detections carry the ids of objects, camera by camera, and those
            without a track are left out.
        score, iou: a detector's thresholds in place of the bundle's.
        batch: most frames of one run; the model's own limit where None.
        gather_ms: how long a first frame waits for those of other cameras to share its run.
        limit: end after so many results.
        on_result: called with each result, in the loop's thread, after the sinks.
        on_state: called with a camera's name and its state at each change: ``opening``,
            ``streaming``, ``stalled``, ``reconnecting``, ``ended``, ``failed``.
        on_camera_error: ``raise``: a camera that is lost ends the loop, after the results of its
            frames. ``continue``: the others go on; only when all have failed is it raised.

    Raises:
        ConfigError: the arguments contradict each other.
    """

    def __init__(
        self,
        cameras: Camera | Sequence[Camera],
        model: Any,
        *,
        policy: Policy | Sequence[Policy] = "latest",
        max_age_ms: float | None = None,
        sinks: Sequence[Writer] = (),
        track: bool | TrackSettings = False,
        score: float | None = None,
        iou: float | None = None,
        batch: int | None = None,
        gather_ms: float = 5.0,
        limit: int | None = None,
        on_result: Callable[[Result], object] | None = None,
        on_state: Callable[[str, str], object] | None = None,
        on_camera_error: Raise = "raise",
    ) -> None:
        self.cameras: tuple[Camera, ...] = tuple(cameras) if isinstance(cameras, Sequence) else (cameras,)
        with ExitStack() as guard:  # arguments that are refused leave no camera running
            for camera in self.cameras:
                guard.callback(camera.close)
            policies = policies_of(policy, self.cameras, max_age_ms)
            if batch is not None and batch < 1:
                raise ConfigError(f"batch is {batch}: a run takes at least one frame")
            settings = track_settings(track, model, score)
            if settings is not None and isinstance(model, Detector):
                # The second association lives on boxes of low score, which a plain call leaves out.
                score = max(settings.low, model.nms.evaluation_score)
            self._steps = stages_of(model, score=score, iou=iou)
            guard.pop_all()
        self.names = unique([camera.name for camera in self.cameras])
        self.over = False  # set once get() knows that no result will come
        self._on_state = on_state
        self._go_on = on_camera_error == "continue"
        self._live = "latest" in policies
        self._sinks = [behind_a_queue(sink) if self._live else sink for sink in sinks]
        self._account = Account(self.names)
        self._faults = Faults()
        self._pace = Pace()
        self._stopping = threading.Event()
        self._threads = Threads(self._fail)
        self._abandoned: list[str] = []
        self._state: Literal["new", "running", "closed"] = "new"
        self._supervised = [isinstance(camera, SupervisedCamera) for camera in self.cameras]
        self._inbox: Mailboxes[Item] = Mailboxes(
            policies, passed_over, partial(self._drop, reason="replaced")
        )
        self._slots: tuple[HandOver[Batch], ...] = (HandOver(), HandOver(), HandOver())
        self._outbox: Mailboxes[Result] = Mailboxes(policies, _result_after, self._account.unread)
        self._assemble(settings, max_age_ms, min(self._steps.limit, batch or self._steps.limit), gather_ms)
        self._delivery.on_result, self._delivery.left = on_result, limit

    def _assemble(
        self, settings: TrackSettings | None, max_age_ms: float | None, most: int, gather_ms: float
    ) -> None:
        """The parts, joined by the slots between them."""
        self._grabbers = [
            Grabber(n, camera, name, self._inbox, self._account, self._stopping, self._camera_failed)
            for n, (camera, name) in enumerate(zip(self.cameras, self.names, strict=True))
        ]
        self._intake = Intake(
            self._inbox,
            self._slots[0],
            self._steps,
            most=most,
            gather_s=gather_ms / 1e3,
            max_age_ms=max_age_ms,
            pace=self._pace if self._live else None,
            stopping=self._stopping,
            drop=self._drop,
        )
        trackers = [Tracker(settings) for _ in self.cameras] if settings is not None else []
        self._delivery = Delivery(
            self.names, self._sinks, trackers, self._account, self._outbox, self.stop, self._stopping
        )
        self._reader = Reader(
            self.names,
            self._outbox,
            self._account,
            self._faults,
            max_age_ms=max_age_ms,
            go_on=self._go_on,
            state_of=self._state_of,
        )

    # Life ------------------------------------------------------------------------------------------

    def __enter__(self) -> CaptureLoop:
        if self._state != "new":
            raise ConfigError("this capture loop was used before: make a new one, with new cameras")
        self._state = "running"
        for grabber in self._grabbers:
            self._threads.start(f"grab-{grabber.name}", grabber.run)
        prepared, inferred, decoded = self._slots
        give_up, decode = self._give_up, partial(postprocess, self._steps)
        self._threads.start("preprocess", self._intake.run)
        self._threads.start("infer", lambda: relay(prepared, inferred, self._infer, give_up))
        self._threads.start("postprocess", lambda: relay(inferred, decoded, decode, give_up))
        self._threads.start("deliver", self._deliver)
        if self._on_state is not None:
            self._threads.start("watch", self._watch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is not None:
            return
        if not self._go_on:
            for lost in self._faults.lost.values():
                self._faults.add(lost)
        self._faults.check_untold()

    def stop(self) -> None:
        """End the loop soon; returns at once, from any thread. Results that wait can still be taken."""
        self._stopping.set()
        for source in self._inbox.close():
            self._drop(source, "stopped")
        for slot in self._slots:
            batch = slot.close()
            if batch is not None:
                self._give_up(batch, False)
        for source in range(len(self.cameras)):
            self._outbox.end(source)

    def close(self) -> None:
        """Stop, and end every thread within 1 s; then finish the sinks. The second call does nothing.

        A thread that does not come back (a driver that hangs) is left alone, logged, and named in
        :meth:`stats`.

        Raises:
            SinkError: a sink could not be finished, and nothing else went wrong.
        """
        if self._state == "closed":
            return
        until = time.monotonic() + STOP_S
        self.stop()
        if self._state == "running":
            self._outbox_closed()
            self._threads.join(time.monotonic() + GRACE_S)
            closers = Threads(self._fail)
            alive = self._threads.alive()
            for grabber in self._grabbers:
                if f"edgesmith-grab-{grabber.name}" in alive:
                    closers.start(f"close-{grabber.name}", grabber.close)
            self._abandoned = self._threads.join(until) + closers.join(until)
            if self._abandoned:
                log.warning("left alone after %.1f s: %s", STOP_S, ", ".join(self._abandoned))
        else:
            for grabber in self._grabbers:
                grabber.close()
        self._state = "closed"
        self._account.settle()
        self._close_sinks()

    def _outbox_closed(self) -> None:
        for source in self._outbox.close():
            self._account.unread(source)

    def _close_sinks(self) -> None:
        if "edgesmith-deliver" in self._abandoned:
            log.warning("a sink did not come back: the sinks are not closed")
            return
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001 - told at the end of the with block; the others follow
                self._faults.add(error)

    # Threads ---------------------------------------------------------------------------------------

    def _infer(self, batch: Batch) -> None:
        self._pace.infer_begins()
        try:
            infer(self._steps, batch)
        finally:
            self._pace.infer_ends()

    def _deliver(self) -> None:
        relay(self._slots[2], None, self._delivery.deliver, self._give_up_rest)
        for source in range(len(self.cameras)):
            self._outbox.end(source)

    def _give_up(self, batch: Batch, failed: bool) -> None:
        for item in batch.items:
            self._drop(item.source, "failed" if failed else "stopped")

    def _give_up_rest(self, batch: Batch, failed: bool) -> None:
        # What was delivered before the error is processed.
        self._give_up(Batch(batch.items[self._delivery.at :]), failed)

    def _drop(self, source: int, reason: Reason) -> None:
        self._account.dropped(source, reason)
        self._outbox.wake()

    def _fail(self, error: BaseException) -> None:
        self._faults.add(error)
        self.stop()

    def _camera_failed(self, source: int, error: CameraError) -> None:
        log.warning("%s: lost: %s", self.names[source], error)
        self._faults.lose(source, error)
        self._outbox.wake()

    def _watch(self) -> None:
        told: list[str] = [""] * len(self.cameras)
        assert self._on_state is not None
        until = float("inf")
        while True:
            over = time.monotonic() > until
            states = self._states()
            for source, state in enumerate(states):
                if state != told[source]:
                    told[source] = state
                    self._on_state(self.names[source], state)
            if over or all(state in ("ended", "failed") for state in states):
                return
            if not self._stopping.wait(WATCH_S):
                continue
            until = min(until, time.monotonic() + STOP_S / 2)  # the cameras' ends are told too
            time.sleep(WATCH_S / 5)

    # Results ---------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        """The next result: of the camera whose turn it is, the newest one under ``latest``.

        Raises:
            StaleFrameError: a camera's newest frame is older than ``max_age_ms``; ask on to go on.
            CameraError: a camera was lost.
            Exception: what a thread of the loop raised, with its traceback.
        """
        self._begun()
        try:
            result = self._reader.next()
        except LoopOver:
            raise StopIteration from None
        assert result is not None  # no time was set
        return result

    def get(self, timeout_s: float) -> Result | None:
        """The next result, or None when none came in time, or none will any more (:attr:`over`).

        Raises:
            Exception: as the iterator.
        """
        self._begun()
        try:
            return self._reader.next(time.monotonic() + timeout_s)
        except LoopOver:
            self.over = True
            return None

    def wait(self) -> None:
        """Return when the loop is over: for those who use callbacks and sinks alone.

        Raises:
            Exception: as the iterator.
        """
        for _ in self:
            continue

    def __aiter__(self) -> AsyncResults:
        self._begun()
        return AsyncResults(self._reader.poll, self._outbox.listen)

    async def __aenter__(self) -> CaptureLoop:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def stats(self) -> LoopStats:
        """What became of each camera's frames, at this moment."""
        return self._account.stats(self._states(), self._abandoned)

    def _states(self) -> list[str]:
        return [self._state_of(source) for source in range(len(self.cameras))]

    def _state_of(self, source: int) -> str:
        state = self._account.state(source)
        if self._supervised[source] and state not in ("ended", "failed"):
            return cast(SupervisedCamera, self.cameras[source]).state.value
        return state

    def _begun(self) -> None:
        if self._state == "new":
            raise ConfigError("the capture loop has not been started: use it in a with block")


def _result_after(older: Result, newer: Result) -> Result:
    return replace(newer, frame=after(older.frame, newer.frame))
