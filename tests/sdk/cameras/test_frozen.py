from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.cameras.frozen import GRID, LOOKS, FrozenWatch, sampled_hash
from edgesmith.sdk.cameras.session import Grab
from edgesmith.sdk.cameras.testpattern import pattern_image

LIMIT = 10_000_000_000
PERIOD = LIMIT // 300  # 30 frames a second


class Feed:
    """Frames at a steady rate; counts how often the watch asks for pixels."""

    def __init__(self) -> None:
        self.watch = FrozenWatch(LIMIT)
        self.now = 0
        self.asked = 0

    def give(self, image: NDArray[np.uint8]) -> bool:
        def pixels() -> NDArray[np.uint8]:
            self.asked += 1
            return image

        self.now += PERIOD
        return self.watch.look(Grab(pixels, captured_ns=self.now))


def test_the_same_pixels_are_frozen_after_the_limit_and_not_before() -> None:
    feed = Feed()
    image = pattern_image(1, (320, 240))
    verdicts = [feed.give(image.copy()) for _ in range(400)]
    first = verdicts.index(True)
    assert 300 <= first <= 300 + 300 // LOOKS + 2
    assert all(verdicts[first:])


def test_a_moving_picture_is_looked_at_now_and_then_only() -> None:
    feed = Feed()
    assert not any(feed.give(pattern_image(n, (320, 240))) for n in range(900))
    assert feed.asked <= 3 * LOOKS + 3


@pytest.mark.parametrize("every", [1, 7, 100, 149])
def test_one_pixel_that_no_sample_sees_is_movement(every: int) -> None:
    feed = Feed()
    image = pattern_image(1, (640, 480))
    before = sampled_hash(image)
    image[1, 1] ^= 255
    assert sampled_hash(image) == before  # the sample misses it
    for n in range(1200):
        if n % every == 0:
            image[1, 1] ^= 255
        assert not feed.give(image.copy())


def test_a_frozen_picture_is_remembered_until_another_comes() -> None:
    feed = Feed()
    image = pattern_image(1, (320, 240))
    for _ in range(400):
        frozen = feed.give(image)
    assert frozen
    feed.now += 60 * LIMIT  # a reconnection took its time
    assert feed.give(image.copy())
    assert not feed.give(pattern_image(2, (320, 240)))
    assert not feed.give(image)
    assert not feed.watch.frozen


def test_who_is_handed_the_frame_may_draw_on_it() -> None:
    feed = Feed()
    verdict = False
    for _ in range(400):
        image = pattern_image(1, (320, 240))
        verdict = feed.give(image)
        image[:] = 0
    assert verdict


def test_another_size_is_another_picture() -> None:
    feed = Feed()
    for _ in range(400):
        feed.give(np.zeros((240, 320, 3), np.uint8))
    assert feed.watch.frozen
    assert not feed.give(np.zeros((480, 640, 3), np.uint8))


def test_the_sample_is_small_whatever_the_size() -> None:
    assert sampled_hash(np.zeros((GRID, GRID, 3), np.uint8)) != sampled_hash(
        np.ones((GRID, GRID, 3), np.uint8)
    )
    assert sampled_hash(np.zeros((1, 5000, 3), np.uint8)) != sampled_hash(np.zeros((5000, 1, 3), np.uint8))
