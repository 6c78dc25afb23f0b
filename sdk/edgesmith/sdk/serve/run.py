"""From a request to an answer: admission, decoding, the engine, the deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.errors import EdgesmithError
from edgesmith.sdk.serve.budget import Hold
from edgesmith.sdk.serve.engine import Answer, Engine
from edgesmith.sdk.serve.pictures import decode_picture, picture_size
from edgesmith.sdk.serve.refusal import Refusal, refusal_of

T = TypeVar("T")


class Deadline:
    """When an answer is of no more use; ``ms`` from now on."""

    def __init__(self, ms: float) -> None:
        self.ms = ms
        self._end = time.monotonic() + ms / 1e3

    async def wait(self, future: Future[T]) -> T:
        """The result of work in another thread.

        Raises:
            Refusal: 504, it came too late (it is withdrawn where it has not begun); or what its error means.
        """
        try:
            left = max(0.0, self._end - time.monotonic())
            return await asyncio.wait_for(asyncio.wrap_future(future), left)
        except asyncio.TimeoutError:
            raise Refusal(504, f"no answer within the deadline of {self.ms:g} ms") from None
        except EdgesmithError as error:
            raise refusal_of(error) from error


async def answer_pictures(
    engine: Engine,
    pictures: Sequence[bytes],
    thresholds: Mapping[str, float],
    *,
    pool: Executor,
    held: Hold,
    max_pixels: int,
    deadline: Deadline,
) -> list[tuple[NDArray[np.uint8], Answer]]:
    """Each picture as BGR uint8 ``(H, W, 3)`` with its answer.

    Raises:
        Refusal: a picture is none, too large, or damaged; the model is busy; the deadline passed.
    """
    for data in pictures:
        width, height = picture_size(data)
        if width < 1 or height < 1:
            raise Refusal(400, f"the picture has {width} x {height} pixels")
        if width * height > max_pixels:
            text = f"the picture has {width} x {height} pixels; {max_pixels:,} in all may be sent"
            raise Refusal(413, text)
        held.take(3 * width * height)
    with engine.place(len(pictures)) as place:

        async def one(data: bytes) -> tuple[NDArray[np.uint8], Answer]:
            frame = await deadline.wait(pool.submit(decode_picture, data))
            return frame, await deadline.wait(place.submit(frame, thresholds))

        return await together([one(data) for data in pictures])


async def answer_rows(engine: Engine, rows: NDArray[Any], deadline: Deadline) -> Answer:
    """The graph's outputs for rows that the client prepared.

    Raises:
        Refusal: the model is busy, the rows do not fit it, or the deadline passed.
    """
    with engine.place(len(rows)) as place:
        return await deadline.wait(place.submit_prepared(rows))


async def together(parts: Sequence[Any]) -> list[Any]:
    """All of them, or the first error once every other has ended too."""
    results = await asyncio.gather(*parts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)


async def in_pool(pool: Executor, deadline: Deadline, work: Callable[..., T], *args: Any) -> T:
    """Work that would hold up the event loop, in a thread."""
    return await deadline.wait(pool.submit(work, *args))
