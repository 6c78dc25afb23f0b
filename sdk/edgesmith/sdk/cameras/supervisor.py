"""Starts sessions, watches the clock over them, ends them, and starts the next."""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from collections.abc import Callable

from edgesmith.sdk.cameras.base import CameraState
from edgesmith.sdk.cameras.book import Book
from edgesmith.sdk.cameras.frozen import FrozenWatch
from edgesmith.sdk.cameras.options import LiveOptions
from edgesmith.sdk.cameras.session import Grab, Session
from edgesmith.sdk.errors import CameraError, CameraLost

log = logging.getLogger(__name__)

JOIN_S = 0.5  # a session that has not let go after this is left to itself
STEADY_S = 2.0  # a session that streamed this long has earned short pauses again
MOST_HUNG = 4  # with so many decoders hanging, no further one is started until one ends
# Trying again with the same password or the same wish only locks accounts and fills logs.
HOPELESS = frozenset({"unauthorized", "format", "pipeline"})


class SessionLink:
    """One session's line to its camera (see ``session.Link``), and what is known of the session."""

    def __init__(
        self,
        book: Book,
        put: Callable[[SessionLink, Grab], None],
        check_rate: Callable[[float], None],
    ) -> None:
        self._book = book
        self._put = put
        self._check_rate = check_rate
        self._cancelled = threading.Event()
        self._wake: Callable[[], None] | None = None
        self.started_ns = time.monotonic_ns()
        self.first_ns: int | None = None  # first picture that was not withheld
        self.last_ns: int | None = None
        self.frozen = False
        self.done = False
        self.error: BaseException | None = None
        self.hinted = ("", "")

    def run(self, session: Session) -> None:
        """The session's thread."""
        error: BaseException | None = None
        try:
            session(self)
        except Exception as raised:
            error = raised
            if isinstance(raised, CameraError):
                # Whoever keeps the error (a log, say) must not keep the decoder that its frames name.
                traceback.clear_frames(raised.__traceback__)
            else:
                log.exception("%s: the session failed", self._book.name)
        finally:
            with self._book.lock:
                self.done, self.error = True, error
                self._book.events.notify_all()

    @property
    def closing(self) -> bool:
        return self._cancelled.is_set() or self._book.closing

    def put(self, grab: Grab) -> None:
        self._put(self, grab)

    def rate(self, fps: float) -> None:
        self._check_rate(fps)

    def wait(self, seconds: float) -> bool:
        if seconds > 0 and not self.closing:
            self._cancelled.wait(seconds)
        return self.closing

    def on_cancel(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        if self.closing:
            wake()

    def hint(self, reason: str, detail: str) -> None:
        self.hinted = (reason, detail)

    def fault(self, text: str) -> None:
        self._book.fault(text)

    def cancel(self) -> None:
        """From the supervisor: return from whatever is waited for."""
        self._cancelled.set()
        if self._wake is not None:
            self._wake()


class Supervisor:
    """The thread that keeps one camera running.

    Sessions run in threads of their own, one at a time, which may hang without harm.
    """

    def __init__(
        self,
        book: Book,
        session: Session,
        new_link: Callable[[], SessionLink],
        options: LiveOptions,
        watch: FrozenWatch | None,
        stall_ns: int,
    ) -> None:
        self.stall_ns = stall_ns
        self._book = book
        self._session = session
        self._new_link = new_link
        self._options = options
        self._watch = watch
        self._rng = random.Random(options.backoff.seed)
        self._hung: list[threading.Thread] = []

    def run(self) -> None:
        """Until the source ends, fails for good or is closed."""
        book = self._book
        attempt = 0
        try:
            while not book.closing:
                error, steady = self._one_session()
                if book.closing:
                    return
                if error is None:
                    book.change(CameraState.ENDED, "end", "the source came to its end")
                    return
                if not self._worth_another(error):
                    book.fail(error)
                    return
                attempt = 0 if steady else attempt
                self._pause(error, attempt)
                attempt += 1
        except Exception as error:  # the reader has to hear of it, whatever it is
            log.exception("%s: the supervisor failed", book.name)
            book.fail(error)
        finally:
            if book.closing and not book.state.over:
                book.change(CameraState.ENDED, "closed", "the camera was closed")
            book.tell()

    def _one_session(self) -> tuple[BaseException | None, bool]:
        """Run a session: the error that ended it, and whether it had streamed for a while."""
        link = self._new_link()
        thread = threading.Thread(
            target=link.run, args=(self._session,), name=f"grab {self._book.name}", daemon=True
        )
        thread.start()
        error = self._watch_over(link)
        streamed_s = 0 if link.first_ns is None else (time.monotonic_ns() - link.first_ns) / 1e9
        if isinstance(error, CameraError) and link.last_ns is not None and not link.done:
            self._book.change(CameraState.STALLED, error.reason, str(error))
        link.cancel()
        thread.join(JOIN_S)
        if thread.is_alive():
            with self._book.lock:
                self._book.abandoned += 1
            self._hung.append(thread)
            log.warning(
                "%s: a decoder did not end within %g s and is left to itself", self._book.name, JOIN_S
            )
        return error, streamed_s > STEADY_S

    def _watch_over(self, link: SessionLink) -> BaseException | None:
        """Until the session ends, stalls or is closed: the error that ended it, or None."""
        book = self._book
        while True:
            book.tell()
            with book.lock:
                now = time.monotonic_ns()
                if book.closing:
                    return None
                if link.done:
                    return link.error
                deadline, frozen = self._deadline(link)
                if now >= deadline:
                    return self._frozen() if frozen else self._overdue(link)
                if not book.untold:
                    book.events.wait((deadline - now) / 1e9)

    def _deadline(self, link: SessionLink) -> tuple[int, bool]:
        """When to give the session up, in ns, and whether that is for a frozen picture."""
        if link.last_ns is None:
            return link.started_ns + int(self._options.open_s * 1e9), False
        stalled = link.last_ns + self.stall_ns
        if self._watch is None or not link.frozen:
            return stalled, False
        # A new session that begins with the old frozen picture gets its time to show another one.
        frozen = link.last_ns if link.first_ns is not None else link.started_ns + self._watch.limit_ns
        return min((frozen, True), (stalled, False))

    def _frozen(self) -> CameraError:
        seconds = self._watch.limit_ns / 1e9 if self._watch else 0
        return CameraLost(
            f"{self._book.name}: the picture is frozen: the very same pixels for {seconds:g} s",
            reason="frozen",
        )

    def _overdue(self, link: SessionLink) -> CameraError:
        name = self._book.name
        reason, detail = link.hinted
        if link.last_ns is None:
            text = detail or "it may be off, or busy with another program"
            return CameraError(
                f"{name}: no picture within {self._options.open_s:g} s: {text}", reason=reason or "timeout"
            )
        text = f": {detail}" if detail else ""
        return CameraLost(
            f"{name}: no picture for {self.stall_ns / 1e9:g} s{text}", reason=reason or "stalled"
        )

    def _worth_another(self, error: BaseException) -> bool:
        if not isinstance(error, CameraError) or error.reason in HOPELESS:
            return False
        if self._book.last_frame_ns is None:
            return self._options.wait
        return self._options.reconnect

    def _pause(self, error: BaseException, attempt: int) -> None:
        book = self._book
        book.change(CameraState.RECONNECTING, getattr(error, "reason", "") or "lost", str(error))
        log.log(logging.DEBUG if attempt else logging.WARNING, "%s; trying again", error)
        book.tell()
        until = time.monotonic() + self._options.backoff.pause_s(attempt, self._rng)
        while not book.closing:
            self._hung = [thread for thread in self._hung if thread.is_alive()]
            left = until - time.monotonic()
            if left <= 0 and len(self._hung) < MOST_HUNG:
                return
            with book.lock:
                if not book.closing:
                    book.events.wait(left if left > 0 else 0.5)
