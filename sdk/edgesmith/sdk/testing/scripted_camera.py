"""A camera that does what a script says: for an integrator's tests of what happens when a camera fails.

    camera = ScriptedCamera(Frames(30), Stall(3), Frames(30), Lose(), Frames(30))

It is under the same supervision as a real camera: a stall is found by the watchdog, a loss is survived by
reconnecting, an exception reaches the reader of ``frames()`` with its traceback.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from edgesmith.sdk.cameras.book import OnState
from edgesmith.sdk.cameras.live import LiveCamera
from edgesmith.sdk.cameras.options import LiveOptions, read_options
from edgesmith.sdk.cameras.session import Grab, Link
from edgesmith.sdk.cameras.testpattern import check_size, pattern_image
from edgesmith.sdk.errors import CameraError, CameraLost


@dataclass(frozen=True)
class Frames:
    """So many pictures of the test pattern, at the camera's rate; ``size`` changes theirs from here on."""

    count: int
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Freeze:
    """So many times the picture before, at the camera's rate: a frozen sensor whose clock runs."""

    count: int


@dataclass(frozen=True)
class Stall:
    """Nothing for so many seconds; a supervisor that gives the connection up moves the script on."""

    seconds: float


@dataclass(frozen=True)
class Hang:
    """A decoder that cannot be woken for so many seconds, not even to close."""

    seconds: float


@dataclass(frozen=True)
class Lose:
    """The connection breaks, and each of the next ``refused`` attempts to connect fails."""

    reason: str = "lost"
    refused: int = 0


@dataclass(frozen=True)
class Fail:
    """This exception, in the camera's own thread."""

    error: Exception


Step = Frames | Freeze | Stall | Hang | Lose | Fail


class ScriptedCamera(LiveCamera):
    """A live camera over a script; it ends after the last step.

    Frame n of the script carries its number (``read_number``); numbers go on across losses.
    """

    def __init__(
        self,
        *steps: Step,
        name: str = "scripted",
        size: tuple[int, int] = (160, 120),
        fps: float = 100.0,
        frozen_ms: float = 0.0,
        on_state: OnState | None = None,
        **options: Any,
    ) -> None:
        """Start the script.

        Args:
            steps: what happens, in this order.
            name: of the camera.
            size: ``(width, height)`` of the pictures, 80 x 48 or more.
            fps: pictures a second within ``Frames`` and ``Freeze``.
            frozen_ms: as in ``LiveOptions``, off by default.
            on_state: as in ``open_camera``.
            options: of ``LiveOptions``.

        Raises:
            CameraError: the script begins with a loss, and ``wait`` was not asked for.
        """
        check_size(size)
        self._steps = list(steps)
        self._step_lock = threading.Lock()
        self._number = 0
        self._refusals = 0
        self._picture_size = size
        self._period = 1.0 / fps
        checked = read_options(LiveOptions, {**options, "frozen_ms": frozen_ms}, source=name)
        super().__init__(name, self._play, options=checked, fps=fps, size=None, on_state=on_state)

    def _play(self, link: Link) -> None:
        if self._refusals:
            self._refusals -= 1
            raise CameraError(f"{self.name}: refused by the script", reason="refused")
        while not link.closing:
            with self._step_lock:
                if not self._steps:
                    return
                step = self._steps.pop(0)
            self._act(step, link)

    def _act(self, step: Step, link: Link) -> None:
        if isinstance(step, Frames):
            self._picture_size = step.size or self._picture_size
            self._give(step.count, link, moving=True)
        elif isinstance(step, Freeze):
            self._give(step.count, link, moving=False)
        elif isinstance(step, Stall):
            link.wait(step.seconds)
        elif isinstance(step, Hang):
            time.sleep(step.seconds)
        elif isinstance(step, Lose):
            self._refusals = step.refused
            raise CameraLost(f"{self.name}: lost by the script", reason=step.reason)
        else:
            raise step.error

    def _give(self, count: int, link: Link, *, moving: bool) -> None:
        for left in range(count, 0, -1):
            if link.closing:
                # The connection was given up in the middle: the next one goes on with the rest.
                with self._step_lock:
                    self._steps.insert(0, Frames(left) if moving else Freeze(left))
                return
            self._number += moving
            link.put(Grab(pattern_image(max(self._number - 1, 0), self._picture_size)))
            link.wait(self._period)
