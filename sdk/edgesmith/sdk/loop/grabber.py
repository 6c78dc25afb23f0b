"""The thread that reads one camera."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator

from edgesmith.sdk.cameras.base import Camera, Frame
from edgesmith.sdk.errors import CameraError
from edgesmith.sdk.loop.account import Account
from edgesmith.sdk.loop.mailbox import Mailboxes
from edgesmith.sdk.loop.stages import Item

log = logging.getLogger(__name__)


class Grabber:
    """Reads one camera into its mailbox, and closes it when it is over.

    Args:
        source: the camera's number in the loop.
        camera: closed by this object, once.
        name: the camera's name in the loop.
        stopping: set when the loop ends.
        failed: told of a camera that is lost.
    """

    def __init__(
        self,
        source: int,
        camera: Camera,
        name: str,
        mailboxes: Mailboxes[Item],
        account: Account,
        stopping: threading.Event,
        failed: Callable[[int, CameraError], None],
    ) -> None:
        self.camera = camera
        self.name = name
        self._source = source
        self._mailboxes = mailboxes
        self._account = account
        self._stopping = stopping
        self._failed = failed
        self._closed = threading.Lock()  # taken once, by whoever closes

    def run(self) -> None:
        """Read until the camera ends, fails, or the loop is stopped."""
        error: CameraError | None = None
        try:
            self._read()
        except CameraError as raised:
            error = raised
        finally:
            self.close()
        if error is not None and not self._stopping.is_set():
            self._account.ended(self._source, error)
            self._failed(self._source, error)
        else:
            self._account.ended(self._source)
        self._mailboxes.end(self._source)

    def _read(self) -> None:
        frames: Iterator[Frame] = iter(self.camera.frames())
        try:
            self._pass_on(frames)
        finally:
            if isinstance(frames, Generator):  # what it holds is let go in its own thread
                frames.close()

    def _pass_on(self, frames: Iterator[Frame]) -> None:
        while not self._stopping.is_set():
            started = time.monotonic_ns()
            frame = next(frames, None)
            if frame is None:
                return
            item = Item(self._source, frame)
            item.stages_ms["decode"] = (time.monotonic_ns() - started) / 1e6
            self._account.grabbed(self._source, frame.captured_ns, frame.dropped)
            if not self._mailboxes.put(self._source, item):
                self._account.dropped(self._source, "stopped")
                return

    def close(self) -> None:
        """Let go of the camera; the second call does nothing."""
        if not self._closed.acquire(blocking=False):
            return
        try:
            self.camera.close()
        except CameraError as error:  # it is over either way; the frames are what counts
            log.warning("%s: could not be closed: %s", self.name, error)
