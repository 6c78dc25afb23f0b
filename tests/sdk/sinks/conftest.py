"""Results as a loop gives them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgesmith.sdk import Classifications, Detections, Frame, Result
from edgesmith.sdk.sinks.view import WebView

MakeResult = Callable[..., Result]


@pytest.fixture
def dog() -> Detections:
    """One dog, tracked as number 7."""
    return Detections(
        np.array([[5, 5, 30, 40]], np.float32),
        np.array([0.75], np.float32),
        np.array([1], np.int32),
        ("cat", "dog"),
        track_ids=np.array([7], np.int32),
    )


@pytest.fixture
def make_result(dog: Detections) -> MakeResult:
    """A result by frame number; keywords change the rest."""

    def make(
        number: int = 0,
        *,
        answer: Any = dog,
        source: str = "front",
        image: Any = None,
        size: tuple[int, int] = (60, 80),
        color: tuple[int, int, int] = (40, 90, 40),
        captured_ns: int | None = None,
        dropped: int = 0,
        stages_ms: dict[str, float] | None = None,
    ) -> Result:
        if image is None:
            image = np.full((*size, 3), color, np.uint8)
        captured = time.monotonic_ns() if captured_ns is None else captured_ns
        return Result(Frame(image, number, captured, None, source, dropped), answer, stages_ms or {})

    return make


@pytest.fixture
def classes() -> Classifications:
    """Three classes, the best first."""
    return Classifications(
        np.array([2, 0, 1], np.int32), np.array([0.7, 0.2, 0.1], np.float32), ("blue", "green", "red")
    )


@pytest.fixture
def open_view() -> Iterator[Callable[..., WebView]]:
    """A page by its options, on a free port; closed at the end."""
    made: list[WebView] = []

    def begin(address: str = ":0", **options: Any) -> WebView:
        made.append(WebView(address, **options))
        return made[-1]

    yield begin
    for view in made:
        view.close()
