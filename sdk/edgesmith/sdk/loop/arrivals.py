"""A loop's results in asyncio, without a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from edgesmith.sdk.loop.reader import LoopOver
from edgesmith.sdk.loop.result import Result

log = logging.getLogger(__name__)


class AsyncResults(AsyncIterator[Result]):
    """``async for result in loop``.

    Args:
        poll: the next result, or how many seconds until it has to be asked again at the latest.
        listen: registers what is called, in any thread, when it is worth asking; returns what ends that.
    """

    def __init__(
        self,
        poll: Callable[[], tuple[Result | None, float | None]],
        listen: Callable[[Callable[[], None]], Callable[[], None]],
    ) -> None:
        self._poll = poll
        self._listen = listen

    def __aiter__(self) -> AsyncResults:
        return self

    async def __anext__(self) -> Result:
        """The next result; raises as the loop's iterator does."""
        await asyncio.sleep(0)  # other tasks run also where a result is always ready
        events = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            try:
                events.call_soon_threadsafe(changed.set)
            except RuntimeError as error:  # the event loop was closed under its reader
                log.debug("nobody to wake: %s", error)

        end = self._listen(wake)
        try:
            while True:
                changed.clear()
                try:
                    result, timeout = self._poll()
                except LoopOver:
                    raise StopAsyncIteration from None
                if result is not None:
                    return result
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), timeout)
        finally:
            end()
