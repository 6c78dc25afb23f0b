"""Text of a sequence of character scores, by the best path of connectionist temporal classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLANK = 0  # the first class, as the loss of the training libraries has it


def best_path(logits: NDArray[Any], alphabet: Sequence[str]) -> tuple[str, float]:
    """The best class of each step, repeats merged, blanks left out (Graves et al. 2006, section 3.2).

    Args:
        logits: ``(T, C)``, scores before or after a softmax, steps in reading order.
        alphabet: C texts, the first of which stands for the blank.

    Returns:
        The text, and the geometric mean of the chosen classes' probabilities, 0..1.
    """
    values = logits.astype(np.float64)
    values = values - values.max(1, keepdims=True)
    chances = np.exp(values)
    chances /= chances.sum(1, keepdims=True)
    path = chances.argmax(1)
    new = np.ones(len(path), np.bool_)
    new[1:] = path[1:] != path[:-1]
    text = "".join(alphabet[int(label)] for label in path[new & (path != BLANK)])
    best = chances[np.arange(len(path)), path]
    return text, float(np.exp(np.log(np.maximum(best, 1e-300)).mean())) if len(best) else 0.0
