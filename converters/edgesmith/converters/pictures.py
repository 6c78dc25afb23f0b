"""The images that a conversion compares and records: real ones where the recipe names some."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from edgesmith.calibration.images import Images, pseudo_images
from edgesmith.converters.recipe import Recipe
from edgesmith.sdk.preprocess import Frame8

log = logging.getLogger(__name__)
MOST = 16
# Pseudo-images for a network of any size: small, and with sides that no usual stride halves evenly twice.
ANY_SIZE = (90, 122)


@dataclass(frozen=True)
class Pictures:
    """``frames`` BGR uint8 ``(H, W, 3)``; ``real`` of them are the user's, 0 or all."""

    frames: tuple[Frame8, ...]
    real: int
    source: str


def pictures_of(recipe: Recipe) -> Pictures:
    """Up to 16 of the evaluation images, else of the calibration images, else seeded pseudo-images.

    Raises:
        DataError: the images cannot be found or read.
    """
    data = recipe.data
    named = data.evaluation.images if data.evaluation is not None else data.calibration
    if named is not None:
        images = Images.open(recipe.resolve(named)).sample(MOST, data.seed)
        return Pictures(tuple(images), len(images), recipe.shown(named))
    log.warning(
        "the recipe names no images (data.calibration, data.evaluation): parity is measured on seeded "
        "pseudo-images, which proves less than real ones"
    )
    size = recipe.preprocess().size or ANY_SIZE
    return Pictures(tuple(pseudo_images(MOST, data.seed, size)), 0, "seeded pseudo-images")
