"""A source that runs by itself: the newest picture, whatever happens to the connection."""

from __future__ import annotations

import atexit
import functools
import logging
import threading
import time
import weakref
from collections.abc import Iterator

from edgesmith.sdk.cameras.base import CameraState, CameraStatus, Frame
from edgesmith.sdk.cameras.book import Book, OnState
from edgesmith.sdk.cameras.frozen import FrozenWatch
from edgesmith.sdk.cameras.options import LiveOptions
from edgesmith.sdk.cameras.session import Grab, Session
from edgesmith.sdk.cameras.supervisor import SessionLink, Supervisor
from edgesmith.sdk.errors import CameraError, CameraFormatError

log = logging.getLogger(__name__)

CLOSE_S = 0.9  # close() never takes longer, whatever hangs

_running: weakref.WeakSet[LiveCamera] = weakref.WeakSet()


@functools.lru_cache(maxsize=1)
def _close_at_exit() -> None:
    """Have all cameras closed before the interpreter goes.

    A thread that decodes while the interpreter is taken down ends the process with an abort, and a CSI
    camera that is left without its end-of-stream wedges the daemon behind it.
    """
    atexit.register(_close_all)


def _close_all() -> None:
    cameras = list(_running)
    for camera in cameras:
        camera._book.close()
    until = time.monotonic() + CLOSE_S
    for camera in cameras:
        camera._thread.join(max(until - time.monotonic(), 0))


class LiveCamera:
    """A camera over sessions, one at a time.

    Three threads meet here: the reader in ``frames()``, the session that grabs, and the supervisor,
    which watches the clock, ends sessions and starts new ones.
    """

    live = True

    def __init__(
        self,
        name: str,
        session: Session,
        *,
        options: LiveOptions,
        usual_frozen_ms: float = 0.0,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
        length: int | None = None,
        on_state: OnState | None = None,
    ) -> None:
        """Start, and wait for the first picture unless ``options.wait``.

        Raises:
            CameraError: the source cannot be opened; ``reason`` says why.
        """
        self.name = name
        self.fps = fps
        self.length = length
        self._book = Book(name, on_state)
        self.faults = self._book.faults
        self._wanted_size = size
        self._wanted_fps = fps
        self._options = options
        self._last_sequence = -1
        self._damaged = False  # the reader found one: look at each until one is whole
        frozen_ns = options.frozen_ns(usual_frozen_ms)
        self._watch = FrozenWatch(frozen_ns) if frozen_ns else None
        self._supervisor = Supervisor(
            self._book, session, self._new_link, options, self._watch, options.stall_ns(fps)
        )
        self._thread = threading.Thread(target=self._supervisor.run, name=f"camera {name}", daemon=True)
        _close_at_exit()
        _running.add(self)
        self._thread.start()
        if not options.wait:
            self._await_first()

    def frames(self) -> Iterator[Frame]:
        """The newest picture whenever one is asked for, until the source ends or is closed.

        Raises:
            CameraLost: the source stopped, and it was told not to reconnect.
            CameraError: trying again cannot help.
            Exception: what the session raised, with its traceback, where that was none of ours.
        """
        while (taken := self._take()) is not None:
            sequence, grab = taken
            try:
                image = grab.image()
            except CameraError as error:
                self._book.fault(str(error))
                with self._book.lock:
                    self._book.delivered -= 1
                self._damaged = True
                continue
            dropped, self._last_sequence = sequence - self._last_sequence - 1, sequence
            yield Frame(image, sequence, grab.captured_ns, grab.source_ns, self.name, dropped)

    @property
    def state(self) -> CameraState:
        """Where it is now."""
        return self._book.state

    def status(self) -> CameraStatus:
        """State and counts at this moment."""
        with self._book.lock:
            return self._book.status()

    def close(self) -> None:
        """Let go of the source; what does not end in time is left to itself and counted."""
        self._book.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_S)

    def _take(self) -> tuple[int, Grab] | None:
        book = self._book
        with book.lock:
            while True:
                if book.closing:
                    return None
                if book.slot is not None:
                    taken, book.slot = book.slot, None
                    book.delivered += 1
                    return taken
                if book.error is not None:
                    raise book.error
                if book.state.over:
                    return None
                book.news.wait()

    def _await_first(self) -> None:
        book = self._book
        try:
            with book.lock:
                while book.state is CameraState.OPENING:
                    book.news.wait()
                if book.error is not None and book.slot is None:
                    raise book.error
        except BaseException:
            self.close()
            raise

    # -- called by the session's thread -----------------------------------------------------------------

    def _new_link(self) -> SessionLink:
        return SessionLink(self._book, self._put, self._check_rate)

    def _put(self, link: SessionLink, grab: Grab) -> None:
        if link.closing:
            return
        book = self._book
        try:
            if book.state is not CameraState.STREAMING or self._damaged:
                grab.image()  # a stream is one that gives pictures, not one that gives bytes
            frozen = self._watch.look(grab) if self._watch else False
            self._check_size(grab)
        except CameraFormatError:
            raise
        except CameraError as error:
            with book.lock:
                book.frames += not link.closing
            book.fault(str(error))
            link.hint(error.reason, str(error))
            return
        self._damaged = False
        with book.lock:
            if not link.closing:
                self._enter(link, grab, frozen)

    def _enter(self, link: SessionLink, grab: Grab, frozen: bool) -> None:
        """Write a whole picture into the book; the lock is held."""
        book = self._book
        sequence, book.frames = book.frames, book.frames + 1
        known = book.last_frame_ns is not None
        link.last_ns = book.last_frame_ns = grab.captured_ns
        book.size = grab.size or book.size
        link.frozen = frozen
        if frozen:
            book.to(CameraState.STALLED, "frozen", "the camera sends the same picture again and again")
            return
        if link.first_ns is None:
            link.first_ns = grab.captured_ns
            book.reconnects += known
        book.to(CameraState.STREAMING)
        book.slot = (sequence, grab)
        book.news.notify()

    def _check_size(self, grab: Grab) -> None:
        if grab.size is None and self._wanted_size:
            grab.image()
        if grab.size is None or grab.size == self._book.size:
            return
        width, height = grab.size
        if self._wanted_size and grab.size != self._wanted_size:
            asked = "x".join(map(str, self._wanted_size))
            raise CameraFormatError(
                f"{self.name} gives {width}x{height} pictures, and {asked} was asked for: ask for "
                f"size=({width}, {height}), or leave the size out",
                offers=(f"{width}x{height}",),
            )
        if self._book.size is not None:
            log.info("%s: the picture is now %dx%d", self.name, width, height)

    def _check_rate(self, fps: float) -> None:
        wanted = self._wanted_fps
        if wanted and abs(fps - wanted) > 0.02 * wanted:  # 29.97 is 30 to whoever asks
            raise CameraFormatError(
                f"{self.name} gives {fps:g} frames/s, and {wanted:g} was asked for: ask for "
                f"fps={fps:g}, or leave the rate out",
                offers=(f"{fps:g} frames/s",),
            )
        self.fps = fps
        self._supervisor.stall_ns = self._options.stall_ns(fps)
