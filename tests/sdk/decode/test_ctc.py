"""Text by the best path."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgesmith.sdk.decode import canonical
from edgesmith.sdk.decode.ctc import best_path
from edgesmith.sdk.preprocess import Preprocess

ALPHABET = ("", "a", "b", "c")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ([0, 1, 1, 0, 1, 2], "aab"), ([1, 1, 1], "a"), ([0, 0], ""), ([], ""), ([3, 0, 3, 3, 2], "ccb"),
        ([1, 2, 1, 2], "abab"),
    ],
)  # fmt: skip
def test_repeats_are_merged_and_blanks_left_out(path: list[int], text: str) -> None:
    logits = np.full((len(path), 4), -3.0, np.float32)
    logits[np.arange(len(path)), path] = 5
    found, score = best_path(logits, ALPHABET)
    assert found == text
    chance = np.exp(5) / (np.exp(5) + 3 * np.exp(-3))
    assert score == pytest.approx(chance if path else 0.0)


def test_it_is_the_most_likely_single_path() -> None:
    logits = np.random.default_rng(1).normal(0, 2, (5, 4))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    best = max(itertools.product(range(4), repeat=5), key=lambda p: np.prod(chances[np.arange(5), p]))
    merged = [label for label, _ in itertools.groupby(best)]
    text, score = best_path(logits, ALPHABET)
    assert text == "".join(ALPHABET[label] for label in merged)
    assert score == pytest.approx(np.prod(chances[np.arange(5), best]) ** (1 / 5))


def test_tensors_read_their_text() -> None:
    logits = np.eye(4, dtype=np.float32)[[1, 0, 3, 3]] * 9
    preprocess = Preprocess(size=(32, 64), fit="stretch", color="y")
    outputs = {"other": np.zeros((1, 4), np.float32), "steps": logits[None]}
    found = canonical.tensors(outputs, 0, preprocess, ALPHABET)
    assert found.text is not None
    assert found.text[0] == "ac"
    assert 0.99 < found.text[1] <= 1
    assert canonical.tensors(outputs, 0, preprocess).text is None
    assert found.draw(np.zeros((40, 120, 3), np.uint8)).any()
